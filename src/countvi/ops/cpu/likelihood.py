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
from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops.cpu import dense, stored
from countvi.ops.cpu.compiler import digest, kernel, next_ticket, part
from countvi.ops.cpu.differentiable import Input, Operation, Per, job_of_rows
from countvi.ops.cpu.elementary import ZERO
from countvi.ops.cpu.pointers import counts_of, matrix, vector
from countvi.ops.link import Link
from countvi.typing import CellsGenes, PerCell

INPUTS = (
    Input("logits", Per.ENTRY),
    Input("log_library", Per.CELL),
    Input("log_theta", Per.GENE),
    Input("pi_logits", Per.ENTRY),
)
JOB = job_of_rows(INPUTS, "family softmax")
"""The dispersion of row ``r`` is the row ``r % log_theta_rows``. There is no gradient without ``d_logits``."""

_POISSON, _NEGATIVE_BINOMIAL, _ZERO_INFLATED = range(3)
# Rows of the work space in float32.
_RATE, _LOG_RATE, _THETA, _FIRST, _SECOND, _THIRD, _THETA_SLOPE = range(7)
_N_ROWS = 7


@part
def _parameters(job):
    rows, genes = job.rows, job.genes
    return (
        matrix(job.logits, rows, genes),
        vector(job.log_library, rows),
        matrix(job.log_theta, job.log_theta_rows, genes),
        matrix(job.pi_logits, rows, genes),
    )


@part
def _work_space(job, counts, parameters):
    """Rows in float32, rows in float64 as long as the longest cell, and its genes."""
    genes = job.genes
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
    if job.log_theta_rows == 1:
        dense.exp_into(parameters[2][0], rows[_THETA])
    work, nonzero = stored.work_space(counts[2], 0, job.cells)
    return rows, work, nonzero


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
    log_theta = parameters[2][row % job.log_theta_rows]
    if job.log_theta_rows > 1:
        dense.exp_into(log_theta, rows[_THETA])
    return rows[_THETA], log_theta


@part
def _stored_terms(job, row, parameters, shift, rows, genes, work):
    """Fill VALUE and the slopes of the entries that are not zero."""
    n = genes.shape[0]
    stored.pick(parameters[0][row], genes, shift if job.softmax else 0.0, work[stored.LOG_MU])
    if not job.softmax:
        stored.log_softplus_in_place(work[stored.LOG_MU], n, shift)
    if job.family == _POISSON:
        stored.poisson(work, n)
    else:
        stored.pick(rows[_THETA], genes, 0.0, work[stored.THETA])
        stored.negative_binomial(work, n)
    if job.family == _ZERO_INFLATED:
        stored.pick(parameters[3][row], genes, 0.0, work[stored.THETA])
        stored.keep(work, n)
    return stored.total(work[stored.VALUE], n)


@part
def _terms_at_zero(job, row, parameters, mean, rows):
    """Sum of the terms as if all counts were zero; with a gradient, their slopes are left in its row and THETA_SLOPE.

    With inflation, SECOND and THIRD are its slopes.
    """
    if job.family == _POISSON:
        return -dense.total(mean[0]) * mean[1]
    dispersion = _theta(row, job, parameters, rows)
    if job.d_logits != 0:
        slopes = matrix(job.d_logits, job.rows, job.genes)[row]
        if dense.nb_with_slopes(mean, dispersion[0], rows[_FIRST], slopes, rows[_THETA_SLOPE]) > 0:
            dense.nb_from_logs(mean, dispersion, rows[_FIRST], slopes, rows[_THETA_SLOPE])
    else:
        dense.log_prob_nb(mean, dispersion, rows[_FIRST])
    if job.family == _ZERO_INFLATED:
        log_odds = parameters[3][row]
        dense.inflate(rows[_FIRST], log_odds, rows[_SECOND], rows[_THIRD])
        if dense.has_negative(rows[_SECOND]):
            dense.rescue(rows[_FIRST], log_odds, rows[_SECOND], rows[_THIRD])
    return dense.total(rows[_FIRST])


