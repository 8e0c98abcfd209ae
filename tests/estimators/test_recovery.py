"""Counts simulated from a known model of low dimension: training finds what they were simulated from."""

from __future__ import annotations

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import nbinom, spearmanr

import countvi

N_CELLS, N_GENES, N_GROUPS = 600, 60, 3
THETA_RANGE = (0.3, 10.0)


@dataclass
class Truth:
    """What the counts were drawn from.

    Parameters
    ----------
    adata
        The counts, with columns ``group`` and ``batch``.
    rho
        Expected frequencies in the cell's own batch, shape ``(cells, genes)``.
    rho_without_batch
        The same had every cell been in batch ``"a"``.
    theta
        Inverse dispersion, shape ``(genes,)``.
    """

    adata: anndata.AnnData
    rho: np.ndarray
    rho_without_batch: np.ndarray
    theta: np.ndarray


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def truth() -> Truth:
    """Three groups and a gradient through each, two batches with a shift, negative binomial counts."""
    rng = np.random.default_rng(0)
    group, batch = rng.integers(0, N_GROUPS, N_CELLS), rng.integers(0, 2, N_CELLS)
    gradient = rng.uniform(-1, 1, N_CELLS)
    base, of_group = rng.normal(0, 0.7, N_GENES), rng.normal(0, 1.0, (N_GROUPS, N_GENES))
    along, of_batch = rng.normal(0, 0.5, N_GENES), rng.normal(0, 0.7, N_GENES)
    logits = base + of_group[group] + gradient[:, None] * along
    rho = softmax(logits + batch[:, None] * of_batch)
    library = rng.lognormal(np.log(600.0), 0.4, N_CELLS)
    theta = np.exp(rng.uniform(*np.log(THETA_RANGE), N_GENES))
    mean = library[:, None] * rho
    counts = rng.poisson(rng.gamma(theta, mean / theta)).astype(np.float32)
    obs = pd.DataFrame(
        {"group": group, "batch": np.array(["a", "b"])[batch]}, index=[f"cell{i}" for i in range(N_CELLS)]
    )
    adata = anndata.AnnData(
        sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    )
    return Truth(adata, rho, softmax(logits), theta)


@pytest.fixture(scope="module")
def model(truth) -> countvi.SCVI:
    countvi.SCVI.setup_anndata(truth.adata, batch_key="batch")
    model = countvi.SCVI(truth.adata, n_hidden=32, n_latent=5, gene_likelihood="nb")
    model.train(100, batch_size=100, enable_progress_bar=False)
    return model


def test_expected_frequencies(truth, model):
    held_out = model.validation_indices
    estimate = model.get_normalized_expression(indices=held_out, n_samples=20, return_numpy=True)
    np.testing.assert_allclose(estimate.sum(1), 1.0, rtol=1e-4)
    assert np.corrcoef(np.log(estimate).ravel(), np.log(truth.rho[held_out]).ravel())[0, 1] > 0.9
    # Gene by gene, too: a model that only knew the mean of each gene would pass the line above.
    per_gene = [np.corrcoef(estimate[:, g], truth.rho[held_out, g])[0, 1] for g in range(N_GENES)]
    assert np.median(per_gene) > 0.9
    raw = truth.adata.X[held_out].toarray()
    raw = raw / raw.sum(1, keepdims=True)
    assert np.abs(estimate - truth.rho[held_out]).mean() < 0.5 * np.abs(raw - truth.rho[held_out]).mean()


def test_expected_counts_have_the_right_size(truth, model):
    rates = model.get_normalized_expression(library_size="latent", n_samples=10, return_numpy=True)
    observed = truth.adata.X.toarray()
    np.testing.assert_allclose(rates.sum(1), observed.sum(1), rtol=1e-3)
    np.testing.assert_allclose(rates.mean(0), observed.mean(0), rtol=0.25)


def test_inverse_dispersion(truth, model):
    theta = model.get_likelihood_parameters(indices=[0])["dispersions"][0]
    rank = spearmanr(theta, truth.theta).statistic
    assert rank > 0.8
    # Not only the order: within a factor of two for most genes.
    assert np.median(np.abs(np.log(theta / truth.theta))) < np.log(2)


def test_the_latent_space_separates_groups_and_mixes_batches(truth, model):
    z = model.get_latent_representation()
    group, batch = truth.adata.obs["group"].to_numpy(), truth.adata.obs["batch"].to_numpy()
    distance = ((z[:, None] - z[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :10]
    assert (group[nearest] == group[:, None]).mean() > 0.95
    # Chance is one half; without a batch key it is far above, as the next test shows.
    assert (batch[nearest] == batch[:, None]).mean() < 0.65


def test_without_a_batch_key_batches_come_apart(truth):
    adata = truth.adata.copy()
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=32, n_latent=5, gene_likelihood="nb")
    model.train(40, batch_size=100, enable_progress_bar=False)
    z, batch = model.get_latent_representation(), adata.obs["batch"].to_numpy()
    distance = ((z[:, None] - z[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :10]
    assert (batch[nearest] == batch[:, None]).mean() > 0.75


def test_a_counterfactual_batch_is_what_it_would_have_been(truth, model):
    from_b = np.flatnonzero(truth.adata.obs["batch"] == "b")
    as_a = np.log(model.get_normalized_expression(indices=from_b, transform_batch="a", n_samples=20, return_numpy=True))
    as_b = np.log(model.get_normalized_expression(indices=from_b, n_samples=20, return_numpy=True))
    shift = np.log(truth.rho_without_batch[from_b]) - np.log(truth.rho[from_b])
    assert np.corrcoef((as_a - as_b).ravel(), shift.ravel())[0, 1] > 0.9


def test_the_truth_is_about_as_likely_as_the_fit(truth, model):
    """Evidence of held-out cells is close to their likelihood under what they were drawn from, and not above it."""
    held_out = model.validation_indices
    x = truth.adata.X[held_out].toarray()
    mean = x.sum(1, keepdims=True) * truth.rho[held_out]
    log_lik = nbinom.logpmf(x, truth.theta, truth.theta / (truth.theta + mean)).sum(1).mean()
    evidence = model.get_marginal_ll(indices=held_out, n_mc_samples=500)
    assert log_lik - 0.05 * abs(log_lik) < evidence < log_lik
