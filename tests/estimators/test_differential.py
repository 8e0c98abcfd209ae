"""Differential expression as a user asks for it."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats
from tests.estimators.conftest import make_adata
from tests.estimators.regularized import QUIET, SMALL, make_mdata, make_rna

import countvi
from countvi.errors import OptionError, UnknownNameError

pytestmark = pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")


def test_every_group_with_the_rest(trained):
    before = trained.adata.copy()
    table = trained.differential_expression(groupby="batch", n_samples_overall=900, cred_interval_lvls=[0.5, 0.9])
    assert table["comparison"].unique().tolist() == ["b0 vs Rest", "b1 vs Rest", "b2 vs Rest"]
    assert len(table) == 3 * 15
    for group, part in table.groupby("group1"):
        assert part["proba_de"].is_monotonic_decreasing
        assert sorted(part.index) == sorted(trained.adata.var_names)
        inside = (trained.adata.obs["batch"] == group).to_numpy()
        x = pd.DataFrame(trained.adata.X.toarray(), columns=trained.adata.var_names)[part.index]
        np.testing.assert_allclose(part["raw_mean1"], x[inside].mean())
        np.testing.assert_allclose(part["raw_mean2"], x[~inside].mean())
        np.testing.assert_allclose(part["non_zeros_proportion2"], (x[~inside] > 0).mean())
        scaled = 1e4 * x.div(x.sum(axis=1), axis=0)
        np.testing.assert_allclose(part["raw_normalized_mean1"], scaled[inside].mean(), rtol=1e-5)
        means = trained.get_normalized_expression(n_samples=40)[part.index]
        np.testing.assert_allclose(part["scale1"], means[inside].mean(), rtol=0.03)
        np.testing.assert_allclose(part["scale2"], means[~inside].mean(), rtol=0.03)
    wide = table["lfc_confidence_interval_0.9_max"] - table["lfc_confidence_interval_0.9_min"]
    assert (wide > table["lfc_confidence_interval_0.5_max"] - table["lfc_confidence_interval_0.5_min"]).all()
    again = trained.differential_expression(groupby="batch", n_samples_overall=900, cred_interval_lvls=[0.5, 0.9])
    pd.testing.assert_frame_equal(table, again)
    other = trained.differential_expression(groupby="batch", n_samples_overall=900, seed=1)
    assert not np.allclose(other["lfc_mean"].sort_index(), table["lfc_mean"].sort_index())
    pd.testing.assert_frame_equal(trained.adata.obs, before.obs)
    assert set(trained.adata.uns) == set(before.uns)
    assert set(trained.adata.obsm) == set(before.obsm)


def test_cells_by_mask_numbers_and_query(trained):
    mask = (trained.adata.obs["label"] == "T").to_numpy()
    options = {"n_samples_overall": 200}
    tables = [
        trained.differential_expression(idx1=idx, **options)
        for idx in (mask, np.flatnonzero(mask), "label == 'T'", pd.Series(mask))
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], table)
    assert "comparison" not in tables[0]
    two = trained.differential_expression(idx1="label == 'T' and age > 0", idx2="label == 'B'", **options)
    x = trained.adata.X.toarray()
    older = mask & (trained.adata.obs["age"] > 0).to_numpy()
    columns = trained.adata.var_names.get_indexer(two.index)
    np.testing.assert_allclose(two["raw_mean1"], x[older].mean(0)[columns])
    np.testing.assert_allclose(two["raw_mean2"], x[~mask].mean(0)[columns])


def test_two_groups_are_mirrored(trained):
    options = {"groupby": "label", "n_samples_overall": 4000}
    a = trained.differential_expression(group1="T", group2="B", **options).sort_index()
    b = trained.differential_expression(group1="B", group2="T", **options).sort_index()
    np.testing.assert_allclose(a["prob_up"], b["prob_down"], atol=0.05)
    np.testing.assert_allclose(a["lfc_median"], -b["lfc_median"], atol=0.1)
    vanilla = trained.differential_expression(group1="T", group2="B", mode="vanilla", **options)
    assert vanilla["bayes_factor"].is_monotonic_decreasing
    np.testing.assert_allclose(vanilla["proba_m1"] + vanilla["proba_m2"], 1)
    assert stats.spearmanr(vanilla["proba_m1"].sort_index(), a["lfc_median"]).statistic > 0.95


def test_subset(trained):
    inside = (trained.adata.obs["batch"] == "b1").to_numpy()
    table = trained.differential_expression(groupby="label", group1="T", subset_idx=inside, n_samples_overall=100)
    rest = inside & (trained.adata.obs["label"] != "T").to_numpy()
    x = pd.DataFrame(trained.adata.X.toarray(), columns=trained.adata.var_names)[table.index]
    np.testing.assert_allclose(table["raw_mean2"], x[rest].mean())


def test_batch_correction_decodes_under_batches(trained):
    options = {"groupby": "label", "group1": "T", "n_samples_overall": 3000, "batch_correction": True}
    inside = (trained.adata.obs["label"] == "T").to_numpy()
    for ids, batches in ((None, ["b0", "b1", "b2"]), (["b2"], ["b2"]), ("b1", ["b1"])):
        table = trained.differential_expression(batchid1=ids, batchid2=ids, **options)
        means = trained.get_normalized_expression(transform_batch=batches, n_samples=40)[table.index]
        np.testing.assert_allclose(table["scale1"], means[inside].mean(), rtol=0.03)
        np.testing.assert_allclose(table["scale2"], means[~inside].mean(), rtol=0.03)


def test_populations_without_outliers_do_not_depend_on_the_other_comparisons(trained):
    adata = trained.adata.copy()
    adata.obs["part"] = [str(i % 30) for i in range(adata.n_obs)]
    options = {"groupby": "part", "filter_outlier_cells": True, "n_samples_overall": 50}
    together = trained.differential_expression(adata, **options)
    for group, of_group in list(together.groupby("group1"))[::5]:
        alone = trained.differential_expression(adata, group1=group, **options)
        for column in ("raw_mean1", "raw_mean2"):
            np.testing.assert_array_equal(of_group[column].sort_index(), alone[column].sort_index())


def test_weights_and_outliers_change_the_draws(trained):
    options = {"groupby": "label", "group1": "T", "n_samples_overall": 500}
    plain = trained.differential_expression(**options).sort_index()
    weighed = trained.differential_expression(
        weights="importance", importance_weighting_kwargs={"n_mc_samples": 64}, **options
    ).sort_index()
    assert not np.allclose(plain["scale1"], weighed["scale1"], rtol=0.02)
    means = trained.get_normalized_expression(weights="importance", n_samples=64)[weighed.index]
    inside = (trained.adata.obs["label"] == "T").to_numpy()
    np.testing.assert_allclose(weighed["scale1"], means[inside].mean(), rtol=0.05)
    filtered = trained.differential_expression(filter_outlier_cells=True, **options).sort_index()
    assert not np.allclose(plain["raw_mean1"], filtered["raw_mean1"])
    weighed = trained.get_normalized_expression(weights="importance", n_samples=20)
    np.testing.assert_allclose(weighed.sum(axis=1), 1, rtol=1e-4)
    drawn = trained.get_normalized_expression(weights="importance", n_samples_overall=7, return_numpy=True)
    assert drawn.shape == (7, 15)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, OptionError, "groupby= .* or by idx1="),
        ({"groupby": "label", "idx1": [0]}, OptionError, "one of the two"),
        ({"groupby": "lable"}, UnknownNameError, "no column 'lable'"),
        ({"groupby": "label", "group1": "X"}, UnknownNameError, "'X' is no group"),
        ({"groupby": "label", "group1": "T", "group2": "T"}, OptionError, "with itself"),
        ({"idx1": [0], "group2": "T"}, OptionError, "use idx1 and idx2 alone"),
        ({"groupby": "label", "idx2": [0]}, OptionError, "idx2 goes with idx1"),
        ({"idx1": "label == 'X'"}, OptionError, "first population has no cells"),
        ({"idx1": np.ones(90, dtype=bool)}, OptionError, "second population has no cells"),
        ({"idx1": "lable == 'X'"}, OptionError, "no query of obs"),
        ({"idx1": "age"}, OptionError, "whether it is meant"),
        ({"groupby": "label", "subset_idx": "label == 'T'"}, OptionError, "a single group"),
        ({"groupby": "label", "mode": "chang"}, OptionError, "mode must be"),
        ({"groupby": "label", "test_mode": "one"}, OptionError, "test_mode"),
        ({"groupby": "label", "convention": "x"}, OptionError, "convention"),
        ({"groupby": "label", "delta": -1}, OptionError, "delta must be"),
        ({"groupby": "label", "fdr_target": 1.5}, OptionError, "fdr_target must be between"),
        ({"groupby": "label", "batchid1": ["b0"]}, OptionError, "batch_correction=True"),
        ({"groupby": "label", "batch_correction": True, "batchid1": ["b9"]}, UnknownNameError, "'b9' is not"),
        ({"groupby": "label", "weights": "much"}, OptionError, "weights must be"),
        ({"groupby": "label", "importance_weighting_kwargs": {"truncation": True}}, OptionError, "needs weights"),
        ({"groupby": "label", "sample_key": "donor", "mode": "vanilla"}, OptionError, "mode='change'"),
        ({"groupby": "label", "n_samples_overall": 0}, OptionError, "n_samples_overall"),
        ({"groupby": "label", "modality": "protein"}, UnknownNameError, "no modality"),
    ],
)
def test_bad_arguments(trained, arguments, error, words):
    with pytest.raises(error, match=words):
        trained.differential_expression(**arguments)


def test_a_model_without_batches_cannot_correct(adata):
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, enable_progress_bar=False)
    with pytest.raises(OptionError, match="without a batch_key"):
        model.differential_expression(groupby="label", batch_correction=True)


def test_modalities():
    mdata = make_mdata()
    countvi.RegularizedMultimodalVI.setup_mudata(mdata, batch_key="batch")
    model = countvi.RegularizedMultimodalVI(mdata, **SMALL)
    model.train(2, **QUIET)
    options = {"groupby": "type", "group1": "T", "n_samples_overall": 100, "all_stats": True}
    tables = model.differential_expression(**options)
    assert list(tables) == list(model.module.names)
    for name, table in tables.items():
        assert sorted(table.index) == sorted(mdata[name].var_names)
        pd.testing.assert_frame_equal(table, model.differential_expression(modality=name, **options))
        assert np.isfinite(table["lfc_mean"]).all()


def test_ambient_model_compares_without_the_background():
    adata = make_rna()
    countvi.AmbientRegularizedSCVI.setup_anndata(adata, batch_key="batch")
    model = countvi.AmbientRegularizedSCVI(adata, **SMALL)
    model.train(2, **QUIET)
    table = model.differential_expression(groupby="type", group1="T", n_samples_overall=2000)
    own = model.get_normalized_expression(n_samples=40)[table.index]
    inside = (adata.obs["type"] == "T").to_numpy()
    np.testing.assert_allclose(table["scale1"], own[inside].mean(), rtol=0.05)


def test_cell_types_of_a_model_that_is_given_them(adata):
    countvi.CondSCVI.setup_anndata(adata, labels_key="label", batch_key="batch")
    model = countvi.CondSCVI(adata, n_hidden=8, n_latent=2)
    model.train(3, enable_progress_bar=False)
    options = {"groupby": "label", "group1": "T", "n_samples_overall": 2000}
    inside = (adata.obs["label"] == "T").to_numpy()
    for correction, batches in ((False, None), (True, ["b0", "b1", "b2"])):
        table = model.differential_expression(batch_correction=correction, **options)
        means = model.get_normalized_expression(transform_batch=batches, n_samples=40)[table.index]
        np.testing.assert_allclose(table["scale1"], means[inside].mean(), rtol=0.05)


@pytest.fixture(scope="module")
def totalvi():
    """RNA of two types and four proteins, the last of which was not measured in batch b2."""
    adata = make_adata()
    rng = np.random.default_rng(1)
    high = (adata.obs["label"] == "T").to_numpy()[:, None] * np.array([1.0, 0.0, 1.0, 1.0]) * 40
    protein = pd.DataFrame(rng.poisson(high + 4), index=adata.obs_names, columns=["CD3", "CD19", "CD4", "CD8"])
    protein = protein.astype(float)
    protein.loc[adata.obs["batch"] == "b2", "CD8"] = np.nan
    adata.obsm["protein"] = protein
    countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    model = countvi.TOTALVI(adata, n_latent=3, n_hidden=16, empirical_protein_background_prior=False)
    model.train(enable_progress_bar=False)
    return model


def test_genes_and_proteins_side_by_side(totalvi):
    adata = totalvi.adata
    options = {"groupby": "label", "group1": "T", "n_samples_overall": 3000}
    table = totalvi.differential_expression(**options)
    proteins = [f"{name}_protein" for name in ("CD3", "CD19", "CD4", "CD8")]
    assert set(table.index) == {*adata.var_names, *proteins}
    high = (adata.obs["label"] == "T").to_numpy()
    rna, protein = totalvi.get_normalized_expression(n_samples=60)
    np.testing.assert_allclose(table["scale1"][adata.var_names], rna[high].mean(), rtol=0.05)
    np.testing.assert_allclose(table["scale2"][proteins], protein[~high].mean(), rtol=0.2)
    assert (table["lfc_median"][["CD3_protein", "CD4_protein", "CD8_protein"]] > 1).all()
    measured = adata.obsm["protein"]
    np.testing.assert_allclose(table["raw_mean1"][proteins], measured[high].mean())  # pandas leaves NaN out
    assert table["raw_normalized_mean1"][proteins].isna().all()
    assert table["raw_normalized_mean1"][adata.var_names].notna().all()
    np.testing.assert_allclose(table["pseudocounts"][proteins], 0.1)
    depth = np.asarray(adata.X.sum(1)).mean()
    np.testing.assert_allclose(table["pseudocounts"][adata.var_names], 0.1 / depth, rtol=1e-4)
    by_hand = np.log2((table["scale1"] + table["pseudocounts"]) / (table["scale2"] + table["pseudocounts"]))
    np.testing.assert_allclose(table["lfc"], by_hand, atol=1e-5)
    there = totalvi.differential_expression(convention="scvi-tools", **options)
    np.testing.assert_allclose(there["pseudocounts"][adata.var_names], 1e-5)
    given = totalvi.differential_expression(pseudocounts=1e-3, **options)
    np.testing.assert_allclose(given["pseudocounts"][adata.var_names], 1e-3)
    alone = totalvi.differential_expression(use_field="protein", **options)
    assert set(alone.index) == set(proteins)


def test_protein_options(totalvi):
    options = {"groupby": "label", "group1": "T", "n_samples_overall": 3000, "use_field": ["protein"]}
    high = (totalvi.adata.obs["label"] == "T").to_numpy()
    plain = totalvi.differential_expression(**options)
    for given in (
        {"include_protein_background": True},
        {"scale_protein": True},
        {"scale_protein": True, "include_protein_background": True},
    ):
        table = totalvi.differential_expression(**options, **given)
        _, protein = totalvi.get_normalized_expression(n_samples=60, **given)
        protein.columns = [f"{name}_protein" for name in protein.columns]
        np.testing.assert_allclose(table["scale1"], protein[high].mean()[table.index], rtol=0.1)
    mixed = totalvi.differential_expression(**options, sample_protein_mixing=True)
    assert (mixed["lfc_std"][plain.index] > plain["lfc_std"]).any()
    with pytest.raises(OptionError, match="use_field takes"):
        totalvi.differential_expression(groupby="label", use_field=["atac"])


# ---------------------------------------------------------------- simulations


def simulate(n_donors, n_cells, n_genes, *, effect, donor_sd, seed, base=None):
    """Negative binomial counts of cells of donors, half of which are cases; gene ``i`` changes by ``effect[i]``."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n_cells)
    case = donor % 2 == 1
    base = rng.normal(1.0, 1.0, n_genes) if base is None else base
    log = base + rng.normal(0, donor_sd, (n_donors, n_genes))[donor] + case[:, None] * effect
    rate = np.exp(log) * rng.lognormal(0, 0.2, (len(donor), 1))
    x = rng.poisson(rng.gamma(5.0, rate / 5.0)).astype(np.float32)
    obs = pd.DataFrame({"donor": [f"d{d}" for d in donor], "case": np.where(case, "case", "control")})
    obs.index = obs.index.astype(str)
    return anndata.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


