"""All genes of one cell as if every count were zero, in float32 and without special functions.

A row of mu is kept as ``rate * scale`` with ``rate`` in the units of rho, up to a factor. The rate of a stored entry is
set to zero for the while, so that it contributes nothing here (:mod:`countvi.ops.cpu.stored` has its terms). With
r = mu / theta, z = r / (2 + r) and h = r / (1 + r),

    log1p(r) = 2 atanh(z),    sigmoid(log mu - log theta) = h,    log1p(r) - h = 2 z (h / 2 + atanh(z) / z - 1),

the last without cancellation, used for r < 1. Loops read and write few arrays: the compiler vectorises a loop only if
it can check cheaply that they do not overlap.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import math

import numpy as np

from countvi.ops.cpu.compiler import apart, bits32, from_bits32, part, relaxed, strict
from countvi.ops.cpu.elementary import (
    HALF,
    ONE,
    TWO,
    ZERO,
    atanh_excess,
    exp,
    expm1_and_exp,
    log,
    log_one_minus,
)

# Sums in float32 run over so many genes at most, and then go on in float64.
_BLOCK = 256
# Below it, a probability in float32 is about to lose its digits.
_TINY = np.float32(1e-30)
_LINEAR = np.float32(-16.0)
# Beyond it, a ratio in float32 is about to overflow.
_HUGE = np.float32(1e30)


@strict
def row_max(row):
    """Largest number of a row; NaN if there is one."""
    largest = np.int32(-(1 << 31))
    for g in range(row.shape[0]):
        bits = bits32(row[g])
        # In this order of integers floats are ordered too, and NaN is the largest.
        bits = (bits & np.int32(0x7FFFFFFF)) if row[g] != row[g] else bits
        ordered = np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF))
        largest = ordered if ordered > largest else largest
    return from_bits32(np.int32(largest ^ ((largest >> 31) & 0x7FFFFFFF)))


@relaxed
def exp_row(row, offset, out):
    """Write ``exp(row - offset)`` to ``out`` and return its sum."""
    apart()
    total = 0.0
    for start in range(0, row.shape[0], _BLOCK):
        x, y, part = row[start : start + _BLOCK], out[start : start + _BLOCK], ZERO
        for g in range(x.shape[0]):
            y[g] = exp(x[g] - offset)
        for g in range(x.shape[0]):
            part += y[g]
        total += part
    return total


@strict
def softplus_row(logits, out, log_out):
    """Write the softplus and its logarithm."""
    apart()
    for g in range(logits.shape[0]):
        t = exp(-abs(logits[g]))
        positive = ZERO if logits[g] < ZERO else logits[g]  # unlike max, keeps NaN
        out[g] = positive + TWO * t / (TWO + t) * (ONE + atanh_excess(t / (TWO + t)))
    for g in range(logits.shape[0]):
        log_out[g] = log(out[g]) if logits[g] >= _LINEAR else logits[g]  # NaN stays


@strict
def soften(row, out):
    """Write the softplus of a row to ``out``, and replace the row by the slope, the sigmoid."""
    apart()
    for g in range(row.shape[0]):
        y = row[g]
        t = exp(-abs(y))
        positive = ZERO if y < ZERO else y  # unlike max, keeps NaN
        out[g] = positive + TWO * t / (TWO + t) * (ONE + atanh_excess(t / (TWO + t)))
        row[g] = (t if y < ZERO else ONE) / (ONE + t)


@strict
def log_softplus_slope_row(logits, out):
    """Write sigmoid(logits) / softplus(logits), also where both underflow."""
    apart()
    for g in range(logits.shape[0]):
        y = logits[g]
        t = exp(-abs(y))
        half_log1p = (ONE + atanh_excess(t / (TWO + t))) / (TWO + t)
        below = HALF / ((ONE + t) * half_log1p)
        above = ONE / ((ONE + t) * (y + TWO * t * half_log1p))
        out[g] = above if y > ZERO else below


@strict
def exp_into(row, out):
    """Write ``exp(row)``."""
    apart()
    for g in range(row.shape[0]):
        out[g] = exp(row[g])


@relaxed
def total(row):
    """Sum of a row."""
    apart()
    out = 0.0
    for start in range(0, row.shape[0], _BLOCK):
        x, part = row[start : start + _BLOCK], ZERO
        for g in range(x.shape[0]):
            part += x[g]
        out += part
    return out


@relaxed
def dot(row, other):
    """Sum of the products of two rows."""
    apart()
    out = 0.0
    for start in range(0, row.shape[0], _BLOCK):
        x, y, part = row[start : start + _BLOCK], other[start : start + _BLOCK], ZERO
        for g in range(x.shape[0]):
            part += x[g] * y[g]
        out += part
    return out


@strict
def log_prob_nb(mean, dispersion, out):
    """Write -theta log1p(mu / theta). ``mean`` is (rate, scale, log_rate, shift), ``dispersion`` (theta, log_theta)."""
    apart()
    rate, scale, log_rate, shift = mean
    theta, log_theta = dispersion
    for g in range(rate.shape[0]):
        ratio = rate[g] * scale / theta[g]
        z = ratio / (TWO + ratio)
        high = log_one_minus(-ratio, ONE + ratio)
        near = TWO * z * (ONE + atanh_excess(z)) if ratio < ONE else high
        far = log_rate[g] + shift - log_theta[g]  # NaN comes here too
        out[g] = -theta[g] * (near if ratio < _HUGE else far)


@strict
def _ratio_row(mean, theta, out):
    """Write mu / theta; return how many are too large for float32 to go on with, or NaN."""
    apart()
    rate, scale = mean[0], mean[1]
    count = 0
    for g in range(rate.shape[0]):
        ratio = rate[g] * scale / theta[g]
        out[g] = ratio
        count += 0 if ratio < _HUGE else 1
    return count


@strict
def _from_ratio(theta, value, slope, theta_slope):
    """From ratios in ``value``: log p(0) in their place, and its slopes by log mu and log theta."""
    apart()
    for g in range(theta.shape[0]):
        ratio = value[g]
        z, h = ratio / (TWO + ratio), ratio / (ONE + ratio)
        excess = atanh_excess(z)
        high = log_one_minus(-ratio, ONE + ratio)
        value[g] = -theta[g] * (TWO * z * (ONE + excess) if ratio < ONE else high)
        slope[g] = -theta[g] * h
        theta_slope[g] = -theta[g] * (TWO * z * (HALF * h + excess) if ratio < ONE else high - h)


@strict
def nb_from_logs(mean, dispersion, value, slope, theta_slope):
    """Put right the entries that :func:`nb_with_slopes` counted."""
    apart()
    rate, scale, log_rate, shift = mean
    theta, log_theta = dispersion
    for g in range(rate.shape[0]):
        if not rate[g] * scale / theta[g] < _HUGE:  # NaN comes here too, and stays
            log_ratio = log_rate[g] + shift - log_theta[g]
            value[g] = -theta[g] * log_ratio
            slope[g] = -theta[g] + ZERO * log_ratio
            theta_slope[g] = -theta[g] * (log_ratio - ONE)


@part
def nb_with_slopes(mean, theta, value, slope, theta_slope):
    """Write log p(0) as :func:`log_prob_nb` does, and its slopes by log mu and log theta.

    Returns how many entries :func:`nb_from_logs` has to put right.
    """
    count = _ratio_row(mean, theta, value)
    _from_ratio(theta, value, slope, theta_slope)
    return count


@strict
def inflate(nb, log_odds, by_nb, by_log_odds):
    """Replace log-probabilities of zero by those with inflation, log(pi + (1 - pi) exp(nb)), and write their slopes.

    The slope by ``nb`` is the probability that a zero came from the negative binomial. Where p(0) underflows, ``nb`` is
    left as it is and that slope is set to -1: see :func:`rescue`.
    """
    apart()
    for g in range(nb.shape[0]):
        minus, plus = expm1_and_exp(nb[g])
        t = expm1_and_exp(-abs(log_odds[g]))[1]
        large = ONE / (ONE + t)
        small = t * large
        pi = large if log_odds[g] > ZERO else small
        kept = small if log_odds[g] > ZERO else large
        v = pi + kept * plus
        by_nb[g] = kept * plus / v if v > _TINY else -ONE
        by_log_odds[g] = -kept * minus * (pi / v)
        nb[g] = log_one_minus(-kept * minus, v) if v > _TINY else nb[g]


@strict
def rescue(nb, log_odds, by_nb, by_log_odds):
    """Put right the entries that :func:`inflate` marked."""
    apart()
    for g in range(nb.shape[0]):
        if by_nb[g] < ZERO:
            q, a = np.float64(nb[g]), np.float64(log_odds[g])
            from_nb = 1.0 / (1.0 + math.exp(min(a - q, 700.0)))
            kept = 1.0 / (1.0 + math.exp(min(a, 700.0)))
            by_nb[g] = np.float32(from_nb)
            by_log_odds[g] = np.float32(-math.expm1(q) * kept * (1.0 / (1.0 + math.exp(min(q - a, 700.0)))))
            either = max(a, q) + math.log1p(math.exp(-abs(a - q)))
            nb[g] = np.float32(either - max(a, 0.0) - math.log1p(math.exp(-abs(a))))


@strict
def clear_at(genes, row):
    """Set the entries of some genes to zero."""
    apart()
    for j in range(genes.shape[0]):
        row[genes[j]] = ZERO


@relaxed
def has_negative(row):
    """Whether a row has a negative number."""
    apart()
    count = 0
    for g in range(row.shape[0]):
        count += 1 if row[g] < ZERO else 0
    return count > 0


@strict
def multiply(row, factor):
    """``row = row * factor``, entry by entry."""
    apart()
    for g in range(row.shape[0]):
        row[g] *= factor[g]


@strict
def multiply_scaled(row, factor, other):
    """``row = row * factor * other``, entry by entry in ``other``."""
    apart()
    for g in range(row.shape[0]):
        row[g] *= factor * other[g]


@strict
def product_into(row, factor, other, out):
    """``out = factor * row * other``, entry by entry."""
    apart()
    for g in range(row.shape[0]):
        out[g] = factor * row[g] * other[g]


@strict
def copy_scaled(row, factor, out):
    """``out = factor * row``; ``out`` may be the row."""
    apart()
    for g in range(row.shape[0]):
        out[g] = factor * row[g]


@strict
def add_scaled(row, factor, out):
    """``out = out + factor * row``."""
    apart()
    for g in range(row.shape[0]):
        out[g] += factor * row[g]


@strict
def through_softmax(row, rate, inner, weight):
    """``row = weight * (row - inner * rate)``."""
    apart()
    for g in range(row.shape[0]):
        row[g] = weight * (row[g] - inner * rate[g])
