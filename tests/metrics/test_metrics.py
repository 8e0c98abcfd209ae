"""Scores against their definitions, written out slowly, and against known extremes."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.special import xlogy

from countvi.errors import DataError, MismatchError, OptionError
from countvi.metrics import (
    clisi,
    graph_connectivity,
    ilisi,
    integration_scores,
    kmeans_agreement,
    lisi,
    silhouette_batch,
    silhouette_label,
)

RNG = np.random.default_rng(7)
LABELS = RNG.choice(["T", "B", "NK"], 70, p=[0.5, 0.3, 0.2])
BATCH = RNG.choice([1, 2], 70)
STATES = RNG.normal(0, 1, (70, 3)) + 2.0 * (LABELS == "T")[:, None] + 0.7 * (BATCH == 1)[:, None] * [1, 0, 0]


def slow_lisi(states: np.ndarray, levels: np.ndarray, perplexity: int) -> np.ndarray:
    out = []
    for i, row in enumerate(cdist(states, states)):
        others = sorted((d, j) for j, d in enumerate(row) if j != i)[: 3 * perplexity - 1]
        distances = np.array([d for d, _ in others])

        def weights(beta: float, distances: np.ndarray = distances) -> np.ndarray:
            w = np.exp(-beta * distances)
            return w / w.sum()

        def surplus(beta: float, weights: Any = weights) -> float:
            w = weights(beta)
            return float(-xlogy(w, w).sum() - np.log(perplexity))

        w = weights(brentq(surplus, 1e-6, 150.0, xtol=1e-13))
        by_level: dict[Any, float] = {}
        for weight, (_, j) in zip(w, others, strict=True):
            by_level[levels[j]] = by_level.get(levels[j], 0.0) + weight
        out.append(1 / sum(share**2 for share in by_level.values()))
    return np.array(out)


@pytest.mark.parametrize("perplexity", [5, 20])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_lisi_is_its_definition(perplexity: int, scale: float) -> None:
    for levels in (LABELS, BATCH):
        slow = slow_lisi(STATES, levels, perplexity)
        # Calibrated weights do not change when all distances grow alike.
        np.testing.assert_allclose(lisi(scale * STATES, levels, perplexity), slow, rtol=1e-7)
    assert ilisi(STATES, BATCH, perplexity) == pytest.approx(np.median(slow_lisi(STATES, BATCH, perplexity)) - 1)
    expected = (3 - np.median(slow_lisi(STATES, LABELS, perplexity))) / 2
    assert clisi(STATES, LABELS, perplexity) == pytest.approx(expected)


def test_lisi_of_cells_at_one_place() -> None:
    # All weights are equal, whatever beta is: two levels with 14 and 15 or 15 and 14 of 29 neighbours.
    values = lisi(np.zeros((30, 2)), np.arange(30) % 2, 10)
    np.testing.assert_allclose(values, 29**2 / (14**2 + 15**2))


def test_lisi_counts_the_levels() -> None:
    rng = np.random.default_rng(0)
    states, levels = rng.normal(size=(4000, 2)), rng.choice(4, 4000)
    # Four equally frequent levels that mean nothing, h effective neighbours: E[sum p^2] = 1/4 + 3/4 sum w^2.
    assert 3.2 < np.median(lisi(states, levels)) < 4
    apart = lisi(states + 100 * levels[:, None], levels)
    np.testing.assert_allclose(apart, 1.0)


def slow_silhouette(states: np.ndarray, groups: np.ndarray) -> np.ndarray:
    distances = cdist(states, states)
    out = []
    for i, mine in enumerate(groups):
        same = [distances[i, j] for j in range(len(groups)) if groups[j] == mine and j != i]
        if not same:
            out.append(0.0)
            continue
        a = np.mean(same)
        b = min(np.mean(distances[i, groups == other]) for other in set(groups) - {mine})
        out.append((b - a) / max(a, b))
    return np.array(out)


def test_silhouettes_are_their_definition() -> None:
    assert silhouette_label(STATES, LABELS) == pytest.approx((slow_silhouette(STATES, LABELS).mean() + 1) / 2)
    batch = np.where(LABELS == "NK", 1, BATCH)  # one label in one batch, which does not count
    means = [
        np.mean([1 - abs(s) for s in slow_silhouette(STATES[kind == LABELS], batch[kind == LABELS])])
        for kind in ("T", "B")
    ]
    assert silhouette_batch(STATES, LABELS, batch) == pytest.approx(np.mean(means))


def slow_ari(a: np.ndarray, b: np.ndarray) -> float:
    pairs = list(combinations(range(len(a)), 2))
    same_a, same_b = ({p for p in pairs if x[p[0]] == x[p[1]]} for x in (a, b))
    expected = len(same_a) * len(same_b) / len(pairs)
    return (len(same_a & same_b) - expected) / ((len(same_a) + len(same_b)) / 2 - expected)


def entropy(*labels: np.ndarray) -> float:
    counts = np.array(list(pd.Series(list(zip(*labels, strict=True))).value_counts()))
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum())


def test_agreement_with_clusters() -> None:
    # Three tight groups that k-means must find, and labels that mix two of them up.
    group = np.repeat([0, 1, 2], [9, 7, 6])
    states = np.array([[0, 0], [50, 0], [0, 50]])[group] + np.random.default_rng(0).normal(size=(22, 2))
    assert kmeans_agreement(states, group) == pytest.approx({"nmi": 1.0, "ari": 1.0})
    labels = np.where(np.arange(22) < 12, "x", np.where(np.arange(22) < 18, "y", "z"))
    found = kmeans_agreement(states, labels)
    assert found["ari"] == pytest.approx(slow_ari(labels, group))
    mutual = entropy(labels) + entropy(group) - entropy(labels, group)
    assert found["nmi"] == pytest.approx(2 * mutual / (entropy(labels) + entropy(group)))


def slow_connectivity(states: np.ndarray, labels: np.ndarray, k: int) -> float:
    near = [set(np.argsort(row)[1 : k + 1]) for row in cdist(states, states)]
    shares = []
    for kind in set(labels):
        left = set(np.flatnonzero(labels == kind).tolist())
        sizes, n = [], len(left)
        while left:
            part, todo = set(), [left.pop()]
            while todo:
                cell = todo.pop()
                part.add(cell)
                reached = {other for other in left if other in near[cell] or cell in near[other]}
                left -= reached
                todo += reached
            sizes.append(len(part))
        shares.append(max(sizes) / n)
    return float(np.mean(shares))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_connectivity_is_its_definition(k: int) -> None:
    assert graph_connectivity(STATES, LABELS, k) == pytest.approx(slow_connectivity(STATES, LABELS, k))


def test_extremes() -> None:
    rng = np.random.default_rng(1)
    labels, batch = np.repeat([0, 1], 200), np.tile([0, 1], 200)
    mixed = 50.0 * labels[:, None] + rng.normal(size=(400, 4))
    best = integration_scores(mixed, labels, batch)
    assert set(best) == {"clisi", "silhouette_label", "nmi", "ari", "ilisi", "silhouette_batch", "graph_connectivity"}
    assert min(best.values()) > 0.85
    parted = mixed + 500.0 * batch[:, None] * [0, 1, 0, 0]
    assert ilisi(parted, batch) == pytest.approx(0)
    assert silhouette_batch(parted, labels, batch) < 0.05
    assert graph_connectivity(parted, labels) == pytest.approx(0.5)
    noise = rng.normal(size=(400, 4))
    worst = integration_scores(noise, labels)
    assert set(worst) == {"clisi", "silhouette_label", "nmi", "ari"}
    assert worst["clisi"] < 0.15
    assert abs(worst["silhouette_label"] - 0.5) < 0.05
    assert max(worst["nmi"], worst["ari"]) < 0.05


def test_the_seed_decides_and_the_global_stream_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert kmeans_agreement(STATES, LABELS, seed=3) == kmeans_agreement(STATES, LABELS, seed=3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    "levels", [pd.Series(LABELS), pd.Categorical(LABELS), LABELS.tolist(), pd.array(LABELS, dtype="string")], ids=type
)
def test_labels_of_every_kind(levels: Any) -> None:
    np.testing.assert_array_equal(lisi(STATES, levels, 5), lisi(STATES, LABELS, 5))


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_labels(missing: Any) -> None:
    levels = [missing, *LABELS[1:]]
    with pytest.raises(DataError, match="levels is missing in 1 of 70 cells"):
        lisi(STATES, levels)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: lisi(STATES[:, 0], LABELS), DataError, r"cells x dimensions; got shape \(70,\)"),
        (lambda: lisi(np.full((4, 2), np.nan), [1, 2, 3, 4]), DataError, "those of 4 cells are not"),
        (lambda: lisi(STATES, LABELS[:9]), MismatchError, r"one value per cell \(70\); got shape \(9,\)"),
        (lambda: lisi(STATES, LABELS, 24), OptionError, r"a third of the number of cells \(70\); got 24"),
        (lambda: lisi(STATES, LABELS, 0.5), OptionError, r"at least 1 .* got 0\.5"),
        (lambda: ilisi(STATES, ["a"] * 70), DataError, "batch has one level"),
        (lambda: clisi(STATES, ["a"] * 70), DataError, "labels has one level"),
        (lambda: silhouette_label(STATES, np.arange(70)), DataError, "a label of its own"),
        (lambda: silhouette_batch(STATES, LABELS, LABELS), DataError, "No label is in several batches"),
        (lambda: graph_connectivity(STATES, LABELS, 70), OptionError, "between 1 and 69"),
    ],
)
def test_what_cannot_be_scored(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
