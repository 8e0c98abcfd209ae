from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from tests.data.set_up import set_up

from countvi.data import Column, Registry, bind, prepare_query
from countvi.errors import DataError, DataWarning, MismatchError, UnknownNameError

FULL: dict[str, Any] = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "size_factor_key": "sf",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}
ROWS = np.array([20, 3, 3, 0, 11])
GENES = [9, 2, 0, 5]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("genes", [list(range(11)), GENES], ids=["all genes", "reordered, fewer"])
def test_a_batch_is_a_dense_slice(
    stored: anndata.AnnData, dense: np.ndarray, layer: str | None, view: bool, genes: list[int]
) -> None:
    registry = set_up(stored[:, [f"gene{i}" for i in genes]], layer=layer, **FULL)
    cells = np.arange(23)
    if view:
        cells = np.flatnonzero(np.arange(23) != 7)[::-1]
        stored = stored[cells]
    dataset = bind(stored, registry)
    assert dataset.n_cells == len(cells)
    assert list(dataset.obs_names) == [f"cell{i}" for i in cells]
    batch = dataset.batch(ROWS)
    of = cells[ROWS]
    np.testing.assert_array_equal(batch.counts["rna"].to_dense().numpy(), dense[np.ix_(of, genes)])
    # The annotations, derived by hand from how they were made: a b c, T B (T first), donors 0 to 3.
    expected = [[{0: 1, 1: 0, 2: 2}[i % 3], i % 2, i % 4] for i in of]
    assert batch.design.codes.tolist() == expected
    assert batch.design.codes.dtype == torch.int64
    assert batch.design.continuous.dtype == torch.float32
    # Standardised by the 23 cells of the set-up, of a view as well.
    age = np.arange(23) * 0.5 - 3
    expected = (age[of] - age.mean()) / age.std()
    np.testing.assert_allclose(batch.design.continuous.numpy(), expected[:, None], rtol=1e-6, atol=1e-7)
    assert batch.design.size_factor is not None
    np.testing.assert_allclose(batch.design.size_factor.numpy(), of / 10 + 0.1, rtol=1e-6)


def test_without_covariates(adata: anndata.AnnData) -> None:
    batch = bind(adata, set_up(adata)).batch(ROWS)
    assert batch.design.codes.tolist() == [[0, 0]] * 5
    assert batch.design.continuous.shape == (5, 0)
    assert batch.design.size_factor is None


def test_a_batch_can_be_changed_without_harm(adata: anndata.AnnData) -> None:
    dataset = bind(adata, set_up(adata, **FULL))
    before = dataset.batch(np.arange(23))
    changed = dataset.batch(np.arange(23))
    changed.design.codes.fill_(9)
    changed.design.continuous.fill_(9)
    changed.counts["rna"].values.fill_(9)
    after = dataset.batch(np.arange(23))
    assert torch.equal(after.design.codes, before.design.codes)
    assert torch.equal(after.design.continuous, before.design.continuous)
    assert torch.equal(after.counts["rna"].values, before.counts["rna"].values)


def test_a_registry_from_json_binds_the_same(adata: anndata.AnnData) -> None:
    registry = set_up(adata, **FULL)
    again = bind(adata, Registry.from_json(registry.to_json()))
    assert torch.equal(again.codes, bind(adata, registry).codes)


def test_missing_genes_are_named(adata: anndata.AnnData) -> None:
    registry = set_up(adata)
    with pytest.raises(MismatchError) as error:
        bind(adata[:, 3:], registry)
    assert "3 of the model's 11 genes are missing from adata.var_names: 'gene0', 'gene1', 'gene2'" in str(error.value)
    assert "`prepare_query_anndata`" in str(error.value)
    renamed = adata.copy()
    renamed.var_names = ["GENE0", *adata.var_names[1:]]
    with pytest.raises(MismatchError, match=r"1 of the model's 11 genes.*'gene0'.*Did you mean 'GENE0'"):
        bind(renamed, registry)


