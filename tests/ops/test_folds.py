"""Log fold changes and what is said of them, against numpy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from countvi import ops

SHAPES = [(1, 1), (2, 3), (17, 5), (41, 129), (333, 300)]


def pairs(n: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws over many orders of magnitude, some of them zero, and pseudocounts."""
    rng = np.random.default_rng(n)
    first, second = (np.exp(rng.normal(-6.0, 4.0, (n, columns))).astype(np.float32) for _ in range(2))
    first[rng.random(first.shape) < 0.2] = 0.0
    second[rng.random(first.shape) < 0.2] = 0.0
    return first, second, np.exp(rng.uniform(-20.0, -2.0, columns)).astype(np.float32)


def expected(first: np.ndarray, second: np.ndarray, pseudocounts: np.ndarray) -> np.ndarray:
    a, b, c = (x.astype(np.float64) for x in (first, second, pseudocounts))
    return np.log2(a + c) - np.log2(b + c)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("backend", "dtype"), [("reference", torch.float64), ("reference", torch.float32), ("cpu", torch.float32)]
)
def test_changes_and_moments(shape, backend, dtype):
    first, second, c = pairs(*shape)
    with ops.backend(backend):
        found = ops.fold_changes(*(torch.from_numpy(x).to(dtype) for x in (first, second, c)), 0.25)
    true = expected(first, second, c)
    bound = 1e-12 if dtype == torch.float64 else 5e-7
    error = np.abs(found.effects.numpy().T - true) / np.maximum(np.abs(true), 1.0)
    assert error.max() < bound
    np.testing.assert_allclose(found.mean, true.mean(0), rtol=0, atol=40 * bound)
    np.testing.assert_allclose(found.deviation, true.std(0), rtol=0, atol=40 * bound)
    np.testing.assert_allclose(found.mean_first, first.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.mean_second, second.mean(0, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("delta", [0.0, 0.25, 3.0])
def test_shares_count_the_changes(backend, delta):
    first, second, c = pairs(101, 33)
    with ops.backend(backend):
        found = ops.fold_changes(*map(torch.from_numpy, (first, second, c)), delta)
    effects = found.effects.numpy()
    np.testing.assert_allclose(found.up, (effects >= np.float32(delta)).mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.down, (effects <= -np.float32(delta)).mean(1), rtol=1e-12)
    assert 0 < float(found.up.mean()) < 1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_columns_of_a_wider_matrix(backend):
    first, second, c = map(torch.from_numpy, pairs(20, 50))
    with ops.backend(backend):
        part = ops.fold_changes(first[:, 10:30], second[:, 10:30], c[10:30], 0.5)
        whole = ops.fold_changes(first, second, c, 0.5)
    torch.testing.assert_close(part.effects, whole.effects[10:30], rtol=0, atol=0)
    torch.testing.assert_close(part.mean_first, whole.mean_first[10:30])


def test_nothing_on_both_sides_is_no_change():
    zeros = torch.zeros(4, 3)
    for backend in ("reference", "cpu"):
        with ops.backend(backend):
            found = ops.fold_changes(zeros, zeros, torch.full((3,), 1e-10), 0.25)
        assert found.effects.abs().max() == 0
        assert found.up.tolist() == found.down.tolist() == [0.0] * 3
