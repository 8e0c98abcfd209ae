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
from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, pointer, strict
from countvi.ops.cpu.elementary import ONE, ZERO, log

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
_N_ROWS = 4


@strict
def _matrix(address, rows, columns):
    return carray(pointer(address), (rows if address != 0 else 0, columns), np.float32)


@strict
def _code(address, cells, cell):
    """Row of a table that a cell takes."""
    return carray(pointer(address), (cells,), np.int64)[cell] if address != 0 else 0


@strict
def _add_background(background, own, rate, log_rate):
    """Write the rate with background, and its logarithm."""
    apart()
    for g in range(own.shape[0]):
        rate[g] = own[g] + background[g]
    for g in range(own.shape[0]):
        log_rate[g] = log(rate[g]) if background[g] > ZERO and rate[g] > ZERO else log_rate[g]  # NaN stays


@strict
def _scale(scaling, log_scaling, rate, log_rate):
    """Multiply the rate."""
    apart()
    for g in range(rate.shape[0]):
        rate[g] *= scaling[g]
    for g in range(rate.shape[0]):
        log_rate[g] += log_scaling[g]


@strict
def _own_share(background, own, share):
    """Write the share of the cell's own rate; one minus it would have no digits left where it is small."""
    apart()
    for g in range(own.shape[0]):
        visible = own[g] if own[g] > _LEAST else ZERO
        share[g] = visible / (own[g] + background[g]) if background[g] > ZERO else ONE


@strict
def _to_logits(slopes, share, own_slope, weight, out):
    """``out = weight * slopes * share * own_slope``."""
    apart()
    for g in range(out.shape[0]):
        out[g] = weight * slopes[g] * (share[g] * own_slope[g])


@strict
def _add_to_background(slopes, background, own, weight, out):
    """``out += weight * slopes * share of the background``."""
    apart()
    for g in range(out.shape[0]):
        share = background[g] / (own[g] + background[g]) if background[g] > ZERO else ZERO
        out[g] += weight * slopes[g] * share


@strict
def _logs_at(logits, background, log_scaling, shift, genes, out):
    """Write log mu at some genes, in float64."""
    apart()
    stored.pick(logits, genes, 0.0, out)
    stored.log_softplus_in_place(out, genes.shape[0], 0.0)
    for j in range(genes.shape[0]):
        b = np.float64(background[genes[j]])
        out[j] = math.log(math.exp(out[j]) + b) if b > 0.0 else out[j]
        out[j] += log_scaling[genes[j]] + shift


@strict
def _parameters(job):
    n_rows, genes, cells, n = job[_ROWS], job[_GENES], job[_CELLS], job[_NONZEROS]
    return (
        (_matrix(job[_LOGITS], n_rows, genes), _matrix(job[_LOG_LIBRARY], 1, n_rows)[0]),
        (_matrix(job[_LOG_THETA], job[_THETA_ROWS], genes), _matrix(job[_THETA], job[_THETA_ROWS], genes)),
        _matrix(job[_BACKGROUND], job[_BACKGROUND_ROWS], genes),
        (_matrix(job[_LOG_SCALING], job[_SCALING_ROWS], genes), _matrix(job[_SCALING], job[_SCALING_ROWS], genes)),
        (
            carray(pointer(job[_VALUES]), (n,), np.float32),
            carray(pointer(job[_COLUMNS]), (n,), np.int64),
            carray(pointer(job[_OFFSETS]), (cells + 1,), np.int64),
        ),
    )


@strict
def _work_space(job, offsets):
    """Rows in float32, rows in float64 as long as the longest cell, and its genes."""
    genes, longest = job[_GENES], 0
    for cell in range(job[_CELLS]):
        longest = max(longest, offsets[cell + 1] - offsets[cell])
    space = np.empty((_N_ROWS, genes + 80), np.float32)
    rows = (space[0][:genes], space[1][:genes], space[2][:genes], space[3][:genes])
    return rows, np.empty((stored.N_BUFFERS, longest + 40)), np.empty(longest + 40, np.int64)


@strict
def _table(address, chunk, n_table, genes):
    """The gradient by a table, as far as one chunk has a part in it."""
    return carray(pointer(address), ((chunk + 1) * n_table if address != 0 else 0, genes), np.float32)


@strict
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


