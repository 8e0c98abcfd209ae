"""Negative binomials by rate and shape, against scipy and against sums."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from countvi.batch import CountBlock
from countvi.likelihoods.mixed_rate import MixedRate
from countvi.likelihoods.rate import ShapeRate
from countvi.likelihoods.rate_shape import RateShapeNegativeBinomial

N_CELLS, N_GENES, N_TYPES, N_HIDDEN = 5, 4, 3, 2


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(random: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def shape_rate(random: torch.Generator) -> ShapeRate:
    log_library = normal(random, N_CELLS) + 3.0
    return ShapeRate(normal(random, N_CELLS, N_GENES), log_library, normal(random, N_GENES))


def mixed_rate(random: torch.Generator, *samples: int) -> MixedRate:
    return MixedRate(
        hidden=normal(random, *samples, N_CELLS, N_TYPES, N_HIDDEN),
        weight=normal(random, N_GENES, N_HIDDEN),
        bias=normal(random, N_GENES),
        log_alpha=0.3 * normal(random, N_GENES),
        abundance=normal(random, *samples, N_CELLS, N_TYPES + 1).exp(),
        noise=normal(random, N_GENES).exp(),
        log_library=normal(random, N_CELLS) + 2.0,
        p_logits=normal(random, N_GENES),
    )


def test_log_prob_is_that_of_scipy(random):
    rate = shape_rate(random)
    counts = torch.poisson(rate.mean, generator=random)
    shape = np.exp(rate.log_library.numpy())[:, None] * np.logaddexp(0.0, rate.logits.numpy())
    # scipy counts failures before n successes, and its p is that of a success: our 1 - p.
    fail = scipy.special.expit(-rate.p_logits.numpy())
    expected = scipy.stats.nbinom.logpmf(counts.numpy(), shape, fail).sum(1)
    found = RateShapeNegativeBinomial(rate).log_prob(CountBlock.from_dense(counts))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_moments_are_those_of_scipy(random):
    rate = shape_rate(random)
    likelihood = RateShapeNegativeBinomial(rate)
    law = scipy.stats.nbinom(likelihood.theta.numpy(), scipy.special.expit(-rate.p_logits.numpy()))
    np.testing.assert_allclose(likelihood.mean.numpy(), law.mean(), rtol=1e-10)
    np.testing.assert_allclose(likelihood.variance.numpy(), law.var(), rtol=1e-10)
    np.testing.assert_allclose(rate.scale.sum(-1).numpy(), 1.0)
    np.testing.assert_allclose(rate.scale.numpy(), (likelihood.mean / likelihood.mean.sum(-1, keepdim=True)).numpy())


def test_draws_have_these_moments(random):
    likelihood = RateShapeNegativeBinomial(shape_rate(random))
    draws = likelihood.sample((20_000,), generator=random)
    error = (likelihood.variance / 20_000).sqrt()
    assert ((draws.mean(0) - likelihood.mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.var(0), likelihood.variance, rtol=0.2, atol=0.0)


def test_an_empty_cell_has_no_counts(random):
    rate = shape_rate(random)
    empty = ShapeRate(rate.logits, torch.full((N_CELLS,), -torch.inf, dtype=torch.float64), rate.p_logits)
    likelihood = RateShapeNegativeBinomial(empty)
    assert (likelihood.sample(generator=random) == 0).all()
    zeros = CountBlock.from_dense(torch.zeros(N_CELLS, N_GENES, dtype=torch.float64))
    assert (likelihood.log_prob(zeros) == 0).all()


def test_a_mixture_adds_shapes_up(random):
    """By hand, with every spot x type x gene in memory."""
    rate = mixed_rate(random)
    f = np.logaddexp(0.0, np.einsum("scd,gd->scg", rate.hidden, rate.weight) + rate.bias.numpy())
    total = np.exp(rate.log_alpha.numpy()) * np.einsum("sc,scg->sg", rate.abundance[:, :-1], f)
    total = total + rate.abundance.numpy()[:, -1:] * rate.noise.numpy()
    shape = np.exp(rate.log_library.numpy())[:, None] * total
    likelihood = RateShapeNegativeBinomial(rate)
    np.testing.assert_allclose(likelihood.theta.numpy(), shape, rtol=1e-10)
    counts = torch.poisson(likelihood.mean, generator=random)
    fail = scipy.special.expit(-rate.p_logits.numpy())
    expected = scipy.stats.nbinom.logpmf(counts.numpy(), shape, fail).sum(1)
    np.testing.assert_allclose(likelihood.log_prob(CountBlock.from_dense(counts)).numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(
        rate.scale.numpy(), (shape * np.exp(rate.p_logits.numpy())) / likelihood.mean.sum(-1, keepdim=True).numpy()
    )


def test_sums_of_cells_are_a_mixture(random):
    """A spot of two cells has the distribution of the sum of their counts, which a convolution gives."""
    first, second, p = 0.7, 2.4, 0.35
    logits = torch.logit(torch.tensor([p], dtype=torch.float64))
    inverse = [float(np.log(np.expm1(value))) for value in (first, second)]
    rate = MixedRate(
        hidden=torch.tensor([[[inverse[0]], [inverse[1]]]], dtype=torch.float64),
        weight=torch.ones(1, 1, dtype=torch.float64),
        bias=torch.zeros(1, dtype=torch.float64),
        log_alpha=torch.zeros(1, dtype=torch.float64),
        abundance=torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64),
        noise=torch.ones(1, dtype=torch.float64),
        log_library=torch.zeros(1, dtype=torch.float64),
        p_logits=logits,
    )
    likelihood = RateShapeNegativeBinomial(rate)
    support = np.arange(12)
    parts = [scipy.stats.nbinom.pmf(support, shape, 1 - p) for shape in (first, second)]
    expected = np.convolve(*parts)[:12]
    found = [
        likelihood.log_prob(CountBlock.from_dense(torch.tensor([[float(x)]], dtype=torch.float64))) for x in support
    ]
    np.testing.assert_allclose(torch.cat(found).exp().numpy(), expected, rtol=1e-9)
