"""Labels of a reference for the cells of a query: ``transfer_labels``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from countvi import data as data_layer
from countvi import query as query_layer
from countvi.errors import OptionError
from countvi.estimators.options import PROBABILITY, WHOLE
from countvi.estimators.readouts.latent import get_latent_representation
from countvi.estimators.state import Fitted

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container


def transfer_labels(
    self: Fitted,
    query: AnnData | MuData | Fitted,
    key: str,
    *,
    n_neighbors: int = 15,
    max_uncertainty: float = 0.5,
    min_typicality: float = 0.01,
    unknown: str = "unknown",
) -> pd.DataFrame:
    """Label new cells by the nearest labelled cells of this model, where there are any like them.

    Parameters
    ----------
    query
        The model of new cells that :meth:`load_query_data` made of this one; or the cells themselves, if this model
        knows their batches.
    key
        Column of ``obs`` of this model's own cells with their labels. Cells without one are left out.
    n_neighbors
        Labelled cells that vote on a cell, the nearer the more.
    max_uncertainty
        Cells above it are unknown: between labels.
    min_typicality
        Cells below it are unknown: far from everything labelled. 0 lets every cell have a label.
    unknown
        What to call them.

    Returns
    -------
    DataFrame
        A row for each cell. ``label``: the most voted label, or ``unknown``. ``best``: the most voted label in any
        case. ``uncertainty``: share of the votes for other labels, 0 to 1. ``typicality``: share of the labelled
        cells of that label that lie at least as far from their own nearest cells, or whose state is at least as
        unsure, whichever is less, 0 to 1: small where the reference has nothing like the cell. Both can miss a type
        that the reference lacks and that resembles one that it has; look at markers.

    Raises
    ------
    UnknownNameError
        If ``obs`` has no such column.
    OptionError
        If ``query`` is a model of another space.
    """
    labels = data_layer.obs_column(self.container(None), key, "key")
    labelled = labels.notna().to_numpy()
    codes, names = pd.factorize(labels[labelled], sort=True)
    PROBABILITY("max_uncertainty", max_uncertainty)
    PROBABILITY("min_typicality", min_typicality)
    WHOLE("n_neighbors", n_neighbors)
    if n_neighbors >= len(codes):
        message = f"n_neighbors must be below the number of cells with a label ({len(codes):,}); got {n_neighbors}."
        raise OptionError(message)
    if unknown in set(names):
        message = f"unknown={unknown!r} is a label of obs[{key!r}]; choose another word."
        raise OptionError(message)
    model, cells = (query, None) if isinstance(query, Fitted) else (self, query)
    _check_same_space(self, model)
    votes = query_layer.knn_vote(_positions(self, None, labelled), codes, _positions(model, cells, None), n_neighbors)
    best = np.asarray(names, dtype=object)[votes.shares.argmax(1)]
    uncertainty = 1.0 - votes.shares.max(1)
    known = (uncertainty <= max_uncertainty) & (votes.typicality >= min_typicality)
    columns = {
        "label": np.where(known, best, unknown),
        "best": best,
        "uncertainty": uncertainty,
        "typicality": votes.typicality,
    }
    return pd.DataFrame(columns, index=model.dataset_of(cells).obs_names)


def _positions(model: Fitted, cells: Container | None, indices: np.ndarray | None) -> query_layer.CellPositions:
    states = get_latent_representation(model, cells, indices)
    _, variance = get_latent_representation(model, cells, indices, return_dist=True)
    return query_layer.CellPositions(np.asarray(states), np.asarray(variance).sum(1))


def _check_same_space(reference: Fitted, model: Any) -> None:
    """Refuse the model of a query whose cell states are not those of the reference."""
    if model is reference:
        return
    same = type(model) is type(reference) and model.mapped is not None and not model.mapped.freezing.unfrozen
    if not same:
        message = (
            "Labels can be compared only between states of one space. Pass the cells themselves, or the model that "
            f"{type(reference).__name__}.load_query_data made of them and this reference, without unfrozen=True."
        )
        raise OptionError(message)