@pytest.mark.parametrize(
    ("known", "came", "words"),
    [
        ((1, 2), [1, 0], r"1 category in 1 cells.*: 0\. It knows 1, 2\."),
        ((1, 2), [0, 0], r"1 category in 2 cells.*: 0\. It knows 1, 2\."),
        (("0", "1"), [0, 1], r"2 categories in 2 cells.*: 0, 1\. It knows '0', '1'\."),
        ((0, 1), [False, True], r"2 categories .*: False, True\. It knows 0, 1\."),
        ((1, 2), [1.5, 2.0], r"1 category .*: 1\.5\."),
        (
            ("day1", "day2"),
            ["day1", "Day2"],
            r"1 category in 1 cells.*: 'Day2'\. It knows 'day1', 'day2'\. Did you mean 'day2'",
        ),
    ],
    ids=str,
)
def test_unseen_categories(known: tuple[Any, ...], came: list[Any], words: str) -> None:
    model = Registry("setup_anndata", {}, (), (Column("k", known), Column(None, (0,))))
    obs = pd.DataFrame({"k": came}, index=["c0", "c1"])
    query = anndata.AnnData(sp.csr_matrix(np.eye(2)), obs=obs)
    with pytest.raises(MismatchError, match=r"obs\['k'\] \(batch\) has " + words) as error:
        bind(query, model)
    assert "train a model on both data sets" in str(error.value)


