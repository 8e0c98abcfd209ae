"""A training step on a GPU."""

from __future__ import annotations

import importlib.util

import anndata
import datasets
import numpy as np
import torch
from measure import Comparison, Settings, alternate, seconds
from sides import Countvi, ScviTools, Side

from parts.step import BATCH, SIZES


def measure(settings: Settings) -> list[Comparison]:
    """Wall time of a training step where there is a GPU; recording included, as a user pays for it too."""
    if not torch.cuda.is_available():
        print("There is no CUDA device here.", flush=True)
        return []
    sides: list[Side] = [Countvi("cuda")]
    if importlib.util.find_spec("scvi") is None:
        print("scvi-tools is not installed: countvi alone.", flush=True)
    else:
        sides.append(ScviTools("cuda"))
    rows = []
    for n_cells, n_genes, density in settings.pick(SIZES, ((512, 100, 0.13),)):
        adata = datasets.simulate(n_cells, n_genes, density=density)
        nonzero = adata.X.nnz / np.prod(adata.shape)
        epochs = settings.pick(10, 6)
        notes = f"{n_cells:,} simulated cells, {nonzero:.1%} nonzero, {epochs} epochs, {torch.cuda.get_device_name()}"
        for likelihood in ("nb", "zinb"):
            work = f"training step on a GPU, {likelihood.upper()}, {n_genes:,} genes, batch {BATCH}"
            steps = [_Steps(side, adata, likelihood, epochs) for side in sides]
            row = Comparison(work, "ms", notes=notes)
            if len(steps) > 1:
                alternate(row, 3, *steps)
            else:
                row.ours = [steps[0]() for _ in range(4)][1:]
            rows.append(row)
            print(work, row.ours, row.theirs, flush=True)
    return rows


class _Steps:
    """Milliseconds of a step, when called."""

    def __init__(self, side: Side, adata: anndata.AnnData, likelihood: str, epochs: int) -> None:
        self.side, self.epochs = side, epochs
        self.model = side.build(adata.copy(), 0, gene_likelihood=likelihood)
        self.cells = np.arange(adata.n_obs)

    def __call__(self) -> float:
        nothing = np.empty(0, dtype=np.int64)
        n_steps = self.epochs * -(-len(self.cells) // BATCH)
        return 1e3 / n_steps * seconds(lambda: self.side.train(self.model, self.cells, nothing, self.epochs))
