"""Read-outs that every model has: how well it explains cells."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Any

import numpy as np

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators._indices import Indices
from countvi.estimators._trainable import Trainable

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


class ScoredEstimator(Trainable, ABC):
    """Base of the estimators: how well the model explains cells."""

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
            Which cells: other data, rows or a mask, and how many at a time.
        return_mean
            The mean over cells, or one value per cell, shape ``(cells,)``.
        seed
            Of the draw.
        """
        values = query.elbo(self.module, self._cells(adata, indices, batch_size), seed=seed)
        return mean_over_cells(values) if return_mean else values

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
            found[name] = mean_over_cells(values[present]) if return_mean else np.where(present, values, np.nan)
        return found


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
