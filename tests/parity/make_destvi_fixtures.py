"""Write the scvi-tools reference models of CondSCVI and DestVI under ``deconvolution/``.

Run by hand, once in an environment with scvi-tools 1.4.0 (and jax, which it needs) and once with 1.4.2; each run writes
the generations that its version has. The tests only read what it wrote::

    python tests/parity/make_destvi_fixtures.py

Each case is a folder with ``model.pt``, untouched as ``save`` writes it, and ``expected.npz`` with the input (``case``,
``var_names``, ``counts``, ``obs_<column>`` as in ``make_scvi_fixtures.py``) and what scvi-tools computes from it in
evaluation mode and float32, at posterior means:

=======================  ============================  =============================================================
name                     shape                         content
=======================  ============================  =============================================================
qz_mean, qz_var          (cells, latent)               CondSCVI: posterior of the state
mean, theta              (cells, genes)                CondSCVI: of the negative binomial
reconstruction_loss      (cells,)                      minus the log-likelihood summed over genes, nats
kl                       (cells,)                      CondSCVI with a normal prior: of the state; DestVI: minus the
                                                       log-density of the states
vprior_mean, _var, _weights                            CondSCVI: of the clusters in ``obs_overclustering_vamp``
proportions, abundances  (spots, types [+ 1])          DestVI: ``get_proportions`` without and with the noise
gamma                    (spots, latent, types)        DestVI: ``get_gamma``
scale_<i>, expression_<i>  (spots, genes)              DestVI: ``get_scale_for_ct``, ``get_expression_for_ct`` of type i
penalty                  ()                            DestVI: penalties of eta and beta, nats per spot
=======================  ============================  =============================================================
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scvi
import torch
from make_scvi_fixtures import N_CELLS, make_cells, randomise

FIXTURES = Path(__file__).parent / "deconvolution"
SIZES = {"n_hidden": 8, "n_latent": 3}
PAPER = scvi.__version__ == "1.4.0"

LABELS: dict[str, Any] = {"labels_key": "label"}
BATCH = {**LABELS, "batch_key": "batch"}
CELLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = (
    {
        "c1_plain": (LABELS, {}),
        "c1_one_type": ({}, {"n_layers": 1}),
        "c1_batch_encoded_weighted": (BATCH, {"encode_covariates": True, "weight_obs": True}),
        "c1_layer_counts_not_logged": ({**BATCH, "layer": "counts"}, {"log_variational": False, "n_layers": 3}),
    }
    if PAPER
    else {
        "c2_normal": (LABELS, {}),
        "c2_batch_weighted": (BATCH, {"weight_obs": True, "n_layers": 1}),
        "c2_mixture_encoded": (BATCH, {"encode_covariates": True, "prior": "mog", "num_classes_mog": 4}),
    }
)
SPOTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = (
    {
        "d1_both": (LABELS, {"amortization": "both", "vamp_prior_p": 3, "l1_reg": 2.0}),
        "d1_latent": (LABELS, {"amortization": "latent", "vamp_prior_p": 4, "beta_reg": 0.5, "eta_reg": 0.01}),
        "d1_proportion": (LABELS, {"amortization": "proportion", "vamp_prior_p": 3}),
        "d1_none": (LABELS, {"amortization": "none", "vamp_prior_p": 4}),
        "d1_one_type": ({}, {"amortization": "none", "vamp_prior_p": 3}),
    }
    if PAPER
    else {}
)


@torch.no_grad()
def evaluate_cells(model: Any, cells: anndata.AnnData) -> dict[str, np.ndarray]:
    """Posterior, likelihood and loss terms at the posterior means."""
    module = model.module.cpu().eval()
    (tensors,) = list(model._make_data_loader(adata=cells, batch_size=N_CELLS, shuffle=False))
    inference = module.inference(**module._get_inference_input(tensors))
    inference["z"] = inference["qz"].loc
    generative = module.generative(**module._get_generative_input(tensors, inference))
    px = generative["px"]
    out = {
        "qz_mean": inference["qz"].loc,
        "qz_var": inference["qz"].variance,
        "mean": px.mean,
        "theta": px.theta.expand(px.mean.shape),
        "reconstruction_loss": -px.log_prob(tensors["X"]).sum(-1),
    }
    if getattr(module, "prior", "normal") == "normal":
        unit = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        out["kl"] = torch.distributions.kl_divergence(inference["qz"], unit).sum(-1)
    values = {name: tensor.numpy() for name, tensor in out.items()}
    prior = model.get_vamp_prior(cells, p=4)
    parts = list(prior.values()) if isinstance(prior, dict) else prior
    for name, part in zip(("mean", "var", "weights"), parts, strict=True):
        values[f"vprior_{name}"] = np.asarray(torch.as_tensor(part).detach())
    return values


@torch.no_grad()
def evaluate_spots(model: Any, slide: anndata.AnnData) -> dict[str, np.ndarray]:
    """Read-outs, and loss terms."""
    module = model.module.cpu().eval()
    (tensors,) = list(model._make_data_loader(adata=slide, batch_size=N_CELLS, shuffle=False))
    generative = module.generative(**module._get_generative_input(tensors, {}))
    loss = module.loss(tensors, {}, generative)
    out = {
        "proportions": model.get_proportions().to_numpy(),
        "abundances": generative["v"].numpy(),
        "gamma": np.asarray(model.get_gamma(return_numpy=True)),
        "reconstruction_loss": loss.reconstruction_loss["reconstruction_loss"].numpy(),
        "kl": loss.kl_local["kl_local"].numpy(),
        "penalty": np.asarray(loss.kl_global["kl_global"]),
    }
    for index, label in enumerate(model.cell_type_mapping):
        out[f"scale_{index}"] = model.get_scale_for_ct(label).to_numpy()
    return out


def write(name: str, model: Any, data: anndata.AnnData, case: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    """Write the folder of a case."""
    columns = [*(v for k, v in case["setup"].items() if k != "layer"), "overclustering_vamp"]
    expected |= {f"obs_{key}": data.obs[key].to_numpy() for key in columns if key in data.obs}
    for key, value in expected.items():
        expected[key] = value.astype(str) if value.dtype == object else value
        assert value.dtype.kind != "f" or np.isfinite(value).all(), (name, key)
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save(f"{scratch}/model")
        shutil.copyfile(f"{scratch}/model/model.pt", folder / "model.pt")
    genes = data.var_names.to_numpy().astype(str)
    versions = {p: importlib.metadata.version(p) for p in ("scvi-tools", "torch", "numpy", "anndata")}
    text = json.dumps({**case, "versions": versions})
    np.savez_compressed(folder / "expected.npz", case=text, var_names=genes, counts=np.asarray(data.X), **expected)
    print(f"{name:30s} {sum(p.stat().st_size for p in folder.iterdir()):7,d} bytes")


def reference(number: int, setup: dict[str, Any], init: dict[str, Any]) -> tuple[Any, anndata.AnnData]:
    """A single-cell model with random weights, and its cells."""
    scvi.settings.seed = number
    cells = make_cells(np.random.default_rng(2000 + number))
    cells.obs["overclustering_vamp"] = [f"k{i % 3}" for i in range(N_CELLS)]
    scvi.model.CondSCVI.setup_anndata(cells, **setup)
    model = scvi.model.CondSCVI(cells, **SIZES, **init)
    weight = model.module.ct_weight.clone()
    randomise(model.module, torch.Generator().manual_seed(number))
    model.module.ct_weight.copy_(weight)
    model.is_trained_ = True
    return model, cells


def main() -> None:
    """Write every case of the version at hand."""
    warnings.filterwarnings("ignore")
    for number, (name, (setup, init)) in enumerate(CELLS.items()):
        model, cells = reference(number, setup, init)
        case = {"class": "CondSCVI", "setup": setup, "init": {**SIZES, **init}, "counts_in": setup.get("layer", "X")}
        write(name, model, cells, case, evaluate_cells(model, cells))
    for number, (name, (setup, init)) in enumerate(SPOTS.items(), start=100):
        model, _ = reference(number, setup, {})
        slide = make_cells(np.random.default_rng(3000 + number))
        scvi.model.DestVI.setup_anndata(slide)
        spatial = scvi.model.DestVI.from_rna_model(slide, model, **init)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in spatial.module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        spatial.is_trained_ = True
        case = {"class": "DestVI", "setup": {}, "init": init, "counts_in": "X"}
        write(name, spatial, slide, case, evaluate_spots(spatial, slide))


if __name__ == "__main__":
    main()
