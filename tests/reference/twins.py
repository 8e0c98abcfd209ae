"""Slow twins of the likelihoods: the textbook formulas, entry by entry, in 50-digit arithmetic.

Nothing here is arranged for stability or speed; the digits are enough to do without. Derivatives are numerical, by
mpmath's central differences at the same precision.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp

DIGITS = 50


def log_nb(x: float, log_mu: float, log_theta: float) -> mp.mpf:
    """Logarithm of Gamma(x + theta) / (Gamma(theta) x!) (theta / (theta + mu))^theta (mu / (theta + mu))^x."""
    x, mu, theta = mp.mpf(x), mp.exp(log_mu), mp.exp(log_theta)
    log_total = mp.log(theta + mu)
    power = x * (mp.mpf(log_mu) - log_total) if x > 0 else mp.mpf(0)
    return (
        mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1) + theta * (mp.log(theta) - log_total) + power
    )


def log_zinb(x: float, log_mu: float, log_theta: float, pi_logit: float) -> mp.mpf:
    """Logarithm of pi [x = 0] + (1 - pi) NB(x)."""
    pi = 1 / (1 + mp.exp(-mp.mpf(pi_logit)))
    one_minus_pi = 1 / (1 + mp.exp(mp.mpf(pi_logit)))
    nb = log_nb(x, log_mu, log_theta)
    return mp.log(pi + one_minus_pi * mp.exp(nb)) if x == 0 else mp.log(one_minus_pi) + nb


def log_poisson(x: float, log_mu: float) -> mp.mpf:
    """Logarithm of mu^x exp(-mu) / x!."""
    x = mp.mpf(x)
    return (x * mp.mpf(log_mu) if x > 0 else mp.mpf(0)) - mp.exp(log_mu) - mp.loggamma(x + 1)


def log_normal(x: float, log_mean: float, log_scale: float) -> mp.mpf:
    """Logarithm of exp(-(x - mean)^2 / (2 scale^2)) / (scale sqrt(2 pi))."""
    z = (mp.mpf(x) - mp.exp(log_mean)) / mp.exp(log_scale)
    return -z * z / 2 - mp.mpf(log_scale) - mp.log(2 * mp.pi) / 2


def log_softplus(x: float) -> mp.mpf:
    """log(log(1 + exp(x)))."""
    return mp.log(mp.log1p(mp.exp(mp.mpf(x))))


def evaluate(function: Callable[..., mp.mpf], *arguments: float) -> float:
    """Return the value, rounded once."""
    with mp.workdps(DIGITS):
        return float(function(*arguments))


def slope(function: Callable[..., mp.mpf], *arguments: float, by: int) -> float:
    """Return the derivative with respect to one of the arguments, rounded once."""
    with mp.workdps(3 * DIGITS):
        point = [mp.mpf(a) for a in arguments]
        step = mp.mpf(10) ** -DIGITS
        ahead, behind = list(point), list(point)
        ahead[by] += step
        behind[by] -= step
        return float((function(*ahead) - function(*behind)) / (2 * step))
