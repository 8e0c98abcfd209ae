"""Write the TOTALVI reference models of scvi-tools under ``totalvi/``.

Run by hand, in an environment that has scvi-tools 1.4.2; the tests only read what it wrote::

    python tests/parity/make_totalvi_fixtures.py

Each case is a folder with ``model.pt``, untouched as ``TOTALVI.save`` writes it, and ``expected.npz`` with the input
and what scvi-tools computes from it in evaluation mode, at the posterior means of z, of the log library size and of
the log background. Names of arrays follow scvi-tools; ``kl_back`` is the divergence of the background alone, of the
proteins that were measured, without the penalties that scvi-tools adds to it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from torch.distributions import Normal, kl_divergence

FIXTURES = Path(__file__).parent / "totalvi"
N_CELLS, N_GENES, N_PROTEINS = 24, 14, 6

BATCH: dict[str, Any] = {"batch_key": "batch"}
COVARIATES = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (BATCH, {}),
    "no_batch": ({}, {"gene_likelihood": "zinb"}),
    "covariates": (
        {**BATCH, **COVARIATES},
        {
            "gene_likelihood": "zinb",
            "gene_dispersion": "gene-batch",
            "protein_dispersion": "protein-batch",
            "use_observed_lib_size": False,
            "n_layers_decoder": 2,
        },
    ),
    "missing_logistic_normal": (
        BATCH,
        {"latent_distribution": "ln", "empirical_protein_background_prior": True, "use_layer_norm": "both"},
    ),
    "panel_size_factor": (
        {**BATCH, **COVARIATES, "panel_key": "panel", "size_factor_key": "size"},
        {
            "encode_covariates": False,
            "use_batch_norm": "none",
            "extra_decoder_kwargs": {"activation_function_bg": "exp"},
            "n_layers_encoder": 1,
        },
    ),
}


def make_cells(rng: np.random.Generator, *, missing: bool) -> anndata.AnnData:
    """Cells with RNA, proteins and covariates; one protein may be missing in a batch."""
    depth = rng.gamma(3.0, 1.0, size=(N_CELLS, 1))
    counts = rng.poisson(depth * rng.gamma(0.7, 3.0, size=(1, N_GENES))).astype(np.float32)
    counts[:, 0] += 1
    proteins = rng.poisson(rng.gamma(1.5, 12.0, size=(N_CELLS, N_PROTEINS))).astype(np.float32) + 1
    at = np.arange(N_CELLS)
    obs = pd.DataFrame(
        {
            "batch": np.array(["sample_B", "sample_A"])[at % 2],
            "panel": np.array(["p1", "p2", "p3"])[at % 3],
            "donor": rng.permutation(np.array(["d1", "d2", "d3"])[at % 3]),
            "age": rng.normal(0.0, 1.0, N_CELLS),
            "size": rng.gamma(4.0, 0.5, N_CELLS),
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    if missing:
        proteins[at % 2 == 0, 3] = 0.0
    cells = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)]))
    names = [f"protein{i}" for i in range(N_PROTEINS)]
    cells.obsm["protein"] = pd.DataFrame(proteins, index=obs.index, columns=names)
    return cells


def randomise(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Move every weight and every running statistic away from its initial value."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else None
            if noise is None:
                tensor.fill_(17)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + 1.5 * torch.rand(tensor.shape, generator=generator))
            elif name.endswith("running_mean") or name == "log_per_batch_efficiency":
                tensor.copy_(0.3 * noise)
            elif name.startswith("library_log_"):
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            elif name in ("px_r", "py_r"):
                tensor.copy_(0.3 + 0.8 * noise)
            elif name == "encoder.l_gene_mean_encoder.bias":
                tensor.fill_(4.0)
            else:
                tensor.add_(0.15 * noise)


@torch.no_grad()
def evaluate(model: scvi.model.TOTALVI, cells: anndata.AnnData) -> dict[str, np.ndarray]:
    """Posterior, decoder outputs and loss terms, at the posterior means."""
    module = model.module.cpu().eval()
    (tensors,) = list(model._make_data_loader(adata=cells, batch_size=N_CELLS, shuffle=False))
    inference = module.inference(**module._get_inference_input(tensors))
    qz, ql = inference["qz"], inference["ql"]
    inference["z"] = module.encoder.z_transformation(qz.loc)
    if not module.use_observed_lib_size:
        inference["library_gene"] = ql.loc.exp()
    with mock.patch.object(Normal, "rsample", lambda self, *args: self.loc):
        generative = module.generative(**module._get_generative_input(tensors, inference))
    loss = module.loss(tensors, inference, generative)
    px, py = generative["px_"], generative["py_"]
    posterior = Normal(py["back_alpha"], py["back_beta"])
    divergence = kl_divergence(posterior, inference["back_mean_prior"])
    mask = torch.ones_like(divergence, dtype=torch.bool)
    if module.protein_batch_mask is not None:
        for code, measured in module.protein_batch_mask.items():
            mask[(tensors[module.panel_key] == int(code)).ravel()] = torch.as_tensor(measured)
    full = (N_CELLS, -1)
    out = {
        "qz_mean": qz.loc,
        "qz_var": qz.variance,
        "library": inference["library_gene"],
        "px_scale": px["scale"],
        "px_rate": px["rate"],
        "px_r": px["r"].expand(*full),
        "py_r": py["r"].expand(*full),
        "back_alpha": py["back_alpha"],
        "back_beta": py["back_beta"],
        "rate_back": py["rate_back"],
        "fore_scale": py["fore_scale"],
        "mixing": py["mixing"],
        "efficiency": generative["per_batch_efficiency"],
        "mask": mask,
        "reconst_loss_gene": loss.reconstruction_loss["reconst_loss_gene"],
        "reconst_loss_protein": loss.reconstruction_loss["reconst_loss_protein"],
        "kl_div_z": loss.kl_local["kl_div_z"],
        "kl_div_l_gene": loss.kl_local["kl_div_l_gene"],
        "kl_back": (divergence * mask).sum(1),
        "prior_loc": inference["back_mean_prior"].loc,
        "prior_scale": inference["back_mean_prior"].scale,
    }
    if not module.use_observed_lib_size:
        out |= {"ql_mean": ql.loc, "ql_var": ql.variance}
    if module.gene_likelihood == "zinb":
        out["dropout"] = px["dropout"]
    return {name: tensor.numpy() for name, tensor in out.items()}


def make_case(name: str, setup: dict[str, Any], init: dict[str, Any], number: int) -> None:
    """Build one model and write its folder."""
    scvi.settings.seed = number
    cells = make_cells(np.random.default_rng(2000 + number), missing=name.startswith("missing"))
    raw = {key: cells.obs[key].to_numpy() for key in ("batch", "panel", "donor", "age", "size")}
    proteins = cells.obsm["protein"].to_numpy()
    scvi.model.TOTALVI.setup_anndata(cells, protein_expression_obsm_key="protein", **setup)
    model = scvi.model.TOTALVI(cells, n_latent=3, n_hidden=8, **init)
    randomise(model.module, torch.Generator().manual_seed(number))
    expected = evaluate(model, cells)
    expected |= {f"obs_{key}": value.astype(str) if value.dtype == object else value for key, value in raw.items()}
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save(f"{scratch}/model")
        shutil.copyfile(f"{scratch}/model/model.pt", folder / "model.pt")
    case = json.dumps({"setup": setup, "init": init, "scvi-tools": scvi.__version__})
    np.savez_compressed(folder / "expected.npz", case=case, counts=np.asarray(cells.X), proteins=proteins, **expected)
    print(f"{name:30s} {sum(path.stat().st_size for path in folder.iterdir()):7,d} bytes")


def main() -> None:
    """Write every case."""
    warnings.filterwarnings("ignore")
    for number, (name, (setup, init)) in enumerate(CASES.items()):
        make_case(name, setup, init, number)


if __name__ == "__main__":
    main()
