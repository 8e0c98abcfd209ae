"""Prior of the background of proteins, efficiency of a batch, and mixtures of two normals to start them from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from countvi.batch import Design, Factor
from countvi.nn.latent import Gaussian
from countvi.nn.levels import ByLevel

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
# Least variance of one of two components, so that none shrinks to a point.
_MIN_VARIANCE = 1e-6
_STEPS = 50
WITHOUT_DATA = (3.0, 1.0)
"""Prior of the log background to start from where the data are not looked at."""


class BackgroundPrior(ByLevel):
    r"""Learned prior of the log background, :math:`\log\beta_{nt} \sim \mathrm{Normal}(c_{t, p_n}, d_{t, p_n})`.

    Parameters
    ----------
    panel
        The covariate whose levels have a prior of their own.
    loc, scale
        Values of c and d to start from, shape ``(levels, proteins)``.
    """

    tables = ("loc", "log_scale")

    def __init__(self, panel: Factor, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.panel = panel
        self.factors = (panel,)
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(scale.log())

    def forward(self, design: Design) -> Gaussian:
        """Return the prior of each cell, ``(cells, proteins)``."""
        level = design.levels(self.panel)
        return Gaussian(functional.embedding(level, self.loc), functional.embedding(level, self.log_scale).exp())


class Efficiency(ByLevel):
    r"""Factor of each protein in each batch, :math:`e_{tb} \sim \mathrm{LogNormal}(0, 1)`.

    Parameters
    ----------
    batch
        The batch.
    n_proteins
        Number of proteins.
    """

    tables = ("log_efficiency",)

    def __init__(self, batch: Factor, n_proteins: int) -> None:
        super().__init__()
        self.batch = batch
        self.factors = (batch,)
        self.log_efficiency = nn.Parameter(torch.zeros(batch.n_levels, n_proteins))

    def forward(self, design: Design) -> Tensor:
        """Return log e of each cell, ``(cells, proteins)``."""
        return functional.embedding(design.levels(self.batch), self.log_efficiency)

    def log_prior(self) -> Tensor:
        """Log-density of log e, one number in nats: that of e times the slope of e by log e."""
        return (-0.5 * self.log_efficiency.square() - _HALF_LOG_2PI).sum()


class Components(NamedTuple):
    """Two normals fitted to each row of some values, shape ``(rows,)`` each."""

    low: Tensor
    """Smaller mean."""
    low_scale: Tensor
    """Its standard deviation."""
    high: Tensor
    """Larger mean."""
    high_scale: Tensor
    """Its standard deviation."""
    high_share: Tensor
    """Share of the values that belong to the larger mean."""


def two_components(values: Tensor) -> Components:
    r"""Fit a mixture of two normals to each row, all rows at once.

    Expectation-maximisation from the best cut of the sorted values in two (least squares), 50 steps.

    Parameters
    ----------
    values
        Shape ``(rows, values)``, at least two values.
    """
    x = values.double().sort(dim=1).values
    upper = _upper_share(x)
    for _ in range(_STEPS):
        weight = torch.stack([1.0 - upper, upper])
        total = weight.sum(-1).clamp(min=1e-12)
        loc = (weight * x).sum(-1) / total
        variance = (weight * (x - loc.unsqueeze(-1)).square()).sum(-1) / total + _MIN_VARIANCE
        log_share = (total / x.shape[1]).log() - 0.5 * variance.log()
        log_prob = log_share.unsqueeze(-1) - 0.5 * (x - loc.unsqueeze(-1)).square() / variance.unsqueeze(-1)
        upper = (log_prob[1] - log_prob[0]).sigmoid()
    order = loc.argsort(0)
    (low, high), scale, total = loc.gather(0, order), variance.sqrt().gather(0, order), total.gather(0, order)
    return Components(low, scale[0], high, scale[1], total[1] / x.shape[1])


def _upper_share(x: Tensor) -> Tensor:
    """Which of the sorted values lie above the best cut in two, ``(cells, proteins)``, 0 or 1."""
    n = x.shape[1]
    below = torch.arange(1, n, dtype=x.dtype, device=x.device)
    sums = x.cumsum(1)
    low, total = sums[:, :-1], sums[:, -1:]
    # The sum of squares within both parts is smallest where that between them is largest.
    between = low.square() / below + (total - low).square() / (n - below)
    cut = between.argmax(1, keepdim=True)
    return (torch.arange(n, device=x.device) > cut).to(x.dtype)
