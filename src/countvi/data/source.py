"""Count matrices in memory and in files, read as sparse blocks of rows.

A minibatch costs one numpy gather of the stored entries of its rows. The matrix itself is never copied to change its
dtype or the order of its genes: both are done to the block.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata.abc import CSCDataset, CSRDataset

from countvi.batch import CountBlock
from countvi.data.compressed_rows import (
    ColumnMap,
    CompressedRows,
    check_columns,
    check_offsets,
    compress,
    gather,
    has_repeats,
    runs,
    sum_repeats,
    to_block,
)
from countvi.errors import DataError, DataWarning, UnknownNameError, did_you_mean, shorten

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_GAP = 1 << 13
"""Entries between two rows of a file that are cheaper to read than to skip with a second read."""


class CountSource(ABC):
    """Rows of a count matrix, wherever they live."""

    @property
    @abstractmethod
    def n_cells(self) -> int:
        """Number of rows."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Number of columns."""

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether reading a row needs no file."""

    @abstractmethod
    def take(self, rows: NDArray[np.integer]) -> CountBlock:
        """Read some rows.

        Parameters
        ----------
        rows
            Row numbers, shape ``(cells,)``, in ``[0, n_cells)``, in any order, repeats allowed.

        Returns
        -------
        CountBlock
            float32, row ``i`` is ``rows[i]``; shares no memory with the matrix.
        """

    def sampled(self, n: int) -> NDArray[Any]:
        """Return about ``n`` stored values from all over a matrix in memory; none of a file."""
        return np.empty(0)

    def blocks(self, size: int = 1024) -> Iterator[CountBlock]:
        """Read all rows in order, ``size`` at a time."""
        for start in range(0, self.n_cells, size):
            yield self.take(np.arange(start, min(start + size, self.n_cells)))


class InMemorySource(CountSource):
    """A matrix in memory.

    Parameters
    ----------
    matrix
        Shape ``(cells, features)``. CSR (``csr_matrix`` or ``csr_array``) of any real dtype is used where it lies;
        other sparse formats are converted once, with a :class:`~countvi.errors.DataWarning`; a dense array is
        converted once.
    columns
        Align its columns to a model's; ``None`` where they are the model's.

    Raises
    ------
    DataError
        If the matrix is not made of real numbers.
    """

    def __init__(self, matrix: Any, columns: ColumnMap | None = None) -> None:
        _check_dtype(matrix)
        self._map = columns
        if not sp.issparse(matrix):
            matrix = compress(np.asarray(matrix))
        elif matrix.format != "csr":
            if matrix.format == "csc":
                _check_compressed(matrix, matrix.shape[0])
            message = (
                f"The counts are stored as {matrix.format.upper()}, which is slow to read by cell; a CSR copy is "
                "made. Convert them once with `.tocsr()` to avoid this."
            )
            warnings.warn(message, DataWarning, stacklevel=2)
            matrix = matrix.tocsr()
        if matrix.dtype == np.float16 or not matrix.dtype.isnative:  # which scipy cannot index
            matrix = matrix.astype(np.float32)
        # The plain class, whatever the user's: a view's own class would index the AnnData behind it.
        self._matrix: Any = sp.csr_matrix(matrix)
        _check_compressed(self._matrix, self._matrix.shape[1])
        self._repeats = has_repeats(self._matrix)

    @classmethod
    def from_block(cls, block: CountBlock) -> InMemorySource:
        """Keep the rows of a block."""
        arrays = (block.values.numpy(), block.columns.numpy().astype(np.int32), block.offsets.numpy())
        return cls(sp.csr_matrix(arrays, shape=(block.n_cells, block.n_features)))

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return self._matrix.shape[0]

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self._matrix.shape[1] if self._map is None else self._map.n_features

    @property
    def in_memory(self) -> bool:
        """Yes."""
        return True

    def take(self, rows: NDArray[np.integer]) -> CountBlock:
        """Read some rows; see :meth:`CountSource.take`."""
        rows = _check_rows(rows, self.n_cells)
        part = self._matrix[rows]
        taken = CompressedRows(part.data, part.indices, part.indptr)
        if self._repeats:
            taken = sum_repeats(taken, part.shape[1])
        return to_block(taken, self._map, self.n_features)

    def sampled(self, n: int) -> NDArray[Any]:
        """Return about ``n`` stored values from all over the matrix."""
        return self._matrix.data[:: max(1, len(self._matrix.data) // n)].copy()


def _check_compressed(matrix: Any, n_minor: int) -> None:
    """Refuse a sparse matrix of a damaged file, which scipy would read outside of its memory."""
    check_offsets(matrix.indptr, min(len(matrix.indices), len(matrix.data)))
    check_columns(matrix.indices[: matrix.indptr[-1]], n_minor)


class RowReader(Protocol):
    """How rows are read from one kind of file."""

    shape: tuple[int, int]

    def read(self, rows: NDArray[np.int64]) -> CompressedRows:
        """Read rows given in increasing order without repeats."""
        ...


class SparseReader:
    """Rows of an on-disk CSR matrix (the group of an ``anndata.abc.CSRDataset``)."""

    def __init__(self, dataset: Any) -> None:
        group = dataset.group
        self.shape = (int(dataset.shape[0]), int(dataset.shape[1]))
        self._values, self._columns = group["data"], group["indices"]
        self._offsets: NDArray[np.int64] = np.asarray(group["indptr"][:]).astype(np.int64)
        check_offsets(self._offsets, min(len(self._values), len(self._columns)))

    def read(self, rows: NDArray[np.int64]) -> CompressedRows:
        """Read rows given in increasing order without repeats."""
        starts, ends = self._offsets[rows], self._offsets[rows + 1]
        values: list[NDArray[Any]] = []
        columns: list[NDArray[Any]] = []
        moved = np.empty_like(starts)
        filled = 0
        for first, last in runs(starts, ends, _GAP):
            low, high = starts[first], ends[last - 1]
            values.append(self._values[low:high])
            columns.append(self._columns[low:high])
            moved[first:last] = starts[first:last] - low + filled
            filled += high - low
        if not values:
            return CompressedRows(np.empty(0, np.float32), np.empty(0, np.int64), np.zeros(1, np.int64))
        read = np.concatenate(columns)
        check_columns(read, self.shape[1])
        taken = gather(np.concatenate(values), read, moved, ends - starts)
        return sum_repeats(taken, self.shape[1])


class DenseReader:
    """Rows of an on-disk dense matrix (an ``h5py.Dataset``)."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        _check_dtype(dataset)
        self.shape = (int(dataset.shape[0]), int(dataset.shape[1]))
        self._dataset = dataset

    def read(self, rows: NDArray[np.int64]) -> CompressedRows:
        """Read rows given in increasing order without repeats."""
        gap = _GAP // max(1, self.shape[1])
        parts = [
            self._dataset[rows[first] : rows[last - 1] + 1][rows[first:last] - rows[first]]
            for first, last in runs(rows, rows + 1, gap)
        ]
        matrix = compress(np.concatenate(parts) if parts else np.empty((0, self.shape[1]), np.float32))
        return CompressedRows(matrix.data, matrix.indices, matrix.indptr)


