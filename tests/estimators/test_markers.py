"""Which genes are called, and by how much they change: blood cells with textbook markers, and known fold changes.

What is marked ``data`` reads the folder that COUNTVI_TEST_DATA names.
"""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi

pytestmark = pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")

N_VARIABLE = 2000
QUIET = {"enable_progress_bar": False}


# ---------------------------------------------------------------- simulation


def blood(seed: int = 0) -> tuple[anndata.AnnData, np.ndarray]:
    """Two types of 300 cells and the log2 fold change of each of 400 genes; genes are rare, and changes balance."""
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(-2.5, 1.5, 400))
    truth = np.zeros(400)
    truth[:80] = np.tile([3.0, -3.0], 40)
    rate[1:80:2] = rate[:80:2] * 8  # one rises to where the other falls from, so that no total changes
    of_t = np.arange(600) % 2 == 0
    expected = rate * 2.0 ** np.where(of_t[:, None], truth, 0.0) * rng.lognormal(0, 0.3, (600, 1))
    counts = sp.csr_matrix(rng.poisson(rng.gamma(5.0, expected / 5.0)).astype(np.float32))
    obs = pd.DataFrame({"type": np.where(of_t, "T", "B")}, index=[f"c{i}" for i in range(600)])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(400)])), truth


def compared(adata: anndata.AnnData, epochs: int = 40, **options) -> pd.DataFrame:
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_latent=4, n_hidden=32, gene_likelihood="nb")
    model.train(epochs, train_size=1.0, **QUIET)
    table = model.differential_expression(groupby="type", group1="T", n_samples_overall=2000, **options)
    return table.loc[adata.var_names]


@pytest.fixture(scope="module")
def simulated():
    adata, truth = blood()
    return adata, truth, compared(adata)


def test_changes_are_those_that_were_simulated(simulated):
    adata, truth, table = simulated
    seen = np.maximum(table["raw_mean1"], table["raw_mean2"]).to_numpy() > 0.5
    assert (seen & (truth != 0)).sum() > 20
    assert np.abs(table["lfc"][seen & (truth == 0)]).median() < 0.15
    depth = np.asarray(adata.X.sum(1)).mean()
    np.testing.assert_allclose(table["pseudocounts"], 0.1 / depth, rtol=1e-4)
    # What is known of the truth, with a tenth of a count on both sides.
    level = table["raw_mean2"].to_numpy()
    expected = np.log2((level * 2.0**truth + 0.1) / (level + 0.1))
    changed = seen & (truth != 0)
    assert np.median(np.abs(table["lfc"].to_numpy() - expected)[changed]) < 0.3
    assert table["is_de_fdr_0.05"][changed].mean() > 0.9
    called = table["is_de_fdr_0.05"].to_numpy() & seen
    assert (truth[called] == 0).mean() <= 0.05
    # Of genes with less than a tenth of a count, sampling noise of the means is learned; a small pseudocount shows it.
    there = compared(adata, convention="scvi-tools")
    false, false_there = (t["is_de_fdr_0.05"][truth == 0].sum() for t in (table, there))
    assert false < 0.5 * false_there


def test_changes_are_the_same_with_fewer_genes(simulated):
    """The automatic pseudocount of few and frequent genes hid those that change from little."""
    adata, truth, whole = simulated
    mean = np.asarray(adata.X.mean(0)).ravel()
    keep = (np.argsort(np.argsort(-mean)) < 120) | (truth != 0)
    part = compared(adata[:, keep].copy())
    both = whole[keep]
    share = adata.X[:, keep].sum() / adata.X.sum()
    np.testing.assert_allclose(part["pseudocounts"] * share, both["pseudocounts"], rtol=1e-3)
    changed = truth[keep] != 0
    assert np.corrcoef(part["lfc"], both["lfc"])[0, 1] > 0.95
    assert np.median(np.abs(part["lfc"] - both["lfc"])[changed]) < 0.25
    called = part["is_de_fdr_0.05"] == both["is_de_fdr_0.05"]
    assert called[changed].mean() > 0.9


def test_what_was_before_is_an_option(simulated):
    adata, _, table = simulated
    for convention in ("definition", "scvi-tools"):
        given = compared(adata, 1, pseudocounts=1e-3, convention=convention)
        np.testing.assert_allclose(given["pseudocounts"], 1e-3)
    rare = compared(adata, 1, convention="scvi-tools", threshold_counts=0.05)
    all_rare = compared(adata, 1, convention="scvi-tools", threshold_counts=1e9)
    assert rare["pseudocounts"].iloc[0] < all_rare["pseudocounts"].iloc[0] < table["pseudocounts"].iloc[0]


@pytest.mark.parametrize("name", ["CondSCVI", "AmbientRegularizedSCVI"])
def test_every_model_adds_a_tenth_of_a_count(name):
    adata, _ = blood()
    model_class = getattr(countvi, name)
    model_class.setup_anndata(adata, **({"labels_key": "type"} if name == "CondSCVI" else {}))
    model = model_class(adata, n_latent=2, n_hidden=8)
    model.train(1, **QUIET)
    table = model.differential_expression(groupby="type", group1="T", n_samples_overall=200)
    total = (table["scale1"].sum() + table["scale2"].sum()) / 2  # one, where these are frequencies
    np.testing.assert_allclose(table["pseudocounts"], 0.1 * total / np.asarray(adata.X.sum(1)).mean(), rtol=1e-4)
    by_hand = np.log2((table["scale1"] + table["pseudocounts"]) / (table["scale2"] + table["pseudocounts"]))
    np.testing.assert_allclose(table["lfc"], by_hand, atol=1e-5)


