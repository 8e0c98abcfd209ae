"""Proteins in ``obsm`` or in a MuData: what is read, and what counts as not measured."""

from __future__ import annotations

import json
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tests.data.set_up import set_up_proteins

from countvi.data import Registry, bind, with_unmeasured
from countvi.errors import DataError, DataWarning, MismatchError, OptionError, UnknownNameError

N_CELLS, NAMES = 9, ["CD3", "CD4", "CD8", "CD19"]
BATCH = {"batch_key": "batch"}
PANEL = {"batch_key": "batch", "panel_key": "panel"}


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(4.0, (N_CELLS, len(NAMES))).astype(np.float64) + 1


@pytest.fixture
def adata() -> anndata.AnnData:
    x = np.random.default_rng(1).poisson(1.0, (N_CELLS, 5)).astype(np.float32)
    obs = pd.DataFrame(
        {"batch": list("aaabbbccc"), "panel": [1, 1, 1, 1, 1, 1, 2, 2, 2]}, index=[f"c{i}" for i in range(N_CELLS)]
    )
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(5)]))


def read(adata, registry: Registry, rows=None) -> tuple[np.ndarray, np.ndarray]:
    """Protein counts and what was measured, as a model sees them."""
    batch = bind(adata, registry).batch(np.arange(adata.n_obs) if rows is None else np.asarray(rows))
    measured = batch.design.measured_entries("protein")
    dense = batch.counts["protein"].to_dense().numpy()
    return dense, np.ones_like(dense, dtype=bool) if measured is None else measured.numpy()


def as_frame(x, adata):
    return pd.DataFrame(x, index=adata.obs_names, columns=NAMES)


@pytest.mark.parametrize(
    "kind", ["frame", "int frame", "nullable frame", "array", "csr", "csr_array", "float32", "sparse frame"]
)
def test_every_kind_of_matrix_is_read_alike(adata, counts, kind):
    given = {
        "frame": lambda: as_frame(counts, adata),
        "int frame": lambda: as_frame(counts.astype(int), adata),
        "nullable frame": lambda: as_frame(counts.astype(int), adata).astype("Int64"),
        "array": lambda: counts,
        "csr": lambda: sp.csr_matrix(counts),
        "csr_array": lambda: sp.csr_array(counts),
        "float32": lambda: counts.astype(np.float32),
        "sparse frame": lambda: as_frame(counts, adata).astype(pd.SparseDtype(float, 0.0)),
    }[kind]()
    adata.obsm["protein"] = given
    adata.uns["names"] = np.array(NAMES)
    key = None if "frame" in kind else "names"
    registry = set_up_proteins(adata, **BATCH, protein_expression_obsm_key="protein", protein_names_uns_key=key)
    assert registry.modality("protein").feature_names == tuple(NAMES)
    dense, measured = read(adata, registry)
    np.testing.assert_array_equal(dense, counts)
    assert measured.all()


@pytest.mark.parametrize("kind", ["frame", "nullable frame", "array", "csr"])
def test_nan_is_not_measured_and_zero_is_zero(adata, counts, kind):
    counts[2, 1] = counts[5] = np.nan
    counts[7] = 0.0
    given = {
        "frame": lambda: as_frame(counts, adata),
        "nullable frame": lambda: as_frame(counts, adata).astype("Int64"),
        "array": lambda: counts,
        "csr": lambda: sp.csr_matrix(counts),
    }[kind]()
    adata.obsm["protein"] = given
    registry = set_up_proteins(adata, **BATCH, protein_expression_obsm_key="protein")
    dense, measured = read(adata, registry)
    np.testing.assert_array_equal(measured, ~np.isnan(counts))
    np.testing.assert_array_equal(dense, np.nan_to_num(counts))
    # A few rows, in another order and repeated.
    dense, measured = read(adata, registry, [7, 5, 2, 2])
    np.testing.assert_array_equal(measured, ~np.isnan(counts[[7, 5, 2, 2]]))
    np.testing.assert_array_equal(dense, np.nan_to_num(counts[[7, 5, 2, 2]]))


