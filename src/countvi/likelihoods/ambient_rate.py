"""The mean of counts that come from a cell and from its surroundings, kept as the decoder's last hidden layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from countvi import ops
from countvi.likelihoods.base import CountRate
from countvi.ops import Indexed, Link
from countvi.typing import CellsGenes, CellsHidden, PerCell


@dataclass(frozen=True, eq=False)
class AmbientRate(CountRate):
    """mu = library * scaling * (rho + background), where rho is the softplus of a linear map.

    Parameters
    ----------
    hidden
        Input of the linear map, shape ``(*samples, cells, hidden)``.
    weight, bias
        The linear map, shapes ``(genes, hidden)`` and ``(genes,)``.
    log_library
        Logarithm of the library size in units of an average cell's, shape ``(*samples, cells)`` or ``(cells,)``.
    log_unit
        Logarithm of the counts of an average cell, a scalar: rho and the background are in counts of an average cell.
    log_background
        Logarithm of the background; ``None`` for none.
    log_scaling
        Logarithm of the scaling; ``None`` for one.
    """

    hidden: CellsHidden
    weight: Tensor
    bias: Tensor
    log_library: PerCell
    log_unit: Tensor
    log_background: Indexed | None = None
    log_scaling: Indexed | None = None

    @property
    def batch_shape(self) -> torch.Size:
        """``(*samples, cells)``."""
        return torch.broadcast_shapes(self.hidden.shape[:-1], self.log_library.shape)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.bias.shape[0]

    @cached_property
    def logits(self) -> CellsGenes:
        """What becomes rho through the softplus, shape ``(*samples, cells, genes)``."""
        return ops.linear(self.hidden, self.weight, self.bias)

    @property
    def log_scale(self) -> CellsGenes:
        """Logarithm of the expected frequencies, shape ``(*samples, cells, genes)``."""
        return self._log_rho - self.log_unit

    @property
    def scale(self) -> CellsGenes:
        """Expected frequencies: rho in units of an average cell's counts; they sum to what the background leaves."""
        return self.log_scale.exp()

    @property
    def scale_with_background(self) -> CellsGenes:
        """Expected frequencies of the cell and its surroundings, without the scaling."""
        return (self._log_total - self.log_unit).exp()

    @property
    def log_mean(self) -> CellsGenes:
        """Logarithm of mu, shape ``(*samples, cells, genes)``."""
        log_mu = self.log_library[..., None] + self._log_total
        return log_mu if self.log_scaling is None else log_mu + self.log_scaling.of_cells()

    def expression(self, *, library: bool, background: bool) -> CellsGenes:
        """See :meth:`CountRate.expression`; counts without the background are the cell's own share of mu."""
        if library:
            return self.mean if background else self.mean * self.own_share
        return self.scale_with_background if background else self.scale

    def decoded(self) -> dict[str, Tensor]:
        """See :meth:`CountRate.decoded`."""
        return {"the decoder's output (logits of rho)": self.logits}

    @property
    def own_share(self) -> CellsGenes:
        """Share of each gene's mean that is the cell's own: rho / (rho + background), in the shape of the mean."""
        if self.log_background is None:
            return torch.ones_like(self.logits)
        return torch.sigmoid(self._log_rho - self.log_background.of_cells())

    @property
    def _log_rho(self) -> Tensor:
        return ops.log_scale(self.logits, Link.SOFTPLUS)

    @property
    def _log_total(self) -> Tensor:
        if self.log_background is None:
            return self._log_rho
        return torch.logaddexp(self._log_rho, self.log_background.of_cells())

    def genes(self, start: int, stop: int) -> AmbientRate:
        """Return the rate of some neighbouring genes."""
        return AmbientRate(
            hidden=self.hidden,
            weight=self.weight[start:stop],
            bias=self.bias[start:stop],
            log_library=self.log_library,
            log_unit=self.log_unit,
            log_background=None if self.log_background is None else self.log_background.genes(start, stop),
            log_scaling=None if self.log_scaling is None else self.log_scaling.genes(start, stop),
        )

    def cells(self, index: Tensor) -> AmbientRate:
        """Return the rate of some cells, at positions ``index``."""
        return AmbientRate(
            hidden=self.hidden.index_select(-2, index),
            weight=self.weight,
            bias=self.bias,
            log_library=self.log_library.index_select(-1, index),
            log_unit=self.log_unit,
            log_background=None if self.log_background is None else self.log_background.cells(index),
            log_scaling=None if self.log_scaling is None else self.log_scaling.cells(index),
        )
