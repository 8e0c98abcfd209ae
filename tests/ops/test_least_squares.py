"""Non-negative least squares against scipy, and by the conditions that hold at the minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from countvi import ops


def solved(design: np.ndarray, targets: np.ndarray) -> np.ndarray:
    gram, cross = torch.from_numpy(design.T @ design), torch.from_numpy(targets @ design)
    return ops.non_negative_least_squares(gram, cross).numpy()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
@settings(max_examples=40, deadline=None)
def test_same_as_scipy(seed: int, n_columns: int, alike: bool) -> None:
    rng = np.random.default_rng(seed)
    # Alike: columns that are nearly the same, as profiles of related types are.
    design = rng.gamma(0.5, 1.0, (40, n_columns)) + (5.0 * rng.gamma(0.5, 1.0, (40, 1)) if alike else 0.0)
    design *= rng.lognormal(0, 3, n_columns)
    targets = rng.normal(size=(15, 40)) + rng.gamma(0.3, 1.0, (15, n_columns)) @ design.T
    expected = np.stack([nnls(design, target)[0] for target in targets])
    unit = np.linalg.norm(design, axis=0)
    np.testing.assert_allclose(
        solved(design, targets) * unit, expected * unit, rtol=1e-6, atol=1e-7 * np.abs(targets).max()
    )


def test_conditions_at_the_minimum_where_pivots_cycle_easily() -> None:
    rng = np.random.default_rng(0)
    design = rng.normal(size=(20, 18)) + 2.0
    targets = rng.normal(size=(2_000, 20)) * 10
    x = solved(design, targets)
    slope = (x @ design.T - targets) @ design / np.linalg.norm(design, axis=0)
    scale = np.abs(targets @ design).max()
    assert (x >= 0).all()
    assert slope.min() > -1e-9 * scale
    assert np.abs(slope[x > 0]).max() < 1e-9 * scale


def test_columns_of_zeros_and_copies() -> None:
    design = np.array([[1.0, 0.0, 1.0], [2.0, 0.0, 2.0]])
    x = solved(design, np.array([[1.0, 2.0], [-1.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(x.sum(-1), [1.0, 0.0, 0.0], atol=1e-9)
    assert (x[:, 1] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (4, 1)])
def test_shapes(shape: tuple[int, int]) -> None:
    gram, cross = torch.eye(shape[1]), torch.ones(shape)
    out = ops.non_negative_least_squares(gram, cross)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.ones(shape))