@pytest.mark.parametrize("kind", ["bool frame", "frame of others", "zeros and ones", "sparse"])
def test_a_mask_says_what_was_measured(adata, counts, kind):
    mask = np.random.default_rng(2).random(counts.shape) < 0.6
    adata.obsm["protein"] = as_frame(counts, adata)
    adata.obsm["mask"] = {
        "bool frame": lambda: as_frame(mask, adata),
        "frame of others": lambda: as_frame(mask, adata)[NAMES[::-1]],
        "zeros and ones": lambda: mask.astype(float),
        "sparse": lambda: sp.csr_matrix(mask),
    }[kind]()
    registry = set_up_proteins(adata, **BATCH, protein_expression_obsm_key="protein", protein_mask_obsm_key="mask")
    dense, measured = read(adata, registry)
    np.testing.assert_array_equal(measured, mask)
    np.testing.assert_array_equal(dense, np.where(mask, counts, 0.0))


def test_masks_that_cannot_be_one_are_refused(adata, counts):
    adata.obsm["protein"] = as_frame(counts, adata)
    adata.obsm["numbers"] = counts
    adata.obsm["narrow"] = np.ones((N_CELLS, 2), dtype=bool)
    for key, error in (("numbers", DataError), ("narrow", MismatchError), ("absent", UnknownNameError)):
        with pytest.raises(error, match=key):
            set_up_proteins(adata, **BATCH, protein_expression_obsm_key="protein", protein_mask_obsm_key=key)


@pytest.mark.parametrize(("keys", "level"), [(BATCH, "batch"), (PANEL, "panel")])
def test_a_protein_without_counts_in_a_panel_is_not_measured_there(adata, counts, keys, level):
    lacking = {"batch": "b", "panel": 2}[level]
    counts[(adata.obs[level] == lacking).to_numpy(), 2] = 0.0
    counts[:, 3] = 0.0  # nowhere: as far as counts can tell, a true zero
    adata.obsm["protein"] = as_frame(counts, adata)
    registry = set_up_proteins(adata, **keys, protein_expression_obsm_key="protein")
    _, measured = read(adata, registry)
    expected = np.ones_like(measured)
    expected[(adata.obs[level] == lacking).to_numpy(), 2] = False
    np.testing.assert_array_equal(measured, expected)
    # Other cells of that panel are read by what was learned here.
    assert not read(adata[4:8] if level == "batch" else adata[6:], registry)[1].all()
    assert read(adata, with_unmeasured(registry, ()))[1].all()


def test_nan_anywhere_turns_the_guess_off(adata, counts):
    counts[3:6, 2] = 0.0
    counts[0, 0] = np.nan
    adata.obsm["protein"] = as_frame(counts, adata)
    registry = set_up_proteins(adata, **BATCH, protein_expression_obsm_key="protein")
    np.testing.assert_array_equal(read(adata, registry)[1], ~np.isnan(counts))


def test_a_registry_survives_json(adata, counts):
    counts[3:6, 2] = 0.0
    adata.obsm["protein"] = as_frame(counts, adata)
    registry = set_up_proteins(adata, **PANEL, protein_expression_obsm_key="protein")
    assert Registry.from_json(json.loads(json.dumps(registry.to_json()))) == registry


def test_missing_columns_of_a_query_are_not_measured(adata, counts):
    adata.obsm["protein"] = as_frame(counts, adata)
    registry = set_up_proteins(adata, **BATCH, protein_expression_obsm_key="protein")
    adata.obsm["protein"] = as_frame(counts, adata)[["CD19", "CD3"]]
    with pytest.warns(DataWarning, match="CD4.*not measured"):
        dense, measured = read(adata, registry)
    np.testing.assert_array_equal(measured, np.tile([True, False, False, True], (N_CELLS, 1)))
    np.testing.assert_array_equal(dense, counts * measured)


