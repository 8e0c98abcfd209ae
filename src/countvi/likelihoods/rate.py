"""The mean of the counts, kept as the decoder's unnormalised output."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from countvi import ops
from countvi.ops import Link
from countvi.typing import Cells, CellsGenes


@dataclass(frozen=True, eq=False)
class Rate:
    """mu = library * rho, where rho is the softmax or softplus of the logits.

    Parameters
    ----------
    logits
        Shape ``(*samples, cells, genes)``.
    log_library
        Logarithm of the library size or size factor, shape ``(*samples, cells)`` or ``(cells,)``; ``-inf`` for an empty
        cell.
    link
        How logits become rho.
    """

    logits: CellsGenes
    log_library: Cells
    link: Link

    @property
    def batch_shape(self) -> torch.Size:
        """``(*samples, cells)``."""
        return torch.broadcast_shapes(self.logits.shape[:-1], self.log_library.shape)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.logits.shape[-1]

    @property
    def log_scale(self) -> CellsGenes:
        """Logarithm of rho, shape ``(*samples, cells, genes)``."""
        return ops.log_scale(self.logits, self.link)

    @property
    def scale(self) -> CellsGenes:
        """rho: the mean without the library. Frequencies that sum to one over genes if the link is the softmax."""
        return ops.scale(self.logits, self.link)

    @property
    def log_mean(self) -> CellsGenes:
        """Logarithm of mu, shape ``(*samples, cells, genes)``."""
        return ops.log_rate(self.logits, self.log_library, self.link)

    @property
    def mean(self) -> CellsGenes:
        """mu, in counts, shape ``(*samples, cells, genes)``."""
        return self.log_mean.exp()

    def with_log_library(self, log_library: Cells) -> Rate:
        """Return the same rho with another library size."""
        return dataclasses.replace(self, log_library=log_library)
