"""What a user may ask of SCVI, and that AnnData is only read: options, set-up, ways to store counts, other data."""

from __future__ import annotations

import copy

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import zarr

import countvi
from countvi.errors import (
    DataWarning,
    MismatchError,
    NotSetUpError,
    NotTrainedError,
    OptionError,
    UnknownNameError,
)
from countvi.estimators.build.scvi import SCVIOptions

# ------------------------------------------------------------------ options and set-up


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gene_likelihood": "nbb"}, r"gene_likelihood must be one of 'zinb', 'nb'.*got 'nbb'\. Did you mean 'nb'\?"),
        ({"gene_likelihood": None}, "gene_likelihood must be one of .*got None"),
        ({"dispersion": "gene_batch"}, r"dispersion must be one of .*Did you mean 'gene-batch'"),
        ({"latent_distribution": "lognormal"}, "latent_distribution must be one of 'normal', 'ln'"),
        ({"use_batch_norm": True}, "use_batch_norm must be one of 'encoder', 'decoder', 'none', 'both'; got True"),
        ({"use_layer_norm": "all"}, "use_layer_norm must be one of"),
        ({"batch_representation": "embed"}, "batch_representation must be one of 'one-hot', 'embedding'"),
        ({"n_hidden": 0}, "n_hidden must be a whole number of at least 1; got 0"),
        ({"n_latent": -3}, "n_latent must be a whole number of at least 1; got -3"),
        ({"n_layers": 1.5}, r"n_layers must be a whole number of at least 1; got 1\.5"),
        ({"n_layers": True}, "n_layers must be a whole number of at least 1; got True"),
        ({"dropout_rate": 1.0}, r"dropout_rate must be at least 0 and less than 1; got 1\.0"),
        ({"dropout_rate": -0.1}, "dropout_rate must be at least 0"),
        ({"dropout_rate": float("nan")}, "dropout_rate must be at least 0"),
        ({"dropout_rate": "a lot"}, "dropout_rate must be at least 0 and less than 1; got 'a lot'"),
        ({"gene_likelihood": "poisson", "dispersion": "gene-batch"}, "A Poisson likelihood has no dispersion"),
    ],
)
def test_options_are_checked(simulate, options, message):
    adata = simulate()
    countvi.SCVI.setup_anndata(adata)
    with pytest.raises(OptionError, match=message):
        countvi.SCVI(adata, **options)


def test_whole_numbers_of_numpy_are_whole_numbers(simulate):
    adata = simulate()
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=np.int64(8), n_latent=np.int32(3))  # type: ignore[arg-type]
    assert model.module.rho.in_features == 8


@pytest.mark.parametrize(
    ("long", "short"), [("negative_binomial", "nb"), ("zero_inflated_negative_binomial", "zinb"), ("nb", "nb")]
)
def test_both_spellings_of_a_likelihood(long, short):
    assert SCVIOptions(gene_likelihood=long).gene_likelihood == short


def test_defaults_are_those_of_the_documentation(simulate):
    adata = simulate()
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata)
    assert model.options == SCVIOptions()
    assert model.module.rho.in_features == 128


def test_an_anndata_that_was_not_set_up(simulate):
    adata = simulate()
    with pytest.raises(NotSetUpError, match=r"40 cells x 12 genes.*SCVI.setup_anndata"):
        countvi.SCVI(adata)
    countvi.SCVI.setup_anndata(adata)
    countvi.SCVI(adata)
    for other in (adata.copy(), adata[:10], adata[:10].copy()):
        with pytest.raises(NotSetUpError, match="a copy or subset needs a call of its own"):
            countvi.SCVI(other)
    countvi.SCVI.setup_anndata(other, batch_key="batch")
    assert countvi.SCVI(other).registry.columns[0].key == "batch"
    assert countvi.SCVI(adata).registry.columns[0].key is None


def test_a_second_set_up_replaces_the_first_but_not_in_a_model(simulate):
    adata = simulate()
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    first = countvi.SCVI(adata, n_hidden=4)
    countvi.SCVI.setup_anndata(adata)
    assert first.registry.columns[0].key == "batch"
    assert countvi.SCVI(adata, n_hidden=4).registry.columns[0].key is None


