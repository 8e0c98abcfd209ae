"""Thresholds of proportions: they fall between two groups that are apart."""

from __future__ import annotations

import numpy as np

from countvi.query.thresholds import proportion_thresholds


def test_between_two_groups() -> None:
    rng = np.random.default_rng(0)
    low = np.exp(rng.normal(np.log(0.005), 0.3, (300, 2)))
    high = np.exp(rng.normal(np.log([0.2, 0.6]), 0.2, (60, 2)))
    found = proportion_thresholds(np.concatenate([low, high]))
    assert (found > low.max(0)).all()
    assert (found < high.min(0)).all()


def test_scale_does_not_matter_and_a_constant_is_its_own_threshold() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.uniform(0.01, 0.02, 50), rng.uniform(0.2, 0.4, 50)])[:, None]
    np.testing.assert_allclose(proportion_thresholds(values / 2), proportion_thresholds(values) / 2)
    np.testing.assert_allclose(proportion_thresholds(np.full((5, 1), 0.3)), 0.3)


def test_exact_zeros_are_below_the_cut() -> None:
    rng = np.random.default_rng(2)
    there = rng.uniform(0.1, 0.6, (80, 1))
    cut = proportion_thresholds(np.concatenate([there, np.zeros((50, 1))]))[0]
    assert 0 < cut < there.min()
    assert 0 < proportion_thresholds(np.zeros((5, 1)))[0] < 0.01
