"""The kernel of spots that mix cell types: from the logits of a few spots, types x genes each, to value and slopes.

A spot has as many rows of logits as types that it holds. They are read once and overwritten by the gradient. Softplus
and sigmoid of the types of one spot stay in the second level of cache between the sum over types, which the likelihood
needs, and what the likelihood's slope is multiplied by. Slopes are of the log-likelihood of a spot itself: what
multiplies them is known later, and each spot's own number. The sums over spots are left to the caller.

With s = alpha sum_c v_c softplus(l_c) + v_noise noise, r = library s, and e = d log p / d s (library included),

    d / d l_cg = e_g alpha_g v_c sigmoid(l_cg),    d / d v_c = sum_g e_g alpha_g softplus(l_cg),
    d / d noise_g = e_g v_noise,    d / d v_noise = sum_g e_g noise_g,
    d / d log alpha_g = e_g (s_g - v_noise noise_g).
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import numpy as np
from numba import carray

from countvi.ops.cpu import dense, stored
from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, part, strict
from countvi.ops.cpu.elementary import ZERO, log64
from countvi.ops.cpu.views import integers, matrix, vector

SLOTS = (
    "ticket",
    "first",
    "here",
    "spots",
    "types",
    "pairs",
    "genes",
    "nonzeros",
    "logits",
    "starts",
    "kinds",
    "abundance",
    "alpha",
    "noise",
    "library",
    "p_logits",
    "p_softplus",
    "p_sigmoid",
    "values",
    "columns",
    "offsets",
    "out",
    "d_shape",
    "d_log_alpha",
    "d_abundance",
    "d_log_library",
    "d_p_logits",
)
"""What the numbers of a job are: sizes, then addresses, zero for an array that is absent.

``kinds`` are the types of the pairs of spot and type, spot by spot from ``starts`` on. ``logits`` are of the pairs of
the ``here`` spots from ``first`` on; all else is of all spots. ``d_abundance`` is zero at the start. ``d_shape`` is e;
without it there is no gradient. ``d_log_alpha`` and ``d_p_logits`` have a row per spot.
"""

(_TICKET, _FIRST, _HERE, _SPOTS, _TYPES, _PAIRS, _GENES, _NONZEROS) = range(8)
(_LOGITS, _STARTS, _KINDS, _ABUNDANCE, _ALPHA, _NOISE, _LIBRARY, _P_LOGITS) = range(8, 16)
(_P_SOFTPLUS, _P_SIGMOID, _VALUES, _COLUMNS, _OFFSETS, _OUT) = range(16, 22)
(_D_SHAPE, _D_LOG_ALPHA, _D_ABUNDANCE, _D_LOG_LIBRARY, _D_P_LOGITS) = range(22, 27)
_N_SLOTS = len(SLOTS)
# By a shape that is smaller, the derivative is as there, so that it stays finite.
_SMALLEST = 1e-30
# Rows of the work space in float32 besides one for each type.
_N_ROWS = 3


@part
def _counts(job):
    return (
        vector(job[_VALUES], job[_NONZEROS]),
        integers(job[_COLUMNS], job[_NONZEROS]),
        integers(job[_OFFSETS], job[_SPOTS] + 1),
    )


@part
def _work_space(job, offsets):
    """Rows in float32, rows in float64 as long as the longest of the spots, and its genes."""
    longest = 0
    for spot in range(job[_FIRST], job[_FIRST] + job[_HERE]):
        longest = max(longest, offsets[spot + 1] - offsets[spot])
    space = np.empty((_N_ROWS + job[_TYPES], job[_GENES] + 80), np.float32)
    return space, np.empty((stored.N_BUFFERS, longest + 40)), np.empty(longest + 40, np.int64)


@strict
def _mix(mixed, factor, alpha, noise, out):
    """``out = alpha * mixed + factor * noise``; ``mixed`` becomes its first term."""
    apart()
    for g in range(out.shape[0]):
        mixed[g] *= alpha[g]
    for g in range(out.shape[0]):
        out[g] = mixed[g] + factor * noise[g]


@strict
def _take(shapes, genes, library, r, log_r):
    """Write r and its logarithm at some genes, in float64, and set the shapes there to zero."""
    apart()
    for j in range(genes.shape[0]):
        r[j] = np.float64(shapes[genes[j]]) * library
        log_r[j] = log64(r[j]) if r[j] > 0.0 else (-np.inf if r[j] == 0.0 else np.nan)
        shapes[genes[j]] = ZERO


@strict
def _put_slopes(slopes, genes, library, r, out):
    """Write the slopes by s, from those by log r, in their place."""
    apart()
    for j in range(genes.shape[0]):
        out[genes[j]] = np.float32(library * slopes[j] / (r[j] if r[j] > _SMALLEST else _SMALLEST))


@part
def _types_of(job, spot):
    """The types that a spot holds, and their logits."""
    starts, kinds = integers(job[_STARTS], job[_SPOTS] + 1), integers(job[_KINDS], job[_PAIRS])
    before, last = starts[job[_FIRST]], starts[job[_FIRST] + job[_HERE]]
    logits = matrix(job[_LOGITS], last - before, job[_GENES])
    return kinds[starts[spot] : starts[spot + 1]], logits[starts[spot] - before : starts[spot + 1] - before]


@part
def _gradient(job, spot, nonzero, space):
    """Write the slopes of a spot; rows of the space are softplus, the shapes of what is zero, and the types' part."""
    rows, work, _ = space
    genes, types, n_spots = job[_GENES], job[_TYPES], job[_SPOTS]
    own, shapes, by_type = rows[types][:genes], rows[types + 1][:genes], rows[types + 2][:genes]
    library = np.float64(vector(job[_LIBRARY], n_spots)[spot])
    abundance = matrix(job[_ABUNDANCE], n_spots, types + 1)[spot]
    slopes = matrix(job[_D_SHAPE], n_spots, genes)[spot]
    dense.copy_scaled(vector(job[_P_SOFTPLUS], genes), np.float32(-library), slopes)
    _put_slopes(work[stored.SLOPE], nonzero, library, work[stored.RATE], slopes)
    if job[_D_LOG_ALPHA] != 0:
        dense.product_into(slopes, np.float32(1), own, matrix(job[_D_LOG_ALPHA], n_spots, genes)[spot])
    if job[_D_P_LOGITS] != 0:
        by_p = matrix(job[_D_P_LOGITS], n_spots, genes)[spot]
        dense.product_into(shapes, np.float32(-library), vector(job[_P_SIGMOID], genes), by_p)
        stored.put(work[stored.P_SLOPE], nonzero, by_p)
    by_abundance = matrix(job[_D_ABUNDANCE], n_spots, types + 1)[spot]
    by_abundance[types] = np.float32(dense.dot(slopes, vector(job[_NOISE], genes)))
    dense.product_into(slopes, np.float32(1), vector(job[_ALPHA], genes), by_type)
    kinds, logits = _types_of(job, spot)
    for i in range(kinds.shape[0]):
        by_abundance[kinds[i]] = np.float32(dense.dot(by_type, rows[i][:genes]))
        dense.multiply_scaled(logits[i], abundance[kinds[i]], by_type)


