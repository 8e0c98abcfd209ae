"""Negative binomial counts with dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.negative_binomial import negative_binomial_variance, sample_negative_binomial
from countvi.likelihoods.rate import Rate
from countvi.typing import CellsGenes, PerCell


class ZeroInflatedNegativeBinomial(CountLikelihood):
    """Negative binomial counts that are replaced by zero with probability pi.

    Parameters
    ----------
    rate
        The mean mu of the counts before the dropout.
    log_theta
        Logarithm of the inverse dispersion, shape ``(genes,)``, ``(cells, genes)`` or ``(*samples, cells, genes)``.
    pi_logits
        Log-odds of the dropout probability, shape ``(*samples, cells, genes)``, or a function that makes them: they
        cost as much as the mean, and are often not asked for.
    """

    rate: Rate

    def __init__(self, rate: Rate, log_theta: Tensor, pi_logits: CellsGenes | Callable[[], CellsGenes]) -> None:
        super().__init__(rate)
        self.log_theta = log_theta
        self._pi_logits = pi_logits

    @cached_property
    def pi_logits(self) -> CellsGenes:
        """Log-odds of the dropout probability, shape ``(*samples, cells, genes)``."""
        return self._pi_logits if isinstance(self._pi_logits, Tensor) else self._pi_logits()

    def _log_prob(self, counts: CountBlock) -> PerCell:
        rate = self.rate
        return ops.zero_inflated_negative_binomial(
            rate.logits, rate.log_library, self.log_theta, self.pi_logits, counts, rate.link
        )

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion, in the shape of ``log_theta``."""
        return self.log_theta.exp()

    @property
    def dropout_probability(self) -> CellsGenes:
        """pi, shape ``(*samples, cells, genes)``."""
        return self.pi_logits.sigmoid()

    @property
    def mean(self) -> CellsGenes:
        """(1 - pi) mu, shape ``(*samples, cells, genes)``; ``rate.mean`` is mu."""
        return (-self.pi_logits).sigmoid() * self.rate.mean

    @property
    def variance(self) -> CellsGenes:
        """(1 - pi) (mu + mu^2 / theta + pi mu^2), shape ``(*samples, cells, genes)``."""
        within = negative_binomial_variance(self.rate, self.log_theta)
        between = self.pi_logits.sigmoid() * self.rate.mean.square()
        return (-self.pi_logits).sigmoid() * (within + between)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> CellsGenes:
        """Draw counts; see :meth:`CountLikelihood.sample`."""
        counts = sample_negative_binomial(self.rate, self.log_theta, sample_shape, generator)
        uniform = torch.rand(counts.shape, dtype=counts.dtype, device=counts.device, generator=generator)
        return counts.masked_fill(uniform < self.dropout_probability, 0.0)
