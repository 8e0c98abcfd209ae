"""Observed counts of populations of cells: means, shares of cells with any, normalised means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import scipy.sparse as sp

from countvi.query.cells import Cells

# Counts of a cell after scaling.
_TOTAL = 1e4


@dataclass(frozen=True, eq=False)
class CountSums:
    """Observed counts of a population, of the cells that they were measured in.

    Parameters
    ----------
    total, seen, scaled
        Sums over cells of the counts, of whether there are any, and of counts per 10,000 counts of a cell; shape
        ``(features,)``.
    n_cells, n_scaled
        Number of cells that each feature was measured in, and of those with counts; shape ``(features,)``.
    """

    total: np.ndarray
    seen: np.ndarray
    scaled: np.ndarray
    n_cells: np.ndarray
    n_scaled: np.ndarray

    def __sub__(self, part: CountSums) -> CountSums:
        return CountSums(**{f.name: getattr(self, f.name) - getattr(part, f.name) for f in fields(self)})

    def __add__(self, other: CountSums) -> CountSums:
        return CountSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @classmethod
    def side_by_side(cls, parts: Sequence[CountSums]) -> CountSums:
        """Join the features of several modalities."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    @property
    def mean(self) -> np.ndarray:
        """Mean counts; NaN without cells."""
        return _ratio(self.total, self.n_cells)

    @property
    def nonzero(self) -> np.ndarray:
        """Share of cells in which a feature is seen."""
        return _ratio(self.seen, self.n_cells)

    @property
    def normalized(self) -> np.ndarray:
        """Mean of counts per 10,000 counts of a cell; cells without counts do not take part."""
        return _ratio(self.scaled, self.n_scaled)


def sum_counts(
    cells: Cells, populations: Sequence[np.ndarray], modality: str, measured: np.ndarray | None = None
) -> list[CountSums]:
    """Sum the counts of several populations in one pass over the data.

    Parameters
    ----------
    cells
        All cells that populations may be of.
    populations
        Rows of each, distinct; populations may overlap.
    modality
        Which counts.
    measured
        Which of ``cells`` the counts were measured in, a mask; ``None`` for all.
    """
    members = _membership(cells, populations, measured)
    n_features = cells.n_features(modality)
    sums = np.zeros((3, len(populations), n_features))
    n_cells, n_scaled = np.zeros((len(populations), n_features)), np.zeros((len(populations), 1))
    for block, batch in cells:
        counts, part = batch.counts[modality].to("cpu"), members[:, block]
        values, totals = counts.values.double().numpy(), counts.totals().double().numpy()
        columns, offsets = counts.columns.numpy(), counts.offsets.numpy()
        weight = np.divide(_TOTAL, totals, out=np.zeros_like(totals), where=totals > 0)
        scaled = values * np.repeat(weight, np.diff(offsets))
        for out, entries in zip(sums, (values, (values != 0).astype(np.float64), scaled), strict=True):
            out += (part @ sp.csr_array((entries, columns, offsets), shape=(counts.n_cells, n_features))).toarray()
        n_scaled += part @ (totals > 0).astype(np.float64)[:, None]
        entries = batch.design.measured_entries(modality)
        n_cells += part.sum(1)[:, None] if entries is None else part @ entries.cpu().numpy().astype(np.float64)
    total, seen, scaled = sums
    wide = np.broadcast_to(n_scaled, n_cells.shape)
    return [CountSums(total[i], seen[i], scaled[i], n_cells[i], wide[i]) for i in range(len(populations))]


def _ratio(total: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)


def _membership(cells: Cells, populations: Sequence[np.ndarray], measured: np.ndarray | None) -> sp.csr_array:
    """Indicator matrix, ``(populations, cells)``."""
    place = np.full(cells.source.n_cells, -1)
    place[cells.rows] = np.arange(len(cells))
    if measured is not None:
        place[cells.rows[~measured]] = -1
    found = [np.sort(place[rows]) for rows in populations]
    found = [columns[columns >= 0] for columns in found]
    offsets = np.concatenate([[0], np.cumsum([len(columns) for columns in found])])
    columns = np.concatenate([*found, np.empty(0, dtype=np.int64)])
    return sp.csr_array((np.ones(len(columns)), columns, offsets), shape=(len(populations), len(cells)))
