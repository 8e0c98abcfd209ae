"""Read-outs of the regularised models: ambient counts, feature factors, dispersions, prior terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators.names import Indices
from countvi.estimators.options import WHOLE
from countvi.estimators.readouts.features import feature_names, per_modality

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from torch import Tensor

    from countvi.estimators.state import Fitted
    from countvi.models.regularized import Regularized


def get_ambient_fraction(
    self: Fitted[Regularized],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    modality: str | None = None,
    n_samples: int | None = None,
    batch_size: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    """Return the share of each cell's counts that is ambient, given the counts.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    modality
        Which modality; one with a background.
    n_samples
        Posterior draws per cell to average over; ``None`` takes the posterior mean of z, without noise.
    seed
        Of the draws.

    Returns
    -------
    numpy.ndarray
        Shape ``(cells,)``, 0 to 1; NaN for a cell without counts. Of several modalities with a background, a
        dictionary by name unless one is named.
    """
    cells, draws = self.view(adata, indices, batch_size).cells, _draws(n_samples, seed)
    return per_modality(
        self,
        modality,
        lambda name: query.ambient_fraction(self.module, cells, draws, modality=name),
        _with_background(self, modality),
    )


def get_decontaminated_counts(
    self: Fitted[Regularized],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    modality: str | None = None,
    integer: bool = False,
    n_samples: int | None = None,
    batch_size: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    """Return counts without the ambient ones: never more than there are.

    Parameters
    ----------
    adata, indices, modality, n_samples, batch_size, seed
        As in :meth:`get_ambient_fraction`.
    integer
        Draw whole counts, each molecule kept with its probability of being the cell's own, instead of their
        expectation.

    Returns
    -------
    scipy.sparse.csr_array
        Shape ``(cells, features)``, float32. Of several modalities with a background, a dictionary by name unless
        one is named.
    """
    cells, draws = self.view(adata, indices, batch_size).cells, _draws(n_samples, seed)
    return per_modality(
        self,
        modality,
        lambda name: query.decontaminated_counts(self.module, cells, draws, modality=name, integer=integer),
        _with_background(self, modality),
    )


def get_background_profile(self: Fitted[Regularized], *, modality: str | None = None, normalize: bool = False) -> Any:
    """Return the ambient background of each level of the ambient covariates.

    Parameters
    ----------
    modality
        Which modality; one with a background.
    normalize
        Let each profile sum to one.

    Returns
    -------
    DataFrame
        Features x levels: expected ambient counts in a cell of average size. The background of a cell is the sum
        over its covariates. Of several ambient covariates, columns have two levels. Of several modalities with a
        background, a dictionary by name unless one is named.
    """

    def compute(name: str) -> pd.DataFrame:
        frame = _by_level(
            self, name, query.background_profile(self.module, modality=name), self.registry.covariates.ambient
        )
        return frame / frame.sum() if normalize else frame

    return per_modality(self, modality, compute, _with_background(self, modality))


def get_feature_scaling(self: Fitted[Regularized], *, modality: str | None = None) -> Any:
    """Return the factor of each feature in each level of the feature scaling covariates.

    Parameters
    ----------
    modality
        Which modality; one with feature factors.

    Returns
    -------
    DataFrame
        Features x levels, around 1; those of several covariates are multiplied. Of several modalities with feature
        factors, a dictionary by name unless one is named.
    """
    scaled = [name for name, part in self.module.modalities.items() if part.scaling is not None]
    _check_among(self, modality, scaled, "feature factors")

    def compute(name: str) -> pd.DataFrame:
        scaling = self.module.modalities[name].scaling
        assert scaling is not None
        return _by_level(self, name, _numpy(scaling.per_level()), self.registry.covariates.scaling)

    return per_modality(self, modality, compute, scaled)


def get_inverse_dispersion(self: Fitted[Regularized], *, modality: str | None = None) -> Any:
    """Return the posterior median of theta, where Var[x] = mu + mu^2 / theta.

    Parameters
    ----------
    modality
        Which modality.

    Returns
    -------
    DataFrame
        Features x levels of the dispersion key. Of several modalities, a dictionary by name unless one is named.
    """

    def compute(name: str) -> pd.DataFrame:
        dispersion = self.module.modalities[name].dispersion
        columns = [factor.column for factor in dispersion.factors]
        return _by_level(self, name, _numpy([dispersion.loc.exp()]), columns)

    return per_modality(self, modality, compute)


def get_log_prior(self: Fitted[Regularized]) -> dict[str, float]:
    """Return the terms of the evidence lower bound that belong to no cell, in nats for the whole data set.

    Added to the sum of :meth:`get_elbo` over the training cells they make the whole bound, except that
    :meth:`get_elbo` takes the median of theta, where training takes draws.

    Returns
    -------
    dict
        By parameter, ``"rna.theta"`` for instance.
    """
    with torch.no_grad():
        return {name: float(value) for name, value in self.module.log_prior().items()}


def _with_background(model: Fitted[Regularized], modality: str | None) -> list[str]:
    having = [name for name, part in model.module.modalities.items() if part.background is not None]
    _check_among(model, modality, having, "a background")
    return having


def _check_among(model: Fitted[Regularized], modality: str | None, having: Sequence[str], what: str) -> None:
    """Raise if what is asked for has no such part."""
    if modality is not None:
        model.registry.modality(modality)
    if not having or (modality is not None and modality not in having):
        of_which = "The model" if modality is None else f"Modality {modality!r}"
        message = f"{of_which} was built without {what}."
        raise OptionError(message)


def _by_level(
    model: Fitted[Regularized], modality: str, tables: Sequence[np.ndarray], columns: Sequence[int]
) -> pd.DataFrame:
    """Label tables of levels x features, one for each covariate; without covariates, the only row."""
    given = [model.registry.columns[column] for column in columns]
    levels = [["all"] if column.key is None else list(column.categories) for column in given] or [["all"]]
    if len(tables) == 1:
        key = given[0].key if given else None
        names = pd.Index(levels[0], name=key)
    else:
        pairs = [(column.key, level) for column, of in zip(given, levels, strict=True) for level in of]
        names = pd.MultiIndex.from_tuples(pairs, names=["covariate", "level"])
    return pd.DataFrame(np.concatenate(tables).T, index=feature_names(model, modality), columns=names)


def _draws(n_samples: int | None, seed: int) -> query.Draws:
    if n_samples is None:
        return query.Draws(at_mean=True, seed=seed)
    return query.Draws(WHOLE("n_samples", n_samples), seed=seed)


def _numpy(tables: Sequence[Tensor]) -> list[np.ndarray]:
    return [table.detach().cpu().numpy() for table in tables]
