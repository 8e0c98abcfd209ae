"""Gene correlations against SciPy on the same draws, and against simulation."""

from __future__ import annotations

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from scipy import stats
from tests.query.ask import feature_correlation, normalized_expression

from countvi.errors import OptionError
from countvi.query import correlation, temporary
from countvi.query.correlation import _pearson, _spearman

OPTIONS = pytest.mark.parametrize("kind", ["pearson", "spearman"])
STREAMING = {"pearson": _pearson, "spearman": _spearman}


class Blocks(list):
    """Observations in blocks, with the length of all of them."""

    def __len__(self):
        return sum(block.shape[0] for block in self)


def blocks_of(values, size, dtype=np.float32):
    return Blocks(values[i : i + size].astype(dtype) for i in range(0, len(values), size))


def reference(values, kind):
    if kind == "pearson":
        return np.corrcoef(values, rowvar=False)
    return stats.spearmanr(values).statistic


@OPTIONS
@pytest.mark.parametrize("size", [1, 7, 100])
def test_streams_equal_scipy(kind, size):
    rng = np.random.default_rng(0)
    common = rng.gamma(1.0, size=(100, 1))
    values = np.hstack([rng.gamma(0.5, size=(100, 3)) * common, np.round(common * 2), -common]).astype(np.float32)
    result = STREAMING[kind](blocks_of(values, size), 5)
    np.testing.assert_allclose(result, reference(values.astype(float), kind), atol=1e-12)


def test_pearson_is_stable_far_from_zero():
    rng = np.random.default_rng(0)
    values = (1e6 + rng.normal(size=(1000, 4)) + rng.normal(size=(1000, 1))).astype(np.float32)
    result = _pearson(blocks_of(values, 9), 4)
    np.testing.assert_allclose(result, reference(values.astype(float), "pearson"), atol=1e-10)


