"""The table of confounded covariates, which determine each other, and the warning that comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from countvi.data.covariates import LABELS_COLUMN
from countvi.data.registry import Registry
from countvi.errors import DataWarning, warn

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_NAMED = 3
"""How many pairs a warning names."""


def confounding_table(codes: ArrayLike, registry: Registry) -> pd.DataFrame:
    """Compare every categorical covariate with every other and with the labels.

    Parameters
    ----------
    codes
        Codes of the categorical covariates, shape ``(cells, columns)``.
    registry
        What the columns are, and their roles.

    Returns
    -------
    DataFrame
        A row for each ordered pair of columns that vary:

        ``key``, ``other``
            The two columns of ``obs``.
        ``serves``
            What ``key`` is for: its roles, or ``"labels"``.
        ``alone``
            Share of the cells whose level of ``key`` occurs with one level of ``other`` only; 1 where ``key``
            determines ``other``.
        ``explained``
            Share of the entropy of ``other`` that ``key`` takes away, 0 where they are independent.
        ``problem``
            Whether the model cannot tell apart what the two do.
        ``meaning``
            What follows; empty where nothing does.
    """
    table = np.asarray(codes)
    varying = [
        i for i, column in enumerate(registry.columns) if column.key is not None and len(np.unique(table[:, i])) > 1
    ]
    rows = [_row(table, registry, i, j) for i in varying for j in varying if i != j]
    columns = ["key", "other", "serves", "alone", "explained", "problem", "meaning"]
    return pd.DataFrame(rows, columns=pd.Index(columns)).astype({"problem": bool})


def warn_of_confounding(table: pd.DataFrame, where: str) -> None:
    """Say in one sentence what a table of :func:`confounding_table` warns of, if anything.

    Parameters
    ----------
    table
        The table.
    where
        How a user gets it.

    Warns
    -----
    DataWarning
        If two covariates cannot be told apart.
    """
    problems = list(dict.fromkeys(table.loc[table["problem"], "meaning"]))
    if not problems:
        return
    more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    message = f"Covariates are confounded: {'; '.join(problems[:_NAMED])}{more} (see {where})."
    warn(message, DataWarning)


def _row(table: NDArray[np.int64], registry: Registry, i: int, j: int) -> tuple[object, ...]:
    counts = _cross(table[:, i], table[:, j])
    single = (counts > 0).sum(1) == 1
    alone = float(counts[single].sum() / counts.sum())
    back = float(counts[:, (counts > 0).sum(0) == 1].sum() / counts.sum())
    problem, meaning = _meaning(registry, (i, j), (alone, back))
    serves = registry.covariates.serves(i)
    return registry.columns[i].key, registry.columns[j].key, serves, alone, _explained(counts), problem, meaning


def _cross(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of cells of each pair of levels that occur, levels of ``a`` by levels of ``b``."""
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    n_a, n_b = int(a.max()) + 1, int(b.max()) + 1
    return np.bincount(a * n_b + b, minlength=n_a * n_b).reshape(n_a, n_b)


def _explained(counts: NDArray[np.int64]) -> float:
    share = counts / counts.sum()
    of_other = _entropy(share.sum(0))
    left = _entropy(share.ravel()) - _entropy(share.sum(1))
    return float(min(1.0, max(0.0, 1.0 - left / of_other)))


def _entropy(share: NDArray[np.float64]) -> float:
    positive = share[share > 0]
    return float(-(positive * np.log(positive)).sum())


def _meaning(registry: Registry, pair: tuple[int, int], alone: tuple[float, float]) -> tuple[bool, str]:
    """Whether the first of two columns is confounded with the second, and what follows.

    ``alone`` is that of the table for the pair and for the pair turned round.
    """
    key, other = (repr(str(registry.columns[column].key)) for column in pair)
    determined, same = alone[0] == 1.0, alone == (1.0, 1.0)
    if pair[0] == LABELS_COLUMN:
        if same:
            return True, f"{key} and {other} divide the cells alike, so that nothing tells their effects apart"
        if determined:
            return (
                True,
                f"no level of {key} occurs in two levels of {other}, so that no like cells show what {other} does",
            )
        if alone[0] > 0:
            share = f"{alone[0]:.0%}" if alone[0] >= 0.01 else "fewer than 1%"
            return False, f"{share} of the cells are of a level of {key} that one level of {other} has to itself"
        return False, ""
    if pair[1] == LABELS_COLUMN:
        if same:
            return True, f"{other} and {key} divide the cells alike, so that nothing tells their effects apart"
        if determined:
            return (
                True,
                f"each level of {key} has one level of {other}, so that correcting for {key} can remove {other}",
            )
        return False, ""
    theirs = registry.covariates.of(pair[1])
    shared = [role for role in registry.covariates.of(pair[0]) if role in theirs]
    if same and shared:
        first, second = sorted((key, other))
        return True, f"{first} and {second} divide the cells alike and both serve {' and '.join(shared)}; one is enough"
    if determined and "ambient" in shared:
        return True, (
            f"levels of {other} are groups of levels of {key}, so that a background of {other} cannot be told from "
            f"those of {key}"
        )
    if determined:
        return False, f"levels of {other} are groups of levels of {key}"
    return False, ""
