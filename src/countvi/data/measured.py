"""Missing entries of a matrix: NaN, masks, panels and missing columns become one pattern per cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from countvi.batch import CountBlock
from countvi.data.container import part_of, part_text
from countvi.data.features import feature_names
from countvi.data.source import CountSource, location_text, matrix_at
from countvi.errors import DataError, MismatchError, shorten

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from countvi.data.container import Container
    from countvi.data.registry import CountMatrix


@dataclass(frozen=True, eq=False)
class Patterns:
    """Which features were measured in which cells. Cells share a few patterns as a rule: their panels.

    Parameters
    ----------
    table
        The patterns that occur, shape ``(patterns, features)``, bool.
    code
        Pattern of each cell, shape ``(cells,)``, int64.
    """

    table: Tensor
    code: Tensor

    @classmethod
    def from_mask(cls, measured: NDArray[np.bool_]) -> Patterns:
        """Find the patterns of a mask, ``(cells, features)``."""
        known: dict[bytes, int] = {}
        code = _number(measured, known)
        return cls(_unpacked(known, measured.shape[1]), torch.from_numpy(code))

    @property
    def complete(self) -> bool:
        """Whether everything was measured in all cells."""
        return bool(self.table.all())

    def some(self) -> Tensor:
        """Return which cells anything was measured in, shape ``(cells,)``, bool."""
        return self.table.any(1)[self.code]

    def of(self, index: Tensor) -> Tensor:
        """Return what was measured in some cells, shape ``(cells, features)``, bool."""
        return self.table[self.code[index]]

    def cells(self, index: Tensor) -> Patterns:
        """Return the patterns of some cells."""
        return Patterns(self.table, self.code[index])

    def lacking(self, levels: Tensor, n_levels: int) -> Tensor:
        """Return which features no cell of a level has, shape ``(n_levels, features)``, bool.

        Parameters
        ----------
        levels
            Level of each cell, shape ``(cells,)``, int64. A level without cells lacks all.
        n_levels
            Number of levels.
        """
        patterns = (self.code[levels == level].unique() for level in range(n_levels))
        return torch.stack([~self.table[those].any(0) for those in patterns])

    def hash_into(self, digest: Any) -> None:
        """Feed what was measured in each cell to a hash; how the patterns are numbered makes no difference."""
        packed = np.packbits(self.table.numpy(), axis=1)
        for codes in self.code.split(1 << 16):
            digest.update(packed[codes.numpy()].tobytes())


class MaskedSource(CountSource):
    """A matrix of which only the entries that were measured are read.

    Parameters
    ----------
    source
        The matrix.
    patterns
        What was measured.
    """

    def __init__(self, source: CountSource, patterns: Patterns) -> None:
        self._source = source
        self._patterns = patterns

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return self._source.n_cells

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
        block = self._source.take(rows)
        measured = self._patterns.of(torch.from_numpy(np.asarray(rows, dtype=np.int64)))
        keep = measured.view(-1)[block.flat_index]
        if bool(keep.all()):
            return block
        before = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
        return CountBlock(block.values[keep], block.columns[keep], before[block.offsets], block.n_features)


def patterns_of(
    data: Container,
    modality: CountMatrix,
    source: CountSource,
    levels: NDArray[np.int64],
    rows: NDArray[np.int64] | None,
) -> Patterns | None:
    """Find out what was measured, in one pass over a matrix.

    Parameters
    ----------
    data
        The data.
    modality
        Which matrix; it has gaps.
    source
        Its rows, one for each cell.
    levels
        Code of the panel of each cell, shape ``(cells,)``.
    rows
        Row of each cell in the modality, -1 where it is not there; ``None`` where all are, in order.

    Returns
    -------
    Patterns or None
        ``None`` if everything was measured.

    Raises
    ------
    UnknownNameError
        If there is no such mask.
    DataError
        If the mask is not made of booleans.
    MismatchError
        If it has another shape than the matrix.
    """
    assert modality.gaps is not None
    n_features = modality.n_features
    by_level = np.ones((max(len(modality.gaps.unmeasured), int(levels.max(initial=0)) + 1), n_features), dtype=bool)
    for level, features in enumerate(modality.gaps.unmeasured):
        by_level[level, list(features)] = False
    by_level &= _columns_there(data, modality)
    mask = _read_mask(data, modality)
    known: dict[bytes, int] = {}
    codes, start = [np.empty(0, np.int64)], 0
    for block in source.blocks():
        stop = start + block.n_cells
        measured = by_level[levels[start:stop]]
        measured[block.rows[block.values.isnan()].numpy(), block.columns[block.values.isnan()].numpy()] = False
        here = np.arange(start, stop) if rows is None else rows[start:stop]
        measured[here < 0] = False
        if mask is not None:
            measured[here >= 0] &= mask[here[here >= 0]]
        codes.append(_number(measured, known))
        start = stop
    patterns = Patterns(_unpacked(known, n_features), torch.from_numpy(np.concatenate(codes)))
    return None if patterns.complete else patterns


def unmeasured_by_level(source: CountSource, levels: NDArray[np.int64], n_levels: int) -> tuple[tuple[int, ...], ...]:
    """Find the features without any count in the cells of a level that do have counts in other levels.

    Parameters
    ----------
    source
        The matrix.
    levels
        Code of the panel of each cell, shape ``(cells,)``.
    n_levels
        Number of panels.

    Returns
    -------
    tuple
        Positions of such features for each level; empty if there are none. A feature without counts anywhere has been
        measured, as far as counts can tell.
    """
    sums = np.zeros((n_levels, source.n_features))
    start = 0
    for block in source.blocks():
        at = levels[start : start + block.n_cells][block.rows.numpy()]
        np.add.at(sums, (at, block.columns.numpy()), block.values.double().numpy())
        start += block.n_cells
    empty = (sums == 0) & (sums.sum(0) > 0)
    if not empty.any():
        return ()
    return tuple(tuple(np.flatnonzero(level).tolist()) for level in empty)


def _columns_there(data: Container, modality: CountMatrix) -> NDArray[np.bool_]:
    """Which of the model's features the data have a column for."""
    adata = part_of(data, modality)
    if adata is None or not adata.n_obs:
        return np.zeros(modality.n_features, dtype=bool)
    return pd.Index(modality.feature_names).isin(feature_names(adata, modality.location, modality.names_key))


