"""Predictive draws, likelihood parameters and library sizes against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from tests.query.ask import likelihood_parameters, posterior_predictive

from countvi.query import library_size


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_draws_are_sparse_counts(tiny, likelihood):
    model, source = tiny.model(likelihood=likelihood), tiny.source(20, 6)
    genes = np.array([5, 1])
    everything = posterior_predictive(model, tiny.cells(source), n_samples=3)
    some = posterior_predictive(model, tiny.cells(source), n_samples=3, genes=genes)
    assert len(everything) == len(some) == 3
    for whole, part in zip(everything, some, strict=True):
        assert isinstance(whole, sp.csr_array)
        assert isinstance(part, sp.csr_array)
        assert whole.shape == (20, 6)
        assert np.all(whole.data == np.round(whole.data))
        assert np.all(whole.data > 0), "zeros are not stored"
        np.testing.assert_array_equal(part.toarray(), whole.toarray()[:, genes])
    assert (everything[0] != everything[1]).nnz > 0
    again = posterior_predictive(model, tiny.cells(source), n_samples=3)
    assert all((a != b).nnz == 0 for a, b in zip(everything, again, strict=True))


def test_draws_of_the_normal_likelihood_are_dense(tiny):
    model, source = tiny.model(likelihood="normal"), tiny.source(20, 6)
    (values,) = posterior_predictive(model, tiny.cells(source))
    assert isinstance(values, np.ndarray)
    assert values.shape == (20, 6)


@pytest.mark.parametrize("batch", [None, 0, 2])
def test_mean_and_variance_of_draws(tiny, witness, batch):
    n = 4000
    model, source = tiny.model(5), tiny.source(1, 5)
    cells = tiny.cells(source, 500, rows=np.zeros(n, int))
    counterfactual = None if batch is None else (0, batch)
    draws = posterior_predictive(model, cells, counterfactual=counterfactual)[0].toarray().astype(float)
    loc, variance = witness.posterior(model, source)
    z = loc + np.sqrt(variance) * np.random.default_rng(0).standard_normal((200_000, 2))
    codes = np.full(len(z), source.codes[0, 0] if batch is None else batch)
    mu, theta = source.x.sum() * witness.frequencies(model, z, codes), witness.theta(model)
    spread = (mu + mu**2 / theta).mean(0) + mu.var(0)  # law of total variance
    assert np.all(np.abs(draws.mean(0) - mu.mean(0)) < 4.5 * np.sqrt(spread / n))
    squares = (draws - mu.mean(0)) ** 2
    assert np.all(np.abs(squares.mean(0) - spread) < 4.5 * squares.std(0) / np.sqrt(n))


def test_several_samples_are_draws_of_the_same_cell(tiny, witness):
    n = 2000
    model, source = tiny.model(5), tiny.source(3, 5)
    draws = np.stack([d.toarray() for d in posterior_predictive(model, tiny.cells(source, 50), n_samples=n)])
    means = likelihood_parameters(model, tiny.cells(source, 50), n_samples=n, give_mean=True)["mean"]
    assert np.all(np.abs(draws.mean(0) - means) < 4.5 * np.sqrt(2) * draws.std(0) / np.sqrt(n))


def test_parameters_of_zinb(tiny, witness):
    model, source = tiny.model(likelihood="zinb", dispersion="gene-batch"), tiny.source(20, 6)
    shrink(model)
    values = likelihood_parameters(model, tiny.cells(source))
    assert set(values) == {"mean", "dispersions", "dropout"}
    codes = source.codes[:, 0]
    z, _ = witness.posterior(model, source)
    frequencies = witness.frequencies(model, z, codes)
    np.testing.assert_allclose(values["mean"], source.x.sum(1, keepdims=True) * frequencies, rtol=0.15)
    np.testing.assert_allclose(values["dispersions"], witness.theta(model)[codes], rtol=1e-5)
    head = model.observe.pi_logits
    logits = witness.hidden(model, z, codes) @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(values["dropout"], 1 / (1 + np.exp(-logits)), rtol=0.1)
    assert all(value.dtype == np.float32 for value in values.values())


def shrink(model):
    """Make the posterior as narrow as the encoder allows, so that a draw is nearly the mean."""
    model.encode_z.log_variance.weight.data.zero_()
    model.encode_z.log_variance.bias.data.fill_(-30.0)


@pytest.mark.parametrize(
    ("likelihood", "names"),
    [
        ("nb", {"mean", "dispersions"}),
        ("zinb", {"mean", "dispersions", "dropout"}),
        ("poisson", {"mean"}),
        ("normal", {"mean", "standard_deviation"}),
    ],
)
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_parameters_that_exist(tiny, likelihood, names, dispersion):
    model, source = tiny.model(likelihood=likelihood, dispersion=dispersion), tiny.source(20, 6)
    source.x[2] = 0.0
    cells = tiny.cells(source, 8)
    values = likelihood_parameters(model, cells, n_samples=3)
    means = likelihood_parameters(model, cells, n_samples=3, give_mean=True)
    assert set(values) == set(means) == names
    for name in names:
        assert values[name].shape == (3, 20, 6)
        assert np.isfinite(values[name]).all()
        np.testing.assert_allclose(values[name].mean(0), means[name], rtol=1e-5, atol=1e-12)


def test_dispersion_does_not_depend_on_draws_or_chunks(tiny, witness):
    model, source = tiny.model(), tiny.source(20, 6)
    for chunk, n in ((3, 1), (20, 4)):
        values = likelihood_parameters(model, tiny.cells(source, chunk), n_samples=n)["dispersions"]
        np.testing.assert_allclose(values, np.broadcast_to(witness.theta(model), values.shape), rtol=1e-6)


def test_library_that_is_observed_or_given(tiny):
    source = tiny.source(20, 6, size_factor=True)
    source.x[0] = 0.0
    observed = library_size(tiny.model(), tiny.cells(source))
    assert observed.shape == (20, 1)
    np.testing.assert_allclose(observed[:, 0], source.x.sum(1), rtol=1e-5)
    for give_mean in (True, False):
        given = library_size(tiny.model(library="given"), tiny.cells(source), give_mean=give_mean)
        np.testing.assert_allclose(given[:, 0], source.size_factor, rtol=1e-5)


def test_library_that_is_inferred(tiny, witness):
    model, source = tiny.model(library="latent"), tiny.source(4, 6)
    m, v = witness.encode(model.library.encode, source.x)
    means = library_size(model, tiny.cells(source))
    np.testing.assert_allclose(means, np.exp(m + v / 2), rtol=1e-4)
    n = 5000
    cells = tiny.cells(source, 500, rows=np.repeat(np.arange(4), n))
    draws = library_size(model, cells, give_mean=False).reshape(4, n)
    assert np.all(np.abs(draws.mean(1) - means[:, 0]) < 4.5 * draws.std(1) / np.sqrt(n))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_one_cell_one_gene_empty_cell_no_cell(tiny, likelihood):
    source = tiny.source(2, 1)
    source.x[0] = 0.0
    model = tiny.model(1, likelihood=likelihood)
    (drawn,) = posterior_predictive(model, tiny.cells(source, rows=np.array([0])))
    assert drawn.shape == (1, 1)
    if likelihood != "normal":
        assert drawn.nnz == 0, "an empty cell expects no counts"
    assert posterior_predictive(model, tiny.cells(source, rows=np.array([], int)))[0].shape == (0, 1)
    assert library_size(model, tiny.cells(source, rows=np.array([], int))).shape == (0, 1)
    none = likelihood_parameters(model, tiny.cells(source, rows=np.array([], int)), n_samples=2)
    assert none["mean"].shape == (2, 0, 1)
