from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tests.data.set_up import set_up

import countvi
from countvi.data import CountMatrix, InMemorySource, bind, check_counts, open_source, summarize
from countvi.errors import DataError, DataWarning


def summary_of(adata: anndata.AnnData, location: str = "X") -> Any:
    return summarize(open_source(adata, location), size=4)


def modality_of(adata: anndata.AnnData, location: str = "X") -> CountMatrix:
    return CountMatrix("rna", location, tuple(adata.var_names))


def check(adata: anndata.AnnData, location: str = "X", **allow: bool) -> None:
    check_counts(summary_of(adata, location), adata, modality_of(adata, location), **allow)


@pytest.mark.usefixtures("quiet")
def test_summary_of_every_store(stored: anndata.AnnData, dense: np.ndarray, layer: str | None) -> None:
    summary = summary_of(stored, "X" if layer is None else f"layers/{layer}")
    assert (summary.n_cells, summary.n_features) == dense.shape
    assert summary.n_stored == np.count_nonzero(dense)
    assert summary.n_negative == summary.n_nonfinite == summary.n_fractional == 0
    assert summary.first_negative is summary.first_nonfinite is None
    assert summary.maximum == dense.max()
    assert summary.cell_totals.dtype == summary.feature_totals.dtype == np.float64
    np.testing.assert_array_equal(summary.cell_totals, dense.sum(1, dtype=np.float64))
    np.testing.assert_array_equal(summary.feature_totals, dense.sum(0, dtype=np.float64))
    assert summary.n_empty_cells == summary.n_empty_features == 0
    assert not summary.looks_log_transformed


@pytest.mark.parametrize("size", [1, 2, 100])
def test_summary_counts_each_fault(size: int) -> None:
    dense = np.array([[0, 1.5, 0, 0], [0, 0, 0, 0], [np.nan, 7, 0, -2], [-np.inf, -0.5, 0, np.inf]])
    summary = summarize(InMemorySource(dense), size)
    assert summary.n_stored == 7
    assert summary.n_nonfinite == 3
    assert summary.first_nonfinite == (2, 0)
    assert summary.n_negative == 3  # minus infinity as well
    assert summary.first_negative == (2, 3)
    assert summary.n_fractional == 2
    assert summary.maximum == 7
    assert summary.n_empty_cells == 1
    assert summary.n_empty_features == 1


def test_totals_are_sums_in_double_precision() -> None:
    summary = summarize(InMemorySource(np.array([[2.0**24, 1.0, 1.0]], np.float32)))
    assert summary.cell_totals[0] == 2**24 + 2


def test_nothing_stored() -> None:
    summary = summarize(InMemorySource(sp.csr_matrix((3, 2), dtype=np.float32)))
    assert (summary.n_stored, summary.maximum) == (0, 0.0)
    assert (summary.n_empty_cells, summary.n_empty_features) == (3, 2)
    assert not summary.looks_log_transformed


def test_good_counts_pass_in_silence(adata: anndata.AnnData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(adata)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("allow", [False, True])
def test_not_finite(adata: anndata.AnnData, bad: float, allow: bool) -> None:
    dense = adata.X.toarray()
    dense[[9, 7], [1, 3]] = bad
    adata.X = sp.csr_matrix(dense)
    with pytest.raises(DataError, match=r"adata\.X has 2 NaN or infinite values.*cell 'cell7', gene 'gene3'"):
        check(adata, allow_negative=allow, allow_fractional=allow)


def test_names_are_those_of_the_model(adata: anndata.AnnData) -> None:
    adata.X[7, 3] = np.nan
    order = adata.var_names[::-1]
    registry = set_up(adata[:, order])
    with pytest.raises(DataError, match="cell 'cell7', gene 'gene3'"):
        check_counts(bind(adata, registry).summary("rna"), adata, registry.modality("rna"))


def test_negative(adata: anndata.AnnData) -> None:
    adata.X[5, 2] = -1
    adata.layers["raw counts"] = np.abs(adata.X.toarray())
    with pytest.raises(DataError) as error:
        check(adata)
    assert "adata.X has 1 negative values, the first in cell 'cell5', gene 'gene2'" in str(error.value)
    assert "adata.layers['raw counts'] looks like raw integer counts: pass layer='raw counts'" in str(error.value)
    check(adata, allow_negative=True)


def logged(adata: anndata.AnnData) -> anndata.AnnData:
    """Return what a tutorial leaves behind: counts in a layer and in raw, logarithms in X."""
    adata.layers["counts"] = adata.X.copy()
    adata.layers["scaled"] = adata.X.toarray() - 0.5
    adata.raw = adata.copy()
    adata.X = sp.csr_matrix(np.log1p(1e4 * adata.X.toarray() / adata.X.sum(1)))
    return adata


def test_log_transformed(adata: anndata.AnnData) -> None:
    adata = logged(adata)
    with pytest.warns(DataWarning) as caught:
        check(adata)
    (warning,) = caught
    text = str(warning.message)
    n_stored, maximum = adata.X.nnz, adata.X.max()
    assert f"adata.X has {n_stored:,} values that are not whole numbers and looks log-transformed" in text
    assert f"(max {maximum:.1f})" in text
    assert "adata.layers['counts'] looks like raw integer counts: pass layer='counts'" in text
    assert "adata.raw.X looks like raw integer counts" in text
    assert "scaled" not in text
    scope = {"adata": adata}
    del adata.layers["counts"]
    exec(text.split("`")[1], scope)  # the advice must run
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), adata.raw.X.toarray())