def test_read_outs_need_training(simulate):
    adata = simulate()
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=4)
    for name in (
        "get_latent_representation",
        "get_elbo",
        "get_reconstruction_error",
        "get_marginal_ll",
        "get_normalized_expression",
        "get_likelihood_parameters",
        "get_latent_library_size",
        "posterior_predictive_sample",
        "get_feature_correlation_matrix",
    ):
        with pytest.raises(NotTrainedError, match=r"Call model\.train\(\) first"):
            getattr(model, name)()
    with pytest.raises(NotTrainedError, match="no split"):
        _ = model.train_indices


def test_repr_says_what_was_registered(simulate, fit):
    adata = simulate()
    adata.layers["counts"] = adata.X
    setup = {"layer": "counts", "batch_key": "batch", "labels_key": "label", "categorical_covariate_keys": ["donor"]}
    countvi.SCVI.setup_anndata(adata, **setup)
    assert "not trained" in repr(countvi.SCVI(adata, n_hidden=4))
    text = repr(fit(adata, setup, 2, n_hidden=4))
    for part in (
        "SCVI (trained, 2 epochs)",
        "12 features in layers/counts",
        "batch: obs['batch'], 3 categories",
        "labels: obs['label'], 2 categories",
        "obs['donor'], 4 categories",
        "n_hidden=4",
    ):
        assert part in text


EVERY_OPTION = [
    {"gene_likelihood": likelihood, "dispersion": dispersion}
    for likelihood in ("zinb", "nb", "normal")
    for dispersion in ("gene", "gene-batch", "gene-label", "gene-cell")
] + [
    {"gene_likelihood": "poisson"},
    {"latent_distribution": "ln"},
    {"use_observed_lib_size": False},
    {"use_observed_lib_size": False, "encode_covariates": True, "batch_representation": "embedding"},
    {"encode_covariates": True, "n_layers": 2, "deeply_inject_covariates": False},
    {"encode_covariates": True, "n_layers": 2, "use_batch_norm": "none"},
    {"use_layer_norm": "both", "use_batch_norm": "none"},
    {"use_layer_norm": "decoder", "use_batch_norm": "encoder"},
    {"log_variational": False},
]


@pytest.mark.parametrize("options", EVERY_OPTION, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
@pytest.mark.parametrize("sized", [False, True], ids=["", "size factor"])
def test_every_parameter_receives_a_gradient(simulate, options, sized):
    adata = simulate()
    countvi.SCVI.setup_anndata(
        adata,
        batch_key="batch",
        labels_key="label",
        size_factor_key="sf" if sized else None,
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )
    model = countvi.SCVI(adata, n_hidden=8, n_latent=3, **options)
    before = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    # Two epochs: what feeds through a head that starts at zero receives its gradient from the second step on.
    model.train(2, batch_size=16, enable_progress_bar=False, plan_kwargs={"min_kl_weight": 0.5, "weight_decay": 0.0})
    still = [name for name, value in model.module.named_parameters() if torch.equal(value, before[name])]
    assert not still


# ------------------------------------------------------------------ the user's AnnData


def deep(adata: anndata.AnnData) -> dict:
    """Everything an AnnData holds, copied."""
    return {
        "X": adata.X.copy(),
        "layers": {key: value.copy() for key, value in adata.layers.items()},
        "obs": adata.obs.copy(),
        "var": adata.var.copy(),
        "obsm": {key: value.copy() for key, value in adata.obsm.items()},
        "uns": copy.deepcopy(dict(adata.uns)),
        "keys": [list(getattr(adata, name)) for name in ("layers", "obsm", "varm", "obsp", "varp", "uns")],
    }


def same(a, b) -> None:
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif sp.issparse(a):
        assert type(a) is type(b)
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
            assert getattr(a, part).dtype == getattr(b, part).dtype
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    else:
        assert a == b


@pytest.mark.parametrize("kind", ["sparse", "dense", "unsorted"])
def test_the_anndata_of_the_user_is_only_read(simulate, fit, tmp_path, kind):
    adata = simulate()
    if kind == "dense":
        adata.X = adata.X.toarray()
    if kind == "unsorted":
        x = adata.X
        for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True):
            x.indices[a:b], x.data[a:b] = x.indices[a:b][::-1].copy(), x.data[a:b][::-1].copy()
        x.has_sorted_indices = False
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.uns["colors"] = {"a": [1, 2]}
    query = adata[:, ::-1].copy()
    before, before_query = deep(adata), deep(query)
    model = fit(
        adata,
        {
            "batch_key": "batch",
            "labels_key": "label",
            "size_factor_key": None,
            "categorical_covariate_keys": ["donor"],
            "continuous_covariate_keys": ["age"],
        },
    )
    for data in (None, query):
        model.get_latent_representation(data)
        model.get_elbo(data)
        model.get_reconstruction_error(data)
        model.get_marginal_ll(data, n_mc_samples=2)
        model.get_normalized_expression(data, transform_batch="a")
        model.get_likelihood_parameters(data)
        model.get_latent_library_size(data)
        model.posterior_predictive_sample(data)
        model.get_feature_correlation_matrix(data, n_samples=2)
    model.save(tmp_path / "model", save_anndata=True)
    countvi.SCVI.load(tmp_path / "model", adata)
    countvi.SCVI.prepare_query_anndata(query, model)
    same(before, deep(adata))
    same(before_query, deep(query))


