from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.set_up import set_up

from countvi.batch import CountBlock
from countvi.data import BackedSource, ColumnMap, InMemorySource, open_source
from countvi.data.compressed_rows import has_repeats
from countvi.data.source import SparseReader
from countvi.errors import DataError, DataWarning, UnknownNameError

ROWS = [[5, 3, 3, 22, 0], [0], [22, 21, 20], list(range(23)), list(range(22, -1, -1)), []]


def check_block(block: CountBlock, expected: np.ndarray) -> None:
    assert block.values.dtype == torch.float32
    assert block.columns.dtype == block.offsets.dtype == torch.int64
    assert (block.n_cells, block.n_features) == expected.shape
    rebuilt = np.zeros(expected.shape, np.float32)
    for i in range(block.n_cells):
        entries = slice(int(block.offsets[i]), int(block.offsets[i + 1]))
        columns = block.columns[entries].tolist()
        assert len(set(columns)) == len(columns), "columns repeat within a row"
        rebuilt[i, columns] = block.values[entries].numpy()
    np.testing.assert_array_equal(rebuilt, expected)


def location(layer: str | None) -> str:
    return "X" if layer is None else f"layers/{layer}"


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_take(stored: anndata.AnnData, dense: np.ndarray, layer: str | None, rows: list[int]) -> None:
    source = open_source(stored, location(layer))
    assert (source.n_cells, source.n_features) == dense.shape
    check_block(source.take(np.array(rows, dtype=np.int64)), dense[rows])


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_take_any_integer_dtype(stored: anndata.AnnData, dense: np.ndarray, layer: str | None, dtype: Any) -> None:
    rows = np.array([7, 1, 1], dtype=dtype)
    check_block(open_source(stored, location(layer)).take(rows), dense[[7, 1, 1]])


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_blocks_are_all_rows_in_order(stored: anndata.AnnData, dense: np.ndarray, layer: str | None, size: int) -> None:
    blocks = list(open_source(stored, location(layer)).blocks(size))
    assert max(block.n_cells for block in blocks) <= size
    np.testing.assert_array_equal(torch.cat([block.to_dense() for block in blocks]).numpy(), dense)


@pytest.mark.usefixtures("quiet")
def test_columns_are_aligned(stored: anndata.AnnData, dense: np.ndarray, layer: str | None) -> None:
    wanted = [9, 2, 0, 5]
    columns = ColumnMap.from_names(list(stored.var_names), [f"gene{i}" for i in wanted])
    source = open_source(stored, location(layer), columns)
    assert source.n_features == 4
    check_block(source.take(np.array([4, 3, 4])), dense[np.ix_([4, 3, 4], wanted)])


