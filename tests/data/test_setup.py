from __future__ import annotations

import gc
import weakref
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tests.data.set_up import set_up

from countvi.data import Column, CountMatrix, SetupRecords, bind, extend, recall, remember
from countvi.errors import DataError, DataWarning, OptionError, UnknownNameError

FULL: dict[str, Any] = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "size_factor_key": "sf",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}


def test_everything_is_recorded(adata: anndata.AnnData) -> None:
    adata.layers["counts"] = adata.X.copy()
    registry = set_up(adata, layer="counts", **FULL)
    assert registry.method == "setup_anndata"
    assert registry.setup_args == {"layer": "counts", **FULL}
    assert registry.modalities == (CountMatrix("rna", "layers/counts", tuple(f"gene{i}" for i in range(11))),)
    assert registry.columns == (
        Column("batch", ("a", "b", "c")),
        Column("cell_type", ("T", "B")),  # the order of the categorical; NK does not occur
        Column("donor", (0, 1, 2, 3)),
    )
    assert registry.continuous_keys == ("age",)
    assert registry.size_factor_key == "sf"


def test_what_the_peer_minified_is_refused(adata: anndata.AnnData) -> None:
    registry = set_up(adata)
    minified = adata.copy()
    minified.X = sp.csr_matrix(adata.shape)
    minified.obsm["X_latent_qzm"] = minified.obsm["X_latent_qzv"] = np.ones((adata.n_obs, 3))
    minified.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    for use in (set_up, lambda data: bind(data, registry)):
        with pytest.raises(DataError, match=r"adata was minified by scvi-tools.*give the data with their counts"):
            use(minified)
    # With this type scvi-tools leaves the counts where they are.
    minified.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters_with_counts"
    assert bind(minified, registry).stored is None


def test_nothing_given(adata: anndata.AnnData) -> None:
    registry = set_up(adata)
    assert registry.columns == (Column(None, (0,)), Column(None, (0,)))
    assert registry.modalities[0].location == "X"
    assert registry.continuous_keys == ()
    assert registry.size_factor_key is None


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (["b", "a"], ("a", "b")),
        ([2, 1], (1, 2)),
        ([True, False], (False, True)),
        ([1.5, 0.5], (0.5, 1.5)),
        (pd.array(["b", "a"], dtype="string"), ("a", "b")),
        (pd.array([2, 1], dtype="Int64"), (1, 2)),
        (np.array(["x", 1], dtype=object), (1, "x")),
    ],
    ids=str,
)
def test_categories_are_plain_values(values: Any, categories: tuple[Any, ...]) -> None:
    obs = pd.DataFrame({"k": values}, index=["c0", "c1"])
    found = set_up(anndata.AnnData(sp.csr_matrix(np.eye(2)), obs=obs), batch_key="k").columns[0].categories
    assert found == categories
    assert [type(c) for c in found] == [type(c) for c in categories]


def snapshot(adata: anndata.AnnData) -> dict[str, Any]:
    return {
        "obs": adata.obs.copy(deep=True),
        "var": adata.var.copy(deep=True),
        "uns": {**adata.uns},
        "obsm": {key: value.copy() for key, value in adata.obsm.items()},
        "varm": list(adata.varm),
        "obsp": list(adata.obsp),
        "layers": {key: value.toarray() for key, value in adata.layers.items()},
        "X": adata.X.toarray(),
        "X arrays": [adata.X.data.copy(), adata.X.indices.copy(), adata.X.indptr.copy()],
    }


def check_same(now: Any, then: Any) -> None:
    assert type(now) is type(then)
    if isinstance(now, dict):
        assert list(now) == list(then)
        for key in now:
            check_same(now[key], then[key])
    elif isinstance(now, list):
        assert len(now) == len(then)
        for a, b in zip(now, then, strict=True):
            check_same(a, b)
    elif isinstance(now, pd.DataFrame):
        pd.testing.assert_frame_equal(now, then)
    else:
        np.testing.assert_array_equal(now, then)


def test_nothing_is_written(adata: anndata.AnnData) -> None:
    adata.layers["counts"] = adata.X.copy()
    adata.uns["note"] = "mine"
    adata.obsm["X_pca"] = np.ones((23, 2))
    before = snapshot(adata)
    remember(dict, adata, set_up(adata, layer="counts", **FULL))
    check_same(snapshot(adata), before)


def test_a_view_stays_a_view(adata: anndata.AnnData) -> None:
    view = adata[::2]
    assert set_up(view, **FULL).columns[2].categories == (0, 2)
    assert view.is_view


