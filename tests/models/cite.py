"""Small models of RNA and protein, and how many numbers they learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np

import countvi
from countvi.batch import Batch
from countvi.errors import DataWarning
from countvi.models.count_model import CountModel

N_PROTEINS = 4
N_HIDDEN, N_LATENT = 8, 3


def with_proteins(adata: anndata.AnnData, gaps: bool) -> anndata.AnnData:
    """Add proteins; with gaps, one that a batch lacks, one cell without any, and a cell that lacks one."""
    rng = np.random.default_rng(3)
    adata = adata.copy()
    proteins = rng.poisson(rng.gamma(1.0, 9.0, (adata.n_obs, N_PROTEINS))).astype(np.float32)
    if gaps:
        proteins[adata.obs["batch"] == "b1", 2] = np.nan
        proteins[7] = np.nan
        proteins[9, 0] = np.nan
    adata.obsm["protein"] = proteins
    return adata


def build(
    adata: anndata.AnnData, options: dict[str, Any], keys: dict[str, Any], gaps: bool, seed: int
) -> tuple[CountModel, Batch]:
    """The model, and a minibatch of all cells."""
    adata = with_proteins(adata, gaps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        countvi.TOTALVI.setup_anndata(adata, "protein", **keys)
        model = countvi.TOTALVI(adata, n_hidden=N_HIDDEN, n_latent=N_LATENT, seed=seed, **options)
    return model.module, model.dataset.batch(np.arange(adata.n_obs))


def count(n_genes: int, levels: Sequence[int], options: dict[str, Any], keys: dict[str, Any], n_labels: int) -> int:
    """Number of learned numbers, from the equations; ``levels`` are those of batch and of categorical covariates."""
    n_batches, n_levels = levels[0], sum(n for n in levels if n > 1)
    n_features = len(keys.get("continuous_covariate_keys", ()))
    norm = {"both": (2, 2), "encoder": (2, 0), "decoder": (0, 2), "none": (0, 0)}[options.get("use_batch_norm", "both")]
    encode = options.get("encode_covariates", True)

    def encoder(layers: int, n_out: int) -> int:
        first = n_genes + N_PROTEINS + encode * (n_features + n_levels) + 1 + norm[0]
        deeper = N_HIDDEN + encode * n_levels + 1 + norm[0]
        return N_HIDDEN * (first + (layers - 1) * deeper) + 2 * n_out * (N_HIDDEN + 1)

    def head(n_out: int) -> int:
        return n_out * (N_HIDDEN + N_LATENT + n_features + n_levels + 1)

    layers = options.get("n_layers_decoder", 1)
    trunk = N_HIDDEN * (N_LATENT + n_features + n_levels + 1 + norm[1])
    trunk += (layers - 1) * N_HIDDEN * (N_HIDDEN + n_levels + 1 + norm[1])
    n = encoder(options.get("n_layers_encoder", 2), N_LATENT) + 4 * trunk + head(n_genes) + 4 * head(N_PROTEINS)
    if not options.get("use_observed_lib_size", True) and "size_factor_key" not in keys:
        n += encoder(1, 1)
    n += head(n_genes) if options.get("gene_likelihood") == "zinb" else 0
    n += {
        "gene": n_genes,
        "gene-batch": n_genes * n_batches,
        "gene-label": n_genes * n_labels,
        "gene-cell": head(n_genes),
    }[options.get("gene_dispersion", "gene")]
    n += (
        N_PROTEINS
        * {"protein": 1, "protein-batch": n_batches, "protein-label": n_labels}[
            options.get("protein_dispersion", "protein")
        ]
    )
    n += N_PROTEINS * n_batches * (1 if options.get("protein_batch_efficiency") else 0)
    panels = {"donor": 4}.get(keys.get("panel_key", ""), n_batches)
    return n + 2 * N_PROTEINS * panels
