"""SCVI against its equations, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.models.table import ROWS

from countvi.batch import RNA
from countvi.models.scvi import Latents

NAMES = {row.name: row for row in ROWS}


def build(name: str):
    model, batch = NAMES[name].build(0)
    return model.double().eval(), batch.to(dtype=torch.float64)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ array(layer.weight).T + array(layer.bias)


def hidden(model, z: np.ndarray, batch: np.ndarray) -> np.ndarray:
    block = model.decode.layers[0]
    h = linear(block.linear, z) + array(block.linear.levels.weight)[batch]
    norm = block.batch_norm
    h = (h - array(norm.running_mean)) / np.sqrt(array(norm.running_var) + 1e-3) * array(norm.weight) + array(norm.bias)
    return np.maximum(h, 0.0)


def zinb(x: np.ndarray, mu: np.ndarray, theta: np.ndarray, pi: np.ndarray) -> np.ndarray:
    nb = stats.nbinom.pmf(x, theta, theta / (theta + mu))
    return np.log(np.where(x == 0, pi, 0.0) + (1 - pi) * nb).sum(-1)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
def test_generates_zinb_with_the_observed_library(dispersion):
    model, batch = build(f"scvi-batch-zinb,{dispersion}")
    x, s = array(batch.counts[RNA].to_dense()), array(batch.design.codes[:, 0])
    z = np.random.default_rng(1).normal(size=(len(x), model.n_latent))
    library = x.sum(1)
    with np.errstate(divide="ignore"):
        latents = Latents(torch.as_tensor(z), torch.as_tensor(np.log(library)))
    actual = model.generate(latents, batch.design)[RNA]

    h = hidden(model, z, s)
    logits = linear(model.rho, h)
    rho = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    log_theta = array(model.observe.log_theta.value)
    theta = np.exp(log_theta if dispersion == "gene" else log_theta[s])
    pi = 1 / (1 + np.exp(-linear(model.observe.pi_logits, h)))
    mu = library[:, None] * rho
    np.testing.assert_allclose(array(actual.rate.mean), mu, rtol=1e-9)
    full = library > 0
    theta = np.broadcast_to(theta, x.shape)
    np.testing.assert_allclose(
        array(actual.log_prob(batch.counts[RNA]))[full], zinb(x[full], mu[full], theta[full], pi[full]), rtol=1e-9
    )
    # An empty cell has rate zero, and its counts are zero for certain.
    np.testing.assert_allclose(array(actual.log_prob(batch.counts[RNA]))[~full], 0.0, atol=1e-12)


def test_size_factors_replace_the_library_and_the_softmax():
    model, batch = build("scvi-sized-poisson,n_layers=2,encode_covariates=True")
    latents = model.sample(model.guide(batch))
    torch.testing.assert_close(latents.log_library, batch.design.size_factor.log())
    rate = model.generate(latents, batch.design)[RNA].rate
    torch.testing.assert_close(rate.scale, torch.nn.functional.softplus(rate.logits))
    torch.testing.assert_close(rate.mean, batch.design.size_factor[:, None] * rate.scale)


def test_the_prior():
    model, batch = build("scvi-all-zinb,use_observed_lib_size=False,n_layers=2,encode_covariates=True")
    p = model.prior(batch.design)
    assert (p.z.loc == 0).all() and (p.z.scale == 1).all() and p.z.loc.shape == (batch.n_cells, model.n_latent)
    totals, s = array(batch.counts[RNA].totals()), array(batch.design.codes[:, 0])
    for level in range(3):
        logs = np.log(totals[(s == level) & (totals > 0)])
        np.testing.assert_allclose(array(p.log_library.loc)[s == level], logs.mean(), rtol=1e-6)
        np.testing.assert_allclose(array(p.log_library.scale)[s == level], logs.std(), rtol=1e-6)


def test_logistic_normal_states_lie_on_the_simplex():
    model, batch = build("scvi-all-ln")
    state = model.cell_state(model.sample(model.guide(batch), n_samples=3))
    torch.testing.assert_close(state.sum(-1), torch.ones(3, batch.n_cells, dtype=torch.float64))
    assert (state > 0).all()


def test_without_encode_covariates_the_posterior_knows_only_counts():
    blind, batch = build("scvi-batch-zinb,gene")
    seeing, _ = build("scvi-all-zinb,n_layers=2,encode_covariates=True")
    _, full = build("scvi-all-zinb,n_layers=2,encode_covariates=True")
    for model, cells, sees in ((blind, batch, False), (seeing, full, True)):
        q = model.guide(cells).z.loc
        cells = type(cells)(cells.counts, cells.design.with_level(0, 1))
        assert torch.equal(model.guide(cells).z.loc, q) != sees
