"""Cells of a query, checked while they are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from countvi.batch import Batch
from countvi.data import Dataset
from countvi.errors import DataError


@dataclass(frozen=True, eq=False)
class CheckedCells:
    """Cells that are refused where the model cannot use them.

    The cells that a model was built on are checked as a whole; those of a query are checked as they are read, so that a
    read-out of a few cells of a large file reads no others.

    Parameters
    ----------
    data
        Cells.
    negative
        Whether the model takes negative values.
    """

    data: Dataset
    negative: bool

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.data.n_cells

    def batch(self, rows: np.ndarray) -> Batch:
        """Read some cells.

        Raises
        ------
        DataError
            If a value is NaN, infinite, or negative where counts are expected, or a library size would be negative.
        """
        batch = self.data.batch(rows)
        for modality, block in batch.counts.items():
            values = block.values
            bad = ~torch.isfinite(values) if self.negative else ~(torch.isfinite(values) & (values >= 0))
            if bad.any():
                entry = int(bad.nonzero()[0])
                gene = self.data.registry.modality(modality).feature_names[int(block.columns[entry])]
                kind = "finite" if self.negative else "finite and not negative"
                message = (
                    f"The counts of this query must be {kind}; {int(bad.sum()):,} of those read are not, "
                    f"the first in {self._cell(rows, block.rows[entry])}, gene {gene!r} ({float(values[entry])}). "
                    "Remove these cells, or check how the matrix was made."
                )
                raise DataError(message)
            totals = block.totals()
            if self.data.size_factor is None and (totals < 0).any():
                cell = self._cell(rows, (totals < 0).nonzero()[0])
                message = f"A library size cannot be negative; the values of {cell} have a negative sum. Remove it."
                raise DataError(message)
        return batch

    def _cell(self, rows: np.ndarray, position: Tensor) -> str:
        return f"cell {str(self.data.obs_names[rows[int(position)]])!r}"