def fitted(adata, epochs, **setup):
    countvi.SCVI.setup_anndata(adata, **setup)
    model = countvi.SCVI(adata, n_hidden=32, n_latent=5, gene_likelihood="nb")
    model.train(epochs, train_size=1.0, enable_progress_bar=False)
    return model


def test_known_changes_are_found_at_the_nominal_rate():
    rng = np.random.default_rng(0)
    truth, base = np.zeros(200), rng.normal(1.0, 1.0, 200)
    truth[:60] = np.tile([1.0, -1.0, -1.0], 20)
    base[:60] = np.repeat(base[:20], 3)  # one gene doubles and two halve, so that frequencies change as rates do
    adata = simulate(2, 400, 200, effect=truth * np.log(2), donor_sd=0.0, seed=1, base=base)
    model = fitted(adata, 25)
    table = model.differential_expression(groupby="case", group1="case", group2="control", fdr_target=0.1)
    table = table.loc[adata.var_names]
    changed = np.abs(truth) > 0.25
    assert np.corrcoef(table["lfc_median"], truth)[0, 1] > 0.95
    picked = table["is_de_fdr_0.1"].to_numpy()
    assert (~changed)[picked].mean() <= 0.15
    assert changed[~picked].mean() < 0.2
    order = np.argsort(table["proba_de"].to_numpy())
    for part in np.array_split(order, 4):  # calibration: what is called likely is often true
        assert changed[part].mean() >= table["proba_de"].to_numpy()[part].mean() - 0.25
    assert changed[order[-50:]].mean() > 0.9
    assert changed[order[:100]].mean() < 0.1


