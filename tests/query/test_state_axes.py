"""Axes of states: fields whose smooth direction is known, and the genes that follow it."""

from __future__ import annotations

import numpy as np
import pytest

from countvi.query.state_axes import spatial_axes


def grid(side: int) -> np.ndarray:
    return np.stack(np.divmod(np.arange(side * side), side), 1).astype(float)


def test_the_smooth_direction_comes_before_a_larger_one_that_is_noise() -> None:
    rng = np.random.default_rng(0)
    places = grid(40)
    smooth = np.sin(places[:, 0] / 5)
    gamma = rng.normal(size=(1600, 3)) * np.array([1.0, 0.1, 0.1])
    gamma[:, 1:] += smooth[:, None] * np.array([0.6, 0.8])
    axes = spatial_axes(gamma, np.ones(1600), places)
    np.testing.assert_allclose(np.abs(axes.directions[0] @ [0.0, 0.6, 0.8]), 1.0, atol=0.02)
    assert abs(np.corrcoef(axes.scores[:, 0], smooth)[0, 1]) > 0.97
    assert axes.moran[0] > 0.8
    assert abs(axes.moran[np.abs(axes.directions[:, 0]).argmax()]) < 0.15
    np.testing.assert_allclose(axes.directions @ axes.directions.T, np.eye(3), atol=1e-12)
    assert axes.variance.sum() == pytest.approx(1.0)


def test_spots_without_the_type_have_no_say() -> None:
    rng = np.random.default_rng(1)
    places, gamma = grid(12), rng.normal(size=(144, 4))
    weight = (places[:, 0] < 6).astype(float)
    absurd = gamma + 100.0 * (1 - weight)[:, None]
    one, other = (spatial_axes(values, weight, places) for values in (gamma, absurd))
    np.testing.assert_allclose(one.directions, other.directions, atol=1e-9)
    np.testing.assert_allclose(one.scores[weight > 0], other.scores[weight > 0], atol=1e-9)


def test_moran_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(2)
    places, gamma = rng.random((40, 2)), rng.normal(size=(40, 1))
    axes = spatial_axes(gamma, np.ones(40), places, n_neighbors=5)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    weight = np.zeros((40, 40))
    np.put_along_axis(weight, distance.argsort(1)[:, :5], 1.0, axis=1)
    z = gamma[:, 0] - gamma[:, 0].mean()
    expected = 40 / weight.sum() * (z @ weight @ z) / (z @ z)
    assert axes.moran[0] == pytest.approx(expected)


def test_no_variation() -> None:
    axes = spatial_axes(np.ones((9, 2)), np.ones(9), grid(3))
    assert np.isfinite(axes.moran).all()
    np.testing.assert_array_equal(axes.scores, 0.0)