@pytest.mark.parametrize("argument", ["batch_key", "labels_key", "size_factor_key"])
def test_unknown_key(adata: anndata.AnnData, argument: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        set_up(adata, **{argument: "Batchh"})
    assert f"{argument}: adata.obs has no column 'Batchh'" in str(error.value)
    assert "it has 'batch', 'cell_type', 'donor', 'age', 'sf'" in str(error.value)
    assert "Did you mean 'batch'?" in str(error.value)


@pytest.mark.parametrize("argument", ["categorical_covariate_keys", "continuous_covariate_keys"])
def test_unknown_covariate(adata: anndata.AnnData, argument: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"{argument}: adata\.obs has no column 'doner'.*Did you mean 'donor'"):
        set_up(adata, **{argument: ["doner"]})
    with pytest.raises(OptionError, match=rf"{argument} must be a list.*'donor'.*Write \['donor'\]"):
        set_up(adata, **{argument: "donor"})


@pytest.mark.parametrize("layer", [0, 1.5, b"counts"])
def test_a_layer_is_named_by_text(adata: anndata.AnnData, layer: Any) -> None:
    adata.layers[layer] = adata.X
    with pytest.raises(OptionError, match=r"named by text; got .*adata\.layers\['counts'\] = adata\.layers\.pop"):
        set_up(adata, layer=layer)


def test_what_is_missing_afterwards_is_not_chosen_again(adata: anndata.AnnData) -> None:
    """Nothing that reads data with a model takes a layer."""
    adata.layers["counts"] = adata.X
    registry = set_up(adata, layer="counts")
    del adata.layers["counts"]
    with pytest.raises(UnknownNameError, match=r"put them there, `adata\.layers\['counts'\] = adata\.X`\.") as error:
        bind(adata, registry)
    assert "layer=" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [([1, "1", "2"], "1 and '1'"), (["a", "b", "a "], "'a' and 'a '"), ([True, "True", "b"], "True and 'True'")],
)
def test_categories_that_look_alike(adata: anndata.AnnData, values: list[Any], told: str) -> None:
    adata.obs["batch"] = pd.Series((values * 8)[:23], index=adata.obs_names, dtype=object)
    with pytest.warns(DataWarning, match=rf"obs\['batch'\] has {told}, which count as two") as caught:
        set_up(adata, batch_key="batch")
    assert len(caught) == 1


def test_a_new_category_that_looks_like_a_known_one(adata: anndata.AnnData) -> None:
    registry = set_up(adata, batch_key="donor")
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    with pytest.warns(DataWarning, match="0 and '0', which count as two"):
        extend(registry, adata)


@pytest.mark.parametrize("argument", ["batch_key", "labels_key"])
def test_a_column_of_names_is_no_covariate(adata: anndata.AnnData, argument: str) -> None:
    adata.obs["barcode"] = adata.obs_names.astype(str)
    with pytest.warns(DataWarning, match=rf"{argument}: obs\['barcode'\] has 23 categories for 23 cells"):
        set_up(adata, **{argument: "barcode"})


def test_unknown_layer(adata: anndata.AnnData) -> None:
    adata.layers["counts"] = adata.X
    with pytest.raises(
        UnknownNameError, match=r"no 'conts'; it has 'counts'\. Did you mean 'counts'\? Without a layer adata\.X"
    ):
        set_up(adata, layer="conts")


@pytest.mark.parametrize("key", ["batch", "cell_type", "donor"])
def test_missing_categories(adata: anndata.AnnData, key: str) -> None:
    adata.obs[key] = adata.obs[key].astype(object)
    adata.obs.loc[["cell2", "cell5"], key] = None
    with pytest.raises(DataError) as error:
        set_up(adata, batch_key=key)
    assert f"obs['{key}'] is missing (NaN) in 2 of 23 cells" in str(error.value)
    (_, fix, _, other, _) = str(error.value).split("`")
    scope: dict[str, Any] = {"adata": adata}
    exec(fix, scope)  # the advice must run
    assert set_up(scope["adata"], batch_key=key).columns[0].categories
    assert scope["adata"].n_obs == 21
    scope = {"adata": adata}
    exec(other, scope)
    assert "unknown" in set_up(adata, batch_key=key).columns[0].categories


