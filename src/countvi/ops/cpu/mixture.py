"""The kernel of protein counts that are background or foreground: value and gradient in one pass, in float64.

As :mod:`countvi.ops.reference.mixture`. The proteins of a cell that were measured are taken as stored entries, zeros
too; the gammas are computed once for both components.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import numpy as np
from numba import carray

from countvi.ops.cpu import stored
from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, part, pointer, strict
from countvi.ops.cpu.elementary import ZERO, exp64, log1p64
from countvi.ops.cpu.views import integers, matrix, vector

SLOTS = (
    "ticket",
    "rows",
    "cells",
    "proteins",
    "chunk",
    "chunks",
    "nonzeros",
    "theta_rows",
    "log_background",
    "log_foreground",
    "mixing_logits",
    "log_theta",
    "measured",
    "values",
    "columns",
    "offsets",
    "weight",
    "out",
    "d_log_background",
    "d_log_foreground",
    "d_mixing_logits",
    "d_log_theta",
)
"""What the numbers of a job are: sizes, then addresses, zero for an array that is absent.

There are ``rows`` rows of parameters; row ``r`` has the counts of cell ``r % cells`` and the dispersion of row
``r % theta_rows``. There is no gradient without ``d_log_background``. ``d_log_theta`` has a row per chunk where there
is one dispersion per protein, else one per row.
"""

(_TICKET, _ROWS, _CELLS, _PROTEINS, _CHUNK, _CHUNKS, _NONZEROS, _THETA_ROWS) = range(8)
(_LOG_BACKGROUND, _LOG_FOREGROUND, _MIXING_LOGITS, _LOG_THETA, _MEASURED) = range(8, 13)
(_VALUES, _COLUMNS, _OFFSETS, _WEIGHT, _OUT) = range(13, 18)
(_D_LOG_BACKGROUND, _D_LOG_FOREGROUND, _D_MIXING_LOGITS, _D_LOG_THETA) = range(18, 22)
_N_SLOTS = len(SLOTS)

# Rows of the work space that are added to those of the stored entries: of the background what the other rows then hold
# for the foreground, and the log-odds, and its slope.
_VALUE, _SLOPE, _EXCESS, _ODDS = range(stored.N_BUFFERS, stored.N_BUFFERS + 4)
_N_BUFFERS = stored.N_BUFFERS + 4


@strict
def _gather(job, cell, dense_counts, proteins, work):
    """List the proteins that were measured in a cell, and their counts in X; return how many they are."""
    apart()
    n_proteins = job[_PROTEINS]
    values = vector(job[_VALUES], job[_NONZEROS])
    columns = integers(job[_COLUMNS], job[_NONZEROS])
    offsets = integers(job[_OFFSETS], job[_CELLS] + 1)
    dense_counts[:] = ZERO
    for position in range(offsets[cell], offsets[cell + 1]):
        dense_counts[columns[position]] += values[position]
    n = 0
    for p in range(n_proteins):
        is_measured = job[_MEASURED] == 0
        if not is_measured:
            is_measured = carray(pointer(job[_MEASURED]), (job[_CELLS], n_proteins), np.uint8)[cell, p] != 0
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
    n_rows, n = job[_ROWS], job[_PROTEINS]
    weight = np.float64(matrix(job[_WEIGHT], 1, n_rows)[0, row])
    _put(work[_SLOPE], proteins, weight, matrix(job[_D_LOG_BACKGROUND], n_rows, n)[row])
    _put(work[stored.SLOPE], proteins, weight, matrix(job[_D_LOG_FOREGROUND], n_rows, n)[row])
    _put(work[_ODDS], proteins, weight, matrix(job[_D_MIXING_LOGITS], n_rows, n)[row])
    if job[_THETA_ROWS] > 1:
        _put(work[stored.THETA_SLOPE], proteins, weight, matrix(job[_D_LOG_THETA], n_rows, n)[row])
    else:
        total = matrix(job[_D_LOG_THETA], job[_CHUNKS], n)[row // job[_CHUNK]]
        for j in range(proteins.shape[0]):
            total[proteins[j]] += np.float32(weight * work[stored.THETA_SLOPE, j])


@part
def _row(job, row, dense_counts, all_proteins, work):
    """Log-likelihood of one row, and its gradient if asked."""
    n_rows, n_proteins = job[_ROWS], job[_PROTEINS]
    proteins = all_proteins[: _gather(job, row % job[_CELLS], dense_counts, all_proteins, work)]
    n = proteins.shape[0]
    log_theta = matrix(job[_LOG_THETA], job[_THETA_ROWS], n_proteins)[row % job[_THETA_ROWS]]
    stored.pick_exp(log_theta, proteins, work[stored.THETA])
    stored.pick(matrix(job[_MIXING_LOGITS], n_rows, n_proteins)[row], proteins, 0.0, work[_ODDS])
    stored.pick(matrix(job[_LOG_BACKGROUND], n_rows, n_proteins)[row], proteins, 0.0, work[stored.LOG_MU])
    stored.ratios(work, n)
    stored.gammas(work, n)
    stored.powers(work, n)
    _copy(work, n)
    stored.pick(matrix(job[_LOG_FOREGROUND], n_rows, n_proteins)[row], proteins, 0.0, work[stored.LOG_MU])
    stored.ratios(work, n)
    stored.powers(work, n)
    _combine(work, n)
    if job[_D_LOG_BACKGROUND] != 0:
        _gradient(job, row, proteins, work)
    return stored.total(work[stored.VALUE], n)


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def mixture(data):
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        n_proteins = job[_PROTEINS]
        dense_counts, proteins = np.empty(n_proteins, np.float32), np.empty(n_proteins, np.int64)
        work = np.empty((_N_BUFFERS, n_proteins + 40))
        out = matrix(job[_OUT], 1, job[_ROWS])[0]
        while True:
            chunk = next_ticket(data)
            if chunk >= job[_CHUNKS]:
                break
            if job[_D_LOG_THETA] != 0 and job[_THETA_ROWS] == 1:
                matrix(job[_D_LOG_THETA], job[_CHUNKS], n_proteins)[chunk, :] = ZERO
            for row in range(chunk * job[_CHUNK], min((chunk + 1) * job[_CHUNK], job[_ROWS])):
                out[row] = np.float32(_row(job, row, dense_counts, proteins, work))

    return kernel(mixture)


MIXTURE = _make_kernel(digest())
