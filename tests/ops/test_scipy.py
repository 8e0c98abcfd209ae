"""The likelihood operations against scipy's distributions, and their sums over all counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.reference.cases import NB, NORMAL, POISSON, ZINB, Case, entrywise

X = np.array([0, 1, 2, 7, 30, 200])


def spread(*parameters: float) -> list[torch.Tensor]:
    return [torch.full(X.shape, p, dtype=torch.float64) for p in parameters]


@pytest.mark.parametrize("theta", [0.05, 1.0, 12.0, 500.0])
@pytest.mark.parametrize("mu", [0.01, 2.0, 60.0])
def test_negative_binomial(theta: float, mu: float) -> None:
    actual = entrywise(NB, torch.tensor(X).double(), *spread(np.log(mu), np.log(theta)))
    np.testing.assert_allclose(actual, stats.nbinom(theta, theta / (theta + mu)).logpmf(X), rtol=1e-9)


@pytest.mark.parametrize("pi", [0.01, 0.5, 0.97])
@pytest.mark.parametrize("mu", [0.01, 2.0, 60.0])
def test_zero_inflated(pi: float, mu: float) -> None:
    theta = 1.5
    actual = entrywise(ZINB, torch.tensor(X).double(), *spread(np.log(mu), np.log(theta), np.log(pi / (1 - pi))))
    nb = stats.nbinom(theta, theta / (theta + mu))
    expected = np.where(X == 0, np.log(pi + (1 - pi) * nb.pmf(0)), np.log1p(-pi) + nb.logpmf(X))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("mu", [0.01, 2.0, 60.0])
def test_poisson(mu: float) -> None:
    actual = entrywise(POISSON, torch.tensor(X).double(), *spread(np.log(mu)))
    np.testing.assert_allclose(actual, stats.poisson(mu).logpmf(X), rtol=1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0, 40.0])
def test_normal(scale: float) -> None:
    actual = entrywise(NORMAL, torch.tensor(X).double(), *spread(np.log(20.0), np.log(scale)))
    np.testing.assert_allclose(actual, stats.norm(20.0, scale).logpdf(X), rtol=1e-12)


@pytest.mark.parametrize(
    ("case", "extras"),
    [(NB, (0.4,)), (NB, (-2.0,)), (NB, (18.0,)), (ZINB, (0.4, -1.0)), (ZINB, (-2.0, 3.0)), (POISSON, ())],
    ids=str,
)
@pytest.mark.parametrize("log_mu", [-4.0, 0.0, 2.5])
def test_probabilities_sum_to_one(case: Case, extras: tuple[float, ...], log_mu: float) -> None:
    x = torch.arange(4000, dtype=torch.float64)
    log_p = entrywise(case, x, *(torch.full_like(x, p) for p in (log_mu, *extras)))
    assert abs(log_p.exp().sum().item() - 1) < 1e-9
