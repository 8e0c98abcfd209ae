"""Abundances: scipy on the dense problem, and mixtures whose shares are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls
from scipy.stats import poisson

from countvi.batch import CountBlock
from countvi.nn.mixture import least_squares_abundances, mixture_abundances, mixture_of_states


def test_same_as_scipy_on_weighted_rows() -> None:
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.3, 1.0, (5, 60))
    counts = rng.poisson(rng.gamma(0.5, 20.0, (30, 5)) @ profiles).astype(float)
    got = least_squares_abundances(CountBlock.from_dense(torch.from_numpy(counts)), torch.from_numpy(profiles))
    weight = 1 / np.sqrt(profiles.mean(0))
    expected = np.stack([nnls(profiles.T * weight[:, None], spot * weight)[0] for spot in counts])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-7, atol=1e-7)


def test_exact_mixtures_are_found_and_genes_of_no_type_are_ignored() -> None:
    rng = np.random.default_rng(1)
    profiles = rng.gamma(0.3, 1.0, (4, 50))
    profiles[:, 7] = 0.0
    truth = rng.gamma(1.0, 5.0, (10, 4)) * (rng.random((10, 4)) < 0.6)
    spots = truth @ profiles
    spots[:, 7] = 100.0
    got = least_squares_abundances(
        CountBlock.from_dense(torch.from_numpy(spots).float()), torch.from_numpy(profiles).float()
    )
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), truth, rtol=1e-4, atol=1e-4)


def _spots(seed: int, n_spots: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.4, 1.0, (4, 40))
    return rng.poisson(rng.gamma(0.4, 15.0, (n_spots, 4)) @ profiles).astype(float), profiles


def _deviance(v: np.ndarray, spot: np.ndarray, profiles: np.ndarray) -> float:
    rate = v @ profiles
    return float(-poisson.logpmf(spot, rate).sum())


def test_mixture_reaches_the_maximum_that_a_general_optimiser_finds() -> None:
    counts, profiles = _spots(2)
    block, tensor = CountBlock.from_dense(torch.from_numpy(counts)), torch.from_numpy(profiles)
    start = torch.ones(len(counts), 4, dtype=torch.float64)
    got = mixture_abundances(block, tensor, start, n_steps=1_500).numpy()
    for spot, v in zip(counts, got, strict=True):
        found = minimize(_deviance, np.ones(4), (spot, profiles), bounds=[(1e-9, None)] * 4, method="L-BFGS-B")
        assert _deviance(v, spot, profiles) <= found.fun + 1e-3
        assert v @ profiles.sum(1) == pytest.approx(spot.sum(), rel=1e-9)


def test_no_step_lowers_the_penalised_likelihood() -> None:
    counts, profiles = _spots(3)
    block, tensor = CountBlock.from_dense(torch.from_numpy(counts)), torch.from_numpy(profiles)
    v = torch.full((len(counts), 4), 5.0, dtype=torch.float64)
    last = np.full(len(counts), np.inf)
    for _ in range(40):
        v = mixture_abundances(block, tensor, v, sparsity=1.5, n_steps=1)
        alive = (v > 0).all(-1).numpy()  # where a type is gone, the penalty is not finite
        spots = zip(v.numpy(), counts, strict=True)
        value = np.array([_deviance(x, y, profiles) + 1.5 * np.log(np.maximum(x, 1e-300)).sum() for x, y in spots])
        assert (value[alive] <= last[alive] + 1e-9).all()
        last = value


def test_sparsity_removes_types_that_explain_less_than_it() -> None:
    profiles = np.eye(3) * 2.0
    counts = np.array([[10.0, 3.0, 0.0]])
    v = mixture_abundances(
        CountBlock.from_dense(torch.from_numpy(counts)), torch.from_numpy(profiles), torch.ones(1, 3), sparsity=4.0
    )
    np.testing.assert_allclose(v.numpy(), [[3.0, 0.0, 0.0]])


def _states(seed: int, n_types: int = 3, n_states: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.4, 1.0, (n_types, n_states, 40))
    weights = rng.dirichlet(np.full(n_states, 3.0), n_types)
    v = rng.gamma(0.6, 10.0, (8, n_types, n_states))
    return rng.poisson(np.einsum("sck,ckg->sg", v, profiles)).astype(float), profiles, weights


def _penalised(
    v: np.ndarray, spot: np.ndarray, profiles: np.ndarray, weights: np.ndarray, k: float, lam: float
) -> float:
    """Minus the penalised log-likelihood of one spot, of abundances ``(types, states)``, from its definition."""
    n = v * profiles.sum(-1)
    of_type = n.sum(-1)
    value = poisson.logpmf(spot, np.einsum("ck,ckg->g", v, profiles)).sum() - k * np.log(of_type).sum()
    return -float(value + lam * (weights * np.log(n / of_type[:, None])).sum())


def test_states_reach_the_maximum_that_a_general_optimiser_finds() -> None:
    counts, profiles, weights = _states(4)
    arguments = CountBlock.from_dense(torch.from_numpy(counts)), torch.from_numpy(profiles), torch.from_numpy(weights)
    start = torch.ones(len(counts), 3, 2, dtype=torch.float64)
    got = mixture_of_states(*arguments, start, concentration=5.0, n_steps=3_000).numpy()
    for spot, v in zip(counts, got, strict=True):
        found = minimize(
            lambda x, spot=spot: _penalised(np.exp(x).reshape(3, 2), spot, profiles, weights, 0.0, 5.0), np.zeros(6)
        )
        assert _penalised(v, spot, profiles, weights, 0.0, 5.0) <= found.fun + 1e-3


def test_no_step_on_states_lowers_the_penalised_likelihood() -> None:
    counts, profiles, weights = _states(5)
    arguments = CountBlock.from_dense(torch.from_numpy(counts)), torch.from_numpy(profiles), torch.from_numpy(weights)
    v = torch.full((len(counts), 3, 2), 5.0, dtype=torch.float64)
    last = np.full(len(counts), np.inf)
    n_compared = 0
    for _ in range(40):
        v = mixture_of_states(*arguments, v, sparsity=1.5, concentration=4.0, n_steps=1)
        alive = (v > 0).all((-2, -1)).numpy()
        value = np.full(len(counts), np.nan)
        for i in np.flatnonzero(alive):
            value[i] = _penalised(v[i].numpy(), counts[i], profiles, weights, 1.5, 4.0)
        assert (value[alive] <= last[alive] + 1e-9).all()
        n_compared += int(alive.sum())
        last = value
    assert n_compared > 100


def test_states_of_a_type_with_few_counts_stay_at_their_frequencies() -> None:
    profiles, weights = np.eye(2).reshape(1, 2, 2), np.array([[0.8, 0.2]])
    few, many = np.array([[0.0, 2.0]]), np.array([[0.0, 20_000.0]])
    for counts, expected in ((few, (10.0 * 0.8, 2.0 + 10.0 * 0.2)), (many, (8.0, 20_002.0))):
        v = mixture_of_states(
            CountBlock.from_dense(torch.from_numpy(counts)),
            torch.from_numpy(profiles),
            torch.from_numpy(weights),
            torch.ones(1, 1, 2, dtype=torch.float64),
            concentration=10.0,
            n_steps=200,
        ).numpy()[0, 0]
        np.testing.assert_allclose(v / v.sum(), np.array(expected) / sum(expected), rtol=1e-6)