@OPTIONS
def test_spearman_and_pearson_work_through_the_disk_and_in_steps(kind, monkeypatch):
    values = np.random.default_rng(0).gamma(0.5, size=(400, 6)).astype(np.float32)
    whole = STREAMING[kind](blocks_of(values, 32), 6)
    monkeypatch.setattr(temporary, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(correlation, "_WORK_BYTES", 30_000)
    np.testing.assert_allclose(STREAMING[kind](blocks_of(values, 32), 6), whole, atol=1e-12)


def test_a_full_disk_is_a_sentence(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(temporary, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(OptionError, match=r"of disk, but .* free\. Use fewer genes"):
        _spearman(blocks_of(np.zeros((10, 2)), 5), 2)


@OPTIONS
@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gene_that_does_not_vary(kind, constant, dtype):
    values = np.random.default_rng(0).gamma(1.0, size=(50, 3))
    values[:, 1] = constant
    result = STREAMING[kind](blocks_of(values, 7, dtype), 3)
    assert result[0, 1] == result[1, 0] == result[1, 2] == 0.0
    np.testing.assert_array_equal(np.diagonal(result), 1.0)
    assert result[0, 2] != 0.0


@OPTIONS
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_against_simulation(tiny, witness, kind, likelihood):
    model, source = tiny.model(5, likelihood=likelihood), tiny.source(4, 5)
    if likelihood in ("nb", "zinb"):
        model.observe.log_theta.value.data += 1.5
    n, repeats = 2000, 8
    result = feature_correlation(model, tiny.cells(source, 500), n_samples=n, correlation=kind)
    loc, variance = witness.posterior(model, source)
    rng = np.random.default_rng(0)
    simulated = []
    for _ in range(repeats):
        z = loc + np.sqrt(variance) * rng.standard_normal((n, *loc.shape))
        values = 1000 * witness.frequencies(model, z, source.codes[:, 0])
        if likelihood in ("nb", "zinb"):
            theta = witness.theta(model)
            values = rng.gamma(theta, values / theta)
        simulated.append(reference(values.reshape(-1, 5), kind))
    expected, error = np.mean(simulated, 0), np.std(simulated, 0, ddof=1)
    # The spread is itself estimated from few repeats: seven standard errors of a t with 7 degrees of freedom.
    assert np.all(np.abs(result - expected) < 7 * np.sqrt(1 + 1 / repeats) * error + 1e-12)
    assert np.abs(expected - np.eye(5)).max() > 20 * error.max(), "the test cannot tell genes apart"


def test_poisson_correlates_the_expected_expression(tiny):
    model, cells = tiny.model(likelihood="poisson"), tiny.cells(tiny.source(30, 6), 16)
    model.encode_z.log_variance.weight.data.zero_()
    model.encode_z.log_variance.bias.data.fill_(-30.0)
    values = normalized_expression(model, cells, use_z_mean=True).astype(float)
    result = feature_correlation(model, cells, correlation="pearson", n_samples=20)
    np.testing.assert_allclose(result, reference(values, "pearson"), atol=0.02)


@OPTIONS
def test_matrices_are_averaged_over_counterfactuals(tiny, kind):
    model, cells = tiny.model(dispersion="gene-batch"), tiny.cells(tiny.source(20, 6), 8)
    options = {"correlation": kind, "n_samples": 4}
    one, other = (feature_correlation(model, cells, counterfactuals=[(0, c)], **options) for c in (0, 2))
    both = feature_correlation(model, cells, counterfactuals=[(0, 0), (0, 2)], **options)
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-12)


def test_counterfactuals_share_their_latent_variables(tiny, monkeypatch):
    """Also where theta differs between batches, and with it what a Gamma draw takes from its stream."""
    model, cells = tiny.model(dispersion="gene-batch"), tiny.cells(tiny.source(20, 6), 8)
    drawn, generate = [], model.generate

    def spy(latents, design):
        drawn.append(latents.z.clone())
        return generate(latents, design)

    monkeypatch.setattr(model, "generate", spy)
    feature_correlation(model, cells, counterfactuals=[(0, 0), (0, 2)], n_samples=4, correlation="pearson")
    half = len(drawn) // 2
    assert half > 4
    assert all(torch.equal(a, b) for a, b in zip(drawn[:half], drawn[half:], strict=True))


@OPTIONS
def test_genes_in_the_order_asked_for(tiny, kind):
    model, cells = tiny.model(likelihood="poisson"), tiny.cells(tiny.source(20, 6), 8)
    genes = np.array([4, 0, 2])
    everything = feature_correlation(model, cells, correlation=kind)
    some = feature_correlation(model, cells, correlation=kind, genes=genes)
    np.testing.assert_allclose(some, everything[np.ix_(genes, genes)], atol=1e-10)
    np.testing.assert_array_equal(everything, everything.T)
    assert model.training


@OPTIONS
def test_seeds(tiny, kind):
    model, cells = tiny.model(), tiny.cells(tiny.source(20, 6), 8)
    one, again, other = (feature_correlation(model, cells, correlation=kind, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


@OPTIONS
def test_one_cell_one_gene_no_cell_and_extreme_dispersion(tiny, kind):
    source = tiny.source(2, 1)
    assert feature_correlation(tiny.model(1), tiny.cells(source), correlation=kind).tolist() == [[1.0]]
    model, source = tiny.model(3), tiny.source(2, 3)
    one = tiny.cells(source, rows=np.array([0]))
    np.testing.assert_array_equal(feature_correlation(model, one, n_samples=1, correlation=kind), np.eye(3))
    none = tiny.cells(source, rows=np.array([], int))
    np.testing.assert_array_equal(feature_correlation(model, none, correlation=kind), np.eye(3))
    model.observe.log_theta.value.data = model.observe.log_theta.value.data.new_tensor([-200.0, 0.0, 200.0])
    assert np.isfinite(feature_correlation(model, tiny.cells(source), correlation=kind)).all()


def test_an_unknown_correlation_is_refused(tiny):
    with pytest.raises(OptionError, match="Did you mean 'spearman'"):
        feature_correlation(tiny.model(), tiny.cells(tiny.source(3, 6)), correlation="spearmann")