def test_categories_of_another_type(adata: anndata.AnnData) -> None:
    adata.obs["day"] = pd.Timestamp("2024-01-01")
    with pytest.raises(DataError, match=r"obs\['day'\] has the category .*Timestamp.*astype\(str\)"):
        set_up(adata, batch_key="day")
    adata.obs["dose"] = np.inf
    with pytest.raises(DataError, match=r"obs\['dose'\] has the category inf.*finite"):
        set_up(adata, batch_key="dose")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_continuous_covariates_are_finite(adata: anndata.AnnData, bad: float) -> None:
    adata.obs.loc["cell4", "age"] = bad
    with pytest.raises(DataError, match=r"obs\['age'\] has 1 NaN or infinite values \(first in cell 'cell4'\)"):
        set_up(adata, continuous_covariate_keys=["age"])


@pytest.mark.parametrize("key", ["batch", "cell_type"])
def test_continuous_covariates_are_numeric(adata: anndata.AnnData, key: str) -> None:
    with pytest.raises(DataError, match=rf"must be numeric; obs\['{key}'\] has dtype .*pd\.to_numeric.*categorical"):
        set_up(adata, continuous_covariate_keys=[key])


@pytest.mark.parametrize("values", [np.arange(23), np.arange(23) > 3, pd.array(range(23), dtype="Int64")], ids=type)
def test_continuous_covariates_of_other_dtypes(adata: anndata.AnnData, values: Any) -> None:
    adata.obs["c"] = values
    assert set_up(adata, continuous_covariate_keys=["c"]).continuous_keys == ("c",)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, 1e-60])
def test_size_factors_are_positive(adata: anndata.AnnData, bad: float) -> None:
    adata.obs.loc[["cell4", "cell9"], "sf"] = bad
    with pytest.raises(DataError, match=r"obs\['sf'\] has 2 values that are not finite and positive.*'cell4'"):
        set_up(adata, size_factor_key="sf")


def test_repeated_gene_names(adata: anndata.AnnData) -> None:
    adata.var_names = ["x", "x", "y", "y", *adata.var_names[4:]]
    with pytest.raises(DataError, match=r"2 names occur more than once.*'x', 'y'.*var_names_make_unique"):
        set_up(adata)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=f"empty: {shape[0]} cells and {shape[1]} genes"):
        set_up(anndata.AnnData(np.zeros(shape, np.float32)))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"categorical_covariate_keys": ["donor", "donor"]}, "more than once: 'donor'"),
        ({"continuous_covariate_keys": ["age", "age"]}, "more than once: 'age'"),
        ({"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["donor"]}, "more than once: 'donor'"),
        ({"batch_key": "batch", "categorical_covariate_keys": ["batch"]}, "'batch' is given as batch_key and again"),
    ],
)
def test_a_covariate_is_given_once(adata: anndata.AnnData, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        set_up(adata, **keys)


def test_two_columns_of_one_name(adata: anndata.AnnData) -> None:
    adata.obs = pd.concat([adata.obs, adata.obs[["batch"]]], axis=1)
    with pytest.raises(DataError, match=r"batch_key: adata\.obs has 2 columns named 'batch'"):
        set_up(adata, batch_key="batch")


class One: ...


class Other: ...


def test_records_are_per_class_and_object(adata: anndata.AnnData) -> None:
    records = SetupRecords()
    first, second = set_up(adata), set_up(adata, batch_key="batch")
    copy = adata.copy()
    records.remember(One, adata, first)
    assert records.recall(One, adata) is first
    assert records.recall(Other, adata) is None
    assert records.recall(One, copy) is None
    records.remember(Other, adata, second)
    assert records.recall(One, adata) is first
    assert records.recall(Other, adata) is second
    records.remember(One, adata, second)
    assert records.recall(One, adata) is second


def test_records_go_with_the_object() -> None:
    records = SetupRecords()
    gc.collect()
    for i in range(50):  # ids are used again
        adata = anndata.AnnData(sp.csr_matrix(np.eye(3)))
        assert records.recall(One, adata) is None, i
        records.remember(One, adata, set_up(adata))
        records.remember(Other, adata, set_up(adata))
        assert len(records) >= 1
        del adata
        if i % 10 == 0:
            gc.collect()
            assert len(records) == 0


def test_the_module_keeps_nothing_alive(adata: anndata.AnnData) -> None:
    remember(One, adata, set_up(adata))
    assert recall(One, adata) == set_up(adata)
    other = anndata.AnnData(sp.csr_matrix(np.eye(3)))
    remember(One, other, set_up(other))
    reference = weakref.ref(other)
    del other
    gc.collect()
    assert reference() is None
