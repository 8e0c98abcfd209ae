"""Models that keep the posterior of their cells instead of the counts read out what they did before."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from tests.conftest import fit_small, simulate_adata
from tests.estimators import regularized

import countvi
from countvi import errors


def _scvi(**options: Any) -> Any:
    return fit_small(simulate_adata(), {"batch_key": "batch", "continuous_covariate_keys": ["age"]}, **options)


def _multimodal() -> Any:
    mdata = regularized.make_mdata()
    countvi.RegularizedMultimodalVI.setup_mudata(mdata, batch_key="batch")
    model = countvi.RegularizedMultimodalVI(mdata, **regularized.SMALL)
    model.train(1, **regularized.QUIET)
    return model


def _proteins(gaps: bool) -> Any:
    adata = simulate_adata()
    counts = np.random.default_rng(0).poisson(20.0, (adata.n_obs, 4)).astype(np.float32)
    if gaps:
        counts[(adata.obs["batch"] == adata.obs["batch"].iloc[0]).to_numpy(), 1] = np.nan
        counts[3, 2] = np.nan
    adata.obsm["protein"] = counts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.DataWarning)
        countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
        model = countvi.TOTALVI(adata, n_latent=3, n_hidden=8)
        model.train(1, enable_progress_bar=False)
    return model


CASES = {
    "observed library": _scvi,
    "inferred library": lambda: _scvi(use_observed_lib_size=False),
    "logistic": lambda: _scvi(latent_distribution="ln", gene_likelihood="nb"),
    "multimodal": _multimodal,
    "proteins": lambda: _proteins(gaps=False),
    "proteins, some not measured": lambda: _proteins(gaps=True),
}


def _readouts(model: Any) -> list[np.ndarray]:
    expression = model.get_normalized_expression(library_size="latent", n_samples=2, return_numpy=True)
    sizes = model.get_latent_library_size()
    found = [model.get_latent_representation(), model.get_latent_representation(give_mean=False)]
    for part in (expression, sizes):
        found += list(part.values()) if isinstance(part, dict) else list(part) if isinstance(part, tuple) else [part]
    if isinstance(model, countvi.TOTALVI):
        found.append(model.get_protein_foreground_probability(n_samples=2, return_numpy=True))
    return found


@pytest.mark.parametrize("case", CASES)
def test_read_outs_are_what_they_were(case, tmp_path) -> None:
    model = CASES[case]()
    before, whole = _readouts(model), model.adata
    names = [m.part for m in model.registry.modalities]
    model.minify_adata()
    assert model.minified_data_type == "latent_posterior_parameters"
    assert model.adata.n_obs == whole.n_obs
    for part in names:
        assert (model.adata if part is None else model.adata[part]).X is None
    model.save(tmp_path / "model", save_anndata=True)
    again = type(model).load(tmp_path / "model")
    assert again.minified_data_type == model.minified_data_type
    for readouts in (_readouts(model), _readouts(again)):
        for now, then in zip(readouts, before, strict=True):
            np.testing.assert_allclose(now, then, rtol=1e-4, atol=1e-6)
    # Counts can be passed, and are then read.
    elbo = again.get_elbo(whole, return_mean=False)
    assert np.isfinite(elbo).all()


def test_what_needs_counts_says_so() -> None:
    model = _scvi()
    model.minify_adata()
    for call in (
        model.get_elbo,
        model.get_reconstruction_error,
        model.get_predictive_checks,
        lambda: model.get_marginal_ll(n_mc_samples=2),
        lambda: model.train(1, enable_progress_bar=False),
    ):
        with pytest.raises(errors.OptionError, match="needs counts"):
            call()
    with pytest.raises(errors.OptionError, match="minified_data_type must be one of"):
        model.minify_adata("counts")


def test_it_takes_a_tenth_of_the_space() -> None:
    adata = simulate_adata(n_cells=60, n_genes=500)
    model = fit_small(adata, {"batch_key": "batch"}, n_latent=10)
    counts = adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes
    model.minify_adata()
    assert sum(array.nbytes for array in model.adata.obsm.values()) < counts / 10


def test_the_data_of_the_user_are_unchanged() -> None:
    adata = simulate_adata()
    before = adata.copy()
    model = fit_small(adata, {"batch_key": "batch"})
    model.minify_adata()
    assert list(adata.obsm) == [] and list(adata.uns) == []
    assert (adata.X != before.X).nnz == 0