@pytest.mark.parametrize(
    "came",
    [
        pd.Series(["b", "a", "b"]),
        pd.Series(["b", "a", "b"], dtype=object),
        pd.Series(pd.Categorical(["b", "a", "b"], categories=["c", "b", "unused", "a"])),
        pd.Series(["b", "a", "b"], dtype="string"),
        pd.Series([2, 1, 2]),
        pd.Series([2, 1, 2], dtype=np.uint8),
        pd.Series([2.0, 1.0, 2.0]),
        pd.Series([2, 1, 2], dtype="Int64"),
        pd.Series([2, 1, 2], dtype="category"),
        pd.Series([True, False, True]),
    ],
    ids=lambda s: f"{s.dtype}-{s.iloc[0]}",
)
def test_the_same_categories_in_another_dtype(came: pd.Series) -> None:
    known = {"b": ("a", "b", "c"), 2: (1, 2, 3), True: (False, True)}
    categories = next(c for key, c in known.items() if key == came.iloc[0] and (key is True) == (came.dtype == bool))
    model = Registry("m", {}, (), (Column("k", categories), Column(None, (0,))))
    came.index = pd.Index(["c0", "c1", "c2"])
    query = anndata.AnnData(sp.csr_matrix(np.eye(3)), obs=pd.DataFrame({"k": came}))
    assert bind(query, model).codes[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize("key", ["batch", "cell_type", "donor", "age", "sf"])
def test_missing_columns(adata: anndata.AnnData, key: str) -> None:
    registry = set_up(adata, **FULL)
    adata.obs = adata.obs.rename(columns={key: key + "_"})
    with pytest.raises(UnknownNameError, match=f"The model's .* key: adata.obs has no column '{key}'.*Did you mean"):
        bind(adata, registry)


def test_missing_values(adata: anndata.AnnData) -> None:
    registry = set_up(adata, **FULL)
    query = adata.copy()
    query.obs.loc["cell1", "batch"] = np.nan
    with pytest.raises(DataError, match=r"obs\['batch'\] is missing \(NaN\) in 1 of 23"):
        bind(query, registry)
    query = adata.copy()
    query.obs.loc["cell1", "age"] = np.nan
    with pytest.raises(DataError, match=r"obs\['age'\] has 1 NaN"):
        bind(query, registry)


def test_missing_layer(adata: anndata.AnnData) -> None:
    adata.layers["counts"] = adata.X
    registry = set_up(adata, layer="counts")
    del adata.layers["counts"]
    with pytest.raises(UnknownNameError, match="no 'counts'; it has no layers"):
        bind(adata, registry)


def test_empty_and_repeated(adata: anndata.AnnData) -> None:
    registry = set_up(adata)
    with pytest.raises(DataError, match="empty: 0 cells"):
        bind(adata[:0], registry)
    adata.var_names = ["gene1", *adata.var_names[1:]]
    with pytest.raises(DataError, match="1 names occur more than once"):
        bind(adata, registry)


def test_binding_copies_no_counts(adata: anndata.AnnData) -> None:
    registry = set_up(adata[:, ::-1])
    source: Any = bind(adata, registry).sources["rna"]
    assert np.shares_memory(source._matrix.data, adata.X.data)


def test_summary_is_read_once(adata: anndata.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = bind(adata, set_up(adata))
    summary = dataset.summary("rna")
    monkeypatch.setattr(type(dataset.sources["rna"]), "blocks", None)
    assert dataset.summary("rna") is summary
    with pytest.raises(UnknownNameError, match="no modality 'protein'"):
        dataset.summary("protein")


def test_sums_by_level(adata: anndata.AnnData) -> None:
    dataset = bind(adata, set_up(adata, **FULL))
    dense, cell = adata.X.toarray(), np.arange(23)
    batch, kind, donor = dataset.level_sums("rna", [0, 1, 2])
    assert batch.dtype == torch.float64
    for level, start in enumerate([1, 0, 2]):  # b a c
        np.testing.assert_array_equal(batch[level].numpy(), dense[cell % 3 == start].sum(0))
    for level in range(2):
        np.testing.assert_array_equal(kind[level].numpy(), dense[cell % 2 == level].sum(0))
    for level in range(4):
        np.testing.assert_array_equal(donor[level].numpy(), dense[cell % 4 == level].sum(0))
    assert dataset.level_sums("rna", []) == []


def slow_fingerprint(dense: np.ndarray, names: list[str]) -> str:
    """Compute the fingerprint entry by entry in Python's integers (splitmix64's finaliser on column and bits)."""
    mask = 2**64 - 1
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\0".join(["rna", str(dense.shape[0]), str(dense.shape[1]), *names]).encode())
    for row in dense:
        total = 0
        for column, value in enumerate(row):
            if value == 0:
                continue
            (bits,) = struct.unpack("<I", struct.pack("<f", value))
            key = column << 32 | bits
            key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & mask
            key = (key ^ key >> 27) * 0x94D049BB133111EB & mask
            total += (key ^ key >> 31) + 0x9E3779B97F4A7C15
        digest.update(struct.pack("<Q", total & mask))
    return digest.hexdigest()


@pytest.mark.usefixtures("quiet")
def test_fingerprint_does_not_see_the_store(
    kind: str, stored: anndata.AnnData, layer: str | None, make_counts: Any
) -> None:
    if "uint8" in kind:
        pytest.skip("the fixture of this kind holds counts clipped to 8 bits, which differ from those hashed below")
    registry = set_up(stored, layer=layer)
    expected = slow_fingerprint(make_counts(), [f"gene{i}" for i in range(11)])
    assert bind(stored, registry).fingerprint() == expected
    assert bind(stored[:, ::-1], registry).fingerprint() == expected


def test_fingerprint_sees_the_content(adata: anndata.AnnData) -> None:
    def fingerprint(data: anndata.AnnData) -> str:
        return bind(data, set_up(data)).fingerprint()

    seen = {fingerprint(adata), fingerprint(adata[::-1]), fingerprint(adata[:-1]), fingerprint(adata[:, :-1])}
    one_more, renamed, swapped = adata.copy(), adata.copy(), adata.copy()
    one_more.X[3, 4] += 1
    renamed.var_names = ["other", *adata.var_names[1:]]
    dense = adata.X.toarray()
    dense[0, :2] += [1, -1]  # all row and column sums stay
    dense[1, :2] += [-1, 1]
    swapped.X = sp.csr_matrix(dense)
    seen |= {fingerprint(one_more), fingerprint(renamed), fingerprint(swapped)}
    assert len(seen) == 7


def test_fingerprint_ignores_explicit_zeros_and_blocks(adata: anndata.AnnData) -> None:
    registry = set_up(adata)
    expected = bind(adata, registry).fingerprint()
    zeros = adata.copy()
    coo = adata.X.tocoo()
    at = np.argwhere(adata.X.toarray() == 0)[::3]
    zeros.X = sp.csr_matrix(
        (np.r_[coo.data, np.zeros(len(at))], (np.r_[coo.row, at[:, 0]], np.r_[coo.col, at[:, 1]])), shape=adata.shape
    )
    assert zeros.X.nnz > adata.X.nnz
    assert bind(zeros, registry).fingerprint() == expected


@pytest.mark.usefixtures("quiet")
def test_prepare_query_pads_and_orders(stored: anndata.AnnData, dense: np.ndarray, layer: str | None) -> None:
    names = ["gene10", "new1", *[f"gene{i}" for i in range(8)], "new2"]
    reference = anndata.AnnData(
        sp.csr_matrix((23, 11), dtype=np.float32), obs=stored.obs, var=pd.DataFrame(index=names)
    )
    reference.layers["counts"] = reference.X
    registry = set_up(reference, layer=layer, **FULL)
    query = prepare_query(stored, registry)
    matrix: Any = query.X if layer is None else query.layers[layer]
    assert isinstance(matrix, sp.csr_matrix)
    assert matrix.dtype == np.float32
    assert matrix.has_canonical_format
    expected = np.zeros((23, 11), np.float32)
    expected[:, 0] = dense[:, 10]
    expected[:, 2:10] = dense[:, :8]
    np.testing.assert_array_equal(matrix.toarray(), expected)
    assert list(query.var_names) == names
    pd.testing.assert_frame_equal(query.obs, stored.obs)
    batch = bind(query, registry).batch(ROWS)
    np.testing.assert_array_equal(batch.counts["rna"].to_dense().numpy(), expected[ROWS])


def test_prepare_query_leaves_the_query_alone(adata: anndata.AnnData) -> None:
    registry = set_up(adata[:, [4, 3]])
    adata.obsm["spatial"] = np.arange(46.0).reshape(23, 2)
    before = adata.copy()
    query = prepare_query(adata[2:9], registry)
    np.testing.assert_array_equal(query.obsm["spatial"], before.obsm["spatial"][2:9])
    query.obs["batch"] = "changed"
    query.obsm["spatial"][:] = -1
    query.X.data[:] = -1
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])


def test_prepare_query_warns_of_little_overlap(adata: anndata.AnnData) -> None:
    registry = set_up(adata[:, :10])
    prepare_query(adata[:, 2:], registry)  # 80 %
    with pytest.warns(DataWarning, match=r"only 7 of the model's 10 genes \(70%\)"):
        prepare_query(adata[:, 3:], registry)
    other = adata.copy()
    other.var_names = [f"ENSG{i}" for i in range(11)]
    with pytest.raises(DataError, match=r"none of the model's 10 genes.*'gene0'.*'ENSG0'.*Ensembl ids"):
        prepare_query(other, registry)


def test_backed_layers_and_unsorted_rows(adata: anndata.AnnData, tmp_path: Path) -> None:
    adata.layers["counts"] = adata.X + adata.X
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    dataset = bind(backed[[5, 1, 9]], set_up(backed, layer="counts"))
    expected = 2 * adata.X.toarray()[[9, 5, 9, 1]]
    np.testing.assert_array_equal(dataset.batch(np.array([2, 0, 2, 1])).counts["rna"].to_dense().numpy(), expected)
