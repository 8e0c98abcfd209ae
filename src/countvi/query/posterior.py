"""Posterior means and draws of what is decoded from latent variables: the one loop over cells and draws."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from countvi import seeding
from countvi.batch import Batch, Design
from countvi.errors import OptionError
from countvi.models.count_model import CountModel
from countvi.query.cells import Cells, OutputWriter, Writable, evaluation
from countvi.query.draws import RunningMean, Stream, draw_runs, generator, posterior, posterior_mean, sample_chunks
from countvi.query.importance import Importance, Proposals

Decoded = Callable[[Any, Design], Mapping[str, Tensor]]
"""From latent variables and the design to quantities by name, ``(*samples, cells, features)`` each."""


class Quantity(Protocol):
    """Something that follows from latent variables and the design, for each feature of some."""

    @property
    def model(self) -> CountModel:
        """The model whose latent variables they are."""
        ...

    def n_features(self, cells: Cells) -> int:
        """Number of features."""
        ...

    def __call__(self, latents: Any, design: Design) -> Tensor:
        """Return its values, ``(*samples, cells, features)``."""
        ...


@dataclass(frozen=True)
class Draws:
    """How each cell is drawn from its posterior, and what becomes of the draws.

    Parameters
    ----------
    n
        Number of posterior draws per cell.
    mean
        Average over the draws.
    at_mean
        Take the posterior mean of z instead of draws of it, at the posterior mean of the library size. Deterministic;
        ``n`` and ``seed`` play no part.
    importance
        Take the posterior itself, by importance sampling, rather than the guide: a mean over several draws weighs
        them, and draws are drawn again by their weights. There are at least as many proposals as draws.
    seed
        Seed of the draws.
    """

    n: int = 1
    mean: bool = True
    at_mean: bool = False
    importance: Importance | None = None
    seed: int = seeding.DEFAULT_SEED

    @property
    def averaged(self) -> bool:
        """Whether there is one number for each cell and feature."""
        return self.mean or self.at_mean or self.n == 1

    def shape(self, *of_one: int) -> tuple[int, ...]:
        """Shape of an output whose shape for one draw is ``of_one``."""
        return of_one if self.averaged else (self.n, *of_one)


def expectation(quantity: Quantity, cells: Cells, draws: Draws, *, out: Writable | None = None) -> Any:
    """Posterior mean of a quantity in each cell, or draws of it.

    Cells are encoded as they are, and decoded as the quantity says. Quantities of one model have the same draws.

    Parameters
    ----------
    quantity
        What to decode.
    cells
        Cells to decode.
    draws
        How to draw.
    out
        Array to write into, of the shape of the result, instead of a new one.

    Returns
    -------
    array
        ``out``, or a float32 ndarray: ``(cells, features)``, or ``(samples, cells, features)`` if more than one sample
        is drawn and not averaged.

    Raises
    ------
    OptionError
        If ``out`` does not have that shape or cannot hold fractions. Raised before anything is computed.
    """
    writer = OutputWriter(draws.shape(len(cells), quantity.n_features(cells)), out)
    expectations(
        quantity.model, cells, lambda latents, design: {"": quantity(latents, design)}, draws, writers={"": writer}
    )
    return writer.out


def expectations(
    model: CountModel,
    cells: Cells,
    decoded: Decoded,
    draws: Draws,
    stream: Stream = Stream.EXPRESSION,
    writers: Mapping[str, OutputWriter] | None = None,
) -> dict[str, Any]:
    """Posterior means of several quantities in each cell, or draws of them: the same draws for all.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to decode.
    decoded
        The quantities, by name.
    draws
        How to draw.
    stream
        Which random numbers.
    writers
        Where quantities go, by name; one that has no place gets a new array.

    Returns
    -------
    dict
        By name, as :func:`expectation` returns them.
    """
    found = dict(writers or {})
    source = generator(draws.seed, stream, cells.device)

    def write(values: Mapping[str, Tensor], *index: slice) -> None:
        for name, value in values.items():
            if name not in found:
                found[name] = OutputWriter(draws.shape(len(cells), value.shape[-1]))
            found[name].write(value, *index)

    with evaluation(model):
        for block, batch in cells:
            if draws.averaged:
                write(mean_of_batch(model, batch, decoded, draws, cells.chunk, source), block)
                continue
            for run, latents in _samples(model, batch, draws, cells.chunk, source):
                write(decoded(latents, batch.design), run, block)
    return {name: writer.out for name, writer in found.items()}


def mean_of_batch(
    model: CountModel, batch: Batch, decoded: Decoded, draws: Draws, chunk: int, source: torch.Generator
) -> Mapping[str, Tensor]:
    """Posterior means of the cells of a batch.

    Parameters
    ----------
    model
        The model.
    batch
        The cells.
    decoded
        Quantities, by name.
    draws
        How to draw.
    chunk
        How many draws of cells are decoded at once.
    source
        Source of the draws.
    """
    if draws.at_mean:
        return decoded(posterior_mean(posterior(model, batch)), batch.design)
    if draws.importance is not None and draws.n > 1:
        return _weighted_mean(_proposals(model, batch, draws, chunk, source), batch, decoded, chunk)
    means: defaultdict[str, RunningMean] = defaultdict(RunningMean)
    for _, latents in _samples(model, batch, draws, chunk, source):
        for name, values in decoded(latents, batch.design).items():
            means[name].add(values)
    return {name: mean.result() for name, mean in means.items()}


def resampled(cells: Cells, n: int, draws: Draws) -> tuple[Cells, Draws]:
    """Draw cells with replacement, to take one posterior draw of each: a mixture over a population.

    Only the cells that were drawn are then encoded and decoded. Rows of the output are independent, in no order.

    Parameters
    ----------
    cells
        Cells of the population.
    n
        How many to draw.
    draws
        Seed, and how each is drawn from its posterior.

    Returns
    -------
    cells, draws
        To pass on to :func:`expectation`.

    Raises
    ------
    OptionError
        If there are no cells to draw from.
    """
    if not len(cells):
        message = f"Drawing {n:,} cells needs at least one cell to draw from; none is selected."
        raise OptionError(message)
    chosen = torch.randint(len(cells), (n,), generator=generator(draws.seed, Stream.RESAMPLED_CELLS)).numpy()
    once = dataclasses.replace(draws, n=1, mean=True, at_mean=False)
    return dataclasses.replace(cells, rows=cells.rows[chosen]), once


def _samples(
    model: CountModel, batch: Batch, draws: Draws, chunk: int, source: torch.Generator
) -> Iterator[tuple[slice, Any]]:
    """Draw latent variables of all cells of a batch, a chunk of samples at a time."""
    runs = sample_chunks(draws.n, batch.n_cells, chunk)
    if draws.importance is None:
        yield from draw_runs(model, posterior(model, batch), source, runs)
        return
    proposals = _proposals(model, batch, draws, chunk, source)
    for run in runs:
        yield run, proposals.drawn(run.stop - run.start, source)


def _proposals(model: CountModel, batch: Batch, draws: Draws, chunk: int, source: torch.Generator) -> Proposals:
    assert draws.importance is not None
    enough = dataclasses.replace(draws.importance, n_proposals=max(draws.n, draws.importance.n_proposals))
    return Proposals.of(model, batch, enough, chunk, source)


def _weighted_mean(proposals: Proposals, batch: Batch, decoded: Decoded, chunk: int) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for run in sample_chunks(proposals.weights.shape[0], batch.n_cells, chunk):
        weights = proposals.weights[run].unsqueeze(-1)
        for name, values in decoded(proposals.at(run), batch.design).items():
            part = (values * weights).sum(0)
            total[name] = total[name] + part if name in total else part
    return total
