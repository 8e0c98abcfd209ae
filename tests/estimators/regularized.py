"""Small data with batches, donors and ambient counts, in one modality and in two, and models of them."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

N_CELLS, N_GENES, N_PEAKS = 60, 12, 9

QUIET = {"enable_progress_bar": False, "batch_size": 32}
SMALL: dict[str, Any] = {"n_hidden": 8, "n_latent": 3}

SETUPS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "batch": {"batch_key": "batch"},
    "batch and conditioning": {"batch_key": "batch", "nn_conditioning_covariate_keys": ["donor", "batch"]},
    "by purpose": {
        "ambient_covariate_keys": ["batch", "lane"],
        "nn_conditioning_covariate_keys": ["donor"],
        "feature_scaling_covariate_keys": ["donor", "lane"],
        "dispersion_key": "donor",
        "library_size_key": "lane",
        "nn_continuous_covariate_keys": ["age"],
        "labels_key": "type",
    },
    "layer": {"layer": "counts", "dispersion_key": "batch"},
}


def make_obs(n_cells: int = N_CELLS) -> pd.DataFrame:
    cell = np.arange(n_cells)
    return pd.DataFrame(
        {
            "batch": np.array(["b0", "b1"])[cell % 2],
            "lane": np.array([2, 1])[cell // 5 % 2],
            "donor": pd.Categorical(np.array(["x", "y", "z"])[cell % 3]),
            "type": np.array(["T", "B"])[cell // 7 % 2],
            "age": np.sin(cell),
        },
        index=[f"cell{i}" for i in cell],
    )


def make_rna(seed: int = 0, n_cells: int = N_CELLS, n_genes: int = N_GENES) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, 1.5, (2, n_genes))[np.arange(n_cells) // 7 % 2] * rng.lognormal(0, 0.3, (n_cells, 1))
    counts = rng.poisson(rates + rng.gamma(1.0, 0.5, (2, n_genes))[np.arange(n_cells) % 2]).astype(np.float32)
    counts[:, 0] += 1
    counts[0] += 1
    adata = anndata.AnnData(
        sp.csr_matrix(counts), obs=make_obs(n_cells), var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    )
    adata.layers["counts"] = adata.X.copy()
    return adata


def make_atac(seed: int = 1, cells: slice = slice(None), n_peaks: int = N_PEAKS) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (N_CELLS, n_peaks)).astype(np.float32)
    counts[:, 0] += 1
    counts[0] += 1
    var = pd.DataFrame(index=[f"chr1:{i}-{i + 5}" for i in range(n_peaks)])
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=make_obs(), var=var)
    adata.layers["counts"] = adata.X.copy()
    return adata[cells].copy()


def make_mdata(**parts: anndata.AnnData) -> Any:
    """By default 60 cells, of which the last 20 have no ATAC and 5 others no RNA."""
    import mudata

    with mudata.set_options(pull_on_update=False):
        if parts:
            return mudata.MuData(parts)
        return mudata.MuData({"rna": make_rna()[5:].copy(), "atac": make_atac(cells=slice(40))})
