"""The regularised model beside SCVI, both ours, at a small and at a large size, on data with batches.

Takes about three quarters of an hour on 2 cores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import anndata
import datasets
import numpy as np
import separation
from measure import METHODS, Comparison, Settings, seconds
from runs import Run, RunStore

import countvi

_SIZES = ((128, 10), (512, 128))
_DATA = ("kang", "citeseq", "snareseq")
_N_VARIABLE = 2_000
_N_DRAWS, _MOST_CELLS = 50, 300
LOG_EVIDENCE = "held-out log-likelihood"


def measure(settings: Settings) -> list[Comparison]:
    """Train both models at both sizes on every data set at hand."""
    rows: dict[tuple[str, str], Comparison] = {}
    store = RunStore(settings)
    for name in [name for name in _DATA if name in datasets.available()]:
        adata = datasets.load(name, settings.pick(_N_VARIABLE, 100))
        adata = adata[:: settings.pick(1, adata.n_obs // 300)].copy()
        for seed in settings.seeds or settings.pick((0, 1, 2), (0,)):
            for method, train in _methods(adata, seed, settings):
                what = {"data": name, "cells": adata.n_obs, "genes": adata.n_vars, "method": method, "seed": seed}
                run = store.get("countvi", {k: str(v).replace("/", "-") for k, v in what.items()}, train)
                row = rows.setdefault((name, method), Comparison(name, "s", method=method, other=METHODS))
                row.add_run(run)
                row.notes = f"{adata.n_obs:,} x {adata.n_vars:,}, a tenth held out, {run.epochs} epochs"
                print(f"{name}, {method}, seed {seed}: {run}", flush=True)
    return list(rows.values())


def _methods(adata: anndata.AnnData, seed: int, settings: Settings) -> Iterator[tuple[str, Callable[[], Run]]]:
    """What is trained, by name; the last with the batch in the decoder, as ``SCVI`` has it."""
    for model_class in (countvi.SCVI, countvi.AmbientRegularizedSCVI):
        for size in _SIZES:
            name = f"{model_class.__name__}, {size[0]}/{size[1]}"
            yield name, partial(_train, model_class, adata, seed, size, settings)
    size, conditioned = _SIZES[0], {"nn_conditioning_covariate_keys": ["batch"]}
    name = f"AmbientRegularizedSCVI, {size[0]}/{size[1]}, conditioned on the batch"
    yield name, partial(_train, countvi.AmbientRegularizedSCVI, adata, seed, size, settings, conditioned)


def _train(
    model_class: Any,
    adata: anndata.AnnData,
    seed: int,
    size: tuple[int, int],
    settings: Settings,
    columns: Mapping[str, Any] = MappingProxyType({}),
) -> Run:
    adata = adata.copy()
    options = {"gene_likelihood": "nb"} if model_class is countvi.SCVI else {}
    train, held_out = datasets.halves(adata.n_obs, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", countvi.errors.DataWarning)
        model_class.setup_anndata(adata, batch_key="batch", **columns)
        model = model_class(adata, n_hidden=size[0], n_latent=size[1], seed=seed, **options)
    took = seconds(
        lambda: model.train(settings.pick(None, 2), external_indexing=[train, held_out], enable_progress_bar=False)
    )
    scores = separation.scores(np.asarray(model.get_latent_representation()), adata.obs)
    n_draws = settings.pick(_N_DRAWS, 2)
    scores[LOG_EVIDENCE] = float(model.get_marginal_ll(indices=held_out[:_MOST_CELLS], n_mc_samples=n_draws))
    elbo = float(np.mean([model.get_elbo(indices=held_out, seed=draw) for draw in range(5)]))
    return Run(took, elbo, len(model.history), scores)
