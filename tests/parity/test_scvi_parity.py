"""Models saved by scvi-tools 1.4.2, loaded by us, must compute what scvi-tools computed.

The fixtures hold models with random weights over a covering selection of likelihood x dispersion x layers x
covariates x encoder covariates x library x size factor, and what scvi-tools gets from them;
``make_scvi_fixtures.py`` wrote them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import countvi
from countvi.batch import RNA
from countvi.io import load_scvi_tools
from countvi.models.scvi import Latents

CASES = sorted((Path(__file__).parent / "fixtures").iterdir())
RTOL = 1e-4
"""Relative agreement in float32."""
ATOL = 1e-6

pytestmark = pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")


@dataclass
class Case:
    """A fixture: our model with their weights, and what they computed."""

    model: countvi.SCVI
    adata: anndata.AnnData
    expected: dict[str, np.ndarray]
    arguments: dict[str, Any]

    def batch(self):
        """All cells as one minibatch."""
        return self.model.dataset_of(None).batch(np.arange(self.adata.n_obs))


@pytest.fixture(params=CASES, ids=lambda path: path.name)
def case(request) -> Case:
    with np.load(request.param / "expected.npz", allow_pickle=False) as file:
        expected = {name: file[name] for name in file.files}
    arguments = json.loads(str(expected["case"]))
    obs = pd.DataFrame(
        {name.removeprefix("obs_"): value for name, value in expected.items() if name.startswith("obs_")}
    )
    obs.index = [f"cell{i}" for i in range(len(expected["counts"]))]
    adata = anndata.AnnData(expected["counts"], obs=obs, var=pd.DataFrame(index=expected["var_names"].astype(str)))
    if arguments["counts_in"] != "X":
        adata.layers[arguments["counts_in"]] = adata.X
        adata.X = np.zeros_like(adata.X)
    model = load_scvi_tools(request.param, adata)
    model.is_trained = True  # most of them have random weights that were never fitted
    return Case(model, adata, expected, arguments)


def close(ours: Any, theirs: np.ndarray) -> None:
    """Assert agreement to the parity tolerance."""
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=RTOL, atol=ATOL)


def test_posterior(case):
    mean, variance = case.model.get_latent_representation(return_dist=True)
    close(mean, case.expected["qz_mean"])
    close(variance, case.expected["qz_var"])


def test_library_posterior(case):
    with torch.no_grad():
        q = case.model.module.guide(case.batch()).log_library
    if "ql_mean" in case.expected:
        close(q.loc, case.expected["ql_mean"].ravel())
        close(q.scale.square(), case.expected["ql_var"].ravel())
    else:
        close(q.value, case.expected["library"].ravel())


def test_likelihood(case):
    """Decoded at the posterior mean and at the library that scvi-tools decoded at."""
    model, expected, batch = case.model.module, case.expected, case.batch()
    library = torch.as_tensor(expected["library"]).ravel()
    with torch.no_grad():
        z = torch.as_tensor(expected["qz_mean"])
        close(model.cell_state(Latents(z, library)), expected["z"])
        likelihood = model.generate(Latents(z, library), batch.design)[RNA]
        close(likelihood.rate.scale, expected["px_scale"])
        close(likelihood.rate.mean, expected["px_rate"])
        if "dropout_logits" in expected:
            # Near zero logits relative agreement means nothing; the probability is what is used.
            close(likelihood.dropout_probability, 1.0 / (1.0 + np.exp(-expected["dropout_logits"].astype(np.float64))))
        close(-likelihood.log_prob(batch.counts[RNA]), expected["reconstruction_loss"])
        spread = (
            likelihood.theta
            if case.arguments["init"].get("gene_likelihood") != "normal"
            else likelihood.log_scale.exp()
        )
        if "theta" in expected:
            close(np.broadcast_to(np.asarray(spread), expected["theta"].shape), expected["theta"])


def test_divergences(case):
    model, batch = case.model.module, case.batch()
    with torch.no_grad():
        q, p = model.guide(batch), model.prior(batch.design)
        close(q.z.kl(p.z), case.expected["kl_z"])
        if "ql_mean" in case.expected:
            close(q.log_library.kl(p.log_library), case.expected["kl_library"])


def test_no_weight_is_left_over(case):
    """Parameters of ours are all filled from the file: none keeps its initial value."""
    fresh = countvi.SCVI.restore(None, case.model.registry, case.model.arguments, seed=1)
    for name, value in case.model.module.named_parameters():
        assert not torch.equal(value, fresh.module.get_parameter(name)), name


def test_loaded_model_trains_on(case):
    before = case.model.get_elbo()
    case.model.train(2, enable_progress_bar=False)
    assert np.isfinite(case.model.get_elbo())
    assert case.model.get_elbo() != before
