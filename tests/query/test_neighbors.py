"""Labels from the nearest labelled cells."""

from __future__ import annotations

import numpy as np
import pytest

from countvi.query import CellPositions, knn_vote
from countvi.query.neighbors import _CHUNK


def located(states: np.ndarray, variance: np.ndarray | float = 1.0) -> CellPositions:
    return CellPositions(states, np.broadcast_to(variance, len(states)))


@pytest.fixture(scope="module")
def groups() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [50, 80, 30])
    return rng.normal(size=(160, 3)) + 12.0 * np.eye(3)[codes], codes


def test_votes_are_a_weighted_count_over_all_pairs(groups) -> None:
    """By the definition, with all distances."""
    states, codes = groups
    rng = np.random.default_rng(1)
    query, variances = rng.normal(size=(40, 3)) * 8.0 + 4.0, (rng.gamma(3.0, size=160), rng.gamma(2.0, size=40))
    votes = knn_vote(located(states, variances[0]), codes, located(query, variances[1]), 7)
    distances = np.linalg.norm(query[:, None] - states, axis=-1)
    own = np.sort(np.linalg.norm(states[:, None] - states, axis=-1), axis=1)[:, 1:8].mean(1)
    for i, d in enumerate(distances):
        nearest = np.argsort(d)[:7]
        weights = np.exp(-0.5 * (d[nearest] / d[nearest].mean()) ** 2)
        shares = np.array([weights[codes[nearest] == code].sum() for code in range(3)]) / weights.sum()
        np.testing.assert_allclose(votes.shares[i], shares, rtol=1e-9, atol=1e-15)
        alike = codes == shares.argmax()
        beyond, vaguer = own[alike] >= d[nearest].mean(), variances[0][alike] >= variances[1][i]
        assert votes.typicality[i] == pytest.approx(min(beyond.mean(), vaguer.mean()))


def test_cells_like_the_labelled_are_typical_and_others_are_not(groups) -> None:
    states, codes = groups
    rng = np.random.default_rng(2)
    known = located(states)
    alike = knn_vote(known, codes, located(rng.normal(size=(300, 3)) + np.array([0.0, 12.0, 0.0])), 10)
    assert (alike.shares[:, 1] > 1 - 1e-9).mean() > 0.99
    # Uniform on 0 to 1, as a cell drawn from a group is as likely as any of its cells to be the farthest.
    assert 0.4 < alike.typicality.mean() < 0.6
    apart = knn_vote(known, codes, located(rng.normal(size=(30, 3)) - 12.0), 10)
    assert apart.typicality.max() == 0.0
    vague = knn_vote(known, codes, located(states, 1.1), 10)
    assert vague.typicality.max() == 0.0


def test_cells_at_one_place_have_one_vote_each() -> None:
    votes = knn_vote(located(np.zeros((6, 2))), np.array([0, 0, 0, 0, 1, 1]), located(np.zeros((2, 2))), 5)
    assert np.isfinite(votes.shares).all()
    np.testing.assert_allclose(votes.shares.sum(1), 1.0)
    np.testing.assert_allclose(votes.typicality, 1.0)


def test_many_cells_go_in_chunks(groups) -> None:
    states, codes = groups
    query = np.tile(states[:3], (_CHUNK // 2, 1))
    votes = knn_vote(located(states), codes, located(query), 1)
    np.testing.assert_array_equal(votes.shares[:3], votes.shares[-3:])
    assert (votes.shares[:, 0] == 1.0).all()
