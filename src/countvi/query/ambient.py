"""Ambient counts: background profiles, the ambient share of a cell, and counts without the ambient ones.

A negative binomial count with mean l (rho + B) y is the sum of a count of the cell's own and an ambient one that share
their Gamma factor. Given the count, each of its molecules is the cell's own with probability rho / (rho + B), so the
expected own count is the count times that, whatever the dispersion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from countvi.batch import RNA, Batch, Design
from countvi.models.regularized import Regularized
from countvi.query.cells import Cells, evaluation, map_cells, stacked, to_csr
from countvi.query.draws import Stream, generator
from countvi.query.posterior import Draws, mean_of_batch

AT_MEAN = Draws(at_mean=True)
"""No draws: states at their posterior means."""


def background_profile(model: Regularized, *, modality: str = RNA) -> list[np.ndarray]:
    """Background of each level of the ambient covariates.

    Parameters
    ----------
    model
        The model.
    modality
        Which of its modalities.

    Returns
    -------
    list of ndarray
        For each ambient covariate, in the order they were given, shape ``(levels, genes)``: expected ambient counts in
        a cell of average size. The background of a cell is the sum over covariates. Empty for a modality without
        background.
    """
    background = model.modalities[modality].background
    return [] if background is None else [level.detach().cpu().numpy() for level in background.per_level()]


def ambient_fraction(model: Regularized, cells: Cells, draws: Draws = AT_MEAN, *, modality: str = RNA) -> np.ndarray:
    """Share of each cell's counts that is ambient, given the counts.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to score.
    draws
        Of the cell states; the share is averaged over them. By default their posterior means are taken: deterministic.
    modality
        Which of the model's modalities.

    Returns
    -------
    ndarray
        Shape ``(cells,)``, float32, between 0 and 1; NaN for a cell without counts.
    """
    source = generator(draws.seed, Stream.AMBIENT, cells.device)

    def fraction(batch: Batch) -> tuple[Tensor]:
        counts, own = batch.counts[modality], _own_share(model, batch, modality, draws, cells.chunk, source)
        # What is ambient is summed itself: one minus the rest would lose the digits of a small share.
        return (counts.sum_rows(counts.values * (1.0 - own)) / counts.totals(),)

    return map_cells(model, cells, fraction)[0]


def decontaminated_counts(
    model: Regularized, cells: Cells, draws: Draws = AT_MEAN, *, modality: str = RNA, integer: bool = False
) -> sp.csr_array:
    """Counts without the ambient ones: never more than there are.

    Parameters
    ----------
    model, cells, draws, modality
        As in :func:`ambient_fraction`.
    integer
        Draw whole counts, each molecule kept with its probability of being the cell's own, instead of their
        expectation.

    Returns
    -------
    csr_array
        Shape ``(cells, genes)``, float32.
    """
    of_states = generator(draws.seed, Stream.AMBIENT, cells.device)
    of_molecules = generator(draws.seed, Stream.DECONTAMINATED, cells.device)
    blocks = []
    with evaluation(model):
        for _, batch in cells:
            counts, share = batch.counts[modality], _own_share(model, batch, modality, draws, cells.chunk, of_states)
            kept = torch.binomial(counts.values, share, generator=of_molecules) if integer else counts.values * share
            blocks.append(to_csr(counts, kept))
    whole = stacked(blocks)
    whole.eliminate_zeros()
    return whole


def _own_share(
    model: Regularized, batch: Batch, modality: str, draws: Draws, chunk: int, source: torch.Generator
) -> Tensor:
    """Posterior probability that a molecule is the cell's own, at the stored counts of a batch: ``(nonzeros,)``."""
    places = batch.counts[modality].flat_index

    def decoded(latents: Any, design: Design) -> dict[str, Tensor]:
        share = model.generate(latents, design)[modality].rate.own_share
        return {modality: share.flatten(-2).index_select(-1, places)}

    return mean_of_batch(model, batch, decoded, draws, chunk, source)[modality]
