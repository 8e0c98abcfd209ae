"""Checks of counts: one pass over a matrix, and messages that say what is wrong and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset, CSRDataset

from countvi.data.container import part_of, part_text
from countvi.data.source import location_text
from countvi.errors import DataError, DataWarning, warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from countvi.batch import CountBlock
    from countvi.data.container import Container
    from countvi.data.registry import CountMatrix
    from countvi.data.source import CountSource

_LOG_MAXIMUM = 20.0
"""The logarithm of a count is below this: 2^20 and e^20 are more molecules than a cell has."""
_SAMPLE = 1 << 16
"""Entries looked at to say whether another matrix looks like raw counts."""


@dataclass(frozen=True, eq=False)
class CountSummary:
    """What one pass over a count matrix found.

    Parameters
    ----------
    n_cells, n_features
        Shape of the matrix.
    n_stored
        Number of stored entries.
    n_negative
        Number of entries below 0.
    n_nonfinite
        Number of NaN and infinite entries.
    n_fractional
        Number of finite entries that are not whole numbers.
    maximum
        Largest finite entry, 0 if nothing is stored.
    cell_totals
        Sum of each row, shape ``(n_cells,)``, float64.
    feature_totals
        Sum of each column, shape ``(n_features,)``, float64.
    first_negative, first_nonfinite
        Row and column of the first such entry, or ``None``.
    present
        Which cells were measured, shape ``(n_cells,)``; ``None`` for all.
    """

    n_cells: int
    n_features: int
    n_stored: int
    n_negative: int
    n_nonfinite: int
    n_fractional: int
    maximum: float
    cell_totals: NDArray[np.float64]
    feature_totals: NDArray[np.float64]
    first_negative: tuple[int, int] | None = None
    first_nonfinite: tuple[int, int] | None = None
    present: NDArray[np.bool_] | None = None

    @cached_property
    def n_measured(self) -> int:
        """Number of cells that were measured."""
        return self.n_cells if self.present is None else int(self.present.sum())

    @cached_property
    def n_empty_cells(self) -> int:
        """Number of cells that were measured and whose counts sum to 0."""
        return int((self.cell_totals == 0).sum()) - (self.n_cells - self.n_measured)

    @cached_property
    def n_empty_features(self) -> int:
        """Number of features whose counts sum to 0."""
        return int((self.feature_totals == 0).sum())

    @property
    def looks_log_transformed(self) -> bool:
        """Whether most entries are fractional, none is negative and all are as small as logarithms."""
        return self.n_fractional > self.n_stored / 2 and self.n_negative == 0 and self.maximum < _LOG_MAXIMUM


def summarize(source: CountSource, size: int = 1024, present: NDArray[np.bool_] | None = None) -> CountSummary:
    """Read all rows of a matrix once.

    Parameters
    ----------
    source
        The matrix.
    size
        Number of rows in memory at a time.
    present
        Which cells were measured, shape ``(n_cells,)``; ``None`` for all. The rows of the others are empty.
    """
    cell_totals: list[NDArray[Any]] = []
    maximum = -np.inf
    feature_totals = np.zeros(source.n_features)
    n_stored = n_fractional = start = 0
    n_bad = {"negative": 0, "nonfinite": 0}
    first: dict[str, tuple[int, int] | None] = dict.fromkeys(n_bad)
    for block in source.blocks(size):
        values, columns = block.values.numpy(), block.columns.numpy()
        finite = np.isfinite(values)
        n_stored += len(values)
        n_fractional += int((values[finite] != np.rint(values[finite])).sum())
        maximum = max(maximum, float(values[finite].max(initial=-np.inf)))
        for name, bad in (("negative", values < 0), ("nonfinite", ~finite)):
            if bad.any():
                n_bad[name] += int(bad.sum())
                first[name] = first[name] or _first(block, bad, start)
        rows = block.rows.numpy()
        cell_totals.append(np.bincount(rows, weights=values, minlength=block.n_cells))
        feature_totals += np.bincount(columns, weights=values, minlength=source.n_features)
        start += block.n_cells
    return CountSummary(
        n_cells=source.n_cells,
        n_features=source.n_features,
        n_stored=n_stored,
        n_negative=n_bad["negative"],
        n_nonfinite=n_bad["nonfinite"],
        n_fractional=n_fractional,
        maximum=maximum if np.isfinite(maximum) else 0.0,
        cell_totals=np.concatenate(cell_totals).astype(np.float64),
        feature_totals=feature_totals,
        first_negative=first["negative"],
        first_nonfinite=first["nonfinite"],
        present=present,
    )


def check_counts(
    summary: CountSummary,
    data: Container,
    modality: CountMatrix,
    *,
    allow_negative: bool = False,
    allow_fractional: bool = False,
) -> None:
    """Refuse counts that no model can use, and warn of those that are probably not meant.

    Parameters
    ----------
    summary
        What :func:`summarize` found.
    data
        Where the counts come from, for names and for other matrices that could have been meant.
    modality
        Which counts they are.
    allow_negative, allow_fractional
        Accept numbers that are not counts (the normal likelihood).

    Raises
    ------
    DataError
        If there are NaN, infinite or negative entries, or no counts at all.

    Warns
    -----
    DataWarning
        If entries are not whole numbers, or if cells or features are all zero.
    """
    where = location_text(modality.location, part_text(modality.part))
    genes = f"{modality.noun}s"
    if summary.n_nonfinite:
        message = (
            f"{where} has {summary.n_nonfinite:,} NaN or infinite values, the first in "
            f"{_place(summary.first_nonfinite, data, modality)}; counts must be finite. If they stand for missing "
            f"measurements, remove these cells or {genes}; otherwise check how the matrix was made."
        )
        raise DataError(message)
    if summary.n_negative and not allow_negative:
        message = (
            f"{where} has {summary.n_negative:,} negative values, the first in "
            f"{_place(summary.first_negative, data, modality)}; counts must not be negative (is it scaled data?). "
            f"{_advice(data, modality)}"
        )
        raise DataError(message)
    if summary.n_measured and modality.gaps is None and not summary.maximum and not summary.n_negative:
        message = f"{where} has no counts: all are zero. {_advice(data, modality)}"
        warn(message, DataWarning)
        return
    if summary.n_fractional and not allow_fractional:
        shape = "and looks log-transformed " if summary.looks_log_transformed else ""
        message = (
            f"{where} has {summary.n_fractional:,} values that are not whole numbers {shape}(max "
            f"{summary.maximum:.1f}); raw counts are expected. {_advice(data, modality)}"
        )
        warn(message, DataWarning)
    if summary.n_empty_cells and not summary.n_negative:
        message = (
            f"{summary.n_empty_cells:,} of {summary.n_measured:,} cells have no counts in {where}: nothing can be "
            f"learned from them. {_filter(modality, 'cells')}"
        )
        warn(message, DataWarning)
    if summary.n_empty_features and not summary.n_negative:
        message = (
            f"{summary.n_empty_features:,} of {summary.n_features:,} {genes} have no counts in {where}: they cost time "
            f"and tell nothing. {_filter(modality, 'genes')}"
        )
        warn(message, DataWarning)


def _first(block: CountBlock, bad: NDArray[np.bool_], start: int) -> tuple[int, int]:
    entry = int(np.argmax(bad))
    return start + int(block.rows[entry]), int(block.columns[entry])


def _place(place: tuple[int, int] | None, data: Container, modality: CountMatrix) -> str:
    assert place is not None
    cell, feature = place
    return f"cell {str(data.obs_names[cell])!r}, {modality.noun} {modality.feature_names[feature]!r}"


def _filter(modality: CountMatrix, axis: str) -> str:
    owner, location = part_text(modality.part), modality.location
    where = location_text(location, owner)
    if modality.part is not None and axis == "cells":
        return (
            f"Leave cells that were not measured in this modality out of {owner}, and the model knows that; out of the "
            "whole MuData if the model needs it in every cell."
        )
    if modality.part is not None or location.startswith("obsm/"):
        return f"Leave them out of {where}."
    if location == "X":
        return f"Remove them with `sc.pp.filter_{axis}(adata, min_counts=1)`."
    if axis == "cells":
        return f"Remove them with `adata = adata[np.asarray({where}.sum(axis=1)).ravel() > 0].copy()`."
    return f"Remove them with `adata = adata[:, np.asarray({where}.sum(axis=0)).ravel() > 0].copy()`."


def _advice(data: Container, modality: CountMatrix) -> str:
    """Name the other matrices of the AnnData that look like raw counts, and how to choose them."""
    adata, owner = part_of(data, modality), part_text(modality.part)
    if adata is None or modality.location.startswith("obsm/"):
        return "Raw counts must be given."

    def choose(layer: str | None) -> str:
        return f"pass layer={layer!r}" if modality.part is None else f"pass layer={{{modality.name!r}: {layer!r}}}"

    found = []
    if modality.location != "X" and _looks_raw(adata.X):
        found.append(f"{owner}.X looks like raw integer counts: {choose(None)}")
    found += [
        f"{owner}.layers[{key!r}] looks like raw integer counts: {choose(key)}"
        for key in adata.layers
        if modality.location != f"layers/{key}" and _looks_raw(adata.layers[key])
    ]
    if adata.raw is not None and _looks_raw(adata.raw.X):
        found.append(
            f"{owner}.raw.X looks like raw integer counts: "
            f"`{owner}.layers['counts'] = {owner}.raw[:, {owner}.var_names].X`, then {choose('counts')}"
        )
    if not found:
        return "No other matrix of this AnnData looks like raw counts."
    return "; ".join(found) + "."


def _looks_raw(matrix: Any) -> bool:
    if sp.issparse(matrix):
        sample = matrix.data[:_SAMPLE]
    elif isinstance(matrix, CSRDataset | CSCDataset):
        stored: Any = matrix
        sample = stored.group["data"][:_SAMPLE]
    elif isinstance(matrix, np.ndarray | h5py.Dataset):
        sample = matrix[: max(1, _SAMPLE // max(1, matrix.shape[1]))]
    else:
        return False
    sample = np.asarray(sample)
    if sample.dtype.kind not in "iuf" or not sample.any():
        return False
    return bool(np.isfinite(sample).all() and (sample >= 0).all() and (sample == np.rint(sample)).all())