def _read_mask(data: Container, modality: CountMatrix) -> NDArray[np.bool_] | None:
    """The mask of a modality, ``(rows, features)`` in the model's order; ``None`` without one."""
    assert modality.gaps is not None
    location, adata = modality.gaps.mask, part_of(data, modality)
    if location is None or adata is None or not adata.n_obs:
        return None
    owner = part_text(modality.part)
    where = location_text(location, owner)
    given: Any = matrix_at(adata, location, owner)
    there = feature_names(adata, modality.location, modality.names_key)
    names = [str(name) for name in given.columns] if isinstance(given, pd.DataFrame) else there
    values = given.toarray() if sp.issparse(given) else np.asarray(given)
    if values.ndim != 2 or values.shape != (adata.n_obs, len(names)):
        message = (
            f"{where} is a mask of shape {values.shape}; one entry per cell and {modality.noun} is expected, "
            f"{(adata.n_obs, len(names))}."
        )
        raise MismatchError(message)
    if values.dtype != bool and not (values.dtype.kind in "iuf" and bool(np.isin(values, (0, 1)).all())):
        message = f"{where} must be a mask, True where a {modality.noun} was measured; got values of {values.dtype}."
        raise DataError(message)
    position = pd.Index(names).get_indexer(pd.Index(modality.feature_names))
    lacking = [n for n, at in zip(modality.feature_names, position, strict=True) if at < 0 and n in there]
    if lacking:
        message = (
            f"{where} has no column for {len(lacking):,} {modality.noun}s that were counted: {shorten(lacking)}. Give "
            "the mask a column for each."
        )
        raise MismatchError(message)
    return values.astype(bool)[:, position]


def _number(measured: NDArray[np.bool_], known: dict[bytes, int]) -> NDArray[np.int64]:
    """Number the rows by their pattern; patterns not seen before get new numbers."""
    packed = np.packbits(measured, axis=1)
    found, inverse = np.unique(packed, axis=0, return_inverse=True)
    numbers = [known.setdefault(row.tobytes(), len(known)) for row in found]
    return np.asarray(numbers, dtype=np.int64)[inverse.reshape(-1)]


def _unpacked(known: dict[bytes, int], n_features: int) -> Tensor:
    """The table of patterns that were numbered."""
    table = np.stack([np.unpackbits(np.frombuffer(key, np.uint8), count=n_features) for key in known])
    return torch.from_numpy(table.astype(bool))
