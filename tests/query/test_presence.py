"""Presence calls: what they say holds on spots made otherwise than those they were learned from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from countvi import query
from countvi.query.effects import false_discovery_rate
from countvi.query.presence import ReferenceCells, abundances, profiles_of, sums_of_cells

N_GENES = 80


def frequencies(rng: np.random.Generator) -> np.ndarray:
    """Four types, two of which are alike."""
    profiles = rng.gamma(0.5, 1.0, (4, N_GENES))
    profiles[3] = 0.7 * profiles[2] + 0.3 * profiles[3]
    return profiles / profiles.sum(1, keepdims=True)


def cells_of(labels: np.ndarray, profiles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cells vary more than counts do, as real ones."""
    return rng.poisson(rng.gamma(2.0, 150.0 * profiles[labels] / 2.0))


def reference(profiles: np.ndarray, rng: np.random.Generator, n_cells: int = 400) -> ReferenceCells:
    labels = rng.integers(len(profiles), size=n_cells)
    counts = sp.csr_array(cells_of(labels, profiles, rng).astype(np.float32))
    return ReferenceCells(counts, labels, rng.integers(2, size=n_cells))


@pytest.mark.parametrize(
    ("concentration", "n_cells", "spread"),
    [
        ((0.4, 0.4, 0.4, 0.4), (2, 10), 0.0),
        ((2.0, 0.5, 0.3, 0.1), (2, 10), 0.0),  # rare and dominant types
        ((0.4, 0.4, 0.4, 0.4), (4, 8), 0.4),  # another assay
    ],
)
def test_false_discoveries_are_not_more_than_is_said(concentration, n_cells, spread) -> None:
    rng = np.random.default_rng(1)
    profiles = frequencies(rng)
    cells = reference(profiles, rng)
    n_spots = 1_500
    shares = rng.dirichlet(concentration, n_spots)
    truth = rng.multinomial(rng.integers(n_cells[0], n_cells[1] + 1, n_spots), shares)
    factor = np.exp(spread * rng.normal(size=N_GENES))
    # Other cells than those of the reference.
    spot = np.repeat(np.arange(n_spots), truth.sum(1))
    labels = np.concatenate([np.repeat(np.arange(4), row) for row in truth])
    counts = np.zeros((n_spots, N_GENES))
    np.add.at(counts, spot, rng.binomial(cells_of(labels, profiles, rng), factor / factor.max()))
    found = query.presence_of_types(sp.csr_array(counts.astype(np.float32)), cells, factor, cells_per_spot=6)
    for nominal in (0.05, 0.1, 0.2):
        called = found.fdr <= nominal
        false = (called & (truth == 0)).sum()
        # Three standard deviations of a count beyond what is said.
        assert false <= nominal * called.sum() + 3 * np.sqrt(nominal * called.sum())
    assert ((found.fdr <= 0.1) & (truth > 0)).sum() > 0.5 * (truth > 0).sum()
    if len(set(concentration)) > 1:
        return  # a probability is that of a type that is as frequent as others
    for low, high in itertools.pairwise([0.0, 0.2, 0.4, 0.6, 0.8, 1.01]):
        inside = (found.probability >= low) & (found.probability < high)
        assert (truth > 0)[inside].mean() == pytest.approx(found.probability[inside].mean(), abs=0.15)


