"""A training step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import anndata
import datasets
import numpy as np
from measure import Comparison, Settings, alternate, seconds
from sides import SIDES, Side

BATCH = 128
SIZES = ((6_400, 2_000, 0.13), (2_560, 20_000, 0.04))
"""Cells, genes and share of nonzero entries."""


def measure(settings: Settings) -> list[Comparison]:
    """Wall time of a training step, as a user gets it from ``train``."""
    rows = []
    for row, steps in cases(settings, SIDES, "training step", (3, 2)):
        rows.append(alternate(row, settings.repeats, *steps))
    return rows


def cases(
    settings: Settings, sides: Sequence[Side], work: str, epochs: tuple[int, int]
) -> Iterator[tuple[Comparison, list[Steps]]]:
    """Yield an empty row for each size and likelihood, and what to time on each side.

    Parameters
    ----------
    settings
        Sizes.
    sides
        Who trains.
    work
        What the rows begin with.
    epochs
        Length of a run with few and with many genes.
    """
    for n_cells, n_genes, density in settings.pick(SIZES, ((512, 100, 0.13),)):
        adata = datasets.simulate(n_cells, n_genes, density=density)
        nonzero = adata.X.nnz / np.prod(adata.shape)
        for likelihood in ("nb", "zinb"):
            title = f"{work}, {likelihood.upper()}, {n_genes:,} genes, batch {BATCH}"
            row = Comparison(title, "ms", notes=f"{n_cells:,} simulated cells, {nonzero:.1%} nonzero")
            yield row, [Steps(side, adata, likelihood, epochs[n_genes >= 10_000]) for side in sides]


class Steps:
    """Milliseconds of a step, when called.

    Parameters
    ----------
    side
        Who trains.
    adata
        The cells, all of which are trained on.
    likelihood
        For ``gene_likelihood``.
    epochs
        Length of a run.
    """

    def __init__(self, side: Side, adata: anndata.AnnData, likelihood: str, epochs: int) -> None:
        self.side, self.epochs, self.cells = side, epochs, np.arange(adata.n_obs)
        self.model = side.build(adata.copy(), 0, gene_likelihood=likelihood)

    def __call__(self) -> float:
        """Train once more."""
        nothing = np.empty(0, dtype=np.int64)
        n_steps = self.epochs * -(-len(self.cells) // BATCH)
        run = partial(self.side.train, self.model, self.cells, nothing, self.epochs, batch_size=BATCH)
        return 1e3 / n_steps * seconds(run)
