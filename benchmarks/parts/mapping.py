"""New cells on a reference of another batch: how long it takes, and whether types agree.

The stimulated cells of Kang are mapped onto a reference of the resting ones, and the 5k CITE-seq run onto a reference
of the 10k run. Labels are handed on by the same nearest neighbours for both sides.
"""

from __future__ import annotations

from functools import partial

import datasets
import numpy as np
from measure import Comparison, Settings, seconds
from runs import Run, RunStore
from sides import SIDES, Side

from countvi.query import CellPositions, knn_vote

REFERENCES = {"kang": "ctrl", "citeseq": None}
"""Data sets, and the batch of the reference: the largest for ``None``."""
_N_GENES, _N_NEIGHBORS = 2_000, 15


def measure(name: str, settings: Settings) -> list[Comparison]:
    """Train, map and label one data set, on both sides."""
    if name not in datasets.available():
        return []
    adata = datasets.load(name, settings.pick(_N_GENES, 100))
    row = Comparison(f"map {name} onto a reference of the other batch", "s")
    for seed in settings.seeds or settings.pick((0, 1, 2), (0,)):
        for side in SIDES:
            what = {"data": f"mapping-{name}", "genes": adata.n_vars, "seed": seed}
            train = partial(_map, side, adata, REFERENCES[name], seed, settings)
            run = RunStore(settings).get(side.name, what, train)
            ours = side is SIDES[0]
            (row.ours if ours else row.theirs).append(run.seconds)
            scores = row.scores_ours if ours else row.scores_theirs
            for score, value in run.scores.items():
                scores.setdefault(score, []).append(value)
    row.notes = f"{adata.n_obs:,} cells x {adata.n_vars:,} genes; mapping alone, without the reference"
    return [row]


def _map(side: Side, adata, batch: str | None, seed: int, settings: Settings) -> Run:
    batches = adata.obs["batch"].astype(str)
    known = batches == (batch or batches.value_counts().index[0])
    reference, query = adata[known].copy(), adata[~known].copy()
    # Both sides are set up with the batch, though the reference has only one.
    model = side.build(reference, seed, batch_key="batch", gene_likelihood="nb", encode_covariates=True)
    rows, epochs = np.arange(reference.n_obs), settings.pick(None, 1)
    side.train(model, rows[rows % 10 > 0], rows[rows % 10 == 0], epochs)
    mapped: list = []
    took = seconds(lambda: mapped.append(side.map_onto(model, query, epochs)))
    labels = reference.obs["cell_type"].astype(str).to_numpy()
    names, codes = np.unique(labels, return_inverse=True)
    flat = [CellPositions(side.latent(m), np.ones(m.adata.n_obs)) for m in (model, mapped[0])]
    best = names[knn_vote(flat[0], codes, flat[1], _N_NEIGHBORS).shares.argmax(1)]
    agree = float((best == query.obs["cell_type"].astype(str).to_numpy()).mean())
    return Run(took, float("nan"), side.epochs(mapped[0]), {"types that agree": agree})
