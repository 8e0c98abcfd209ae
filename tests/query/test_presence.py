"""Presence calls: what they say holds on spots made otherwise than those they were calibrated on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from countvi.query.presence import ReferenceCells, calibrated_presence, evidence_of_types, sums_of_cells


def reference(rng: np.random.Generator, n_cells: int = 400) -> tuple[ReferenceCells, np.ndarray]:
    profiles = rng.gamma(0.5, 1.0, (4, 80))
    profiles[3] = 0.7 * profiles[2] + 0.3 * profiles[3]  # two types that are alike
    profiles /= profiles.sum(1, keepdims=True)
    labels = rng.integers(4, size=n_cells)
    counts = rng.poisson(rng.gamma(2.0, 150.0 * profiles[labels] / 2.0))
    return ReferenceCells(sp.csr_array(counts.astype(np.float32)), labels, rng.integers(2, size=n_cells)), profiles


@pytest.mark.parametrize("seed", [0, 1])
def test_false_discoveries_are_as_many_as_is_said(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells, profiles = reference(rng)
    library = np.full(1_500, 1e9)
    spots, truth = sums_of_cells(cells, rng.dirichlet([0.4] * 4, 1_500), library, n_cells=6, seed=seed)
    drawn, known = sums_of_cells(cells, rng.dirichlet([0.4] * 4, 1_500), library, n_cells=6, seed=seed + 10)
    types = np.arange(4)
    _, observed = evidence_of_types(spots, profiles, types)
    _, simulated = evidence_of_types(drawn, profiles, types)
    found = calibrated_presence(observed, simulated, known > 0)
    for nominal in (0.02, 0.05, 0.2):
        called = found.fdr <= nominal
        assert called.sum() > 500
        assert (called & (truth == 0)).sum() / called.sum() < 1.3 * nominal
    np.testing.assert_allclose(found.probability.mean(0), (truth > 0).mean(0), atol=0.05)
    edges = [0.0, 0.1, 0.3, 0.7, 0.9, 1.0]
    for low, high in itertools.pairwise(edges):
        inside = (found.probability >= low) & (found.probability < high)
        said = found.probability[inside].mean()
        error = 0.02 + 3.0 * np.sqrt(said * (1.0 - said) / inside.sum())
        assert (truth > 0)[inside].mean() == pytest.approx(said, abs=error)


@pytest.mark.parametrize("frequency", [0.03, 0.6])
def test_a_type_may_be_less_or_more_frequent_than_in_the_simulation(frequency: float) -> None:
    rng = np.random.default_rng(5)
    truth, known = rng.random(20_000) < frequency, rng.random(20_000) < 0.3
    observed, simulated = (rng.normal(2.0 * present)[:, None] for present in (truth, known))
    found = calibrated_presence(observed, simulated, known[:, None])
    assert found.probability.mean() == pytest.approx(frequency, abs=0.02)
    # Bayes' rule for two normals.
    exact = 1.0 / (1.0 + (1.0 - frequency) / frequency * np.exp(2.0 - 2.0 * observed))
    assert np.abs(found.probability - exact).mean() < 0.02


def test_evidence_that_says_nothing_gives_the_frequency() -> None:
    rng = np.random.default_rng(2)
    found = calibrated_presence(rng.random((500, 1)), rng.random((20_000, 1)), rng.random((20_000, 1)) < 0.3)
    assert found.probability.std() < 0.15
    assert found.probability.mean() == pytest.approx(0.3, abs=0.1)


def test_sums_hold_what_they_are_made_of() -> None:
    rng = np.random.default_rng(3)
    cells = ReferenceCells(sp.csr_array(np.eye(6, dtype=np.float32) * 50), np.array([0, 0, 0, 1, 1, 1]), np.arange(6))
    shares = rng.dirichlet([1.0, 1.0], 2_000)
    factor = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
    spots, n_of_type = sums_of_cells(cells, shares, np.full(2_000, 1e9), n_cells=7, factor=factor)
    dense = spots.toarray()
    np.testing.assert_array_equal(n_of_type.sum(1), 7)
    np.testing.assert_allclose(n_of_type[:, 0].mean(), 7 * shares[:, 0].mean(), rtol=0.03)
    np.testing.assert_array_equal(dense[:, :3].sum(1), 50 * n_of_type[:, 0])
    np.testing.assert_allclose(dense[:, 3:].sum(), 25 * n_of_type[:, 1].sum(), rtol=0.02)
    assert ((dense[:, :3] > 0).sum(1) <= 1).all()  # one state for all cells of a type
    thinned, _ = sums_of_cells(cells, shares, np.full(2_000, 40.0), n_cells=7)
    assert thinned.sum(1).mean() == pytest.approx(40.0, rel=0.02)


def test_evidence_is_large_where_a_type_is_needed() -> None:
    rng = np.random.default_rng(4)
    _, profiles = reference(rng)
    pure = rng.poisson(500 * profiles[[0, 1]])
    abundance, ratio = evidence_of_types(sp.csr_array(pure.astype(np.float32)), profiles, np.arange(4))
    assert (ratio.argmax(1) == [0, 1]).all()
    assert (ratio.max(1) > 100).all()
    np.testing.assert_allclose(abundance.sum(1), pure.sum(1), rtol=1e-3)
