"""Cell types of spots: quality beside least squares and scvi-tools, a training step, and what a large slide takes.

The last scvi-tools whose DestVI is the published model is 1.4.0, which needs an interpreter of its own, with jax:
COUNTVI_SCVI_TOOLS_140 names it, and COUNTVI_SCVI_TOOLS_140_ON where it trains for the quality: "cpu" if not given, or
"cuda". Without, there are no figures of it. The simulation of the paper reads the folder of its inputs that
COUNTVI_DESTVI_SIMULATION names (:mod:`spots`). Expect, on two cores, one to three hours for the quality with scvi-tools
on them, most of it its own default epochs, and some twenty minutes without; some minutes for the step, and half an hour
for the rest; about an hour for each draw of the simulation, which is the time of Stereoscope.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anndata
import datasets
import numpy as np
import pandas as pd
import scipy.sparse as sp
import spots
from measure import HERE, METHODS, Comparison, Settings, in_subprocess, peak_memory, quiet_lightning, seconds
from scipy.stats import rankdata, spearmanr

BATCH = 128
PEER = "COUNTVI_SCVI_TOOLS_140"
_PEER_ON = "COUNTVI_SCVI_TOOLS_140_ON"
_PEER_EPOCHS = 2_000
"""Default of scvi-tools 1.4.0 for the spatial model."""
_STEREOSCOPE_EPOCHS = (15, 2_500)
"""Of its two models, as the benchmark of the paper trains them; the defaults of scvi-tools are 400 and 400."""
_RATES = (0.05, 0.2)
_SLIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "pbmc3k, types alike": ("pbmc3k", {"uneven": False}),
    "pbmc3k, rare and dominant types": ("pbmc3k", {}),
    "pbmc3k, another assay": ("pbmc3k", {"assay": 0.5}),
    "kang": ("kang", {}),
    "pdac": ("pdac", {}),
}


@dataclass(frozen=True)
class Epochs:
    """Of both models, defaults where ``None``; and how many of the second come before the clock starts."""

    reference: int | None = None
    slide: int | None = None
    uncounted: int = 0


def quality(settings: Settings) -> list[Comparison]:
    """Proportions in sums of real cells against the truth: least squares, ours, and scvi-tools 1.4.0 where it is."""
    rows = []
    n_genes, n_spots = settings.pick((1_000, 600), (100, 40))
    epochs = settings.pick(Epochs(), Epochs(2, 2))
    where = os.environ.get(_PEER_ON, "cpu")
    for title, (name, options) in _SLIDES.items():
        if name not in datasets.available():
            continue
        notes = f"{n_genes:,} genes, {n_spots} spots of 2 to 10 cells; proportions against shares of the RNA"
        methods = [
            Comparison(title, "s", notes=notes, other=METHODS, method=method)
            for method in ("least squares on mean expression", "countvi", f"scvi-tools 1.4.0 on {where}")
        ]
        for seed in settings.seeds or settings.pick((0, 1), (0,)):
            slide = spots.mixed(name, n_genes=n_genes, n_spots=n_spots, seed=seed, **options)
            took, model, reference = _fit_ours(slide, epochs, seed)
            found = [_least_squares(slide), (took, model.get_proportions())]
            found += [_theirs(slide, epochs, seed, accelerator=where)] if PEER in os.environ else []
            for row, (took, proportions) in zip(methods, found, strict=False):
                row.ours.append(sum(took))
                for score, value in scores(proportions, slide.truth).items():
                    row.scores_ours.setdefault(score, []).append(value)
            for score, value in _presence(model.get_presence(reference, seed=seed), slide.truth).items():
                methods[1].scores_ours.setdefault(score, []).append(value)
        rows += [row for row in methods if row.ours]
    return rows


def paper(settings: Settings) -> list[Comparison]:
    """The simulation of the DestVI paper, by the metrics of its own benchmark; beside it Stereoscope."""
    if not spots.paper_is_available():
        return []
    tiny = {"step": 2.0, "n_cells": 10, "n_reference": 5}
    drawn = {"the simulation that the DestVI paper draws": [settings.pick(spots.paper_as_drawn_there, lambda: None)]}
    seeds = settings.seeds or settings.pick((0, 1, 2), (0,))
    drawn["the same simulation, other draws"] = [
        partial(spots.paper, seed=seed, **settings.pick({}, tiny)) for seed in seeds
    ]
    rows = []
    for title, draws in drawn.items():
        methods = [
            Comparison(title, "s", other=METHODS, method=method)
            for method in ("least squares on mean expression", "countvi", "Stereoscope of scvi-tools")
        ]
        for seed, draw in enumerate(draws):
            if (slide := draw()) is not None:
                _add_paper(methods, slide, settings.pick(Epochs(), Epochs(2, 2)), seed)
        rows += [row for row in methods if row.ours]
    return rows


def _add_paper(methods: list[Comparison], slide: spots.Slide, epochs: Epochs, seed: int) -> None:
    """Add least squares, ours and Stereoscope on one draw of the paper's simulation."""
    ours_took, model, _ = _fit_ours(slide, epochs, seed)
    others = epochs if epochs.slide else Epochs(*_STEREOSCOPE_EPOCHS)
    found = [_least_squares(slide), (ours_took, model.get_proportions()), _stereoscope(slide, others, seed)]
    sizes = f"{slide.spots.n_obs:,} spots, {slide.reference.n_obs:,} cells, {slide.spots.n_vars:,} genes"
    notes = (sizes, sizes, f"{sizes}; {others.reference:,} + {others.slide:,} epochs")
    for row, note, (took, proportions) in zip(methods, notes, found, strict=True):
        row.notes = note
        row.ours.append(sum(took))
        for score, value in (_by_type(proportions, slide.truth) | scores(proportions, slide.truth)).items():
            row.scores_ours.setdefault(score, []).append(value)
    expression = methods[1].scores_ours.setdefault("Spearman of expression, mean over genes and types", [])
    expression.append(_expression(model, slide))


