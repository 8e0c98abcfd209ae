"""The mean of the counts of a spot: types added up, kept as what the decoder gives before its last layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from countvi.likelihoods.base import CountRate
from countvi.typing import CellsGenes, PerCell


@dataclass(frozen=True, eq=False)
class MixedRate(CountRate):
    r"""mu = shape * exp(p_logits), with the shape of a spot the sum of those of its types and of noise.

    .. math:: \text{shape}_{sg} = \ell_s \Big( \alpha_g \sum_c \beta_{sc}\, \mathrm{softplus}(w_g h_{sc} + b_g)
        + \beta_{s,C+1}\, \epsilon_g \Big)

    Parameters
    ----------
    hidden
        h, what the decoder makes of the state of each type, shape ``(*samples, spots, types, hidden)``.
    weight, bias
        w and b, shape ``(genes, hidden)`` and ``(genes,)``.
    log_alpha
        Shape ``(genes,)``.
    abundance
        beta, not negative, shape ``(*samples, spots, types + 1)``; the last column is that of the noise.
    noise
        epsilon, not negative, shape ``(genes,)``.
    log_library
        Logarithm of the library size, shape ``(*samples, spots)`` or ``(spots,)``; ``-inf`` for an empty spot.
    p_logits
        Logit of the success probability p of each gene, shape ``(genes,)``.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    log_alpha: Tensor
    abundance: Tensor
    noise: Tensor
    log_library: PerCell
    p_logits: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """``(*samples, spots)``."""
        return torch.broadcast_shapes(self.hidden.shape[:-2], self.abundance.shape[:-1], self.log_library.shape)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.weight.shape[0]

    @property
    def n_types(self) -> int:
        """Number of types, the noise not counted."""
        return self.hidden.shape[-2]

    def samples(self) -> Iterator[MixedRate]:
        """Cut along the first axis of samples."""
        n_samples = self.batch_shape[0]
        for s in range(n_samples):
            yield dataclasses.replace(
                self,
                hidden=self.hidden[s],
                abundance=self.abundance[s],
                log_library=self.log_library if self.log_library.ndim == 1 else self.log_library[s],
            )

    def of_type(self, index: int) -> CellsGenes:
        """Shape of the counts of a pure spot of one type, per count of library: ``(*samples, spots, genes)``."""
        logits = functional.linear(self.hidden[..., index, :], self.weight, self.bias)
        return functional.softplus(logits) * self.log_alpha.exp()

    @property
    def per_library(self) -> CellsGenes:
        """Shape of each count over the library size, shape ``(*samples, spots, genes)``."""
        total = self.abundance[..., -1:] * self.noise
        # Type by type: spots x types x genes is never in memory.
        for index in range(self.n_types):
            total = total + self.abundance[..., index, None] * self.of_type(index)
        return total

    @property
    def shape(self) -> CellsGenes:
        """The shape of each count, shape ``(*samples, spots, genes)``."""
        return self.log_library.exp().unsqueeze(-1) * self.per_library

    @property
    def mean(self) -> CellsGenes:
        """mu, in counts, shape ``(*samples, spots, genes)``."""
        return self.shape * self.p_logits.exp()

    @property
    def log_mean(self) -> CellsGenes:
        """Logarithm of mu, shape ``(*samples, spots, genes)``."""
        return self.mean.log()

    @property
    def scale(self) -> CellsGenes:
        """Expected frequencies: mu over its sum over genes, shape ``(*samples, spots, genes)``."""
        frequencies = self.per_library * self.p_logits.exp()
        return frequencies / frequencies.sum(-1, keepdim=True)

    def decoded(self) -> dict[str, Tensor]:
        """See :meth:`CountRate.decoded`."""
        return {"the sum of what was decoded for each type": self.per_library}
