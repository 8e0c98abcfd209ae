"""The kernel of negative binomial counts whose shape is the rate: value and gradient in one pass.

As :mod:`countvi.ops.cpu.likelihood`; at zero the log-probability is linear in the shape, so nothing but the softplus
of the logits is computed there.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import math

import numpy as np
import torch
from numba import carray
from torch.nn import functional

from countvi.batch import CountBlock
from countvi.ops.cpu import dense, stored
from countvi.ops.cpu.compiler import digest, kernel, next_ticket, part
from countvi.ops.cpu.differentiable import Input, Operation, Per, job_of_rows
from countvi.ops.cpu.elementary import ZERO
from countvi.ops.cpu.pointers import copy, counts_of, matrix, vector
from countvi.typing import CellsGenes, Genes, PerCell

INPUTS = (Input("logits", Per.ENTRY), Input("log_library", Per.CELL), Input("p_logits", Per.GENE))
JOB = job_of_rows(INPUTS, "p_softplus p_sigmoid")
"""There is one row of log-odds, and no gradient without ``d_logits``."""

# Rows of the work space in float32.
_OWN, _SLOPE, _BY_P = range(3)
_N_ROWS = 3


@part
def _work_space(job, offsets):
    """Rows in float32, rows in float64 as long as the longest cell, and its genes."""
    genes = job.genes
    space = np.empty((_N_ROWS, genes + 80), np.float32)
    rows = (space[0][:genes], space[1][:genes], space[2][:genes])
    work, nonzero = stored.work_space(offsets, 0, job.cells)
    return rows, work, nonzero


@part
def _gradient(job, row, at_zero, nonzero, space):
    """Write the gradient of a row, times its weight."""
    rows, work, _ = space
    n_rows, genes, n = job.rows, job.genes, nonzero.shape[0]
    weight = vector(job.weight, n_rows)[row]
    library = math.exp(np.float64(vector(job.log_library, n_rows)[row]))
    vector(job.d_log_library, n_rows)[row] = np.float32(weight * (at_zero + stored.total(work[stored.SLOPE], n)))
    if job.d_p_logits != 0:
        dense.product_into(rows[_OWN], np.float32(-library), vector(job.p_sigmoid, genes), rows[_BY_P])
        stored.put(work[stored.P_SLOPE], nonzero, rows[_BY_P])
        by_p = matrix(job.d_p_logits, job.chunks, genes)[row // job.chunk]
        dense.add_scaled(rows[_BY_P], weight, by_p)
    slopes = matrix(job.d_logits, n_rows, genes)[row]
    dense.product_into(rows[_SLOPE], np.float32(-library * weight), vector(job.p_softplus, genes), slopes)
    stored.pick(matrix(job.logits, n_rows, genes)[row], nonzero, 0.0, work[stored.RATE])
    stored.through_log_softplus(work[stored.RATE], n, np.float64(weight), work[stored.SLOPE])
    stored.put(work[stored.SLOPE], nonzero, slopes)


@part
def _row(job, row, counts, space):
    """Log-likelihood of one row, and its gradient if asked."""
    rows, work, all_genes = space
    n_rows, genes = job.rows, job.genes
    logits, shift = matrix(job.logits, n_rows, genes)[row], np.float64(vector(job.log_library, n_rows)[row])
    copy(logits, rows[_SLOPE])
    dense.soften(rows[_SLOPE], rows[_OWN])
    nonzero = all_genes[: stored.gather(counts, row % job.cells, all_genes, work)]
    n = nonzero.shape[0]
    stored.pick(logits, nonzero, 0.0, work[stored.LOG_MU])
    stored.log_softplus_in_place(work[stored.LOG_MU], n, shift)
    stored.pick(vector(job.p_logits, genes), nonzero, 0.0, work[stored.LOG_THETA])
    stored.rate_shape(work, n)
    dense.clear_at(nonzero, rows[_OWN])
    at_zero = -math.exp(shift) * dense.dot(rows[_OWN], vector(job.p_softplus, genes))
    if job.d_logits != 0:
        _gradient(job, row, at_zero, nonzero, space)
    return at_zero + stored.total(work[stored.VALUE], n)


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def rate_shape(data):
        _ = sources
        job = carray(data, (1,), JOB)[0]
        counts = counts_of(job)
        space = _work_space(job, counts[2])
        out = vector(job.out, job.rows)
        while True:
            chunk = next_ticket(data)
            if chunk >= job.chunks:
                break
            if job.d_p_logits != 0:
                matrix(job.d_p_logits, job.chunks, job.genes)[chunk, :] = ZERO
            for row in range(chunk * job.chunk, min((chunk + 1) * job.chunk, job.rows)):
                out[row] = np.float32(_row(job, row, counts, space))

    return kernel(rate_shape)


_RATE_SHAPE = Operation(_make_kernel(digest()), JOB, INPUTS)


def rate_shape_negative_binomial(
    logits: CellsGenes, log_library: PerCell, p_logits: Genes, counts: CountBlock
) -> PerCell:
    """Log-likelihood per cell."""
    assert p_logits.shape == logits.shape[-1:], f"log-odds {tuple(p_logits.shape)} for {logits.shape[-1]} genes"
    p = p_logits.detach().contiguous()
    fixed = {"p_softplus": functional.softplus(p, threshold=80.0), "p_sigmoid": torch.sigmoid(p)}
    return _RATE_SHAPE((logits, log_library, p_logits), counts, fixed)
