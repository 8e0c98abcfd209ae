"""Small simulated data and small models, for tests that go through what users call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi


def simulate_adata(n_cells: int = 40, n_genes: int = 12, seed: int = 0) -> anndata.AnnData:
    """Counts as CSR, no empty cell and no empty gene, with annotations of every kind."""
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(2.0, 0.4, (n_cells, n_genes)).astype(np.float32)
    counts[:, 0] += 1
    counts[0] += 1
    cell = np.arange(n_cells)
    obs = pd.DataFrame(
        {
            "batch": np.array(["b", "a", "c"])[cell % 3],
            "label": pd.Categorical(np.array(["T", "B"])[cell % 2]),
            "donor": cell % 4,
            "age": rng.normal(size=n_cells),
            "sf": rng.gamma(5.0, 0.3, n_cells),
        },
        index=[f"cell{i}" for i in cell],
    )
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))


def fit_small(
    adata: anndata.AnnData, setup: dict[str, Any] | None = None, epochs: int = 1, **options: Any
) -> countvi.SCVI:
    """Set up, build a tiny SCVI and train it briefly."""
    countvi.SCVI.setup_anndata(adata, **(setup or {}))
    model = countvi.SCVI(adata, **{"n_hidden": 8, "n_latent": 3, **options})
    model.train(epochs, batch_size=16, enable_progress_bar=False)
    return model


@pytest.fixture(scope="session")
def simulate() -> Callable[..., anndata.AnnData]:
    """Factory of small data sets: ``simulate(n_cells, n_genes, seed)``."""
    return simulate_adata


@pytest.fixture(scope="session")
def fit() -> Callable[..., countvi.SCVI]:
    """Factory of fitted models: ``fit(adata, setup, epochs, **options)``."""
    return fit_small
