"""Starting values: expected counts equal observed ones, for any number of covariates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from countvi.batch import Factor
from countvi.nn.initial_values import start_from_counts
from countvi.nn.technical import Background

N, G = 300, 6


def problem(n_keys: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[Factor]]:
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(1.0, 5.0, G) * rng.lognormal(0, 0.5, (N, 1)))
    sizes = [3, 2, 4][:n_keys]
    codes = np.stack([rng.integers(0, n, N) for n in sizes], axis=1) if sizes else np.zeros((N, 0), dtype=int)
    return x, codes, [Factor(i, n) for i, n in enumerate(sizes)]


def sums(x: np.ndarray, codes: np.ndarray, factors: list[Factor]) -> list[torch.Tensor]:
    return [
        torch.as_tensor(np.stack([x[codes[:, f.column] == level].sum(0) for level in range(f.n_levels)]))
        for f in factors
    ]


@pytest.mark.parametrize("n_keys", [0, 1, 2, 3])
@pytest.mark.parametrize("log_unit", [1.0, 4.0])
def test_expected_counts_are_observed_ones(n_keys, log_unit):
    x, codes, factors = problem(n_keys)
    rho = nn.Linear(4, G).double()
    background = Background(factors, G).double() if factors else None
    tables = sums(x, codes, factors) or [torch.as_tensor(x.sum(0, keepdims=True))]
    start_from_counts(rho, background, tables, torch.tensor(log_unit))
    mean = np.log1p(np.exp(rho.bias.detach().numpy()))[None]
    own = mean.copy()
    if background is not None:
        for levels, factor in zip(background.per_level(), factors, strict=True):
            mean = mean + levels.detach().numpy()[codes[:, factor.column]]
    expected = (x.sum(1, keepdims=True) / np.exp(log_unit) * mean).sum(0)
    np.testing.assert_allclose(expected, x.sum(0), rtol=1e-9 if n_keys == 0 else 0.01)
    # A fifth of it is background.
    own_counts = (x.sum(1, keepdims=True) / np.exp(log_unit) * own).sum(0)
    np.testing.assert_allclose(own_counts, x.sum(0) * (1.0 if n_keys == 0 else 0.8), rtol=1e-6)


def test_the_background_follows_the_profile_of_its_level():
    x, codes, factors = problem(1)
    x[codes[:, 0] == 1, 2] *= 30
    background = Background(factors, G).double()
    start_from_counts(nn.Linear(4, G), background, sums(x, codes, factors), torch.tensor(3.0), share=0.3)
    profile = background.per_level()[0].detach().numpy()
    for level in range(3):
        own = x[codes[:, 0] == level].sum(0)
        np.testing.assert_allclose(profile[level], 0.3 * np.exp(3.0) * own / own.sum(), rtol=0.02, atol=0.01)


def test_what_was_never_seen_is_possible_and_finite():
    """A gene without counts, a level without cells, a modality without any count at all."""
    for tables in ([[5.0, 0.0, 3.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]):
        rho, background = nn.Linear(4, 3), Background([Factor(0, 2)], 3)
        start_from_counts(rho, background, [torch.tensor(tables)], torch.tensor(2.0))
        assert torch.isfinite(rho.bias).all() and torch.isfinite(background.beta).all()


def test_large_means_do_not_overflow():
    rho = nn.Linear(4, 2)
    start_from_counts(rho, None, [torch.tensor([[1e6, 1.0]])], torch.tensor(12.0))
    np.testing.assert_allclose(rho.bias.detach()[0], np.exp(12.0), rtol=1e-5)
    assert rho.weight.abs().max() < 0.1 * 0.5 + 1e-6
