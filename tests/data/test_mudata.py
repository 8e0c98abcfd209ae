"""Several modalities, of which a cell may have some only."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from tests.data.set_up import set_up_several

from countvi.data import (
    Column,
    Covariates,
    Dataset,
    InMemorySource,
    Registry,
    UnpairedSource,
    bind,
    check_counts,
    prepare_query_mudata,
)
from countvi.errors import DataError, DataWarning, MismatchError, OptionError, UnknownNameError

mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")


@pytest.fixture(autouse=True)
def as_from_mudata_4() -> Any:
    """Modalities keep their columns to themselves, as is the default from mudata 0.4."""
    with mudata.set_options(pull_on_update=False):
        yield


ROWS = np.array([24, 7, 0, 0, 22, 23, 4])


def mudata_of(**parts: anndata.AnnData) -> Any:
    return mudata.MuData(parts)


def cells_of(mdata: Any) -> dict[str, dict[str, np.ndarray]]:
    """Counts by modality and name of the cell, read off the modalities by hand."""
    return {
        part: dict(zip(adata.obs_names, np.asarray(adata.X.toarray()), strict=True))
        for part, adata in mdata.mod.items()
    }


def check_batch(dataset: Dataset, rows: np.ndarray, expected: dict[str, dict[str, np.ndarray]]) -> None:
    """Compare a batch with the counts by name of the cell; where there is no such cell, it was not measured."""
    batch = dataset.batch(rows)
    names = [str(dataset.obs_names[row]) for row in rows]
    for part, counts in expected.items():
        block = batch.counts[part]
        measured = batch.design.measured(part)
        assert block.n_cells == len(rows)
        for i, (name, row) in enumerate(zip(names, block.to_dense().numpy(), strict=True)):
            assert (measured is None or bool(measured[i])) == (name in counts), (part, name)
            np.testing.assert_array_equal(row, counts.get(name, np.zeros(block.n_features)))


def test_cells_are_matched_by_name_and_some_are_missing(mdata: Any) -> None:
    registry = set_up_several(mdata)
    dataset = bind(mdata, registry)
    assert dataset.n_cells == 25
    assert list(dataset.obs_names) == list(mdata.obs_names)
    assert dataset.in_memory
    assert set(dataset.present) == {"rna", "atac"}
    check_batch(dataset, ROWS, cells_of(mdata))
    check_batch(dataset.load(ROWS), np.array([3, 0, 6]), cells_of(mdata))


def test_paired_modalities_name_no_missing_cells(adata: anndata.AnnData) -> None:
    shuffled = adata[np.random.default_rng(0).permutation(23), :4].copy()
    shuffled.var_names = ["p0", "p1", "p2", "p3"]
    mdata = mudata_of(rna=adata, second=shuffled)
    dataset = bind(mdata, set_up_several(mdata))
    assert dataset.present == {}
    assert dataset.batch(ROWS % 23).design.present is None
    check_batch(dataset, ROWS % 23, cells_of(mdata))


@pytest.mark.parametrize("rows", [np.array([], dtype=np.int64), np.array([7, 5])], ids=["none", "all missing"])
def test_a_batch_without_a_measured_cell(mdata: Any, rows: np.ndarray) -> None:
    block = bind(mdata, set_up_several(mdata)).batch(rows).counts["atac"]
    assert block.n_cells == len(rows)
    assert block.values.numel() == 0


def test_views_and_files(mdata: Any, tmp_path: Path) -> None:
    registry = set_up_several(mdata)
    expected = cells_of(mdata)
    view = mdata[["cell24", "cell5", "cell0", "cell3"]]
    check_batch(bind(view, registry), np.array([3, 1, 0]), expected)
    mdata.write_h5mu(tmp_path / "m.h5mu")
    backed = mudata.read_h5mu(tmp_path / "m.h5mu", backed="r")
    dataset = bind(backed, registry)
    assert not dataset.in_memory
    check_batch(dataset, ROWS, expected)
    assert dataset.load(ROWS).in_memory
    check_batch(dataset.load(ROWS), np.array([2, 1, 1]), expected)
    check_batch(bind(backed[["cell24", "cell5", "cell0"]], registry), np.array([2, 0, 1]), expected)
    assert dataset.fingerprint() == bind(mdata, registry).fingerprint()


def test_features_are_matched_by_name_in_each_modality(mdata: Any) -> None:
    registry = set_up_several(mdata)
    other = mudata_of(rna=mdata["rna"][:, ::-1].copy(), atac=mdata["atac"][:, [3, 1, 0, 2, 6, 5, 4]].copy())
    check_batch(bind(other, registry), ROWS, cells_of(mdata))
    fewer = mudata_of(rna=mdata["rna"], atac=mdata["atac"][:, 1:].copy())
    with pytest.raises(MismatchError, match=r"1 of the model's 7 peaks are missing from mdata\['atac'\]\.var_names"):
        bind(fewer, registry)
    prepared = prepare_query_mudata(fewer, registry)
    expected = cells_of(mdata)
    expected["atac"] = {name: np.where(np.arange(7) < 1, 0, row) for name, row in expected["atac"].items()}
    check_batch(bind(prepared, registry), ROWS, expected)
    assert list(prepared.obs_names) == list(mdata.obs_names)


def test_a_query_may_lack_a_modality(mdata: Any) -> None:
    registry = set_up_several(mdata, batch_key="batch")
    query = mudata_of(rna=mdata["rna"])
    with pytest.warns(DataWarning, match=r"no modality 'atac', which the model has: .*not measured"):
        dataset = bind(query, registry)
    assert dataset.present["atac"].sum() == 0
    check_batch(dataset, ROWS % 23, {"rna": cells_of(mdata)["rna"], "atac": {}})
    # A subset that has the modality, but none of its cells.
    check_batch(bind(mdata[["cell5", "cell6"]], registry), np.array([1, 0]), {**cells_of(mdata), "atac": {}})
    with (
        pytest.warns(DataWarning, match="no modality 'atac'"),
        pytest.warns(DataWarning, match="only 5 of the model's 11"),
    ):
        prepared = prepare_query_mudata(mudata_of(rna=mdata["rna"][:, :5].copy()), registry)
    assert list(prepared.mod) == ["rna"]
    with pytest.raises(
        DataError, match=r"none of the model's modalities: it has 'Rna', the model 'rna', 'atac'\. Did you"
    ):
        bind(mudata_of(Rna=mdata["rna"]), registry)


def test_what_is_recorded(mdata: Any) -> None:
    mdata["atac"].layers["fragments"] = mdata["atac"].X.copy()
    registry = set_up_several(
        mdata,
        batch_key="batch",
        labels_key="cell_type",
        nn_conditioning_covariate_keys=["donor"],
        modalities={"RNA": "rna", "peaks": "atac"},
        layer={"peaks": "fragments"},
    )
    assert [(m.name, m.part, m.location, m.feature_type) for m in registry.modalities] == [
        ("RNA", "rna", "X", "Gene Expression"),
        ("peaks", "atac", "layers/fragments", "Peaks"),
    ]
    assert [m.n_features for m in registry.modalities] == [11, 7]
    assert registry.method == "setup_mudata"
    assert registry.setup_args["modalities"] == {"RNA": "rna", "peaks": "atac"}
    assert registry.setup_args["layer"] == {"RNA": None, "peaks": "fragments"}
    assert registry.setup_args["batch_key"] == "batch"
    assert registry.setup_args["feature_scaling_covariate_keys"] is None
    assert registry.columns[2] == Column("donor", (0, 1, 2, 3))
    assert registry.covariates == Covariates(
        ambient=(0,), dispersion=0, library=0, conditioning=(2,), scaling=(2,)
    )  # which scaling takes over for several
    again = Registry.from_json(json.loads(json.dumps(registry.to_json(), allow_nan=False)))
    assert again == registry
    assert torch.equal(bind(mdata, again).codes, bind(mdata, registry).codes)


def test_no_scaling_can_be_asked_for(mdata: Any) -> None:
    registry = set_up_several(mdata, nn_conditioning_covariate_keys=["donor"], feature_scaling_covariate_keys=[])
    assert registry.covariates == Covariates(ambient=(0,), dispersion=0, library=0, conditioning=(2,), scaling=())


@pytest.mark.parametrize(("modalities", "names"), [(None, ["rna", "atac"]), (["atac"], ["atac"])])
def test_which_modalities(mdata: Any, modalities: Any, names: list[str]) -> None:
    registry = set_up_several(mdata, modalities=modalities)
    assert [m.name for m in registry.modalities] == names
    dataset = bind(mdata, registry)
    assert list(dataset.sources) == names
    assert dataset.n_cells == 25


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"modalities": ["rna", "ATAC"]},
            UnknownNameError,
            r"no modality 'ATAC'; it has 'rna', 'atac'\. Did you mean 'a",
        ),
        ({"modalities": {"a": "rna", "b": "rna"}}, OptionError, "gives one modality two names"),
        ({"modalities": ["rna", "rna"]}, OptionError, "names some more than once: 'rna', 'rna'"),
        ({"modalities": "rna"}, OptionError, r"modalities must be a list of column names.*Write \['rna'\]"),
        ({"modalities": []}, OptionError, "modalities is empty; name at least one of 'rna', 'atac'"),
        ({"layer": {"atca": "x"}}, UnknownNameError, r"layer: there is no modality 'atca'.*Did you mean 'atac'"),
        ({"layer": {"atac": "x"}}, UnknownNameError, r"mdata\['atac'\]\.layers has no 'x'; it has no layers"),
        ({"layer": "x"}, UnknownNameError, r"mdata\['rna'\]\.layers has no 'x'"),
    ],
)
def test_set_ups_that_cannot_be(mdata: Any, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        set_up_several(mdata, **arguments)


def test_what_is_no_mudata(adata: anndata.AnnData, mdata: Any) -> None:
    with pytest.raises(
        DataError, match=r"A MuData is expected here; got anndata\..*AnnData\..*mudata\.MuData\(\{'rna'"
    ):
        set_up_several(adata)
    with pytest.raises(DataError, match="A MuData is expected here"):
        bind(adata, set_up_several(mdata))
    with pytest.raises(DataError, match=r"The MuData is empty"):
        set_up_several(mdata[[]])
    mdata["rna"].var_names = ["x", "x", *mdata["rna"].var_names[2:]]
    with pytest.raises(
        DataError, match=r"more than once in mdata\['rna'\]\.var_names: 'x'.*`mdata\['rna'\]\.var_names"
    ):
        set_up_several(mdata)


def test_modalities_that_share_features(adata: anndata.AnnData) -> None:
    stacked = mudata.MuData({"a": adata[:9].copy(), "b": adata[9:].copy()}, axis=1)
    with pytest.raises(DataError, match=r"share features \(axis=1\)"):
        set_up_several(stacked)


def test_a_mudata_that_is_out_of_date(mdata: Any) -> None:
    registry = set_up_several(mdata)
    mdata.mod["atac"] = mdata["atac"][:4].copy()
    with pytest.raises(DataError, match=r"mdata\['atac'\] has 4 cells, and the MuData knows of 7.*mdata\.update\(\)"):
        bind(mdata, registry)


# --- covariates of modalities


def test_columns_of_the_modalities_are_put_together(mdata: Any) -> None:
    registry = set_up_several(
        mdata,
        batch_key="batch",
        labels_key="cell_type",
        nn_conditioning_covariate_keys=["donor"],
        nn_continuous_covariate_keys=["age"],
    )
    number = np.array([int(name.removeprefix("cell")) for name in mdata.obs_names])
    assert registry.columns[:3] == (
        Column("batch", ("a", "b", "c")),
        Column("cell_type", ("T", "B")),  # the order of the categorical
        Column("donor", (0, 1, 2, 3)),
    )
    dataset = bind(mdata, registry)
    # Derived by hand from how they were made: b a c, T B, donors 0 to 3.
    expected = np.stack([np.array([1, 0, 2])[number % 3], number % 2, number % 4], axis=1)
    np.testing.assert_array_equal(dataset.codes.numpy(), expected)
    age = number * 0.5 - 3
    expected = (age - age.mean()) / age.std()
    np.testing.assert_allclose(dataset.continuous.numpy()[:, 0], expected, rtol=1e-6, atol=1e-7)


def test_mdata_obs_comes_first(mdata: Any) -> None:
    mdata.obs["batch"] = ["one"] * 25
    assert set_up_several(mdata, batch_key="batch").columns[0].categories == ("one",)


def test_a_column_of_a_modality_is_read_there(mdata: Any) -> None:
    """MuData keeps a copy in its own obs, under the same name, which does not follow the modality."""
    mdata.pull_obs()
    assert "rna:batch" in mdata.obs
    mdata["rna"].obs["batch"] = [name[-1] for name in mdata["rna"].obs_names]
    mdata["atac"].obs["batch"] = mdata["rna"].obs["batch"].reindex(mdata["atac"].obs_names).fillna("0")
    mdata = mdata[mdata.obsmap["rna"].ravel() > 0].copy()
    registry = set_up_several(mdata, batch_key="rna:batch")
    assert registry.columns[0].categories == tuple("0123456789")
    del mdata["rna"].obs["batch"]
    assert "rna:batch" in mdata.obs  # read where nothing else is left
    assert set_up_several(mdata, batch_key="rna:batch").columns[0].categories == ("a", "b", "c")


def test_what_the_peer_minified_is_refused(mdata: Any) -> None:
    mdata.obsm["X_totalVI_qzm"] = np.zeros((mdata.n_obs, 3))
    mdata.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    with pytest.raises(DataError, match=r"mdata was minified by scvi-tools.*give the data with their counts"):
        set_up_several(mdata)


def test_a_column_that_one_modality_has_does_not_cover_all_cells(mdata: Any) -> None:
    mdata["rna"].obs["lane"] = "L1"
    with pytest.raises(DataError, match=r"obs\['lane'\] is missing \(NaN\) in 2 of 25 cells"):
        set_up_several(mdata, batch_key="lane")


def test_what_is_missing_in_one_modality_is_taken_from_the_other(mdata: Any) -> None:
    mdata["rna"].obs["batch"] = mdata["rna"].obs["batch"].astype(object)
    mdata["rna"].obs.loc["cell4", "batch"] = None
    dataset = bind(mdata, set_up_several(mdata, batch_key="batch"))
    assert dataset.codes[list(mdata.obs_names).index("cell4"), 0] == 0  # a, as the other modality says


def test_modalities_that_disagree(mdata: Any) -> None:
    mdata["atac"].obs.loc[["cell3", "cell4", "cell24"], "batch"] = ["c", "c", "c"]
    with pytest.raises(DataError) as error:
        set_up_several(mdata, batch_key="batch")
    assert "batch_key: obs['batch'] differs between the modalities 'rna', 'atac' in 2 cells" in str(error.value)
    assert "that of 'cell3' is 'b' and 'c'" in str(error.value)
    assert "into mdata.obs" in str(error.value)


def test_unknown_columns(mdata: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"batch_key: mdata\.obs has no column 'bacth'; .*Did you mean 'batch'"):
        set_up_several(mdata, batch_key="bacth")


# --- counts


def test_the_summary_tells_empty_from_missing(mdata: Any) -> None:
    registry = set_up_several(mdata)
    summary = bind(mdata, registry).summary("atac")
    assert (summary.n_cells, summary.n_measured, summary.n_empty_cells) == (25, 7, 1)
    totals = {name: row.sum() for name, row in cells_of(mdata)["atac"].items()}
    np.testing.assert_array_equal(summary.cell_totals, [totals.get(name, 0) for name in mdata.obs_names])
    with pytest.warns(
        DataWarning, match=r"1 of 7 cells have no counts in mdata\['atac'\]\.X.*Leave cells that were not"
    ):
        check_counts(summary, mdata, registry.modality("atac"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_counts(bind(mdata, registry).summary("rna"), mdata, registry.modality("rna"))


def test_faults_are_named_by_cell_and_feature(mdata: Any) -> None:
    mdata["atac"].layers["counts"] = mdata["atac"].X.copy()
    mdata["atac"].X[2, 3] = -1
    registry = set_up_several(mdata)
    with pytest.raises(DataError) as error:
        check_counts(bind(mdata, registry).summary("atac"), mdata, registry.modality("atac"))
    assert "mdata['atac'].X has 1 negative values, the first in cell 'cell1', peak 'chr4:400-450'" in str(error.value)
    assert "mdata['atac'].layers['counts'] looks like raw integer counts: pass layer={'atac': 'counts'}" in str(
        error.value
    )


def test_the_fingerprint_tells_empty_from_missing(mdata: Any) -> None:
    registry = set_up_several(mdata, modalities=["atac"])
    counts = cells_of(mdata)["atac"]
    dense = np.stack([counts.get(name, np.zeros(7, np.float32)) for name in mdata.obs_names])
    padded = anndata.AnnData(sp.csr_matrix(dense), obs=pd.DataFrame(index=mdata.obs_names), var=mdata["atac"].var)
    whole = bind(mudata_of(atac=padded), registry)
    assert [whole.batch(ROWS).counts["atac"].to_dense().tolist()] == [
        bind(mdata, registry).batch(ROWS).counts["atac"].to_dense().tolist()
    ]
    assert whole.fingerprint() != bind(mdata, registry).fingerprint()


def test_nothing_is_written(mdata: Any) -> None:
    before = mdata.copy()
    bind(mdata, set_up_several(mdata, batch_key="batch"))
    pd.testing.assert_frame_equal(mdata.obs, before.obs)
    for part in before.mod:
        pd.testing.assert_frame_equal(mdata[part].obs, before[part].obs)
        assert not mdata[part].uns
        assert (mdata[part].X != before[part].X).nnz == 0


def test_rows_of_an_unpaired_source() -> None:
    dense = np.arange(12, dtype=np.float32).reshape(4, 3)
    source = UnpairedSource(InMemorySource(dense), np.array([2, -1, 0, -1, 3, 1]))
    assert (source.n_cells, source.n_features, source.in_memory) == (6, 3, True)
    zero = [0.0, 0.0, 0.0]
    expected = [zero, [3, 4, 5], [6, 7, 8], zero, [6, 7, 8]]
    assert source.take(np.array([3, 5, 0, 1, 0])).to_dense().tolist() == expected
    together = torch.cat([block.to_dense() for block in source.blocks(2)])
    assert together.tolist() == [[6, 7, 8], zero, [0, 1, 2], zero, [9, 10, 11], [3, 4, 5]]