def test_columns_that_the_matrix_lacks_are_zero() -> None:
    columns = ColumnMap.from_names(["a", "b"], ["x", "b", "y"])
    source = InMemorySource(np.array([[1.0, 2.0], [3.0, 0.0]]), columns)
    check_block(source.take(np.array([1, 0])), np.array([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))


def test_same_names_need_no_map() -> None:
    assert ColumnMap.from_names(["a", "b"], ("a", "b")) is None
    assert ColumnMap.from_names(["b", "a"], ("a", "b")) is not None
    assert ColumnMap.from_names(["a", "b"], ("a",)) is not None


VIEWS: dict[str, Callable[[anndata.AnnData], tuple[Any, Any]]] = {
    "rows": lambda a: ([8, 3, 20, 1], slice(None)),
    "rows by mask": lambda a: (np.arange(23) % 2 == 0, slice(None)),
    "row slice": lambda a: (slice(4, 12), slice(None)),
    "genes": lambda a: (slice(None), [7, 1, 2]),
    "both": lambda a: ([8, 3, 20, 1], [7, 1, 2]),
    "names": lambda a: (["cell8", "cell3"], ["gene7", "gene1"]),
}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("view", list(VIEWS))
def test_views(stored: anndata.AnnData, dense: np.ndarray, layer: str | None, view: str) -> None:
    cells, genes = VIEWS[view](stored)
    adata = stored[cells, genes]
    assert adata.is_view
    cells = [int(name.removeprefix("cell")) for name in adata.obs_names]
    genes = [int(name.removeprefix("gene")) for name in adata.var_names]
    expected = dense[np.ix_(cells, genes)]
    source = open_source(adata, location(layer))
    rows = np.arange(len(cells))[::-1]
    check_block(source.take(rows), expected[::-1])
    assert adata.is_view
    wanted = list(adata.var_names[[1, 0]])
    aligned = open_source(adata, location(layer), ColumnMap.from_names(list(adata.var_names), wanted))
    check_block(aligned.take(rows), expected[::-1][:, [1, 0]])


@pytest.mark.usefixtures("quiet")
def test_backed_views_are_not_loaded(kind: str, stored: anndata.AnnData) -> None:
    source = open_source(stored[[3, 1], [2, 0]], "X")
    assert isinstance(source, BackedSource) == kind.startswith("backed")


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
def test_csr_is_not_copied(make: Any, dtype: Any, adata: anndata.AnnData) -> None:
    matrix = make(adata.X.astype(dtype))
    source = InMemorySource(matrix)
    assert np.shares_memory(source._matrix.data, matrix.data)
    assert np.shares_memory(source._matrix.indices, matrix.indices)


def test_reading_leaves_the_matrix_as_it_was(untidy: sp.csr_matrix, make_counts: Any) -> None:
    stored, counts = untidy, make_counts()
    before = stored.data.copy(), stored.indices.copy(), stored.indptr.copy()
    source = InMemorySource(stored)
    block = source.take(np.arange(23))
    check_block(block, counts)
    block.values.zero_()
    for now, then in zip((stored.data, stored.indices, stored.indptr), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_blocks_share_no_memory_with_the_matrix(adata: anndata.AnnData) -> None:
    before = adata.X.toarray()
    source = InMemorySource(adata.X)
    for block in [source.take(np.arange(23)), *source.blocks(7)]:
        block.values.zero_()
        block.columns.zero_()
    np.testing.assert_array_equal(adata.X.toarray(), before)


def test_csc_is_converted_with_a_notice(adata: anndata.AnnData) -> None:
    with pytest.warns(DataWarning, match=r"stored as CSC.*CSR copy.*tocsr\(\)"):
        InMemorySource(sp.csc_matrix(adata.X))


@pytest.mark.parametrize(
    "convert",
    [np.matrix, lambda d: d.astype(">f4"), lambda d: d.astype(np.float16), lambda d: d > 0],
    ids=["matrix", "big-endian", "float16", "bool"],
)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_odd_matrices(convert: Any, sparse: bool) -> None:
    matrix = convert(np.array([[0, 2, 1], [3, 0, 0]], dtype=np.float32))
    expected = np.asarray(matrix).astype(np.float32)
    if sparse:
        at = expected.nonzero()
        values = np.asarray(matrix)[at]
        matrix = sp.csr_matrix((values, at[1], [0, 2, 3]), shape=(2, 3))
    check_block(InMemorySource(matrix).take(np.array([1, 0])), expected[::-1])


def test_read_only_memory(adata: anndata.AnnData) -> None:
    dense = adata.X.toarray()
    dense.flags.writeable = False
    adata.X.data.flags.writeable = False
    check_block(InMemorySource(dense).take(np.array([2])), dense[[2]])
    check_block(InMemorySource(adata.X).take(np.array([2])), dense[[2]])


def test_dense_is_compressed_in_chunks(monkeypatch: pytest.MonkeyPatch, adata: anndata.AnnData) -> None:
    monkeypatch.setattr("countvi.data.compressed_rows._CHUNK", 30)  # two rows of eleven
    dense = adata.X.toarray()
    check_block(InMemorySource(dense).take(np.arange(23)), dense)


@pytest.mark.parametrize("chunk", [1, 10, 1 << 20])
def test_repeats_are_found_in_any_chunk(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("countvi.data.compressed_rows._CHUNK", chunk)
    matrix = sp.csr_matrix((np.array([1, 2, 3, 4.0]), np.array([1, 0, 2, 2]), [0, 2, 2, 4]), shape=(3, 3))
    check_block(InMemorySource(matrix).take(np.array([2, 0, 1])), np.array([[0, 0, 7], [2, 1, 0], [0, 0, 0]], "f4"))


def test_sums_of_repeats_do_not_overflow() -> None:
    matrix = sp.csr_matrix((np.array([200, 100], np.uint8), np.array([0, 0]), [0, 2]), shape=(1, 1))
    check_block(InMemorySource(matrix).take(np.array([0])), np.array([[300]], "f4"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("gap", [0, 3, 1 << 13])
def test_take_is_indexing(data: st.DataObject, gap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("countvi.data.source._GAP", gap)
    n_cells, n_genes = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    counts = data.draw(st.lists(st.integers(0, 3), min_size=n_cells * n_genes, max_size=n_cells * n_genes))
    dense = np.array(counts, dtype=np.float32).reshape(n_cells, n_genes)
    rows = np.array(data.draw(st.lists(st.integers(0, n_cells - 1), max_size=12)), dtype=np.int64)
    order = data.draw(st.permutations(range(n_genes)))
    kept = order[: data.draw(st.integers(1, n_genes))]
    columns = ColumnMap.from_names([str(i) for i in range(n_genes)], [str(i) for i in kept])
    matrix = sp.csr_matrix(dense)
    with h5py.File("m", "w", driver="core", backing_store=False) as file:
        group = anndata.io.write_elem(file, "m", matrix) or file["m"]
        reader = SparseReader(anndata.io.sparse_dataset(group))
        for source in (InMemorySource(matrix, columns), BackedSource(reader, columns)):
            check_block(source.take(rows), dense[np.ix_(rows, kept)])


def test_rows_outside_are_refused(adata: anndata.AnnData) -> None:
    source = InMemorySource(adata.X)
    for rows in ([-1], [23], [0.0], [[1]], [True, False]):
        with pytest.raises(AssertionError, match="rows must"):
            source.take(np.array(rows))


def test_no_x(adata: anndata.AnnData) -> None:
    empty = anndata.AnnData(obs=adata.obs, var=adata.var)
    with pytest.raises(DataError, match=r"adata\.X is empty \(None\); the model reads its counts there"):
        open_source(empty, "X")
    with pytest.raises(DataError, match=r"adata\.X is empty \(None\); pass a layer"):
        set_up(empty)


@pytest.mark.parametrize("location", ["X", "layers/counts", "obsm/protein"])
def test_objects_are_no_counts(adata: anndata.AnnData, location: str) -> None:
    counts = adata.X.toarray().astype(object)
    adata.layers["counts"] = adata.obsm["protein"] = counts
    adata.X = counts
    where = {
        "X": r"adata\.X",
        "layers/counts": r"adata\.layers\['counts'\]",
        "obsm/protein": r"adata\.obsm\['protein'\]",
    }
    with pytest.raises(DataError, match=rf"{where[location]} has values of dtype object.*{where[location]}\.astype"):
        open_source(adata, location)


def test_a_column_of_text_is_named(adata: anndata.AnnData) -> None:
    protein = pd.DataFrame({"CD3": 1.0, "call": "tag 1"}, index=adata.obs_names)
    adata.obsm["protein"] = protein
    with pytest.raises(DataError, match=r"adata\.obsm\['protein'\] has columns .*: 'call \(object\)'; drop"):
        open_source(adata, "obsm/protein")


def test_a_dask_array_is_read_by_its_owner() -> None:
    class Holder:
        """What open_source asks of an AnnData; dask itself is not needed to build countvi."""

        X = type("Array", (), {"__module__": "dask.array.core"})()
        is_view = False

    with pytest.raises(DataError, match=r"adata\.X is a dask array.*`adata\.X = adata\.X\.compute\(\)`"):
        open_source(Holder(), "X")  # type: ignore[arg-type]


def test_unknown_layer(adata: anndata.AnnData) -> None:
    with pytest.raises(UnknownNameError, match="has no 'counts'; it has no layers"):
        open_source(adata, "layers/counts")
    adata.layers["counts"] = adata.X
    with pytest.raises(UnknownNameError, match=r"has no 'count'; it has 'counts'\. Did you mean 'counts'"):
        open_source(adata, "layers/count")


def test_backed_csc_says_how_to_convert(adata: anndata.AnnData, tmp_path: Path) -> None:
    adata.X = sp.csc_matrix(adata.X)
    adata.write_h5ad(tmp_path / "csc.h5ad")
    backed = anndata.read_h5ad(tmp_path / "csc.h5ad", backed="r")
    for data in (backed, backed[[1, 0]]):
        with pytest.raises(DataError, match=r"adata\.X is a backed matrix in CSC.*adata\.X = adata\.X\.tocsr\(\)"):
            open_source(data, "X")


@pytest.mark.parametrize(("matrix", "words"), [
    (np.array([["a"]]), "dtype <U1; integers or floating-point"),
    (np.array([[1j]]), "dtype complex128"),
    (np.ma.masked_array([[1.0]], [[True]]), "masked array.*fill them"),
])  # fmt: skip
def test_what_is_no_count_matrix(matrix: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        InMemorySource(matrix)


def test_an_unknown_container_is_named() -> None:
    class Lazy:
        is_view = isbacked = False
        X = {"not": "a matrix"}  # noqa: RUF012

    with pytest.raises(DataError, match=r"adata\.X is a builtins\.dict, which countvi cannot read"):
        open_source(Lazy(), "X")  # type: ignore[arg-type]


@pytest.mark.parametrize("repeated", [False, True])
def test_only_what_stands_twice_is_summed(repeated: bool) -> None:
    """CompressedRows whose columns are in no order are read as they lie."""
    columns = np.array([4, 1, 4 if repeated else 3, 2, 0])
    matrix = sp.csr_matrix((np.arange(1.0, 6.0), columns, [0, 3, 5]), shape=(2, 5))
    assert has_repeats(matrix) == repeated
    block = InMemorySource(matrix).take(np.array([0, 1]))
    np.testing.assert_array_equal(block.columns, [1, 4, 0, 2] if repeated else columns)
    np.testing.assert_array_equal(matrix.indices, columns)


# --- files that were closed, arrays that do not fit


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("view", [False, True])
def test_a_file_that_was_written_is_opened_again(
    adata: anndata.AnnData, tmp_path: Path, dense: bool, view: bool
) -> None:
    counts = adata.X.toarray()
    adata.X = counts if dense else adata.X
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    rows = np.array([9, 2, 5]) if view else np.arange(23)
    source = open_source(backed[rows] if view else backed, "X")
    backed.obs["cluster"] = "0"
    backed.write_h5ad(tmp_path / "cells.h5ad")
    check_block(source.take(np.arange(len(rows))), counts[rows])
    backed.file.close()
    check_block(source.take(np.array([1])), counts[rows[[1]]])
    backed.file.close()
    (tmp_path / "cells.h5ad").unlink()
    with pytest.raises(DataError, match=r"file of adata\.X was closed or changed.*model\.adata = adata"):
        source.take(np.array([0]))


BROKEN: dict[str, Any] = {
    "negative": lambda m: m.indices.__setitem__(3, -2),
    "too large": lambda m: m.indices.__setitem__(3, 2**31 - 5),
    "not increasing": lambda m: m.indptr.__setitem__(4, m.indptr[-1] + 7),
    "past the end": lambda m: m.indptr.__setitem__(-1, m.indptr[-1] + 7),
    "not from zero": lambda m: m.indptr.__setitem__(0, -3),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_arrays_that_do_not_fit(adata: anndata.AnnData, tmp_path: Path, broken: str) -> None:
    for form in ("csr", "csc"):
        matrix = adata.X.asformat(form).copy()
        BROKEN[broken](matrix)
        with pytest.raises(DataError, match="adata matrix is broken"):
            InMemorySource(matrix, where="adata matrix")
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        group = file["X"]
        matrix = sp.csr_matrix((group["data"][:], group["indices"][:], group["indptr"][:]), adata.shape)
        BROKEN[broken](matrix)
        group["indices"][:], group["indptr"][:] = matrix.indices, matrix.indptr
    backed = anndata.read_h5ad(path, backed="r")
    with pytest.raises(DataError, match=r"adata\.X \(.*cells\.h5ad\) is broken"):
        list(open_source(backed, "X").blocks())
    backed.file.close()
