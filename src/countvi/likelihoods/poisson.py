"""Poisson counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from countvi import ops
from countvi.batch import CountBlock
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.rate import Rate
from countvi.typing import CellsGenes, PerCell


class Poisson(CountLikelihood):
    """Counts whose mean and variance are mu."""

    rate: Rate

    def _log_prob(self, counts: CountBlock) -> PerCell:
        return ops.poisson(self.rate.logits, self.rate.log_library, counts, self.rate.link)

    @property
    def mean(self) -> CellsGenes:
        """mu, shape ``(*samples, cells, genes)``."""
        return self.rate.mean

    @property
    def variance(self) -> CellsGenes:
        """mu, shape ``(*samples, cells, genes)``."""
        return self.rate.mean

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> CellsGenes:
        """Draw counts; see :meth:`CountLikelihood.sample`."""
        mu = self.rate.mean
        return torch.poisson(mu.expand(*sample_shape, *mu.shape), generator=generator)
