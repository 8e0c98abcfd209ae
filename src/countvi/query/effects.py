"""Hypotheses about two populations: probabilities and sizes of effects, from pairs of draws.

A hypothesis looks at all pairs of draws of each feature and returns columns of numbers, one per feature.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from countvi import ops
from countvi.query.populations import PopulationDraws, Workspace, chunks

Effect = Callable[[Any, Any, Any], Any]
"""From expression in the first and the second population, ``(pairs, features)``, and the pseudocounts, to an effect."""
Region = Callable[[Any], Any]
"""From effects to where they count: an array of booleans, or one for increases and one for decreases."""

Columns = dict[str, np.ndarray]

_TINY = 1e-8
_LEAST_PSEUDOCOUNT = 1e-10
# Counts of a cell of mean depth. Features below are seen in fewer than one cell of ten, and ratios of such frequencies
# say more of the decoder than of what was observed. Chosen on blood cells: see docs/differential.md.
_PSEUDOCOUNT = 0.1
# Of a population that nothing was observed in.
_USUAL_DEPTH = 1e4


@dataclass(frozen=True, eq=False)
class Pair:
    """Draws of two populations at the same places.

    Parameters
    ----------
    first, second
        The draws.
    low
        Features that are hardly seen in the first and in the second population, shape ``(features,)`` each.
    counts
        Mean observed count of a cell of either population, shape ``(features,)``; NaN where there was no measurement.
    """

    first: PopulationDraws
    second: PopulationDraws
    low: tuple[np.ndarray, np.ndarray]
    counts: np.ndarray

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.first.n_features

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield features and both draws, ``(pairs, features)``, chunk by chunk."""
        return iter(
            zip(
                chunks(self.n_features),
                self.first,
                self.second,
                strict=True,
            )
        )

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells of both draws, shape ``(pairs,)`` each."""
        return self.first.rows, self.second.rows

    def largest(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest draw of each feature in both populations, shape ``(features,)`` each."""
        first, second = (draws.values.max(1).reshape(-1)[: self.n_features] for draws in (self.first, self.second))
        return first, second

    def count(self, features: np.ndarray) -> float:
        """Return what a count of a cell of mean depth is in the unit of the draws.

        That is the total expression over the total counts, both of the given features (a mask): one over the mean
        library size where expression is frequencies. Leaving features out changes both, and leaves alone what a
        count is worth beside the expression of a feature.
        """
        means = self.collect(lambda _, a, b: {"first": a.mean(0), "second": b.mean(0)})
        total = float((means["first"] + means["second"])[features].sum()) / 2
        counts = float(np.nansum(self.counts[features]))
        return total / counts if counts > 0 else total / _USUAL_DEPTH

    def collect(self, compute: Callable[[slice, Tensor, Tensor], dict[str, Tensor]]) -> Columns:
        """Compute columns of each chunk and put them together, features first."""
        parts: dict[str, list[np.ndarray]] = {}
        for columns, a, b in self:
            for name, value in compute(columns, a, b).items():
                parts.setdefault(name, []).append(value.double().numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}


class Hypothesis(ABC):
    """What is asked of two populations."""

    sort_by: str
    """Column by which features are ranked, largest first."""

    @abstractmethod
    def __call__(self, pair: Pair) -> Columns:
        """Answer for each feature."""


