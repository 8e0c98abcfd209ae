"""The kernels of the count likelihoods: negative binomial, zero-inflated and Poisson, softmax and softplus.

A thread takes a few cells at a time. What belongs to one of them is computed in rows that stay in the first two levels
of cache: the rate, the terms as if all counts were zero, then the entries that are not zero in their place. The forward
kernel keeps the slopes at the stored entries, which are few, and the row's normaliser; the backward kernel, which
knows the weight of each cell, makes the rest anew: that is cheaper than to write and read it.

What is added up in which order depends on the job alone, so results have the same bits on any number of threads.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray

from countvi.ops.cpu import dense, stored
from countvi.ops.cpu.compiler import digest, kernel, next_ticket, pointer, relaxed
from countvi.ops.cpu.elementary import ZERO

SLOTS = (
    ("ticket", "cells", "genes", "chunk", "chunks", "nonzeros", "family", "softmax", "theta_rows", "with_slopes")
    + ("logits", "log_library", "log_theta", "pi_logits", "values", "columns", "offsets")
    + ("log_norm", "slope", "slope_theta", "slope_pi", "out")
    + ("weight", "d_logits", "d_log_library", "d_log_theta", "d_pi_logits")
)
"""What the numbers of a job are: sizes, flags, then addresses, zero for an array that is absent."""

POISSON, NEGATIVE_BINOMIAL, ZERO_INFLATED = range(3)

(_TICKET, _CELLS, _GENES, _CHUNK, _CHUNKS, _NONZEROS, _FAMILY, _SOFTMAX, _THETA_ROWS, _WITH_SLOPES) = range(10)
(_LOGITS, _LOG_LIBRARY, _LOG_THETA, _PI_LOGITS, _VALUES, _COLUMNS, _OFFSETS) = range(10, 17)
(_LOG_NORM, _SLOPE, _SLOPE_THETA, _SLOPE_PI, _OUT) = range(17, 22)
(_WEIGHT, _D_LOGITS, _D_LOG_LIBRARY, _D_LOG_THETA, _D_PI_LOGITS) = range(22, 27)
_N_SLOTS = len(SLOTS)

# Rows of the work space in float32.
_RATE, _LOG_RATE, _THETA, _FIRST, _SECOND, _THIRD = range(6)
_N_ROWS = 6


@relaxed
def _matrix(address, rows, columns):
    return carray(pointer(address), (rows if address != 0 else 0, columns), np.float32)


@relaxed
def _parameters(job):
    cells, genes = job[_CELLS], job[_GENES]
    return (
        _matrix(job[_LOGITS], cells, genes),
        _matrix(job[_LOG_LIBRARY], 1, cells)[0],
        _matrix(job[_LOG_THETA], job[_THETA_ROWS], genes),
        _matrix(job[_PI_LOGITS], cells, genes),
    )


@relaxed
def _counts(job):
    return (
        carray(pointer(job[_VALUES]), (job[_NONZEROS],), np.float32),
        carray(pointer(job[_COLUMNS]), (job[_NONZEROS],), np.int64),
        carray(pointer(job[_OFFSETS]), (job[_CELLS] + 1,), np.int64),
    )


@relaxed
def _saved(job):
    return (
        carray(pointer(job[_LOG_NORM]), (job[_CELLS],), np.float64),
        _matrix(job[_SLOPE], 1, job[_NONZEROS]),
        _matrix(job[_SLOPE_THETA], 1, job[_NONZEROS]),
        _matrix(job[_SLOPE_PI], 1, job[_NONZEROS]),
    )


@relaxed
def _work_space(job, counts, parameters):
    """Rows in float32, rows in float64 as long as the longest cell, and its positions and columns."""
    offsets = counts[2]
    longest = 0
    for cell in range(job[_CELLS]):
        longest = max(longest, offsets[cell + 1] - offsets[cell])
    genes = job[_GENES]
    # Rows whose starts differ by a power of two would push each other out of the cache.
    block = np.empty((_N_ROWS, genes + 80), np.float32)
    # One by one, so that each is known to be contiguous.
    rows = (block[0, :genes], block[1, :genes], block[2, :genes], block[3, :genes], block[4, :genes], block[5, :genes])
    if job[_THETA_ROWS] == 1:
        dense.exp_into(parameters[2][0], rows[_THETA])
    return rows, np.empty((stored.N_BUFFERS, longest + 40)), np.empty((2, longest + 40), np.int64)


@relaxed
def _rate(cell, parameters, softmax, log_norm, rows):
    """Fill the rates of a cell. ``log_norm`` is read where it is not NaN, and written."""
    logits, log_library = parameters[0][cell], np.float64(parameters[1][cell])
    rate = rows[_RATE]
    if softmax:
        norm = log_norm[cell]
        if norm == norm:
            offset = np.float32(norm)
            dense.exp_row(logits, offset, rate)
            inverse = math.exp(offset - norm)
        else:
            offset = dense.row_max(logits)
            inverse = 1.0 / dense.exp_row(logits, offset, rate)
            norm = offset - math.log(inverse)
            log_norm[cell] = norm
        return rate, logits, math.exp(log_library) * inverse, log_library - norm, inverse
    dense.softplus_row(logits, rate, rows[_LOG_RATE])
    return rate, rows[_LOG_RATE], math.exp(log_library), log_library, 1.0


@relaxed
def _theta(cell, parameters, rows):
    """Theta of a cell and its logarithm."""
    log_theta = parameters[2]
    if log_theta.shape[0] == 1:
        return rows[_THETA], log_theta[0]
    dense.exp_into(log_theta[cell], rows[_THETA])
    return rows[_THETA], log_theta[cell]


@relaxed
def _stored_terms(job, cell, parameters, shift, genes, work):
    """Fill VALUE and the slopes of the entries that are not zero."""
    n = genes.shape[0]
    stored.pick(parameters[0][cell], genes, shift if job[_SOFTMAX] else 0.0, work[stored.LOG_MU])
    if not job[_SOFTMAX]:
        stored.log_softplus_in_place(work[stored.LOG_MU, :n], shift)
    if job[_FAMILY] == POISSON:
        stored.poisson(work, n)
        return
    log_theta = parameters[2][cell if job[_THETA_ROWS] > 1 else 0]
    stored.pick(log_theta, genes, 0.0, work[stored.LOG_THETA])
    stored.negative_binomial(work, n)
    if job[_FAMILY] == ZERO_INFLATED:
        stored.pick(parameters[3][cell], genes, 0.0, work[stored.THETA])
        stored.keep(work, n)


@relaxed
def _dense_terms(job, cell, parameters, mean, rows):
    """Sum of the terms at zero."""
    if job[_FAMILY] == POISSON:
        return -dense.total(mean[0]) * mean[1]
    dense.log_prob_nb(mean, _theta(cell, parameters, rows), rows[_FIRST])
    if job[_FAMILY] == NEGATIVE_BINOMIAL:
        return dense.total(rows[_FIRST])
    log_odds = parameters[3][cell]
    out, lost = dense.log_prob_inflated(rows[_FIRST], log_odds, rows[_SECOND])
    return out + (dense.rescue_log_prob(rows[_FIRST], log_odds, rows[_SECOND]) if lost else 0.0)


@relaxed
def _forward_cell(job, cell, parameters, counts, saved, space):
    """Log-likelihood of one cell."""
    rows, work, entries = space
    rate, log_rate, scale, shift, _ = _rate(cell, parameters, job[_SOFTMAX], saved[0], rows)
    n = stored.gather(counts, cell, entries, work)
    positions, genes = entries[0, :n], entries[1, :n]
    dense.clear_at(genes, rate)
    mean = (rate, np.float32(scale), log_rate, np.float32(shift))
    out = _dense_terms(job, cell, parameters, mean, rows)
    _stored_terms(job, cell, parameters, shift, genes, work)
    if job[_WITH_SLOPES]:
        stored.put(work[stored.SLOPE], positions, saved[1][0])
        if job[_FAMILY] != POISSON:
            stored.put(work[stored.THETA_SLOPE], positions, saved[2][0])
        if job[_FAMILY] == ZERO_INFLATED:
            stored.put(work[stored.MU], positions, saved[3][0])
    return out + stored.total(work[stored.VALUE, :n])


@relaxed
def _slopes_at_zero(job, cell, parameters, mean, rows, out):
    """Write the slopes by log mu as if all counts were zero; by the dropout's log-odds, to THIRD."""
    if job[_FAMILY] == POISSON:
        dense.copy_scaled(mean[0], -mean[1], out)
        return
    dispersion = _theta(cell, parameters, rows)
    dense.slope_nb(mean, dispersion[0], out)
    if job[_FAMILY] == ZERO_INFLATED:
        log_odds = parameters[3][cell]
        dense.log_prob_nb(mean, dispersion, rows[_FIRST])
        dense.slopes_inflated(rows[_FIRST], log_odds, rows[_SECOND], rows[_THIRD])
        if dense.has_negative(rows[_SECOND]):
            dense.rescue_slopes(rows[_FIRST], log_odds, rows[_SECOND], rows[_THIRD])
        dense.multiply(out, rows[_SECOND])


