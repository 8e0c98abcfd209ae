"""TOTALVI models saved by scvi-tools 1.4.2, loaded by us, must compute what scvi-tools computed.

``make_totalvi_fixtures.py`` wrote the fixtures: models with random weights, and what scvi-tools gets from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import countvi
from countvi.batch import PROTEIN, RNA
from countvi.errors import FileFormatError
from countvi.io import load_scvi_tools
from countvi.models.totalvi import Latents

CASES = sorted((Path(__file__).parent / "totalvi").iterdir())
RTOL, ATOL = 1e-4, 1e-5

pytestmark = [pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning"), pytest.mark.parity]


def read(folder: Path) -> tuple[anndata.AnnData, dict[str, np.ndarray]]:
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        expected = {name: file[name] for name in file.files}
    n_cells, n_genes = expected["counts"].shape
    obs = pd.DataFrame({name[4:]: value for name, value in expected.items() if name.startswith("obs_")})
    obs.index = [f"cell{i}" for i in range(n_cells)]
    adata = anndata.AnnData(expected["counts"], obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))
    names = [f"protein{i}" for i in range(expected["proteins"].shape[1])]
    adata.obsm["protein"] = pd.DataFrame(expected["proteins"], index=obs.index, columns=names)
    return adata, expected


def trained(folder: Path, adata: anndata.AnnData | None = None) -> countvi.TOTALVI:
    model = load_scvi_tools(folder, adata)
    assert isinstance(model, countvi.TOTALVI)
    model.is_trained = True  # the weights are random
    return model


@pytest.fixture(params=CASES, ids=lambda path: path.name)
def case(request):
    adata, expected = read(request.param)
    model = trained(request.param, adata)
    with torch.no_grad():
        batch = model.dataset.batch(np.arange(adata.n_obs))
        q, p = model.module.guide(batch), model.module.prior(batch.design)
        library = torch.as_tensor(expected["library"]).ravel().log()
        if "obs_size" in expected and model.registry.size_factor_key is not None:
            library = torch.as_tensor(expected["obs_size"]).float().log()
        latents = Latents(q.z.loc, library, torch.zeros_like(q.epsilon.loc))
        likelihoods = model.module.generate(latents, batch.design)
    return model, batch, expected, (q, p, likelihoods)


def close(ours: Any, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(np.broadcast_to(np.asarray(ours), theirs.shape), theirs, rtol=RTOL, atol=ATOL)


@torch.no_grad()
def test_posterior(case):
    _, _, expected, (q, p, _) = case
    close(q.z.loc, expected["qz_mean"])
    close(q.z.scale.square(), expected["qz_var"])
    close(q.z.kl(p.z), expected["kl_div_z"])
    if "ql_mean" in expected:
        close(q.log_library.loc, expected["ql_mean"].ravel())
        close(q.log_library.scale.square(), expected["ql_var"].ravel())
        close(q.log_library.kl(p.log_library), expected["kl_div_l_gene"])


@torch.no_grad()
def test_rna(case):
    _, batch, expected, (_, _, likelihoods) = case
    rna = likelihoods[RNA]
    close(rna.rate.scale, expected["px_scale"])
    close(rna.rate.mean, expected["px_rate"])
    close(rna.theta, expected["px_r"])
    if "dropout" in expected:
        close(rna.dropout_probability, 1 / (1 + np.exp(-expected["dropout"].astype(np.float64))))
    close(-rna.log_prob(batch.counts[RNA]), expected["reconst_loss_gene"])


@torch.no_grad()
def test_protein(case):
    model, batch, expected, (_, _, likelihoods) = case
    protein = likelihoods[PROTEIN]
    rate = protein.rate
    close(rate.loc, expected["back_alpha"])
    close(rate.scale_of_log, expected["back_beta"])
    close(rate.log_beta.exp(), expected["rate_back"])
    close(rate.log_alpha.exp(), expected["fore_scale"])
    close(rate.pi_logits, expected["mixing"])
    close(rate.log_efficiency.exp(), expected["efficiency"])
    close(protein.theta, expected["py_r"])
    close(-protein.log_prob(batch.counts[PROTEIN]), expected["reconst_loss_protein"])
    measured = batch.design.measured_entries(PROTEIN)
    np.testing.assert_array_equal(True if measured is None else measured, expected["mask"])
    prior = model.module.protein.prior(batch.design)
    close(prior.loc, expected["prior_loc"])
    close(prior.scale, expected["prior_scale"])
    background = model.module.conditional(likelihoods, batch.design)["log_beta"]
    close(background.posterior.kl(background.prior), expected["kl_back"])


def test_no_weight_is_left_over(case):
    model = case[0]
    fresh = countvi.TOTALVI.restore(None, model.registry, model.arguments, seed=1)
    for name, value in model.module.named_parameters():
        assert not torch.equal(value, fresh.module.get_parameter(name)), name


def test_read_outs_of_a_loaded_model(case):
    model, _, expected, _ = case
    rna, protein = model.get_normalized_expression()
    assert rna.shape == expected["counts"].shape and protein.shape == expected["proteins"].shape
    assert np.isfinite(rna).all().all() and np.isfinite(protein).all().all()


@pytest.mark.parametrize(
    ("version", "link"), [("0.20.3", "exp"), ("1.1.6", "exp"), ("1.2.0", "softplus"), ("2.0.1", "softplus")]
)
def test_older_generations(tmp_path, version, link):
    """Plain log1p in the encoder, no efficiency, and an exponential before 1.2."""
    plain = next(path for path in CASES if path.name == "plain")
    content = torch.load(plain / "model.pt", weights_only=False)  # our own fixture
    content["model_state_dict"].pop("log_per_batch_efficiency")
    content["attr_dict"]["registry_"]["scvi_version"] = version
    torch.save(content, tmp_path / "model.pt")
    adata, expected = read(plain)
    model = trained(tmp_path, adata)
    assert model.options.activation_function_bg == link
    assert not model.options.normalize_encoder_input and not model.options.protein_batch_efficiency
    with torch.no_grad():
        batch = model.dataset.batch(np.arange(adata.n_obs))
        z = torch.as_tensor(expected["qz_mean"])
        latents = Latents(
            z, torch.as_tensor(expected["library"]).ravel().log(), torch.zeros(expected["proteins"].shape)
        )
        rate = model.module.generate(latents, batch.design)[PROTEIN].rate
        raw = np.log(np.expm1(expected["back_beta"].astype(np.float64)))
        close(rate.scale_of_log, np.exp(raw) if link == "exp" else expected["back_beta"])
        assert rate.log_efficiency is None
        # The encoder by hand, in NumPy: two layers on log(1 + x), with running statistics.
        state = {k: v.double().numpy() for k, v in content["model_state_dict"].items() if isinstance(v, torch.Tensor)}
        codes = np.eye(2)[pd.Categorical(adata.obs["batch"]).codes]
        h = np.log1p(np.hstack([expected["counts"], expected["proteins"]]).astype(np.float64))
        for i in range(2):
            layer = f"encoder.encoder.fc_layers.Layer {i}"
            h = np.hstack([h, codes]) @ state[f"{layer}.0.weight"].T + state[f"{layer}.0.bias"]
            h = (h - state[f"{layer}.1.running_mean"]) / np.sqrt(state[f"{layer}.1.running_var"] + 1e-3)
            h = np.maximum(h * state[f"{layer}.1.weight"] + state[f"{layer}.1.bias"], 0.0)
        mean = h @ state["encoder.z_mean_encoder.weight"].T + state["encoder.z_mean_encoder.bias"]
        np.testing.assert_allclose(model.module.guide(batch).z.loc, mean, rtol=1e-4, atol=1e-5)


def test_what_has_no_counterpart_is_refused(tmp_path):
    content = torch.load(CASES[0] / "model.pt", weights_only=False)  # our own fixture
    content["attr_dict"]["init_params_"]["kwargs"]["model_kwargs"]["extra_encoder_kwargs"] = {"var_eps": 1.0}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(FileFormatError, match="extra_encoder_kwargs"):
        load_scvi_tools(tmp_path)
