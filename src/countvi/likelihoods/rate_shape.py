"""Negative binomial counts by rate and shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.mixed_rate import MixedRate
from countvi.likelihoods.rate import ShapeRate
from countvi.typing import CellsGenes, PerCell


class RateShapeNegativeBinomial(CountLikelihood):
    r"""Counts with a shape and a probability p of success.

    .. math:: \log p(x) = \log\Gamma(x + r) - \log\Gamma(r) - \log\Gamma(x + 1) + x \log p + r \log(1 - p)

    with mean :math:`r\, p / (1 - p)`. Counts that share p add up to counts of the same kind, whose shape is the sum.

    Parameters
    ----------
    rate
        The shape r and the logits of p: of a cell, or of a mixture of types.
    """

    rate: ShapeRate | MixedRate

    def __init__(self, rate: ShapeRate | MixedRate) -> None:
        super().__init__(rate)

    def _log_prob(self, counts: CountBlock) -> PerCell:
        rate = self.rate
        if isinstance(rate, MixedRate):
            if rate.hidden.ndim > 3:
                return torch.stack([RateShapeNegativeBinomial(sample).log_prob(counts) for sample in rate.samples()])
            return ops.mixed_types_negative_binomial(
                rate.hidden,
                ops.Affine(rate.weight, rate.bias),
                rate.log_alpha,
                rate.abundance,
                rate.noise,
                rate.log_library,
                rate.p_logits,
                counts,
            )
        return ops.rate_shape_negative_binomial(rate.logits, rate.log_library, rate.p_logits, counts)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion, which is the shape of each count: ``(*samples, cells, genes)``."""
        return self.rate.shape

    @property
    def mean(self) -> CellsGenes:
        """mu, shape ``(*samples, cells, genes)``."""
        return self.rate.mean

    @property
    def variance(self) -> CellsGenes:
        """Variance mu / (1 - p), shape ``(*samples, cells, genes)``."""
        return self.rate.mean * (1.0 + self.rate.p_logits.exp())

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> CellsGenes:
        """Draw counts; see :meth:`CountLikelihood.sample`."""
        shape = self.rate.shape
        # A Gamma of shape zero is zero; torch's sampler needs it positive.
        least = torch.finfo(shape.dtype).tiny
        wanted = shape.clamp(min=least).expand(*sample_shape, *shape.shape).contiguous()
        gamma = torch._standard_gamma(wanted, generator=generator)  # pyright: ignore[reportPrivateImportUsage]
        return torch.poisson(torch.where(shape > 0, gamma, 0.0) * self.rate.p_logits.exp(), generator=generator)
