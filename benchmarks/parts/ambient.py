"""Ambient counts that are known: how much of them each method removes, and how much of the cells' own with them.

Two truths. *Kang*: a part of each cell's counts is replaced by draws from the mean profile of the other condition.
*PBMC 4k*: by draws from the profile that was measured in empty droplets, a different share in each of three wells. What
was ambient in these data before is unknown, and counts as the cells' own here.

Takes about 4 minutes on 2 cores.
"""

from __future__ import annotations

import warnings
from functools import partial

import contamination
import datasets
import numpy as np
from contamination import Contaminated
from measure import METHODS, Comparison, Settings, seconds
from runs import Run, RunStore

import countvi

_N_VARIABLE = 2_000
_KANG_SHARES, _WELL_SHARES = (0.1, 0.2), (0.05, 0.1, 0.2)
_STARTS = (0.2, 0.1, 0.05)


def measure(settings: Settings) -> list[Comparison]:
    """Score every method on both truths."""
    rows: dict[tuple[str, str], Comparison] = {}
    truths = {"kang": _swapped_conditions, "pbmc4k": _measured_soup}
    for name in [name for name in truths if name in datasets.available()]:
        for seed in settings.seeds or settings.pick((0, 1, 2), (0,)):
            data = truths[name](settings, seed)
            for method, run in _methods(name, data, settings, seed):
                found = run()
                row = rows.setdefault((name, method), Comparison(name, "s", method=method, other=METHODS))
                row.add_run(found)
                row.notes = f"{data.adata.n_obs:,} x {data.adata.n_vars:,}, {data.share.mean():.0%} of the counts added"
    return list(rows.values())


def _methods(name: str, data: Contaminated, settings: Settings, seed: int):
    yield "known soup subtracted (after SoupX)", partial(_estimate, contamination.known_soup, data)
    yield "mixture of types (after DecontX)", partial(_estimate, contamination.mixture_of_types, data)
    store = RunStore(settings)
    what = {"data": f"ambient-{name}", "cells": data.adata.n_obs, "genes": data.adata.n_vars, "seed": seed}
    yield "SCVI, denoised", partial(store.get, "SCVI", what, partial(_denoise, data, seed, settings))
    for start in _STARTS:
        key = {**what, "start": start}
        train = partial(_decontaminate, data, seed, start, settings)
        yield f"AmbientRegularizedSCVI, start {start:g}", partial(store.get, "AmbientRegularizedSCVI", key, train)


def _estimate(estimate, data: Contaminated) -> Run:
    found = []
    took = seconds(lambda: found.append(estimate(data)))
    return Run(took, float("nan"), 0, contamination.scores(data, *found[0]))


def _denoise(data: Contaminated, seed: int, settings: Settings) -> Run:
    countvi.SCVI.setup_anndata(data.adata, batch_key="batch")
    model = countvi.SCVI(data.adata, gene_likelihood="nb", seed=seed)
    took = _train(model, settings)
    expected = model.get_normalized_expression(library_size="latent", use_z_mean=True, return_numpy=True)
    found = contamination.scores(data, expected, None, of_counts=False)
    return Run(took, model.get_elbo(indices=model.validation_indices), len(model.history), found)


def _decontaminate(data: Contaminated, seed: int, start: float, settings: Settings) -> Run:
    countvi.AmbientRegularizedSCVI.setup_anndata(data.adata, batch_key="batch")
    model = countvi.AmbientRegularizedSCVI(data.adata, bg_init_gene_fraction=start, seed=seed)
    took = _train(model, settings)
    found = contamination.scores(data, model.get_decontaminated_counts(), model.get_ambient_fraction())
    return Run(took, model.get_elbo(indices=model.validation_indices), len(model.history), found)


def _train(model, settings: Settings) -> float:
    return seconds(lambda: model.train(settings.pick(None, 2), enable_progress_bar=False))


def _swapped_conditions(settings: Settings, seed: int) -> Contaminated:
    adata, _ = _load("kang", settings)
    batch = np.unique(adata.obs["batch"].astype(str), return_inverse=True)[1]
    sums = np.stack([np.asarray(adata.X[batch == b].sum(0)).ravel() for b in (1, 0)])
    return contamination.contaminate(adata, sums / sums.sum(1, keepdims=True), batch, np.array(_KANG_SHARES), seed)


def _measured_soup(settings: Settings, seed: int) -> Contaminated:
    adata, profile = _load("pbmc4k", settings)
    assert profile is not None
    wells = np.random.default_rng(seed).integers(len(_WELL_SHARES), size=adata.n_obs)
    soup = np.tile(profile / profile.sum(), (len(_WELL_SHARES), 1))
    return contamination.contaminate(adata, soup, wells, np.array(_WELL_SHARES), seed)


def _load(name: str, settings: Settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = datasets.load(name, settings.pick(_N_VARIABLE, 200))
    known = ~adata.obs["cell_type"].astype(str).isin(datasets.UNKNOWN).to_numpy()
    adata = adata[known][:: settings.pick(1, 5)].copy()
    profile = adata.var["ambient_profile"].to_numpy(float) if "ambient_profile" in adata.var else None
    return adata, profile
