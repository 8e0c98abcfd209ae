"""The response of blood cells to interferon (Kang et al. 2018), beside a pseudobulk t-test over donors.

Reads the folder that COUNTVI_TEST_DATA names.
"""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

import countvi

pytestmark = pytest.mark.data

KNOWN = ["ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "ISG20", "LY6E"]
N_GENES = 800


@pytest.fixture(scope="module")
def kang() -> anndata.AnnData:
    path = Path(os.environ.get("COUNTVI_TEST_DATA", "")) / "pbmc_kang_ctrl_stim.h5ad"
    if not path.is_file():
        pytest.skip("COUNTVI_TEST_DATA does not name a folder with this data set")
    adata = anndata.read_h5ad(path)
    adata = adata[adata.obs["cell_type"].isin(["CD4 T", "CD14 Mono"]) & (adata.obs["donor"] != "NA")]
    mean = np.asarray(adata.X.mean(0)).ravel()
    keep = np.zeros(adata.n_vars, dtype=bool)
    keep[np.argsort(-mean)[:N_GENES]] = True
    keep |= adata.var_names.isin(KNOWN)
    adata = adata[:, keep].copy()
    adata.X = sp.csr_matrix(adata.X).astype(np.float32)
    return adata


def pseudobulk(adata: anndata.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Mean log2 fold change over donors and p-value of a paired t-test, from summed counts."""
    changes = []
    for donor in adata.obs["donor"].unique():
        levels = []
        for batch in ("stim", "ctrl"):
            cells = ((adata.obs["donor"] == donor) & (adata.obs["batch"] == batch)).to_numpy()
            total = np.asarray(adata.X[cells].sum(0)).ravel()
            levels.append(np.log2(1e6 * total / total.sum() + 50.0))
        changes.append(levels[0] - levels[1])
    return np.mean(changes, axis=0), stats.ttest_1samp(changes, 0.0, axis=0).pvalue


def test_interferon_response_over_donors(kang):
    countvi.SCVI.setup_anndata(kang)
    model = countvi.SCVI(kang, gene_likelihood="nb")
    model.train(20, enable_progress_bar=False)
    table = model.differential_expression(
        groupby="batch",
        group1="stim",
        group2="ctrl",
        subset_idx="cell_type == 'CD4 T'",
        sample_key="donor",
        n_samples_overall=2000,
    ).loc[kang.var_names]
    change, p = pseudobulk(kang[kang.obs["cell_type"] == "CD4 T"])
    assert (table["n_replicates1"] == 8).all()
    known = kang.var_names.isin(KNOWN)
    assert table["is_de_replicates_fdr_0.05"][known].all()
    assert (table["replicate_lfc"][known] > 1).all()
    assert table["is_de_fdr_0.05"][known].mean() > 0.8
    clear = (p < 1e-3) & (np.abs(change) > 0.5)
    assert clear.sum() > 20
    assert stats.spearmanr(table["replicate_lfc"][clear], change[clear]).statistic > 0.85
    assert (np.sign(table["replicate_lfc"][clear]) == np.sign(change[clear])).mean() > 0.95
    first = set(table["replicate_lfc"].nlargest(15).index)
    assert len(first & set(kang.var_names[np.argsort(-change)[:15]])) >= 10
