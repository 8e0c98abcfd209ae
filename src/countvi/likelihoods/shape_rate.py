"""The mean of counts whose negative binomial is given by rate and shape, kept as the decoder's unnormalised output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from countvi import ops
from countvi.ops import Link
from countvi.typing import Cells, CellsGenes


@dataclass(frozen=True, eq=False)
class ShapeRate:
    """mu = shape * exp(p_logits), with shape = library * softplus(logits).

    Parameters
    ----------
    logits
        Shape ``(*samples, cells, genes)``.
    log_library
        Logarithm of the library size, shape ``(*samples, cells)`` or ``(cells,)``; ``-inf`` for an empty cell.
    p_logits
        Logit of the success probability p of each gene, shape ``(genes,)``; a count has variance mu / (1 - p).
    """

    logits: CellsGenes
    log_library: Cells
    p_logits: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """``(*samples, cells)``."""
        return torch.broadcast_shapes(self.logits.shape[:-1], self.log_library.shape)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.logits.shape[-1]

    @property
    def shape(self) -> CellsGenes:
        """The shape of each count, shape ``(*samples, cells, genes)``."""
        return ops.log_rate(self.logits, self.log_library, Link.SOFTPLUS).exp()

    @property
    def log_mean(self) -> CellsGenes:
        """Logarithm of mu, shape ``(*samples, cells, genes)``."""
        return ops.log_rate(self.logits, self.log_library, Link.SOFTPLUS) + self.p_logits

    @property
    def mean(self) -> CellsGenes:
        """mu, in counts, shape ``(*samples, cells, genes)``."""
        return self.log_mean.exp()

    @property
    def log_scale(self) -> CellsGenes:
        """Logarithm of the expected frequencies, shape ``(*samples, cells, genes)``."""
        return (ops.log_scale(self.logits, Link.SOFTPLUS) + self.p_logits).log_softmax(-1)

    @property
    def scale(self) -> CellsGenes:
        """Expected frequencies: mu over its sum over genes, shape ``(*samples, cells, genes)``."""
        return self.log_scale.exp()
