"""RNA and chromatin of the same nuclei: the joint state beside that of either modality, and its attribution.

SNARE-seq of the mouse cortex. Takes about a quarter of an hour on 2 cores.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import anndata
import datasets
import numpy as np
import scipy.sparse as sp
import separation
from measure import HERE, METHODS, Comparison, Settings, seconds
from runs import Run

import countvi

_PICTURE = HERE.parent / "docs" / "images" / "attribution.png"


def measure(settings: Settings) -> list[Comparison]:
    """Train on both modalities and on each, and draw the attribution of the joint model."""
    if "snareseq" not in datasets.available():
        return []
    rna, atac = _modalities(settings)
    rows = []
    seeds = settings.seeds or settings.pick((0, 1, 2), (0,))
    for method, parts in {
        "RNA and ATAC": {"rna": rna, "atac": atac},
        "RNA alone": {"rna": rna},
        "ATAC alone": {"atac": atac},
    }.items():
        row = Comparison("snareseq", "s", method=method, other=METHODS)
        sizes = " + ".join(f"{part.n_vars:,}" for part in parts.values())
        for seed in seeds:
            model, run = _train(parts, seed, settings)
            row.add_run(run)
            row.notes = f"{rna.n_obs:,} x {sizes}, 10 dimensions for each modality, {run.epochs} epochs"
            print(f"{method}, seed {seed}: {run}", flush=True)
            if len(parts) == 2 and seed == seeds[0]:
                _draw(model, _PICTURE if settings.results == Settings.results else settings.results / _PICTURE.name)
        rows.append(row)
    return rows


def _modalities(settings: Settings) -> tuple[anndata.AnnData, anndata.AnnData]:
    whole = anndata.read_h5ad(Path(os.environ["COUNTVI_TEST_DATA"]) / datasets.file_of("snareseq"))
    whole = whole[:: settings.pick(1, 40)].copy()
    whole.X = sp.csr_matrix(whole.X).astype(np.float32)
    parts = []
    for kind in ("Gene Expression", "Peaks"):
        part = whole[:, whole.var["modality"] == kind].copy()
        parts.append(part[:, np.asarray((part.X > 0).sum(0)).ravel() >= settings.pick(3, 20)].copy())
    return parts[0], parts[1]


def _train(parts: dict[str, anndata.AnnData], seed: int, settings: Settings) -> tuple[Any, Run]:
    import mudata

    with warnings.catch_warnings(), mudata.set_options(pull_on_update=False):
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({name: part.copy() for name, part in parts.items()})
        countvi.RegularizedMultimodalVI.setup_mudata(mdata, batch_key="batch")
        model = countvi.RegularizedMultimodalVI(mdata, seed=seed)
    train, held_out = datasets.halves(mdata.n_obs, seed)
    took = seconds(
        lambda: model.train(settings.pick(None, 2), external_indexing=[train, held_out], enable_progress_bar=False)
    )
    obs = next(iter(parts.values())).obs
    scores = separation.scores(np.asarray(model.get_latent_representation()), obs)
    elbo = float(np.mean([model.get_elbo(indices=held_out, seed=draw) for draw in range(5)]))
    return model, Run(took, elbo, len(model.history), scores)


def _draw(model: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, so that it works on a server
    countvi.pl.attribution(model, ax=figure.add_subplot())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