def test_the_same_seed_gives_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    cells = reference(frequencies(rng), rng)
    spots, _ = sums_of_cells(cells, np.full(50, 800.0), factor=np.ones(N_GENES), cells_per_spot=4, rng=rng)
    first, again, other = (
        query.presence_of_types(spots, cells, np.ones(N_GENES), cells_per_spot=4, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.probability, again.probability)
    assert (first.probability != other.probability).any()


def test_scale_of_the_factor_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    cells = reference(frequencies(rng), rng)
    spots, _ = sums_of_cells(cells, np.full(50, 800.0), factor=np.ones(N_GENES), cells_per_spot=4, rng=rng)
    one, four = (
        query.presence_of_types(spots, cells, np.full(N_GENES, scale), cells_per_spot=4) for scale in (1.0, 4.0)
    )
    np.testing.assert_array_equal(one.probability, four.probability)


def test_types_of_few_cells_a_single_type_and_empty_spots() -> None:
    rng = np.random.default_rng(3)
    cells = reference(frequencies(rng), rng)
    few = cells.some((cells.labels != 1) | (np.cumsum(cells.labels == 1) == 1))
    spots, n_of_type = sums_of_cells(few, np.full(200, 900.0), factor=np.ones(N_GENES), cells_per_spot=3, rng=rng)
    spots = sp.csr_array(sp.vstack([spots, sp.csr_array((1, N_GENES), dtype=np.float32)]))
    found = query.presence_of_types(spots, few, np.ones(N_GENES), cells_per_spot=3)
    assert found.probability.shape == (201, 4)
    assert ((found.probability >= 0) & (found.probability <= 1)).all()
    has = found.probability[:-1][n_of_type > 0].mean()
    assert has > found.probability[:-1][n_of_type == 0].mean() + 0.4
    alone = cells.some(cells.labels == 0)
    found = query.presence_of_types(spots, alone, np.ones(N_GENES), cells_per_spot=3)
    np.testing.assert_array_equal(found.probability, np.ones((201, 1)))


def test_sums_hold_what_they_are_made_of() -> None:
    rng = np.random.default_rng(3)
    cells = ReferenceCells(sp.csr_array(np.eye(6, dtype=np.float32) * 50), np.array([0, 0, 0, 1, 1, 1]), np.arange(6))
    factor = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
    n = 2_000
    spots, n_of_type = sums_of_cells(cells, np.full(n, 300.0), factor=factor, cells_per_spot=7, rng=rng)
    dense = spots.toarray()
    assert n_of_type.sum(1).min() == 1
    assert n_of_type.sum(1).max() == 13
    assert n_of_type.sum(1).mean() == pytest.approx(7, rel=0.05)
    assert ((n_of_type > 0) == np.stack([dense[:, :3].any(1), dense[:, 3:].any(1)], 1)).all()
    assert dense.sum(1).mean() == pytest.approx(300, rel=0.01)
    expected = 300 * (n_of_type * [1.0, 0.5]) / (n_of_type @ [1.0, 0.5])[:, None]
    np.testing.assert_allclose(dense[:, :3].sum(1), expected[:, 0], atol=40)
    # One state for all cells of a type, in every second spot.
    n_states = (dense[:, :3] > 0).sum(1)
    assert (n_states[::2] <= 1).all()
    assert (n_states[1::2] > 1).mean() > 0.3
    # One cell each, the fewest there can be.
    _, single = sums_of_cells(cells, np.full(9, 40.0), factor=factor, cells_per_spot=1, rng=rng)
    np.testing.assert_array_equal(single.sum(1), 1)


def test_profiles_are_means_of_states() -> None:
    counts = sp.csr_array(np.array([[1, 3], [3, 1], [0, 4], [8, 0], [2, 0]], dtype=np.float32))
    profiles, types = profiles_of(ReferenceCells(counts, np.array([0, 0, 0, 1, 1]), np.array([0, 0, 3, 1, 1])))
    np.testing.assert_array_equal(types, [0, 0, 1])
    np.testing.assert_allclose(profiles, [[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])


def test_a_spot_of_one_type_has_all_of_it_in_both_fits() -> None:
    rng = np.random.default_rng(4)
    profiles = frequencies(rng)
    pure = rng.poisson(5_000 * profiles[[0, 1]])
    found = abundances(sp.csr_array(pure.astype(np.float32)), profiles, np.arange(4))
    assert found.shape == (2, 9)
    np.testing.assert_allclose(found[:, :4], np.eye(4)[:2], atol=0.05)
    np.testing.assert_allclose(found[:, 4:8], np.eye(4)[:2], atol=0.05)
    np.testing.assert_allclose(found[:, 8], np.log1p(pure.sum(1)), rtol=1e-6)


def test_false_discovery_rate_is_a_mean_over_the_calls() -> None:
    probability = np.array([0.5, 0.9, 0.8, 0.0])
    np.testing.assert_allclose(false_discovery_rate(probability), [0.8 / 3, 0.1, 0.15, 0.45])
