"""Data sets of the benchmarks: real ones from the folder COUNTVI_TEST_DATA, and simulated ones.

Each has integer counts in ``X`` (CSR, float32) and, where it has them, ``obs["batch"]`` and ``obs["cell_type"]``.
"""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

_FILES = {
    "kang": "pbmc_kang_ctrl_stim.h5ad",
    "pbmc3k": "pbmc3k_10x.h5ad",
    "pbmc4k": "pbmc4k_soupx_ambient_profile.h5ad",
    "pdac": "pdac_indrop_reference.h5ad",
    "citeseq": "pbmc_citeseq_10k_5k.h5ad",
    "snareseq": "snareseq_mouse_m1_rna_atac.h5ad",
}


UNKNOWN = ("unassigned", "ambiguous", "?")
"""Labels that say that the type is not known."""


def file_of(name: str) -> str:
    """File of a real data set, in the folder COUNTVI_TEST_DATA."""
    return _FILES[name]


def available() -> list[str]:
    """Names of the real data sets on this machine."""
    folder = os.environ.get("COUNTVI_TEST_DATA")
    return [] if folder is None else [name for name, file in _FILES.items() if (Path(folder) / file).exists()]


def load(name: str, n_genes: int | None) -> anndata.AnnData:
    """Read the RNA of a real data set, restricted to its most variable genes.

    Parameters
    ----------
    name
        One of :func:`available`.
    n_genes
        How many genes to keep; ``None`` for all that are seen in three cells.
    """
    adata = anndata.read_h5ad(Path(os.environ["COUNTVI_TEST_DATA"]) / _FILES[name])
    if "modality" in adata.var:
        adata = adata[:, adata.var["modality"] == "Gene Expression"].copy()
    adata.X = sp.csr_matrix(adata.X).astype(np.float32)
    seen = np.asarray((adata.X > 0).sum(0)).ravel() >= 3
    return variable_genes(adata[:, seen].copy(), n_genes)


def halves(n_cells: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and a tenth held out."""
    order = np.random.default_rng(seed).permutation(n_cells)
    held_out = n_cells // 10
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def variable_genes(adata: anndata.AnnData, n_genes: int | None) -> anndata.AnnData:
    """Keep the genes whose variance exceeds most what a Poisson with their mean would have (log-normalised scale)."""
    if n_genes is None or n_genes >= adata.n_vars:
        return adata
    totals = np.asarray(adata.X.sum(1)).ravel()
    scaled = sp.diags(np.median(totals) / np.maximum(totals, 1)) @ adata.X
    mean = np.asarray(scaled.mean(0)).ravel()
    square = np.asarray(scaled.multiply(scaled).mean(0)).ravel()
    excess = (square - mean**2) / np.maximum(mean, 1e-9) * np.log1p(mean)
    keep = np.sort(np.argsort(-excess)[:n_genes])
    return adata[:, keep].copy()


def simulate(n_cells: int, n_genes: int, *, density: float = 0.1, n_types: int = 10, seed: int = 0) -> anndata.AnnData:
    """Draw counts of cell types in two batches: gamma-Poisson around smooth type profiles.

    Parameters
    ----------
    n_cells, n_genes
        Size.
    density
        Share of nonzero entries, roughly.
    n_types
        Number of cell types.
    seed
        Seed.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(0.0, 1.5, n_genes)
    loadings = rng.normal(0.0, 1.0, (n_types, n_genes)) * (rng.random((n_types, n_genes)) < 0.15)
    shift = rng.normal(0.0, 0.3, (2, n_genes))
    types, batch = rng.integers(n_types, size=n_cells), rng.integers(2, size=n_cells)
    theta = rng.gamma(2.0, 1.0, n_genes) + 0.3
    total = density * n_genes * 1.6 * rng.lognormal(0.0, 0.4, n_cells)
    blocks = []
    for start in range(0, n_cells, 2_000):
        rows = slice(start, start + 2_000)
        logits = base + loadings[types[rows]] * rng.lognormal(0.0, 0.3, (len(types[rows]), 1)) + shift[batch[rows]]
        frequency = np.exp(logits - logits.max(1, keepdims=True))
        rate = total[rows, None] * frequency / frequency.sum(1, keepdims=True)
        blocks.append(sp.csr_matrix(rng.poisson(rng.gamma(theta, rate / theta)).astype(np.float32)))
    obs = pd.DataFrame(
        {"batch": batch.astype(str), "cell_type": types.astype(str)}, index=[f"c{i}" for i in range(n_cells)]
    )
    return anndata.AnnData(
        sp.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    )
