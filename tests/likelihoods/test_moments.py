"""Means and variances: against sums over the probabilities, and against draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from countvi.batch import CountBlock
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.normal import Normal
from countvi.likelihoods.poisson import Poisson
from countvi.likelihoods.rate import Rate
from countvi.likelihoods.zero_inflated import ZeroInflatedNegativeBinomial
from countvi.ops import Link

MU = (0.05, 1.0, 9.0)
DRAWS = 40_000


def cells(mu: float, n: int = 1) -> Rate:
    """Cells of one gene with mean mu."""
    return Rate(torch.zeros(n, 1, dtype=torch.float64), torch.full((n,), mu, dtype=torch.float64).log(), Link.SOFTMAX)


def negative_binomial(rate: Rate, log_theta: float) -> CountLikelihood:
    return NegativeBinomial(rate, torch.tensor([log_theta], dtype=torch.float64))


def zero_inflated(rate: Rate, log_theta: float, pi_logit: float) -> CountLikelihood:
    pi_logits = torch.full(rate.logits.shape, pi_logit, dtype=torch.float64)
    return ZeroInflatedNegativeBinomial(rate, torch.tensor([log_theta], dtype=torch.float64), pi_logits)


SETTINGS = {
    "nb": lambda rate: negative_binomial(rate, 0.7),
    "nb, overdispersed": lambda rate: negative_binomial(rate, -1.0),
    "nb, nearly Poisson": lambda rate: negative_binomial(rate, 18.5),
    "zinb": lambda rate: zero_inflated(rate, 0.7, -0.5),
    "zinb, mostly dropout": lambda rate: zero_inflated(rate, -1.0, 2.0),
    "poisson": Poisson,
}
settings = pytest.mark.parametrize("setting", list(SETTINGS))


@settings
@pytest.mark.parametrize("mu", MU)
def test_moments_are_sums_over_the_probabilities(setting: str, mu: float) -> None:
    x = torch.arange(3000, dtype=torch.float64)
    p = SETTINGS[setting](cells(mu, 3000)).log_prob(CountBlock.from_dense(x[:, None])).exp()
    mean = (p * x).sum()
    variance = (p * (x - mean) ** 2).sum()
    one = SETTINGS[setting](cells(mu))
    torch.testing.assert_close(one.mean.squeeze(), mean, rtol=1e-8, atol=0)
    torch.testing.assert_close(one.variance.squeeze(), variance, rtol=1e-8, atol=0)


def test_normal_moments() -> None:
    likelihood = Normal(cells(3.0, 2), torch.tensor([-0.5], dtype=torch.float64))
    np.testing.assert_allclose(likelihood.mean, [[3.0], [3.0]], rtol=1e-14)
    np.testing.assert_allclose(likelihood.variance, [[np.exp(-1.0)]] * 2, rtol=1e-14)


def standard_errors(draws: Tensor, mean: float, variance: float) -> tuple[float, float]:
    """How far the sample's mean and variance are from the truth, in standard errors."""
    deviations = (draws.double() - mean) ** 2
    n = draws.numel()
    of_mean = (draws.double().mean() - mean) / (variance / n) ** 0.5
    of_variance = (deviations.mean() - variance) / (deviations.std() / n**0.5)
    return abs(of_mean.item()), abs(of_variance.item())


@settings
@pytest.mark.parametrize("mu", MU)
def test_draws_have_the_moments(setting: str, mu: float) -> None:
    likelihood = SETTINGS[setting](cells(mu))
    draws = likelihood.sample((DRAWS,), torch.Generator().manual_seed(1))
    errors = standard_errors(draws, likelihood.mean.item(), likelihood.variance.item())
    assert max(errors) < 4.5
    assert torch.equal(draws, draws.round())


def test_normal_draws() -> None:
    likelihood = Normal(cells(3.0), torch.tensor([0.4], dtype=torch.float64))
    draws = likelihood.sample((DRAWS,), torch.Generator().manual_seed(1)).flatten()
    assert stats.kstest(draws, stats.norm(3.0, np.exp(0.4)).cdf).pvalue > 1e-4


@pytest.mark.parametrize("setting", ["nb", "zinb", "poisson"])
def test_draws_have_the_distribution(setting: str) -> None:
    """Chi-square of the counts of 0, 1, 2, ... against log_prob."""
    draws = SETTINGS[setting](cells(2.0)).sample((DRAWS,), torch.Generator().manual_seed(2)).flatten()
    x = torch.arange(8, dtype=torch.float64)
    p = SETTINGS[setting](cells(2.0, 8)).log_prob(CountBlock.from_dense(x[:, None])).exp().numpy()
    observed = np.bincount(draws.long().clamp(max=8), minlength=9)
    expected = DRAWS * np.append(p, 1 - p.sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_genes_cells_and_draws_are_independent() -> None:
    """A parameter that is shared by broadcasting does not share its randomness."""
    rate = Rate(torch.zeros(2, 3, 2), torch.full((3,), 20.0).log(), Link.SOFTPLUS)
    for likelihood in (NegativeBinomial(rate, torch.zeros(2)), Poisson(rate), Normal(rate, torch.zeros(2))):
        draws = likelihood.sample((4000,), torch.Generator().manual_seed(3)).flatten(1)
        correlation = torch.corrcoef(draws.T) - torch.eye(12)
        assert correlation.abs().max() < 5 / 4000**0.5


@pytest.mark.parametrize("log_theta", [-9.2, 0.0, 18.4])
@pytest.mark.parametrize("mu", [0.0, 1e-30, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_draws_are_counts(log_theta: float, mu: float, dtype: torch.dtype) -> None:
    rate = Rate(torch.zeros(1, 1, dtype=dtype), torch.tensor([mu], dtype=dtype).log(), Link.SOFTMAX)
    generator = torch.Generator().manual_seed(4)
    theta = torch.tensor([log_theta], dtype=dtype)
    likelihoods = (
        NegativeBinomial(rate, theta),
        ZeroInflatedNegativeBinomial(rate, theta, torch.full((1, 1), -2.0, dtype=dtype)),
        Poisson(rate),
    )
    for likelihood in likelihoods:
        draws = likelihood.sample((500,), generator)
        assert draws.dtype == dtype
        assert draws.isfinite().all()
        assert (draws >= 0).all()
        if mu < 1:
            assert not draws.any()
    if mu > 1:  # Poisson, and the negative binomial with theta 1e8: a relative spread of 1e-4
        assert ((Poisson(rate).sample((500,), generator) / mu - 1).abs() < 1e-3).all()
        if log_theta > 18:
            assert ((NegativeBinomial(rate, theta).sample((500,), generator) / mu - 1).abs() < 1e-3).all()