@strict
def _gradient(job, row, chunk, table_rows, parameters, mean, nonzero, space):
    """Write the gradient of a row, times its weight."""
    (own, rate, _, first), work, _ = space
    logits, (log_theta, theta), background = parameters[0][0][row], parameters[1], parameters[2][table_rows[1]]
    genes, n = job[_GENES], nonzero.shape[0]
    weight = _matrix(job[_WEIGHT], 1, job[_ROWS])[0, row]
    slopes = _matrix(job[_D_LOGITS], job[_ROWS], genes)[row]
    if job[_D_LOG_THETA] != 0:
        dense.slope_theta(mean, (theta[table_rows[0]], log_theta[table_rows[0]]), first)
        stored.put(work[stored.THETA_SLOPE], nonzero, first)
        total = _table(job[_D_LOG_THETA], chunk, job[_THETA_ROWS], genes)
        dense.add_scaled(first, weight, total[chunk * job[_THETA_ROWS] + table_rows[0]])
    dense.slope_nb(mean, theta[table_rows[0]], slopes)
    sum_of_slopes = dense.total(slopes) + stored.total(work[stored.SLOPE], n)
    _matrix(job[_D_LOG_LIBRARY], 1, job[_ROWS])[0, row] = np.float32(weight * sum_of_slopes)
    stored.put(work[stored.SLOPE], nonzero, slopes)
    if job[_D_LOG_SCALING] != 0:
        total = _table(job[_D_LOG_SCALING], chunk, job[_SCALING_ROWS], genes)
        dense.add_scaled(slopes, weight, total[chunk * job[_SCALING_ROWS] + table_rows[2]])
    if job[_D_LOG_BACKGROUND] != 0:
        total = _table(job[_D_LOG_BACKGROUND], chunk, job[_BACKGROUND_ROWS], genes)
        row_total = total[chunk * job[_BACKGROUND_ROWS] + table_rows[1]]
        _add_to_background(slopes, background, own, weight, row_total)
    _own_share(background, own, first)
    dense.log_softplus_slope_row(logits, rate)
    _to_logits(slopes, first, rate, weight, slopes)


@strict
def _row(job, row, chunk, parameters, space):
    """Log-likelihood of one row, and its gradient if asked."""
    (own, rate, log_rate, first), work, all_genes = space
    (logits, log_library), (log_theta, theta), backgrounds, (log_scaling, scaling), counts = parameters
    cells = job[_CELLS]
    cell = row % cells
    t = _code(job[_THETA_CODE], cells, cell)
    b = _code(job[_BACKGROUND_CODE], cells, cell)
    y = _code(job[_SCALING_CODE], cells, cell)
    shift = np.float64(log_library[row])
    dense.softplus_row(logits[row], own, log_rate)
    _add_background(backgrounds[b], own, rate, log_rate)
    _scale(scaling[y], log_scaling[y], rate, log_rate)
    nonzero = all_genes[: stored.gather(counts, cell, all_genes, work)]
    dense.clear_at(nonzero, rate)
    mean = (rate, np.float32(math.exp(shift)), log_rate, np.float32(shift))
    dense.log_prob_nb(mean, (theta[t], log_theta[t]), first)
    out = dense.total(first)
    _logs_at(logits[row], backgrounds[b], log_scaling[y], shift, nonzero, work[stored.LOG_MU])
    stored.pick(log_theta[t], nonzero, 0.0, work[stored.LOG_THETA])
    stored.negative_binomial(work, nonzero.shape[0])
    if job[_D_LOGITS] != 0:
        _gradient(job, row, chunk, (t, b, y), parameters, mean, nonzero, space)
    return out + stored.total(work[stored.VALUE], nonzero.shape[0])


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def gamma_poisson(data):
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        parameters = _parameters(job)
        space = _work_space(job, parameters[4][2])
        out = _matrix(job[_OUT], 1, job[_ROWS])[0]
        while True:
            chunk = next_ticket(data)
            if chunk >= job[_CHUNKS]:
                break
            _clear(job, chunk)
            for row in range(chunk * job[_CHUNK], min((chunk + 1) * job[_CHUNK], job[_ROWS])):
                out[row] = np.float32(_row(job, row, chunk, parameters, space))

    return kernel(gamma_poisson)


GAMMA_POISSON = _make_kernel(digest())
