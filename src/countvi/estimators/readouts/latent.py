"""Cell states: ``get_latent_representation``, ``get_aggregated_posterior``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from countvi import query, seeding
from countvi.estimators.names import Indices
from countvi.estimators.options import WHOLE
from countvi.estimators.readouts.abundance import DOF, check_cells

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from torch.distributions import MixtureSameFamily

    from countvi.estimators.state import Fitted


def get_latent_representation(
    self: Fitted,
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
    WHOLE("mc_samples", mc_samples)
    cells = self.view(adata, indices, batch_size).cells
    if return_dist:
        loc, scale = query.latent_moments(self.module, cells)
        return loc, scale**2
    return query.latent_states(self.module, cells, give_mean=give_mean, mc_samples=mc_samples, seed=seed)


def get_aggregated_posterior(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    batch_size: int | None = None,
    dof: float | None = 3.0,
) -> MixtureSameFamily:
    """Return the posteriors of cells as one density over z: a mixture in which each cell has the same weight.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    dof
        Degrees of freedom of Student's t, whose tails are heavier than those of a normal; ``None`` for normals.

    Returns
    -------
    torch.distributions.MixtureSameFamily
        Over vectors of length ``n_latent``.
    """
    if dof is not None:
        DOF("dof", dof)
    loc, scale = query.latent_moments(self.module, self.view(adata, indices, batch_size).cells)
    check_cells(loc, "adata")
    return query.aggregated_posterior(loc, scale, dof)
