"""Rows, genes and batches as users name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from countvi.data import BATCH_COLUMN, Registry
from countvi.errors import MismatchError, OptionError, UnknownNameError, did_you_mean, shorten
from countvi.query import Counterfactual

Indices = Sequence[int] | Sequence[bool] | np.ndarray | pd.Series | slice | None
"""Rows: numbers, a mask, a slice, or ``None`` for all."""


def resolve_rows(indices: Indices, obs_names: pd.Index) -> np.ndarray:
    """Return row numbers, int64, in the order given.

    Raises
    ------
    MismatchError
        If a mask has another length than the data, or a row does not exist.
    OptionError
        If the values are neither numbers nor booleans.
    """
    n_cells = len(obs_names)
    if indices is None:
        return np.arange(n_cells)
    if isinstance(indices, slice):
        return np.arange(n_cells)[indices]
    values = np.asarray(indices)
    if values.ndim != 1:
        message = f"indices must be one-dimensional; got shape {values.shape}."
        raise MismatchError(message)
    if values.dtype == bool:
        if len(values) != n_cells:
            message = f"A mask of cells must have one entry per cell ({n_cells:,}); got {len(values):,}."
            raise MismatchError(message)
        return np.flatnonzero(values)
    if len(values) and not np.issubdtype(values.dtype, np.integer):
        message = (
            f"indices must be row numbers or a boolean mask; got {values.dtype}. For names, use "
            "adata.obs_names.get_indexer(names)."
        )
        raise OptionError(message)
    values = values.astype(np.int64)
    outside = values[(values < -n_cells) | (values >= n_cells)]
    if len(outside):
        message = (
            f"indices holds {len(outside):,} rows that do not exist, such as {outside[0]}; there are {n_cells:,} cells."
        )
        raise MismatchError(message)
    return np.where(values < 0, values + n_cells, values)


def resolve_genes(
    gene_list: Sequence[str] | np.ndarray | None, names: Sequence[str] | np.ndarray, noun: str = "gene"
) -> np.ndarray | None:
    """Return column numbers of genes (or proteins) in the order given; a boolean mask is accepted too.

    Raises
    ------
    UnknownNameError
        If a gene does not exist, with the closest that do.
    """
    if gene_list is None:
        return None
    # A list first, as NumPy takes a set or the keys of a dictionary for a single thing.
    wanted = np.asarray([gene_list] if isinstance(gene_list, str) else list(gene_list))
    if wanted.ndim != 1:
        message = f"{noun}_list must be one list of names; got an array of shape {wanted.shape}."
        raise MismatchError(message)
    if wanted.dtype == bool:
        if wanted.shape != (len(names),):
            message = f"A mask of {noun}s must have one entry per {noun} ({len(names):,}); got shape {wanted.shape}."
            raise MismatchError(message)
        return np.flatnonzero(wanted)
    columns = pd.Index(names).get_indexer(pd.Index(wanted.astype(str)))
    unknown = wanted[columns < 0]
    if len(unknown):
        message = (
            f"{len(unknown):,} of {len(wanted):,} {noun}s are not in the model: "
            f"{shorten(unknown.tolist())}.{did_you_mean(unknown[0], names)}"
        )
        raise UnknownNameError(message)
    return columns.astype(np.int64)


def resolve_batches(transform_batch: Any, registry: Registry) -> list[Counterfactual]:
    """Return counterfactuals; ``[None]`` leaves every cell in its own batch.

    Parameters
    ----------
    transform_batch
        ``None``; a category of the batch; categories of other covariates by column of ``obs``, ``{"site": "s1"}``; or a
        list of these to average over.

    Raises
    ------
    UnknownNameError
        If a category or a covariate does not exist, with those that do.
    OptionError
        If a list or a dictionary is empty.
    """
    if transform_batch is None:
        return [None]
    many = isinstance(transform_batch, (list, tuple, np.ndarray, pd.Index, pd.Series))
    batches = list(transform_batch) if many else [transform_batch]
    if not batches or {} in batches:
        what = "an empty list" if not batches else "an empty dictionary"
        message = f"transform_batch is {what}; name at least one batch, or pass None for each cell's own."
        raise OptionError(message)
    return [_counterfactual(batch, registry) for batch in batches]


def _counterfactual(batch: Any, registry: Registry) -> Counterfactual:
    if batch is None:
        return None
    if not isinstance(batch, Mapping):
        return (BATCH_COLUMN, registry.code_of(BATCH_COLUMN, batch))
    columns = {column.key: i for i, column in enumerate(registry.columns) if column.key is not None}
    unknown = [key for key in batch if key not in columns]
    if unknown:
        message = f"transform_batch: {shorten(unknown)} is no covariate of the model; it has {shorten(list(columns))}."
        raise UnknownNameError(message + did_you_mean(unknown[0], columns))
    return {columns[key]: registry.code_of(columns[key], value) for key, value in batch.items()}
