"""The kernel of the count likelihoods: negative binomial, zero-inflated and Poisson, softmax and softplus.

A thread takes a few cells at a time. What belongs to one of them is computed in rows that stay in the first two levels
of cache: the rate, the terms as if all counts were zero, then the entries that are not zero in their place. Value and
gradient come from one pass.

What is added up in which order depends on the job alone, so results have the same bits on any number of threads.
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
from countvi.ops.cpu.views import integers, matrix, vector

SLOTS = (
    "ticket",
    "rows",
    "cells",
    "genes",
    "chunk",
    "chunks",
    "nonzeros",
    "family",
    "softmax",
    "theta_rows",
    "logits",
    "log_library",
    "log_theta",
    "pi_logits",
    "values",
    "columns",
    "offsets",
    "weight",
    "out",
    "d_logits",
    "d_log_library",
    "d_log_theta",
    "d_pi_logits",
)
"""What the numbers of a job are: sizes, flags, then addresses, zero for an array that is absent.

There are ``rows`` rows of parameters; row ``r`` has the counts of cell ``r % cells`` and the dispersion of row
``r % theta_rows``. ``weight`` is what the gradient of each row is multiplied by; without ``d_logits`` there is no
gradient. ``d_log_theta`` has a row per chunk where there is one dispersion per gene, else one per row.
"""

POISSON, NEGATIVE_BINOMIAL, ZERO_INFLATED = range(3)

(_TICKET, _ROWS, _CELLS, _GENES, _CHUNK, _CHUNKS, _NONZEROS, _FAMILY, _SOFTMAX, _THETA_ROWS) = range(10)
(_LOGITS, _LOG_LIBRARY, _LOG_THETA, _PI_LOGITS, _VALUES, _COLUMNS, _OFFSETS) = range(10, 17)
(_WEIGHT, _OUT, _D_LOGITS, _D_LOG_LIBRARY, _D_LOG_THETA, _D_PI_LOGITS) = range(17, 23)
_N_SLOTS = len(SLOTS)

# Rows of the work space in float32.
_RATE, _LOG_RATE, _THETA, _FIRST, _SECOND, _THIRD, _THETA_SLOPE = range(7)
_N_ROWS = 7


@part
def _parameters(job):
    rows, genes = job[_ROWS], job[_GENES]
    return (
        matrix(job[_LOGITS], rows, genes),
        matrix(job[_LOG_LIBRARY], 1, rows)[0],
        matrix(job[_LOG_THETA], job[_THETA_ROWS], genes),
        matrix(job[_PI_LOGITS], rows, genes),
    )


@part
def _counts(job):
    return (
        vector(job[_VALUES], job[_NONZEROS]),
        integers(job[_COLUMNS], job[_NONZEROS]),
        integers(job[_OFFSETS], job[_CELLS] + 1),
    )


@part
def _work_space(job, counts, parameters):
    """Rows in float32, rows in float64 as long as the longest cell, and its genes."""
    offsets = counts[2]
    longest = 0
    for cell in range(job[_CELLS]):
        longest = max(longest, offsets[cell + 1] - offsets[cell])
    genes = job[_GENES]
    # Rows whose starts differ by a power of two would push each other out of the cache. A row of a slice of the matrix
    # would not be known to be contiguous.
    space = np.empty((_N_ROWS, genes + 80), np.float32)
    rows = (
        space[0][:genes],
        space[1][:genes],
        space[2][:genes],
        space[3][:genes],
        space[4][:genes],
        space[5][:genes],
        space[6][:genes],
    )
    if job[_THETA_ROWS] == 1:
        dense.exp_into(parameters[2][0], rows[_THETA])
    return rows, np.empty((stored.N_BUFFERS, longest + 40)), np.empty(longest + 40, np.int64)


@part
def _rate(row, parameters, softmax, rows):
    """Rates of a row up to ``scale``, their logarithms up to ``shift``, and one over the sum of the rates."""
    logits, log_library = parameters[0][row], np.float64(parameters[1][row])
    rate = rows[_RATE]
    if softmax:
        offset = dense.row_max(logits)
        inverse = 1.0 / dense.exp_row(logits, offset, rate)
        return logits, math.exp(log_library) * inverse, log_library - offset + math.log(inverse), inverse
    dense.softplus_row(logits, rate, rows[_LOG_RATE])
    return rows[_LOG_RATE], math.exp(log_library), log_library, 1.0


@part
def _theta(row, job, parameters, rows):
    """Theta of a row and its logarithm."""
    log_theta = parameters[2][row % job[_THETA_ROWS]]
    if job[_THETA_ROWS] > 1:
        dense.exp_into(log_theta, rows[_THETA])
    return rows[_THETA], log_theta


@part
def _stored_terms(job, row, parameters, shift, rows, genes, work):
    """Fill VALUE and the slopes of the entries that are not zero."""
    n = genes.shape[0]
    stored.pick(parameters[0][row], genes, shift if job[_SOFTMAX] else 0.0, work[stored.LOG_MU])
    if not job[_SOFTMAX]:
        stored.log_softplus_in_place(work[stored.LOG_MU], n, shift)
    if job[_FAMILY] == POISSON:
        stored.poisson(work, n)
    else:
        stored.pick(rows[_THETA], genes, 0.0, work[stored.THETA])
        stored.negative_binomial(work, n)
    if job[_FAMILY] == ZERO_INFLATED:
        stored.pick(parameters[3][row], genes, 0.0, work[stored.THETA])
        stored.keep(work, n)
    return stored.total(work[stored.VALUE], n)


@part
def _terms_at_zero(job, row, parameters, mean, rows):
    """Sum of the terms as if all counts were zero; with a gradient, their slopes are left in its row and THETA_SLOPE.

    With inflation, SECOND and THIRD are its slopes.
    """
    if job[_FAMILY] == POISSON:
        return -dense.total(mean[0]) * mean[1]
    dispersion = _theta(row, job, parameters, rows)
    if job[_D_LOGITS] != 0:
        slopes = matrix(job[_D_LOGITS], job[_ROWS], job[_GENES])[row]
        if dense.nb_with_slopes(mean, dispersion[0], rows[_FIRST], slopes, rows[_THETA_SLOPE]) > 0:
            dense.nb_from_logs(mean, dispersion, rows[_FIRST], slopes, rows[_THETA_SLOPE])
    else:
        dense.log_prob_nb(mean, dispersion, rows[_FIRST])
    if job[_FAMILY] == ZERO_INFLATED:
        log_odds = parameters[3][row]
        dense.inflate(rows[_FIRST], log_odds, rows[_SECOND], rows[_THIRD])
        if dense.has_negative(rows[_SECOND]):
            dense.rescue(rows[_FIRST], log_odds, rows[_SECOND], rows[_THIRD])
    return dense.total(rows[_FIRST])


@part
def _theta_slopes(job, row, rows, genes, weight, work):
    """Write or add up the slopes by log theta."""
    slopes, n_genes = rows[_THETA_SLOPE], job[_GENES]
    if job[_FAMILY] == ZERO_INFLATED:
        dense.multiply(slopes, rows[_SECOND])
    stored.put(work[stored.THETA_SLOPE], genes, slopes)
    if job[_THETA_ROWS] > 1:
        dense.copy_scaled(slopes, weight, matrix(job[_D_LOG_THETA], job[_ROWS], n_genes)[row])
    else:
        dense.add_scaled(slopes, weight, matrix(job[_D_LOG_THETA], job[_CHUNKS], n_genes)[row // job[_CHUNK]])


@part
def _gradient(job, row, parameters, mean, inverse, rows, genes, work):
    """Write the gradient of a row, times its weight."""
    n_rows, n_genes, n = job[_ROWS], job[_GENES], genes.shape[0]
    weight = matrix(job[_WEIGHT], 1, n_rows)[0, row]
    slopes = matrix(job[_D_LOGITS], n_rows, n_genes)[row]
    if job[_FAMILY] == POISSON:
        dense.copy_scaled(mean[0], -mean[1], slopes)
    if job[_FAMILY] == ZERO_INFLATED:
        dense.multiply(slopes, rows[_SECOND])
    if job[_D_PI_LOGITS] != 0:
        stored.put(work[stored.KEEP_SLOPE], genes, rows[_THIRD])
        dense.copy_scaled(rows[_THIRD], weight, matrix(job[_D_PI_LOGITS], n_rows, n_genes)[row])
    if job[_D_LOG_THETA] != 0:
        _theta_slopes(job, row, rows, genes, weight, work)
    total = dense.total(slopes) + stored.total(work[stored.SLOPE], n)
    stored.put(work[stored.SLOPE], genes, slopes)
    if job[_SOFTMAX]:
        stored.put(work[stored.RATE], genes, mean[0])
        dense.through_softmax(slopes, mean[0], np.float32(total * inverse), weight)
    else:
        dense.log_softplus_slope_row(parameters[0][row], rows[_FIRST])
        dense.multiply(slopes, rows[_FIRST])
        dense.copy_scaled(slopes, weight, slopes)
    matrix(job[_D_LOG_LIBRARY], 1, n_rows)[0, row] = np.float32(total * weight)


@part
def _row(job, row, parameters, counts, space):
    """Log-likelihood of one row, and its gradient if asked."""
    rows, work, all_genes = space
    log_rate, scale, shift, inverse = _rate(row, parameters, job[_SOFTMAX], rows)
    genes = all_genes[: stored.gather(counts, row % job[_CELLS], all_genes, work)]
    rate = rows[_RATE]
    stored.pick(rate, genes, 0.0, work[stored.RATE])
    dense.clear_at(genes, rate)
    mean = (rate, np.float32(scale), log_rate, np.float32(shift))
    out = _terms_at_zero(job, row, parameters, mean, rows)
    out += _stored_terms(job, row, parameters, shift, rows, genes, work)
    if job[_D_LOGITS] != 0:
        _gradient(job, row, parameters, mean, inverse, rows, genes, work)
    return out


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def log_likelihood(data):
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        parameters, counts = _parameters(job), _counts(job)
        space = _work_space(job, counts, parameters)
        out = matrix(job[_OUT], 1, job[_ROWS])[0]
        while True:
            chunk = next_ticket(data)
            if chunk >= job[_CHUNKS]:
                break
            if job[_D_LOG_THETA] != 0 and job[_THETA_ROWS] == 1:
                matrix(job[_D_LOG_THETA], job[_CHUNKS], job[_GENES])[chunk, :] = ZERO
            for row in range(chunk * job[_CHUNK], min((chunk + 1) * job[_CHUNK], job[_ROWS])):
                out[row] = np.float32(_row(job, row, parameters, counts, space))

    return kernel(log_likelihood)


LOG_LIKELIHOOD = _make_kernel(digest())
