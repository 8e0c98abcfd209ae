"""A small matrix of counts, stored in every way that AnnData knows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from countvi.errors import DataWarning

N_CELLS, N_GENES = 23, 11

Store = Callable[[np.ndarray, Path], Any]


def make_counts(n_cells: int = N_CELLS, n_genes: int = N_GENES, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dense = rng.poisson(0.7, size=(n_cells, n_genes)).astype(np.float32)
    dense[:, 0] += 1  # no empty cells
    dense[0] += 1  # no empty genes
    dense[3] = 0  # but for this one
    dense[3, 4] = 300
    return dense


@pytest.fixture(name="make_counts")
def _make_counts() -> Callable[..., np.ndarray]:
    return make_counts


def make_obs(n_cells: int = N_CELLS) -> pd.DataFrame:
    cell = np.arange(n_cells)
    return pd.DataFrame(
        {
            "batch": np.array(["b", "a", "c"])[cell % 3],
            "cell_type": pd.Categorical(np.array(["T", "B"])[cell % 2], categories=["T", "NK", "B"]),
            "donor": cell % 4,
            "age": cell * 0.5 - 3,
            "sf": cell / 10 + 0.1,
        },
        index=[f"cell{i}" for i in cell],
    )


def make_adata(matrix: Any = None) -> anndata.AnnData:
    matrix = sp.csr_matrix(make_counts()) if matrix is None else matrix
    n_cells, n_genes = matrix.shape
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    return anndata.AnnData(matrix, obs=make_obs(n_cells), var=var)


def with_repeats(dense: np.ndarray) -> sp.csr_matrix:
    """Store each row as two halves that stand at the same places, in falling order of columns."""
    values, columns, offsets = [], [], [0]
    for row in dense:
        (at,) = row.nonzero()
        values += [row[at[::-1]] * 0.25, row[at] * 0.75]
        columns += [at[::-1], at]
        offsets.append(offsets[-1] + 2 * len(at))
    return sp.csr_matrix((np.concatenate(values), np.concatenate(columns), offsets), shape=dense.shape)


def unsorted(dense: np.ndarray) -> sp.csr_matrix:
    matrix = sp.csr_matrix(dense)
    for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        matrix.indices[a:b] = matrix.indices[a:b][::-1].copy()
        matrix.data[a:b] = matrix.data[a:b][::-1].copy()
    return sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=dense.shape)


def wide_index(dense: np.ndarray) -> sp.csr_matrix:
    matrix = sp.csr_matrix(dense)
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


def _layer(dense: np.ndarray, path: Path) -> anndata.AnnData:
    adata = make_adata(sp.csr_matrix(np.log1p(dense)))
    adata.layers["counts"] = sp.csr_matrix(dense)
    return adata


def _backed(matrix: Any, path: Path, **options: Any) -> anndata.AnnData:
    file = path / f"{len(list(path.iterdir()))}.h5ad"
    make_adata(matrix).write_h5ad(file, **options)
    return anndata.read_h5ad(file, backed="r")


STORES: dict[str, Store] = {
    "csr_matrix": lambda dense, path: make_adata(sp.csr_matrix(dense)),
    "csr_array": lambda dense, path: make_adata(sp.csr_array(dense)),
    "csr, int64 index": lambda dense, path: make_adata(wide_index(dense)),
    "csr, unsorted": lambda dense, path: make_adata(unsorted(dense)),
    "csr, repeated entries": lambda dense, path: make_adata(with_repeats(dense)),
    "csr, int64": lambda dense, path: make_adata(sp.csr_matrix(dense.astype(np.int64))),
    "csr, uint16": lambda dense, path: make_adata(sp.csr_matrix(dense.astype(np.uint16))),
    "csr, float64": lambda dense, path: make_adata(sp.csr_matrix(dense.astype(np.float64))),
    "csc_matrix": lambda dense, path: make_adata(sp.csc_matrix(dense)),
    "csc_array": lambda dense, path: make_adata(sp.csc_array(dense)),
    "dense": lambda dense, path: make_adata(dense.copy()),
    "dense, Fortran order": lambda dense, path: make_adata(np.asfortranarray(dense)),
    "dense, int32": lambda dense, path: make_adata(dense.astype(np.int32)),
    "layer": _layer,
    "backed csr": lambda dense, path: _backed(sp.csr_matrix(dense), path),
    "backed csr, compressed": lambda dense, path: _backed(sp.csr_matrix(dense), path, compression="gzip"),
    "backed csr, int64": lambda dense, path: _backed(sp.csr_matrix(dense.astype(np.int64)), path),
    "backed csr, repeated entries": lambda dense, path: _backed(with_repeats(dense), path),
    "backed dense": lambda dense, path: _backed(dense, path),
    "backed dense, uint8": lambda dense, path: _backed(np.minimum(dense, 255).astype(np.uint8), path),
}


@pytest.fixture(params=list(STORES))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def stored(kind: str, tmp_path: Path) -> anndata.AnnData:
    """The counts, stored one way."""
    return STORES[kind](make_counts(), tmp_path)


@pytest.fixture
def dense(kind: str) -> np.ndarray:
    """What :func:`stored` stands for, shape ``(N_CELLS, N_GENES)``."""
    counts = make_counts()
    return np.minimum(counts, 255) if "uint8" in kind else counts


@pytest.fixture
def layer(kind: str) -> str | None:
    return "counts" if kind == "layer" else None


@pytest.fixture
def quiet(kind: str) -> Any:
    """Allow the notice that CSC is converted, and nothing else."""
    with warnings.catch_warnings():
        if "csc" in kind:
            warnings.filterwarnings("ignore", message="The counts are stored as CSC", category=DataWarning)
        yield


@pytest.fixture
def adata() -> anndata.AnnData:
    """The counts as CSR, with annotations of every kind."""
    return make_adata()


@pytest.fixture(params=[unsorted, with_repeats], ids=["unsorted", "repeated entries"])
def untidy(request: pytest.FixtureRequest) -> sp.csr_matrix:
    """The counts as CSR that is not canonical."""
    return request.param(make_counts())


ATAC_CELLS = [22, 4, 1, 24, 3, 0, 23]
"""Cells of the second modality, in its order; 23 and 24 are in no other."""


def make_atac(n_peaks: int = 7) -> anndata.AnnData:
    """Counts of some of the cells and of two more, in an order of their own; the last of them has none."""
    counts = np.random.default_rng(5).poisson(0.8, size=(len(ATAC_CELLS), n_peaks)).astype(np.float32)
    counts[:, 0] += 1
    counts[0] += 1
    counts[-1] = 0
    var = pd.DataFrame(index=[f"chr{i}:{100 * i}-{100 * i + 50}" for i in range(1, n_peaks + 1)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=make_obs(25).iloc[ATAC_CELLS], var=var)


@pytest.fixture
def mdata() -> Any:
    """23 cells of RNA and 7 of ATAC, 5 of them shared; covariates lie in the modalities."""
    mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": make_adata(), "atac": make_atac()})
