"""The row of each cell in a model's tables of single cells, found by the cell's name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch

from countvi.data.dataset import Dataset
from countvi.errors import DataError, MismatchError, shorten


def with_positions(data: Dataset, names: pd.Index) -> Dataset:
    """Return a data set whose cells know their rows in a model's tables of single cells.

    Parameters
    ----------
    data
        Cells.
    names
        Names of the cells that the model has parameters of, in the order of the tables.

    Raises
    ------
    MismatchError
        If a cell is not among them.
    """
    position = names.get_indexer(data.obs_names)
    unknown = data.obs_names[position < 0]
    if len(unknown):
        message = (
            f"{len(unknown):,} of {len(position):,} spots are not among the {len(names):,} that the model has "
            f"parameters of: {shorten(list(unknown))}. Pass spots it was trained on, or use a model that is built with "
            "amortization='both', which reads any."
        )
        raise MismatchError(message)
    return dataclasses.replace(data, position=torch.from_numpy(position.astype(np.int64)))


def unique_names(names: pd.Index) -> pd.Index:
    """Return the names of cells, which a table of them is found by.

    Raises
    ------
    DataError
        If two cells have the same.
    """
    if not names.is_unique:
        twice = names[names.duplicated()]
        message = (
            f"Spots are told apart by their names, and {len(twice):,} of {len(names):,} are repeated: "
            f"{shorten(list(twice.unique()))}. Call adata.obs_names_make_unique() first."
        )
        raise DataError(message)
    return names