def test_donors_are_the_replicates_and_not_their_cells():
    """No gene differs between cases and controls, but donors differ (Squair et al. 2021)."""
    adata = simulate(8, 60, 150, effect=np.zeros(150), donor_sd=0.5, seed=2)
    model = fitted(adata, 20)
    table = model.differential_expression(groupby="case", group1="case", group2="control", sample_key="donor")
    x = adata.X.toarray() / adata.X.sum(1)
    case = (adata.obs["case"] == "case").to_numpy()
    per_cell = stats.ttest_ind(np.log1p(1e4 * x[case]), np.log1p(1e4 * x[~case])).pvalue < 0.05
    assert np.asarray(per_cell).mean() > 0.3, "a test that counts cells finds genes everywhere"
    assert (table["replicate_pvalue"] < 0.05).mean() < 0.12
    assert table["is_de_replicates_fdr_0.05"].mean() < 0.05
    assert (table["n_replicates1"] == 4).all()
    assert {"log2_scale1_d1", "log2_scale2_d0"} <= set(table.columns)


def test_donors_find_what_they_share():
    effect = np.zeros(100)
    effect[:20] = 1.5
    adata = simulate(8, 60, 100, effect=effect, donor_sd=0.1, seed=3)
    model = fitted(adata, 20)
    table = model.differential_expression(groupby="case", group1="case", sample_key="donor").loc[adata.var_names]
    found = table["is_de_replicates_fdr_0.05"].to_numpy()
    assert found[:20].mean() > 0.9
    inside = (table["replicate_lfc_min"] < table["replicate_lfc"]) & (
        table["replicate_lfc"] < table["replicate_lfc_max"]
    )
    assert inside.all()
