"""Draws of what populations of cells express.

A draw takes a cell of the population, a state from the cell's posterior, and decodes it. Every cell is taken equally
often (to within one), which leaves less noise than drawing cells at random; only what is drawn is decoded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi.batch import Batch, Design
from countvi.models.count_model import CountModel
from countvi.query.cells import Cells, evaluation
from countvi.query.draws import Counterfactual, Stream, generator, posterior, repeated
from countvi.query.importance import Importance, Proposals
from countvi.query.temporary import temporary_array

WIDTH = 256
"""Features that lie together: what is computed from draws is computed for so many at a time."""
# Numbers decoded at once: 8 MiB in float32, which stay in the last cache.
_DECODED = 2**21


class Workspace:
    """Arrays that are used again: on fresh memory the system spends more time than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def array(self, name: str, *shape: int) -> Tensor:
        """Return a float32 array of a shape, with whatever is in it; the last one of that name is no longer valid."""
        size = int(np.prod(shape))
        if name not in self._held or self._held[name].numel() < size:
            self._held[name] = torch.empty(size)
        return self._held[name][:size].view(*shape)


@dataclass(frozen=True, eq=False)
class PopulationDraws:
    """Expression in draws from a population.

    Parameters
    ----------
    rows
        The cell of each draw, shape ``(draws,)``.
    values
        Shape ``(chunks of features, draws, WIDTH)``; the last chunk may end with unused columns.
    n_features
        Number of features.
    """

    rows: np.ndarray
    values: np.ndarray
    n_features: int

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the draws chunk by chunk, ``(draws, features of the chunk)``, not to be written to."""
        for i, columns in enumerate(chunks(self.n_features)):
            yield torch.from_numpy(self.values[i, :, : columns.stop - columns.start])

    def picked(self, places: np.ndarray, out: np.ndarray) -> PopulationDraws:
        """Copy some draws to an array of the shape of :attr:`values`."""
        for block, into in zip(self.values, out, strict=True):
            np.take(block, places, axis=0, out=into, mode="clip")
        return PopulationDraws(self.rows[places], out, self.n_features)


@dataclass(frozen=True, eq=False)
class PopulationSampler:
    """How draws are made.

    Parameters
    ----------
    model
        The model.
    cells
        All cells that populations may be of.
    expression
        From latent variables and design to what is compared, ``(draws, features)``.
    n_features
        Number of features.
    n_samples
        Draws of a population.
    seed
        Seed.
    importance
        Draw from the posterior by importance sampling; ``None`` draws from the guide.
    """

    model: CountModel
    cells: Cells
    expression: Callable[[Any, Design], Tensor]
    n_features: int
    n_samples: int
    seed: int
    importance: Importance | None = None

    @contextmanager
    def room(self, n_draws: int) -> Iterator[np.ndarray]:
        """Lend an array for so many draws, in memory or on disk."""
        shape = (len(list(chunks(self.n_features))), n_draws, min(WIDTH, self.n_features))
        what = f"Holding {n_draws:,} draws of {self.n_features:,} features"
        with temporary_array(shape, what, "Use fewer features or a smaller n_samples_overall") as values:
            yield values

    def fill(
        self, values: np.ndarray, rows: np.ndarray, levels: Sequence[Counterfactual], number: int
    ) -> PopulationDraws:
        """Draw from a population.

        Parameters
        ----------
        values
            Where the draws go, from :meth:`room`. As many are made as it has room for.
        rows
            Cells of the population.
        levels
            Covariate levels to decode under; draw ``i`` takes ``levels[i % len(levels)]``.
        number
            Of the population: different numbers give independent draws.
        """
        n = values.shape[1]
        host = generator(self.seed, Stream.POPULATION, "cpu", number)
        source = generator(self.seed, Stream.POPULATION, self.cells.device, number, 1)
        taken = _evenly(rows, n, host)
        # At a random place, so that draws of two populations at the same places are random pairs.
        places = torch.randperm(n, generator=host).numpy()
        step = max(1, min(self.cells.chunk * 8, _DECODED // max(self.n_features, 1)))
        with evaluation(self.model):
            for start in range(0, n, step):
                block = slice(start, start + step)
                distinct, which = np.unique(taken[block], return_inverse=True)
                batch = self.cells.source.batch(distinct).to(self.cells.device)
                index = torch.from_numpy(which).to(self.cells.device)
                design = at_levels(batch.design.cells(index), levels, places[block] % len(levels))
                scale = self.expression(self._latents(batch, index, source), design).cpu().numpy()
                for i, columns in enumerate(chunks(self.n_features)):
                    values[i, places[block], : columns.stop - columns.start] = scale[:, columns]
        at = np.empty(n, dtype=np.int64)
        at[places] = taken
        return PopulationDraws(at, values, self.n_features)

    def _latents(self, batch: Batch, index: Tensor, source: torch.Generator) -> Any:
        if self.importance is None:
            return self.model.sample(repeated(posterior(self.model, batch), index), source)
        return Proposals.of(self.model, batch, self.importance, self.cells.chunk, source).resampled(index, source)


def chunks(n_features: int) -> Iterator[slice]:
    """Cut features into chunks of ``WIDTH``."""
    for start in range(0, n_features, WIDTH):
        yield slice(start, min(start + WIDTH, n_features))


def at_levels(design: Design, levels: Sequence[Counterfactual], which: np.ndarray) -> Design:
    """Return the design with cell ``i`` at the covariate levels ``levels[which[i]]``."""
    codes = design.codes.clone()
    for i, level in enumerate(levels):
        if level is None:
            continue
        mask = torch.from_numpy(which == i).to(codes.device)
        for column, code in level.items() if isinstance(level, Mapping) else [level]:
            codes[mask, column] = code
    return dataclasses.replace(design, codes=codes)


def _evenly(rows: np.ndarray, n: int, source: torch.Generator) -> np.ndarray:
    """Take ``n`` cells, each equally often to within one, in increasing order."""
    times, rest = divmod(n, len(rows))
    extra = torch.randperm(len(rows), generator=source)[:rest].numpy()
    return np.sort(np.concatenate([np.repeat(rows, times), rows[extra]]))
