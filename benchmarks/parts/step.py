"""A training step."""

from __future__ import annotations

import datasets
import numpy as np
from measure import Comparison, Settings, alternate, seconds
from sides import SIDES

BATCH = 128
SIZES = ((6_400, 2_000, 0.13), (2_560, 20_000, 0.04))
"""Cells, genes and share of nonzero entries."""


def measure(settings: Settings) -> list[Comparison]:
    """Wall time of a training step, as a user gets it from ``train``."""
    rows = []
    for n_cells, n_genes, density in settings.pick(SIZES, ((512, 100, 0.13),)):
        adata = datasets.simulate(n_cells, n_genes, density=density)
        everything, nothing = np.arange(n_cells), np.empty(0, dtype=np.int64)
        epochs = 3 if n_genes < 10_000 else 2
        n_steps = epochs * -(-n_cells // BATCH)
        for likelihood in ("nb", "zinb"):
            models = [side.build(adata.copy(), 0, gene_likelihood=likelihood) for side in SIDES]

            def milliseconds(i: int, models=models, epochs=epochs, n_steps=n_steps) -> float:
                return 1e3 / n_steps * seconds(lambda: SIDES[i].train(models[i], everything, nothing, epochs))  # noqa: B023

            work = f"training step, {likelihood.upper()}, {n_genes:,} genes, batch {BATCH}"
            nonzero = adata.X.nnz / np.prod(adata.shape)
            row = Comparison(work, "ms", notes=f"{n_cells:,} simulated cells, {nonzero:.1%} nonzero")
            rows.append(alternate(row, settings.repeats, lambda f=milliseconds: f(0), lambda f=milliseconds: f(1)))
    return rows
