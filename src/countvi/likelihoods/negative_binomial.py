"""Negative binomial counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.likelihoods.base import CountLikelihood, CountRate
from countvi.likelihoods.rate import Rate
from countvi.typing import CellsGenes, PerCell


class NegativeBinomial(CountLikelihood):
    """Counts with mean mu and variance mu + mu^2 / theta: Poisson around a rate that is Gamma distributed.

    Parameters
    ----------
    rate
        The mean mu.
    log_theta
        Logarithm of the inverse dispersion, shape ``(genes,)``, ``(cells, genes)`` or ``(*samples, cells, genes)``.
    """

    rate: Rate

    def __init__(self, rate: Rate, log_theta: Tensor) -> None:
        super().__init__(rate)
        self.log_theta = log_theta

    def _log_prob(self, counts: CountBlock) -> PerCell:
        rate = self.rate
        return ops.negative_binomial(rate.logits, rate.log_library, self.log_theta, counts, rate.link)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion, in the shape of ``log_theta``."""
        return self.log_theta.exp()

    @property
    def mean(self) -> CellsGenes:
        """mu, shape ``(*samples, cells, genes)``."""
        return self.rate.mean

    @property
    def variance(self) -> CellsGenes:
        """Variance mu + mu^2 / theta, shape ``(*samples, cells, genes)``."""
        return negative_binomial_variance(self.rate, self.log_theta)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> CellsGenes:
        """Draw counts; see :meth:`CountLikelihood.sample`."""
        return sample_negative_binomial(self.rate, self.log_theta, sample_shape, generator)


def negative_binomial_variance(rate: CountRate, log_theta: Tensor) -> CellsGenes:
    """Return mu + mu^2 / theta, shape ``(*samples, cells, genes)``."""
    log_mu = rate.log_mean
    return log_mu.exp() + (2 * log_mu - log_theta).exp()


def sample_negative_binomial(
    rate: CountRate, log_theta: Tensor, sample_shape: Sequence[int], generator: torch.Generator | None
) -> CellsGenes:
    """Draw from the Poisson around a Gamma, shape ``(*sample_shape, *samples, cells, genes)``."""
    mu, theta = torch.broadcast_tensors(rate.mean, log_theta.exp())
    shape = (*sample_shape, *mu.shape)
    # A Gamma of mean one times mu, rather than a Gamma of rate theta / mu: mu may be zero.
    gamma = torch._standard_gamma(theta.expand(shape), generator=generator)  # pyright: ignore[reportPrivateImportUsage]
    return torch.poisson(mu * (gamma / theta), generator=generator)