# ---------------------------------------------------------------- blood cells

MARKERS = {
    "pbmc_kang_ctrl_stim": {
        "B": ["CD79A", "MS4A1", "CD74"],
        "CD14 Mono": ["CD14", "LYZ", "S100A8"],
        "NK": ["GNLY", "NKG7"],
    },
    "pbmc3k_10x": {
        "B": ["CD79A", "CD79B", "MS4A1", "CD74"],
        "CD14+ Mono": ["CD14", "LYZ", "S100A8"],
        "NK": ["GNLY", "NKG7", "PRF1"],
        "FCGR3A+ Mono": ["FCGR3A", "MS4A7", "LST1"],
        "DC": ["FCER1A"],
        "Platelet": ["PPBP", "PF4"],
    },
    "pbmc_citeseq_10k_5k": {
        "B": ["CD79A", "MS4A1", "CD74"],
        "CD14 Mono": ["CD14", "LYZ", "S100A8"],
        "NK": ["GNLY", "NKG7", "PRF1"],
    },
}


def variable(adata: anndata.AnnData) -> np.ndarray:
    """Mark genes whose variance is largest beside that of genes of their mean (a parabola in logarithms)."""
    mean = np.asarray(adata.X.mean(0)).ravel()
    variance = np.asarray(adata.X.multiply(adata.X).mean(0)).ravel() - mean**2
    score = np.full(adata.n_vars, -np.inf)
    known = (mean > 0) & (variance > 0)
    x, y = np.log(mean[known]), np.log(variance[known])
    score[known] = y - np.polyval(np.polyfit(x, y, 2), x)
    return np.argsort(np.argsort(-score)) < N_VARIABLE


@pytest.fixture(scope="module", params=list(MARKERS))
def blood_cells(request):
    """A model of the variable genes of a data set, and the markers of its types."""
    path = Path(os.environ.get("COUNTVI_TEST_DATA", "")) / f"{request.param}.h5ad"
    if not path.is_file():
        pytest.skip("COUNTVI_TEST_DATA does not name a folder with this data set")
    adata = anndata.read_h5ad(path)
    adata = adata[::2].copy() if adata.n_obs > 5000 else adata
    adata.X = sp.csr_matrix(adata.X).astype(np.float32)
    markers = MARKERS[request.param]
    named = [gene for genes in markers.values() for gene in genes]
    adata = adata[:, variable(adata) | adata.var_names.isin(named)].copy()
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    model = countvi.SCVI(adata)
    model.train(**QUIET)
    return model, markers


@pytest.mark.data
def test_markers_of_variable_genes_are_called(blood_cells):
    model, markers = blood_cells
    table = model.differential_expression(
        groupby="cell_type", group1=list(markers), subset_idx="cell_type not in ['unassigned', 'ambiguous']"
    )
    for group, genes in markers.items():
        part = table[table["group1"] == group].loc[genes]
        assert part["is_de_fdr_0.05"].all(), (group, part[["proba_de", "lfc", "is_de_fdr_0.05"]])
        assert (part["lfc"] > 1).all()
    # Fold changes are those of the counts per 10,000, with the same tenth of a count.
    for _, part in table.groupby("group1"):
        added = 1e4 * part["pseudocounts"]
        by_hand = np.log2((part["raw_normalized_mean1"] + added) / (part["raw_normalized_mean2"] + added))
        seen = np.maximum(part["raw_mean1"], part["raw_mean2"]) > 0.1
        assert np.corrcoef(part["lfc"][seen], by_hand[seen])[0, 1] > 0.9


@pytest.mark.data
def test_halves_of_a_type_do_not_differ(blood_cells):
    model, markers = blood_cells
    obs, counts = model.adata.obs, model.adata.X
    shares = sp.csr_matrix(counts.multiply(1 / counts.sum(1)))
    group = next(name for name in markers if "Mono" in name)
    for batch in obs["batch"].unique():
        cells = np.flatnonzero(((obs["cell_type"] == group) & (obs["batch"] == batch)).to_numpy())
        cells = np.random.default_rng(0).permutation(cells)
        first, second = np.sort(cells[::2]), np.sort(cells[1::2])
        table = model.differential_expression(idx1=first, idx2=second, n_samples_overall=2000)
        assert not table["is_de_fdr_0.05"].any()
        assert table["proba_de"].max() < 0.7
        # Of halves, changes by hand are all noise; the model's are less.
        added = table["pseudocounts"].iloc[0]
        a, b = (np.log2(np.asarray(shares[rows].mean(0)).ravel() + added) for rows in (first, second))
        assert table["lfc"].abs().quantile(0.99) < np.quantile(np.abs(a - b), 0.99)
