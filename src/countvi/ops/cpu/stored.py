"""The stored entries of one cell, in float64: log-probabilities and slopes.

In the notation of :mod:`countvi.ops.reference.negative_binomial`, with L = log1p(mu / theta),

    log p(x) = x (log mu - L) - theta L + [D(x, theta) - lgamma(x + 1)].

For counts below 8, D(x, theta) = sum_{0 < k < x} log(1 + k / theta) is the logarithm of one product. From 8 on,
lgamma(theta) is moved up by 8 and both sides are Stirling's formula, whose large terms cancel on paper. Fractions
below 8 are rare and take the general form. The work buffers are rows of float64.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import math

import numpy as np

from countvi.ops.cpu.compiler import apart, part, relaxed, strict
from countvi.ops.cpu.elementary import binet, exp64, log1p64, log64, log_factorial, stirling

# Rows of the work buffer.
X, LOG_MU, LOG_THETA, THETA, MU, RATIO, LOG1P, PRODUCT, REST, THETA_SLOPE, VALUE, SLOPE, RATE = range(13)
N_BUFFERS = 13
# What is no longer needed where it is written.
EXCESS = PRODUCT
# Where the slope by the dropout's log-odds is left.
KEEP_SLOPE = MU
# Where the slope by the log-odds of a gene is left.
P_SLOPE = MU
_LOWEST_SHAPE = -80.0


@part
def work_space(offsets, first, last):
    """Make work buffers as long as the longest of the cells ``first ... last - 1``, and a place for its genes."""
    longest = 0
    for cell in range(first, last):
        longest = max(longest, offsets[cell + 1] - offsets[cell])
    return np.empty((N_BUFFERS, longest + 40)), np.empty(longest + 40, np.int64)


@strict
def gather(counts, cell, genes, work):
    """List the entries of a cell that are not zero: columns in ``genes``, values in X; return how many they are."""
    apart()
    values, columns, offsets = counts
    x = work[X]
    n = 0
    for position in range(offsets[cell], offsets[cell + 1]):
        value = values[position]
        genes[n] = columns[position]
        x[n] = value
        # A stored zero is a zero like any other. NaN is kept, to be seen in the result.
        n += 0 if value == 0 else 1
    return n


@strict
def pick(row, genes, shift, out):
    """Write ``row[genes] + shift`` to the beginning of ``out``."""
    apart()
    for j in range(genes.shape[0]):
        out[j] = np.float64(row[genes[j]]) + shift


@strict
def pick_exp(row, genes, out):
    """Write ``exp(row[genes])`` to the beginning of ``out``."""
    apart()
    for j in range(genes.shape[0]):
        out[j] = exp64(np.float64(row[genes[j]]))


@strict
def log_softplus_in_place(logits, n, shift):
    """Replace logits by log(log(1 + exp(logits))) + shift."""
    apart()
    for j in range(n):
        y = logits[j]
        softened = log1p64(exp64(-abs(y))) + max(y, 0.0)
        logits[j] = (log64(softened) if y >= -40.0 else y) + shift  # NaN stays


@strict
def ratios(work, n):
    """From log mu and theta: mu, its ratio to theta, and the log1p of that."""
    apart()
    log_mu, theta = work[LOG_MU], work[THETA]
    mu, ratio, log1p = work[MU], work[RATIO], work[LOG1P]
    for j in range(n):
        mu[j] = exp64(log_mu[j])
    for j in range(n):
        ratio[j] = mu[j] / theta[j]
    for j in range(n):
        log1p[j] = log1p64(ratio[j])


@strict
def _small_count(x, theta):
    """For x = 1 ... 7: exp(D - lgamma(x + 1)), and theta dD/dtheta."""
    product, derivative, factorial, k = 1.0, 0.0, 1.0, 1.0
    inverse = 1.0 / theta
    while k < x:
        factor = 1.0 + k * inverse
        # By the inverse of theta. All terms are positive, and there is one division in the end.
        derivative = derivative * factor + k * product
        product *= factor
        k += 1.0
        factorial *= k
    return product / factorial, -inverse * derivative / product


@strict
def _large_count(x, theta):
    """For x >= 8: D - lgamma(x + 1), and theta dD/dtheta."""
    inverse = 1.0 / theta
    product, lifted = 1.0, 0.0
    for k in range(1, 8):
        factor = 1.0 + k * inverse
        product *= factor
        lifted += k * inverse / factor
    low, high = theta + 8.0, theta + x
    log_ratio = log1p64((x - 8.0) / low)
    s_low, slope_low = stirling(low)
    s_high, slope_high = stirling(high)
    value = (x - 8.0) * log1p64(8.0 * inverse) + log64(product)
    value += (high - 0.5) * log_ratio - (x - 8.0) + s_high - s_low
    slope = theta * (log_ratio + 0.5 * (x - 8.0) / (low * high) + slope_high - slope_low) - (x - 8.0) - lifted
    # sum 1 / (theta + k) over the eight factors adds 8 - sum k / (theta + k), and D takes the 8 off.
    return value - log_factorial(x), slope


@strict
def _any_count(x, theta):
    """For every x > 0: D - lgamma(x + 1), and theta dD/dtheta."""
    log_ratio = math.log1p(x / theta)
    high, slope_high = binet(x + theta)
    low, slope_low = binet(theta)
    value = (x + theta - 0.5) * log_ratio - x + high - low
    slope = theta * (log_ratio + slope_high - slope_low) - x + 0.5 * x / (x + theta)
    return value - log_factorial(x), slope


@strict
def _ratios_of_gammas(work, n):
    """Fill PRODUCT, REST and THETA_SLOPE, so that D - lgamma(x + 1) = log(PRODUCT) + REST."""
    apart()
    all_x, all_theta = work[X], work[THETA]
    product, rest, slope = work[PRODUCT], work[REST], work[THETA_SLOPE]
    for j in range(n):
        x = all_x[j]
        product[j], rest[j], slope[j] = 1.0, 0.0, 0.0
        if x == 1.0:
            continue
        theta = all_theta[j]
        if x < 8.0 and x == math.floor(x):
            product[j], slope[j] = _small_count(x, theta)
        elif x >= 8.0:
            rest[j], slope[j] = _large_count(x, theta)
        else:
            rest[j], slope[j] = _any_count(x, theta)


@strict
def gammas(work, n):
    """Fill REST with D - lgamma(x + 1) and THETA_SLOPE with theta dD/dtheta, from X and THETA."""
    apart()
    _ratios_of_gammas(work, n)
    product, rest = work[PRODUCT], work[REST]
    for j in range(n):
        rest[j] += log64(product[j])


@part
def negative_binomial(work, n):
    """Fill VALUE, SLOPE (by log mu) and THETA_SLOPE (by log theta) from X, LOG_MU and THETA."""
    ratios(work, n)
    gammas(work, n)
    powers(work, n)
    add(work[EXCESS], n, work[THETA_SLOPE])


@strict
def powers(work, n):
    """Fill VALUE and SLOPE, and EXCESS with what is missing in THETA_SLOPE, from the gammas and the ratios."""
    apart()
    x, mu, theta, ratio, log1p = work[X], work[MU], work[THETA], work[RATIO], work[LOG1P]
    log_mu, rest, value, slope, missing = work[LOG_MU], work[REST], work[VALUE], work[SLOPE], work[EXCESS]
    for j in range(n):
        value[j] = x[j] * (log_mu[j] - log1p[j]) - theta[j] * log1p[j] + rest[j]
    for j in range(n):
        slope[j] = (x[j] - mu[j]) / (1.0 + ratio[j])
    for j in range(n):
        missing[j] = x[j] * ratio[j] / (1.0 + ratio[j]) + theta[j] * (ratio[j] / (1.0 + ratio[j]) - log1p[j])


@strict
def add(row, n, out):
    """``out = out + row``."""
    apart()
    for j in range(n):
        out[j] += row[j]


@strict
def _small_factorial(x):
    """Return x! for x = 0 ... 7."""
    out, k = 1.0, 1.0
    while k < x:
        k += 1.0
        out *= k
    return out


@strict
def poisson(work, n):
    """Fill VALUE and SLOPE (by log mu) from X and LOG_MU."""
    apart()
    x, log_mu, mu, value, slope = work[X], work[LOG_MU], work[MU], work[VALUE], work[SLOPE]
    product, rest = work[PRODUCT], work[REST]
    for j in range(n):
        is_small = x[j] < 8.0 and x[j] == math.floor(x[j])
        product[j] = _small_factorial(x[j]) if is_small else 1.0
        rest[j] = 0.0 if is_small else log_factorial(x[j])
    for j in range(n):
        mu[j] = exp64(log_mu[j])
    for j in range(n):
        slope[j] = x[j] - mu[j]
    for j in range(n):
        value[j] = x[j] * log_mu[j] - mu[j] - (rest[j] + log64(product[j]))


@strict
def keep(work, n):
    """Multiply by the probability of being kept: VALUE from the dropout's log-odds in THETA, and MU its slope."""
    apart()
    value, log_odds, slope = work[VALUE], work[THETA], work[KEEP_SLOPE]
    for j in range(n):
        a = log_odds[j]
        t = exp64(-abs(a))
        value[j] -= log1p64(t) + max(a, 0.0)
        slope[j] = -(1.0 if a > 0 else t) / (1.0 + t)


