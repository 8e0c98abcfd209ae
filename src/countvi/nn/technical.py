"""Background, scaling of genes and dispersion by technical covariates: what these do to counts beyond the decoder.

Each has a row per level, gathered by code. A module returns :class:`~countvi.ops.Indexed`, a row per combination of
levels that occurs in the minibatch, and the log-prior of its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from countvi import seeding
from countvi.batch import Design, Factor
from countvi.nn.levels import ByLevel, combinations, n_rows
from countvi.nn.priors import DispersionPrior, GammaPrior
from countvi.ops import Indexed, log_scale
from countvi.ops.link import Link

SCALING_PRIOR = GammaPrior(200.0, 200.0)
"""Mean 1, standard deviation 0.07."""
DISPERSION_PRIOR = DispersionPrior()

_UNIT = 0.7
"""softplus of zero is 0.69: a scaling whose parameter is near zero is near one, where the softplus bends most."""
_LOG_THETA_RANGE = (-60.0, 60.0)
"""Draws stay inside the domain of the likelihood."""
_INITIAL_LOG_SCALE = math.log(0.1)


class Background(ByLevel):
    r"""Ambient counts that every cell of a level has: :math:`B = \sum_k e^{\beta_k}` over covariates k.

    Parameters
    ----------
    factors
        The covariates whose levels have a background of their own; at least one.
    n_genes
        Number of genes.
    prior
        Of the total, in counts of an average cell; each of the covariates has its share of it. ``None`` for none.
    """

    tables = ("beta",)

    def __init__(self, factors: Sequence[Factor], n_genes: int, prior: GammaPrior | None = None) -> None:
        super().__init__()
        assert factors, "a background belongs to the levels of at least one covariate"
        self.factors = tuple(factors)
        self.prior = None if prior is None else prior.divided(len(self.factors))
        start = math.log(0.01 / len(self.factors))
        self.beta = nn.Parameter(torch.full((n_rows(factors), n_genes), start))

    def forward(self, design: Design) -> Indexed:
        """Return log B of the cells."""
        index, code = combinations(design, self.factors)
        beta = functional.embedding(index, self.beta)
        return Indexed(beta[0] if len(beta) == 1 else beta.logsumexp(0), code)

    def log_prior(self) -> Tensor:
        """Log-density of beta, one number in nats; zero without a prior."""
        if self.prior is None:
            return self.beta.new_zeros(())
        return self.prior.log_density_of_log(self.beta).sum()

    def per_level(self) -> list[Tensor]:
        """Return the background of each covariate's levels, in counts of an average cell, ``(levels, genes)`` each."""
        return list(self.beta.exp().split([factor.n_levels for factor in self.factors]))


class FeatureScaling(ByLevel):
    r"""Factor of each gene that depends on technical covariates: :math:`y = \prod_t \mathrm{softplus}(\gamma_t) / 0.7`.

    Parameters
    ----------
    factors
        The covariates; without any, all cells share one factor per gene.
    n_genes
        Number of genes.
    prior
        Of each factor.
    """

    tables = ("gamma",)

    def __init__(self, factors: Sequence[Factor], n_genes: int, prior: GammaPrior = SCALING_PRIOR) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.prior = prior
        # A factor of exactly one, so that there can be any number of them.
        self.gamma = nn.Parameter(torch.full((n_rows(factors), n_genes), math.log(math.expm1(_UNIT))))

    def forward(self, design: Design) -> Indexed:
        """Return log y of the cells."""
        index, code = combinations(design, self.factors)
        return Indexed(_log_factor(functional.embedding(index, self.gamma)).sum(0), code)

    def log_prior(self) -> Tensor:
        """Log-density of gamma, one number in nats."""
        # The slope of log y by gamma is sigmoid / softplus.
        jacobian = functional.logsigmoid(self.gamma) - log_scale(self.gamma, Link.SOFTPLUS)
        return (self.prior.log_density_of_log(_log_factor(self.gamma)) + jacobian).sum()

    def per_level(self) -> list[Tensor]:
        """Return the factors of each covariate's levels, ``(levels, genes)`` each."""
        sizes = [factor.n_levels for factor in self.factors] or [1]
        return list(_log_factor(self.gamma).exp().split(sizes))


class PosteriorDispersion(ByLevel):
    r"""Inverse dispersion with a posterior, :math:`\log\theta \sim \mathrm{Normal}(\mu, \sigma)` per gene and level.

    In training a draw of it is used, one for all cells of a minibatch, from the same stream as dropout; in evaluation
    mode its median.

    Parameters
    ----------
    n_genes
        Number of genes.
    factor
        The covariate whose levels have a dispersion of their own; ``None`` for one per gene.
    prior
        Prior of the levels' dispersions.
    """

    tables = ("loc", "log_scale")

    def __init__(self, n_genes: int, factor: Factor | None = None, prior: DispersionPrior = DISPERSION_PRIOR) -> None:
        super().__init__()
        self.factors = () if factor is None else (factor,)
        self.prior = prior
        shape = (n_rows(self.factors), n_genes)
        self.loc = nn.Parameter(torch.full(shape, 2.0 * math.log(prior.shape / prior.rate)))
        self.log_scale = nn.Parameter(torch.full(shape, _INITIAL_LOG_SCALE))

    def forward(self, design: Design) -> Indexed:
        """Return log theta of the cells."""
        index, code = combinations(design, self.factors)
        loc = functional.embedding(index[0], self.loc)
        if not self.training:
            return Indexed(loc, code)
        scale = functional.embedding(index[0], self.log_scale).exp()
        generator = seeding.layer_generator() if scale.device.type == "cpu" else None
        noise = torch.empty_like(scale).normal_(generator=generator)
        return Indexed((loc + scale * noise).clamp(*_LOG_THETA_RANGE), code)

    def log_prior(self) -> Tensor:
        """Negative divergence of the posterior from the prior, one number in nats."""
        return self.prior.elbo(self.loc, self.log_scale)


def _log_factor(gamma: Tensor) -> Tensor:
    return log_scale(gamma, Link.SOFTPLUS) - math.log(_UNIT)
