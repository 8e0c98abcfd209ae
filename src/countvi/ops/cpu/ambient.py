"""The kernel of negative binomial counts around a rate with background and scaling.

As :mod:`countvi.ops.cpu.likelihood`, with mu = library * y * (softplus(l) + B). Theta, B and y are rows of tables; what
belongs to a row of a table is added up over the cells of a chunk that take it, and over chunks by the caller.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import carray
from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops.cpu import dense, stored
from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, part, strict
from countvi.ops.cpu.differentiable import Fixed, Input, Operation, Per, job_of_rows
from countvi.ops.cpu.elementary import ONE, TWO, ZERO, atanh_excess, exp, exp64, log, log64
from countvi.ops.cpu.pointers import counts_of, integers, matrix, vector
from countvi.ops.indexed import Indexed
from countvi.typing import CellsGenes, PerCell

INPUTS = (
    Input("logits", Per.ENTRY),
    Input("log_library", Per.CELL),
    Input("log_theta", Per.TABLE),
    Input("log_background", Per.TABLE),
    Input("log_scaling", Per.TABLE),
)
JOB = job_of_rows(INPUTS, "theta background scaling log_theta_code log_background_code log_scaling_code")
"""Exponentials of the tables, and which row of each a cell takes. There is no gradient without ``d_logits``."""

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
    n_rows, genes = job.rows, job.genes
    return (
        (matrix(job.logits, n_rows, genes), vector(job.log_library, n_rows)),
        (matrix(job.log_theta, job.log_theta_rows, genes), matrix(job.theta, job.log_theta_rows, genes)),
        matrix(job.background, job.log_background_rows, genes),
        (matrix(job.log_scaling, job.log_scaling_rows, genes), matrix(job.scaling, job.log_scaling_rows, genes)),
        counts_of(job),
    )


@part
def _work_space(job, offsets):
    """Rows in float32, rows in float64 as long as the longest cell, and its genes."""
    genes = job.genes
    space = np.empty((_N_ROWS, genes + 80), np.float32)
    # Cut one by one: a row of a cut matrix is not known to be in one piece.
    a, b, c = space[0][:genes], space[1][:genes], space[2][:genes]
    d, e, f = space[3][:genes], space[4][:genes], space[5][:genes]
    rows = (a, b, c, d, e, f)
    work, nonzero = stored.work_space(offsets, 0, job.cells)
    return rows, work, nonzero


@part
def _table(address, chunk, n_table, genes):
    """The gradient by a table, as far as one chunk has a part in it."""
    return matrix(address, (chunk + 1) * n_table, genes)


@part
def _clear(job, chunk):
    """Set the part of a chunk in the gradients by the tables to zero."""
    genes = job.genes
    for address, n_table in (
        (job.d_log_theta, job.log_theta_rows),
        (job.d_log_background, job.log_background_rows),
        (job.d_log_scaling, job.log_scaling_rows),
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
    genes, n = job.genes, nonzero.shape[0]
    weight = vector(job.weight, job.rows)[row]
    if job.d_log_theta != 0:
        stored.put(work[stored.THETA_SLOPE], nonzero, theta_slope)
        total = _table(job.d_log_theta, chunk, job.log_theta_rows, genes)
        dense.add_scaled(theta_slope, weight, total[chunk * job.log_theta_rows + table_rows[0]])
    sum_of_slopes = dense.total(slopes) + stored.total(work[stored.SLOPE], n)
    vector(job.d_log_library, job.rows)[row] = np.float32(weight * sum_of_slopes)
    stored.put(work[stored.SLOPE], nonzero, slopes)
    if job.d_log_scaling != 0:
        total = _table(job.d_log_scaling, chunk, job.log_scaling_rows, genes)
        dense.add_scaled(slopes, weight, total[chunk * job.log_scaling_rows + table_rows[2]])
    if job.d_log_background != 0:
        total = _table(job.d_log_background, chunk, job.log_background_rows, genes)
        _to_background(slopes, background, own, weight, total[chunk * job.log_background_rows + table_rows[1]])
    _through_rate(own, background, sigmoid, share)
    _to_logits(share, weight, slopes)


@part
def _row(job, row, chunk, parameters, space):
    """Log-likelihood of one row, and its gradient if asked."""
    rows, work, all_genes = space
    own, rate, sigmoid, value, _, log_rate = rows
    (logits, log_library), (log_theta, theta), backgrounds, (log_scaling, scaling), counts = parameters
    cells = job.cells
    cell = row % cells
    t = _code(job.log_theta_code, cells, cell)
    b = _code(job.log_background_code, cells, cell)
    y = _code(job.log_scaling_code, cells, cell)
    shift = np.float64(log_library[row])
    _own_rate(logits[row], own, sigmoid)
    _whole_rate(own, backgrounds[b], scaling[y], rate)
    nonzero = all_genes[: stored.gather(counts, cell, all_genes, work)]
    dense.clear_at(nonzero, rate)
    mean = (rate, np.float32(math.exp(shift)), np.float32(shift))
    with_gradient = job.d_logits != 0
    slopes = matrix(job.d_logits, job.rows, job.genes)[row] if with_gradient else log_rate
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
        job = carray(data, (1,), JOB)[0]
        parameters = _parameters(job)
        space = _work_space(job, parameters[4][2])
        out = vector(job.out, job.rows)
        while True:
            chunk = next_ticket(data)
            if chunk >= job.chunks:
                break
            _clear(job, chunk)
            for row in range(chunk * job.chunk, min((chunk + 1) * job.chunk, job.rows)):
                out[row] = np.float32(_row(job, row, chunk, parameters, space))

    return kernel(gamma_poisson)


GAMMA_POISSON = Operation(_make_kernel(digest()), JOB, INPUTS)


def gamma_poisson(
    logits: CellsGenes,
    log_library: PerCell,
    log_theta: Indexed,
    log_background: Indexed | None,
    log_scaling: Indexed | None,
    counts: CountBlock,
) -> PerCell:
    """Log-likelihood per cell."""
    tables = checked(log_theta, log_background, log_scaling, logits, counts)
    inputs = (logits, log_library, *(t.table for t in tables))
    fixed = {**exponentials([t.table.detach() for t in tables]), **codes(tables)}
    return GAMMA_POISSON(inputs, counts, fixed)


def checked(
    log_theta: Indexed, log_background: Indexed | None, log_scaling: Indexed | None, like: Tensor, counts: CountBlock
) -> tuple[Indexed, ...]:
    """Tables of theta, background and scaling, those that are absent filled in, whose codes the kernel may follow."""
    n_genes = counts.n_features
    if log_background is None:
        log_background = Indexed(like.new_full((1, n_genes), -torch.inf), None)
    if log_scaling is None:
        log_scaling = Indexed(like.new_zeros(1, n_genes), None)
    for each in (log_theta, log_background, log_scaling):
        _check(each, counts)
    return log_theta, log_background, log_scaling


def _check(indexed: Indexed, counts: CountBlock) -> None:
    """The kernel would read beyond a table, where torch raises."""
    (n_rows, n_genes), code = indexed.table.shape, indexed.code
    assert n_genes == counts.n_features, f"a table of {n_genes} genes does not fit counts of {counts.n_features}"
    if code is None:
        assert n_rows == 1, f"{n_rows} rows in a table, and no code that says which a cell takes"
        return
    assert code.shape == (counts.n_cells,), f"{code.shape[0]} codes for {counts.n_cells} cells"
    assert code.dtype == torch.int64, f"codes of {code.dtype}"
    in_range = counts.n_cells == 0 or (code.min() >= 0 and code.max() < n_rows)
    assert in_range, f"codes beyond the {n_rows} rows of a table"


def codes(tables: Sequence[Indexed]) -> Fixed:
    """Row of each table that a cell takes, as fields of the job."""
    given = [None if t.code is None else t.code.contiguous() for t in tables]
    return dict(zip(("log_theta_code", "log_background_code", "log_scaling_code"), given, strict=True))


def exponentials(tables: Sequence[Tensor]) -> Fixed:
    """Of the three tables, as fields of the job."""
    exp = (table.contiguous().exp() for table in tables)
    return dict(zip(("theta", "background", "scaling"), exp, strict=True))
