"""The two sides of every comparison, behind one small interface."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import anndata
import numpy as np
from measure import quiet_lightning


class Side(ABC):
    """One library.

    Parameters
    ----------
    accelerator
        Where it trains.
    """

    name: str

    def __init__(self, accelerator: str = "cpu") -> None:
        self.accelerator = accelerator

    @abstractmethod
    def build(self, adata: anndata.AnnData, seed: int, **options: Any) -> Any:
        """Set up and construct a model with its defaults and the given options; ``batch_key`` goes to the set-up."""

    @abstractmethod
    def train(self, model: Any, train: np.ndarray, validation: np.ndarray, max_epochs: int | None, **more: Any) -> None:
        """Fit on ``train``; ``max_epochs=None`` is the library's own default. ``more`` goes to its ``train``."""

    @abstractmethod
    def elbo(self, model: Any, rows: np.ndarray) -> float:
        """Evidence lower bound per cell, mean over cells and five draws, nats; higher is better."""

    @abstractmethod
    def epochs(self, model: Any) -> int:
        """How many epochs were run."""

    def latent(self, model: Any) -> np.ndarray:
        """Posterior means of all cells."""
        return model.get_latent_representation()

    def expression(self, model: Any, rows: np.ndarray) -> np.ndarray:
        """Normalised expression of some cells, shape ``(cells, genes)``."""
        return model.get_normalized_expression(indices=rows, return_numpy=True)

    def map_onto(self, model: Any, query: anndata.AnnData, max_epochs: int | None) -> Any:
        """Model of new cells on a trained one, trained."""
        mapped = type(model).load_query_data(query, model)
        rows = np.arange(query.n_obs)
        self.train(mapped, rows[rows % 10 > 0], rows[rows % 10 == 0], max_epochs)
        return mapped

    def one_vs_rest(self, model: Any, groups: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean normalised expression in each group and in the others, shape ``(groups, genes)`` each."""
        sums = np.stack([self.expression(model, rows).sum(0, dtype=np.float64) for rows in groups])
        sizes = np.array([[len(rows)] for rows in groups])
        return sums / sizes, (sums.sum(0) - sums) / (sizes.sum() - sizes)


def _batch_key(adata: anndata.AnnData) -> str | None:
    return "batch" if "batch" in adata.obs and adata.obs["batch"].nunique() > 1 else None


class Countvi(Side):
    """Our side."""

    name = "countvi"

    def build(self, adata: anndata.AnnData, seed: int, **options: Any) -> Any:
        import countvi

        key = options.pop("batch_key", _batch_key(adata))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", countvi.errors.DataWarning)
            countvi.SCVI.setup_anndata(adata, batch_key=key)
            return countvi.SCVI(adata, seed=seed, **options)

    def train(self, model: Any, train: np.ndarray, validation: np.ndarray, max_epochs: int | None, **more: Any) -> None:
        where = {"accelerator": self.accelerator, "enable_progress_bar": False}
        model.train(max_epochs, external_indexing=[train, validation], **where, **more)

    def elbo(self, model: Any, rows: np.ndarray) -> float:
        return float(np.mean([model.get_elbo(indices=rows, seed=draw) for draw in range(5)]))

    def epochs(self, model: Any) -> int:
        return len(model.history)


class ScviTools(Side):
    """scvi-tools, as installed."""

    name = "scvi-tools"

    def build(self, adata: anndata.AnnData, seed: int, **options: Any) -> Any:
        import scvi

        quiet_lightning()
        scvi.settings.seed, scvi.settings.verbosity = seed, 40
        key = options.pop("batch_key", _batch_key(adata))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scvi.model.SCVI.setup_anndata(adata, batch_key=key)
            return scvi.model.SCVI(adata, **options)

    def train(self, model: Any, train: np.ndarray, validation: np.ndarray, max_epochs: int | None, **more: Any) -> None:
        quiet_lightning()
        rest = np.setdiff1d(np.arange(model.adata.n_obs), np.concatenate([train, validation]))
        split = {"external_indexing": [train, validation, rest]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            where = {"accelerator": self.accelerator, "enable_progress_bar": False}
            model.train(max_epochs, datasplitter_kwargs=split, **where, **more)

    def elbo(self, model: Any, rows: np.ndarray) -> float:
        return float(np.mean([float(model.get_elbo(indices=rows)) for _ in range(5)]))

    def epochs(self, model: Any) -> int:
        return len(model.history["elbo_train"])


SIDES: tuple[Side, Side] = (Countvi(), ScviTools())
"""Ours first."""
