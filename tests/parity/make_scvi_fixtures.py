"""Write the scvi-tools reference models under ``fixtures/``.

Run by hand, in an environment that has scvi-tools 1.4.2; the tests only read what it wrote::

    python tests/parity/make_scvi_fixtures.py

Each case is a folder with ``model.pt``, untouched as ``SCVI.save`` writes it, and ``expected.npz`` with the input and
what scvi-tools computes from it in evaluation mode and float32. Arrays of ``expected.npz`` (no pickles):

===================  =======================  ========================================================================
name                 shape                    content
===================  =======================  ========================================================================
case                 ()                       JSON: ``setup`` (arguments of ``setup_anndata``), ``init`` (arguments of
                                              the model), ``counts_in`` (``"X"`` or the layer), versions, ``trained``
var_names            (genes,)                 gene names
counts               (cells, genes)           float32
obs_<column>         (cells,)                 every column of ``obs`` that the case registers, as values, not codes
qz_mean, qz_var      (cells, latent)          posterior of the latent state, before the softmax of ``"ln"``
z                    (cells, latent)          what is decoded: ``qz_mean``, through the softmax if ``"ln"``
ql_mean, ql_var      (cells, 1)               posterior of the log library; only with a latent library
library              (cells, 1)               what the decoder gets: log of the observed total, ``ql_mean``, or the log
                                              of the size factor
px_scale, px_rate    (cells, genes)           decoded at ``z`` and ``library``
theta                (cells, genes)           inverse dispersion, exp of ``px_r``; the standard deviation of
                                              ``"normal"``; absent for ``"poisson"``
dropout_logits       (cells, genes)           only for ``"zinb"``
reconstruction_loss  (cells,)                 minus the log-likelihood summed over genes, nats
kl_z, kl_library     (cells,)                 nats; ``kl_library`` is zero with an observed library
weight/<name>        as in the state dict     three named weights, to check the reader of the archive by itself
===================  =======================  ========================================================================
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
import pandas as pd
import scvi
import torch

FIXTURES = Path(__file__).parent / "fixtures"
N_CELLS, N_GENES = 24, 20

BATCH: dict[str, Any] = {"batch_key": "batch"}
LABELS = {"labels_key": "label"}
CAT = {"categorical_covariate_keys": ["donor", "chemistry"]}
CONT = {"continuous_covariate_keys": ["age", "score"]}
ONE_CONT = {"continuous_covariate_keys": ["score"]}
SIZE = {"size_factor_key": "size"}
TWO = {"n_layers": 2}
ENCODE = {"encode_covariates": True}
LATENT_LIBRARY = {"use_observed_lib_size": False}
EMBEDDING = {"batch_representation": "embedding"}


def likelihood(name: str, dispersion: str = "gene") -> dict[str, str]:
    """Keyword arguments of the model for a likelihood and its dispersion."""
    return {"gene_likelihood": name, "dispersion": dispersion}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zinb_gene": (BATCH, likelihood("zinb")),
    "zinb_no_batch_layer": ({"layer": "counts"}, likelihood("zinb")),
    "nb_gene_batch_int_codes": ({"batch_key": "lane"}, {**likelihood("nb", "gene-batch"), **TWO}),
    "nb_gene_label": ({**BATCH, **LABELS}, likelihood("nb", "gene-label")),
    "zinb_gene_cell": (BATCH, {**likelihood("zinb", "gene-cell"), **TWO}),
    "poisson_gene_cat_one_level": (
        {**BATCH, "categorical_covariate_keys": ["donor", "site", "chemistry"]},
        likelihood("poisson"),
    ),
    "normal_gene_cont": ({**BATCH, **CONT}, likelihood("normal")),
    "normal_gene_cell_both_encode": ({**BATCH, **CAT, **CONT}, {**likelihood("normal", "gene-cell"), **ENCODE}),
    "normal_gene_label_no_batch": (LABELS, likelihood("normal", "gene-label")),
    "zinb_gene_label_cat_encode": (
        {**BATCH, **LABELS, **CAT},
        {**likelihood("zinb", "gene-label"), **TWO, **ENCODE},
    ),
    "nb_gene_cell_cont_encode": ({**BATCH, **ONE_CONT}, {**likelihood("nb", "gene-cell"), **TWO, **ENCODE}),
    "zinb_gene_batch_both_encode": (
        {**BATCH, **LABELS, **CAT, **CONT},
        {**likelihood("zinb", "gene-batch"), **TWO, **ENCODE},
    ),
    "nb_latent_library": (BATCH, {**likelihood("nb"), **LATENT_LIBRARY}),
    "zinb_latent_library_both_encode": (
        {**BATCH, **CAT, **CONT},
        {**likelihood("zinb"), **TWO, **ENCODE, **LATENT_LIBRARY},
    ),
    "poisson_latent_library_no_batch": ({}, {**likelihood("poisson"), **LATENT_LIBRARY}),
    "zinb_size_factor": ({**BATCH, **SIZE}, likelihood("zinb")),
    "nb_size_factor_both_encode": (
        {**BATCH, **SIZE, **CAT, **ONE_CONT},
        {**likelihood("nb", "gene-batch"), **ENCODE, **LATENT_LIBRARY},
    ),
    "nb_ln": (BATCH, {**likelihood("nb"), "latent_distribution": "ln"}),
    "zinb_ln_latent_library_label": (
        {**BATCH, **LABELS, **CAT},
        {**likelihood("zinb", "gene-label"), **LATENT_LIBRARY, "latent_distribution": "ln"},
    ),
    "zinb_shallow_both_encode": (
        {**BATCH, **CAT, **CONT},
        {**likelihood("zinb"), **TWO, **ENCODE, "deeply_inject_covariates": False},
    ),
    "nb_embedding": (BATCH, {**likelihood("nb"), **EMBEDDING}),
    "zinb_embedding_both_encode_latent_library": (
        {**BATCH, **CAT, **CONT},
        {**likelihood("zinb", "gene-batch"), **TWO, **ENCODE, **EMBEDDING, **LATENT_LIBRARY},
    ),
    "nb_no_norm": ({**BATCH, **CAT}, {**likelihood("nb"), **TWO, "use_batch_norm": "none"}),
    "zinb_layer_norm_both": (BATCH, {**likelihood("zinb"), **TWO, "use_layer_norm": "both"}),
    "nb_batch_norm_decoder_layer_norm_encoder": (
        {**BATCH, **CONT},
        {**likelihood("nb"), **TWO, "use_batch_norm": "decoder", "use_layer_norm": "encoder"},
    ),
    "zinb_counts_not_logged": ({**BATCH, **CAT}, {**likelihood("zinb"), "log_variational": False}),
    "poisson_shallow_size_factor_no_batch": (
        {**SIZE, **CAT, **CONT},
        {**likelihood("poisson"), **TWO, "deeply_inject_covariates": False},
    ),
    "zinb_trained": ({**BATCH, **CAT, **CONT}, likelihood("zinb")),
}


def make_cells(rng: np.random.Generator) -> anndata.AnnData:
    """Cells with counts of uneven depth, every kind of covariate, and no empty row."""
    depth = rng.gamma(3.0, 1.0, size=(N_CELLS, 1))
    profile = rng.gamma(0.7, 3.0, size=(1, N_GENES))
    counts = rng.negative_binomial(1.5, 1.5 / (1.5 + depth * profile)).astype(np.float32)
    counts[:, 0] += 1
    levels = np.arange(N_CELLS)
    obs = pd.DataFrame(
        {
            "batch": np.array(["sample_C", "sample_A", "sample_B"])[levels % 3],
            "lane": np.array([7, 3, 11])[levels % 3],
            "label": rng.permutation(np.array(["T cell", "B cell", "NK"])[levels % 3]),
            "donor": rng.permutation(np.array(["d1", "d2"])[levels % 2]),
            "site": "one place",
            "chemistry": rng.permutation(np.array(["v3", "v2", "v3.1", "v1"])[levels % 4]),
            "age": rng.normal(0.0, 1.0, N_CELLS),
            "score": rng.normal(0.5, 0.3, N_CELLS),
            "size": rng.gamma(4.0, 0.5, N_CELLS),
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    genes = [f"gene{i}" for i in range(N_GENES - 1)] + ["β-actin"]
    cells = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))
    cells.layers["counts"] = counts.copy()
    return cells


def randomise(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Move every weight and every running statistic away from its initial value."""

    def normal(like: torch.Tensor, loc: float, scale: float) -> torch.Tensor:
        return loc + scale * torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(17)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + 1.5 * torch.rand(tensor.shape, generator=generator))
            elif name.endswith("running_mean"):
                tensor.copy_(normal(tensor, 0.0, 0.3))
            elif name.startswith("library_log_"):
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            elif name in ("px_r", "_embeddings_dict.batch.weight"):
                tensor.copy_(normal(tensor, 0.3, 0.8))
            elif tensor.dim() == 1 and name.endswith("weight"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name == "l_encoder.mean_encoder.bias":
                tensor.fill_(4.0)
            else:
                tensor.add_(normal(tensor, 0.0, 0.15))


@torch.no_grad()
def evaluate(model: scvi.model.SCVI, cells: anndata.AnnData) -> dict[str, np.ndarray]:
    """Posterior, decoder outputs and loss terms, at the posterior means."""
    module = model.module.cpu().eval()
    loader = model._make_data_loader(adata=cells, batch_size=N_CELLS, shuffle=False)
    (tensors,) = list(loader)
    inference = module.inference(**module._get_inference_input(tensors))
    qz, ql = inference["qz"], inference["ql"]
    inference["z"] = module.z_encoder.z_transformation(qz.loc)
    if ql is not None:
        inference["library"] = ql.loc
    heads: list[tuple[torch.Tensor, ...]] = []
    hook = module.decoder.register_forward_hook(lambda part, inputs, outputs: heads.append((*outputs, inputs[2])))
    generative = module.generative(**module._get_generative_input(tensors, inference))
    hook.remove()
    scale, _, rate, dropout, library = heads[0]
    loss = module.loss(tensors, inference, generative)
    px = generative["px"]
    out = {
        "qz_mean": qz.loc,
        "qz_var": qz.variance,
        "z": inference["z"],
        "library": library,
        "px_scale": scale,
        "px_rate": rate,
        "reconstruction_loss": loss.reconstruction_loss["reconstruction_loss"],
        "kl_z": loss.kl_local["kl_divergence_z"],
        "kl_library": loss.kl_local["kl_divergence_l"],
    }
    if ql is not None:
        out |= {"ql_mean": ql.loc, "ql_var": ql.variance}
    if module.gene_likelihood == "zinb":
        out["dropout_logits"] = dropout
    if module.gene_likelihood != "poisson":
        theta = px.scale if module.gene_likelihood == "normal" else px.theta
        out["theta"] = theta.expand(N_CELLS, N_GENES)
    return {name: tensor.numpy() for name, tensor in out.items()}


def columns_of(setup: dict[str, Any]) -> list[str]:
    """Names of the ``obs`` columns that a case registers."""
    names: list[str] = []
    for key, value in setup.items():
        if key != "layer":
            names += [value] if isinstance(value, str) else value
    return names


def make_case(name: str, setup: dict[str, Any], init: dict[str, Any], number: int) -> None:
    """Build one model and write its folder."""
    scvi.settings.seed = number
    cells = make_cells(np.random.default_rng(1000 + number))
    scvi.model.SCVI.setup_anndata(cells, **setup)
    model = scvi.model.SCVI(cells, n_hidden=8, n_latent=3, **init)
    trained = name.endswith("trained")
    if trained:
        options = {"enable_progress_bar": False, "logger": None, "train_size": 0.75, "batch_size": 12}
        model.train(max_epochs=3, check_val_every_n_epoch=1, accelerator="cpu", **options)
    else:
        randomise(model.module, torch.Generator().manual_seed(number))
    expected = evaluate(model, cells)
    state = model.module.state_dict()
    kept = ["z_encoder.mean_encoder.weight", "decoder.px_decoder.fc_layers.Layer 0.0.weight"]
    kept += ["px_r"] if "px_r" in state else ["decoder.px_r_decoder.bias"]
    case = {
        "setup": setup,
        "init": {"n_hidden": 8, "n_latent": 3, **init},
        "counts_in": setup.get("layer", "X"),
        "trained": trained,
        "versions": {p: importlib.metadata.version(p) for p in ("scvi-tools", "torch", "numpy", "pandas", "anndata")},
    }
    expected |= {f"weight/{key}": state[key].numpy() for key in kept}
    expected |= {f"obs_{key}": cells.obs[key].to_numpy() for key in columns_of(setup)}
    for key, value in expected.items():
        expected[key] = value.astype(str) if value.dtype == object else value
        assert value.dtype.kind != "f" or np.isfinite(value).all(), (name, key)
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save(f"{scratch}/model")
        shutil.copyfile(f"{scratch}/model/model.pt", folder / "model.pt")
    genes = cells.var_names.to_numpy().astype(str)
    np.savez_compressed(
        folder / "expected.npz", case=json.dumps(case), var_names=genes, counts=np.asarray(cells.X), **expected
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name:45s} {size:7,d} bytes, loss {expected['reconstruction_loss'].mean():10.2f}")


def main() -> None:
    """Write every case."""
    warnings.filterwarnings("ignore")
    for number, (name, (setup, init)) in enumerate(CASES.items()):
        make_case(name, setup, init, number)


if __name__ == "__main__":
    main()
