"""Gaussians against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import distributions

from countvi import seeding
from countvi.nn.latent import Gaussian, Given, side_by_side


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


@pytest.mark.parametrize("event_dims", [0, 1])
def test_where(event_dims):
    q, p = gaussian(1, event_dims), gaussian(2, event_dims)
    mask = torch.tensor([True, False, True, True, False, False, True])
    mixed = q.where(mask, p)
    assert mixed.event_dims == event_dims and q.where(None, p) is q
    torch.testing.assert_close(mixed.kl(p), torch.where(mask, q.kl(p), 0.0))
    for i in range(7):
        source = q if mask[i] else p
        assert torch.equal(mixed.loc[i], source.loc[i]) and torch.equal(mixed.scale[i], source.scale[i])


def test_standard():
    p = Gaussian.standard(7, 3, like=torch.zeros(1, dtype=torch.float64))
    value = torch.randn(7, 3, dtype=torch.float64, generator=seeding.generator(0))
    expected = distributions.Independent(distributions.Normal(torch.zeros(7, 3).double(), 1.0), 1).log_prob(value)
    torch.testing.assert_close(p.log_prob(value), expected)


def test_side_by_side_is_the_joint_distribution():
    vector, number = gaussian(1, 1), gaussian(2, 0)
    q = side_by_side([vector, number])
    p = side_by_side([gaussian(3, 1), gaussian(4, 0)])
    assert q.loc.shape == (7, 4)
    torch.testing.assert_close(q.kl(p), vector.kl(gaussian(3, 1)) + number.kl(gaussian(4, 0)))
    torch.testing.assert_close(side_by_side([number]).loc[:, 0], number.loc)
