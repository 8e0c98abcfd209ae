"""The kernel of protein counts that are background or foreground: value and gradient in one pass, in float64.

As :mod:`countvi.ops.reference.mixture`. The proteins of a cell that were measured are taken as stored entries, zeros
too; the gammas are computed once for both components.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import numpy as np
import torch
from numba import carray
from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops.cpu import stored
from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, part, pointer, strict
from countvi.ops.cpu.differentiable import Input, Operation, Per, job_of_rows
from countvi.ops.cpu.elementary import ZERO, exp64, log1p64
from countvi.ops.cpu.pointers import counts_of, matrix, vector
from countvi.typing import CellsGenes, PerCell

INPUTS = (
    Input("log_background", Per.ENTRY),
    Input("log_foreground", Per.ENTRY),
    Input("mixing_logits", Per.ENTRY),
    Input("log_theta", Per.GENE),
)
JOB = job_of_rows(INPUTS, "measured")
"""``genes`` are proteins. The dispersion of row ``r`` is the row ``r % log_theta_rows``.

There is no gradient without ``d_log_background``.
"""


# Rows of the work space that are added to those of the stored entries: of the background what the other rows then hold
# for the foreground, and the log-odds, and its slope.
_VALUE, _SLOPE, _EXCESS, _ODDS = range(stored.N_BUFFERS, stored.N_BUFFERS + 4)
_N_BUFFERS = stored.N_BUFFERS + 4


@strict
def _gather(job, cell, dense_counts, proteins, work):
    """List the proteins that were measured in a cell, and their counts in X; return how many they are."""
    apart()
    n_proteins = job.genes
    values, columns, offsets = counts_of(job)
    dense_counts[:] = ZERO
    for position in range(offsets[cell], offsets[cell + 1]):
        dense_counts[columns[position]] += values[position]
    n = 0
    for p in range(n_proteins):
        is_measured = job.measured == 0
        if not is_measured:
            is_measured = carray(pointer(job.measured), (job.cells, n_proteins), np.uint8)[cell, p] != 0
        if is_measured:
            proteins[n] = p
            work[stored.X, n] = dense_counts[p]
            n += 1
    return n


@strict
def _copy(work, n):
    """Keep what belongs to the background."""
    apart()
    for j in range(n):
        work[_VALUE, j] = work[stored.VALUE, j]
        work[_SLOPE, j] = work[stored.SLOPE, j]
        work[_EXCESS, j] = work[stored.EXCESS, j]


@strict
def _softplus(x):
    return log1p64(exp64(-abs(x))) + max(x, 0.0)


@strict
def _combine(work, n):
    """From the two components and the log-odds: VALUE, and the slopes in the places of what they are made of."""
    apart()
    one, two, odds = work[_VALUE], work[stored.VALUE], work[_ODDS]
    slope_one, slope_two, theta_slope = work[_SLOPE], work[stored.SLOPE], work[stored.THETA_SLOPE]
    excess_one, excess_two = work[_EXCESS], work[stored.EXCESS]
    for j in range(n):
        d, m = one[j] - two[j], odds[j]
        other = -m if d > 0.0 else m
        u = exp64(-abs(m))
        pi = (1.0 if m > 0.0 else u) / (1.0 + u)
        not_pi = (u if m > 0.0 else 1.0) / (1.0 + u)
        w = exp64(-abs(m + d))
        share = (1.0 if m + d > 0.0 else w) / (1.0 + w)
        not_share = (w if m + d > 0.0 else 1.0) / (1.0 + w)
        less = exp64(-abs(d)) - 1.0
        t = (not_pi if d > 0.0 else pi) * less
        near = log1p64(t if t > -0.5 else -0.5)
        far = _softplus(other - abs(d)) - _softplus(other)
        two[j] = (one[j] if d > 0.0 else two[j]) + (near if t > -0.5 else far)
        odds[j] = (-not_pi * share if d > 0.0 else pi * not_share) * less
        slope_one[j] *= share
        slope_two[j] *= not_share
        theta_slope[j] += share * excess_one[j] + not_share * excess_two[j]


@strict
def _put(row, proteins, weight, out):
    """Write ``weight * row`` at the proteins that were measured, and zero elsewhere."""
    apart()
    out[:] = ZERO
    for j in range(proteins.shape[0]):
        out[proteins[j]] = np.float32(weight * row[j])


@part
def _gradient(job, row, proteins, work):
    """Write the gradient of a row, times its weight."""
    n_rows, n = job.rows, job.genes
    weight = np.float64(vector(job.weight, n_rows)[row])
    _put(work[_SLOPE], proteins, weight, matrix(job.d_log_background, n_rows, n)[row])
    _put(work[stored.SLOPE], proteins, weight, matrix(job.d_log_foreground, n_rows, n)[row])
    _put(work[_ODDS], proteins, weight, matrix(job.d_mixing_logits, n_rows, n)[row])
    if job.d_log_theta != 0 and job.log_theta_rows > 1:
        _put(work[stored.THETA_SLOPE], proteins, weight, matrix(job.d_log_theta, n_rows, n)[row])
    elif job.d_log_theta != 0:
        total = matrix(job.d_log_theta, job.chunks, n)[row // job.chunk]
        for j in range(proteins.shape[0]):
            total[proteins[j]] += np.float32(weight * work[stored.THETA_SLOPE, j])


@part
def _row(job, row, dense_counts, all_proteins, work):
    """Log-likelihood of one row, and its gradient if asked."""
    n_rows, n_proteins = job.rows, job.genes
    proteins = all_proteins[: _gather(job, row % job.cells, dense_counts, all_proteins, work)]
    n = proteins.shape[0]
    log_theta = matrix(job.log_theta, job.log_theta_rows, n_proteins)[row % job.log_theta_rows]
    stored.pick_exp(log_theta, proteins, work[stored.THETA])
    stored.pick(matrix(job.mixing_logits, n_rows, n_proteins)[row], proteins, 0.0, work[_ODDS])
    stored.pick(matrix(job.log_background, n_rows, n_proteins)[row], proteins, 0.0, work[stored.LOG_MU])
    stored.ratios(work, n)
    stored.gammas(work, n)
    stored.powers(work, n)
    _copy(work, n)
    stored.pick(matrix(job.log_foreground, n_rows, n_proteins)[row], proteins, 0.0, work[stored.LOG_MU])
    stored.ratios(work, n)
    stored.powers(work, n)
    _combine(work, n)
    if job.d_log_background != 0:
        _gradient(job, row, proteins, work)
    return stored.total(work[stored.VALUE], n)


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def mixture(data):
        _ = sources
        job = carray(data, (1,), JOB)[0]
        n_proteins = job.genes
        dense_counts, proteins = np.empty(n_proteins, np.float32), np.empty(n_proteins, np.int64)
        work = np.empty((_N_BUFFERS, n_proteins + 40))
        out = vector(job.out, job.rows)
        while True:
            chunk = next_ticket(data)
            if chunk >= job.chunks:
                break
            if job.d_log_theta != 0 and job.log_theta_rows == 1:
                matrix(job.d_log_theta, job.chunks, n_proteins)[chunk, :] = ZERO
            for row in range(chunk * job.chunk, min((chunk + 1) * job.chunk, job.rows)):
                out[row] = np.float32(_row(job, row, dense_counts, proteins, work))

    return kernel(mixture)


_MIXTURE = Operation(_make_kernel(digest()), JOB, INPUTS, cost=32)


def negative_binomial_mixture(
    log_background: CellsGenes,
    log_foreground: CellsGenes,
    mixing_logits: CellsGenes,
    log_theta: Tensor,
    counts: CountBlock,
    measured: Tensor | None = None,
) -> PerCell:
    """Log-likelihood per cell."""
    if measured is not None:
        size = (counts.n_cells, counts.n_features)
        assert measured.dtype == torch.bool, f"`measured` in {measured.dtype}, not in torch.bool"
        assert measured.shape == size, f"`measured` of shape {tuple(measured.shape)} does not fit the counts {size}"
        measured = measured.contiguous()
    inputs = (log_background, log_foreground, mixing_logits, log_theta)
    return _MIXTURE(inputs, counts, {"measured": measured})