# ------------------------------------------------------------------ ways to store the same counts


def latent_of(adata, fit, **setup):
    return fit(adata, {"batch_key": "batch", **setup}, 2).get_latent_representation()


@pytest.mark.parametrize("kind", ["csr_array", "dense", "view", "layer", "backed", "backed view", "int64", "float64"])
def test_however_counts_are_stored_the_latent_is_the_same(simulate, fit, tmp_path, kind):
    adata, setup = simulate(), {}
    expected = latent_of(simulate(), fit)
    if kind == "csr_array":
        adata.X = sp.csr_array(adata.X)
    elif kind == "dense":
        adata.X = adata.X.toarray()
    elif kind in ("int64", "float64"):
        adata.X = adata.X.astype(kind)
    elif kind == "layer":
        adata.layers["counts"] = adata.X
        adata.X = np.log1p(adata.X)
        setup = {"layer": "counts"}
    elif kind == "view":
        adata = anndata.concat([simulate(5, seed=9), adata], index_unique="-")[5:]
    elif kind.startswith("backed"):
        anndata.concat([simulate(5, seed=9), adata], index_unique="-").write_h5ad(tmp_path / "more.h5ad")
        adata.write_h5ad(tmp_path / "counts.h5ad")
        file = anndata.read_h5ad(tmp_path / ("counts.h5ad" if kind == "backed" else "more.h5ad"), backed="r")
        adata = file if kind == "backed" else file[5:]
    np.testing.assert_array_equal(latent_of(adata, fit, **setup), expected)
    if kind.startswith("backed"):
        file.file.close()


def test_csc_is_converted_with_a_notice(simulate, fit):
    adata = simulate()
    adata.X = adata.X.tocsc()
    with pytest.warns(DataWarning, match="stored as CSC"):
        latent = latent_of(adata, fit)
    np.testing.assert_array_equal(latent, latent_of(simulate(), fit))


# ------------------------------------------------------------------ another AnnData


@pytest.fixture(scope="module")
def model(simulate, fit):
    return fit(simulate(), {"batch_key": "batch", "categorical_covariate_keys": ["donor"]}, 3)


def read_outs(model, adata):
    parameters = model.get_likelihood_parameters(adata)
    return {
        "latent": model.get_latent_representation(adata),
        "elbo": model.get_elbo(adata, return_mean=False),
        "evidence": model.get_marginal_ll(adata, n_mc_samples=4, return_mean=False),
        "error": model.get_reconstruction_error(adata, return_mean=False)["reconstruction_loss"],
        "expression": model.get_normalized_expression(adata).to_numpy(),
        "counts": model.posterior_predictive_sample(adata).toarray(),
        "correlation": model.get_feature_correlation_matrix(adata).to_numpy(),
        **parameters,
    }


