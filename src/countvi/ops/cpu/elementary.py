"""Exponential and logarithm that the compiler can vectorise, and Stirling's remainder.

No table, no branch, no call. The polynomials interpolate at Chebyshev's nodes; next to each is the largest relative
error of the function that is built on it, rounding apart. NaN in, NaN out.
"""

from __future__ import annotations

import math

import numpy as np

from countvi.ops.cpu.compiler import bits32, bits64, from_bits32, from_bits64, strict

# numba computes in float64 as soon as one number is: every number that meets a float32 is one.
ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LN2 = np.float32(0.69314718)
# Adding and subtracting it rounds to an integer, and leaves that integer in the lowest bits.
_MAGIC = np.float32(12582912.0)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)
_SQRT_HALF_BITS, _ONE_BITS = 0x3F3504F3, 0x3F800000
# (exp(r) - 1 - r) / r^2 for |r| < log(2) / 2: 8e-9
_E0, _E1, _E2 = np.float32(0.5), np.float32(0.1666657667), np.float32(0.04166655421)
_E3, _E4 = np.float32(0.008363232884), np.float32(0.001392625083)
# (atanh(z) / z - 1) / z^2 as a function of z^2 < 1/9: 4e-10
_A0, _A1, _A2 = np.float32(0.3333333366), np.float32(0.1999985254), np.float32(0.1429621304)
_A3, _A4 = np.float32(0.1085271354), np.float32(0.116151278)

_MAGIC64 = 6755399441055744.0
_LN2_HIGH64, _LN2_LOW64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_SQRT_HALF_BITS64, _ONE_BITS64 = 0x3FE6A09E667F3BCD, 0x3FF0000000000000
_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


@strict
def expm1_and_exp(x):
    """Return exp(x) - 1 and exp(x) in float32, for x below 88; below -87, as at -87."""
    x = _LOWEST if x < _LOWEST else x
    shifted = x * _LOG2_E + _MAGIC
    n = shifted - _MAGIC
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    excess = r + r * r * (_E0 + r * (_E1 + r * (_E2 + r * (_E3 + r * _E4))))
    power = from_bits32(np.int32((bits32(shifted) + 127) << 23))
    return power * excess + (power - ONE), power * excess + power


@strict
def exp(x):
    """Return exp(x) in float32; below -87 and above 88, as there."""
    return expm1_and_exp(_HIGHEST if x > _HIGHEST else x)[1]


@strict
def atanh_excess(z):
    """Return atanh(z) / z - 1 in float32 for |z| <= 1/3."""
    u = z * z
    return u * (_A0 + u * (_A1 + u * (_A2 + u * (_A3 + u * _A4))))


@strict
def log_one_minus(m, v):
    """Return log(v) in float32 from v = 1 - m > 0, given both, each with all of its digits."""
    bits = bits32(v)
    n = np.int32((bits + (_ONE_BITS - _SQRT_HALF_BITS)) >> 23) - np.int32(127)
    f = from_bits32(np.int32(bits - (n << 23))) - ONE
    f = -m if n == 0 else f
    z = f / (TWO + f)
    return np.float32(n) * _LN2 + TWO * z * (ONE + atanh_excess(z))


@strict
def log(v):
    """Return log(v) in float32 for normal v > 0."""
    return log_one_minus(ONE - v, v)


@strict
def exp64(x):
    """Return exp(x) in float64; beyond -700 and 700, as there. Error 1e-16."""
    x = -700.0 if x < -700.0 else x
    x = 700.0 if x > 700.0 else x
    shifted = x * 1.4426950408889634 + _MAGIC64
    n = shifted - _MAGIC64
    r = (x - n * _LN2_HIGH64) - n * _LN2_LOW64
    p = 2.76202015910315488e-7 + r * 2.5100472505694996e-8
    p = 2.48015210578682052e-5 + r * (2.75572682769056962e-6 + r * p)
    p = 1.38888889173670806e-3 + r * (1.9841269863171556e-4 + r * p)
    p = 4.16666666666238205e-2 + r * (8.3333333333300382e-3 + r * p)
    p = 0.500000000000000103 + r * (0.166666666666666675 + r * p)
    power = from_bits64((bits64(shifted) + 1023) << 52)
    return power * (r + r * r * p) + power


@strict
def log64(x):
    """Return log(x) in float64 for normal x > 0. Error 1e-16."""
    bits = bits64(x)
    n = ((bits + (_ONE_BITS64 - _SQRT_HALF_BITS64)) >> 52) - 1023
    f = from_bits64(bits - (n << 52)) - 1.0
    z = f / (2.0 + f)
    u = z * z
    p = 7.66580586102750394e-2 + u * 7.30890357670866248e-2
    p = 1.11111055446897481e-1 + u * (9.0914462162684356e-2 + u * p)
    p = 1.99999999999494453e-1 + u * (1.42857143131269188e-1 + u * p)
    p = u * (0.333333333333333485 + u * p)
    return n * _LN2_HIGH64 + (2.0 * z * (1.0 + p) + n * _LN2_LOW64)


@strict
def log1p64(x):
    """Return log(1 + x) in float64 for x > -1. Error 2e-16 of the value, however small x is."""
    total = 1.0 + x
    return log64(total) + (x - (total - 1.0)) / total


@strict
def stirling(a):
    """Return lgamma(a) - (a - 1/2) log(a) + a - log(2 pi) / 2 and its derivative, for a >= 8, to 3e-13."""
    r = 1.0 / a
    r2 = r * r
    value = r * (1 / 12 - r2 * (1 / 360 - r2 * (1 / 1260 - r2 * (1 / 1680 - r2 / 1188))))
    slope = -r2 * (1 / 12 - r2 * (1 / 120 - r2 * (1 / 252 - r2 * (1 / 240 - r2 / 132))))
    return value, slope


@strict
def binet(a):
    """Return what :func:`stirling` does, for every a > 0."""
    if a >= 8.0:
        return stirling(a)
    value = math.lgamma(a) - (a - 0.5) * math.log(a) + a - _LOG_ROOT_2PI
    shifted = a + 8.0
    digamma = math.log(shifted) - 0.5 / shifted + stirling(shifted)[1]
    for k in range(8):
        digamma -= 1.0 / (a + k)
    return value, digamma - math.log(a) + 0.5 / a


@strict
def log_factorial(x):
    """Return lgamma(x + 1) for x >= 0."""
    if x < 8.0:
        return math.lgamma(x + 1.0)
    a = x + 1.0
    return (a - 0.5) * log64(a) - a + _LOG_ROOT_2PI + stirling(a)[0]
