"""The kernel of negative binomial counts around a rate with background and scaling.

As :mod:`countvi.ops.cpu.likelihood`, with mu = library * y * (softplus(l) + B). Theta, B and y are rows of tables; what
belongs to a row of a table is added up over the cells of a chunk that take it, and over chunks by the caller.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import math

import numpy as np
from numba import carray

from countvi.ops.cpu import dense, stored
from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, part, strict
from countvi.ops.cpu.elementary import ONE, TWO, ZERO, atanh_excess, exp, exp64, log, log64
from countvi.ops.cpu.views import integers, matrix, vector

SLOTS = (
    "ticket",
    "rows",
    "cells",
    "genes",
    "chunk",
    "chunks",
    "nonzeros",
    "theta_rows",
    "background_rows",
    "scaling_rows",
    "logits",
    "log_library",
    "log_theta",
    "theta",
    "background",
    "log_scaling",
    "scaling",
    "theta_code",
    "background_code",
    "scaling_code",
    "values",
    "columns",
    "offsets",
    "weight",
    "out",
    "d_logits",
    "d_log_library",
    "d_log_theta",
    "d_log_background",
    "d_log_scaling",
)
"""What the numbers of a job are: sizes, then addresses, zero for an array that is absent.

There are ``rows`` rows of parameters; row ``r`` has the counts and the codes of cell ``r % cells``. There is no
gradient without ``d_logits``. ``d_log_theta``, ``d_log_background`` and ``d_log_scaling`` have a table per chunk.
"""

(_TICKET, _ROWS, _CELLS, _GENES, _CHUNK, _CHUNKS, _NONZEROS) = range(7)
(_THETA_ROWS, _BACKGROUND_ROWS, _SCALING_ROWS) = range(7, 10)
(_LOGITS, _LOG_LIBRARY, _LOG_THETA, _THETA, _BACKGROUND, _LOG_SCALING, _SCALING) = range(10, 17)
(_THETA_CODE, _BACKGROUND_CODE, _SCALING_CODE, _VALUES, _COLUMNS, _OFFSETS) = range(17, 23)
(_WEIGHT, _OUT, _D_LOGITS, _D_LOG_LIBRARY, _D_LOG_THETA, _D_LOG_BACKGROUND, _D_LOG_SCALING) = range(23, 30)
_N_SLOTS = len(SLOTS)
# What the exponential gives for everything that underflows.
_LEAST = np.float32(2e-38)
# Rows of the work space in float32.
_N_ROWS = 6


@part
def _code(address, cells, cell):
    """Row of a table that a cell takes."""
    return integers(address, cells)[cell] if address != 0 else 0


@strict
def _own_rate(logits, own, sigmoid):
    """Write the softplus of the logits and its slope."""
    apart()
    for g in range(logits.shape[0]):
        y = logits[g]
        t = exp(-abs(y))
        positive = ZERO if y < ZERO else y  # unlike max, keeps NaN
        own[g] = positive + TWO * t / (TWO + t) * (ONE + atanh_excess(t / (TWO + t)))
        sigmoid[g] = (ONE if y > ZERO else t) / (ONE + t)


@strict
def _whole_rate(own, background, scaling, rate):
    """Write the rate with background and scaling."""
    apart()
    for g in range(own.shape[0]):
        rate[g] = (own[g] + background[g]) * scaling[g]


@strict
def _log_row(row, out):
    """Write the logarithm."""
    apart()
    for g in range(row.shape[0]):
        out[g] = log(row[g]) if row[g] > ZERO else row[g] - ONE / ZERO  # NaN stays


@strict
def _through_rate(own, background, sigmoid, share):
    """Write d log mu / d logits: the slope of the softplus over the rate before scaling."""
    apart()
    for g in range(own.shape[0]):
        # Where the softplus underflows beside a background, so does its slope. Without one, the ratio is right.
        seen = sigmoid[g] if own[g] > _LEAST or background[g] == ZERO else ZERO
        share[g] = seen / (own[g] + background[g])


@strict
def _to_background(slopes, background, own, weight, out):
    """``out += weight * slopes * share of the background``."""
    apart()
    for g in range(out.shape[0]):
        share = background[g] / (own[g] + background[g])
        out[g] += weight * slopes[g] * share


@strict
def _to_logits(share, weight, slopes):
    """``slopes *= weight * share``."""
    apart()
    for g in range(slopes.shape[0]):
        slopes[g] = weight * slopes[g] * share[g]


@strict
def _logs_at(logits, background, log_scaling, shift, genes, out):
    """Write log mu at some genes, in float64."""
    apart()
    stored.pick(logits, genes, 0.0, out)
    stored.log_softplus_in_place(out, genes.shape[0], 0.0)
    for j in range(genes.shape[0]):
        b = np.float64(background[genes[j]])
        out[j] = log64(exp64(out[j]) + b) if b > 0.0 else out[j]
    for j in range(genes.shape[0]):
        out[j] += log_scaling[genes[j]] + shift


@part
def _parameters(job):
    n_rows, genes, cells, n = job[_ROWS], job[_GENES], job[_CELLS], job[_NONZEROS]
    return (
        (matrix(job[_LOGITS], n_rows, genes), matrix(job[_LOG_LIBRARY], 1, n_rows)[0]),
        (matrix(job[_LOG_THETA], job[_THETA_ROWS], genes), matrix(job[_THETA], job[_THETA_ROWS], genes)),
        matrix(job[_BACKGROUND], job[_BACKGROUND_ROWS], genes),
        (matrix(job[_LOG_SCALING], job[_SCALING_ROWS], genes), matrix(job[_SCALING], job[_SCALING_ROWS], genes)),
        (
            vector(job[_VALUES], n),
            integers(job[_COLUMNS], n),
            integers(job[_OFFSETS], cells + 1),
        ),
    )


@part
def _work_space(job, offsets):
    """Rows in float32, rows in float64 as long as the longest cell, and its genes."""
    genes, longest = job[_GENES], 0
    for cell in range(job[_CELLS]):
        longest = max(longest, offsets[cell + 1] - offsets[cell])
    space = np.empty((_N_ROWS, genes + 80), np.float32)
    # Cut one by one: a row of a cut matrix is not known to be in one piece.
    a, b, c = space[0][:genes], space[1][:genes], space[2][:genes]
    d, e, f = space[3][:genes], space[4][:genes], space[5][:genes]
    rows = (a, b, c, d, e, f)
    return rows, np.empty((stored.N_BUFFERS, longest + 40)), np.empty(longest + 40, np.int64)


@part
def _table(address, chunk, n_table, genes):
    """The gradient by a table, as far as one chunk has a part in it."""
    return matrix(address, (chunk + 1) * n_table, genes)


@part
def _clear(job, chunk):
    """Set the part of a chunk in the gradients by the tables to zero."""
    genes = job[_GENES]
    for address, n_table in (
        (job[_D_LOG_THETA], job[_THETA_ROWS]),
        (job[_D_LOG_BACKGROUND], job[_BACKGROUND_ROWS]),
        (job[_D_LOG_SCALING], job[_SCALING_ROWS]),
    ):
        if address != 0:
            _table(address, chunk, n_table, genes)[chunk * n_table :] = ZERO


@part
def _terms_at_zero(mean, dispersion, slope, rows):
    """Fill value and theta's slope in ``rows``, and the slope by log mu."""
    _, _, _, value, theta_slope, log_rate = rows
    rate, scale, shift = mean
    whole = (rate, scale, log_rate, shift)
    if dense.nb_with_slopes(whole, dispersion[0], value, slope, theta_slope) > 0:
        _log_row(rate, log_rate)
        dense.nb_from_logs(whole, dispersion, value, slope, theta_slope)


