"""Setting up, building and training :class:`countvi.SCVI`."""

from __future__ import annotations

import copy

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi.errors import DataWarning, MismatchError, NotSetUpError, NotTrainedError, OptionError, UnknownNameError


def build(adata, **options):
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    return countvi.SCVI(adata, **{"n_hidden": 8, "n_latent": 2, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gene_likelihood": "zimb"}, "Did you mean 'zinb'"),
        ({"dispersion": "gene_batch"}, "Did you mean 'gene-batch'"),
        ({"latent_distribution": "logistic"}, "'normal', 'ln'"),
        ({"use_batch_norm": "never"}, "use_batch_norm must be one of"),
        ({"batch_representation": "onehot"}, "Did you mean 'one-hot'"),
        ({"n_latent": 0}, "n_latent must be a whole number of at least 1; got 0"),
        ({"n_hidden": 12.5}, "n_hidden must be a whole number"),
        ({"dropout_rate": 1.0}, "dropout_rate must be at least 0 and less than 1"),
        ({"gene_likelihood": "poisson", "dispersion": "gene-batch"}, "Poisson likelihood has no dispersion"),
    ],
)
def test_options_are_checked(adata, options, words):
    with pytest.raises(OptionError) as error:
        build(adata, **options)
    assert words in str(error.value)


@pytest.mark.parametrize(("name", "same"), [("negative_binomial", "nb"), ("zero_inflated_negative_binomial", "zinb")])
def test_long_names_of_likelihoods(adata, name, same):
    assert build(adata, gene_likelihood=name).arguments == build(adata, gene_likelihood=same).arguments


def test_data_must_be_set_up(adata):
    with pytest.raises(NotSetUpError, match="setup_anndata"):
        countvi.SCVI(adata)
    countvi.SCVI.setup_anndata(adata)
    with pytest.raises(NotSetUpError, match="a copy or subset needs a call of its own"):
        countvi.SCVI(adata.copy())


def test_read_outs_need_training(adata):
    model = build(adata)
    with pytest.raises(NotTrainedError, match=r"model.train\(\)"):
        model.get_latent_representation()
    with pytest.raises(NotTrainedError):
        _ = model.train_indices


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_epochs": 0}, "max_epochs must be a whole number of at least 1"),
        ({"max_epochs": 2.0}, "Did you mean 2?"),
        ({"batch_size": -1}, "batch_size"),
        ({"train_size": 1.2}, "train_size"),
        ({"resume": True}, "checkpoint_dir"),
        ({"early_stopping": True, "train_size": 1.0}, "held-out cells"),
        ({"plan_kwargs": {"learning_rate": 1e-3}}, "plan_kwargs has no entry 'learning_rate'"),
        ({"plan_kwargs": {"lr": -1}}, "plan_kwargs['lr'] must be a positive number"),
        ({"plan_kwargs": {"schedule": "onecycle"}}, "Did you mean 'one-cycle'"),
        ({"external_indexing": [[0, 1], [1, 2]]}, "share 1 cells"),
    ],
)
def test_arguments_of_train_are_checked(adata, arguments, words):
    model = build(adata)
    with pytest.raises(OptionError) as error:
        model.train(**{"enable_progress_bar": False, "max_epochs": 1, **arguments})
    assert words in str(error.value)
    assert not model.is_trained


def test_the_users_data_are_left_alone(adata):
    before = copy.deepcopy(adata)
    model = build(adata)
    model.train(1, enable_progress_bar=False)
    model.get_latent_representation()
    model.get_normalized_expression()
    model.posterior_predictive_sample()
    model.get_feature_correlation_matrix(n_samples=1)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert adata.uns == before.uns
    assert set(adata.layers) == set(before.layers)
    assert len(adata.obsm) == len(adata.obsp) == len(adata.varm) == 0
    for ours, theirs in ((adata.X, before.X), (adata.layers["counts"], before.layers["counts"])):
        assert ours.format == theirs.format
        assert ours.dtype == theirs.dtype
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))


def test_every_store_gives_the_same_model(adata, tmp_path):
    reference = build(adata)
    reference.train(2, enable_progress_bar=False)
    expected = reference.get_latent_representation()
    csr = adata.X
    stores = {"dense": csr.toarray(), "csr_array": sp.csr_array(csr), "int": csr.astype(np.int32), "csc": csr.tocsc()}
    for name, store in stores.items():
        other = anndata.AnnData(store, obs=adata.obs.copy(), var=adata.var.copy())
        if name == "csc":
            with pytest.warns(DataWarning, match="CSC"):
                model = build(other)
        else:
            model = build(other)
        model.train(2, enable_progress_bar=False)
        np.testing.assert_array_equal(model.get_latent_representation(), expected, err_msg=name)
    view = adata[np.arange(adata.n_obs)]
    model = build(view)
    model.train(2, enable_progress_bar=False)
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(reference.get_latent_representation(backed), expected)
    some = np.array([50, 3, 3, 20])
    np.testing.assert_allclose(reference.get_latent_representation(backed, some), expected[some], rtol=1e-5, atol=1e-6)
    backed.file.close()


