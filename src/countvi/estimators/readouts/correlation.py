"""Correlations between features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators.names import Indices, resolve_batches, resolve_genes
from countvi.estimators.options import POSITIVE, WHOLE
from countvi.estimators.readouts.features import feature_names, per_modality

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
    """Return correlations between features of denoised expression; see :class:`countvi.SCVI`.

    Returns
    -------
    DataFrame
        Features x features. Of several modalities, a dictionary by name unless one is named.
    """
    WHOLE("n_samples", n_samples)
    cells = self.view(adata, indices, batch_size).cells
    size_factor = POSITIVE("rna_size_factor", rna_size_factor)

    def of(name: str) -> pd.DataFrame:
        names = feature_names(self, name)
        columns = resolve_genes(gene_list, names)
        if columns is not None and not len(columns):
            message = "gene_list is empty; correlations need at least one gene."
            raise OptionError(message)
        if not len(cells):
            message = "Correlations between genes need at least one cell; indices selects none."
            raise OptionError(message)
        matrix = query.feature_correlation(
            self.module,
            cells,
            modality=name,
            genes=columns,
            rna_size_factor=size_factor,
            counterfactuals=resolve_batches(transform_batch, self.registry),
            n_samples=n_samples,
            correlation=correlation_type,
            seed=seed,
        )
        names = names if columns is None else names[columns]
        return pd.DataFrame(matrix, index=names, columns=names)

    return per_modality(self, modality, of)
