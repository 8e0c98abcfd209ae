"""Point estimates, mixtures of normals, and divergences between what is not Gaussian."""

from __future__ import annotations

import torch
from torch import distributions

from countvi import seeding
from countvi.nn.latent import Flat, Gaussian, MixtureOfGaussians, Point, divergence


def mixture(n_vectors: int = 1, power: float = 1.0) -> MixtureOfGaussians:
    random = torch.Generator().manual_seed(0)
    loc = torch.randn(3, 4, 2, generator=random, dtype=torch.float64)
    scale = torch.rand(3, 4, 2, generator=random, dtype=torch.float64) + 0.2
    weights = torch.rand(3, 4, generator=random, dtype=torch.float64)
    weights[1, 2:] = 0.0
    return MixtureOfGaussians(loc, scale, (weights / weights.sum(-1, keepdim=True)).log(), n_vectors, power)


def of_torch(m: MixtureOfGaussians) -> distributions.MixtureSameFamily:
    parts = distributions.Independent(distributions.Normal(m.loc, m.scale), 1)
    return distributions.MixtureSameFamily(distributions.Categorical(m.log_weights.exp()), parts)


def test_density_of_a_mixture():
    value = torch.randn(5, 3, 2, generator=seeding.generator(1), dtype=torch.float64)
    expected = of_torch(mixture()).log_prob(value)
    torch.testing.assert_close(mixture().log_prob(value), expected.sum(-1))
    torch.testing.assert_close(mixture(power=0.5).log_prob(value), 0.5 * expected.sum(-1))
    torch.testing.assert_close(mixture(n_vectors=0).log_prob(value[:3, 0]), of_torch(mixture()).log_prob(value[:3, 0]))


def test_gradient_where_components_are_unused():
    value = torch.zeros(5, 3, 2, dtype=torch.float64, requires_grad=True)
    mixture().log_prob(value).sum().backward()
    assert torch.isfinite(value.grad).all() and value.grad.abs().max() > 0


def test_draws_of_a_mixture():
    draws = mixture().rsample(seeding.generator(2), 20_000)
    m = mixture()
    mean = (m.log_weights.exp().unsqueeze(-1) * m.loc).sum(-2)
    second = (m.log_weights.exp().unsqueeze(-1) * (m.loc.square() + m.scale.square())).sum(-2)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0.0, atol=0.05)
    torch.testing.assert_close(draws.square().mean(0), second, rtol=0.05, atol=0.02)


def test_the_divergence_of_a_point_is_minus_the_log_density():
    point = Point(torch.randn(5, 3, 2, generator=seeding.generator(3), dtype=torch.float64))
    value = point.rsample()
    torch.testing.assert_close(divergence(point, mixture(), value), -of_torch(mixture()).log_prob(value).sum(-1))
    assert (divergence(point, Flat(), value) == 0).all()
    assert point.rsample(n_samples=4).shape == (4, 5, 3, 2)


def test_a_mixture_of_one_has_the_divergence_of_a_gaussian():
    """On average over draws."""
    q = Gaussian(torch.tensor([[0.3, -0.2]]).double(), torch.tensor([[0.5, 0.8]]).double())
    p = Gaussian(torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    one = MixtureOfGaussians(torch.zeros(1, 1, 2).double(), torch.ones(1, 1, 2).double(), torch.zeros(1, 1).double())
    draws = q.rsample(seeding.generator(4), 20_000)
    estimate = torch.stack([divergence(q, one, value) for value in draws[:2000]]).mean(0)
    torch.testing.assert_close(estimate, q.kl(p), rtol=0.0, atol=0.05)
