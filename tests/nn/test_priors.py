"""Densities and divergences against SciPy, integrals and draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats

from countvi.nn.priors import DispersionPrior, GammaPrior


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("shape", "rate"), [(1.0, 100.0), (200.0, 200.0), (0.5, 3.0)])
def test_gamma_density_of_a_logarithm(shape, rate):
    prior = GammaPrior(shape, rate)
    x = np.array([0.003, 0.02, 0.9, 1.1])
    expected = stats.gamma(shape, scale=1 / rate).logpdf(x) + np.log(x)
    np.testing.assert_allclose(prior.log_density_of_log(torch.as_tensor(x).log()), expected, rtol=1e-10)
    total, _ = integrate.quad(lambda t: float(prior.log_density_of_log(vector(t)).exp()), -60, 10, limit=300)
    assert abs(total - 1) < 1e-7


def test_the_most_probable_logarithm_is_that_of_the_mean():
    """Without the Jacobian, a Gamma(1, 100) rate would be most probable at zero."""
    for prior in (GammaPrior(1.0, 100.0), GammaPrior(200.0, 200.0), GammaPrior(1.0, 100.0).divided(3)):
        at = vector(math.log(prior.shape / prior.rate)).requires_grad_()
        (slope,) = torch.autograd.grad(prior.log_density_of_log(at).sum(), at)
        assert abs(slope.item()) < 1e-12


def test_the_parts_of_a_divided_prior_add_up_to_it():
    whole, rng = GammaPrior(1.0, 100.0), np.random.default_rng(0)
    part = whole.divided(3)
    draws = rng.gamma(part.shape, 1 / part.rate, (20_000, 3)).sum(1)
    assert stats.kstest(draws, stats.gamma(whole.shape, scale=1 / whole.rate).cdf).pvalue > 1e-3


LOC, LOG_SCALE = [2.0, -0.5, 3.0], [-1.0, 0.3, 0.5]


def expected_log_prior(loc: float, scale: float, rate: float) -> float:
    """E log p(log theta | rate) under the posterior, by quadrature."""

    def integrand(phi: float) -> float:
        u = math.exp(-phi / 2)
        log_density = math.log(rate) - rate * u + math.log(u / 2)  # |du / d log theta| = u / 2
        return math.exp(-0.5 * ((phi - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi)) * log_density

    return integrate.quad(integrand, loc - 12 * scale, loc + 12 * scale, limit=300)[0]


def test_elbo_with_the_rate_integrated_out():
    """Against quadrature over theta and over the posterior of the rate that the formula claims to be the best."""
    prior = DispersionPrior()
    actual = prior.elbo(vector(*LOC)[None], vector(*LOG_SCALE)[None])
    scales = np.exp(LOG_SCALE)
    u = sum(math.exp(-m / 2 + s * s / 8) for m, s in zip(LOC, scales, strict=True))
    # E log p(log theta | rate) = log rate - rate E u + what does not depend on the rate.
    at_one = sum(expected_log_prior(m, s, 1.0) for m, s in zip(LOC, scales, strict=True)) + u
    entropy = stats.norm(LOC, scales).entropy().sum()

    def bound(shape: float, rate: float) -> float:
        """E_q(rate) of everything, for a Gamma posterior of the rate."""
        mean, mean_log = shape / rate, special.digamma(shape) - math.log(rate)
        theta = len(LOC) * mean_log - mean * u + at_one
        hyper = 9 * math.log(3) - math.lgamma(9) + 8 * mean_log - 3 * mean
        return theta + hyper + stats.gamma(shape, scale=1 / rate).entropy() + entropy

    best = optimize.minimize(lambda p: -bound(*np.exp(p)), np.log([9.0, 3.0]), method="Nelder-Mead", tol=1e-12)
    assert abs(-best.fun - actual.item()) < 1e-6
    np.testing.assert_allclose(np.exp(best.x), [9 + len(LOC), 3 + u], rtol=1e-3)
    assert abs(prior.rate_mean(vector(*LOC)[None], vector(*LOG_SCALE)[None]).item() - (9 + len(LOC)) / (3 + u)) < 1e-12


def test_elbo_against_draws():
    """The expected log of joint over posterior, by Monte Carlo over theta and rate."""
    prior, rng, n = DispersionPrior(), np.random.default_rng(0), 200_000
    scales = np.exp(LOG_SCALE)
    phi = rng.normal(LOC, scales, (n, 3))
    u_mean = np.exp(-np.array(LOC) / 2 + scales**2 / 8).sum()
    rate = rng.gamma(9 + 3, 1 / (3 + u_mean), n)
    u = np.exp(-phi / 2)
    joint = (np.log(rate)[:, None] - rate[:, None] * u + np.log(u / 2)).sum(1) + stats.gamma(9, scale=1 / 3).logpdf(
        rate
    )
    posterior = stats.norm(LOC, scales).logpdf(phi).sum(1) + stats.gamma(12, scale=1 / (3 + u_mean)).logpdf(rate)
    terms = joint - posterior
    actual = prior.elbo(vector(*LOC)[None], vector(*LOG_SCALE)[None]).item()
    assert abs(terms.mean() - actual) < 5 * terms.std() / n**0.5


def test_groups_have_rates_of_their_own():
    loc, log_scale = vector(*LOC, 0.0, 1.0, 5.0).view(2, 3), vector(*LOG_SCALE, 0.0, -2.0, 0.1).view(2, 3)
    prior = DispersionPrior(4.0, 2.0)
    one_by_one = sum(prior.elbo(loc[i : i + 1], log_scale[i : i + 1]) for i in range(2))
    torch.testing.assert_close(prior.elbo(loc, log_scale), one_by_one)


def test_many_genes_in_float32():
    g = torch.Generator().manual_seed(0)
    loc, log_scale = torch.randn(1, 30_000, generator=g) + 2, 0.3 * torch.randn(1, 30_000, generator=g) - 1
    single, double = (DispersionPrior().elbo(loc.to(t), log_scale.to(t)) for t in (torch.float32, torch.float64))
    assert abs(single.item() - double.item()) < 0.02


@pytest.mark.parametrize("n_genes", [1, 50])
def test_without_data_the_maximum_is_the_analytic_one(n_genes):
    """The scale is 2, E rate = 3, E u = 1 / 3, exp(mu) = 9 e; a missing Jacobian would let theta grow without end."""
    loc = torch.full((2, n_genes), math.log(9.0), dtype=torch.float64, requires_grad=True)
    log_scale = torch.full((2, n_genes), math.log(0.1), dtype=torch.float64, requires_grad=True)
    prior = DispersionPrior()
    optimizer = torch.optim.LBFGS(
        [loc, log_scale], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -prior.elbo(loc, log_scale)
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(log_scale.detach().exp(), 2.0, rtol=1e-4)
    np.testing.assert_allclose(loc.detach().exp(), 9 * math.e, rtol=1e-4)
    np.testing.assert_allclose(prior.rate_mean(loc, log_scale).detach(), 3.0, rtol=1e-4)