@part
def _spread(job, row, chunk, table_rows, background, slopes, nonzero, space):
    """Turn the slopes by log mu into the gradient of a row, times its weight."""
    (own, _, sigmoid, share, theta_slope, _), work, _ = space
    genes, n = job[_GENES], nonzero.shape[0]
    weight = matrix(job[_WEIGHT], 1, job[_ROWS])[0, row]
    if job[_D_LOG_THETA] != 0:
        stored.put(work[stored.THETA_SLOPE], nonzero, theta_slope)
        total = _table(job[_D_LOG_THETA], chunk, job[_THETA_ROWS], genes)
        dense.add_scaled(theta_slope, weight, total[chunk * job[_THETA_ROWS] + table_rows[0]])
    sum_of_slopes = dense.total(slopes) + stored.total(work[stored.SLOPE], n)
    matrix(job[_D_LOG_LIBRARY], 1, job[_ROWS])[0, row] = np.float32(weight * sum_of_slopes)
    stored.put(work[stored.SLOPE], nonzero, slopes)
    if job[_D_LOG_SCALING] != 0:
        total = _table(job[_D_LOG_SCALING], chunk, job[_SCALING_ROWS], genes)
        dense.add_scaled(slopes, weight, total[chunk * job[_SCALING_ROWS] + table_rows[2]])
    if job[_D_LOG_BACKGROUND] != 0:
        total = _table(job[_D_LOG_BACKGROUND], chunk, job[_BACKGROUND_ROWS], genes)
        _to_background(slopes, background, own, weight, total[chunk * job[_BACKGROUND_ROWS] + table_rows[1]])
    _through_rate(own, background, sigmoid, share)
    _to_logits(share, weight, slopes)