@final
@dataclass(frozen=True, eq=False)
class Greater(Hypothesis):
    """Whether expression is larger in the first population (Lopez et al. 2018).

    Parameters
    ----------
    strict
        Equal draws count for the second population, and not half for each.
    """

    strict: bool = False
    sort_by = "bayes_factor"

    def __call__(self, pair: Pair) -> Columns:
        """Return probabilities and their log odds."""

        def compare(_: slice, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            up = _share(a > b)
            if not self.strict:
                up = up + 0.5 * _share(a == b)
            return {"proba_m1": up, "scale1": a.mean(0), "scale2": b.mean(0)}

        found = pair.collect(compare)
        up = found["proba_m1"]
        return {
            "proba_m1": up,
            "proba_m2": 1.0 - up,
            "bayes_factor": log_odds(up),
            "scale1": found["scale1"],
            "scale2": found["scale2"],
        }


@final
@dataclass(frozen=True, eq=False)
class Change(Hypothesis):
    """Whether expression changes by more than a threshold (Boyeau et al. 2019, 2023).

    Parameters
    ----------
    delta
        The threshold; ``None`` estimates it from the effects of all features.
    pseudocounts
        Added to expression before logarithms; one per feature, or one for all. ``None``, and NaN for a feature, is a
        tenth of a count of a cell of mean depth.
    two_sided
        Take the sum of the probabilities of an increase and of a decrease, and not the larger one.
    effect
        What a change is.
    region
        Which effects count, instead of those beyond ``delta``.
    levels
        Levels of credible intervals.
    of_low
        Instead of a tenth of a count, as scvi-tools does: the 90% quantile, over features that are hardly seen, of
        the largest draw, divided by the number of features.
    shrink
        Effects are summarised with the pseudocounts times this number (scvi-tools: 0.001).
    """

    delta: float | None = 0.25
    pseudocounts: float | np.ndarray | None = None
    two_sided: bool = False
    effect: Effect = field(default_factory=lambda: log_fold)
    region: Region | None = None
    levels: Sequence[float] = ()
    of_low: bool = False
    shrink: float = 1.0
    sort_by = "proba_de"

    def __call__(self, pair: Pair) -> Columns:
        """Return probabilities, their log odds, and a summary of the effects."""
        room = Workspace()
        pseudocounts = self._pseudocounts(pair)
        delta = self.delta
        if delta is None:
            delta = estimated_delta(
                pair.collect(lambda at, a, b: {"mean": self._effect(a, b, pseudocounts[at], room).mean(0)})["mean"]
            )

        plain = self.effect is log_fold and self.region is None and self.shrink == 1.0
        plain = plain and bool((pseudocounts >= _LEAST_PSEUDOCOUNT).all())

        def weigh(at: slice, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            if plain:
                c = torch.from_numpy(pseudocounts[at]).to(a.dtype)
                return _in_columns(ops.fold_changes(a, b, c, delta), self.levels)
            effect = self._effect(a, b, pseudocounts[at], room)
            up, down = self._beyond(effect, delta)
            summarised = effect if self.shrink == 1.0 else self._effect(a, b, self.shrink * pseudocounts[at], room)
            return {
                "up": up,
                "down": down,
                "scale1": a.mean(0),
                "scale2": b.mean(0),
                **_summary(summarised, self.levels, room),
            }

        found = pair.collect(weigh)
        up, down = found.pop("up"), found.pop("down")
        scale1, scale2 = found.pop("scale1"), found.pop("scale2")
        added = self.shrink * pseudocounts
        changed = up + down if self.two_sided else np.maximum(up, down)
        return {
            "proba_de": changed,
            "proba_not_de": 1.0 - changed,
            "bayes_factor": log_odds(changed),
            "prob_up": up,
            "prob_down": down,
            "scale1": scale1,
            "scale2": scale2,
            "pseudocounts": pseudocounts.astype(float),
            "delta": np.full(pair.n_features, delta),
            "lfc": _ratio(scale1 + added, scale2 + added),
            **found,
        }

    def _effect(self, a: Tensor, b: Tensor, pseudocounts: np.ndarray, room: Workspace) -> Tensor:
        c = torch.from_numpy(pseudocounts).to(a.dtype)
        if self.effect is log_fold:
            effect = torch.add(a, c, out=room.array("effect", *a.shape))
            effect /= torch.add(b, c, out=room.array("other", *b.shape))
            return effect.log_().mul_(1.0 / np.log(2.0))
        if self.effect is difference:
            return torch.sub(a, b, out=room.array("effect", *a.shape))
        return torch.as_tensor(np.asarray(self.effect(a.numpy(), b.numpy(), c.numpy())))

    def _beyond(self, effect: Tensor, delta: float) -> tuple[Tensor, Tensor]:
        if self.region is None:
            inside = np.empty(effect.shape, dtype=bool)
            values = effect.numpy()
            up = _share(torch.from_numpy(np.greater_equal(values, np.float32(delta), out=inside)))
            return up, _share(torch.from_numpy(np.less_equal(values, np.float32(-delta), out=inside)))
        inside = self.region(effect.numpy())
        if isinstance(inside, tuple):
            up, down = (torch.as_tensor(np.asarray(part)) for part in inside)
        else:
            inside = torch.as_tensor(np.asarray(inside))
            up, down = inside & (effect > 0), inside & (effect <= 0)
        return _share(up), _share(down)

    def _pseudocounts(self, pair: Pair) -> np.ndarray:
        given = np.nan if self.pseudocounts is None else np.asarray(self.pseudocounts, dtype=np.float64)
        values = np.broadcast_to(given, (pair.n_features,)).copy()
        wanted = np.isnan(values)
        if wanted.any():
            found = self._of_low(pair, wanted) if self.of_low else _PSEUDOCOUNT * pair.count(wanted)
            values[wanted] = max(found, _LEAST_PSEUDOCOUNT)
        return values

    @staticmethod
    def _of_low(pair: Pair, wanted: np.ndarray) -> float:
        masks = [low & wanted for low in pair.low]
        found = [
            float(np.quantile(most[low], 0.9)) if low.any() else _LEAST_PSEUDOCOUNT
            for most, low in zip(pair.largest(), masks, strict=True)
        ]
        return max(found) / pair.n_features


def log_fold(first: Tensor, second: Tensor, pseudocounts: Tensor) -> Tensor:
    """Log2 of the ratio of expression in the first population to that in the second."""
    return torch.log2((first + pseudocounts) / (second + pseudocounts))


def difference(first: Tensor, second: Tensor, pseudocounts: Tensor) -> Tensor:
    """Expression in the first population minus that in the second."""
    return first - second


def _ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Log2 of a ratio, without a complaint where both are zero; it is zero there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(first == second, 0.0, np.log2(first) - np.log2(second))


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Natural log of p / (1 - p), at most about 18."""
    return np.log(probability + _TINY) - np.log(1.0 - probability + _TINY)


def expected_fdr(probability: np.ndarray, target: float) -> np.ndarray:
    """Pick the largest set of features whose expected share of false discoveries is at most ``target``.

    Parameters
    ----------
    probability
        That a feature is differential, shape ``(features,)``.
    target
        Between 0 and 1.

    Returns
    -------
    ndarray
        Mask of the set, shape ``(features,)``.
    """
    return false_discovery_rate(probability) <= target


def false_discovery_rate(probability: np.ndarray) -> np.ndarray:
    """Mean probability of an error among the discoveries that are at least as probable (Newton et al. 2004).

    Parameters
    ----------
    probability
        That a discovery is one, shape ``(n,)``.
    """
    order = np.argsort(-probability, kind="stable")
    rate = np.empty(len(order))
    rate[order] = np.cumsum(1.0 - probability[order]) / np.arange(1, len(order) + 1)
    return rate


def benjamini_hochberg(p_value: np.ndarray) -> np.ndarray:
    """Smallest false discovery rate at which each test is found (Benjamini, Hochberg 1995).

    Parameters
    ----------
    p_value
        Shape ``(tests,)``; NaN where there was no test, and there the rate is NaN.
    """
    from scipy.stats import false_discovery_control  # slow to import, and only needed here

    rate, tested = np.full(len(p_value), np.nan), ~np.isnan(p_value)
    rate[tested] = false_discovery_control(p_value[tested])
    return rate


def estimated_delta(effects: np.ndarray, share: float = 0.6, least: float = 0.1) -> float:
    """Estimate a threshold from the mean effects of all features.

    A mixture of three normals is fitted: decreases, no change, increases. The threshold is ``share`` of the mean
    distance of the outer two from zero, at least ``least``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture  # slow to import, and only needed here

    x = np.asarray(effects, dtype=np.float64)[:, None]
    variance = max(float(x.var()), 1e-12)
    # From the tails and the middle, so that nothing is drawn.
    mixture: Any = GaussianMixture(
        3,
        tol=1e-9,
        reg_covar=1e-6 * variance,
        max_iter=200,
        random_state=0,
        weights_init=np.full(3, 1 / 3),
        means_init=np.quantile(x, [0.05, 0.5, 0.95])[:, None],
        precisions_init=np.full((3, 1, 1), 4 / variance),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a threshold
        means = np.sort(np.ravel(mixture.fit(x).means_))
    return max(least, share * float(np.abs(means[[0, -1]]).mean()))


def _share(mask: Tensor) -> Tensor:
    n = mask.shape[0]
    total = np.add.reduce(mask.numpy().view(np.uint8), axis=0, dtype=np.uint16 if n < 2**16 else np.uint64)
    return torch.from_numpy(total / n)


def _summary(effect: Tensor, levels: Sequence[float], room: Workspace) -> dict[str, Tensor]:
    mean = effect.mean(0)
    deviation = torch.sub(effect, mean, out=room.array("other", *effect.shape))
    return {
        "lfc_mean": mean,
        "lfc_std": deviation.square_().mean(0).sqrt_(),
        **_quantiles(room.array("by feature", *reversed(effect.shape)).copy_(effect.T), levels),
    }


def _in_columns(folds: ops.FoldChanges, levels: Sequence[float]) -> dict[str, Tensor]:
    return {
        "up": folds.up,
        "down": folds.down,
        "scale1": folds.mean_first,
        "scale2": folds.mean_second,
        "lfc_mean": folds.mean,
        "lfc_std": folds.deviation,
        **_quantiles(folds.effects, levels),
    }


def _quantiles(effects: Tensor, levels: Sequence[float]) -> dict[str, Tensor]:
    """Median, extremes and narrowest intervals of effects ``(features, pairs)``, which are put in another order."""
    by_feature = effects.numpy()
    n = by_feature.shape[1]
    if levels:
        by_feature.sort(axis=1)
    else:
        # At one place only: at two it takes several times as long.
        by_feature.partition(n // 2, axis=1)
    below, upper = by_feature[:, : n // 2], by_feature[:, n // 2]
    lower = below.max(axis=1) if n % 2 == 0 else upper
    found = {
        "lfc_median": torch.from_numpy(0.5 * (lower.astype(np.float64) + upper)),
        "lfc_min": torch.from_numpy(below.min(axis=1) if n > 1 else upper.copy()),
        "lfc_max": torch.from_numpy(by_feature[:, n // 2 :].max(axis=1)),
    }
    for level in levels:
        low_end, high_end = _narrowest(by_feature, level)
        found[f"lfc_confidence_interval_{level}_min"] = torch.from_numpy(low_end)
        found[f"lfc_confidence_interval_{level}_max"] = torch.from_numpy(high_end)
    return found


def _narrowest(ordered: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the narrowest interval that holds a share of the draws, from draws in order ``(features, draws)``."""
    n = ordered.shape[1]
    inside = min(int(np.floor(level * n)), n - 1)
    start = np.argmin(ordered[:, inside:] - ordered[:, : n - inside], axis=1)
    feature = np.arange(len(ordered))
    return ordered[feature, start], ordered[feature, start + inside]
