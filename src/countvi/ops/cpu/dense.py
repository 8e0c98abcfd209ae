"""All genes of one cell as if every count were zero, in float32 and without special functions.

A row of mu is kept as ``rate * scale`` with ``rate`` in the units of rho, up to a factor. The rate of a stored entry is
set to zero for the while, so that it contributes nothing here (:mod:`countvi.ops.cpu.stored` has its terms). With
a = min(mu, theta), b = max(mu, theta), z = a / (2 b + a) and h = a / (a + b),

    log1p(a / b) = 2 atanh(z),    sigmoid(log mu - log theta) = h or 1 - h,
    log1p(a / b) - h = 2 z (h / 2 + atanh(z) / z - 1),

the last without cancellation. Only where mu > theta is the logarithm of mu needed. Loops read and write few arrays: the
compiler vectorises a loop only if it can check cheaply that they do not overlap.
"""

from __future__ import annotations

import math

import numpy as np

from countvi.ops.cpu.compiler import bits32, from_bits32, relaxed, strict
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
    total = 0.0
    for start in range(0, row.shape[0], _BLOCK):
        x, y, part = row[start : start + _BLOCK], out[start : start + _BLOCK], ZERO
        for g in range(x.shape[0]):
            y[g] = exp(x[g] - offset)
        for g in range(x.shape[0]):
            part += y[g]
        total += part
    return total


@relaxed
def softplus_row(logits, out, log_out):
    """Write the softplus and its logarithm."""
    for g in range(logits.shape[0]):
        t = exp(-abs(logits[g]))
        out[g] = max(logits[g], ZERO) + TWO * t / (TWO + t) * (ONE + atanh_excess(t / (TWO + t)))
    for g in range(logits.shape[0]):
        log_out[g] = logits[g] if logits[g] < _LINEAR else log(out[g])


@relaxed
def log_softplus_slope_row(logits, out):
    """Write sigmoid(logits) / softplus(logits), also where both underflow."""
    for g in range(logits.shape[0]):
        y = logits[g]
        t = exp(-abs(y))
        half_log1p = (ONE + atanh_excess(t / (TWO + t))) / (TWO + t)
        below = HALF / ((ONE + t) * half_log1p)
        above = ONE / ((ONE + t) * (y + TWO * t * half_log1p))
        out[g] = above if y > ZERO else below


@relaxed
def exp_into(row, out):
    """Write ``exp(row)``."""
    for g in range(row.shape[0]):
        out[g] = exp(row[g])


@relaxed
def total(row):
    """Sum of a row."""
    out = 0.0
    for start in range(0, row.shape[0], _BLOCK):
        x, part = row[start : start + _BLOCK], ZERO
        for g in range(x.shape[0]):
            part += x[g]
        out += part
    return out


@relaxed
def log_prob_nb(mean, dispersion, out):
    """Write -theta log1p(mu / theta). ``mean`` is (rate, scale, log_rate, shift), ``dispersion`` (theta, log_theta)."""
    rate, scale, log_rate, shift = mean
    theta, log_theta = dispersion
    for g in range(rate.shape[0]):
        mu = rate[g] * scale
        a, b = (mu, theta[g]) if mu < theta[g] else (theta[g], mu)
        z = a / (TWO * b + a)
        above = log_rate[g] + shift - log_theta[g]
        out[g] = -theta[g] * (TWO * z * (ONE + atanh_excess(z)) + (above if mu > theta[g] else ZERO))


@relaxed
def slope_nb(mean, theta, out):
    """Write d log p(0) / d log mu = -theta sigmoid(log mu - log theta)."""
    rate, scale, _, _ = mean
    for g in range(rate.shape[0]):
        mu = rate[g] * scale
        out[g] = -theta[g] * (mu / (mu + theta[g]))


@relaxed
def slope_theta(mean, dispersion, out):
    """Write d log p(0) / d log theta."""
    rate, scale, log_rate, shift = mean
    theta, log_theta = dispersion
    for g in range(rate.shape[0]):
        mu = rate[g] * scale
        a, b = (mu, theta[g]) if mu < theta[g] else (theta[g], mu)
        z, h = a / (TWO * b + a), a / (a + b)
        q = atanh_excess(z)
        above = log_rate[g] + shift - log_theta[g]
        above = above + TWO * z * (ONE + q) - (ONE - h)
        out[g] = -theta[g] * (above if mu > theta[g] else TWO * z * (HALF * h + q))


