"""Schedules of the learning rate and of the KL weight, and the rules that follow a held-out metric."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

# Share of the run in which a one-cycle schedule rises, and where it starts and ends relative to its peak.
_RISE = 0.25
_START = 0.04
_END = 1e-3


class Schedule(ABC):
    """A learning rate as a function of the step.

    Parameters
    ----------
    peak
        The highest rate.
    n_steps
        Length of the run.
    """

    def __init__(self, peak: float, n_steps: int) -> None:
        self.peak = peak
        self.n_steps = n_steps

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``, counted from zero."""


class Constant(Schedule):
    """The same rate throughout."""

    def __call__(self, step: int) -> float:
        """Return the rate."""
        return self.peak


class OneCycle(Schedule):
    """Half a cosine up, half a cosine down (Smith and Topin 2019)."""

    def __call__(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        done = min(step / max(self.n_steps - 1, 1), 1.0)
        if done < _RISE:
            return self.peak * _cosine(_START, 1.0, done / _RISE)
        return self.peak * _cosine(1.0, _END, (done - _RISE) / (1.0 - _RISE))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class KlWarmup:
    """Linear rise of the KL weight.

    Parameters
    ----------
    low, high
        First and last weight.
    n_steps
        Steps until ``high``; zero for no warm-up.
    every
        The weight changes once in so many steps.
    """

    low: float
    high: float
    n_steps: int
    every: int = 1

    def __call__(self, step: int) -> float:
        """Return the KL weight of step ``step``, counted from zero."""
        if self.n_steps <= 0:
            return self.high
        step -= step % self.every
        return self.low + (self.high - self.low) * min(step / self.n_steps, 1.0)


@dataclass
class Plateau:
    """Multiplies the learning rate when a metric stalls.

    Parameters
    ----------
    factor
        By how much.
    patience
        Validations without improvement that are tolerated.
    threshold
        Smallest change that counts, absolute.
    scale
        The current multiplier.
    best, n_bad
        Best value so far, and validations since.
    """

    factor: float
    patience: int
    threshold: float
    scale: float = 1.0
    best: float = math.inf
    n_bad: int = 0

    def update(self, metric: float) -> None:
        """Take note of a validation."""
        if metric < self.best - self.threshold:
            self.best, self.n_bad = metric, 0
            return
        self.n_bad += 1
        if self.n_bad > self.patience:
            self.scale *= self.factor
            self.n_bad = 0


@dataclass
class Stopper:
    """Decides when a held-out metric has stopped improving.

    Parameters
    ----------
    patience
        Validations without improvement that are tolerated.
    min_delta
        Smallest change for which patience starts again.
    best
        Best value so far.
    n_bad
        Validations since the last change that counts.
    mark
        What the next change is measured from; ``None`` for the best value.
    """

    patience: int
    min_delta: float
    best: float = math.inf
    n_bad: int = 0
    mark: float | None = None

    def improved(self, metric: float) -> bool:
        """Take note of a validation; return whether it is the best so far, by however little."""
        mark = self.best if self.mark is None else self.mark
        if metric < mark - self.min_delta:
            self.mark, self.n_bad = metric, 0
        else:
            self.mark, self.n_bad = mark, self.n_bad + 1
        better = metric < self.best
        self.best = min(self.best, metric)
        return better

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.n_bad > self.patience
