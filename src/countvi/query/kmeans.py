"""Clusters of points by k-means."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

_MAX_ROUNDS = 100


def kmeans(points: np.ndarray, n_clusters: int, n_starts: int, random: np.random.Generator) -> np.ndarray:
    """Return the cluster of each point: the best of several starts (Arthur and Vassilvitskii 2007; Lloyd 1982).

    Parameters
    ----------
    points
        Shape ``(points, dimensions)``.
    n_clusters
        How many clusters; at most one per point.
    n_starts
        How many starts.
    random
        Source of the starts.

    Returns
    -------
    ndarray
        Codes, shape ``(points,)``, int64; every code from 0 to ``n_clusters - 1`` occurs if so many points differ.
    """
    points = np.asarray(points, dtype=np.float64)
    found = (_lloyd(points, _spread(points, n_clusters, random)) for _ in range(n_starts))
    return min(found, key=lambda result: result[1])[0]


def _spread(points: np.ndarray, n_clusters: int, random: np.random.Generator) -> np.ndarray:
    """Centres far from each other."""
    chosen = [int(random.integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < n_clusters:
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
        total = nearest.sum()
        share = nearest / total if total > 0 else np.full(len(points), 1 / len(points))
        chosen.append(int(random.choice(len(points), p=share)))
    return points[chosen]


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    codes = np.full(len(points), -1)
    distances = np.zeros(len(points))
    for _ in range(_MAX_ROUNDS):
        squared = cdist(points, centres, "sqeuclidean")
        nearest = squared.argmin(1)
        if np.array_equal(nearest, codes):
            break
        codes, distances = nearest, squared.min(1)
        sizes = np.bincount(codes, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, codes, points)
        # A centre that lost all its points moves to the point that is worst served.
        for empty in np.flatnonzero(sizes == 0):
            worst = int(distances.argmax())
            distances[worst], sums[empty], sizes[empty] = 0.0, points[worst], 1
        centres = sums / sizes[:, None]
    return codes, float(distances.sum())
