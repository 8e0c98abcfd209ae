"""Tiny data and tiny models that train in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import countvi
from countvi.train import Callback, Progress

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def simulate(n_cells: int = 100, n_genes: int = 20) -> anndata.AnnData:
    """Two groups of cells in two batches; every cell and gene has counts."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, n_cells)
    means = rng.gamma(1.0, 3.0, size=(2, n_genes)) + 0.5
    x = rng.poisson(means[group] * rng.gamma(5.0, 0.2, size=(n_cells, 1))).astype(np.float32)
    x[:, 0] += 1.0
    x[0] += 1.0
    obs = pd.DataFrame(
        {"batch": pd.Categorical(rng.choice(["east", "west"], n_cells))}, index=[f"cell-{i}" for i in range(n_cells)]
    )
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"gene-{i}" for i in range(n_genes)]))


def make(n_cells: int = 100, n_genes: int = 20, **options) -> countvi.SCVI:
    adata = simulate(n_cells, n_genes)
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    return countvi.SCVI(adata, **{"n_hidden": 8, "n_latent": 3, **options})


def train(model: countvi.SCVI, max_epochs: int | None = 5, **arguments) -> countvi.SCVI:
    model.train(max_epochs, **{"batch_size": 32, **QUIET, **arguments})
    return model


def weights(model: countvi.SCVI) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


class Killed(Exception):
    """What a test's callback raises."""


class KillAfter(Callback):
    """Ends the run from within, as a crash would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, progress: Progress) -> None:
        if progress.epochs_done == self.epochs:
            raise Killed


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Builders of data and models, and shorthands."""
    return SimpleNamespace(simulate=simulate, make=make, train=train, weights=weights, Killed=Killed, kill=KillAfter)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[countvi.SCVI], bytes]:
    """The bytes of the weights that a model saves."""

    def bytes_of(model: countvi.SCVI) -> bytes:
        model.save(tmp_path / "saved", overwrite=True)
        return (tmp_path / "saved" / "model.safetensors").read_bytes()

    return bytes_of