def test_genes_in_another_order_and_more_of_them(model, simulate):
    adata = simulate()
    extra = anndata.AnnData(
        sp.csr_matrix(np.full((40, 2), 7, np.float32)), obs=adata.obs, var=pd.DataFrame(index=["x", "y"])
    )
    more = anndata.concat([extra, adata], axis=1, merge="same")
    shuffled = more[:, np.random.default_rng(1).permutation(more.n_vars)].copy()
    expected = read_outs(model, None)
    for other in (adata, shuffled):
        for name, value in read_outs(model, other).items():
            np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=2e-6, err_msg=name)
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected["latent"])
    reversed_genes = model.get_normalized_expression(adata[:, ::-1].copy())
    assert list(reversed_genes.columns) == list(adata.var_names)


def test_missing_genes(model, simulate):
    query = simulate()[:, 2:].copy()
    with pytest.raises(MismatchError, match=r"2 of the model's 12 genes are missing.*'gene0'.*prepare_query_anndata"):
        model.get_latent_representation(query)
    prepared = countvi.SCVI.prepare_query_anndata(query, model)
    assert list(prepared.var_names) == [f"gene{i}" for i in range(12)]
    padded = simulate()
    dense = padded.X.toarray()
    dense[:, :2] = 0
    padded.X = sp.csr_matrix(dense)
    np.testing.assert_array_equal(model.get_latent_representation(prepared), model.get_latent_representation(padded))


def test_categories_by_value(model, simulate):
    query = simulate()[:9].copy()
    expected = model.get_elbo(query, return_mean=False)
    query.obs["batch"] = pd.Categorical(query.obs["batch"].astype(str), categories=["z", "c", "b", "a"])
    query.obs["donor"] = pd.Categorical(query.obs["donor"], categories=[3, 2, 1, 0])
    np.testing.assert_array_equal(model.get_elbo(query, return_mean=False), expected)
    query.obs["batch"] = ["A"] * 9
    with pytest.raises(MismatchError, match=r"obs\['batch'\].*'A'.*Did you mean 'a'\?"):
        model.get_elbo(query)
    del query.obs["batch"]
    with pytest.raises(UnknownNameError, match="batch"):
        model.get_elbo(query)


# ------------------------------------------------------------------ indices


def test_all_forms_of_indices(model):
    whole = model.get_latent_representation()
    rows = [5, 2, 39]
    mask = np.zeros(40, bool)
    mask[rows] = True
    for indices, expected in [
        (rows, rows),
        (np.array(rows, np.uint8), rows),
        (pd.Series(rows), rows),
        (mask, [2, 5, 39]),
        (list(mask), [2, 5, 39]),
        (pd.Series(mask), [2, 5, 39]),
        (slice(30, None, 3), [30, 33, 36, 39]),
        ([-1, 0, 0], [39, 0, 0]),
        (range(3), [0, 1, 2]),
        (model.validation_indices, model.validation_indices),
        (None, np.arange(40)),
    ]:
        # Another split into minibatches changes the order of sums in a matrix product, not more.
        np.testing.assert_allclose(model.get_latent_representation(indices=indices), whole[expected], rtol=1e-5)
        frame = model.get_normalized_expression(indices=indices)
        assert list(frame.index) == [f"cell{i}" for i in expected]


@pytest.mark.parametrize("indices", [[], np.zeros(40, bool), slice(0, 0)], ids=["list", "mask", "slice"])
def test_no_cells(model, indices):
    assert model.get_latent_representation(indices=indices).shape == (0, 3)
    assert model.get_normalized_expression(indices=indices).shape == (0, 12)
    assert model.get_elbo(indices=indices, return_mean=False).shape == (0,)
    assert model.posterior_predictive_sample(indices=indices).shape == (0, 12)
    with pytest.raises(OptionError, match="at least one cell"):
        model.get_normalized_expression(indices=indices, n_samples_overall=3)


