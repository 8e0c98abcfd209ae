"""Expected shares of independent log-normal variables in their sum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_POINTS, _NODES = 40, 16
# Standard deviations that the integral reaches over, and what it leaves out beside them, in logarithms.
_SPREAD, _BELOW, _ABOVE = 4.5, 12.0, 3.0
# A logarithm far below any that counts, and a number whose logarithm float32 still has.
_NOTHING, _TINY = -80.0, 1e-30


def expected_shares(loc: Tensor, scale: Tensor) -> Tensor:
    r"""Return :math:`E[v_t / \sum_s v_s]` of independent :math:`\log v_t \sim \mathrm{Normal}(m_t, d_t)`.

    As :math:`1 / v = \int_0^\infty e^{-u v} du`, the expectation is one integral over u of products of expectations
    over one variable each,

    .. math::

        E\left[\frac{v_t}{\sum_s v_s}\right]
            = \int_0^\infty E[v_t e^{-u v_t}] \prod_{s \ne t} E[e^{-u v_s}]\, du,

    here by the trapezoidal rule in log u and Gauss-Hermite quadrature. The error is below 1e-5 for deviations up to 2
    and below 1e-3 up to 3, against the same rule with many more points. It takes 1,280 exponentials for each entry.

    Parameters
    ----------
    loc, scale
        m and d, shape ``(..., features)``; minus infinity for a variable that is zero.

    Returns
    -------
    Tensor
        Shares in the same shape, summing to one over the last dimension; zeros where all variables are zero.
    """
    present, loc = loc > _NOTHING, loc.clamp(min=_NOTHING)
    low = -(loc + _SPREAD * scale).amax(-1, keepdim=True) - _BELOW
    high = -(loc - _SPREAD * scale).amax(-1, keepdim=True) + _ABOVE
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    shares = torch.zeros_like(loc)
    for point in np.linspace(0.0, 1.0, _POINTS):
        centre = torch.lerp(low, high, float(point)) + loc
        laplace, slope = torch.zeros_like(loc), torch.zeros_like(loc)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            scaled = (centre + node * scale).exp()
            term = (-scaled).exp() * weight
            laplace += term
            # Where the exponential overflowed, its product with zero is zero.
            slope += scaled.clamp(max=1e30) * term
        log_laplace = laplace.clamp(min=_TINY).log()
        shares += slope * (log_laplace.sum(-1, keepdim=True) - log_laplace).exp()
    # The step of the rule is the same for all variables of a row, and the shares are one together.
    return functional.normalize(torch.where(present, shares, 0.0), p=1.0, dim=-1)
