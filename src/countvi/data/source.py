"""Count matrices in memory and in files, read as sparse blocks of rows.

A minibatch costs one numpy gather of the stored entries of its rows. The matrix itself is never copied to change its
dtype or the order of its genes: both are done to the block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
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
    check_compressed,
    check_indices,
    check_offsets,
    compress,
    gather,
    has_repeats,
    runs,
    sum_repeats,
    to_block,
)
from countvi.errors import DataError, DataWarning, UnknownNameError, did_you_mean, shorten, warn

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
    where
        What messages call it.
    trusted
        Whether its arrays are known to fit each other.

    Raises
    ------
    DataError
        If the matrix is not made of real numbers, or its arrays do not fit each other.
    """

    def __init__(
        self,
        matrix: Any,
        columns: ColumnMap | None = None,
        where: str = "The count matrix",
        *,
        trusted: bool = False,
    ) -> None:
        _check_dtype(matrix, where)
        self._map = columns
        if not trusted and sp.issparse(matrix) and matrix.format in ("csr", "csc"):
            check_compressed(matrix, where)
        if not sp.issparse(matrix):
            matrix = compress(np.asarray(matrix))
        elif matrix.format != "csr":
            message = (
                f"The counts are stored as {matrix.format.upper()}, which is slow to read by cell; a CSR copy is "
                "made. Convert them once with `.tocsr()` to avoid this."
            )
            warn(message, DataWarning)
            matrix = matrix.tocsr()
        if matrix.dtype == np.float16 or not matrix.dtype.isnative:  # which scipy cannot index
            matrix = matrix.astype(np.float32)
        # The plain class, whatever the user's: a view's own class would index the AnnData behind it.
        self._matrix: Any = sp.csr_matrix(matrix)
        self._repeats = has_repeats(self._matrix)

    @classmethod
    def from_block(cls, block: CountBlock) -> InMemorySource:
        """Keep the rows of a block."""
        arrays = (block.values.numpy(), block.columns.numpy().astype(np.int32), block.offsets.numpy())
        return cls(sp.csr_matrix(arrays, shape=(block.n_cells, block.n_features)), trusted=True)

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


class RowReader(Protocol):
    """How rows are read from one kind of file."""

    shape: tuple[int, int]

    def read(self, rows: NDArray[np.int64]) -> CompressedRows:
        """Read rows given in increasing order without repeats."""
        ...


class SparseReader:
    """Rows of an on-disk CSR matrix (the group of an ``anndata.abc.CSRDataset``).

    Parameters
    ----------
    dataset
        The matrix.
    where
        What messages call it.
    reopen
        Gives the matrix again after its file was closed.

    Raises
    ------
    DataError
        If the arrays of the matrix do not fit each other.
    """

    def __init__(self, dataset: Any, where: str = "The count matrix", reopen: Callable[[], Any] | None = None) -> None:
        self.shape = (int(dataset.shape[0]), int(dataset.shape[1]))
        self._where, self._reopen = where, reopen
        self._open(dataset)

    def _open(self, dataset: Any) -> None:
        group = dataset.group
        self._values, self._columns = group["data"], group["indices"]
        n_entries = min(self._values.shape[0], self._columns.shape[0])
        self._offsets: NDArray[np.int64] = np.asarray(group["indptr"][:]).astype(np.int64)
        check_offsets(self._offsets, self.shape[0], n_entries, f"{self._where} ({group.file.filename})")

    def read(self, rows: NDArray[np.int64]) -> CompressedRows:
        """Read rows given in increasing order without repeats."""
        if not self._values:
            self._open(_opened_again(self._reopen, self.shape, CSRDataset, self._where))
        starts, ends = self._offsets[rows], self._offsets[rows + 1]
        values: list[NDArray[Any]] = []
        columns: list[NDArray[Any]] = []
        moved = np.empty_like(starts)
        filled = 0
        for first, last in runs(starts, ends, _GAP):
            low, high = starts[first], ends[last - 1]
            values.append(self._values[low:high])
            columns.append(self._columns[low:high])
            check_indices(columns[-1], self.shape[1], f"{self._where} ({self._values.file.filename})")
            moved[first:last] = starts[first:last] - low + filled
            filled += high - low
        if not values:
            return CompressedRows(np.empty(0, np.float32), np.empty(0, np.int64), np.zeros(1, np.int64))
        taken = gather(np.concatenate(values), np.concatenate(columns), moved, ends - starts)
        return sum_repeats(taken, self.shape[1])