@part
def _spot(job, spot, counts, space):
    """Log-likelihood of one spot, and its slopes if asked."""
    rows, work, all_genes = space
    genes, types, n_spots = job[_GENES], job[_TYPES], job[_SPOTS]
    own, shapes = rows[types][:genes], rows[types + 1][:genes]
    library = np.float64(vector(job[_LIBRARY], n_spots)[spot])
    abundance = matrix(job[_ABUNDANCE], n_spots, types + 1)[spot]
    kinds, logits = _types_of(job, spot)
    own[:] = ZERO
    for i in range(kinds.shape[0]):
        dense.soften(logits[i], rows[i][:genes])
        dense.add_scaled(rows[i][:genes], abundance[kinds[i]], own)
    _mix(own, abundance[types], vector(job[_ALPHA], genes), vector(job[_NOISE], genes), shapes)
    nonzero = all_genes[: stored.gather(counts, spot, all_genes, work)]
    n = nonzero.shape[0]
    _take(shapes, nonzero, library, work[stored.RATE], work[stored.LOG_MU])
    stored.pick(vector(job[_P_LOGITS], genes), nonzero, 0.0, work[stored.LOG_THETA])
    stored.rate_shape(work, n)
    at_zero = -library * dense.dot(shapes, vector(job[_P_SOFTPLUS], genes))
    if job[_D_SHAPE] != 0:
        vector(job[_D_LOG_LIBRARY], n_spots)[spot] = np.float32(at_zero + stored.total(work[stored.SLOPE], n))
        _gradient(job, spot, nonzero, space)
    return at_zero + stored.total(work[stored.VALUE], n)


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def mixed_types(data):
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        counts = _counts(job)
        space = _work_space(job, counts[2])
        out = vector(job[_OUT], job[_SPOTS])
        while True:
            ticket = next_ticket(data)
            if ticket >= job[_HERE]:
                break
            spot = job[_FIRST] + ticket
            out[spot] = np.float32(_spot(job, spot, counts, space))

    return kernel(mixed_types)


MIXED_TYPES = _make_kernel(digest())