def test_layer_and_covariates_are_used(adata):
    adata.X = sp.csr_matrix(np.ones(adata.shape, dtype=np.float32))
    countvi.SCVI.setup_anndata(
        adata,
        layer="counts",
        batch_key="batch",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )
    model = countvi.SCVI(adata, n_hidden=8, n_latent=2)
    model.train(3, enable_progress_bar=False)
    base = model.get_normalized_expression(use_z_mean=True)
    for key, value in {"donor": "d1", "age": 3.0}.items():
        other = adata.copy()
        other.obs[key] = value
        assert not np.allclose(model.get_normalized_expression(other, use_z_mean=True), base), key
    np.testing.assert_array_equal(model.bound.summary("rna").cell_totals, adata.layers["counts"].toarray().sum(1))


def test_batch_representation_and_observed_library(adata):
    with_table = build(adata, batch_representation="embedding")
    names = dict(with_table.module.named_parameters())
    assert names["covariates.embedding.weight"].shape == (3, 5)
    assert "decode.layers.0.linear.levels.weight" not in names
    assert "decode.layers.0.linear.levels.weight" in dict(build(adata).module.named_parameters())


def test_other_data_are_matched_by_name(trained, adata):
    expected = trained.get_latent_representation(adata)
    shuffled = adata[:, ::-1].copy()
    np.testing.assert_allclose(trained.get_latent_representation(shuffled), expected, rtol=1e-5, atol=1e-6)
    extra = anndata.concat(
        [adata, anndata.AnnData(np.ones((90, 1)), var=pd.DataFrame(index=["new"]), obs=adata.obs[[]])], axis=1
    )
    extra.obs = adata.obs
    np.testing.assert_allclose(trained.get_latent_representation(extra), expected, rtol=1e-5, atol=1e-6)
    fewer = adata[:, 2:].copy()
    with pytest.raises(MismatchError, match=r"'g0', 'g1'.*prepare_query_anndata"):
        trained.get_latent_representation(fewer)
    padded = countvi.SCVI.prepare_query_anndata(fewer, trained)
    assert list(padded.var_names) == list(adata.var_names)
    assert fewer.n_vars == 13
    zeroed = adata.copy()
    zeroed.X = zeroed.X.toarray() * (np.arange(15) >= 2)
    np.testing.assert_allclose(
        trained.get_latent_representation(padded), trained.get_latent_representation(zeroed), rtol=1e-5, atol=1e-6
    )


def test_other_categories(trained, adata):
    del adata.obs["batch"]
    with pytest.raises(UnknownNameError, match="'batch'"):
        trained.get_latent_representation(adata)


def test_normal_likelihood_takes_any_values(adata):
    adata.X = sp.csr_matrix(adata.X.toarray() - 0.5)
    countvi.SCVI.setup_anndata(adata)
    with pytest.raises(OptionError, match="log_variational=False"):
        countvi.SCVI(adata, gene_likelihood="normal")
    adata.obs["one"] = 1.0
    countvi.SCVI.setup_anndata(adata, size_factor_key="one")
    model = countvi.SCVI(adata, gene_likelihood="normal", log_variational=False, n_hidden=8)
    model.train(2, enable_progress_bar=False)
    assert np.isfinite(model.get_elbo())


def test_repr_says_what_it_is(trained, adata):
    text = repr(trained)
    for fact in ("SCVI (trained, 5 epochs)", "15 features in X", "obs['batch'], 3 categories", "n_latent=3"):
        assert fact in text
    assert "not trained" in repr(build(adata))


def test_covariates_are_compared_with_each_other_and_with_labels(adata):
    adata.obs["site"] = adata.obs["batch"].map({"b0": "s0", "b1": "s0", "b2": "s1"})
    countvi.SCVI.setup_anndata(adata, batch_key="batch", labels_key="label", categorical_covariate_keys=["site"])
    table = countvi.SCVI(adata).get_confounding().set_index(["key", "other"])
    assert len(table) == 6
    assert table.loc[("batch", "site"), "alone"] == 1.0
    assert table.loc[("batch", "site"), "meaning"] == "levels of 'site' are groups of levels of 'batch'"
    assert not table["problem"].any()
