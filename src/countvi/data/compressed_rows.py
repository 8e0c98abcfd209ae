"""Compressed sparse rows (CSR) as three numpy arrays: gathering rows, aligning columns, compressing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from countvi.batch import CountBlock
from countvi.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 1 << 22
"""Entries looked at in one go where a whole matrix is read."""


class CompressedRows(NamedTuple):
    """Compressed sparse rows: row ``i`` owns entries ``offsets[i]:offsets[i + 1]``."""

    values: NDArray[Any]
    columns: NDArray[Any]
    offsets: NDArray[Any]


@dataclass(frozen=True, eq=False)
class ColumnMap:
    """Which column of the model each column of a matrix is.

    Parameters
    ----------
    lookup
        Column of the model for each column of the matrix, ``-1`` where the model has none; distinct otherwise.
    n_features
        Number of columns of the model.
    """

    lookup: NDArray[np.int64]
    n_features: int

    @classmethod
    def from_names(cls, names: Sequence[str], wanted: Sequence[str]) -> ColumnMap | None:
        """Align columns by name; ``None`` where both are the same names in the same order."""
        if len(names) == len(wanted) and all(a == b for a, b in zip(names, wanted, strict=True)):
            return None
        position = {name: i for i, name in enumerate(wanted)}
        return cls(np.array([position.get(name, -1) for name in names], dtype=np.int64), len(wanted))

    def apply(self, rows: CompressedRows) -> CompressedRows:
        """Rename the columns, and drop the entries that the model has no column for."""
        columns = self.lookup[rows.columns]
        keep = columns >= 0
        if keep.all():
            return CompressedRows(rows.values, columns, rows.offsets)
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        return CompressedRows(rows.values[keep], columns[keep], kept_before[rows.offsets])


def check_compressed(matrix: Any, where: str) -> None:
    """Refuse a CSR or CSC matrix whose arrays do not fit each other, which compiled code would read past their ends.

    Parameters
    ----------
    matrix
        Of scipy, or any object with ``shape``, ``data``, ``indices`` and ``indptr`` (and ``format`` if it is CSC).
    where
        What the message calls it.

    Raises
    ------
    DataError
        If they do not fit.
    """
    across, along = matrix.shape if getattr(matrix, "format", "csr") == "csr" else matrix.shape[::-1]
    check_offsets(matrix.indptr, across, min(len(matrix.data), len(matrix.indices)), where)
    check_indices(matrix.indices[: matrix.indptr[-1]], along, where)


def check_offsets(offsets: NDArray[Any], n_rows: int, n_entries: int, where: str) -> None:
    """Refuse offsets of rows that are not those of a matrix with so many rows and entries."""
    fits = len(offsets) == n_rows + 1 and offsets[0] == 0 and offsets[-1] <= n_entries
    if not fits or (offsets[1:] < offsets[:-1]).any():
        message = f"{where} is broken: its indptr does not delimit {n_rows:,} rows of {n_entries:,} entries."
        raise DataError(message)


def check_indices(indices: NDArray[Any], n_columns: int, where: str) -> None:
    """Refuse indices that are not those of columns."""
    if len(indices) and (indices.min() < 0 or indices.max() >= n_columns):
        wrong = indices.min() if indices.min() < 0 else indices.max()
        message = f"{where} is broken: its indices must be between 0 and {n_columns - 1:,}, and {wrong} is among them."
        raise DataError(message)


def gather(values: NDArray[Any], columns: NDArray[Any], starts: NDArray[Any], lengths: NDArray[Any]) -> CompressedRows:
    """Copy the entries of rows given by where they start and how many they are."""
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    entries = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return CompressedRows(values[entries], columns[entries], offsets)


def to_block(rows: CompressedRows, columns: ColumnMap | None, n_features: int) -> CountBlock:
    """Align the columns of fresh rows, and hand them to torch."""
    if columns is not None:
        rows = columns.apply(rows)
    return CountBlock(
        values=torch.from_numpy(rows.values.astype(np.float32, copy=False)),
        columns=torch.from_numpy(rows.columns.astype(np.int64, copy=False)),
        offsets=torch.from_numpy(rows.offsets.astype(np.int64, copy=False)),
        n_features=n_features,
    )


def runs(starts: NDArray[Any], ends: NDArray[Any], gap: int) -> list[tuple[int, int]]:
    """Group increasing intervals so that those of one group are at most ``gap`` apart: first, last + 1."""
    if len(starts) == 0:
        return []
    breaks = np.flatnonzero(starts[1:] - ends[:-1] > gap) + 1
    return list(itertools.pairwise([0, *breaks.tolist(), len(starts)]))


def compress(dense: NDArray[Any]) -> sp.csr_matrix:
    """Convert to CSR in chunks of rows, so that the temporaries stay small beside the matrix."""
    n_cells, n_features = dense.shape
    step = max(1, _CHUNK // max(1, n_features))
    values, columns, lengths = [np.empty(0, np.float32)], [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
    for start in range(0, n_cells, step):
        chunk = dense[start : start + step]
        row, column = np.nonzero(chunk)
        values.append(chunk[row, column].astype(np.float32))
        columns.append(column.astype(np.int32))
        lengths.append(np.bincount(row, minlength=len(chunk)))
    offsets = np.cumsum(np.concatenate(lengths))
    return sp.csr_matrix((np.concatenate(values), np.concatenate(columns), offsets), shape=dense.shape)


def sum_repeats(rows: CompressedRows, n_columns: int) -> CompressedRows:
    """Sum the entries of a fresh block that stand at the same place."""
    matrix = sp.csr_matrix(
        (rows.values.astype(np.float32, copy=False), rows.columns, rows.offsets),
        shape=(len(rows.offsets) - 1, n_columns),
    )
    if matrix.has_canonical_format:
        return rows
    matrix.sum_duplicates()
    return CompressedRows(matrix.data, matrix.indices, matrix.indptr)


def has_repeats(matrix: Any) -> bool:
    """Return whether a row names a column twice (unsorted columns are fine), looking at chunks of rows."""
    n_cells = matrix.shape[0]
    step = max(1, _CHUNK * n_cells // max(1, matrix.nnz))
    for start in range(0, n_cells, step):
        chunk = matrix[start : start + step]  # a copy, so that it can be sorted in place
        if not chunk.has_canonical_format:
            chunk.sort_indices()
            # A matrix remembers what it was before it was sorted; one of the same arrays does not.
            if not sp.csr_matrix((chunk.data, chunk.indices, chunk.indptr), shape=chunk.shape).has_canonical_format:
                return True
    return False
