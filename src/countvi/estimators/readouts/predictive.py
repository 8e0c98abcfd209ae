"""What a model says about counts: their distribution, and draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from countvi import query, seeding
from countvi.estimators.names import Indices, resolve_genes
from countvi.estimators.options import WHOLE
from countvi.estimators.readouts.features import feature_names, one_counterfactual, per_modality

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
    """Return the parameters of each count's distribution.

    Returns
    -------
    dict
        ``"mean"`` of the negative binomial, background included, and ``"dispersions"``, the posterior median of the
        inverse dispersion theta: shape ``(cells, features)``, or ``(n_samples, cells, features)`` for several
        samples without ``give_mean``. Of several modalities, a dictionary by name unless one is named.
    """
    WHOLE("n_samples", n_samples)
    cells = self.view(adata, indices, batch_size).cells
    return per_modality(
        self,
        modality,
        lambda name: query.likelihood_parameters(
            self.module, cells, modality=name, n_samples=n_samples, give_mean=give_mean, seed=seed
        ),
    )


def get_latent_library_size(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    modality: str | None = None,
    give_mean: bool = True,
    batch_size: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    """Return library sizes in counts, ``(cells, 1)``: the posterior mean, or a draw.

    NaN where a modality was not measured. Of several modalities, a dictionary by name unless one is named.
    """
    view = self.view(adata, indices, batch_size)
    sizes = query.library_size(self.module, view.cells, give_mean=give_mean, seed=seed)
    measured, names = view.measured, [m.name for m in self.registry.modalities]

    def compute(name: str) -> np.ndarray:
        column = sizes[:, [names.index(name)]]
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
        genes = resolve_genes(gene_list, feature_names(self, name))
        samples = query.posterior_predictive(
            self.module,
            cells,
            modality=name,
            genes=genes,
            counterfactual=counterfactual,
            n_samples=n_samples,
            seed=seed,
        )
        return samples[0] if n_samples == 1 else samples

    return per_modality(self, modality, of)
