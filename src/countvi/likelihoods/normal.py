"""Values that are normal around the rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.rate import Rate
from countvi.typing import CellsGenes, PerCell


class Normal(CountLikelihood):
    """Values with mean mu and standard deviation sigma, for data that are not counts.

    Parameters
    ----------
    rate
        The mean mu.
    log_scale
        Logarithm of sigma, shape ``(genes,)``, ``(cells, genes)`` or ``(*samples, cells, genes)``.
    """

    rate: Rate

    def __init__(self, rate: Rate, log_scale: Tensor) -> None:
        super().__init__(rate)
        self.log_scale = log_scale

    def _log_prob(self, counts: CountBlock) -> PerCell:
        rate = self.rate
        return ops.normal(rate.logits, rate.log_library, self.log_scale, counts, rate.link)

    @property
    def mean(self) -> CellsGenes:
        """mu, shape ``(*samples, cells, genes)``."""
        return self.rate.mean

    @property
    def variance(self) -> CellsGenes:
        """sigma^2, shape ``(*samples, cells, genes)``."""
        return (2 * self.log_scale).exp().expand(self.batch_shape + self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> CellsGenes:
        """Draw values; see :meth:`CountLikelihood.sample`."""
        mean = self.mean
        shape = (*sample_shape, *mean.shape)
        noise = torch.randn(shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + self.log_scale.exp() * noise

    def parameters(self) -> dict[str, Tensor]:
        """See :meth:`CountLikelihood.parameters`."""
        mean = self.rate.mean
        return {"mean": mean, "standard_deviation": self.log_scale.exp().expand_as(mean)}
