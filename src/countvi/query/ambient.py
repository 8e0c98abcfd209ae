"""What of the counts is the cell's own, and what came from its surroundings.

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

from countvi import seeding
from countvi.batch import RNA, Batch, CountBlock
from countvi.models.regularized import Regularized
from countvi.query.cells import Cells, evaluation, map_cells
from countvi.query.draws import RunningMean, Stream, draw, generator, posterior_mean, sample_chunks


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


def ambient_fraction(
    model: Regularized,
    cells: Cells,
    *,
    modality: str = RNA,
    n_samples: int = 1,
    use_z_mean: bool = True,
    seed: int = seeding.DEFAULT_SEED,
) -> np.ndarray:
    """Share of each cell's counts that is ambient, given the counts.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to score.
    modality
        Which of the model's modalities.
    n_samples
        Number of posterior draws per cell to average over.
    use_z_mean
        Take the posterior mean of z instead of draws; deterministic.
    seed
        Seed of the draws.

    Returns
    -------
    ndarray
        Shape ``(cells,)``, float32, between 0 and 1; NaN for a cell without counts.
    """
    own = _OwnShare(model, modality, n_samples, use_z_mean, cells, generator(seed, Stream.AMBIENT, cells.device))

    def fraction(batch: Batch) -> tuple[Tensor]:
        counts = batch.counts[modality]
        # What is ambient is summed itself: one minus the rest would lose the digits of a small share.
        return (counts.sum_rows(counts.values * (1.0 - own(batch))) / counts.totals(),)

    return map_cells(model, cells, fraction)[0]


def decontaminated_counts(
    model: Regularized,
    cells: Cells,
    *,
    modality: str = RNA,
    integer: bool = False,
    n_samples: int = 1,
    use_z_mean: bool = True,
    seed: int = seeding.DEFAULT_SEED,
) -> sp.csr_array:
    """Counts without the ambient ones: never more than there are.

    Parameters
    ----------
    model, cells, modality, n_samples, use_z_mean, seed
        As in :func:`ambient_fraction`.
    integer
        Draw whole counts, each molecule kept with its probability of being the cell's own, instead of their
        expectation.

    Returns
    -------
    csr_array
        Shape ``(cells, genes)``, float32.
    """
    own = _OwnShare(model, modality, n_samples, use_z_mean, cells, generator(seed, Stream.AMBIENT, cells.device))
    source = generator(seed, Stream.DECONTAMINATED, cells.device)
    blocks = []
    with evaluation(model):
        for _, batch in cells:
            counts, share = batch.counts[modality], own(batch)
            kept = torch.binomial(counts.values, share, generator=source) if integer else counts.values * share
            parts = (kept.cpu().numpy(), counts.columns.cpu().numpy(), counts.offsets.cpu().numpy())
            blocks.append(sp.csr_array(parts, shape=(counts.n_cells, counts.n_features)))
    whole = sp.csr_array(sp.vstack(blocks, format="csr"))
    whole.eliminate_zeros()
    return whole


class _OwnShare:
    """Posterior probability that a molecule is the cell's own, at the stored counts of a batch."""

    def __init__(
        self, model: Regularized, modality: str, n_samples: int, use_z_mean: bool, cells: Cells, source: torch.Generator
    ) -> None:
        self.model, self.modality = model, modality
        self.n_samples = None if use_z_mean else n_samples
        self.cells, self.source = cells, source

    def __call__(self, batch: Batch) -> Tensor:
        """Return the share, shape ``(nonzeros,)``."""
        counts, q = batch.counts[self.modality], self.model.guide(batch)
        if self.n_samples is None:
            return self._at(posterior_mean(q), batch, counts)
        mean = RunningMean()
        for run in sample_chunks(self.n_samples, batch.n_cells, self.cells.chunk):
            mean.add(self._at(draw(self.model, q, self.source, run.stop - run.start), batch, counts))
        return mean.result()

    def _at(self, latents: Any, batch: Batch, counts: CountBlock) -> Tensor:
        share = self.model.generate(latents, batch.design)[self.modality].rate.own_share
        return share.flatten(-2).index_select(-1, counts.flat_index)
