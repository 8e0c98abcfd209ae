"""What the regularised models say about backgrounds, feature factors and dispersions."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from countvi import data as data_layer
from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators import _modality, _training
from countvi.estimators._build_regularized import Start, build_regularized, purposes_of
from countvi.estimators._indices import Indices
from countvi.estimators._regularized import RegularizedEstimator

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from torch import Tensor

    from countvi.models.regularized import Regularized


class AmbientEstimator(RegularizedEstimator, ABC):
    """Base of the regularised estimators: technical effects, and counts without them."""

    def get_ambient_fraction(
        self,
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
        cells, draws = self._cells(adata, indices, batch_size), _draws(n_samples)
        return self._over(
            modality,
            lambda name: query.ambient_fraction(self.module, cells, modality=name, seed=seed, **draws),
            self._with_background(modality),
        )

    def get_decontaminated_counts(
        self,
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
        cells, draws = self._cells(adata, indices, batch_size), _draws(n_samples)
        return self._over(
            modality,
            lambda name: query.decontaminated_counts(
                self.module, cells, modality=name, integer=integer, seed=seed, **draws
            ),
            self._with_background(modality),
        )

    def get_background_profile(self, *, modality: str | None = None, normalize: bool = False) -> Any:
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
            frame = self._by_level(
                name, query.background_profile(self.module, modality=name), purposes_of(self.registry).ambient
            )
            return frame / frame.sum() if normalize else frame

        return self._over(modality, compute, self._with_background(modality))

    def get_feature_scaling(self, *, modality: str | None = None) -> Any:
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
        self._check_among(modality, scaled, "feature factors")

        def compute(name: str) -> pd.DataFrame:
            scaling = self.module.modalities[name].scaling
            assert scaling is not None
            return self._by_level(name, _numpy(scaling.per_level()), purposes_of(self.registry).scaling)

        return self._over(modality, compute, scaled)

    def get_inverse_dispersion(self, *, modality: str | None = None) -> Any:
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
            return self._by_level(name, _numpy([dispersion.loc.exp()]), columns)

        return self._over(modality, compute)

    def get_log_prior(self) -> dict[str, float]:
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

    # ---------------------------------------------------------------- helpers

    def _build(self, dataset: data_layer.Dataset | None) -> Regularized:
        names = [modality.name for modality in self.registry.modalities]
        if self._init_args["n_hidden"] is None:  # left to the counts, if there are any; a saved model knows its sizes
            self._options = self._options if dataset is None else self._options.sized(dataset)
            self._init_args["n_hidden"] = dict(self._options.values["n_hidden"])
        if dataset is None or self._loaded:
            starts = dict.fromkeys(names, Start.unknown(self.registry))
        else:
            starts = {name: Start.of(dataset, name, self._options) for name in names}
        return build_regularized(self._options, self.registry, starts)

    @property
    def _takes_negative(self) -> bool:
        return False

    @property
    def _unread_roles(self) -> frozenset[str]:
        return frozenset({"labels"})

    def _check_counts(self, dataset: data_layer.Dataset) -> None:
        assert self.adata is not None
        for modality in self.registry.modalities:
            data_layer.check_counts(dataset.summary(modality.name), self.adata, modality)

    def _with_background(self, modality: str | None) -> list[str]:
        having = [name for name, part in self.module.modalities.items() if part.background is not None]
        self._check_among(modality, having, "a background")
        return having

    def _check_among(self, modality: str | None, having: Sequence[str], what: str) -> None:
        """Raise if what is asked for has no such part."""
        if modality is not None:
            self.registry.modality(modality)
        if not having or (modality is not None and modality not in having):
            of_which = "The model" if modality is None else f"Modality {modality!r}"
            message = f"{of_which} was built without {what}."
            raise OptionError(message)

    def _by_level(self, modality: str, tables: Sequence[np.ndarray], columns: Sequence[int]) -> pd.DataFrame:
        """Label tables of levels x features, one for each covariate; without covariates, the only row."""
        given = [self.registry.columns[column] for column in columns]
        levels = [["all"] if column.key is None else list(column.categories) for column in given] or [["all"]]
        if len(tables) == 1:
            key = given[0].key if given else None
            names = pd.Index(levels[0], name=key)
        else:
            pairs = [(column.key, level) for column, of in zip(given, levels, strict=True) for level in of]
            names = pd.MultiIndex.from_tuples(pairs, names=["covariate", "level"])
        return pd.DataFrame(np.concatenate(tables).T, index=_modality.feature_names(self, modality), columns=names)


def _draws(n_samples: int | None) -> dict[str, Any]:
    if n_samples is None:
        return {"use_z_mean": True}
    _training.check_size("n_samples", n_samples)
    return {"use_z_mean": False, "n_samples": n_samples}


def _numpy(tables: Sequence[Tensor]) -> list[np.ndarray]:
    return [table.detach().cpu().numpy() for table in tables]
