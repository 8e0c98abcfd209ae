"""Random streams, draws of latent variables from the guide, counterfactual designs, and means over draws."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from countvi import seeding
from countvi.batch import Batch, Design
from countvi.models.count_model import CountModel
from countvi.nn.latent import Gaussian, Given, Latent

# Keeps the streams of read-outs apart from those of training with the same seed.
_QUERY = 0x71

Counterfactual = tuple[int, int] | Mapping[int, int] | None
"""A column of :attr:`Design.codes` and the code that every cell takes there, or several; ``None``: the cell's own."""


class Stream(IntEnum):
    """What draws are for. Read-outs of different kinds share no random numbers; their numbers never change."""

    STATES = 1
    EXPRESSION = 2
    RESAMPLED_CELLS = 3
    EVIDENCE = 4
    MARGINAL = 5
    PREDICTIVE = 6
    PARAMETERS = 7
    LIBRARY = 8
    CORRELATION = 9
    CORRELATION_NOISE = 10
    AMBIENT = 11
    DECONTAMINATED = 12
    POPULATION = 13
    # 14 is retired.
    CRITICISM = 15
    PROTEIN_MIXING = 40


def generator(seed: int, stream: Stream, device: torch.device | str = "cpu", *parts: int) -> torch.Generator:
    """Return the generator of one kind of read-out, or of a numbered part of it."""
    return seeding.generator(seed, _QUERY, int(stream), *parts, device=device)


def at_counterfactual(design: Design, counterfactual: Counterfactual) -> Design:
    """Return the design with every cell at one level of some covariates, or the design itself."""
    if counterfactual is None:
        return design
    pairs = counterfactual.items() if isinstance(counterfactual, Mapping) else [counterfactual]
    for column, code in pairs:
        design = design.with_level(column, code)
    return design


def summed(compute: Callable[[Design], Tensor], design: Design, counterfactuals: Sequence[Counterfactual]) -> Tensor:
    """Sum what is computed from the design under each counterfactual."""
    assert len(counterfactuals), "a sum over no counterfactual"
    return functools.reduce(operator.add, (compute(at_counterfactual(design, c)) for c in counterfactuals))


def sample_chunks(n_samples: int, n_cells: int, chunk: int) -> Iterator[slice]:
    """Cut samples into runs, such that samples times cells in a run is at most ``chunk`` (a run has at least one)."""
    step = max(1, chunk // max(n_cells, 1))
    for start in range(0, n_samples, step):
        yield slice(start, min(start + step, n_samples))


def draw(model: CountModel, q: Any, generator: torch.Generator, n_samples: int) -> Any:
    """Draw latent variables, ``(n_samples, cells, ...)``; what is given has no samples axis.

    Samples are drawn one by one, so that the same generator gives the same samples however they are cut into runs.
    """
    samples = [model.sample(q, generator) for _ in range(n_samples)]
    return type(q)(
        *(
            values[0] if isinstance(latent, Given) else torch.stack(values)
            for latent, values in zip(q, zip(*samples, strict=True), strict=True)
        )
    )


def draw_runs(
    model: CountModel, q: Any, generator: torch.Generator, runs: Iterable[slice]
) -> Iterator[tuple[slice, Any]]:
    """Draw latent variables run by run: which samples, and the samples; the runs are those of :func:`sample_chunks`."""
    for run in runs:
        yield run, draw(model, q, generator, run.stop - run.start)


def posterior(model: CountModel, batch: Batch) -> Any:
    """Return the guide of a batch, or what was stored of it."""
    if batch.stored is None:
        return model.guide(batch)
    prior = model.prior(batch.design)
    return type(prior)(*(_stored(batch, name, like) for name, like in zip(prior._fields, prior, strict=True)))


def _stored(batch: Batch, name: str, like: Latent) -> Latent:
    assert batch.stored is not None
    if name not in batch.stored:
        return like  # noise, whose posterior is its prior
    loc, scale = batch.stored[name]
    if scale is None:
        return Given(loc.squeeze(-1))
    assert isinstance(like, Gaussian)
    if like.event_dims == 0:
        loc, scale = loc.squeeze(-1), scale.squeeze(-1)
    return Gaussian(loc, scale, like.event_dims)


def posterior_mean(q: Any) -> Any:
    r"""Return latent variables at their posterior mean, ``(cells, ...)``.

    A variable named ``log_x`` is set to the log of the posterior mean of x, :math:`m + v / 2`. As the expected counts
    are proportional to the library size, they are then exact means over it.
    """
    return type(q)(*(_mean(name, latent) for name, latent in zip(q._fields, q, strict=True)))


def log_natural_mean(latent: Latent) -> Tensor:
    """Log of the posterior mean of x, given the distribution of log x."""
    if isinstance(latent, Gaussian):
        return latent.loc + 0.5 * latent.scale.square()
    assert latent.value is not None
    return latent.value


def _mean(name: str, latent: Latent) -> Tensor:
    if name.startswith("log_") or isinstance(latent, Given):
        return log_natural_mean(latent)
    return latent.loc


def repeated(q: Any, index: Tensor) -> Any:
    """Return the posterior of some of the cells, at positions ``index``, repeats allowed."""
    return type(q)(*(latent.cells(index) for latent in q))


class RunningMean:
    """Mean over samples that arrive in runs, without keeping them."""

    def __init__(self) -> None:
        self.count = 0
        self.value: Tensor | None = None

    def add(self, block: Tensor) -> None:
        """Take in ``(samples, ...)``."""
        mean = block[0] if block.shape[0] == 1 else block.mean(0)
        self.count += block.shape[0]
        # A running sum of thousands of float32 numbers loses digits; a running mean does not.
        if self.value is None:
            self.value = mean
        else:
            self.value = self.value + (mean - self.value) * (block.shape[0] / self.count)

    def result(self) -> Tensor:
        """Return the mean of all samples so far."""
        assert self.value is not None, "the mean of no samples"
        return self.value
