"""Protein counts: negative binomial around a background or a foreground."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.mixture_rate import MixtureRate
from countvi.typing import CellsGenes, PerCell


class NegativeBinomialMixture(CountLikelihood):
    """Counts are negative binomial around the background with probability pi, else around the foreground.

    Parameters
    ----------
    rate
        The two means, and pi.
    log_theta
        Logarithm of the inverse dispersion of both, shape ``(proteins,)`` or ``(cells, proteins)``.
    measured
        Which entries were measured, shape ``(cells, proteins)``, bool; ``None`` for all. Others have no counts that
        could be more or less likely: they add nothing to the log-likelihood.
    """

    rate: MixtureRate

    def __init__(self, rate: MixtureRate, log_theta: Tensor, measured: Tensor | None = None) -> None:
        super().__init__(rate)
        self.log_theta = log_theta
        self.measured = measured

    def _log_prob(self, counts: CountBlock) -> PerCell:
        rate = self.rate
        return ops.negative_binomial_mixture(
            rate.log_background, rate.log_foreground, rate.pi_logits, self.log_theta, counts, self.measured
        )

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion, in the shape of ``log_theta``."""
        return self.log_theta.exp()

    @property
    def mean(self) -> CellsGenes:
        """Expected counts, shape ``(*samples, cells, proteins)``; where not measured, what would be expected."""
        return self.rate.mean

    @property
    def variance(self) -> CellsGenes:
        """Variance of the counts: that of each component, and that between them."""
        pi = self.rate.pi_logits.sigmoid()
        low, high = self.rate.log_background.exp(), self.rate.log_foreground.exp()
        within = pi * (low + low.square() / self.theta) + (1 - pi) * (high + high.square() / self.theta)
        return within + pi * (1 - pi) * (high - low).square()

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> CellsGenes:
        """Draw counts; see :meth:`CountLikelihood.sample`."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        log_low = self.rate.log_background
        uniform = torch.rand(shape, generator=generator, dtype=log_low.dtype, device=log_low.device)
        background = uniform < self.rate.pi_logits.sigmoid()
        mu = torch.where(background, log_low.exp(), self.rate.log_foreground.exp())
        theta = self.theta.expand(shape)
        gamma = torch._standard_gamma(theta, generator=generator)  # pyright: ignore[reportPrivateImportUsage]
        return torch.poisson(mu * (gamma / theta), generator=generator)

    def parameters(self) -> dict[str, Tensor]:
        """See :meth:`CountLikelihood.parameters`; both means, and the probability of background."""
        rate = self.rate
        return {
            "mean": rate.mean,
            "background_mean": rate.log_background.exp(),
            "foreground_mean": rate.log_foreground.exp(),
            "background_probability": rate.pi_logits.sigmoid(),
            "dispersions": self.theta.expand_as(rate.log_beta),
        }