@pytest.mark.parametrize("name", ["get_elbo", "get_reconstruction_error", "get_marginal_ll"])
def test_a_mean_over_no_cells_is_refused(model, name):
    with pytest.raises(OptionError, match="at least one cell"):
        getattr(model, name)(indices=[])


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([40], MismatchError, "1 rows that do not exist, such as 40; there are 40 cells"),
        ([-41], MismatchError, "such as -41"),
        (np.ones(39, bool), MismatchError, r"one entry per cell \(40\); got 39"),
        ([[1, 2]], MismatchError, r"one-dimensional; got shape \(1, 2\)"),
        ([0.5], OptionError, "row numbers or a boolean mask; got float64"),
        (["cell1"], OptionError, r"For names, use adata\.obs_names\.get_indexer"),
        (3, MismatchError, "one-dimensional"),
    ],
)
def test_indices_that_cannot_be(model, indices, error, message):
    with pytest.raises(error, match=message):
        model.get_latent_representation(indices=indices)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_batch_size_of_a_read_out(model, batch_size):
    with pytest.raises(OptionError, match="batch_size must be a whole number of at least 1"):
        model.get_latent_representation(batch_size=batch_size)
    np.testing.assert_allclose(
        model.get_latent_representation(batch_size=7), model.get_latent_representation(), rtol=1e-5
    )


# ------------------------------------------------------------------ expression


def test_transform_batch(model):
    arguments = {"use_z_mean": True, "return_numpy": True}
    own = model.get_normalized_expression(**arguments)
    by_batch = {b: model.get_normalized_expression(transform_batch=b, **arguments) for b in "abc"}
    batches = model.adata.obs["batch"].to_numpy()
    for batch, values in by_batch.items():
        np.testing.assert_allclose(values[batches == batch], own[batches == batch], rtol=1e-5)
        assert np.abs(values - own)[batches != batch].max() > 1e-6
    average = model.get_normalized_expression(transform_batch=["a", "c"], **arguments)
    np.testing.assert_allclose(average, (by_batch["a"] + by_batch["c"]) / 2, rtol=1e-5)
    everywhere = model.get_normalized_expression(transform_batch="average", **arguments)
    np.testing.assert_allclose(everywhere, sum(by_batch.values()) / 3, rtol=1e-5)
    with pytest.raises(UnknownNameError, match=r"'A'.*Did you mean 'a'"):
        model.get_normalized_expression(transform_batch="A")
    with pytest.raises(OptionError, match="empty list"):
        model.get_normalized_expression(transform_batch=[])
    with pytest.raises(OptionError, match="one batch at a time"):
        model.posterior_predictive_sample(transform_batch=["a", "b"])
    with pytest.raises(OptionError, match="one batch at a time"):
        model.posterior_predictive_sample(transform_batch="average")
    assert model.posterior_predictive_sample(transform_batch="a").shape == (40, 12)


def test_gene_list(model):
    names = ["gene7", "gene0", "gene3"]
    whole = model.get_normalized_expression(library_size=100)
    some = model.get_normalized_expression(library_size=100, gene_list=names)
    assert list(some.columns) == names
    np.testing.assert_allclose(some, whole[names], rtol=1e-6)
    mask = np.isin(whole.columns, names)
    assert list(model.get_normalized_expression(gene_list=mask).columns) == ["gene0", "gene3", "gene7"]
    assert list(model.get_feature_correlation_matrix(gene_list=names, n_samples=2).index) == names
    expected = model.posterior_predictive_sample().toarray()[:, [7, 0, 3]]
    np.testing.assert_array_equal(model.posterior_predictive_sample(gene_list=names).toarray(), expected)
    with pytest.raises(UnknownNameError, match=r"1 of 2 genes are not in the model: 'gene99'.*Did you mean 'gene9'"):
        model.get_normalized_expression(gene_list=["gene1", "gene99"])
    with pytest.raises(MismatchError, match="mask of genes"):
        model.get_normalized_expression(gene_list=mask[:-1])


def test_library_size(model):
    totals = np.asarray(model.adata.X.sum(axis=1)).ravel()
    for size, sums in [(1, 1.0), (1e4, 1e4), (np.float32(10), 10.0), ("latent", totals)]:
        values = model.get_normalized_expression(library_size=size)
        np.testing.assert_allclose(values.sum(axis=1), np.broadcast_to(sums, 40), rtol=1e-4)
    np.testing.assert_allclose(model.get_latent_library_size().ravel(), totals, rtol=1e-5)
    for bad in (0, -1, float("nan"), "Latent", None, np.array([1.0, 2.0]), [1.0]):
        with pytest.raises(OptionError, match="library_size must be a positive number or 'latent'"):
            model.get_normalized_expression(library_size=bad)


