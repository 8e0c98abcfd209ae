"""Distributions of counts: their parameters, library sizes, and draws of new counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators.names import Indices
from countvi.estimators.options import WHOLE
from countvi.estimators.readouts.features import chosen_features, one_counterfactual, per_modality

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted


def get_likelihood_parameters(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    modality: str | None = None,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    """Return the parameters of each count's distribution, from posterior draws.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    modality
        Which modality.
    n_samples
        Posterior draws per cell.
    give_mean
        Average over the draws, or keep them.
    seed
        Of the draws.

    Returns
    -------
    dict
        Arrays of shape ``(cells, features)``, or ``(n_samples, cells, features)`` for several samples without
        ``give_mean``, as far as the likelihood has them. ``"mean"``: expected counts, background included, before
        dropout. ``"dispersions"``: inverse dispersion theta (its posterior median, where it is inferred), with
        Var[x] = mean + mean^2 / theta. ``"dropout"``: probability that a count is replaced by zero.
        ``"standard_deviation"``: of the normal likelihood. Of several modalities, a dictionary by name unless one
        is named.
    """
    WHOLE("n_samples", n_samples)
    cells, draws = self.view(adata, indices, batch_size).cells, query.Draws(n_samples, give_mean, seed=seed)
    return per_modality(
        self, modality, lambda name: query.likelihood_parameters(self.module, cells, draws, modality=name)
    )


def get_latent_library_size(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    give_mean: bool = True,
    batch_size: int | None = None,
    *,
    modality: str | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    """Return library sizes in counts: inferred where the model infers them, otherwise observed, or given.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    give_mean
        The posterior mean, or one draw.
    modality
        Which modality.
    seed
        Of the draw.

    Returns
    -------
    numpy.ndarray
        Shape ``(cells, 1)``; NaN where a modality was not measured. Of several modalities, a dictionary by name unless
        one is named. Proteins of :class:`countvi.TOTALVI` have no library size.

    Raises
    ------
    OptionError
        If the modality has no library size.
    """
    view = self.view(adata, indices, batch_size)
    sizes = query.library_size(self.module, view.cells, give_mean=give_mean, seed=seed)
    measured, names = view.measured, [m.name for m in self.registry.modalities]

    def compute(name: str) -> np.ndarray:
        place = names.index(name)
        if place >= sizes.shape[1]:
            message = f"Modality {name!r} has no library size."
            raise OptionError(message)
        column = sizes[:, [place]]
        return np.where(measured[name][:, None], column, np.nan) if name in measured else column

    return per_modality(self, modality, compute)


def posterior_predictive_sample(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    modality: str | None = None,
    transform_batch: Any = None,
    n_samples: int = 1,
    gene_list: Sequence[str] | None = None,
    batch_size: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    """Draw new counts for each cell from the fitted model, ambient ones included.

    Parameters
    ----------
    adata, indices, batch_size, gene_list, modality
        Which cells and features; see :meth:`get_normalized_expression`.
    transform_batch
        One batch, or one set of covariates, to simulate every cell in; ``None`` for its own.
    n_samples
        Data sets to draw.
    seed
        Of the draws.

    Returns
    -------
    scipy.sparse.csr_array
        Shape ``(cells, features)``; a list of ``n_samples`` of them for several samples. Of several modalities, a
        dictionary by name unless one is named; where one was not measured, what would be expected there.
    """
    WHOLE("n_samples", n_samples)
    cells = self.view(adata, indices, batch_size).cells
    counterfactual = one_counterfactual(transform_batch, self.registry)

    def of(name: str) -> Any:
        genes = chosen_features(self, name, gene_list).columns
        samples = query.posterior_predictive(
            self.module, cells, {name: genes}, counterfactual=counterfactual, n_samples=n_samples, seed=seed
        )[name]
        return samples[0] if n_samples == 1 else samples

    return per_modality(self, modality, of)
