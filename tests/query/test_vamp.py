"""Clusters of states, and the mixtures of posteriors that summarise them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from countvi import query


def blobs(random: np.random.Generator, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    truth = random.integers(0, 4, n)
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]])
    return centres[truth] + random.normal(size=(n, 2)), truth


def test_groups_that_lie_apart_are_clusters():
    points, truth = blobs(np.random.default_rng(0))
    found = query.subclusters(points, np.zeros(len(points), int), 1, 4)
    assert adjusted_rand_score(found, truth) > 0.95


def test_a_seed_is_a_clustering():
    points, _ = blobs(np.random.default_rng(0))
    first, again = (query.subclusters(points, np.zeros(len(points), int), 1, 7, seed=3) for _ in range(2))
    assert np.array_equal(first, again) and set(first) == set(range(7))


@pytest.mark.filterwarnings("error")
def test_points_that_are_all_the_same():
    assert not query.subclusters(np.ones((5, 2)), np.zeros(5, int), 1, 3).any()


def test_a_mixture_has_the_moments_of_what_it_summarises():
    """Law of total variance: mean and variance of draws from the posteriors of a cluster."""
    random = np.random.default_rng(0)
    loc, scale = random.normal(size=(60, 2)), random.uniform(0.3, 1.0, (60, 2))
    labels, clusters = np.repeat([0, 1], 30), np.tile([0, 1, 2], 20)
    mixture = query.vamp_mixture(loc, scale, labels, clusters, 3, 4)
    draws = loc + scale * random.normal(size=(50_000, 60, 2))
    for label in range(2):
        for cluster in range(3):
            inside = draws[:, (labels == label) & (clusters == cluster)].reshape(-1, 2)
            np.testing.assert_allclose(mixture.mean[label, cluster], inside.mean(0), atol=0.01)
            np.testing.assert_allclose(mixture.scale[label, cluster], inside.std(0), atol=0.01)
    np.testing.assert_allclose(mixture.weights[:2], [[1 / 3, 1 / 3, 1 / 3, 0.0]] * 2)
    # A component that is not used, and a type without cells.
    assert (mixture.mean[:2, 3] == 0).all() and (mixture.scale[:2, 3] == 1).all()
    assert mixture.weights[2].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_type_of_few_cells_has_a_component_for_each():
    loc = np.random.default_rng(0).normal(size=(12, 2))
    labels = np.array([0] * 3 + [1] * 9)
    clusters = query.subclusters(loc, labels, 2, 4, seed=0)
    assert sorted(clusters[:3]) == [0, 1, 2] and set(clusters[3:]) == {0, 1, 2, 3}
