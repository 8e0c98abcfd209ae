"""Posterior predictive checks: observed counts beside drawn ones, gene by gene and cell by cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from countvi import seeding
from countvi.batch import RNA
from countvi.models.count_model import CountModel
from countvi.query.cells import Cells, evaluation
from countvi.query.draws import Stream, draw_runs, generator, sample_chunks
from countvi.query.predictive import drawn_counts


class Check(NamedTuple):
    """Observed and drawn counts compared along one axis; arrays of its length, float64."""

    mean: NDArray[np.float64]
    mean_predicted: NDArray[np.float64]
    cv: NDArray[np.float64]
    """Standard deviation over mean; NaN where all counts are zero."""
    cv_predicted: NDArray[np.float64]
    zero_fraction: NDArray[np.float64]
    zero_fraction_predicted: NDArray[np.float64]
    calibration_error: NDArray[np.float64]
    """Mean distance between the distribution of the ranks of observed counts among drawn ones and the uniform one."""


def predictive_check(
    model: CountModel,
    cells: Cells,
    *,
    modality: str = RNA,
    n_samples: int = 10,
    seed: int = seeding.DEFAULT_SEED,
) -> tuple[Check, Check]:
    """Compare counts with draws from the posterior predictive distribution of their cells.

    Dense only for one block of cells and one draw at a time.

    Parameters
    ----------
    model
        The model.
    cells
        Cells, at least one, all measured in the modality.
    modality
        Which of the model's modalities.
    n_samples
        Draws per cell. Moments are averages over draws; ranks go from 0 to ``n_samples``.
    seed
        Seed of the draws.

    Returns
    -------
    tuple
        By gene (over cells) and by cell (over genes).
    """
    source = generator(seed, Stream.CRITICISM, cells.device)
    genes: _Moments | None = None
    rows: list[Check] = []
    with evaluation(model):
        for _, batch in cells:
            observed = batch.counts[modality].to_dense().double()
            q = model.guide(batch)
            below, equal = torch.zeros_like(observed), torch.zeros_like(observed)
            by_gene, by_cell = (_Moments(observed.shape[axis], n_samples) for axis in (1, 0))
            by_gene.observe(observed, 0)
            by_cell.observe(observed, 1)
            for run, latents in draw_runs(model, q, source, sample_chunks(n_samples, 1, 1)):
                likelihood = model.generate(latents, batch.design)[modality]
                drawn = drawn_counts(likelihood, source, modality)[0].double()
                by_gene.predict(run.start, drawn, 0)
                by_cell.predict(run.start, drawn, 1)
                below += drawn < observed
                equal += drawn == observed
            # Counts tie often; a tie is broken at random, so that ranks of a calibrated model are uniform.
            uniform = torch.rand(equal.shape, generator=source, dtype=equal.dtype, device=equal.device)
            rank = (below + (uniform * (equal + 1)).floor()).long()
            by_gene.rank(rank, 0)
            by_cell.rank(rank, 1)
            genes = by_gene if genes is None else genes.plus(by_gene)
            rows.append(by_cell.check())
    assert genes is not None, "an iteration over cells yields at least one block"
    return genes.check(), Check(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


class _Moments:
    """Sums over one axis of observed counts, of each draw, and of ranks."""

    def __init__(self, length: int, n_samples: int) -> None:
        self.n = 0
        self.observed = torch.zeros(3, length, dtype=torch.float64)
        self.predicted = torch.zeros(n_samples, 3, length, dtype=torch.float64)
        self.ranks = torch.zeros(n_samples + 1, length, dtype=torch.float64)

    def observe(self, counts: Tensor, axis: int) -> None:
        """Take in observed counts, ``(cells, genes)``, summed over an axis."""
        self.n = counts.shape[axis]
        self.observed = _sums(counts, axis)

    def predict(self, sample: int, counts: Tensor, axis: int) -> None:
        """Take in one draw."""
        self.predicted[sample] = _sums(counts, axis)

    def rank(self, ranks: Tensor, axis: int) -> None:
        """Take in the ranks of observed counts among drawn ones."""
        for value in range(len(self.ranks)):
            self.ranks[value] = (ranks == value).sum(axis).double().cpu()

    def plus(self, other: _Moments) -> _Moments:
        """Return the sums over the cells of both."""
        self.n += other.n
        self.observed += other.observed
        self.predicted += other.predicted
        self.ranks += other.ranks
        return self

    def check(self) -> Check:
        """Compare."""
        drawn = [_describe(sums, self.n) for sums in self.predicted]
        mean, cv, zeros = _describe(self.observed, self.n)
        means, cvs, zero_fractions = (torch.stack(values) for values in zip(*drawn, strict=True))
        n_ranks = len(self.ranks)
        uniform = torch.arange(1, n_ranks, dtype=torch.float64) / n_ranks
        error = (self.ranks.cumsum(0)[:-1] / self.n - uniform[:, None]).abs().mean(0)
        values = (mean, means.mean(0), cv, cvs.nanmean(0), zeros, zero_fractions.mean(0), error)
        return Check(*(value.numpy() for value in values))


def _sums(counts: Tensor, axis: int) -> Tensor:
    return torch.stack([counts.sum(axis), counts.square().sum(axis), (counts == 0).sum(axis).double()]).cpu()


def _describe(sums: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    mean, square, zeros = sums / n
    spread = (square - mean.square()).clamp(min=0.0).sqrt()
    return mean, torch.where(mean != 0, spread / mean, torch.nan), zeros
