"""Read-outs that every model has: cell states and evidence."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Any

import numpy as np

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators import _training
from countvi.estimators._indices import Indices
from countvi.estimators._trainable import Trainable

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

# Evidence by importance sampling holds many draws per cell, so it takes fewer cells at a time.
_EVIDENCE_BATCH = 64


class CountEstimator(Trainable, ABC):
    """Base of the estimators: the read-outs that every model has."""

    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Indices = None,
        *,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        seed: int = seeding.DEFAULT_SEED,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        r"""Return the cell state.

        Parameters
        ----------
        adata
            Cells; by default those of the model. Genes are matched by name, categories by value.
        indices
            Rows or a mask; by default all.
        give_mean
            The posterior mean, or one draw.
        mc_samples
            Draws behind the mean of a logistic-normal state, which has no closed form.
        batch_size
            Cells at a time.
        return_dist
            Return mean and variance of :math:`q(z \mid x)` instead (before the softmax of a logistic normal).
        seed
            Of the draws.

        Returns
        -------
        numpy.ndarray
            Shape ``(cells, n_latent)``; with ``return_dist``, two of them.
        """
        _training.check_size("mc_samples", mc_samples)
        cells = self._cells(adata, indices, batch_size)
        if return_dist:
            loc, scale = query.latent_moments(self.module, cells)
            return loc, scale**2
        return query.latent_states(self.module, cells, give_mean=give_mean, mc_samples=mc_samples, seed=seed)

    def get_elbo(
        self,
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
            Which cells; see :meth:`get_latent_representation`.
        return_mean
            The mean over cells, or one value per cell, shape ``(cells,)``.
        seed
            Of the draw.
        """
        values = query.elbo(self.module, self._cells(adata, indices, batch_size), seed=seed)
        return _mean(values) if return_mean else values

    def get_reconstruction_error(
        self,
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
        cells = self._cells(adata, indices, batch_size)
        errors, measured = query.reconstruction(self.module, cells, seed=seed), self._measured(cells)
        found: dict[str, Any] = {}
        for modality, values in errors.items():
            name = "reconstruction_loss" if len(errors) == 1 else modality
            present = measured.get(modality, np.ones(len(values), dtype=bool))
            found[name] = _mean(values[present]) if return_mean else np.where(present, values, np.nan)
        return found

    def get_marginal_ll(
        self,
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
        """
        _training.check_size("n_mc_samples", n_mc_samples)
        _training.check_size("n_mc_samples_per_pass", n_mc_samples_per_pass)
        cells = self._cells(adata, indices, _EVIDENCE_BATCH if batch_size is None else batch_size)
        values = query.marginal_log_likelihood(
            self.module, cells, n_samples=n_mc_samples, samples_per_pass=n_mc_samples_per_pass, seed=seed
        )
        return _mean(values) if return_mean else values


def _mean(values: np.ndarray) -> float:
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
