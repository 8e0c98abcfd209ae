"""Differential abundance: densities of samples over cell states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from countvi import query, seeding
from countvi.data.container import obs_column
from countvi.errors import OptionError, shorten
from countvi.estimators import _training

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators._base import CountEstimator


def check_dof(dof: float | None) -> None:
    """Refuse degrees of freedom that are not positive.

    Raises
    ------
    OptionError
        If they are not.
    """
    if dof is not None and not (isinstance(dof, (int, float)) and math.isfinite(dof) and dof > 0):
        message = f"dof must be a positive number, or None for normals; got {dof!r}."
        raise OptionError(message)


def check_cells(loc: np.ndarray, where: str) -> None:
    """Refuse a mixture of nothing.

    Raises
    ------
    OptionError
        If there are no cells.
    """
    if not len(loc):
        message = f"An aggregated posterior needs at least one cell; {where} gives none."
        raise OptionError(message)


def densities(
    model: CountEstimator,
    cells: query.Cells,
    adata: AnnData | MuData | None,
    sample_key: str | None,
    num_cells: int | None,
    dof: float | None,
    seed: int,
) -> pd.DataFrame:
    """Log-density of each cell under each sample; see :meth:`CountEstimator.differential_abundance`."""
    data = model.adata if adata is None else adata
    assert data is not None, "cells without data"
    if sample_key is None:
        message = (
            "differential_abundance needs sample_key, the column of obs that says which sample a cell is from; obs has "
            f"{shorten(list(data.obs))}."
        )
        raise OptionError(message)
    if num_cells is not None:
        _training.check_size("num_cells_posterior", num_cells)
    column = obs_column(data, sample_key, "sample_key").astype("category").cat.remove_unused_categories()
    names = column.cat.categories
    if len(names) < 2:
        message = f"sample_key: obs[{sample_key!r}] has {len(names)} samples; comparing needs at least two."
        raise OptionError(message)
    loc, scale = query.latent_moments(model.module, cells)
    codes, rng = column.cat.codes.to_numpy(), np.random.default_rng(seeding.checked(seed))
    found = {}
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        if num_cells is not None and num_cells < len(rows):
            rows = np.sort(rng.choice(rows, num_cells, replace=False))
        found[name] = query.aggregated_log_density(loc, loc[rows], scale[rows], dof)
    return pd.DataFrame(found, index=data.obs_names.copy())