@relaxed
def total(row, n):
    """Sum of the first ``n`` entries of a row."""
    apart()
    out = 0.0
    for j in range(n):
        out += row[j]
    return out


@strict
def put(row, genes, out):
    """Write ``out[genes] = row``, in float32."""
    apart()
    for j in range(genes.shape[0]):
        out[genes[j]] = np.float32(row[j])


@strict
def rate_shape(work, n):
    """Fill VALUE, SLOPE (by log r) and P_SLOPE from X, log r in LOG_MU and p in LOG_THETA.

    Below log r = -80, lgamma(x + r) - lgamma(r) is continued as log r + lgamma(x).
    """
    apart()
    x, log_r, p, value, slope, p_slope = work[X], work[LOG_MU], work[LOG_THETA], work[VALUE], work[SLOPE], work[P_SLOPE]
    r, theta, rest, theta_slope = work[RATIO], work[THETA], work[REST], work[THETA_SLOPE]
    for j in range(n):
        theta[j] = exp64(log_r[j] if log_r[j] > _LOWEST_SHAPE else _LOWEST_SHAPE)
    gammas(work, n)
    for j in range(n):
        r[j] = exp64(log_r[j])
    for j in range(n):
        log_theta = log_r[j] if log_r[j] > _LOWEST_SHAPE else _LOWEST_SHAPE
        softened = log1p64(exp64(-abs(p[j]))) + max(p[j], 0.0)
        value[j] = rest[j] + x[j] * log_theta + (log_r[j] - log_theta) - r[j] * softened - x[j] * (softened - p[j])
        slope[j] = theta_slope[j] + x[j] - r[j] * softened
    for j in range(n):
        t = exp64(-abs(p[j]))
        p_slope[j] = (x[j] * (t if p[j] > 0 else 1.0) - r[j] * (1.0 if p[j] > 0 else t)) / (1.0 + t)


@strict
def through_log_softplus(logits, n, weight, slopes):
    """``slopes = weight * slopes * (derivative of log(log(1 + exp(logits))))``."""
    apart()
    for j in range(n):
        y = logits[j]
        t = exp64(-abs(y))
        softened = log1p64(t) + max(y, 0.0)
        ratio = (t if y < 0.0 else 1.0) / ((1.0 + t) * softened)
        slopes[j] *= weight * (1.0 if y < -40.0 else ratio)
