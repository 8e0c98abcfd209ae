"""Correlations between features: ``get_feature_correlation_matrix`` of all models but TOTALVI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators.names import Indices, resolve_batches
from countvi.estimators.options import POSITIVE, WHOLE
from countvi.estimators.readouts.features import chosen_features, per_modality

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted


def get_feature_correlation_matrix(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    modality: str | None = None,
    n_samples: int = 10,
    batch_size: int | None = None,
    rna_size_factor: float = 1_000.0,
    transform_batch: Any = None,
    correlation_type: Literal["spearman", "pearson"] = "spearman",
    gene_list: Sequence[str] | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    """Return correlations between features of draws of denoised expression.

    Of gamma draws, that is with the biological overdispersion but without counting noise.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    modality
        Which modality.
    n_samples
        Posterior draws per cell.
    rna_size_factor
        Total that cells are scaled to before the gamma draws.
    transform_batch
        As in :meth:`get_normalized_expression`; a list averages the matrices.
    correlation_type
        ``"spearman"`` or ``"pearson"``.
    gene_list
        Features, in this order; with all of them the matrix is large.
    seed
        Of the draws.

    Returns
    -------
    DataFrame
        Features x features, symmetric, between -1 and 1. Of several modalities, a dictionary by name unless one is
        named.

    Raises
    ------
    OptionError
        If there is no cell or no feature.
    """
    WHOLE("n_samples", n_samples)
    cells = self.view(adata, indices, batch_size).cells
    size_factor = POSITIVE("rna_size_factor", rna_size_factor)

    def of(name: str) -> pd.DataFrame:
        genes = chosen_features(self, name, gene_list)
        if not len(genes.names):
            message = "gene_list is empty; correlations need at least one gene."
            raise OptionError(message)
        if not len(cells):
            message = "Correlations between genes need at least one cell; indices selects none."
            raise OptionError(message)
        matrix = query.feature_correlation(
            query.DenoisedFeatures(self.module, {name: genes.columns}, size_factor),
            cells,
            counterfactuals=resolve_batches(transform_batch, self.registry),
            n_samples=n_samples,
            correlation=correlation_type,
            seed=seed,
        )
        return pd.DataFrame(matrix, index=genes.names, columns=genes.names)

    return per_modality(self, modality, of)
