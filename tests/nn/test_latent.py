"""Gaussians against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import distributions

from countvi import seeding
from countvi.nn.latent import Gaussian, Given


def gaussian(seed: int, event_dims: int) -> Gaussian:
    shape = (7, 3) if event_dims else (7,)
    g = seeding.generator(seed)
    loc = torch.randn(shape, dtype=torch.float64, generator=g)
    return Gaussian(loc, torch.randn(shape, dtype=torch.float64, generator=g).exp(), event_dims)


def peer(g: Gaussian) -> distributions.Distribution:
    return distributions.Independent(distributions.Normal(g.loc, g.scale), g.event_dims)


@pytest.mark.parametrize("event_dims", [0, 1])
def test_kl(event_dims):
    q, p = gaussian(1, event_dims), gaussian(2, event_dims)
    assert q.kl(p).shape == (7,)
    torch.testing.assert_close(q.kl(p), distributions.kl_divergence(peer(q), peer(p)))
    torch.testing.assert_close(q.kl(q), torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize("n_samples", [None, 5])
@pytest.mark.parametrize("event_dims", [0, 1])
def test_log_prob_of_its_draws(event_dims, n_samples):
    g = gaussian(1, event_dims)
    value = g.rsample(seeding.generator(3), n_samples)
    lead = () if n_samples is None else (n_samples,)
    assert value.shape == (*lead, *g.loc.shape) and value.dtype == torch.float64
    assert g.log_prob(value).shape == (*lead, 7)
    torch.testing.assert_close(g.log_prob(value), peer(g).log_prob(value))


def test_draws_have_the_moments():
    g = gaussian(1, 1)
    standard = (g.rsample(seeding.generator(4), 20_000) - g.loc) / g.scale
    assert standard.mean(0).abs().max() < 5 / 20_000**0.5
    assert (standard.var(0) - 1).abs().max() < 5 * (2 / 20_000) ** 0.5


def test_draws_are_a_function_of_the_generator_and_leave_the_default_stream():
    g, before = gaussian(1, 1), torch.get_rng_state()
    assert torch.equal(g.rsample(seeding.generator(4)), g.rsample(seeding.generator(4)))
    assert not torch.equal(g.rsample(seeding.generator(4)), g.rsample(seeding.generator(5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_have_gradients():
    loc = torch.zeros(4, 2, requires_grad=True)
    scale = torch.ones(4, 2, requires_grad=True)
    value = Gaussian(loc, scale).rsample(seeding.generator(0))
    value.sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones(4, 2))
    torch.testing.assert_close(scale.grad, value.detach())


def test_given_is_its_value_and_costs_nothing():
    value = torch.tensor([1.0, -torch.inf])
    given = Given(value)
    assert torch.equal(given.rsample(None, 3), value)
    assert torch.equal(given.log_prob(value), torch.zeros(2))