class DenseReader:
    """Rows of an on-disk dense matrix (an ``h5py.Dataset``); parameters as of :class:`SparseReader`."""

    def __init__(self, dataset: h5py.Dataset, where: str, reopen: Callable[[], Any] | None = None) -> None:
        _check_dtype(dataset, where)
        self.shape = (int(dataset.shape[0]), int(dataset.shape[1]))
        self._where, self._reopen = where, reopen
        self._dataset = dataset

    def read(self, rows: NDArray[np.int64]) -> CompressedRows:
        """Read rows given in increasing order without repeats."""
        if not self._dataset:
            self._dataset = _opened_again(self._reopen, self.shape, h5py.Dataset, self._where)
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
        return BackedSource(SparseReader(matrix, where, lambda: matrix_at(adata, location, owner)), columns)
    if isinstance(matrix, h5py.Dataset):
        return BackedSource(DenseReader(matrix, where, lambda: matrix_at(adata, location, owner)), columns)
    if isinstance(matrix, pd.DataFrame):
        matrix = _of_frame(matrix, where)
    if sp.issparse(matrix) or isinstance(matrix, np.ndarray):
        return InMemorySource(matrix, columns, where)
    kind = type(matrix)
    message = (
        f"{where} is a {kind.__module__}.{kind.__name__}, which countvi cannot read; "
        "a numpy array, a scipy sparse matrix or a backed .h5ad was expected."
    )
    if kind.__module__.partition(".")[0] == "dask":
        message = (
            f"{where} is a dask array, which models do not read; `{where} = {where}.compute()` reads it into memory."
        )
    raise DataError(message)


def _opened_again(reopen: Callable[[], Any] | None, shape: tuple[int, int], kind: Any, where: str) -> Any:
    """The matrix of a file that was closed, as ``adata.write()`` does; AnnData opens its file when asked for ``X``."""
    try:
        matrix: Any = None if reopen is None else reopen()
    except (OSError, KeyError, ValueError, RuntimeError):
        matrix = None
    if not isinstance(matrix, kind) or tuple(matrix.shape) != shape:
        message = (
            f"The file of {where} was closed or changed after the model read it; open it again, "
            "`adata = anndata.read_h5ad(..., backed='r')`, and assign it, `model.adata = adata`."
        )
        raise DataError(message)
    return matrix


def _of_frame(frame: pd.DataFrame, where: str) -> NDArray[np.float32]:
    others = [f"{n} ({dtype})" for n, dtype in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if others:
        message = (
            f"{where} has columns that do not hold numbers: {shorten(others)}; drop them, `{where} = "
            f"{where}.drop(columns=[...])`, or make numbers of them, `.astype(float)`."
        )
        raise DataError(message)
    # Missing values of pandas' own dtypes become NaN, which every reader knows.
    return frame.to_numpy(np.float32, na_value=np.nan)


def location_text(location: str, owner: str = "adata") -> str:
    """Spell a location the way a user would: ``adata.X``, ``adata.layers['counts']``."""
    if location == "X":
        return f"{owner}.X"
    store, _, key = location.partition("/")
    return f"{owner}.{store}[{key!r}]"


def matrix_at(adata: AnnData, location: str, owner: str = "adata", *, choosing: bool = False) -> Any:
    """Return the matrix at a location as AnnData gives it; errors as in :func:`open_source`.

    Parameters
    ----------
    adata, location, owner
        See :func:`open_source`.
    choosing
        Whether a set-up chooses the location, for the advice in messages: afterwards there is nothing to choose.
    """
    if location == "X":
        if adata.X is None:
            advice = "pass a layer to say where the counts are" if choosing else "the model reads its counts there"
            message = f"{owner}.X is empty (None); {advice}."
            raise DataError(message)
        return adata.X
    store, _, key = location.partition("/")
    entries = getattr(adata, store)
    if key not in entries:
        known = list(entries)
        has = f"it has {shorten(known)}" if known else f"it has no {'layers' if store == 'layers' else 'entries'}"
        advice = f" Without a layer {owner}.X is read." if store == "layers" else ""
        if not choosing:
            where = location_text(location, owner)
            advice = f" The model reads its counts from {where}: put them there, `{where} = ...`."
            advice = advice.replace("...", f"{owner}.X") if store == "layers" else advice
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


def _check_dtype(matrix: Any, where: str) -> None:
    if np.dtype(matrix.dtype).kind not in "biuf":
        message = (
            f"{where} has values of dtype {matrix.dtype}; integers or floating-point numbers were expected. If they "
            f"are numbers, `{where} = {where}.astype(float)`."
        )
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
