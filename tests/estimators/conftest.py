"""A small data set with structure, and a model of it that was trained once."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi

N_CELLS, N_GENES = 90, 15


def make_adata(seed: int = 0) -> anndata.AnnData:
    """Counts of two groups of cells in three batches, with every kind of covariate."""
    rng = np.random.default_rng(seed)
    group = rng.integers(2, size=N_CELLS)
    rates = np.exp(rng.normal(0.5, 0.7, (2, N_GENES)))[group] * rng.lognormal(0, 0.3, (N_CELLS, 1))
    counts = rng.poisson(rates).astype(np.float32)
    obs = pd.DataFrame(
        {
            "batch": np.array(["b0", "b1", "b2"])[np.arange(N_CELLS) % 3],
            "label": np.where(group == 1, "T", "B"),
            "donor": rng.choice(["d1", "d2"], N_CELLS),
            "age": rng.normal(size=N_CELLS),
            "size": rng.uniform(0.5, 2.0, N_CELLS),
        },
        index=[f"c{i}" for i in range(N_CELLS)],
    )
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    adata.layers["counts"] = adata.X.copy()
    adata.uns["mine"] = {"a": 1}
    return adata


@pytest.fixture
def adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture(scope="session")
def trained() -> countvi.SCVI:
    """Trained once for all read-out tests; they do not change it."""
    adata = make_adata()
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    model = countvi.SCVI(adata, n_hidden=16, n_latent=3)
    model.train(5, enable_progress_bar=False)
    return model
