"""Tables of which each cell takes a row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from countvi.typing import GenesOrCellsGenes


class Indexed(NamedTuple):
    """A table with a row per level of a covariate, and which row each cell takes.

    An operation that gets the table and the codes need not make, nor differentiate, a tensor of cells x genes.
    """

    table: Tensor
    """Shape ``(rows, genes)``."""
    code: Tensor | None
    """Row of each cell, shape ``(cells,)``, int64; ``None`` where all cells take the only row."""

    def of_cells(self) -> GenesOrCellsGenes:
        """Return each cell's row, shape ``(cells, genes)``; ``(genes,)`` where all cells take the only row."""
        return self.table.squeeze(0) if self.code is None else self.table.index_select(0, self.code)

    def genes(self, start: int, stop: int) -> Indexed:
        """Return the same rows of some neighbouring genes."""
        return Indexed(self.table[:, start:stop], self.code)

    def cells(self, index: Tensor) -> Indexed:
        """Return the rows of some cells, at positions ``index``."""
        return self if self.code is None else Indexed(self.table, self.code.index_select(0, index))

    def exp(self) -> Indexed:
        """Return the same rows of the table's exponential."""
        return Indexed(torch.exp(self.table), self.code)
