"""Splits of the cells into training, validation and test sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from countvi.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_SLACK = 1e-9
"""Sizes are decimal fractions: 0.07 * 100 is meant to be 7, not 7.000000000000001."""


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint sets of cells.

    Parameters
    ----------
    train, validation, test
        Row numbers, sorted, int64; ``validation`` and ``test`` may be empty.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def make_split(
    n_cells: int,
    *,
    train_size: float = 0.9,
    validation_size: float | None = None,
    shuffle: bool = True,
    seed: int,
) -> Split:
    """Split cells by size.

    ``ceil(train_size * n_cells)`` cells are trained on, ``floor(validation_size * n_cells)`` validate, the rest
    is the test set. There is always a training cell: with one cell in all, the others are empty.

    Parameters
    ----------
    n_cells
        Number of cells.
    train_size
        Share of training cells, in (0, 1].
    validation_size
        Share of validation cells, in [0, 1]; ``None`` for all others.
    shuffle
        Draw the cells; otherwise they are taken in order: training, validation, test.
    seed
        Seed of the draw.

    Raises
    ------
    OptionError
        If there are no cells, or a size is out of range.
    """
    if n_cells < 1:
        message = f"There must be at least one cell to split; got {n_cells}."
        raise OptionError(message)
    if not 0 < train_size <= 1:
        message = f"train_size must be above 0 and at most 1; got {train_size}."
        raise OptionError(message)
    if validation_size is not None and not 0 <= validation_size <= 1:
        message = f"validation_size must be between 0 and 1, or None for all other cells; got {validation_size}."
        raise OptionError(message)
    if validation_size is not None and train_size + validation_size > 1 + _SLACK:
        message = f"train_size + validation_size must be at most 1; got {train_size} + {validation_size}."
        raise OptionError(message)

    n_train = min(n_cells, max(1, math.ceil(train_size * n_cells - _SLACK)))
    n_validation = n_cells - n_train
    if validation_size is not None:
        n_validation = min(n_validation, math.floor(validation_size * n_cells + _SLACK))
    order = np.random.default_rng(seed).permutation(n_cells) if shuffle else np.arange(n_cells)
    train, validation, test = np.split(order, [n_train, n_train + n_validation])
    return Split(np.sort(train), np.sort(validation), np.sort(test))


def split_from_indices(
    n_cells: int, train: ArrayLike, validation: ArrayLike | None = None, test: ArrayLike | None = None
) -> Split:
    """Split cells as given.

    Parameters
    ----------
    n_cells
        Number of cells.
    train, validation, test
        Row numbers, or boolean masks of length ``n_cells``; ``None`` for no cells. They need not cover all cells.

    Raises
    ------
    OptionError
        If there are no training cells, if a number is out of range or repeated, or if two sets share a cell.
    """
    given = {"train": train, "validation": validation, "test": test}
    sets = {name: _as_rows(name, rows, n_cells) for name, rows in given.items()}
    if len(sets["train"]) == 0:
        message = "There must be at least one training cell; the training indices are empty."
        raise OptionError(message)
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = np.intersect1d(sets[first], sets[second])
        if len(shared):
            message = (
                f"The {first} and {second} indices share {len(shared):,} cells (first: {shared[0]}); "
                "a cell can be in one set only."
            )
            raise OptionError(message)
    return Split(**sets)


def _as_rows(name: str, rows: ArrayLike | None, n_cells: int) -> NDArray[np.int64]:
    array = np.empty(0, np.int64) if rows is None else np.asarray(rows)
    if array.dtype == bool and array.shape == (n_cells,):
        array = np.flatnonzero(array)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        message = (
            f"The {name} indices must be a list of row numbers or a boolean mask of length {n_cells}; "
            f"got {array.dtype} of shape {array.shape}."
        )
        raise OptionError(message)
    outside = array[(array < 0) | (array >= n_cells)]
    if len(outside):
        message = f"The {name} indices must be between 0 and {n_cells - 1}; got {outside[0]}."
        raise OptionError(message)
    distinct, times = np.unique(array, return_counts=True)
    if len(distinct) < len(array):
        message = (
            f"The {name} indices name {int((times > 1).sum()):,} cells more than once (first: "
            f"{distinct[int(np.argmax(times > 1))]}); each cell may be named once."
        )
        raise OptionError(message)
    return distinct.astype(np.int64)
