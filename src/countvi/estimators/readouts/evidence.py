"""Evidence of cells: ``get_elbo``, ``get_reconstruction_error``, ``get_marginal_ll``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators.names import Indices
from countvi.estimators.options import WHOLE

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted

# Importance sampling holds many draws per cell, so it takes fewer cells at a time.
_EVIDENCE_BATCH = 64


def get_elbo(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    batch_size: int | None = None,
    return_mean: bool = True,
    seed: int = seeding.DEFAULT_SEED,
) -> float | np.ndarray:
    """Return the evidence lower bound per cell in nats: higher is better.

    One draw of the latent variables, KL at full weight, no global terms.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells: other data, rows or a mask, and how many at a time.
    return_mean
        The mean over cells, or one value per cell, shape ``(cells,)``.
    seed
        Of the draw.

    Returns
    -------
    float or numpy.ndarray
        The mean, or shape ``(cells,)``.
    """
    values = query.elbo(self.module, self.view(adata, indices, batch_size).cells, seed=seed)
    return mean_over_cells(values) if return_mean else values


def get_reconstruction_error(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    batch_size: int | None = None,
    return_mean: bool = True,
    seed: int = seeding.DEFAULT_SEED,
) -> dict[str, float] | dict[str, np.ndarray]:
    """Return the negative log-likelihood per cell in nats given a draw of the latent variables: lower is better.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    return_mean
        The mean over cells, or one value per cell, shape ``(cells,)``.
    seed
        Of the draw.

    Returns
    -------
    dict
        ``{"reconstruction_loss": ...}``; a model of several modalities has one entry for each, NaN in cells that a
        modality was not measured in, which do not count in its mean.
    """
    view = self.view(adata, indices, batch_size)
    errors, measured = query.reconstruction(self.module, view.cells, seed=seed), view.measured
    found: dict[str, Any] = {}
    for modality, values in errors.items():
        name = "reconstruction_loss" if len(errors) == 1 else modality
        present = measured.get(modality, np.ones(len(values), dtype=bool))
        found[name] = mean_over_cells(values[present]) if return_mean else np.where(present, values, np.nan)
    return found


def get_marginal_ll(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    n_mc_samples: int = 1_000,
    n_mc_samples_per_pass: int = 20,
    batch_size: int | None = None,
    return_mean: bool = True,
    seed: int = seeding.DEFAULT_SEED,
) -> float | np.ndarray:
    """Return the marginal log-likelihood log p(x) per cell in nats, by importance sampling from the guide.

    A lower bound that tightens with the number of samples (Burda et al. 2016); higher is better.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    n_mc_samples, n_mc_samples_per_pass
        Draws per cell, and how many are held at a time.
    return_mean
        The mean over cells, or one value per cell, shape ``(cells,)``.
    seed
        Of the draws.

    Returns
    -------
    float or numpy.ndarray
        The mean, or shape ``(cells,)``.
    """
    WHOLE("n_mc_samples", n_mc_samples)
    WHOLE("n_mc_samples_per_pass", n_mc_samples_per_pass)
    cells = self.view(adata, indices, _EVIDENCE_BATCH if batch_size is None else batch_size).cells
    values = query.marginal_log_likelihood(
        self.module, cells, n_samples=n_mc_samples, samples_per_pass=n_mc_samples_per_pass, seed=seed
    )
    return mean_over_cells(values) if return_mean else values


def mean_over_cells(values: np.ndarray) -> float:
    """Mean over cells.

    Raises
    ------
    OptionError
        If there are none.
    """
    if not len(values):
        message = (
            "A mean over cells needs at least one cell; indices selects none. Pass return_mean=False for an array."
        )
        raise OptionError(message)
    return float(values.mean())
