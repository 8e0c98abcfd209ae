"""Evidence against closed forms and quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from countvi.batch import RNA
from countvi.query import elbo, evaluation, marginal_log_likelihood, reconstruction
from countvi.query.draws import Stream, draw, generator


def grid_weights(axis):
    """Log of the trapezoid weights of a grid under a standard normal."""
    return stats.norm.logpdf(axis) + np.log(axis[1] - axis[0])


def quadrature(witness, model, x, batch, depth, points=4001):
    """Log p(x) of one cell by integrating over z (one or two dimensions) on a grid."""
    axis = np.linspace(-7.0, 7.0, points if model.n_latent == 1 else 281)
    axes = np.meshgrid(*[axis] * model.n_latent, indexing="ij")
    z = np.stack([a.ravel() for a in axes], -1)
    log_prior = sum(grid_weights(axis)[i.ravel()] for i in np.indices(axes[0].shape))
    mu = depth * witness.frequencies(model, z, np.full(len(z), batch))
    return logsumexp(log_prior + witness.log_nb(x, mu, witness.theta(model)).sum(-1))


def check(model, cells, truth, **options):
    """Compare the mean of independent estimates with the truth, by its own standard error."""
    estimates = np.array([marginal_log_likelihood(model, cells, n_samples=2000, seed=s, **options) for s in range(8)])
    error = estimates.std(0, ddof=1) / np.sqrt(8)
    # 1e-3 nats: float32 of the model, and the bias of a logarithm of a mean (half its variance).
    np.testing.assert_array_less(np.abs(estimates.mean(0) - truth), 4.5 * error + 1e-3)
    assert error.max() < 0.05


def test_elbo_is_likelihood_minus_divergence(tiny):
    model, cells = tiny.model(library="latent"), tiny.cells(tiny.source(20, 6))
    bound, errors = elbo(model, cells, seed=5), reconstruction(model, cells, seed=5)
    assert list(errors) == [RNA]
    assert bound.shape == errors[RNA].shape == (20,)
    assert np.all(errors[RNA] > 0), "the negative log-likelihood of counts is positive"
    batch = cells.source.batch(cells.rows)
    model.eval()
    with torch.no_grad():
        q, p = model.guide(batch), model.prior(batch.design)
        normals = [torch.distributions.Normal(g.loc, g.scale) for g in (*q, *p)]
    kl_z = torch.distributions.kl_divergence(normals[0], normals[2]).sum(-1)
    kl_library = torch.distributions.kl_divergence(normals[1], normals[3])
    np.testing.assert_allclose(-errors[RNA] - bound, (kl_z + kl_library).numpy(), rtol=1e-3, atol=1e-4)


def test_reconstruction_is_the_mean_negative_log_likelihood(tiny, witness):
    model, source = tiny.model(), tiny.source(3, 6)
    n = 1000
    cells = tiny.cells(source, 100, rows=np.repeat(np.arange(3), n))
    errors = reconstruction(model, cells)[RNA].reshape(3, n)
    loc, variance = witness.posterior(model, source)
    z = loc + np.sqrt(variance) * np.random.default_rng(0).standard_normal((n, *loc.shape))
    mu = source.x.sum(1, keepdims=True) * witness.frequencies(model, z, source.codes[:, 0])
    expected = -witness.log_nb(source.x, mu, witness.theta(model)).sum(-1)
    assert np.all(np.abs(errors.mean(1) - expected.mean(0)) < 4.5 * np.sqrt(2) * expected.std(0) / np.sqrt(n))


@pytest.mark.parametrize("logistic", [False, True])
def test_marginal_is_the_mean_weight_of_its_draws(tiny, witness, logistic):
    model, source = tiny.model(n_latent=3, library="latent", logistic=logistic), tiny.source(4, 6)
    n = 3
    with evaluation(model):
        latents = draw(model, model.guide(source.batch(np.arange(4))), generator(9, Stream.MARGINAL), n)
    z, log_library = latents.z.numpy().astype(float), latents.log_library.numpy().astype(float)
    batch = source.codes[:, 0]
    mu = np.exp(log_library)[..., None] * witness.frequencies(model, z, batch)
    log_weight = witness.log_nb(source.x, mu, witness.theta(model)).sum(-1)
    loc, variance = witness.posterior(model, source)
    log_weight += (stats.norm.logpdf(z) - stats.norm.logpdf(z, loc, np.sqrt(variance))).sum(-1)
    loc, variance = (a[:, 0] for a in witness.encode(model.library.encode, source.x))
    prior = model.library.loc.numpy()[batch], model.library.scale.numpy()[batch]
    log_weight += stats.norm.logpdf(log_library, *prior) - stats.norm.logpdf(log_library, loc, np.sqrt(variance))
    values = marginal_log_likelihood(model, tiny.cells(source, 100), n_samples=n, seed=9)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, logsumexp(log_weight, axis=0) - np.log(n), rtol=1e-5)


def test_marginal_by_quadrature(tiny, witness):
    model, source = tiny.model(4, 1), tiny.source(5, 4)
    truth = [
        quadrature(witness, model, source.x[i], source.codes[i, 0], source.x[i].sum()) for i in range(source.n_cells)
    ]
    cells = tiny.cells(source, 5000)
    check(model, cells, truth)
    assert np.all(
        elbo(model, tiny.cells(source, 500, rows=np.repeat(np.arange(5), 500))).reshape(5, -1).mean(1) < truth
    )


def test_marginal_of_a_logistic_normal_by_quadrature(tiny, witness):
    model, source = tiny.model(4, 2, logistic=True), tiny.source(3, 4)
    truth = [
        quadrature(witness, model, source.x[i], source.codes[i, 0], source.x[i].sum()) for i in range(source.n_cells)
    ]
    check(model, tiny.cells(source, 5000), truth)


def test_marginal_with_an_inferred_library_by_quadrature(tiny, witness):
    model, source = tiny.model(4, 1, library="latent"), tiny.source(3, 4)
    axis = np.linspace(-7.0, 7.0, 141)
    truth = []
    for x, batch in zip(source.x, source.codes[:, 0], strict=True):
        m, s = model.library.loc[batch].item(), model.library.scale[batch].item()
        over_z = [quadrature(witness, model, x, batch, np.exp(m + s * u), 801) for u in axis]
        truth.append(logsumexp(grid_weights(axis) + np.array(over_z)))
    check(model, tiny.cells(source, 5000), truth)


@pytest.mark.parametrize("library", ["observed", "given", "latent"])
def test_marginal_does_not_depend_on_passes_or_chunks(tiny, library):
    model, source = tiny.model(library=library), tiny.source(1, 6, size_factor=library == "given")
    values = [
        marginal_log_likelihood(model, tiny.cells(source, chunk), n_samples=50, samples_per_pass=n)
        for chunk, n in ((64, 50), (64, 7), (64, 1), (64, 1000), (13, None), (1, None))
    ]
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=1e-6)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_empty_cells_are_finite(tiny, likelihood):
    source = tiny.source(4, 3)
    source.x[1] = 0.0
    model = tiny.model(3, likelihood=likelihood)
    cells = tiny.cells(source)
    assert np.isfinite(elbo(model, cells)).all()
    assert np.isfinite(reconstruction(model, cells)[RNA]).all()
    assert np.isfinite(marginal_log_likelihood(model, cells, n_samples=5)).all()
    none = tiny.cells(source, rows=np.array([], int))
    assert elbo(model, none).shape == (0,)
    assert marginal_log_likelihood(model, none, n_samples=5).shape == (0,)


def test_same_seed_same_numbers(tiny):
    model, cells = tiny.model(), tiny.cells(tiny.source(20, 6))
    np.testing.assert_array_equal(elbo(model, cells, seed=1), elbo(model, cells, seed=1))
    assert not np.array_equal(elbo(model, cells, seed=1), elbo(model, cells, seed=2))
