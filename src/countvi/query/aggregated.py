"""Aggregated posteriors: the posteriors of many cells as one density over cell states."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

# Pairs of a point and a component held at once: 32 MiB in float64.
_BLOCK = 2**22


def aggregated_posterior(loc: np.ndarray, scale: np.ndarray, dof: float | None) -> MixtureSameFamily:
    """Mixture of the posteriors of cells, each with the same weight.

    Parameters
    ----------
    loc, scale
        Mean and standard deviation of each posterior, shape ``(components, latent)``.
    dof
        Degrees of freedom of Student's t in place of the normal, for heavier tails; ``None`` for the normal.
    """
    means, scales = torch.from_numpy(loc).double(), torch.from_numpy(scale).double()
    parts = Normal(means, scales) if dof is None else StudentT(dof, means, scales)
    return MixtureSameFamily(Categorical(logits=means.new_zeros(len(means))), Independent(parts, 1))


def aggregated_log_density(
    points: np.ndarray, loc: np.ndarray, scale: np.ndarray, dof: float | None = None
) -> np.ndarray:
    """Log-density of points under the mixture of :func:`aggregated_posterior`.

    For normals the exponent is a product of matrices, so that tens of thousands of points and components take seconds.

    Parameters
    ----------
    points
        Shape ``(points, latent)``.
    loc, scale, dof
        As there.

    Returns
    -------
    ndarray
        Nats, shape ``(points,)``.
    """
    x, means, scales = (torch.from_numpy(a).double() for a in (points, loc, scale))
    out = x.new_empty(len(x))
    step = max(1, _BLOCK // (len(means) * (1 if dof is None else x.shape[1])))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        terms = _normal(part, means, scales) if dof is None else _student(part, means, scales, dof)
        out[start : start + step] = terms.logsumexp(1) - math.log(len(means))
    return out.numpy()


def _normal(x: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    # About the centre, or the difference of squares would lose the digits of a small distance far from zero.
    centre = means.mean(0)
    x, means = x - centre, means - centre
    precision = scales.square().reciprocal()
    constant = -0.5 * (means.square() * precision).sum(1) - scales.log().sum(1)
    constant = constant - 0.5 * means.shape[1] * math.log(2.0 * math.pi)
    return constant - 0.5 * x.square() @ precision.T + x @ (means * precision).T


def _student(x: Tensor, means: Tensor, scales: Tensor, dof: float) -> Tensor:
    return StudentT(dof, means, scales).log_prob(x.unsqueeze(1)).sum(-1)
