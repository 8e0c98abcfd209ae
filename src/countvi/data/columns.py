"""Reading columns of ``obs``: categories, codes, continuous covariates, size factors. Nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from countvi.data.container import obs_column
from countvi.data.registry import Category, Column, Moments, category_key, plain
from countvi.errors import DataError, DataWarning, MismatchError, did_you_mean, warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from countvi.data.container import Container
    from countvi.data.registry import Registry

_MANY = 20
"""Categories that are not too many for however few cells."""


def read_column(data: Container, key: str | None, argument: str) -> Column:
    """Read the categories of a column of ``obs``.

    Parameters
    ----------
    data
        The data.
    key
        Name of the column; ``None`` for a covariate that was not given.
    argument
        What it was asked for as, for the message.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    DataError
        If it cannot be used as a covariate.

    Warns
    -----
    DataWarning
        If two categories look alike, or most cells have one of their own.
    """
    if key is None:
        return Column(None, (0,))
    categories = categories_of(obs_column(data, key, argument), key)
    warn_of_look_alikes(categories, key)
    if len(categories) > _MANY and 2 * len(categories) > data.n_obs:
        message = (
            f"{argument}: obs[{key!r}] has {len(categories):,} categories for {data.n_obs:,} cells, so that most have "
            "one cell, of which nothing can be learned; is it a column of names?"
        )
        warn(message, DataWarning)
    return Column(key, categories)


def warn_of_look_alikes(categories: Sequence[Category], key: str) -> None:
    """Warn of categories that differ in type or in spaces around them alone, as ``1`` and ``"1"``."""
    first: dict[str, Category] = {}
    for category in categories:
        other = first.setdefault(str(category).strip(), category)
        if other is not category:
            message = (
                f"obs[{key!r}] has {other!r} and {category!r}, which count as two categories; if they mean one, use "
                f"`adata.obs[{key!r}] = adata.obs[{key!r}].astype(str).str.strip()`."
            )
            warn(message, DataWarning)
            return


def model_column(data: Container, registry: Registry, column: int) -> pd.Series:
    """Return a column of ``obs`` that a model was set up with, by its place in the codes.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    """
    key = registry.columns[column].key
    assert key is not None
    return obs_column(data, key, f"The model's {registry.covariates.name(column)} key")


def categories_of(values: pd.Series, key: str) -> tuple[Category, ...]:
    """Return the categories that occur: in the order of a categorical column, otherwise sorted.

    Raises
    ------
    DataError
        If values are missing, or are not text, numbers or booleans.
    """
    _check_missing(values, key)
    coded = pd.Categorical(values)
    categories: list[Any] = [plain(coded.categories[code]) for code in np.unique(coded.codes)]
    for category in categories:
        if type(category) not in (str, int, float, bool) or (type(category) is float and not math.isfinite(category)):
            message = (
                f"obs[{key!r}] has the category {category!r} of type {type(category).__name__}; a category must be "
                f"text, a finite number or a boolean. Use `adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)`."
            )
            raise DataError(message)
    return tuple(categories)


def codes_of(values: pd.Series, column: Column, name: str) -> NDArray[np.int64]:
    """Return the code of each cell's category, matched by value, shape ``(cells,)``.

    Parameters
    ----------
    values
        The column of ``obs``.
    column
        The categories that a model knows.
    name
        What messages call the column.

    Raises
    ------
    DataError
        If values are missing.
    MismatchError
        If there are categories that the model does not know.
    """
    assert column.key is not None
    _check_missing(values, column.key)
    coded = pd.Categorical(values)
    known = column.codes()
    table = np.full(len(coded.categories), -1, dtype=np.int64)
    unseen = []
    for code in np.unique(coded.codes):
        category = coded.categories[code]
        table[code] = known.get(category_key(category), -1)
        if table[code] < 0:
            unseen.append(plain(category))
    if unseen:
        n_cells = int((table[coded.codes] < 0).sum())
        hint = did_you_mean(unseen[0], column.categories) if len(unseen) == 1 else ""
        message = (
            f"obs[{column.key!r}] ({name}) has {len(unseen)} {'category' if len(unseen) == 1 else 'categories'} in "
            f"{n_cells:,} cells that the model does not know: {_list(unseen)}. It knows "
            f"{_list(column.categories)}.{hint} Rename them to known categories, map these cells onto the model with "
            "`load_query_data`, or train a model on both data sets."
        )
        raise MismatchError(message)
    return table[coded.codes]


def moments_of(values: pd.Series, key: str) -> Moments:
    """Return what a continuous covariate is standardised by; errors as in :func:`continuous_of`."""
    numbers = _finite(values, key)
    # A constant column is told by its values: the deviation of many equal numbers need not be exactly zero.
    constant = numbers.min() == numbers.max()
    return Moments(float(numbers.mean()), 1.0 if constant else float(numbers.std()))


def continuous_of(values: pd.Series, key: str, moments: Moments) -> NDArray[np.float32]:
    """Return a continuous covariate, standardised, shape ``(cells,)``.

    Parameters
    ----------
    values
        The column of ``obs``, in its own units.
    key
        Its name, for messages.
    moments
        What it is standardised by.

    Raises
    ------
    DataError
        If the column is not numeric, or not finite in float32.
    """
    # Standardised before it is rounded to float32, which large numbers close to each other need.
    return ((_finite(values, key) - moments.mean) / moments.sd).astype(np.float32)


def _finite(values: pd.Series, key: str) -> NDArray[np.float64]:
    numbers = _numbers(values, key, "A continuous covariate")
    bad = ~np.isfinite(_float32(numbers))
    if bad.any():
        message = (
            f"obs[{key!r}] has {int(bad.sum()):,} NaN or infinite values (first in cell "
            f"{str(values.index[int(np.argmax(bad))])!r}); a continuous covariate must be finite. Remove these cells "
            "or fill in the values."
        )
        raise DataError(message)
    return numbers


def size_factor_of(values: pd.Series, key: str) -> NDArray[np.float32]:
    """Return size factors, shape ``(cells,)``.

    Raises
    ------
    DataError
        If the column is not numeric, or not finite and positive in float32.
    """
    numbers = _float32(_numbers(values, key, "A size factor"))
    bad = ~(np.isfinite(numbers) & (numbers > 0))
    if bad.any():
        first = int(np.argmax(bad))
        message = (
            f"obs[{key!r}] has {int(bad.sum()):,} values that are not finite and positive (first: {values.iloc[first]} "
            f"in cell {str(values.index[first])!r}); size factors must be. Remove these cells or correct the values."
        )
        raise DataError(message)
    return numbers


def _list(categories: Any, limit: int = 10) -> str:
    # repr, because '1' and 1 are two categories
    shown = ", ".join(repr(category) for category in categories[:limit])
    rest = len(categories) - limit
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def _check_missing(values: pd.Series, key: str) -> None:
    n_missing = int(values.isna().sum())
    if n_missing:
        message = (
            f"obs[{key!r}] is missing (NaN) in {n_missing:,} of {len(values):,} cells; every cell needs a category. "
            f"Remove these cells, `adata = adata[adata.obs[{key!r}].notna()].copy()`, or name their group, "
            f"`adata.obs[{key!r}] = adata.obs[{key!r}].astype(object).fillna('unknown')`."
        )
        raise DataError(message)


def _numbers(values: pd.Series, key: str, what: str) -> NDArray[np.float64]:
    if not pd.api.types.is_numeric_dtype(values.dtype):
        message = (
            f"{what} must be numeric; obs[{key!r}] has dtype {values.dtype}. Convert it with `adata.obs[{key!r}] = "
            f"pd.to_numeric(adata.obs[{key!r}])`, or pass it as a categorical covariate."
        )
        raise DataError(message)
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _float32(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is reported as such
        return numbers.astype(np.float32)
