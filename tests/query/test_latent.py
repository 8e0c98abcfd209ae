"""Latent read-outs against the encoder written in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from countvi.query import latent, latent_moments, latent_states


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def test_moments(tiny, witness):
    model, source = tiny.model(), tiny.source(20, 6)
    loc, scale = latent_moments(model, tiny.cells(source))
    expected_loc, expected_variance = witness.posterior(model, source)
    np.testing.assert_allclose(loc, expected_loc, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scale, np.sqrt(expected_variance), rtol=1e-4)


def test_chunks_change_nothing(tiny):
    model, source = tiny.model(), tiny.source(20, 6)
    for a, b in zip(
        latent_moments(model, tiny.cells(source, 3)), latent_moments(model, tiny.cells(source, 20)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_untransformed_mean_is_exact(tiny):
    model, cells = tiny.model(), tiny.cells(tiny.source(20, 6))
    np.testing.assert_array_equal(latent_states(model, cells, mc_samples=1), latent_moments(model, cells)[0])


def test_logistic_normal_mean(tiny, witness):
    model, source = tiny.model(n_latent=3, logistic=True), tiny.source(10, 6)
    loc, variance = witness.posterior(model, source)
    # Independent Monte-Carlo mean with other random numbers.
    draws = softmax(loc + np.sqrt(variance) * np.random.default_rng(0).standard_normal((20_000, *loc.shape)))
    states = latent_states(model, tiny.cells(source), mc_samples=20_000)
    error = np.sqrt(2) * draws.std(0) / np.sqrt(20_000)
    assert np.all(np.abs(states - draws.mean(0)) < 4.5 * error)
    assert np.abs(softmax(loc) - draws.mean(0)).max() > 10 * error.max(), "the test cannot tell the means apart"
    np.testing.assert_allclose(states.sum(1), 1.0, rtol=1e-5)


def test_logistic_normal_mean_in_passes(tiny, monkeypatch):
    model, cells = tiny.model(n_latent=3, logistic=True), tiny.cells(tiny.source(4, 6))
    whole = latent_states(model, cells, mc_samples=4000)
    monkeypatch.setattr(latent, "_BLOCK", 500)
    passes = latent_states(model, cells, mc_samples=4000)
    assert np.abs(whole - passes).max() < 0.02
    np.testing.assert_allclose(passes.sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("logistic", [False, True])
def test_one_draw_per_cell(tiny, logistic):
    model, source = tiny.model(n_latent=3, logistic=logistic), tiny.source(1, 6)
    cells = tiny.cells(source, rows=np.zeros(3000, dtype=int), chunk=500)
    states = latent_states(model, cells, give_mean=False, seed=1)
    mean = latent_states(model, tiny.cells(source), mc_samples=100_000)
    assert np.all(np.abs(states.mean(0) - mean[0]) < 4.5 * states.std(0) / np.sqrt(3000))
    assert np.all(states.std(0) > 0.01)
    np.testing.assert_array_equal(states, latent_states(model, cells, give_mean=False, seed=1))
    assert not np.array_equal(states, latent_states(model, cells, give_mean=False, seed=2))


def test_no_cells_one_cell_one_gene_and_an_empty_cell(tiny):
    source = tiny.source(2, 1)
    source.x[0] = 0.0
    model = tiny.model(n_genes=1)
    assert latent_states(model, tiny.cells(source, rows=np.array([], dtype=int))).shape == (0, 2)
    states = latent_states(model, tiny.cells(source, rows=np.array([0])))
    assert states.shape == (1, 2)
    assert np.isfinite(states).all()