def test_fingerprints_tell_gaps_from_zeros(adata, counts):
    adata.obsm["protein"] = as_frame(counts, adata)
    registry = set_up_proteins(adata, **BATCH, protein_expression_obsm_key="protein")
    prints = set()
    for value in (3.0, 0.0, np.nan):
        counts[4, 1] = value
        adata.obsm["protein"] = as_frame(counts, adata)
        dataset = bind(adata, registry)
        prints.add(dataset.fingerprint())
        assert dataset.load(np.array([4, 0])).batch(np.array([0])).counts["protein"].totals() == np.nansum(counts[4])
    assert len(prints) == 3


def test_what_cannot_be_set_up(adata, counts):
    with pytest.raises(UnknownNameError, match="'protein'"):
        set_up_proteins(adata, **BATCH, protein_expression_obsm_key="protein")
    adata.obsm["protein"] = as_frame(counts, adata)
    with pytest.raises(UnknownNameError, match="panel_key"):
        set_up_proteins(adata, batch_key="batch", panel_key="plate", protein_expression_obsm_key="protein")
    adata.obsm["words"] = as_frame(counts, adata).astype(str)
    with pytest.raises(DataError, match="object"):
        set_up_proteins(adata, **BATCH, protein_expression_obsm_key="words")


def test_proteins_of_which_nothing_is_known(adata, counts):
    """As after a join by names of cells that do not match."""
    use = {**BATCH, "protein_expression_obsm_key": "protein"}
    adata.obsm["protein"] = as_frame(counts, adata) * np.nan
    with pytest.raises(DataError, match=r"No protein was measured in any cell.*names of its cells match"):
        set_up_proteins(adata, **use)
    adata.obsm["protein"] = as_frame(counts, adata)
    adata.obsm["seen"] = np.zeros(counts.shape, dtype=bool)
    with pytest.raises(DataError, match="No protein was measured in any cell"):
        set_up_proteins(adata, **use, protein_mask_obsm_key="seen")
    adata.obsm["protein"] = as_frame(counts, adata) * 0
    with pytest.raises(DataError, match="has no counts: all are zero"):
        set_up_proteins(adata, **use)


# ---------------------------------------------------------------- MuData


@pytest.fixture
def mdata(adata, counts):
    mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
    protein = anndata.AnnData(counts[2:], obs=pd.DataFrame(index=adata.obs_names[2:]), var=pd.DataFrame(index=NAMES))
    protein.layers["raw"] = counts[2:]
    protein.layers["seen"] = np.random.default_rng(2).random((N_CELLS - 2, 4)) < 0.7
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": adata, "prot": protein})


def test_cells_without_proteins_are_not_measured(mdata, counts):
    registry = set_up_proteins(mdata, **BATCH)
    dense, measured = read(mdata, registry)
    np.testing.assert_array_equal(measured, np.repeat([[False]] * 2 + [[True]] * 7, 4, axis=1))
    np.testing.assert_array_equal(dense, np.where(measured, counts, 0.0))
    assert bind(mdata, registry).present["protein"].tolist() == [False] * 2 + [True] * 7


def test_layers_masks_and_columns_of_modalities(mdata, counts):
    registry = set_up_proteins(
        mdata,
        batch_key="batch",
        protein_layer="raw",
        protein_mask_layer="seen",
        modalities={"rna_layer": "rna", "protein_layer": "prot", "batch_key": "rna"},
    )
    assert registry.columns[0].key == "rna:batch" and registry.columns[0].categories == ("a", "b", "c")
    _, measured = read(mdata, registry)
    np.testing.assert_array_equal(measured[2:], mdata["prot"].layers["seen"])
    assert not measured[:2].any()


def test_mudata_that_cannot_be_set_up(mdata, adata):
    mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
    with pytest.raises(OptionError, match="no argument 'rna'"):
        set_up_proteins(mdata, **BATCH, modalities={"rna": "rna"})
    with pytest.raises(UnknownNameError, match="'adt'"):
        set_up_proteins(mdata, **BATCH, modalities={"protein_layer": "adt"})
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lacking = mudata.MuData({"rna": adata[:5].copy(), "prot": mdata["prot"].copy()})
    with pytest.raises(DataError, match="have no RNA"):
        set_up_proteins(lacking)
