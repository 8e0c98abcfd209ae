"""Behind ``transfer_labels``: cell types of a reference for the cells of a query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from countvi import data as data_layer
from countvi import query as query_layer
from countvi.errors import OptionError
from countvi.estimators import _training
from countvi.estimators._trainable import Trainable

if TYPE_CHECKING:
    from countvi.data.container import Container
    from countvi.estimators._base import CountEstimator


def transfer_labels(
    reference: CountEstimator,
    query: Container | CountEstimator,
    key: str,
    *,
    n_neighbors: int,
    max_uncertainty: float,
    min_typicality: float,
    unknown: str,
) -> pd.DataFrame:
    """Label the cells of a query; see :meth:`countvi.SCVI.transfer_labels`."""
    reference._need_data()
    assert reference.adata is not None
    labels = data_layer.obs_column(reference.adata, key, "key")
    labelled = labels.notna().to_numpy()
    codes, names = pd.factorize(labels[labelled], sort=True)
    _check_share("max_uncertainty", max_uncertainty)
    _check_share("min_typicality", min_typicality)
    _training.check_size("n_neighbors", n_neighbors)
    if n_neighbors >= len(codes):
        message = f"n_neighbors must be below the number of cells with a label ({len(codes):,}); got {n_neighbors}."
        raise OptionError(message)
    if unknown in set(names):
        message = f"unknown={unknown!r} is a label of obs[{key!r}]; choose another word."
        raise OptionError(message)
    model, cells = (query, None) if isinstance(query, Trainable) else (reference, query)
    _check_same_space(reference, model)
    votes = query_layer.vote(_locate(reference, None, labelled), codes, _locate(model, cells, None), n_neighbors)
    best = np.asarray(names, dtype=object)[votes.shares.argmax(1)]
    uncertainty = 1.0 - votes.shares.max(1)
    known = (uncertainty <= max_uncertainty) & (votes.typicality >= min_typicality)
    columns = {
        "label": np.where(known, best, unknown),
        "best": best,
        "uncertainty": uncertainty,
        "typicality": votes.typicality,
    }
    return pd.DataFrame(columns, index=model._obs_names(cells))


def _locate(model: CountEstimator, cells: Container | None, indices: np.ndarray | None) -> query_layer.Located:
    states = model.get_latent_representation(cells, indices)
    _, variance = model.get_latent_representation(cells, indices, return_dist=True)
    return query_layer.Located(np.asarray(states), np.asarray(variance).sum(1))


def _check_same_space(reference: CountEstimator, model: Any) -> None:
    """Refuse the model of a query whose cell states are not those of the reference."""
    if model is reference:
        return
    same = type(model) is type(reference) and model._mapped is not None and not model._mapped.freezing.unfrozen
    if not same:
        message = (
            "Labels can be compared only between states of one space. Pass the cells themselves, or the model that "
            f"{type(reference).__name__}.load_query_data made of them and this reference, without unfrozen=True."
        )
        raise OptionError(message)


def _check_share(name: str, value: Any) -> None:
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not 0.0 <= value <= 1.0:
        message = f"{name} must be between 0 and 1; got {value!r}."
        raise OptionError(message)