def test_fractional_but_not_logarithms(adata: anndata.AnnData) -> None:
    adata.X = adata.X * 10.5
    with pytest.warns(DataWarning, match="are not whole numbers") as caught:
        check(adata)
    assert "log-transformed" not in str(caught[0].message)
    assert "No other matrix of this AnnData looks like raw counts" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(adata, allow_fractional=True)


def test_the_layer_is_wrong_and_x_is_right(adata: anndata.AnnData) -> None:
    adata.layers["norm"] = adata.X / 3
    with pytest.warns(DataWarning, match=r"adata\.layers\['norm'\] has .*adata\.X looks like raw.*pass layer=None"):
        check(adata, "layers/norm")


@pytest.mark.parametrize("store", ["csc", "dense"])
def test_raw_counts_are_recognised_in_other_stores(adata: anndata.AnnData, store: str) -> None:
    adata.layers["c"] = sp.csc_matrix(adata.X) if store == "csc" else adata.X.toarray()
    adata.X = adata.X / 3
    with pytest.warns(DataWarning, match="pass layer='c'"):
        check(adata)


@pytest.mark.parametrize("store", ["csr", "csc", "dense"])
def test_raw_counts_are_recognised_in_a_file(adata: anndata.AnnData, store: str, tmp_path: Path) -> None:
    adata.layers["norm"] = adata.X / 3
    adata.X = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda x: x.toarray()}[store](adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.warns(DataWarning, match="pass layer=None"):
        check(backed, "layers/norm")


@pytest.mark.parametrize("location", ["X", "layers/counts"])
def test_empty_cells_and_genes(adata: anndata.AnnData, location: str) -> None:
    dense = adata.X.toarray()
    dense[[2, 6, 7]] = 0
    dense[:, [1, 4]] = 0  # leaves cell3 with nothing as well
    adata.X = sp.csr_matrix(dense)
    if location != "X":
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.ones_like(dense)
    with pytest.warns(DataWarning) as caught:
        check(adata, location)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    where = "adata.X" if location == "X" else "adata.layers['counts']"
    assert f"4 of 23 cells have no counts in {where}" in texts[0]
    assert f"2 of 11 genes have no counts in {where}" in texts[1]
    sc = pytest.importorskip("scanpy", reason="needs the optional package: pip install 'countvi[demo]'")
    scope = {"adata": adata.copy(), "np": np, "sc": sc}
    for text in texts:
        exec(text.split("`")[1], scope)  # the advice must run
    assert scope["adata"].shape == (19, 9)


def test_one_sentence_for_the_first_fault_only(adata: anndata.AnnData) -> None:
    adata.X = sp.csr_matrix(np.full((23, 11), np.nan, dtype=np.float32))
    with pytest.raises(DataError, match="253 NaN"):
        check(adata)


def test_names_with_odd_types() -> None:
    adata = anndata.AnnData(np.array([[-1.0]]), obs=pd.DataFrame(index=["AAAC-1"]), var=pd.DataFrame(index=["CD3'D"]))
    with pytest.raises(DataError, match="CD3'D"):
        check(adata)


@pytest.mark.parametrize("model", [countvi.TOTALVI, countvi.RegularizedMultimodalVI])
def test_cells_of_a_mosaic_without_rna_are_counted(model: Any) -> None:
    """Zeros that stand for what was not measured."""
    mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
    rng = np.random.default_rng(0)
    rna, protein = (anndata.AnnData(rng.poisson(3.0, (40, n)).astype(np.float32) + 1) for n in (12, 4))
    protein.var_names = [f"P{i}" for i in range(4)]
    rna.X[:7] = 0
    with mudata.set_options(pull_on_update=False):
        mdata = mudata.MuData({"rna": rna, "protein": protein})
    model.setup_mudata(mdata)
    with pytest.warns(DataWarning, match=r"7 of 40 cells have no counts in mdata\['rna'\]\.X.*not measured"):
        model(mdata)
    if model is countvi.TOTALVI:
        rna.obsm["protein"] = protein.to_df()
        model.setup_anndata(rna, protein_expression_obsm_key="protein")
        with pytest.warns(DataWarning, match=r"7 of 40 cells have no counts in adata\.X"):
            model(rna)


def test_no_counts_at_all() -> None:
    zeros = sp.csr_matrix(np.ones((40, 12), dtype=np.float32))
    zeros.data[:] = 0  # stored, and still none
    adata = anndata.AnnData(zeros)
    adata.layers["raw"] = np.ones((40, 12), dtype=np.float32)
    countvi.SCVI.setup_anndata(adata)
    with pytest.warns(DataWarning, match=r"adata\.X has no counts: all are zero.*pass layer='raw'"):
        countvi.SCVI(adata)