@relaxed
def log_prob_inflated(nb, log_odds, v):
    """Sum of log(pi + (1 - pi) exp(nb)), where ``nb`` is the log-probability without the inflation.

    ``v`` is filled with the probability; where that underflows, the entry is left out: see :func:`rescue_log_prob`.
    """
    out, lost = 0.0, 0
    for start in range(0, nb.shape[0], _BLOCK):
        stop = start + _BLOCK
        q, a, p, part, missed = nb[start:stop], log_odds[start:stop], v[start:stop], ZERO, ZERO
        for g in range(q.shape[0]):
            minus, plus = expm1_and_exp(q[g])
            t = expm1_and_exp(-abs(a[g]))[1]
            large = ONE / (ONE + t)
            small = t * large
            pi, kept = (large, small) if a[g] > ZERO else (small, large)
            p[g] = pi + kept * plus
            term = log_one_minus(-kept * minus, p[g])
            part += term if p[g] > _TINY else ZERO
            missed += ZERO if p[g] > _TINY else ONE
        out += part
        lost += int(missed)
    return out, lost


@relaxed
def rescue_log_prob(nb, log_odds, v):
    """Sum over the entries that :func:`log_prob_inflated` left out."""
    out = 0.0
    for g in range(nb.shape[0]):
        if not v[g] > _TINY:
            q, a = np.float64(nb[g]), np.float64(log_odds[g])
            out += max(a, q) + math.log1p(math.exp(-abs(a - q))) - max(a, 0.0) - math.log1p(math.exp(-abs(a)))
    return out


@relaxed
def slopes_inflated(nb, log_odds, by_nb, by_log_odds):
    """Write the slopes of log p(0) by the log-probability without the inflation, and by the log-odds.

    The first is the probability that a zero came from the negative binomial. Where p(0) underflows it is set to -1:
    see :func:`rescue_slopes`.
    """
    for g in range(nb.shape[0]):
        a = log_odds[g]
        minus, plus = expm1_and_exp(nb[g])
        t = expm1_and_exp(-abs(a))[1]
        large = ONE / (ONE + t)
        small = t * large
        pi, kept = (large, small) if a > ZERO else (small, large)
        v = pi + kept * plus
        by_nb[g] = kept * plus / v if v > _TINY else -ONE
        by_log_odds[g] = -kept * minus * (pi / v)


@relaxed
def rescue_slopes(nb, log_odds, by_nb, by_log_odds):
    """Put right the entries that :func:`slopes_inflated` marked."""
    for g in range(nb.shape[0]):
        if by_nb[g] < ZERO:
            q, a = np.float64(nb[g]), np.float64(log_odds[g])
            from_nb = 1.0 / (1.0 + math.exp(min(a - q, 700.0)))
            kept = 1.0 / (1.0 + math.exp(min(a, 700.0)))
            by_nb[g] = np.float32(from_nb)
            by_log_odds[g] = np.float32(-math.expm1(q) * kept * (1.0 / (1.0 + math.exp(min(q - a, 700.0)))))


@relaxed
def clear_at(genes, row):
    """Set the entries of some genes to zero."""
    for j in range(genes.shape[0]):
        row[genes[j]] = ZERO


@relaxed
def has_negative(row):
    """Whether a row has a negative number."""
    count = 0
    for g in range(row.shape[0]):
        count += 1 if row[g] < ZERO else 0
    return count > 0


@relaxed
def multiply(row, factor):
    """``row = row * factor``, entry by entry."""
    for g in range(row.shape[0]):
        row[g] *= factor[g]


@relaxed
def copy_scaled(row, factor, out):
    """``out = factor * row``; ``out`` may be the row."""
    for g in range(row.shape[0]):
        out[g] = factor * row[g]


@relaxed
def add_scaled(row, factor, out):
    """``out = out + factor * row``."""
    for g in range(row.shape[0]):
        out[g] += factor * row[g]


@relaxed
def through_softmax(row, rate, inner, weight):
    """``row = weight * (row - inner * rate)``."""
    for g in range(row.shape[0]):
        row[g] = weight * (row[g] - inner * rate[g])
