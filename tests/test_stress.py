"""Awkward data: read-outs are finite, and what cannot be used is refused in a sentence.

Every case runs over all likelihoods and both kinds of library. ``docs`` promise that nothing here ends in NaN or in an
exception that is not one of countvi's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi.errors import CountviError, DataError, MismatchError, OptionError

LIKELIHOODS = ["zinb", "nb", "poisson", "normal"]

# The data are awkward on purpose, and countvi says so; that it says so is tested where its checks are.
pytestmark = pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")


def as_adata(counts: np.ndarray, batch: list[str] | None = None) -> anndata.AnnData:
    n_cells, n_genes = counts.shape
    obs = pd.DataFrame(
        {"batch": ["a"] * n_cells if batch is None else batch, "sf": 1.0}, index=[f"cell{i}" for i in range(n_cells)]
    )
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))


def poisson(n_cells: int = 20, n_genes: int = 6, rate: float = 3.0) -> np.ndarray:
    return np.random.default_rng(0).poisson(rate, (n_cells, n_genes)).astype(np.float32)


def empty_cells() -> anndata.AnnData:
    counts = poisson()
    counts[::3] = 0
    return as_adata(counts)


def an_empty_cell_alone_in_its_batch() -> anndata.AnnData:
    counts = poisson()
    counts[0] = 0
    return as_adata(counts, ["lone"] + ["a"] * 19)


def empty_genes() -> anndata.AnnData:
    counts = poisson()
    counts[:, 1:4] = 0
    return as_adata(counts)


def one_cell_batches() -> anndata.AnnData:
    return as_adata(poisson(9), [f"b{i}" for i in range(9)])


def huge_counts() -> anndata.AnnData:
    counts = poisson()
    counts[2, 3] = 1e6
    counts[5:8] += 1e6
    return as_adata(counts)


def one_huge_count_among_zeros() -> anndata.AnnData:
    counts = np.zeros((20, 6), np.float32)
    counts[4, 2] = 1e6
    return as_adata(counts)


def library_from_one_to_a_million() -> anndata.AnnData:
    totals = np.logspace(0, 6, 24)
    rho = np.random.default_rng(1).dirichlet(np.ones(6), 24)
    counts = np.random.default_rng(2).poisson(totals[:, None] * rho).astype(np.float32)
    counts[0] = [1, 0, 0, 0, 0, 0]
    return as_adata(counts)


def one_gene() -> anndata.AnnData:
    return as_adata(poisson(n_genes=1))


def one_cell() -> anndata.AnnData:
    return as_adata(poisson(1))


def one_cell_and_gene() -> anndata.AnnData:
    return as_adata(np.array([[5.0]], np.float32))


def two_cells() -> anndata.AnnData:
    return as_adata(poisson(2))


def fractions() -> anndata.AnnData:
    return as_adata(np.log1p(poisson()) + np.float32(0.25))


def identical_cells() -> anndata.AnnData:
    return as_adata(np.tile(poisson(1), (20, 1)))


def all_zero() -> anndata.AnnData:
    return as_adata(np.zeros((12, 6), np.float32))


def nothing_stored_and_one_gene() -> anndata.AnnData:
    return as_adata(np.zeros((3, 1), np.float32))


AWKWARD: list[Callable[[], anndata.AnnData]] = [
    empty_cells,
    an_empty_cell_alone_in_its_batch,
    empty_genes,
    one_cell_batches,
    huge_counts,
    one_huge_count_among_zeros,
    library_from_one_to_a_million,
    one_gene,
    one_cell,
    one_cell_and_gene,
    two_cells,
    fractions,
    identical_cells,
    all_zero,
    nothing_stored_and_one_gene,
]


def fitted(adata: anndata.AnnData, *, batch_size: int = 128, setup: dict[str, Any] | None = None, **options: Any):
    countvi.SCVI.setup_anndata(adata, **({"batch_key": "batch"} if setup is None else setup))
    model = countvi.SCVI(adata, **{"n_hidden": 4, "n_latent": 2, **options})
    model.train(2, batch_size=batch_size, enable_progress_bar=False)
    return model


def dense(value: Any) -> np.ndarray:
    return value.toarray() if sp.issparse(value) else np.asarray(value)


def check_read_outs(model: countvi.SCVI, adata: anndata.AnnData | None = None) -> None:
    """Every read-out has the right shape and nothing in it is NaN or infinite."""
    assert model.adata is not None
    n_cells, n_genes = (model.adata if adata is None else adata).n_obs, len(model.registry.modalities[0].feature_names)
    n_latent = model.get_latent_representation(adata).shape[1]
    loc, variance = model.get_latent_representation(adata, return_dist=True)
    parameters = model.get_likelihood_parameters(adata, n_samples=2)
    results: dict[str, tuple[Any, tuple[int, ...]]] = {
        "latent": (model.get_latent_representation(adata), (n_cells, n_latent)),
        "a draw of the latent": (model.get_latent_representation(adata, give_mean=False), (n_cells, n_latent)),
        "loc": (loc, (n_cells, n_latent)),
        "variance": (variance, (n_cells, n_latent)),
        "elbo": (model.get_elbo(adata, return_mean=False), (n_cells,)),
        "mean elbo": (model.get_elbo(adata), ()),
        "error": (model.get_reconstruction_error(adata, return_mean=False)["reconstruction_loss"], (n_cells,)),
        "evidence": (model.get_marginal_ll(adata, n_mc_samples=3, return_mean=False), (n_cells,)),
        "frequencies": (model.get_normalized_expression(adata, return_numpy=True), (n_cells, n_genes)),
        "rates": (model.get_normalized_expression(adata, library_size="latent"), (n_cells, n_genes)),
        "draws of rates": (
            model.get_normalized_expression(adata, library_size=1e4, n_samples=2, return_mean=False),
            (2, n_cells, n_genes),
        ),
        "population": (model.get_normalized_expression(adata, n_samples_overall=5), (5, n_genes)),
        "of the mean": (model.get_normalized_expression(adata, use_z_mean=True), (n_cells, n_genes)),
        "library": (model.get_latent_library_size(adata), (n_cells, 1)),
        "a draw of the library": (model.get_latent_library_size(adata, give_mean=False), (n_cells, 1)),
        "new counts": (model.posterior_predictive_sample(adata), (n_cells, n_genes)),
        "correlation": (model.get_feature_correlation_matrix(adata, n_samples=2), (n_genes, n_genes)),
        "pearson": (
            model.get_feature_correlation_matrix(adata, n_samples=2, correlation_type="pearson"),
            (n_genes, n_genes),
        ),
        "history": (model.history.to_numpy(dtype=float)[:, ~model.history.isna().all()], (2, None)),
        **{name: (value, (2, n_cells, n_genes)) for name, value in parameters.items()},
    }
    for name, (value, shape) in results.items():
        array = dense(value)
        if name != "history":
            assert array.shape == shape, name
        assert np.isfinite(array).all(), name
    if model.options.gene_likelihood != "normal":
        assert (dense(results["new counts"][0]) >= 0).all()


@pytest.mark.parametrize("observed", [True, False], ids=["observed library", "latent library"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("make", AWKWARD, ids=lambda make: make.__name__)
def test_awkward_data(make, likelihood, observed):
    model = fitted(make(), gene_likelihood=likelihood, use_observed_lib_size=observed)
    assert model.history["n_rollbacks"].sum() == 0
    check_read_outs(model)


@pytest.mark.parametrize(
    "options",
    [
        {"n_latent": 1},
        {"n_latent": 1, "latent_distribution": "ln"},
        {"latent_distribution": "ln", "dispersion": "gene-cell"},
        {"dispersion": "gene-batch", "batch_representation": "embedding", "encode_covariates": True},
        {"use_batch_norm": "none", "use_layer_norm": "both"},
        {"use_batch_norm": "none", "log_variational": False},
        {"n_hidden": 1, "n_layers": 3},
        {"dropout_rate": 0.95},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
@pytest.mark.parametrize("make", [empty_cells, huge_counts, one_cell_batches, library_from_one_to_a_million])
def test_options_on_awkward_data(make, options):
    check_read_outs(fitted(make(), **options))


@pytest.mark.parametrize("make", [empty_cells, huge_counts, one_cell, all_zero])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_size_factors_on_awkward_data(make, likelihood):
    check_read_outs(fitted(make(), setup={"size_factor_key": "sf"}, gene_likelihood=likelihood))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_extreme_size_factors(likelihood, factor):
    adata = as_adata(poisson())
    adata.obs["sf"] = np.where(np.arange(adata.n_obs) % 2, factor, 1.0)
    check_read_outs(fitted(adata, setup={"size_factor_key": "sf"}, gene_likelihood=likelihood))


# 20 cells, 18 of them for training: 17 and 1, nine pairs, singles, one batch.
@pytest.mark.parametrize("batch_size", [17, 2, 1, 18, 10_000])
@pytest.mark.parametrize("observed", [True, False])
def test_a_cell_left_over(batch_size, observed):
    check_read_outs(fitted(as_adata(poisson()), batch_size=batch_size, use_observed_lib_size=observed))


@pytest.mark.parametrize("n_cells", [2, 3])
def test_fewer_cells_than_a_minibatch_and_all_trained_on(n_cells):
    adata = as_adata(poisson(n_cells))
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=4, n_latent=2)
    model.train(2, batch_size=128, train_size=1.0, enable_progress_bar=False)
    assert len(model.validation_indices) == 0
    check_read_outs(model)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"])
def test_dtypes_of_counts(dtype):
    counts = np.minimum(poisson(), 1) if dtype == "bool" else poisson()
    adata, reference = as_adata(counts), as_adata(counts)
    adata.X = sp.csr_matrix(counts.astype(dtype))
    model, expected = fitted(adata), fitted(reference)
    check_read_outs(model)
    np.testing.assert_array_equal(model.get_latent_representation(), expected.get_latent_representation())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_refused_by_name(likelihood, value):
    counts = poisson()
    counts[7, 2] = value
    adata = as_adata(counts)
    countvi.SCVI.setup_anndata(adata)
    with pytest.raises(DataError, match=r"1 NaN or infinite values, the first in cell 'cell7', gene 'gene2'"):
        countvi.SCVI(adata, gene_likelihood=likelihood)


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_negative_counts_are_refused_by_name(likelihood):
    counts = poisson()
    counts[7, 2] = -1
    adata = as_adata(counts)
    countvi.SCVI.setup_anndata(adata)
    with pytest.raises(DataError, match=r"1 negative values, the first in cell 'cell7', gene 'gene2'"):
        countvi.SCVI(adata, gene_likelihood=likelihood)


def test_negative_values_and_the_normal_likelihood():
    counts = poisson() - 3
    adata = as_adata(counts)
    countvi.SCVI.setup_anndata(adata)
    with pytest.raises(OptionError, match="log_variational=False"):
        countvi.SCVI(adata, gene_likelihood="normal")
    with pytest.raises(DataError, match="negative total"):
        countvi.SCVI(adata, gene_likelihood="normal", log_variational=False)
    options = {"gene_likelihood": "normal", "log_variational": False}
    check_read_outs(fitted(adata, setup={"size_factor_key": "sf"}, **options))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing_at_all_is_refused(shape):
    adata = anndata.AnnData(sp.csr_matrix(np.zeros(shape, np.float32)))
    with pytest.raises(DataError, match="AnnData is empty"):
        countvi.SCVI.setup_anndata(adata)


def test_an_unseen_batch_at_query_time():
    model = fitted(as_adata(poisson(), ["a", "b"] * 10))
    query = as_adata(poisson(4), ["a", "b", "c", "c"])
    with pytest.raises(MismatchError, match=r"obs\['batch'\].*'c'"):
        model.get_latent_representation(query)
    check_read_outs(model, query[:2].copy())


@pytest.mark.parametrize("make", AWKWARD, ids=lambda make: make.__name__)
def test_awkward_data_as_a_query(make):
    """Cells unlike those trained on: read-outs of a sound model stay finite, too."""
    query = make()
    n_genes = query.n_vars
    model = fitted(as_adata(poisson(n_genes=n_genes)), setup={})
    check_read_outs(model, query)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0], ids=str)
@pytest.mark.parametrize("observed", [True, False], ids=["observed library", "latent library"])
def test_a_query_is_checked_like_the_data_of_the_model(value, observed):
    """A model of counts must not pass NaN on, whether it comes by set-up or by query."""
    model = fitted(as_adata(poisson()), setup={}, use_observed_lib_size=observed)
    counts = poisson(5)
    counts[2, 1] = value
    with pytest.raises(DataError, match=r"the first in cell 'cell2', gene 'gene1'"):
        model.get_latent_representation(as_adata(counts))


def test_the_messages_are_sentences():
    """One refusal of each kind: no message is empty, and each says what to do in words."""
    refusals: list[Callable[[], Any]] = [
        lambda: countvi.SCVI(as_adata(poisson())),
        lambda: countvi.SCVI.setup_anndata(as_adata(poisson()), batch_key="btach"),
        lambda: countvi.SCVI.setup_anndata(as_adata(poisson()), layer="counts"),
        lambda: fitted(as_adata(poisson()), gene_likelihood="nbb"),
        lambda: fitted(as_adata(poisson()), batch_size=0),
        lambda: fitted(as_adata(poisson())).get_latent_representation(indices=[99]),
    ]
    for refuse in refusals:
        with pytest.raises(CountviError) as caught:
            refuse()
        text = str(caught.value)
        assert len(text.split()) > 5
        assert re.search(r"[.?]$", text), text
