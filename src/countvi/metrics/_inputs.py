"""Checks that all scores share, and neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from countvi.errors import DataError, MismatchError, OptionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def check_states(states: ArrayLike) -> NDArray[np.float64]:
    """Return cell states as numbers in double precision, ``(cells, dimensions)``.

    Raises
    ------
    DataError
        If they are not a finite matrix.
    """
    array = np.asarray(states, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        message = f"Cell states must be a matrix of cells x dimensions; got shape {array.shape}."
        raise DataError(message)
    if not np.isfinite(array).all():
        n_bad = int((~np.isfinite(array)).any(1).sum())
        message = f"Cell states must be finite; those of {n_bad:,} cells are not."
        raise DataError(message)
    return array


def check_levels(levels: ArrayLike, n_cells: int, name: str) -> NDArray[np.int64]:
    """Return the code of each cell's label or batch, ``(cells,)``.

    Raises
    ------
    MismatchError
        If there is not one per cell.
    DataError
        If some are missing.
    """
    values = np.asarray(levels, dtype=object)
    if values.shape != (n_cells,):
        message = f"{name} must have one value per cell ({n_cells:,}); got shape {values.shape}."
        raise MismatchError(message)
    n_missing = sum(_is_missing(value) for value in values)
    if n_missing:
        message = f"{name} is missing in {n_missing:,} of {n_cells:,} cells; leave these cells out."
        raise DataError(message)
    return np.unique(values.astype(str), return_inverse=True)[1].astype(np.int64)


def _is_missing(value: object) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA is neither equal nor unequal to itself
        return True


def check_varied(codes: NDArray[np.int64], name: str) -> int:
    """Return the number of levels.

    Raises
    ------
    DataError
        If there is only one.
    """
    n_levels = int(codes.max()) + 1
    if n_levels < 2:
        message = f"{name} has one level in these cells; a score needs at least two."
        raise DataError(message)
    return n_levels


def nearest(states: NDArray[np.float64], n_neighbors: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return distances and rows of the nearest other cells by Euclidean distance, ``(cells, n_neighbors)`` each.

    Raises
    ------
    OptionError
        If there are not so many other cells.
    """
    if not 1 <= n_neighbors < len(states):
        message = (
            f"The number of neighbours must be between 1 and {len(states) - 1} (the other cells); got {n_neighbors}."
        )
        raise OptionError(message)
    from sklearn.neighbors import NearestNeighbors  # slow to import, and only needed here

    return NearestNeighbors(n_neighbors=n_neighbors).fit(states).kneighbors()
