"""Differences of expression between populations of cells: all comparisons in one pass.

Each population is drawn from once. The rest of a group is taken from draws of all cells, which serve every group, so
one-versus-rest over many groups decodes each group once and all cells once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from countvi.errors import OptionError
from countvi.query.draws import Counterfactual
from countvi.query.effects import Columns, Hypothesis, Pair
from countvi.query.populations import PopulationDraws, PopulationSampler
from countvi.query.raw import CountSums
from countvi.query.replicates import Replicates

# Draws of all cells for each draw of a population. If a group has at most half of the cells, enough are of the rest.
_OF_ALL = 2


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two populations.

    Parameters
    ----------
    first
        Rows of the first, distinct.
    second
        Rows of the second; ``None`` for all other cells.
    """

    first: np.ndarray
    second: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class ComparisonPlan:
    """What to do with every comparison.

    Parameters
    ----------
    hypothesis
        What is asked.
    levels
        Covariate levels that the draws of the first and of the second population are decoded under. Where both are the
        same, draws are paired under the same level.
    replicates
        Which replicate each cell is of, to summarise effects over replicates.
    threshold
        Features with a smaller mean count in a population are hardly seen there.
    """

    hypothesis: Hypothesis
    levels: tuple[Sequence[Counterfactual], Sequence[Counterfactual]] = ((None,), (None,))
    replicates: Replicates | None = None
    threshold: float = 0.01


def compare(
    sampler: PopulationSampler,
    comparisons: Sequence[Comparison],
    counts: Sequence[tuple[CountSums, CountSums]],
    plan: ComparisonPlan,
) -> Iterator[Columns]:
    """Compare populations, two at a time.

    Parameters
    ----------
    sampler
        How populations are drawn from.
    comparisons
        The populations.
    counts
        Observed counts of both populations of each comparison.
    plan
        What to do.

    Yields
    ------
    dict
        For each comparison what its hypothesis says, and what replicates do.
    """
    n, n_cells = sampler.n_samples, len(sampler.cells)
    with ExitStack() as held:
        draws = _SecondDraws(sampler, plan, held)
        values = held.enter_context(sampler.room(n))
        for number, (comparison, sums) in enumerate(zip(comparisons, counts, strict=True)):
            shares_all = comparison.second is None and len(comparison.first) * 2 <= n_cells
            second = draws.of_rest(comparison.first) if shares_all else draws.of(comparison, number)
            first = sampler.fill(values, comparison.first, plan.levels[0], 2 * number + 1)
            low = tuple(part.mean < plan.threshold for part in sums)
            pair = Pair(first, second, (low[0], low[1]), (sums[0] + sums[1]).mean)
            found = plan.hypothesis(pair)
            if plan.replicates is not None:
                pseudocounts = found.get("pseudocounts")
                assert pseudocounts is not None, "effects of replicates are logarithms, which need pseudocounts"
                found |= plan.replicates.summarize(pair, pseudocounts)
            yield found


class _SecondDraws:
    """Draws of second populations, kept as long as they can be used again."""

    def __init__(self, sampler: PopulationSampler, plan: ComparisonPlan, held: ExitStack) -> None:
        self.sampler, self.plan, self.held = sampler, plan, held
        self.all: PopulationDraws | None = None
        self.values: np.ndarray | None = None
        self.last: tuple[np.ndarray, PopulationDraws] | None = None

    def of_rest(self, first: np.ndarray) -> PopulationDraws:
        """Return those draws of all cells that are of cells not in ``first``."""
        n, levels = self.sampler.n_samples, self.plan.levels[1]
        if self.all is None:
            values = self.held.enter_context(self.sampler.room(_OF_ALL * n))
            self.all = self.sampler.fill(values, self.sampler.cells.rows, levels, 0)
        inside = np.zeros(self.sampler.cells.source.n_cells, dtype=bool)
        inside[first] = True
        rest = np.flatnonzero(~inside[self.all.rows])
        places = np.empty(n, dtype=np.int64)
        for i in range(len(levels)):
            at = slice(i, n, len(levels))
            available = rest[rest % len(levels) == i]
            if not len(available):
                message = (
                    f"{n:,} draws are too few for {len(levels)} batches: none of the rest of a group is left in one of "
                    "them. Raise n_samples_overall."
                )
                raise OptionError(message)
            places[at] = np.resize(available, len(range(n)[at]))
        return self.all.picked(places, self._room())

    def of(self, comparison: Comparison, number: int) -> PopulationDraws:
        """Return draws of the second population itself."""
        rows = comparison.second
        if rows is None:
            rows = np.setdiff1d(self.sampler.cells.rows, comparison.first)
        if self.last is None or self.last[0] is not rows:
            self.last = rows, self.sampler.fill(self._room(), rows, self.plan.levels[1], 2 * number + 2)
        return self.last[1]

    def _room(self) -> np.ndarray:
        """Return the array of the last second population; draws kept in it are gone."""
        self.last = None
        if self.values is None:
            self.values = self.held.enter_context(self.sampler.room(self.sampler.n_samples))
        return self.values