def test_shapes_and_labels(model):
    frame = model.get_normalized_expression()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.index) == list(model.adata.obs_names)
    assert list(frame.columns) == list(model.adata.var_names)
    assert isinstance(model.get_normalized_expression(return_numpy=True), np.ndarray)
    assert isinstance(model.get_normalized_expression(n_samples=3), pd.DataFrame)
    assert model.get_normalized_expression(n_samples=3, return_mean=False, indices=[1, 2]).shape == (3, 2, 12)
    assert model.get_normalized_expression(n_samples=1, return_mean=False).shape == (40, 12)
    population = model.get_normalized_expression(n_samples_overall=7)
    assert population.shape == (7, 12)
    assert list(population.index) == list(range(7))
    assert model.get_likelihood_parameters(n_samples=2)["mean"].shape == (2, 40, 12)
    assert set(model.get_likelihood_parameters()) == {"mean", "dispersions", "dropout"}
    samples = model.posterior_predictive_sample(n_samples=2)
    assert isinstance(samples, list)
    assert [sample.shape for sample in samples] == [(40, 12)] * 2
    for bad in (0, 1.5, -1):
        with pytest.raises(OptionError, match="n_samples must be a whole number"):
            model.get_normalized_expression(n_samples=bad)
        with pytest.raises(OptionError, match="n_samples_overall must be a whole number"):
            model.get_normalized_expression(n_samples_overall=bad)


def test_the_mean_over_draws_is_their_mean(model):
    draws = model.get_normalized_expression(n_samples=5, return_mean=False, seed=3)
    assert draws.std(axis=0).max() > 0
    np.testing.assert_allclose(model.get_normalized_expression(n_samples=5, seed=3), draws.mean(0), rtol=1e-5)


def test_out(model, tmp_path):
    expected = model.get_normalized_expression(return_numpy=True, seed=4)
    stores = {
        "numpy": np.empty((40, 12), np.float32),
        "zarr": zarr.create_array(tmp_path / "a.zarr", shape=(40, 12), chunks=(16, 5), dtype="f4"),
        "h5py": h5py.File(tmp_path / "a.h5", "w").create_dataset("x", (40, 12), "f8"),
        "memmap": np.memmap(tmp_path / "a.bin", np.float32, "w+", shape=(40, 12)),
    }
    for name, out in stores.items():
        assert model.get_normalized_expression(out=out, seed=4, batch_size=40) is out
        np.testing.assert_array_equal(out[:], expected, err_msg=name)
    stores["h5py"].file.close()
    for bad, message in [
        (np.empty((12, 40), np.float32), "out must have shape"),
        (np.empty((40, 12), int), "floating-point"),
        ([], "out must be an array"),
    ]:
        with pytest.raises(OptionError, match=message):
            model.get_normalized_expression(out=bad)


def test_a_model_with_held_out_cells_is_trained_on_without_saying_it_again(simulate):
    """Where a model holds out nothing by default, its first split stays all the same."""
    adata = simulate()
    adata.obs["type"] = ["a", "b"] * (adata.n_obs // 2)
    countvi.CondSCVI.setup_anndata(adata, labels_key="type")
    model = countvi.CondSCVI(adata, n_hidden=8)
    model.train(1, train_size=0.8, enable_progress_bar=False)
    held_out = model.validation_indices.copy()
    model.train(1, enable_progress_bar=False)
    np.testing.assert_array_equal(model.validation_indices, held_out)


def test_the_set_up_shows_how_many_cells_have_labels_that_the_model_does_not_read(simulate, capsys):
    adata = simulate()
    adata.obs["type"] = ["a"] * (adata.n_obs - 3) + ["b"] * 3
    countvi.SCVI.setup_anndata(adata, labels_key="type")
    countvi.SCVI(adata, n_hidden=8).view_anndata_setup()
    shown = {
        line.split("│")[1].strip(): line.split("│")[3].strip()
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    }
    assert shown == {"a": str(adata.n_obs - 3), "b": "3"}
