"""Expected expression against the decoder written in NumPy."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import zarr
from tests.query.ask import normalized_expression, sampled_expression

from countvi.errors import OptionError


def truth(tiny, witness, model, source, batch=None):
    loc, _ = witness.posterior(model, source)
    codes = source.codes[:, 0] if batch is None else np.full(source.n_cells, batch)
    return witness.frequencies(model, loc, codes)


def test_posterior_mean_decoding(tiny, witness):
    model, source = tiny.model(), tiny.source(20, 6)
    values = normalized_expression(model, tiny.cells(source), use_z_mean=True)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, truth(tiny, witness, model, source), rtol=2e-5)
    assert model.training


def test_chunks_change_nothing(tiny):
    model, source = tiny.model(), tiny.source(20, 6)
    a, b = (normalized_expression(model, tiny.cells(source, chunk), use_z_mean=True) for chunk in (3, 20))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_genes_come_in_the_order_asked_for(tiny):
    model, source = tiny.model(), tiny.source(20, 6)
    genes = np.array([4, 0, 4])
    everything = normalized_expression(model, tiny.cells(source), use_z_mean=True)
    some = normalized_expression(model, tiny.cells(source), use_z_mean=True, genes=genes)
    np.testing.assert_array_equal(some, everything[:, genes])


@pytest.mark.parametrize("library_size", [1.0, 1e4])
def test_counterfactuals_are_averaged_and_scaled_once(tiny, witness, library_size):
    model, source = tiny.model(), tiny.source(20, 6)
    per_batch = [truth(tiny, witness, model, source, batch) for batch in range(3)]
    assert np.abs(per_batch[0] / per_batch[1] - 1).max() > 0.1, "the test cannot tell batches apart"
    for chosen in ([1], [0, 2], [0, 1, 2]):
        values = normalized_expression(
            model,
            tiny.cells(source),
            counterfactuals=[(0, code) for code in chosen],
            use_z_mean=True,
            library_size=library_size,
        )
        np.testing.assert_allclose(values, library_size * np.mean([per_batch[c] for c in chosen], 0), rtol=2e-5)
        np.testing.assert_allclose(values.sum(1), library_size, rtol=1e-5)


def test_own_library_gives_expected_counts(tiny, witness):
    source = tiny.source(20, 6)
    source.x[3] = 0.0
    model = tiny.model(likelihood="zinb")
    values = normalized_expression(model, tiny.cells(source), use_z_mean=True, library_size=None)
    expected = truth(tiny, witness, model, source) * source.x.sum(1, keepdims=True)
    np.testing.assert_allclose(values, expected, rtol=2e-5)
    assert np.all(values[3] == 0.0)


def test_size_factors_scale_a_softplus_decoder(tiny, witness):
    source, model = tiny.source(20, 6, size_factor=True), tiny.model(library="given")
    expected = truth(tiny, witness, model, source)
    values = normalized_expression(model, tiny.cells(source), use_z_mean=True, library_size=None)
    np.testing.assert_allclose(values, expected * source.size_factor[:, None], rtol=5e-5)
    values = normalized_expression(model, tiny.cells(source), use_z_mean=True, library_size=2.0)
    np.testing.assert_allclose(values, 2.0 * expected, rtol=5e-5)
    assert np.abs(values.sum(1) / 2.0 - 1).max() > 0.1, "a softplus decoder is no simplex"


def test_inferred_library_at_its_posterior_mean(tiny, witness):
    source, model = tiny.source(20, 6), tiny.model(library="latent")
    loc, variance = witness.encode(model.library.encode, source.x)
    values = normalized_expression(model, tiny.cells(source), use_z_mean=True, library_size=None)
    np.testing.assert_allclose(values, truth(tiny, witness, model, source) * np.exp(loc + variance / 2), rtol=1e-4)


@pytest.mark.parametrize("library", ["observed", "latent"])
@pytest.mark.parametrize("logistic", [False, True])
def test_mean_of_draws(tiny, witness, library, logistic):
    n = 3000
    source, model = tiny.source(4, 5), tiny.model(5, library=library, logistic=logistic)
    values = normalized_expression(model, tiny.cells(source, 300), library_size=None, n_samples=n)
    loc, variance = witness.posterior(model, source)
    rng = np.random.default_rng(1)
    draws = witness.frequencies(
        model, loc + np.sqrt(variance) * rng.standard_normal((n, *loc.shape)), source.codes[:, 0]
    )
    depth = source.x.sum(1, keepdims=True)
    if library == "latent":
        m, v = witness.encode(model.library.encode, source.x)
        depth = np.exp(m + np.sqrt(v) * rng.standard_normal((n, *m.shape)))
    draws = draws * depth
    assert np.all(np.abs(values - draws.mean(0)) < 4.5 * np.sqrt(2) * draws.std(0) / np.sqrt(n))


def test_samples_lead_and_average_to_the_mean(tiny):
    model, source = tiny.model(), tiny.source(20, 6)
    cells = tiny.cells(source, 8)
    samples = normalized_expression(model, cells, n_samples=5, return_mean=False, seed=3)
    mean = normalized_expression(model, cells, n_samples=5, seed=3)
    assert samples.shape == (5, 20, 6)
    assert len(np.unique(samples[:, 0, 0])) == 5
    np.testing.assert_allclose(samples.mean(0), mean, rtol=1e-5)
    np.testing.assert_array_equal(samples, normalized_expression(model, cells, n_samples=5, return_mean=False, seed=3))
    assert not np.allclose(mean, normalized_expression(model, cells, n_samples=5, seed=4), rtol=1e-3)
    assert normalized_expression(model, cells, n_samples=1, return_mean=False).shape == (20, 6)


def test_counterfactuals_share_their_draws(tiny):
    model, cells = tiny.model(), tiny.cells(tiny.source(20, 6), 8)
    one = [normalized_expression(model, cells, counterfactuals=[(0, code)], n_samples=3) for code in (0, 2)]
    both = normalized_expression(model, cells, counterfactuals=[(0, 0), (0, 2)], n_samples=3)
    np.testing.assert_allclose(both, np.mean(one, 0), rtol=1e-5)


def test_never_more_than_a_chunk_is_decoded_at_once(tiny, monkeypatch):
    model, source = tiny.model(), tiny.source(20, 6)
    decoded, generate = [], model.generate

    def spy(latents, design):
        decoded.append(latents.z[..., 0].numel())
        return generate(latents, design)

    monkeypatch.setattr(model, "generate", spy)
    normalized_expression(model, tiny.cells(source, 8), n_samples=11)
    assert max(decoded) <= 8
    assert sum(decoded) == 20 * 11


@pytest.mark.parametrize("kind", ["numpy", "memmap", "zarr", "h5py"])
def test_out(tiny, tmp_path, kind):
    model, cells = tiny.model(), tiny.cells(tiny.source(20, 6), 8)
    for shape, options in (((20, 6), {}), ((3, 20, 6), {"return_mean": False})):
        out = {
            "numpy": lambda s: np.zeros(s),
            "memmap": lambda s: np.memmap(tmp_path / f"{len(s)}", np.float32, "w+", shape=s),
            "zarr": lambda s: zarr.create_array(tmp_path / f"{len(s)}.zarr", shape=s, chunks=(1, *s[1:]), dtype="f4"),
            "h5py": lambda s: h5py.File(tmp_path / f"{len(s)}.h5", "w").create_dataset("x", s, "f4"),
        }[kind](shape)
        result = normalized_expression(model, cells, n_samples=3, out=out, **options)
        assert result is out
        np.testing.assert_array_equal(np.asarray(out[...]), normalized_expression(model, cells, n_samples=3, **options))


def test_a_wrong_out_is_refused_before_computing(tiny, no_computing):
    model, cells = tiny.model(), tiny.cells(tiny.source(20, 6))
    no_computing(model)
    with pytest.raises(OptionError, match=r"out must have shape \(20, 6\).*; got \(6, 20\)\."):
        normalized_expression(model, cells, out=np.zeros((6, 20), np.float32))
    with pytest.raises(OptionError, match=r"out must have shape \(2, 20, 1\)"):
        normalized_expression(
            model, cells, genes=np.array([0]), n_samples=2, return_mean=False, out=np.zeros((20, 1), np.float32)
        )


def test_sampled_expression_is_a_mixture_over_cells(tiny):
    n = 4000
    model, source = tiny.model(4), tiny.source(6, 4)
    cells = tiny.cells(source, 512, rows=np.array([1, 4, 5]))
    values = sampled_expression(model, cells, n_samples_overall=n)
    assert values.shape == (n, 4)
    population = normalized_expression(model, cells, n_samples=1000, return_mean=False).reshape(-1, 4)
    error = population.std(0) * np.sqrt(1 / n + 1 / len(population))
    assert np.all(np.abs(values.mean(0) - population.mean(0)) < 4.5 * error)
    asked = np.concatenate(source.requests[1:])  # the first request finds the number of genes
    assert set(asked.tolist()) == {1, 4, 5}
    np.testing.assert_array_equal(values, sampled_expression(model, cells, n_samples_overall=n))


def test_sampled_expression_reads_no_more_cells_than_draws(tiny):
    model, source = tiny.model(4), tiny.source(500, 4)
    values = sampled_expression(model, tiny.cells(source, 16), n_samples_overall=10, genes=np.array([2]))
    assert values.shape == (10, 1)
    assert sum(len(rows) for rows in source.requests) <= 12


def test_sampled_expression_of_no_cells_is_refused(tiny):
    with pytest.raises(OptionError, match="at least one cell to draw from"):
        sampled_expression(tiny.model(), tiny.cells(tiny.source(3, 6), rows=np.array([], int)), n_samples_overall=2)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_one_cell_one_gene_empty_cell_no_cell(tiny, likelihood):
    source = tiny.source(2, 1)
    source.x[0] = 0.0
    model = tiny.model(1, likelihood=likelihood)
    np.testing.assert_allclose(normalized_expression(model, tiny.cells(source, rows=np.array([0]))), 1.0)
    np.testing.assert_allclose(normalized_expression(model, tiny.cells(source), library_size=None)[0], 0.0)
    assert normalized_expression(model, tiny.cells(source, rows=np.array([], int)), n_samples=3).shape == (0, 1)
