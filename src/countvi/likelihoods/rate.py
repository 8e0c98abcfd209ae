"""The mean of the counts, kept as the decoder's unnormalised output."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

import torch
from torch import Tensor

from countvi import ops
from countvi.likelihoods.base import CountRate
from countvi.ops import Link
from countvi.typing import CellsGenes, PerCell


@dataclass(frozen=True, eq=False)
class LogitRate(CountRate, ABC):
    """A mean that is made from one number per cell and gene.

    Parameters
    ----------
    logits
        Shape ``(*samples, cells, genes)``.
    log_library
        Logarithm of the library size or size factor, shape ``(*samples, cells)`` or ``(cells,)``; ``-inf`` for an empty
        cell.
    """

    logits: CellsGenes
    log_library: PerCell

    @property
    def batch_shape(self) -> torch.Size:
        """``(*samples, cells)``."""
        return torch.broadcast_shapes(self.logits.shape[:-1], self.log_library.shape)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.logits.shape[-1]

    def decoded(self) -> dict[str, Tensor]:
        """See :meth:`CountRate.decoded`."""
        return {"the decoder's output (logits of rho)": self.logits}


@dataclass(frozen=True, eq=False)
class Rate(LogitRate):
    """mu = library * rho, where rho is the softmax or softplus of the logits.

    Parameters
    ----------
    logits, log_library
        As in :class:`LogitRate`.
    link
        How logits become rho.
    """

    link: Link

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


@dataclass(frozen=True, eq=False)
class ShapeRate(LogitRate):
    """mu = shape * exp(p_logits), with shape = library * softplus(logits): a negative binomial by rate and shape.

    Parameters
    ----------
    logits, log_library
        As in :class:`LogitRate`.
    p_logits
        Logit of the success probability p of each gene, shape ``(genes,)``; a count has variance mu / (1 - p).
    """

    p_logits: Tensor

    @property
    def shape(self) -> CellsGenes:
        """The shape of each count, shape ``(*samples, cells, genes)``."""
        return ops.log_rate(self.logits, self.log_library, Link.SOFTPLUS).exp()

    @property
    def log_mean(self) -> CellsGenes:
        """Logarithm of mu, shape ``(*samples, cells, genes)``."""
        return ops.log_rate(self.logits, self.log_library, Link.SOFTPLUS) + self.p_logits

    @property
    def log_scale(self) -> CellsGenes:
        """Logarithm of the expected frequencies, shape ``(*samples, cells, genes)``."""
        return (ops.log_scale(self.logits, Link.SOFTPLUS) + self.p_logits).log_softmax(-1)

    @property
    def scale(self) -> CellsGenes:
        """Expected frequencies: mu over its sum over genes, shape ``(*samples, cells, genes)``."""
        return self.log_scale.exp()
