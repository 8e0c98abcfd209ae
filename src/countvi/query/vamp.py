"""Clusters of states within types, and mixtures of the posteriors of their cells: a prior of states."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from countvi import seeding

_STARTS = 10


class VampMixture(NamedTuple):
    """A mixture of normals for each type."""

    mean: np.ndarray
    """Means, shape ``(types, components, latent)``; zero in components that a type does not use."""
    scale: np.ndarray
    """Standard deviations, shape ``(types, components, latent)``; one in components that a type does not use."""
    weights: np.ndarray
    """Shape ``(types, components)``; zero in components that a type does not use."""


def subclusters(
    loc: np.ndarray, labels: np.ndarray, n_types: int, n_components: int, seed: int = seeding.DEFAULT_SEED
) -> np.ndarray:
    """Cut the cells of each type into clusters of similar states, by k-means.

    Parameters
    ----------
    loc
        Posterior means, shape ``(cells, latent)``.
    labels
        Code of the type of each cell, shape ``(cells,)``.
    n_types
        Number of types.
    n_components
        Clusters per type; a type with fewer cells has one for each cell.
    seed
        Of the clusters.

    Returns
    -------
    ndarray
        Code of each cell's cluster within its type, shape ``(cells,)``, int64.
    """
    from sklearn.cluster import KMeans  # slow to import, and only needed here

    random = np.random.default_rng(seed)
    clusters = np.zeros(len(labels), dtype=np.int64)
    for label in range(n_types):
        rows = np.flatnonzero(labels == label)
        if len(rows) <= n_components:
            clusters[rows] = np.arange(len(rows))
        else:
            states = loc[rows].astype(np.float64)
            n_clusters = min(n_components, len(np.unique(states, axis=0)))
            means = KMeans(n_clusters, n_init=_STARTS, random_state=int(random.integers(2**31)))  # type: ignore[arg-type]
            clusters[rows] = means.fit_predict(states)
    return clusters


def vamp_mixture(
    loc: np.ndarray, scale: np.ndarray, labels: np.ndarray, clusters: np.ndarray, n_types: int, n_components: int
) -> VampMixture:
    """Summarise the posteriors of the cells of each cluster by one normal.

    Its mean and variance are those of the mixture of the posteriors. The variance is the mean of their variances plus
    the variance of their means.

    Parameters
    ----------
    loc, scale
        Posterior means and standard deviations, shape ``(cells, latent)``.
    labels, clusters
        Codes of type, and of cluster within it, shape ``(cells,)``.
    n_types, n_components
        Number of types, and of components that each has room for.
    """
    latent = loc.shape[1]
    mean, spread = np.zeros((n_types, n_components, latent)), np.ones((n_types, n_components, latent))
    weights = np.zeros((n_types, n_components))
    loc, variance = loc.astype(np.float64), scale.astype(np.float64) ** 2
    for label in range(n_types):
        of_type = labels == label
        if not of_type.any():  # nothing is known of its states
            weights[label, 0] = 1.0
            continue
        codes, sizes = np.unique(clusters[of_type], return_counts=True)
        for component, code in enumerate(codes):
            rows = of_type & (clusters == code)
            mean[label, component] = loc[rows].mean(0)
            spread[label, component] = np.sqrt(variance[rows].mean(0) + loc[rows].var(0))
        weights[label, : len(codes)] = sizes / sizes.sum()
    return VampMixture(mean, spread, weights)
