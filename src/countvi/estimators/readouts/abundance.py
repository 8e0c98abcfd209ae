"""Differential abundance: ``differential_abundance``, densities of samples over cell states."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from countvi import query, seeding
from countvi.data.container import obs_column
from countvi.errors import OptionError, shorten
from countvi.estimators.options import POSITIVE, WHOLE

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted

DOF = dataclasses.replace(POSITIVE, words="a positive number, or None for normals")
"""Degrees of freedom of Student's t."""


def differential_abundance(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    sample_key: str | None = None,
    *,
    batch_size: int | None = None,
    num_cells_posterior: int | None = None,
    dof: float | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> pd.DataFrame:
    """Return how dense each sample is where each cell lies: which states are common in which sample.

    The difference of two columns says how much more common a cell's state is in one sample than in the other.
    Average columns over the samples of a condition before comparing conditions; the samples are the replicates.

    Parameters
    ----------
    adata
        Cells; by default those of the model.
    sample_key
        Column of ``obs`` that says which sample a cell is from.
    batch_size
        Cells at a time.
    num_cells_posterior
        Cells per sample that stand for it, drawn at random; by default all. With the same number in each, samples
        of different sizes are smoothed alike.
    dof
        As in :meth:`get_aggregated_posterior`; ``None`` for normals.
    seed
        Of the draw of cells.

    Returns
    -------
    DataFrame
        Log-density of the posterior mean of z of each cell under each sample's aggregated posterior, in nats, cells
        x samples.

    Raises
    ------
    OptionError
        If ``sample_key`` is left out, or names fewer than two samples.
    """
    if dof is not None:
        DOF("dof", dof)
    cells = self.view(adata, None, batch_size).cells
    return _densities(self, cells, adata, sample_key, num_cells_posterior, dof, seed)


def _densities(
    model: Fitted,
    cells: query.Cells,
    adata: AnnData | MuData | None,
    sample_key: str | None,
    num_cells: int | None,
    dof: float | None,
    seed: int,
) -> pd.DataFrame:
    """Log-density of each cell under each sample; see :func:`differential_abundance`."""
    data = model.adata if adata is None else adata
    assert data is not None, "cells without data"
    if sample_key is None:
        message = (
            "differential_abundance needs sample_key, the column of obs that says which sample a cell is from; obs has "
            f"{shorten(list(data.obs))}."
        )
        raise OptionError(message)
    if num_cells is not None:
        WHOLE("num_cells_posterior", num_cells)
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
