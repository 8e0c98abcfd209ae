"""Counts in ``obsm``: proteins beside genes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from countvi.data import PROTEINS, Column, CountMatrix, Registry, bind
from countvi.data.features import feature_names
from countvi.errors import DataError, MismatchError, UnknownNameError

NAMES = ("CD3", "CD19", "CD14", "CD8")
ROWS = np.array([20, 3, 3, 0])


def proteins() -> np.ndarray:
    counts = np.random.default_rng(3).poisson(4.0, (23, 4)).astype(np.float32)
    counts[3, 1] = np.nan  # not measured
    return counts


def with_proteins(adata: anndata.AnnData, kind: str) -> tuple[anndata.AnnData, str | None]:
    """Store the proteins one way; the key of their names, if they need one."""
    if kind == "frame":
        adata.obsm["prot"] = pd.DataFrame(proteins(), index=adata.obs_names, columns=list(NAMES))
        return adata, None
    adata.obsm["prot"] = sp.csr_matrix(proteins()) if kind == "sparse" else proteins()
    adata.uns["protein names"] = np.array(NAMES)
    return adata, "protein names"


def registry_of(names: tuple[str, ...] = NAMES, names_key: str | None = None) -> Registry:
    genes = CountMatrix("rna", "X", tuple(f"gene{i}" for i in range(11)))
    added = CountMatrix("protein", "obsm/prot", names, None, PROTEINS, names_key)
    return Registry("m", {}, (genes, added), (Column(None, (0,)), Column(None, (0,))))


@pytest.mark.parametrize("kind", ["frame", "array", "sparse"])
@pytest.mark.parametrize("view", [False, True])
def test_proteins_are_matched_by_name(adata: anndata.AnnData, kind: str, view: bool) -> None:
    adata, key = with_proteins(adata, kind)
    registry = registry_of(("CD8", "CD3", "CD14"), key)  # another order, one fewer
    cells = np.arange(23)
    if view:
        cells = cells[::-1]
        adata = adata[cells]
    dataset = bind(adata, registry)
    batch = dataset.batch(ROWS)
    expected = proteins()[np.ix_(cells[ROWS], [3, 0, 2])]
    np.testing.assert_array_equal(batch.counts["protein"].to_dense().numpy(), expected)
    assert batch.counts["rna"].n_features == 11
    assert Registry.from_json(json.loads(json.dumps(registry.to_json()))) == registry


def test_a_value_that_was_not_measured_is_no_zero(adata: anndata.AnnData) -> None:
    adata, key = with_proteins(adata, "frame")
    block = bind(adata, registry_of(names_key=key)).batch(np.array([3])).counts["protein"]
    np.testing.assert_array_equal(block.to_dense().numpy(), proteins()[[3]])
    assert np.isnan(block.to_dense().numpy()).sum() == 1


def test_from_a_file(adata: anndata.AnnData, tmp_path: Path) -> None:
    adata, key = with_proteins(adata, "array")
    adata.write_h5ad(tmp_path / "a.h5ad")
    dataset = bind(anndata.read_h5ad(tmp_path / "a.h5ad", backed="r"), registry_of(names_key=key))
    np.testing.assert_array_equal(dataset.batch(ROWS).counts["protein"].to_dense().numpy(), proteins()[ROWS])


def test_names(adata: anndata.AnnData) -> None:
    adata, key = with_proteins(adata, "array")
    assert feature_names(adata, "obsm/prot", key) == list(NAMES)
    assert feature_names(adata, "obsm/prot") == ["0", "1", "2", "3"]
    assert feature_names(adata, "X") == [f"gene{i}" for i in range(11)]


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda a: a.obsm.pop("prot"), UnknownNameError, r"adata\.obsm has no 'prot'"),
        (lambda a: a.uns.pop("protein names"), UnknownNameError, r"adata\.uns has no 'protein names'"),
        (
            lambda a: a.uns.update({"protein names": ["CD3", "CD19"]}),
            DataError,
            r"adata\.uns\['protein names'\] has 2 names for the 4 columns of adata\.obsm\['prot'\]",
        ),
        (
            lambda a: a.uns.update({"protein names": ["CD3", "CD19", "CD3", "CD8"]}),
            DataError,
            r"1 names of columns of adata\.obsm\['prot'\] occur more than once: 'CD3'",
        ),
        (
            lambda a: a.uns.update({"protein names": ["CD3", "CD19", "Cd14", "CD8"]}),
            MismatchError,
            r"1 of the model's 4 proteins are missing from adata\.obsm\['prot'\]: 'CD14'\. Did you mean 'Cd14'",
        ),
    ],
)
def test_what_cannot_be_read(adata: anndata.AnnData, spoil: Any, error: type[Exception], words: str) -> None:
    adata, key = with_proteins(adata, "array")
    spoil(adata)
    with pytest.raises(error, match=words):
        bind(adata, registry_of(names_key=key))
