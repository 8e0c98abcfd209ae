"""Which states are common in which sample."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import countvi
from countvi.errors import CountviError, OptionError


def test_a_column_is_the_mixture_of_the_posteriors_of_a_sample(trained: countvi.SCVI) -> None:
    assert trained.adata is not None
    found = trained.differential_abundance(sample_key="donor")
    assert list(found.columns) == ["d1", "d2"]
    assert found.index.equals(trained.adata.obs_names)
    loc, variance = trained.get_latent_representation(return_dist=True)
    rows = np.flatnonzero(trained.adata.obs["donor"] == "d2")
    expected = norm(loc[rows], np.sqrt(variance[rows])).logpdf(loc[:, None]).sum(-1)
    np.testing.assert_allclose(found["d2"], logsumexp(expected, axis=1) - np.log(len(rows)), rtol=1e-5)


def test_a_state_that_one_sample_lacks_is_rarer_there(adata: anndata.AnnData) -> None:
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=16, n_latent=3, gene_likelihood="nb")
    model.train(60, enable_progress_bar=False)
    # Sample "few" has cells of one type only, "all" has both.
    kind = adata.obs["label"].to_numpy()
    adata.obs["sample"] = np.where((kind == "B") & (np.arange(adata.n_obs) % 2 == 0), "few", "all")
    found = model.differential_abundance(sample_key="sample")
    ratio = found["few"] - found["all"]
    assert ratio[kind == "B"].median() > ratio[kind == "T"].median() + 0.5


def test_a_sample_may_be_stood_for_by_some_of_its_cells(trained: countvi.SCVI) -> None:
    some = trained.differential_abundance(sample_key="donor", num_cells_posterior=5, seed=1)
    again = trained.differential_abundance(sample_key="donor", num_cells_posterior=5, seed=1)
    np.testing.assert_array_equal(some, again)
    everyone = trained.differential_abundance(sample_key="donor", num_cells_posterior=10_000)
    np.testing.assert_array_equal(everyone, trained.differential_abundance(sample_key="donor"))
    assert not np.allclose(some, everyone)


def test_the_density_of_all_cells(trained: countvi.SCVI) -> None:
    loc, variance = trained.get_latent_representation(return_dist=True)
    density = trained.get_aggregated_posterior(dof=None)
    np.testing.assert_allclose(density.mean.numpy(), loc.mean(0), rtol=1e-5)
    np.testing.assert_allclose(density.variance.numpy(), variance.mean(0) + loc.var(0), rtol=1e-4)
    assert density.sample((3,)).shape == (3, loc.shape[1])
    assert trained.get_aggregated_posterior(indices=[0, 1]).component_distribution.batch_shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "sample_key"),
        ({"sample_key": "nothing"}, "nothing"),
        ({"sample_key": "donor", "dof": 0.0}, "dof must be"),
        ({"sample_key": "donor", "num_cells_posterior": 0}, "num_cells_posterior"),
    ],
)
def test_what_cannot_be_asked(trained: countvi.SCVI, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(CountviError, match=words):
        trained.differential_abundance(**arguments)  # type: ignore[arg-type]


def test_one_sample_cannot_be_compared(trained: countvi.SCVI, adata: anndata.AnnData) -> None:
    adata.obs["sample"] = "only"
    with pytest.raises(OptionError, match="at least two"):
        trained.differential_abundance(adata, "sample")
    with pytest.raises(OptionError, match="at least one cell"):
        trained.get_aggregated_posterior(indices=[])
