"""Read-outs of one modality, behind the methods of the estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from countvi import query
from countvi.errors import OptionError
from countvi.estimators import _training
from countvi.estimators._indices import resolve_batches, resolve_genes

if TYPE_CHECKING:
    from countvi.data import Registry
    from countvi.estimators._trainable import Trainable


def expression(
    model: Trainable,
    modality: str,
    cells: query.Cells,
    obs_names: pd.Index,
    *,
    transform_batch: Any,
    features: Sequence[str] | None,
    library_size: Any,
    n_samples: int,
    n_samples_overall: int | None,
    return_mean: bool,
    return_numpy: bool | None,
    use_z_mean: bool,
    out: Any,
    seed: int,
    background: bool = False,
    importance: query.Importance | None = None,
) -> pd.DataFrame | np.ndarray:
    """Behind ``get_normalized_expression``; ``obs_names`` are those of all cells of the data."""
    names = feature_names(model, modality)
    columns = resolve_genes(features, names)
    _training.check_size("n_samples", n_samples)
    if use_z_mean and importance is not None:
        message = "weights='importance' weighs draws of z, and use_z_mean=True draws none; choose one."
        raise OptionError(message)
    common: dict[str, Any] = {
        "modality": modality,
        "genes": columns,
        "counterfactuals": resolve_batches(transform_batch, model.registry),
        "library_size": _library_scale(library_size),
        "background": background,
        "importance": importance,
        "seed": seed,
    }
    if n_samples_overall is not None:
        _training.check_size("n_samples_overall", n_samples_overall)
        values = query.sampled_expression(model.module, cells, n_samples_overall=n_samples_overall, out=out, **common)
    else:
        values = query.normalized_expression(
            model.module,
            cells,
            n_samples=n_samples,
            return_mean=return_mean,
            use_z_mean=use_z_mean,
            out=out,
            **common,
        )
    if return_numpy or out is not None or values.ndim == 3:
        return values
    index = None if n_samples_overall is not None else obs_names[cells.rows]
    return pd.DataFrame(values, index=index, columns=names if columns is None else names[columns])


def predictive(
    model: Trainable,
    modality: str,
    cells: query.Cells,
    *,
    transform_batch: Any,
    n_samples: int,
    features: Sequence[str] | None,
    seed: int,
) -> Any:
    """Behind ``posterior_predictive_sample``."""
    _training.check_size("n_samples", n_samples)
    samples = query.posterior_predictive(
        model.module,
        cells,
        modality=modality,
        genes=resolve_genes(features, feature_names(model, modality)),
        counterfactual=one_counterfactual(transform_batch, model.registry),
        n_samples=n_samples,
        seed=seed,
    )
    return samples[0] if n_samples == 1 else samples


def correlation(
    model: Trainable,
    modality: str,
    cells: query.Cells,
    *,
    n_samples: int,
    size_factor: float,
    transform_batch: Any,
    correlation_type: Any,
    features: Sequence[str] | None,
    seed: int,
) -> pd.DataFrame:
    """Behind ``get_feature_correlation_matrix``."""
    _training.check_size("n_samples", n_samples)
    names = feature_names(model, modality)
    columns = resolve_genes(features, names)
    if columns is not None and not len(columns):
        message = "gene_list is empty; correlations need at least one gene."
        raise OptionError(message)
    size_factor = positive("rna_size_factor", size_factor)
    if not len(cells):
        message = "Correlations between genes need at least one cell; indices selects none."
        raise OptionError(message)
    matrix = query.feature_correlation(
        model.module,
        cells,
        modality=modality,
        genes=columns,
        rna_size_factor=size_factor,
        counterfactuals=resolve_batches(transform_batch, model.registry),
        n_samples=n_samples,
        correlation=correlation_type,
        seed=seed,
    )
    names = names if columns is None else names[columns]
    return pd.DataFrame(matrix, index=names, columns=names)


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


def feature_names(model: Trainable, modality: str) -> np.ndarray:
    """Names of the features of a modality."""
    return np.asarray(model.registry.modality(modality).feature_names, dtype=object)


def _library_scale(library_size: Any) -> float | None:
    if isinstance(library_size, str) and library_size == "latent":
        return None
    return positive("library_size", library_size, "a positive number or 'latent'")


def positive(name: str, value: Any, words: str = "a positive number") -> float:
    """Return a positive number.

    Raises
    ------
    OptionError
        If it is none.
    """
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not np.isfinite(value) or value <= 0:
        message = f"{name} must be {words}; got {value!r}."
        raise OptionError(message)
    return float(value)