@part
def _row(job, row, chunk, parameters, space):
    """Log-likelihood of one row, and its gradient if asked."""
    rows, work, all_genes = space
    own, rate, sigmoid, value, _, log_rate = rows
    (logits, log_library), (log_theta, theta), backgrounds, (log_scaling, scaling), counts = parameters
    cells = job[_CELLS]
    cell = row % cells
    t = _code(job[_THETA_CODE], cells, cell)
    b = _code(job[_BACKGROUND_CODE], cells, cell)
    y = _code(job[_SCALING_CODE], cells, cell)
    shift = np.float64(log_library[row])
    _own_rate(logits[row], own, sigmoid)
    _whole_rate(own, backgrounds[b], scaling[y], rate)
    nonzero = all_genes[: stored.gather(counts, cell, all_genes, work)]
    dense.clear_at(nonzero, rate)
    mean = (rate, np.float32(math.exp(shift)), np.float32(shift))
    with_gradient = job[_D_LOGITS] != 0
    slopes = matrix(job[_D_LOGITS], job[_ROWS], job[_GENES])[row] if with_gradient else log_rate
    _terms_at_zero(mean, (theta[t], log_theta[t]), slopes, rows)
    out = dense.total(value)
    _logs_at(logits[row], backgrounds[b], log_scaling[y], shift, nonzero, work[stored.LOG_MU])
    stored.pick(theta[t], nonzero, 0.0, work[stored.THETA])
    stored.negative_binomial(work, nonzero.shape[0])
    if with_gradient:
        _spread(job, row, chunk, (t, b, y), backgrounds[b], slopes, nonzero, space)
    return out + stored.total(work[stored.VALUE], nonzero.shape[0])


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def gamma_poisson(data):
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        parameters = _parameters(job)
        space = _work_space(job, parameters[4][2])
        out = matrix(job[_OUT], 1, job[_ROWS])[0]
        while True:
            chunk = next_ticket(data)
            if chunk >= job[_CHUNKS]:
                break
            _clear(job, chunk)
            for row in range(chunk * job[_CHUNK], min((chunk + 1) * job[_CHUNK], job[_ROWS])):
                out[row] = np.float32(_row(job, row, chunk, parameters, space))

    return kernel(gamma_poisson)


GAMMA_POISSON = _make_kernel(digest())
