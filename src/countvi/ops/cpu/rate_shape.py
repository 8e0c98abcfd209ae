"""The kernel of negative binomial counts whose shape is the rate: value and gradient in one pass.

As :mod:`countvi.ops.cpu.likelihood`; at zero the log-probability is linear in the shape, so nothing but the softplus
of the logits is computed there.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import math

import numpy as np
from numba import carray

from countvi.ops.cpu import dense, stored
from countvi.ops.cpu.compiler import digest, kernel, next_ticket, part
from countvi.ops.cpu.elementary import ZERO
from countvi.ops.cpu.views import copy, integers, matrix, vector

SLOTS = (
    "ticket",
    "rows",
    "cells",
    "genes",
    "chunk",
    "chunks",
    "nonzeros",
    "logits",
    "log_library",
    "p_logits",
    "p_softplus",
    "p_sigmoid",
    "values",
    "columns",
    "offsets",
    "weight",
    "out",
    "d_logits",
    "d_log_library",
    "d_p_logits",
)
"""What the numbers of a job are: sizes, then addresses, zero for an array that is absent.

There are ``rows`` rows of parameters; row ``r`` has the counts of cell ``r % cells``. There is no gradient without
``d_logits``. ``d_p_logits`` has a row per chunk.
"""

(_TICKET, _ROWS, _CELLS, _GENES, _CHUNK, _CHUNKS, _NONZEROS) = range(7)
(_LOGITS, _LOG_LIBRARY, _P_LOGITS, _P_SOFTPLUS, _P_SIGMOID, _VALUES, _COLUMNS, _OFFSETS) = range(7, 15)
(_WEIGHT, _OUT, _D_LOGITS, _D_LOG_LIBRARY, _D_P_LOGITS) = range(15, 20)
_N_SLOTS = len(SLOTS)
# Rows of the work space in float32.
_OWN, _SLOPE, _BY_P = range(3)
_N_ROWS = 3


@part
def _counts(job):
    return (
        vector(job[_VALUES], job[_NONZEROS]),
        integers(job[_COLUMNS], job[_NONZEROS]),
        integers(job[_OFFSETS], job[_CELLS] + 1),
    )


@part
def _work_space(job, offsets):
    """Rows in float32, rows in float64 as long as the longest cell, and its genes."""
    genes, longest = job[_GENES], 0
    for cell in range(job[_CELLS]):
        longest = max(longest, offsets[cell + 1] - offsets[cell])
    space = np.empty((_N_ROWS, genes + 80), np.float32)
    rows = (space[0][:genes], space[1][:genes], space[2][:genes])
    return rows, np.empty((stored.N_BUFFERS, longest + 40)), np.empty(longest + 40, np.int64)


@part
def _gradient(job, row, at_zero, nonzero, space):
    """Write the gradient of a row, times its weight."""
    rows, work, _ = space
    n_rows, genes, n = job[_ROWS], job[_GENES], nonzero.shape[0]
    weight = vector(job[_WEIGHT], n_rows)[row]
    library = math.exp(np.float64(vector(job[_LOG_LIBRARY], n_rows)[row]))
    vector(job[_D_LOG_LIBRARY], n_rows)[row] = np.float32(weight * (at_zero + stored.total(work[stored.SLOPE], n)))
    if job[_D_P_LOGITS] != 0:
        dense.product_into(rows[_OWN], np.float32(-library), vector(job[_P_SIGMOID], genes), rows[_BY_P])
        stored.put(work[stored.P_SLOPE], nonzero, rows[_BY_P])
        by_p = matrix(job[_D_P_LOGITS], job[_CHUNKS], genes)[row // job[_CHUNK]]
        dense.add_scaled(rows[_BY_P], weight, by_p)
    slopes = matrix(job[_D_LOGITS], n_rows, genes)[row]
    dense.product_into(rows[_SLOPE], np.float32(-library * weight), vector(job[_P_SOFTPLUS], genes), slopes)
    stored.pick(matrix(job[_LOGITS], n_rows, genes)[row], nonzero, 0.0, work[stored.RATE])
    stored.through_log_softplus(work[stored.RATE], n, np.float64(weight), work[stored.SLOPE])
    stored.put(work[stored.SLOPE], nonzero, slopes)


@part
def _row(job, row, counts, space):
    """Log-likelihood of one row, and its gradient if asked."""
    rows, work, all_genes = space
    n_rows, genes = job[_ROWS], job[_GENES]
    logits, shift = matrix(job[_LOGITS], n_rows, genes)[row], np.float64(vector(job[_LOG_LIBRARY], n_rows)[row])
    copy(logits, rows[_SLOPE])
    dense.soften(rows[_SLOPE], rows[_OWN])
    nonzero = all_genes[: stored.gather(counts, row % job[_CELLS], all_genes, work)]
    n = nonzero.shape[0]
    stored.pick(logits, nonzero, 0.0, work[stored.LOG_MU])
    stored.log_softplus_in_place(work[stored.LOG_MU], n, shift)
    stored.pick(vector(job[_P_LOGITS], genes), nonzero, 0.0, work[stored.LOG_THETA])
    stored.rate_shape(work, n)
    dense.clear_at(nonzero, rows[_OWN])
    at_zero = -math.exp(shift) * dense.dot(rows[_OWN], vector(job[_P_SOFTPLUS], genes))
    if job[_D_LOGITS] != 0:
        _gradient(job, row, at_zero, nonzero, space)
    return at_zero + stored.total(work[stored.VALUE], n)


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def rate_shape(data):
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        counts = _counts(job)
        space = _work_space(job, counts[2])
        out = vector(job[_OUT], job[_ROWS])
        while True:
            chunk = next_ticket(data)
            if chunk >= job[_CHUNKS]:
                break
            if job[_D_P_LOGITS] != 0:
                matrix(job[_D_P_LOGITS], job[_CHUNKS], job[_GENES])[chunk, :] = ZERO
            for row in range(chunk * job[_CHUNK], min((chunk + 1) * job[_CHUNK], job[_ROWS])):
                out[row] = np.float32(_row(job, row, counts, space))

    return kernel(rate_shape)


RATE_SHAPE = _make_kernel(digest())
