"""Full default trainings on the same split: seconds, held-out ELBO, and the latent space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import anndata
import datasets
import numpy as np
import separation
from measure import Comparison, Settings, seconds
from runs import Run, RunStore
from sides import SIDES, Side

_OURS, _THEIRS = SIDES
_N_VARIABLE = 2_000
_SIMULATED = "simulated"
# Lengths that are tried before the default, shortest first, for the time to the ELBO that the peer ends at.
_SHORT_RUNS = (3, 5, 8, 12, 20)


@dataclass(frozen=True)
class Case:
    """A data set and a likelihood.

    Parameters
    ----------
    data
        One of :func:`datasets.available`, or ``"simulated"``.
    likelihood
        For ``gene_likelihood``.
    seeds
        One training of each side for each of them; one only where that of scvi-tools takes more than ten minutes.
    """

    data: str
    likelihood: str = "zinb"
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def name(self) -> str:
        """Name of the part."""
        return f"quality-{self.data}" + ("" if self.likelihood == "zinb" else f"-{self.likelihood}")

    def load(self, settings: Settings) -> anndata.AnnData:
        """Read or simulate the cells."""
        if self.data == _SIMULATED:
            return datasets.simulate(*settings.pick((50_000, _N_VARIABLE), (400, 100)))
        adata = datasets.load(self.data, settings.pick(_N_VARIABLE, 100))
        return adata[:: settings.pick(1, adata.n_obs // 400)].copy()


def cases() -> list[Case]:
    """What can be run on this machine; the real data sets need the folder COUNTVI_TEST_DATA."""
    wanted = (
        Case("kang"),
        Case("kang", "nb"),
        Case("pbmc3k"),
        Case("pbmc4k"),
        Case("pdac"),
        Case("citeseq"),
        Case("snareseq", seeds=(0,)),
        Case(_SIMULATED, seeds=(0,)),
    )
    return [case for case in wanted if case.data in (*datasets.available(), _SIMULATED)]


def measure(case: Case, settings: Settings) -> list[Comparison]:
    """Train both sides for each seed, and look for our shortest run that is as good as theirs."""
    adata, store = case.load(settings), RunStore(settings)
    seeds = settings.seeds or settings.pick(case.seeds, (0,))
    _warm_up(case.likelihood)
    title = f"{case.likelihood.upper()}, {case.data}"
    whole = Comparison(f"default training, {title}", "s")
    whole.data, whole.n_genes, whole.likelihood = case.data, adata.n_vars, case.likelihood
    short = Comparison(f"time to the held-out ELBO that scvi-tools ends at, {title}", "s")
    reached, missed = [], []
    for seed in seeds:
        run = partial(_run, case, adata, store, seed)
        theirs = run(_THEIRS, settings.pick(None, 2))
        ours = run(_OURS, settings.pick(None, 4))
        _add(whole, ours, theirs)
        shortest = _shortest(partial(run, _OURS), ours, theirs.elbo, settings.pick(_SHORT_RUNS, (1, 2)))
        if shortest is None:
            missed.append(seed)
        else:
            _add(short, shortest, theirs)
            reached.append(shortest.epochs)
        print(f"seed {seed}: {ours}\nagainst {theirs}\nas good after {shortest}", flush=True)
    whole.notes = (
        f"{adata.n_obs:,} x {adata.n_vars:,}, a tenth held out, seeds {_listed(seeds)}; countvi {ours.epochs} epochs, "
        f"scvi-tools {theirs.epochs} epochs"
    )
    short.missed = len(missed)
    short.notes = (
        f"the shortest of complete runs of {_listed(settings.pick(_SHORT_RUNS, (1, 2)))} epochs and of the default; "
        f"epochs it took: {_listed(reached) or 'none was enough'}"
        + (f"; not reached with seeds {_listed(missed)}" if missed else "")
    )
    return [whole, short]


def _warm_up(likelihood: str) -> None:
    """Train a moment, so that no run pays for what is imported and compiled once."""
    adata = datasets.simulate(256, 50)
    for side in SIDES:
        model = side.build(adata.copy(), 0, gene_likelihood=likelihood)
        side.train(model, *datasets.halves(adata.n_obs), 1)


def _run(case: Case, adata: anndata.AnnData, store: RunStore, seed: int, side: Side, max_epochs: int | None) -> Run:
    train, held_out = datasets.halves(adata.n_obs, seed)
    what = {
        "data": case.data,
        "likelihood": case.likelihood,
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "seed": seed,
        "epochs": max_epochs or "default",
    }

    def do() -> Run:
        model = side.build(adata.copy(), seed, gene_likelihood=case.likelihood)
        took = seconds(lambda: side.train(model, train, held_out, max_epochs))
        scores = separation.scores(np.asarray(side.latent(model)), adata.obs)
        return Run(took, side.elbo(model, held_out), side.epochs(model), scores)

    return store.get(side.name, what, do)


def _shortest(run: Callable[[int], Run], default: Run, target: float, lengths: tuple[int, ...]) -> Run | None:
    """Return our shortest run whose held-out ELBO is at least the target, or ``None``."""
    for n_epochs in lengths:
        if n_epochs < default.epochs and (shorter := run(n_epochs)).elbo >= target:
            return shorter
    return default if default.elbo >= target else None


def _add(row: Comparison, ours: Run, theirs: Run) -> None:
    row.ours.append(ours.seconds)
    row.theirs.append(theirs.seconds)
    row.elbo_ours.append(ours.elbo)
    row.elbo_theirs.append(theirs.elbo)
    for kept, run in ((row.scores_ours, ours), (row.scores_theirs, theirs)):
        for name, value in run.scores.items():
            kept.setdefault(name, []).append(value)


def _listed(numbers: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
