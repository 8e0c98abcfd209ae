"""Copies of a query with exactly a model's features, those that are missing filled with zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from countvi.data.compressed_rows import ColumnMap
from countvi.data.container import check_container, part_of
from countvi.data.dataset import missing_features
from countvi.data.registry import CountMatrix, Registry
from countvi.data.source import open_source
from countvi.errors import DataError, DataWarning, shorten, warn

if TYPE_CHECKING:
    from mudata import MuData

_ENOUGH_SHARED = 0.8
"""Share of the model's genes below which padding with zeros is worth a warning."""


def prepare_query(adata: AnnData, registry: Registry) -> AnnData:
    """Make an AnnData with a model's genes in the model's order, missing ones padded with zeros.

    Parameters
    ----------
    adata
        The query, cells x genes; it is only read.
    registry
        What the model was set up with.

    Returns
    -------
    AnnData
        In memory: the counts where the model looks for them (CSR, float32), ``obs`` and ``obsm``. Nothing else of
        the query is carried over.

    Raises
    ------
    DataError
        If the query is empty, names genes twice, or has none of the model's genes.

    Warns
    -----
    DataWarning
        If it has fewer than 80 % of the model's genes.
    """
    check_container(adata, registry.modalities)
    return _padded(adata, registry.modalities)


def prepare_query_mudata(mdata: MuData, registry: Registry) -> MuData:
    """Make a MuData with a model's features in the model's order; as :func:`prepare_query` does for an AnnData.

    Modalities that the query lacks stay missing.
    """
    from mudata import MuData, set_options

    check_container(mdata, registry.modalities)
    padded = {}
    for modality in registry.modalities:
        adata = part_of(mdata, modality)
        if modality.part is not None and adata is not None and adata.n_obs:
            padded[modality.part] = _padded(adata, [modality])
    with set_options(pull_on_update=False):
        prepared = MuData(padded)
    prepared.obs = pd.DataFrame(mdata.obs).loc[prepared.obs_names].copy()
    return prepared


def _padded(adata: AnnData, modalities: Sequence[CountMatrix]) -> AnnData:
    """Copy an AnnData with the features of modalities that lie in it."""
    matrices = {}
    for modality in modalities:
        if modality.location.startswith("obsm/"):  # carried over as it is
            continue
        names, noun = modality.feature_names, modality.noun
        n_shared = len(names) - len(missing_features(adata, modality))
        if n_shared == 0:
            message = (
                f"The query has none of the model's {len(names):,} {noun}s. The model knows {shorten(names, limit=3)}, "
                f"the query {shorten(list(adata.var_names), limit=3)}; are these different kinds of names (symbols and "
                "Ensembl ids)?"
            )
            raise DataError(message)
        if n_shared < _ENOUGH_SHARED * len(names):
            message = (
                f"The query has only {n_shared:,} of the model's {len(names):,} {noun}s ({n_shared / len(names):.0%}); "
                "the others are filled with zeros, which the model takes for measurements. Expect poor results; "
                f"better train a model on the {noun}s that both have."
            )
            warn(message, DataWarning)
        columns = ColumnMap.from_names(list(adata.var_names), names)
        block = open_source(adata, modality.location, columns).take(np.arange(adata.n_obs))
        matrix = sp.csr_matrix(
            (block.values.numpy(), block.columns.numpy(), block.offsets.numpy()), shape=(adata.n_obs, len(names))
        )
        matrix.sort_indices()
        matrices[modality.location] = matrix
    obsm: dict[str, Any] = {key: value.copy() for key, value in adata.obsm.items()}
    return anndata.AnnData(
        X=matrices.pop("X", None),
        obs=pd.DataFrame(adata.obs).copy(),
        var=pd.DataFrame(index=pd.Index(modalities[0].feature_names, dtype=object)),
        obsm=obsm,
        layers={location.removeprefix("layers/"): matrix for location, matrix in matrices.items()},
    )
