"""The ratio of gamma functions in the negative binomial, without the cancellation of two large logarithms.

Binet's remainder s(a) is what Stirling's formula leaves: ``lgamma(a) = (a - 1/2) log(a) - a + log(2 pi) / 2 + s(a)``.
It decays like 1 / (12 a). In its terms

    lgamma(x + theta) - lgamma(theta) - x log(theta)
        = (x + theta - 1/2) log1p(x / theta) - x + s(x + theta) - s(theta),

in which nothing is larger than x log(x / theta), whatever theta is; for theta to infinity it goes to zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CUT = 16.0
"""From here on the five terms of the asymptotic series leave less than 2e-16."""


def binet(a: Tensor) -> Tensor:
    """Return the remainder s(a) of Stirling's formula for a > 0, in float64."""
    r = 1.0 / a.clamp(min=_CUT)
    r2 = r * r
    series = r * (1 / 12 - r2 * (1 / 360 - r2 * (1 / 1260 - r2 * (1 / 1680 - r2 / 1188))))
    a = a.clamp(max=_CUT)
    return torch.where(a < _CUT, a.lgamma() - (a - 0.5) * a.log() + a - 0.5 * math.log(2 * math.pi), series)


def binet_slope(a: Tensor) -> Tensor:
    """Return s'(a) = digamma(a) - log(a) + 1 / (2 a) for a > 0, in float64."""
    r = 1.0 / a.clamp(min=_CUT)
    r2 = r * r
    series = -r2 * (1 / 12 - r2 * (1 / 120 - r2 * (1 / 252 - r2 * (1 / 240 - r2 / 132))))
    a = a.clamp(max=_CUT)
    return torch.where(a < _CUT, a.digamma() - a.log() + 0.5 / a, series)


def log_ratio(x: Tensor, theta: Tensor, binet_theta: Tensor) -> Tensor:
    """Return lgamma(x + theta) - lgamma(theta) - x log(theta), in float64; ``binet_theta`` is ``binet(theta)``."""
    return (x + theta - 0.5) * torch.log1p(x / theta) - x + binet(x + theta) - binet_theta


def log_ratio_slope(x: Tensor, theta: Tensor, slope_theta: Tensor) -> Tensor:
    """Return the derivative of :func:`log_ratio` by log(theta); ``slope_theta`` is ``binet_slope(theta)``."""
    inner = torch.log1p(x / theta) + binet_slope(x + theta) - slope_theta
    return theta * inner - x + 0.5 * x / (x + theta)
