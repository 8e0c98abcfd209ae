"""Helpers of read-outs: features, modalities and batches as users name them, and tables with their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from countvi import query
from countvi.errors import OptionError
from countvi.estimators.names import resolve_batches, resolve_genes

if TYPE_CHECKING:
    from countvi.data import Registry
    from countvi.estimators.state import Fitted


def per_modality(
    model: Fitted, modality: str | None, compute: Callable[[str], Any], names: Sequence[str] | None = None
) -> Any:
    """Compute something of the modality named; of a model of several, by default of each (or of ``names``), by name."""
    if modality is not None:
        return compute(model.registry.modality(modality).name)
    names = [m.name for m in model.registry.modalities] if names is None else names
    return {name: compute(name) for name in names} if model.several_modalities else compute(names[0])


def one_counterfactual(transform_batch: Any, registry: Registry) -> query.Counterfactual:
    """Return the one batch that counts are drawn in.

    Raises
    ------
    OptionError
        If there are several.
    """
    counterfactuals = resolve_batches(transform_batch, registry)
    if len(counterfactuals) > 1:
        message = (
            "Counts are drawn in one batch at a time: the mean of draws from several batches is not a draw. Pass one."
        )
        raise OptionError(message)
    return counterfactuals[0]


class ChosenFeatures(NamedTuple):
    """Features that a user asks for."""

    columns: np.ndarray | None
    """Columns of the counts, in the order asked for; ``None`` for all."""
    names: np.ndarray
    """Their names."""


def chosen_features(model: Fitted, modality: str, wanted: Sequence[str] | None, noun: str = "gene") -> ChosenFeatures:
    """Return the features of a modality that are named, in that order, or all.

    Raises
    ------
    UnknownNameError
        If one does not exist.
    """
    names = feature_names(model, modality)
    columns = resolve_genes(wanted, names, noun)
    return ChosenFeatures(columns, names if columns is None else names[columns])


def labelled(values: Any, index: pd.Index | None, names: np.ndarray, as_array: bool | None) -> Any:
    """Return values ``(cells, features)`` as a data frame; as they are if they have more axes, or that is asked for."""
    return values if as_array or values.ndim == 3 else pd.DataFrame(values, index=index, columns=names)


def feature_names(model: Fitted, modality: str) -> np.ndarray:
    """Names of the features of a modality."""
    return np.asarray(model.registry.modality(modality).feature_names, dtype=object)