class BackedSource(CountSource):
    """A matrix in a file, of which only the rows of a block are in memory.

    Parameters
    ----------
    reader
        Reads rows of the file.
    columns
        Align the columns of the file to a model's; ``None`` where they are the model's.
    subset
        Rows of the file that make up the matrix (a view of a backed AnnData), shape ``(cells,)``; ``None`` for all.
    """

    def __init__(
        self, reader: RowReader, columns: ColumnMap | None = None, subset: NDArray[np.int64] | None = None
    ) -> None:
        self._reader = reader
        self._map = columns
        self._subset = subset

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return self._reader.shape[0] if self._subset is None else len(self._subset)

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self._reader.shape[1] if self._map is None else self._map.n_features

    @property
    def in_memory(self) -> bool:
        """No."""
        return False

    def take(self, rows: NDArray[np.integer]) -> CountBlock:
        """Read some rows; see :meth:`CountSource.take`."""
        rows = _check_rows(rows, self.n_cells)
        if self._subset is not None:
            rows = self._subset[rows]
        # A file is read forwards, each row once; the order asked for is restored from the buffer.
        distinct, order = np.unique(rows, return_inverse=True)
        read = self._reader.read(distinct)
        starts, lengths = read.offsets[:-1], np.diff(read.offsets)
        return to_block(gather(read.values, read.columns, starts[order], lengths[order]), self._map, self.n_features)


class UnpairedSource(CountSource):
    """A matrix that has rows for some of the cells only; the rows of the others are empty.

    Parameters
    ----------
    source
        The matrix.
    rows
        Its row for each cell, -1 where the cell has none; shape ``(cells,)``.
    """

    def __init__(self, source: CountSource, rows: NDArray[np.int64]) -> None:
        self._source = source
        self._rows = rows

    @property
    def n_cells(self) -> int:
        """Number of cells, those without a row included."""
        return len(self._rows)

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self._source.n_features

    @property
    def in_memory(self) -> bool:
        """Whether the matrix is."""
        return self._source.in_memory

    def sampled(self, n: int) -> NDArray[Any]:
        """Return about ``n`` stored values from all over the matrix."""
        return self._source.sampled(n)

    def take(self, rows: NDArray[np.integer]) -> CountBlock:
        """Read some rows; see :meth:`CountSource.take`."""
        at = self._rows[_check_rows(rows, self.n_cells)]
        block = self._source.take(at[at >= 0])
        lengths = torch.zeros(len(at), dtype=torch.int64)
        lengths[torch.from_numpy(at >= 0)] = block.offsets.diff()
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return CountBlock(block.values, block.columns, offsets, block.n_features)


