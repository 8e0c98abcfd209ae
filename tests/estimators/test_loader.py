"""Minibatches from data in memory and from data on disk."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi.batch import RNA
from countvi.data import Split, bind
from countvi.estimators import loader
from countvi.estimators.loader import DatasetLoader

N_CELLS, N_GENES = 203, 7


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (N_CELLS, N_GENES)).astype(np.float32)
    counts[:, 0] = np.arange(N_CELLS) + 1  # names the cell
    obs = pd.DataFrame({"batch": rng.choice(["a", "b"], N_CELLS)}, index=[f"c{i}" for i in range(N_CELLS)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


@pytest.fixture(params=["memory", "disk"])
def dataset(request, adata, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "_POOL", 60)
    monkeypatch.setattr(loader, "_RUN", 8)
    if request.param == "disk":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    yield bind(adata, countvi.SCVI._registry_of(adata))
    if request.param == "disk":
        adata.file.close()


@pytest.fixture
def split():
    order = np.random.default_rng(1).permutation(N_CELLS)
    return Split(np.sort(order[20:]), np.sort(order[:20]), np.empty(0, dtype=np.int64))


def cells_of(batch) -> np.ndarray:
    return batch.counts[RNA].to_dense()[:, 0].numpy().astype(int) - 1


def test_an_epoch_holds_every_training_cell_once(dataset, split):
    batches = DatasetLoader(dataset, split, 16, seed=3)
    seen = []
    for rows, batch in batches.train(epoch=0):
        np.testing.assert_array_equal(cells_of(batch), rows)
        np.testing.assert_array_equal(batch.design.codes[:, 0], dataset.codes[rows, 0])
        assert 1 < len(rows) <= 16
        seen.append(rows)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), split.train)
    assert len(seen) == batches.n_steps()


def test_the_order_is_a_function_of_seed_and_epoch(dataset, split):
    def order(seed, epoch):
        return np.concatenate([rows for rows, _ in DatasetLoader(dataset, split, 16, seed).train(epoch)]).tolist()

    assert order(3, 1) == order(3, 1)
    assert order(3, 1) != order(3, 2)
    assert order(3, 1) != order(4, 1)


def test_minibatches_mix_cells_from_all_over_the_file(dataset, split):
    rows, _ = next(DatasetLoader(dataset, split, 32, seed=0).train(0))
    assert np.ptp(rows) > N_CELLS / 2
    assert np.any(np.diff(rows) < 0)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch(dataset, split, world):
    batches = DatasetLoader(dataset, split, 16, seed=3)
    shares = [[rows for rows, _ in batches.train(0, rank, world)] for rank in range(world)]
    assert {len(share) for share in shares} == {batches.n_steps(world)}
    union = np.unique(np.concatenate([rows for share in shares for rows in share]))
    np.testing.assert_array_equal(union, split.train)


def test_held_out_cells(dataset, split, monkeypatch):
    monkeypatch.setattr("countvi.estimators.loader._VALIDATION_BATCH", 6)
    batches = DatasetLoader(dataset, split, 16, seed=3)
    shares = [[cells_of(batch) for batch in batches.validation(rank, 2)] for rank in range(2)]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares[0] + shares[1])), split.validation)


def test_a_model_trains_from_disk(adata, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "_POOL", 60)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    countvi.SCVI.setup_anndata(backed, batch_key="batch")
    model = countvi.SCVI(backed, n_hidden=8, n_latent=2)
    model.train(2, enable_progress_bar=False)
    assert np.isfinite(model.history.to_numpy()).all()
    assert np.isfinite(model.get_latent_representation()).all()
    backed.file.close()
