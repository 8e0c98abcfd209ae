"""What a model does when its data are changed behind it: it reads them as they are now, or refuses, and says so."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi.errors import DataError, DataWarning, MismatchError

QUIET: dict[str, Any] = {"enable_progress_bar": False}
N = 90


def cells(seed: int = 0, prefix: str = "c") -> ad.AnnData:
    """Two groups that differ in one gene, two batches."""
    rng = np.random.default_rng(seed)
    group = np.arange(N) % 2
    rate = np.full((N, 12), 2.0)
    rate[group == 1, 0] = 9.0
    obs = pd.DataFrame(
        {"group": np.where(group == 1, "high", "low"), "batch": np.where(np.arange(N) < 40, "x", "y")},
        index=[f"{prefix}{i}" for i in range(N)],
    )
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)
    adata.var_names = [f"g{i}" for i in range(12)]
    return adata


def fitted(adata: ad.AnnData, **setup: Any) -> countvi.SCVI:
    countvi.SCVI.setup_anndata(adata, **setup)
    model = countvi.SCVI(adata, n_hidden=8)
    model.train(2, **QUIET)
    return model


def test_cells_that_are_left_are_read() -> None:
    adata = cells()
    model = fitted(adata, batch_key="batch")
    whole, all_z = adata.copy(), model.get_latent_representation()
    kept = np.flatnonzero(np.arange(N) % 3 == 0)
    adata._inplace_subset_obs(kept)
    with pytest.warns(DataWarning, match="there are 30 cells where there were 90"):
        z = model.get_latent_representation()
    np.testing.assert_allclose(z, all_z[kept], atol=1e-5)
    table = model.differential_expression(groupby="group", group1="high", group2="low")
    counts = whole.X.toarray()[kept]
    high = (whole.obs["group"] == "high").to_numpy()[kept]
    assert table.loc["g0", "raw_mean1"] == pytest.approx(counts[high, 0].mean())
    assert model.get_normalized_expression().index.equals(adata.obs_names)


def test_the_split_of_other_cells_is_dropped() -> None:
    adata = cells()
    model = fitted(adata)
    adata._inplace_subset_obs(np.arange(50))
    with pytest.warns(DataWarning, match=r"The split .* does not apply to them; train\(\) draws a new one"):
        model.train(1, **QUIET)
    assert len(model.train_indices) + len(model.validation_indices) == 50
    assert len(model.history) == 3


def test_cells_in_another_order_keep_their_states() -> None:
    adata = cells()
    model = fitted(adata)
    z = pd.DataFrame(model.get_latent_representation(), index=adata.obs_names)
    adata._inplace_subset_obs(np.random.default_rng(0).permutation(N))
    with pytest.warns(DataWarning, match="the cells are others, or in another order"):
        after = pd.DataFrame(model.get_latent_representation(), index=adata.obs_names)
    np.testing.assert_allclose(after.loc[z.index], z, atol=1e-5)


def test_renamed_cells_keep_the_split() -> None:
    adata = cells()
    model = fitted(adata)
    held_out = model.validation_indices.copy()
    adata.obs_names = [f"lane1_{name}" for name in adata.obs_names]
    with pytest.warns(DataWarning, match="cells have other names"):
        assert model.get_normalized_expression().index.equals(adata.obs_names)
    np.testing.assert_array_equal(model.validation_indices, held_out)


def test_a_covariate_that_was_written_again_is_read_again() -> None:
    adata = cells()
    model = fitted(adata, batch_key="batch")
    in_x = model.get_normalized_expression(transform_batch="x", use_z_mean=True)
    adata.obs["batch"] = "x"
    with pytest.warns(DataWarning, match=r"obs\['batch'\] holds other values"):
        expression = model.get_normalized_expression(use_z_mean=True)
    # The encoder of the default model does not see the batch.
    np.testing.assert_allclose(expression, in_x, atol=1e-6)


def test_size_factors_that_were_written_again_are_read_again() -> None:
    adata = cells()
    adata.obs["size"] = 1.0
    model = fitted(adata, size_factor_key="size")
    once = model.get_normalized_expression(library_size="latent", use_z_mean=True)
    adata.obs["size"] = 2.0
    with pytest.warns(DataWarning, match=r"obs\['size'\] holds other values"):
        twice = model.get_normalized_expression(library_size="latent", use_z_mean=True)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


def test_a_covariate_that_names_what_the_model_does_not_know_is_refused() -> None:
    adata = cells()
    model = fitted(adata, batch_key="batch")
    adata.obs["batch"] = "z"
    with pytest.raises(MismatchError, match="'z'"):
        model.get_latent_representation()


def test_text_that_becomes_categories_is_no_change() -> None:
    adata = cells()
    model = fitted(adata, batch_key="batch")
    z = model.get_latent_representation()
    adata.strings_to_categoricals()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(model.get_latent_representation(), z)


def test_counts_that_are_normalised_in_place_are_refused_until_there_are_counts_again() -> None:
    import scanpy as sc

    adata = cells()
    model = fitted(adata)
    counts, z = adata.copy(), model.get_latent_representation()
    sc.pp.log1p(adata)
    for read in (model.get_latent_representation, model.get_elbo, lambda: model.train(1, **QUIET)):
        with pytest.raises(DataError, match="written over with values that are not whole numbers"):
            read()
    model.adata = counts
    np.testing.assert_array_equal(model.get_latent_representation(), z)


def test_counts_that_the_model_does_not_read_may_change() -> None:
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    model = fitted(adata, layer="counts")
    z = model.get_latent_representation()
    adata.X = adata.X.log1p()
    adata.obs["new"] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(model.get_latent_representation(), z)


def test_counts_that_were_corrected_are_said() -> None:
    adata = cells()
    model = fitted(adata)
    adata.X.data += 1
    with pytest.warns(DataWarning, match="counts were written over"):
        model.get_elbo()


def test_other_data_can_be_assigned() -> None:
    first, second = cells(), cells(1, "d")
    model = fitted(first)
    of_second = model.get_latent_representation(second)
    model.adata = second
    assert model.adata is second
    np.testing.assert_array_equal(model.get_latent_representation(), of_second)
    np.testing.assert_array_equal(model.get_latent_representation(second), of_second)
    assert model.get_normalized_expression().index.equals(second.obs_names)


def test_other_data_that_do_not_fit_leave_the_model_as_it_is() -> None:
    adata = cells()
    model = fitted(adata)
    with pytest.raises(MismatchError, match="genes are missing"):
        model.adata = cells()[:, :5].copy()
    assert model.adata is adata
    assert model.get_latent_representation().shape == (N, 10)


def test_spots_that_are_left_are_read() -> None:
    reference = cells()
    countvi.CondSCVI.setup_anndata(reference, labels_key="group")
    types = countvi.CondSCVI(reference, n_hidden=8)
    types.train(2, **QUIET)
    slide = cells(3, "spot")
    countvi.DestVI.setup_anndata(slide)
    model = countvi.DestVI.from_rna_model(slide, types)
    model.train(2, **QUIET)
    before = model.get_proportions()
    slide._inplace_subset_obs(np.arange(5, 25))
    with pytest.warns(DataWarning, match="there are 20 cells where there were 90"):
        after = model.get_proportions()
    pd.testing.assert_frame_equal(after, before.iloc[5:25], rtol=1e-5)


@pytest.mark.parametrize("query", ["log-normalised", "counts"])
def test_a_query_that_is_no_counts_is_said(query: str) -> None:
    model = fitted(cells())
    adata = cells(4, "q")
    if query == "counts":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.get_latent_representation(adata)
        return
    adata.X = adata.X.log1p()
    with pytest.warns(DataWarning, match=r"adata\.X of these cells has values that are not whole numbers"):
        model.get_latent_representation(adata)
    with pytest.warns(DataWarning, match="not whole numbers"):
        model.differential_expression(adata, groupby="group", group1="high")


@pytest.mark.parametrize(
    "mask", [pd.Series([True, False] * 45, dtype=object), np.array([True, False] * 45, dtype=object)]
)
def test_a_mask_of_objects(mask: Any) -> None:
    model = fitted(cells())
    assert len(model.get_latent_representation(indices=mask)) == 45


def test_a_mask_with_missing_values_is_refused() -> None:
    model = fitted(cells())
    mask = pd.Series([True, np.nan] * 45, dtype=object)
    with pytest.raises(countvi.errors.OptionError, match=r"missing .* for 45 cells"):
        model.get_latent_representation(indices=mask)


@pytest.mark.parametrize("dtype", [object, "string"])
def test_text_with_missing_values_is_saved(tmp_path: Any, dtype: Any) -> None:
    adata = cells()
    adata.obs["call"] = pd.Series(["singlet", None, "doublet"] * 30, index=adata.obs_names, dtype=dtype)
    adata.var["note"] = pd.Series([None, "x"] * 6, index=adata.var_names, dtype=dtype)
    fitted(adata).save(tmp_path / "model", save_anndata=True)
    back = countvi.SCVI.load(tmp_path / "model").adata
    assert adata.obs["call"].dtype == dtype, "the user's table is as it was"
    for table, column, before in ((back.obs, "call", adata.obs), (back.var, "note", adata.var)):
        assert table[column].astype(object).where(table[column].notna(), None).tolist() == [
            None if pd.isna(value) else value for value in before[column]
        ]


def test_variables_of_a_cluster_do_not_matter_to_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "4", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODELIST", "n1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert fitted(cells()).is_trained
