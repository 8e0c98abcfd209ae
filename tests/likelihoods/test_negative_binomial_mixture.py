"""The mixture of background and foreground beside scipy, and its moments beside draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import LogNormal

from countvi import seeding
from countvi.batch import CountBlock
from countvi.likelihoods.mixture_rate import MixtureRate
from countvi.likelihoods.negative_binomial_mixture import NegativeBinomialMixture

N_CELLS, N_PROTEINS = 5, 3


def rate(efficiency: bool = False, samples: tuple[int, ...] = ()) -> MixtureRate:
    source = seeding.generator(0)

    def normal(loc: float, scale: float, *shape: int) -> torch.Tensor:
        return loc + scale * torch.randn(*shape, N_CELLS, N_PROTEINS, generator=source, dtype=torch.float64)

    return MixtureRate(
        log_beta=normal(1.0, 0.4, *samples),
        loc=normal(1.0, 0.3, *samples),
        scale_of_log=normal(0.0, 0.3, *samples).exp(),
        log_alpha=normal(0.0, 1.0, *samples).abs(),
        pi_logits=normal(0.0, 2.0, *samples),
        log_efficiency=normal(0.0, 0.3) if efficiency else None,
    )


def log_phi() -> torch.Tensor:
    return torch.tensor([-0.5, 0.3, 1.5], dtype=torch.float64)


@pytest.mark.parametrize("efficiency", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_log_prob_is_that_of_scipy(efficiency, gaps):
    r, phi = rate(efficiency), log_phi().exp().numpy()
    y = torch.as_tensor(np.random.default_rng(0).poisson(6.0, (N_CELLS, N_PROTEINS)), dtype=torch.float64)
    y[0] = 0.0
    e = r.log_efficiency.exp().numpy() if r.log_efficiency is not None else 1.0
    low = e * r.log_beta.exp().numpy()
    high = low * r.log_alpha.exp().numpy()
    pi = 1 / (1 + np.exp(-r.pi_logits.numpy()))
    pmf = pi * stats.nbinom.pmf(y.numpy(), phi, phi / (phi + low))
    pmf += (1 - pi) * stats.nbinom.pmf(y.numpy(), phi, phi / (phi + high))
    measured = torch.rand(y.shape, generator=seeding.generator(1)) < 0.6 if gaps else None
    expected = np.log(pmf) if measured is None else np.where(measured.numpy(), np.log(pmf), 0.0)
    counts = CountBlock.from_dense(y if measured is None else y * measured)
    likelihood = NegativeBinomialMixture(r, log_phi(), measured)
    np.testing.assert_allclose(likelihood.log_prob(counts), expected.sum(1), rtol=1e-12)


def test_moments_are_those_of_draws():
    likelihood = NegativeBinomialMixture(rate(True), log_phi())
    draws = likelihood.sample((200_000,), generator=seeding.generator(3)).double()
    error = (likelihood.variance / len(draws)).sqrt()
    assert ((draws.mean(0) - likelihood.mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.var(0), likelihood.variance, rtol=0.06, atol=0.0)


def test_foreground_and_background_make_the_mean():
    r = rate(True)
    pi = r.pi_logits.sigmoid()
    torch.testing.assert_close(r.foreground + pi * r.log_background.exp(), r.mean)
    torch.testing.assert_close(r.foreground_probability + pi, torch.ones_like(pi))
    torch.testing.assert_close(r.scale, r.foreground / r.foreground.sum(-1, keepdim=True))


def test_expected_background_is_the_mean_of_a_log_normal():
    r = rate(True)
    expected = LogNormal(r.loc, r.scale_of_log).mean * r.log_efficiency.exp()
    torch.testing.assert_close(r.log_expected_background.exp(), expected)


def test_samples_lead():
    r = rate(True, (7,))
    likelihood = NegativeBinomialMixture(r, log_phi())
    counts = CountBlock.from_dense(torch.ones(N_CELLS, N_PROTEINS, dtype=torch.float64))
    assert likelihood.log_prob(counts).shape == (7, N_CELLS)
    assert likelihood.sample((2,), generator=seeding.generator(0)).shape == (2, 7, N_CELLS, N_PROTEINS)
    values = likelihood.parameters()
    assert {value.shape for value in values.values()} == {(7, N_CELLS, N_PROTEINS)}
    torch.testing.assert_close(values["background_probability"] + r.foreground_probability, torch.ones_like(r.loc))
