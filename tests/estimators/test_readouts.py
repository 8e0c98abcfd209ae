"""Arguments and shapes of the read-outs; their numbers are tested in ``tests/query``."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from countvi.errors import MismatchError, OptionError, UnknownNameError


def test_latent(trained, adata):
    mean = trained.get_latent_representation()
    assert mean.shape == (90, 3)
    loc, variance = trained.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(loc, mean)
    assert (variance > 0).all()
    draws = [trained.get_latent_representation(give_mean=False, seed=seed) for seed in range(200)]
    error = np.sqrt(variance / 200)
    assert (np.abs(np.mean(draws, axis=0) - mean) < 5 * error).all()
    np.testing.assert_allclose(np.var(draws, axis=0), variance, rtol=0.6)
    np.testing.assert_array_equal(trained.get_latent_representation(give_mean=False), draws[0])


@pytest.mark.parametrize(
    "indices",
    [[3, 1, 1], np.array([3, 1, 1]), pd.Series([3, 1, 1]), (3, 1, 1), np.array([3, 1, -89], dtype=np.int16)],
    ids=["list", "array", "series", "tuple", "negative"],
)
def test_rows_by_number(trained, indices):
    everything = trained.get_latent_representation()
    np.testing.assert_allclose(trained.get_latent_representation(indices=indices), everything[[3, 1, 1]], rtol=1e-5)


def test_rows_by_mask_and_slice(trained):
    everything = trained.get_latent_representation()
    mask = np.arange(90) % 7 == 0
    np.testing.assert_allclose(trained.get_latent_representation(indices=mask), everything[mask], rtol=1e-5)
    np.testing.assert_allclose(trained.get_latent_representation(indices=mask.tolist()), everything[mask], rtol=1e-5)
    np.testing.assert_allclose(trained.get_latent_representation(indices=slice(5, 9)), everything[5:9], rtol=1e-5)
    assert trained.get_latent_representation(indices=[]).shape == (0, 3)


@pytest.mark.parametrize(
    ("indices", "error", "words"),
    [
        ([0, 90], MismatchError, "such as 90; there are 90 cells"),
        (np.ones(5, dtype=bool), MismatchError, r"one entry per cell \(90\); got 5"),
        (["c1"], OptionError, "get_indexer"),
        ([0.5], OptionError, "row numbers or a boolean mask"),
        (np.zeros((2, 2), dtype=int), MismatchError, "one-dimensional"),
    ],
)
def test_bad_rows(trained, indices, error, words):
    with pytest.raises(error, match=words):
        trained.get_latent_representation(indices=indices)


def test_expression_frame(trained, adata):
    frame = trained.get_normalized_expression(indices=[4, 2])
    assert frame.index.tolist() == ["c4", "c2"]
    assert frame.columns.tolist() == adata.var_names.tolist()
    np.testing.assert_allclose(frame.sum(axis=1), 1.0, rtol=1e-5)
    scaled = trained.get_normalized_expression(indices=[4, 2], library_size=1e4, transform_batch=["b0", "b1"])
    np.testing.assert_allclose(scaled.sum(axis=1), 1e4, rtol=1e-5)
    some = trained.get_normalized_expression(indices=[4, 2], gene_list=["g7", "g1"])
    pd.testing.assert_frame_equal(some, frame[["g7", "g1"]])
    by_mask = trained.get_normalized_expression(indices=[4, 2], gene_list=adata.var_names == "g7")
    assert by_mask.columns.tolist() == ["g7"]


def test_expected_counts(trained, adata):
    totals = np.asarray(adata.X.sum(1)).ravel()
    frame = trained.get_normalized_expression(library_size="latent")
    np.testing.assert_allclose(frame.sum(axis=1), totals, rtol=1e-4)


def test_expression_samples(trained):
    samples = trained.get_normalized_expression(n_samples=4, return_mean=False)
    assert samples.shape == (4, 90, 15)
    mean = trained.get_normalized_expression(n_samples=4, return_numpy=True)
    np.testing.assert_allclose(mean, samples.mean(0), rtol=1e-4)
    assert isinstance(trained.get_normalized_expression(n_samples_overall=7), pd.DataFrame)
    assert trained.get_normalized_expression(n_samples_overall=7, return_numpy=True).shape == (7, 15)


def test_deterministic_expression(trained):
    a = trained.get_normalized_expression(use_z_mean=True, seed=1, batch_size=7)
    b = trained.get_normalized_expression(use_z_mean=True, seed=2)
    pd.testing.assert_frame_equal(a, b, rtol=1e-4)


@pytest.mark.parametrize("kind", ["numpy", "zarr", "hdf5"])
def test_expression_into_an_array(trained, tmp_path, kind):
    shape = (90, 15)
    file = h5py.File(tmp_path / "out.h5", "w") if kind == "hdf5" else None
    out = {
        "numpy": lambda: np.zeros(shape, np.float32),
        "zarr": lambda: zarr.open(tmp_path / "out.zarr", mode="w", shape=shape, dtype="f4", chunks=(32, 15)),
        "hdf5": lambda: file.create_dataset("x", shape, "f4"),
    }[kind]()
    returned = trained.get_normalized_expression(out=out, use_z_mean=True, batch_size=32)
    assert returned is out
    np.testing.assert_allclose(out[:], trained.get_normalized_expression(use_z_mean=True, return_numpy=True), rtol=1e-5)
    if file is not None:
        file.close()
    with pytest.raises(OptionError, match=r"\(90, 15\)"):
        trained.get_normalized_expression(out=np.zeros((90, 14)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"transform_batch": "b9"}, UnknownNameError, "'b0'"),
        ({"transform_batch": 0}, UnknownNameError, "'b0'"),
        ({"transform_batch": []}, OptionError, "empty list"),
        ({"gene_list": ["g1", "G7"]}, UnknownNameError, r"1 of 2 genes are not in the model: 'G7'. Did you mean 'g7'"),
        ({"gene_list": [True, False]}, MismatchError, r"one entry per gene \(15\)"),
        ({"library_size": "own"}, OptionError, "positive number or 'latent'"),
        ({"library_size": -1}, OptionError, "positive number or 'latent'"),
        ({"n_samples": 0}, OptionError, "n_samples"),
        ({"batch_size": 0}, OptionError, "batch_size"),
    ],
)
def test_bad_arguments(trained, arguments, error, words):
    with pytest.raises(error, match=words):
        trained.get_normalized_expression(**arguments)


def test_transform_batch_averages_over_batches(trained):
    single = [trained.get_normalized_expression(transform_batch=b, return_numpy=True) for b in ("b0", "b2")]
    both = trained.get_normalized_expression(transform_batch=["b0", "b2"], return_numpy=True)
    np.testing.assert_allclose(both, np.mean(single, axis=0), rtol=1e-4, atol=1e-7)
    own = trained.get_normalized_expression(return_numpy=True)
    in_b0 = np.arange(90) % 3 == 0
    np.testing.assert_allclose(own[in_b0], single[0][in_b0], rtol=1e-5)
    assert not np.allclose(own[~in_b0], single[0][~in_b0], rtol=1e-3)


def test_evidence(trained):
    per_cell = trained.get_elbo(return_mean=False)
    assert per_cell.shape == (90,)
    assert trained.get_elbo() == pytest.approx(per_cell.mean())
    errors = trained.get_reconstruction_error(return_mean=False)["reconstruction_loss"]
    assert (errors > 0).all()
    assert (-errors >= per_cell - 1e-4).all()  # the KL term is not negative
    assert trained.get_reconstruction_error()["reconstruction_loss"] == pytest.approx(errors.mean())
    marginal = trained.get_marginal_ll(n_mc_samples=200, return_mean=False)
    assert marginal.shape == (90,)
    many = np.mean([trained.get_elbo(seed=seed) for seed in range(30)])
    assert marginal.mean() > many - 0.05


def test_likelihood_parameters_and_library(trained, adata):
    parameters = trained.get_likelihood_parameters(n_samples=2)
    assert set(parameters) == {"mean", "dispersions", "dropout"}
    assert {value.shape for value in parameters.values()} == {(2, 90, 15)}
    assert trained.get_likelihood_parameters(n_samples=2, give_mean=True)["mean"].shape == (90, 15)
    np.testing.assert_allclose(trained.get_latent_library_size().ravel(), adata.X.toarray().sum(1), rtol=1e-5)


def test_posterior_predictive(trained):
    sample = trained.posterior_predictive_sample(indices=[1, 2], gene_list=["g3"])
    assert isinstance(sample, sp.csr_array)
    assert sample.shape == (2, 1)
    samples = trained.posterior_predictive_sample(n_samples=3)
    assert len(samples) == 3
    values = samples[0].toarray()
    np.testing.assert_array_equal(values, np.round(values))
    assert (values >= 0).all()
    assert not np.array_equal(values, samples[1].toarray())
    with pytest.raises(OptionError, match="one batch at a time"):
        trained.posterior_predictive_sample(transform_batch=["b0", "b1"])


def test_correlation(trained):
    frame = trained.get_feature_correlation_matrix(n_samples=3, gene_list=["g4", "g2", "g9"])
    assert frame.index.tolist() == frame.columns.tolist() == ["g4", "g2", "g9"]
    np.testing.assert_allclose(np.diag(frame), 1.0)
    np.testing.assert_allclose(frame, frame.T)
    pearson = trained.get_feature_correlation_matrix(n_samples=3, correlation_type="pearson")
    assert (np.abs(pearson) <= 1 + 1e-6).all().all()
    with pytest.raises(OptionError, match="correlation_type"):
        trained.get_feature_correlation_matrix(correlation_type="kendall")