@relaxed
def _theta_slopes(job, cell, parameters, mean, rows):
    """Write the slopes by log theta as if all counts were zero to FIRST."""
    log_theta = parameters[2][cell if job[_THETA_ROWS] > 1 else 0]
    dense.slope_theta(mean, (rows[_THETA], log_theta), rows[_FIRST])
    if job[_FAMILY] == ZERO_INFLATED:
        dense.multiply(rows[_FIRST], rows[_SECOND])


@relaxed
def _backward_cell(job, cell, parameters, counts, saved, space):
    """Write what belongs to one cell; return the sum of the slopes by log mu, without the weight."""
    rows, work, entries = space
    cells, n_genes = job[_CELLS], job[_GENES]
    weight = _matrix(job[_WEIGHT], 1, cells)[0, cell]
    rate, log_rate, scale, shift, inverse = _rate(cell, parameters, job[_SOFTMAX], saved[0], rows)
    n = stored.gather(counts, cell, entries, work)
    positions, genes = entries[0, :n], entries[1, :n]
    stored.pick(rate, genes, 0.0, work[stored.MU])
    dense.clear_at(genes, rate)
    mean = (rate, np.float32(scale), log_rate, np.float32(shift))
    slopes = _matrix(job[_D_LOGITS], cells, n_genes)[cell]
    _slopes_at_zero(job, cell, parameters, mean, rows, slopes)
    if job[_D_PI_LOGITS] != 0:
        out = _matrix(job[_D_PI_LOGITS], cells, n_genes)[cell]
        dense.copy_scaled(rows[_THIRD], weight, out)
        stored.put_scaled(saved[3][0], positions, genes, weight, out)
    if job[_D_LOG_THETA] != 0:
        _theta_slopes(job, cell, parameters, mean, rows)
        if job[_THETA_ROWS] > 1:
            out = _matrix(job[_D_LOG_THETA], cells, n_genes)[cell]
            dense.copy_scaled(rows[_FIRST], weight, out)
            stored.put_scaled(saved[2][0], positions, genes, weight, out)
        else:
            out = _matrix(job[_D_LOG_THETA], job[_CHUNKS], n_genes)[cell // job[_CHUNK]]
            dense.add_scaled(rows[_FIRST], weight, out)
            stored.add_scaled(saved[2][0], positions, genes, weight, out)
    sum_of_slopes = dense.total(slopes) + stored.sum_at(saved[1][0], positions)
    stored.put_scaled(saved[1][0], positions, genes, np.float32(1), slopes)
    if job[_SOFTMAX]:
        stored.put(work[stored.MU], genes, rate)
        dense.through_softmax(slopes, rate, np.float32(sum_of_slopes * inverse), weight)
    else:
        dense.log_softplus_slope_row(parameters[0][cell], rows[_FIRST])
        dense.multiply(slopes, rows[_FIRST])
        dense.copy_scaled(slopes, weight, slopes)
    return sum_of_slopes * weight


def _make_kernels(sources: int):  # noqa: ANN202
    """Make the two kernels; ``sources`` is in their closures, see :mod:`countvi.ops.cpu.compiler`."""

    def forward(data):  # noqa: ANN001, ANN202
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        parameters, counts, saved = _parameters(job), _counts(job), _saved(job)
        space = _work_space(job, counts, parameters)
        out = _matrix(job[_OUT], 1, job[_CELLS])[0]
        while True:
            chunk = next_ticket(data)
            if chunk >= job[_CHUNKS]:
                break
            for cell in range(chunk * job[_CHUNK], min((chunk + 1) * job[_CHUNK], job[_CELLS])):
                out[cell] = np.float32(_forward_cell(job, cell, parameters, counts, saved, space))

    def backward(data):  # noqa: ANN001, ANN202
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        parameters, counts, saved = _parameters(job), _counts(job), _saved(job)
        space = _work_space(job, counts, parameters)
        out = _matrix(job[_D_LOG_LIBRARY], 1, job[_CELLS])[0]
        while True:
            chunk = next_ticket(data)
            if chunk >= job[_CHUNKS]:
                break
            if job[_D_LOG_THETA] != 0 and job[_THETA_ROWS] == 1:
                _matrix(job[_D_LOG_THETA], job[_CHUNKS], job[_GENES])[chunk, :] = ZERO
            for cell in range(chunk * job[_CHUNK], min((chunk + 1) * job[_CHUNK], job[_CELLS])):
                out[cell] = np.float32(_backward_cell(job, cell, parameters, counts, saved, space))

    return kernel(forward), kernel(backward)


FORWARD, BACKWARD = _make_kernels(digest())