def open_source(adata: AnnData, location: str, columns: ColumnMap | None = None, owner: str = "adata") -> CountSource:
    """Open the count matrix at a location of an AnnData, without reading it where it lies in a file.

    Parameters
    ----------
    adata
        In memory or backed, a view or not.
    location
        ``"X"``, ``"layers/<key>"`` or ``"obsm/<key>"``.
    columns
        Align its columns to a model's; ``None`` where they are the model's.
    owner
        How a user spells the AnnData, for messages.

    Raises
    ------
    UnknownNameError
        If there is no such layer or entry of ``obsm``.
    DataError
        If there is no matrix at the location, or one that cannot be read by row.
    """
    if location == "X" and adata.is_view and adata.isbacked:
        return _open_backed_view(adata, columns)
    matrix = matrix_at(adata, location, owner)
    where = location_text(location, owner)
    if isinstance(matrix, CSCDataset):
        message = (
            f"{where} is a backed matrix in CSC format, which cannot be read by cell. Store it as CSR, "
            f"`{owner} = {owner}.to_memory(); {where} = {where}.tocsr(); {owner}.write_h5ad(...)`, or work in memory."
        )
        raise DataError(message)
    if isinstance(matrix, CSRDataset):
        return BackedSource(SparseReader(matrix), columns)
    if isinstance(matrix, h5py.Dataset):
        return BackedSource(DenseReader(matrix), columns)
    if isinstance(matrix, pd.DataFrame):
        numeric = all(pd.api.types.is_numeric_dtype(dtype) for dtype in matrix.dtypes)
        # Missing values of pandas' own dtypes become NaN, which every reader knows.
        matrix = matrix.to_numpy(np.float32, na_value=np.nan) if numeric else matrix.to_numpy()
    if sp.issparse(matrix) or isinstance(matrix, np.ndarray):
        return InMemorySource(matrix, columns)
    message = (
        f"{where} is a {type(matrix).__module__}.{type(matrix).__name__}, which countvi cannot read; "
        "a numpy array, a scipy sparse matrix or a backed .h5ad was expected."
    )
    raise DataError(message)


def location_text(location: str, owner: str = "adata") -> str:
    """Spell a location the way a user would: ``adata.X``, ``adata.layers['counts']``."""
    if location == "X":
        return f"{owner}.X"
    store, _, key = location.partition("/")
    return f"{owner}.{store}[{key!r}]"


def matrix_at(adata: AnnData, location: str, owner: str = "adata") -> Any:
    """Return the matrix at a location as AnnData gives it; errors as in :func:`open_source`."""
    if location == "X":
        if adata.X is None:
            message = f"{owner}.X is empty (None); pass `layer=` to say where the counts are."
            raise DataError(message)
        return adata.X
    store, _, key = location.partition("/")
    entries = getattr(adata, store)
    if key not in entries:
        known = list(entries)
        has = f"it has {shorten(known)}" if known else f"it has no {'layers' if store == 'layers' else 'entries'}"
        advice = f" layer=None stands for {owner}.X." if store == "layers" else ""
        message = f"{owner}.{store} has no {key!r}; {has}.{did_you_mean(key, known)}{advice}"
        raise UnknownNameError(message)
    return entries[key]


def _open_backed_view(adata: AnnData, columns: ColumnMap | None) -> CountSource:
    # `view.X` would load the rows of the view; AnnData has no public name for what a view points at.
    parent: Any = adata._adata_ref
    subset = np.arange(parent.n_obs)[adata._oidx]
    kept = np.arange(parent.n_vars)[adata._vidx]
    if columns is not None or not np.array_equal(kept, np.arange(parent.n_vars)):
        lookup = np.full(parent.n_vars, -1, dtype=np.int64)
        lookup[kept] = np.arange(len(kept)) if columns is None else columns.lookup
        columns = ColumnMap(lookup, len(kept) if columns is None else columns.n_features)
    whole = open_source(parent, "X")
    assert isinstance(whole, BackedSource)
    return BackedSource(whole._reader, columns, subset)


def _check_dtype(matrix: Any) -> None:
    if np.dtype(matrix.dtype).kind not in "biuf":
        message = f"The counts have dtype {matrix.dtype}; integers or floating-point numbers were expected."
        raise DataError(message)
    if isinstance(matrix, np.ma.MaskedArray):
        message = "The counts are a masked array, and models know no missing counts; fill them, `adata.X.filled(0)`."
        raise DataError(message)


def _check_rows(rows: NDArray[np.integer], n_cells: int) -> NDArray[np.int64]:
    rows = np.asarray(rows)
    if rows.size == 0:
        return np.empty(0, np.int64)
    assert rows.ndim == 1, f"rows must be one-dimensional, got shape {rows.shape}"
    assert rows.dtype.kind in "iu", f"rows must be integers, got {rows.dtype}"
    assert rows.min() >= 0, f"rows must not be negative, got {rows.min()}"
    assert rows.max() < n_cells, f"rows must be below {n_cells}, got {rows.max()}"
    return rows.astype(np.int64, copy=False)
