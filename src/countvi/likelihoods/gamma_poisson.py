"""Negative binomial counts around a rate with background and scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.likelihoods.ambient_rate import AmbientRate
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.negative_binomial import negative_binomial_variance, sample_negative_binomial
from countvi.ops import Indexed
from countvi.typing import CellsGenes, PerCell

# Entries of a matrix of cells x genes that are held at once: 16 MiB in float32. Beyond it (many genes, many draws) the
# log-likelihood is computed in parts of the genes.
_BLOCK = 2**22


class GammaPoisson(CountLikelihood):
    """Counts with mean mu and variance mu + mu^2 / theta, where a background adds to mu.

    Parameters
    ----------
    rate
        The mean mu.
    log_theta
        Logarithm of the inverse dispersion.
    measured
        Which cells were measured, shape ``(cells,)``, bool; ``None`` for all. Others have no counts that could be more
        or less likely: their log-likelihood is zero.
    """

    rate: AmbientRate

    def __init__(self, rate: AmbientRate, log_theta: Indexed, measured: Tensor | None = None) -> None:
        super().__init__(rate)
        self.log_theta = log_theta
        self.measured = measured

    def _log_prob(self, counts: CountBlock) -> PerCell:
        if self.measured is None:
            return _log_prob(self.rate, self.log_theta, counts, counts.n_cells)
        index = self.measured.nonzero().squeeze(1)
        # Rows that were not measured are empty, so leaving them out leaves the entries as they are.
        offsets = torch.cat([counts.offsets[:1], counts.offsets[1:].index_select(0, index)])
        kept = CountBlock(counts.values, counts.columns, offsets, counts.n_features)
        known = _log_prob(self.rate.cells(index), self.log_theta.cells(index), kept, counts.n_cells)
        return known.new_zeros(self.batch_shape).index_copy(-1, index, known)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion, shape ``(cells, genes)``, or ``(genes,)`` if it is the same in all cells."""
        return self.log_theta.of_cells().exp()

    @property
    def mean(self) -> CellsGenes:
        """mu, shape ``(*samples, cells, genes)``; in cells that were not measured, what would be expected."""
        return self.rate.mean

    @property
    def variance(self) -> CellsGenes:
        """Variance mu + mu^2 / theta, shape ``(*samples, cells, genes)``."""
        return negative_binomial_variance(self.rate, self.log_theta.of_cells())

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> CellsGenes:
        """Draw counts; see :meth:`CountLikelihood.sample`."""
        return sample_negative_binomial(self.rate, self.log_theta.of_cells(), sample_shape, generator)


def _log_prob(rate: AmbientRate, log_theta: Indexed, counts: CountBlock, n_cells: int) -> PerCell:
    n_parts = max(1, math.ceil(rate.batch_shape.numel() * rate.n_genes / _BLOCK))
    tables = (log_theta, rate.log_background, rate.log_scaling)
    step = max(1, math.ceil(rate.n_genes / n_parts))
    return ops.gamma_poisson_head(rate.hidden, rate.weight, rate.bias, rate.log_library, tables, counts, step, n_cells)
