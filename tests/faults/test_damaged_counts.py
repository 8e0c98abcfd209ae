"""Sparse counts whose indices point outside of the matrix are refused where they are read."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

import countvi
from countvi.errors import CountviError, DataError


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize(
    ("name", "value"), [("indices", 2**31 - 5), ("indices", -1), ("indptr", 10**6), ("indptr", -1)]
)
def test_indices_outside_of_the_matrix(tmp_path, name, value, backed):
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (30, 8)).astype(np.float32))
    anndata.AnnData(counts).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["X"][name][3] = value
    with pytest.raises(DataError if backed else CountviError, match="is broken: its ind"):
        adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r" if backed else None)
        countvi.SCVI.setup_anndata(adata)
        countvi.SCVI(adata, n_hidden=4, n_latent=2)