def _by_type(proportions: pd.DataFrame, truth: spots.Truth) -> dict[str, float]:
    """Correlation over spots with the shares of cells, mean over types: what the paper reports."""
    found = [spearmanr(proportions[kind], truth.cells[kind])[0] for kind in truth.cells.columns]
    return {"Spearman over spots, mean over types": float(np.mean(np.nan_to_num(found)))}


def _expression(model: Any, slide: spots.Slide) -> float:
    """Correlation over spots of the expression of their most frequent type, where it has more than 0.4 of the cells.

    Mean over the genes that vary within the type, then over types.
    """
    shares = slide.truth.cells.to_numpy()
    found = []
    for c, (kind, genes) in enumerate(zip(slide.truth.cells.columns, spots.varying_genes(), strict=True)):
        rows = np.flatnonzero((shares.argmax(1) == c) & (shares[:, c] > 0.4))
        if len(rows) < 3:
            continue
        scale = np.asarray(model.get_scale_for_ct(kind, indices=rows))[:, genes]
        true = slide.truth.expression[kind][rows].toarray()[:, genes]
        found.append(np.mean(np.nan_to_num([spearmanr(a, b)[0] for a, b in zip(scale.T, true.T, strict=True)])))
    return float(np.mean(found))


def step(settings: Settings) -> list[Comparison]:
    """Wall time of a training step of the spatial model, as a user gets it from ``train``."""
    n_spots, n_genes, n_types = settings.pick((2_048, 2_000, 12), (256, 100, 3))
    slide = simulated(n_spots, n_genes, n_types)
    row = Comparison(
        f"training step of DestVI, {n_types} types, {n_genes:,} genes, batch {BATCH}", "ms", other="scvi-tools 1.4.0"
    )
    n_steps = -(-n_spots // BATCH)
    epochs = Epochs(1, settings.pick(10, 2), uncounted=1)
    for _ in range(settings.repeats):
        row.ours.append(1e3 * _ours(slide, epochs, 0)[0][1] / (epochs.slide or 1) / n_steps)
        if PEER in os.environ:
            row.theirs.append(1e3 * _theirs(slide, epochs, 0)[0][1] / (epochs.slide or 1) / n_steps)
    return [row]


def step_of_today(settings: Settings) -> list[Comparison]:
    """The same beside the scvi-tools of the other parts: another model, with one prior that runs."""
    n_spots, n_genes, n_types = settings.pick((2_048, 2_000, 12), (256, 100, 3))
    slide = simulated(n_spots, n_genes, n_types)
    row = Comparison(
        f"training step of DestVI, {n_types} types, {n_genes:,} genes, batch {BATCH}, beside today's generation",
        "ms",
        notes="CondSCVI(prior='mog'), the only prior with which it runs",
    )
    n_steps = -(-n_spots // BATCH)
    ours, theirs = Epochs(1, settings.pick(10, 2), uncounted=1), Epochs(1, 3)
    for _ in range(settings.pick(3, 1)):
        row.ours.append(1e3 * _ours(slide, ours, 0)[0][1] / (ours.slide or 1) / n_steps)
        took, _ = _theirs(slide, theirs, 0, sys.executable, {"prior": "mog"})
        # It cannot be trained twice, so its first steps count.
        row.theirs.append(1e3 * took[1] / (theirs.slide or 1) / n_steps)
    return [row]


def whole(settings: Settings) -> list[Comparison]:
    """A reference and a slide of 2,000 spots from end to end, and time and peak memory of many spots, of two sizes."""
    n_spots, n_genes, n_types = settings.pick((2_000, 2_000, 12), (100, 100, 3))
    slide = simulated(n_spots, n_genes, n_types)
    notes = f"{slide.reference.n_obs:,} cells, {n_types} types, {n_genes:,} genes, defaults; scvi-tools was not run"
    epochs = settings.pick(Epochs(), Epochs(1, 1))
    time = Comparison(f"reference and {n_spots:,} spots, end to end", "s", notes=notes)
    time.ours += [sum(_ours(slide, epochs, seed)[0]) for seed in range(settings.pick(3, 1))]
    rows = [time]
    for n_spots in settings.pick((25_000, 100_000), (300,)):
        code = f"from parts.deconvolution import large; print(*large({n_spots}, {n_genes}, {n_types}))"
        took, peak = map(float, in_subprocess(code).split())
        notes = "simulation, 1 epoch of the reference and 2 of the slide, proportions"
        rows.append(Comparison(f"peak memory of {n_spots:,} spots x {n_genes:,} genes", "GB", [peak], notes=notes))
        rows.append(Comparison(f"2 epochs of {n_spots:,} spots, with the start", "s", [took]))
    return rows


def large(n_spots: int, n_genes: int, n_types: int) -> tuple[float, float]:
    """Train on a large slide; return the seconds of the spatial model and the peak memory of the process in GB."""
    took, _ = _ours(simulated(n_spots, n_genes, n_types), Epochs(1, 2), 0)
    return took[1], peak_memory()


def simulated(n_spots: int, n_genes: int, n_types: int) -> spots.Slide:
    """Sum ten simulated cells in each spot; the cells are the reference too."""
    cells = datasets.simulate(2_000, n_genes, density=0.1, n_types=n_types)
    rng = np.random.default_rng(0)
    rows, columns = np.repeat(np.arange(n_spots), 10), rng.integers(cells.n_obs, size=10 * n_spots)
    members = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (n_spots, cells.n_obs))
    names = pd.DataFrame(index=[f"s{i}" for i in range(n_spots)])
    slide = anndata.AnnData(sp.csr_matrix(members @ cells.X), obs=names, var=cells.var.copy())
    return spots.Slide(cells, slide, spots.Truth(pd.DataFrame(), pd.DataFrame(), {}, {}))


def scores(proportions: pd.DataFrame, truth: spots.Truth) -> dict[str, float]:
    """Compare proportions with shares of the RNA, over all spots and types, and with what is present."""
    found = proportions[truth.rna.columns].to_numpy(dtype=float)
    shares, present = truth.rna.to_numpy(), truth.cells.to_numpy() > 0
    areas = [
        _auroc(found[:, c], present[:, c]) for c in range(found.shape[1]) if 0 < present[:, c].sum() < len(present)
    ]
    told = {
        "Spearman": float(spearmanr(found.ravel(), shares.ravel())[0]),
        "RMSE": float(np.sqrt(np.mean((found - shares) ** 2))),
    }
    if areas:  # some type is absent somewhere
        told["AUROC of presence, mean over types"] = float(np.mean(areas))
    return told


def _presence(calls: Any, truth: spots.Truth) -> dict[str, float]:
    """What part of the calls at a rate is false, and what part of the types that are there is called."""
    present = truth.cells[calls.fdr.columns].to_numpy() > 0
    told = {}
    for rate in _RATES:
        called = calls.called(rate).to_numpy()
        told[f"false calls of presence at a rate of {rate:g}"] = float((called & ~present).sum() / max(called.sum(), 1))
        told[f"types called at a rate of {rate:g}"] = float((called & present).sum() / present.sum())
    return told


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    ranks, n = rankdata(score), int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def _least_squares(slide: spots.Slide) -> tuple[list[float], pd.DataFrame]:
    import torch

    from countvi.batch import CountBlock
    from countvi.nn.mixture import least_squares_abundances

    types = slide.truth.rna.columns
    kinds = slide.reference.obs["cell_type"].astype(str).to_numpy()
    mean = np.stack([np.asarray(slide.reference.X[kinds == kind].mean(0)).ravel() for kind in types])
    profiles = torch.from_numpy(mean / mean.sum(1, keepdims=True)).float()
    counts = CountBlock.from_dense(torch.from_numpy(slide.spots.X.toarray()))
    found: list[Any] = []
    took = seconds(lambda: found.append(least_squares_abundances(counts, profiles).numpy()))
    return [took], pd.DataFrame(found[0] / np.maximum(found[0].sum(1, keepdims=True), 1e-12), columns=types)


def _stereoscope(slide: spots.Slide, epochs: Epochs, seed: int) -> tuple[list[float], pd.DataFrame]:
    """Seconds of the two models, and proportions, of the other deconvolution in scvi-tools (Andersson et al. 2020)."""
    import scvi

    scvi.settings.seed, scvi.settings.verbosity = seed, 40
    quiet_lightning()
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    reference, slide_ = slide.reference.copy(), slide.spots.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.external.RNAStereoscope.setup_anndata(reference, labels_key="cell_type")
        cells = scvi.external.RNAStereoscope(reference)
        took = [seconds(lambda: cells.train(**_if_given(epochs.reference), **quiet))]
        scvi.external.SpatialStereoscope.setup_anndata(slide_)
        model = scvi.external.SpatialStereoscope.from_rna_model(slide_, cells)
        took.append(seconds(lambda: model.train(**_if_given(epochs.slide), **quiet)))
        return took, model.get_proportions()


def _if_given(max_epochs: int | None) -> dict[str, int]:
    return {} if max_epochs is None else {"max_epochs": max_epochs}


def _ours(slide: spots.Slide, epochs: Epochs, seed: int) -> tuple[list[float], pd.DataFrame]:
    took, model, _ = _fit_ours(slide, epochs, seed)
    return took, model.get_proportions()


def _fit_ours(slide: spots.Slide, epochs: Epochs, seed: int) -> tuple[list[float], Any, Any]:
    """Seconds of the two models, the model of the spots, and that of the cells."""
    import countvi

    quiet = {"enable_progress_bar": False}
    countvi.CondSCVI.setup_anndata(slide.reference, labels_key="cell_type")
    reference = countvi.CondSCVI(slide.reference, seed=seed)
    took = [seconds(lambda: reference.train(epochs.reference, **quiet))]
    countvi.DestVI.setup_anndata(slide.spots)
    models: list[countvi.DestVI] = []
    start = seconds(lambda: models.append(countvi.DestVI.from_rna_model(slide.spots, reference, seed=seed)))
    if epochs.uncounted:
        models[0].train(epochs.uncounted, **quiet)
        start = 0.0
    took.append(start + seconds(lambda: models[0].train(epochs.slide, **quiet)))
    return took, models[0], reference


def _theirs(
    slide: spots.Slide,
    epochs: Epochs,
    seed: int,
    interpreter: str | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
    accelerator: str = "cpu",
) -> tuple[list[float], pd.DataFrame]:
    """Seconds of the two models, and proportions; by default of 1.4.0."""
    with tempfile.TemporaryDirectory() as folder:
        return run_peer(Path(folder), slide, epochs, seed, interpreter, options, accelerator=accelerator)


def run_peer(
    folder: Path,
    slide: spots.Slide,
    epochs: Epochs,
    seed: int,
    interpreter: str | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
    *,
    keep: bool = False,
    accelerator: str = "cpu",
) -> tuple[list[float], pd.DataFrame]:
    """Train the other side in a process of its own, by default of 1.4.0.

    Parameters
    ----------
    folder
        For its files; with ``keep``, the models ``reference`` and ``slide`` too.
    slide, epochs, seed
        What to train on, how long, from where.
    interpreter
        Python that has it.
    options
        Of its ``CondSCVI``.
    keep
        Whether to save the models.
    accelerator
        Where it trains.

    Returns
    -------
    list of float
        Seconds of the two models.
    DataFrame
        Proportions.
    """
    import torch

    job = {
        "seed": seed,
        "options": dict(options),
        "threads": torch.get_num_threads(),
        "reference_epochs": epochs.reference,
        "slide_epochs": epochs.slide,
        "uncounted_epochs": epochs.uncounted,
        "keep": keep,
        "accelerator": accelerator,
    }
    slide.reference.write_h5ad(folder / "reference.h5ad")
    slide.spots.write_h5ad(folder / "slide.h5ad")
    (folder / "job.json").write_text(json.dumps(job))
    interpreter = interpreter or os.environ[PEER]
    subprocess.run([interpreter, str(HERE / "destvi_peer.py"), str(folder)], check=True, stdout=subprocess.DEVNULL)
    told = json.loads((folder / "seconds.json").read_text())
    if epochs.slide is None and told["epochs"] < _PEER_EPOCHS:
        message = f"scvi-tools stopped after {told['epochs']} epochs. Install jax beside it."
        raise RuntimeError(message)
    return [told["reference"], told["slide"]], pd.read_csv(folder / "proportions.csv", index_col=0)