@part
def _theta_slopes(job, row, rows, genes, weight, work):
    """Write or add up the slopes by log theta."""
    slopes, n_genes = rows[_THETA_SLOPE], job.genes
    if job.family == _ZERO_INFLATED:
        dense.multiply(slopes, rows[_SECOND])
    stored.put(work[stored.THETA_SLOPE], genes, slopes)
    if job.log_theta_rows > 1:
        dense.copy_scaled(slopes, weight, matrix(job.d_log_theta, job.rows, n_genes)[row])
    else:
        dense.add_scaled(slopes, weight, matrix(job.d_log_theta, job.chunks, n_genes)[row // job.chunk])


@part
def _gradient(job, row, parameters, mean, inverse, rows, genes, work):
    """Write the gradient of a row, times its weight."""
    n_rows, n_genes, n = job.rows, job.genes, genes.shape[0]
    weight = vector(job.weight, n_rows)[row]
    slopes = matrix(job.d_logits, n_rows, n_genes)[row]
    if job.family == _POISSON:
        dense.copy_scaled(mean[0], -mean[1], slopes)
    if job.family == _ZERO_INFLATED:
        dense.multiply(slopes, rows[_SECOND])
    if job.d_pi_logits != 0:
        stored.put(work[stored.KEEP_SLOPE], genes, rows[_THIRD])
        dense.copy_scaled(rows[_THIRD], weight, matrix(job.d_pi_logits, n_rows, n_genes)[row])
    if job.d_log_theta != 0:
        _theta_slopes(job, row, rows, genes, weight, work)
    total = dense.total(slopes) + stored.total(work[stored.SLOPE], n)
    stored.put(work[stored.SLOPE], genes, slopes)
    if job.softmax:
        stored.put(work[stored.RATE], genes, mean[0])
        dense.through_softmax(slopes, mean[0], np.float32(total * inverse), weight)
    else:
        dense.log_softplus_slope_row(parameters[0][row], rows[_FIRST])
        dense.multiply(slopes, rows[_FIRST])
        dense.copy_scaled(slopes, weight, slopes)
    vector(job.d_log_library, n_rows)[row] = np.float32(total * weight)


@part
def _row(job, row, parameters, counts, space):
    """Log-likelihood of one row, and its gradient if asked."""
    rows, work, all_genes = space
    log_rate, scale, shift, inverse = _rate(row, parameters, job.softmax, rows)
    genes = all_genes[: stored.gather(counts, row % job.cells, all_genes, work)]
    rate = rows[_RATE]
    stored.pick(rate, genes, 0.0, work[stored.RATE])
    dense.clear_at(genes, rate)
    mean = (rate, np.float32(scale), log_rate, np.float32(shift))
    out = _terms_at_zero(job, row, parameters, mean, rows)
    out += _stored_terms(job, row, parameters, shift, rows, genes, work)
    if job.d_logits != 0:
        _gradient(job, row, parameters, mean, inverse, rows, genes, work)
    return out


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def log_likelihood(data):
        _ = sources
        job = carray(data, (1,), JOB)[0]
        parameters, counts = _parameters(job), counts_of(job)
        space = _work_space(job, counts, parameters)
        out = vector(job.out, job.rows)
        while True:
            chunk = next_ticket(data)
            if chunk >= job.chunks:
                break
            if job.d_log_theta != 0 and job.log_theta_rows == 1:
                matrix(job.d_log_theta, job.chunks, job.genes)[chunk, :] = ZERO
            for row in range(chunk * job.chunk, min((chunk + 1) * job.chunk, job.rows)):
                out[row] = np.float32(_row(job, row, parameters, counts, space))

    return kernel(log_likelihood)


_LOG_LIKELIHOOD = Operation(_make_kernel(digest()), JOB, INPUTS)


def negative_binomial(
    logits: CellsGenes, log_library: PerCell, log_theta: Tensor, counts: CountBlock, link: Link
) -> PerCell:
    """Log-likelihood per cell."""
    inputs = (logits, log_library, log_theta)
    return _LOG_LIKELIHOOD(inputs, counts, family=_NEGATIVE_BINOMIAL, softmax=link is Link.SOFTMAX)


def zero_inflated_negative_binomial(
    logits: CellsGenes, log_library: PerCell, log_theta: Tensor, pi_logits: CellsGenes, counts: CountBlock, link: Link
) -> PerCell:
    """Log-likelihood per cell."""
    inputs = (logits, log_library, log_theta, pi_logits)
    return _LOG_LIKELIHOOD(inputs, counts, family=_ZERO_INFLATED, softmax=link is Link.SOFTMAX)


def poisson(logits: CellsGenes, log_library: PerCell, counts: CountBlock, link: Link) -> PerCell:
    """Log-likelihood per cell."""
    return _LOG_LIKELIHOOD((logits, log_library), counts, family=_POISSON, softmax=link is Link.SOFTMAX)
