"""Reading CondSCVI and DestVI of scvi-tools: of the paper's generation, and CondSCVI of the one after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from countvi import data as data_layer
from countvi.errors import FileFormatError, MismatchError
from countvi.estimators import persistence
from countvi.estimators.bounded import shortly
from countvi.estimators.build.condscvi import CondSCVIOptions
from countvi.estimators.build.destvi import DestVIOptions
from countvi.estimators.destvi import DestVI
from countvi.io._weights import Naming, weights_from_scvi

if TYPE_CHECKING:
    from anndata import AnnData

# What scvi-tools adds to the standard deviations of the prior.
_LEAST_SCALE = 1e-4
_CELL_OPTIONS = frozenset(CondSCVIOptions.__dataclass_fields__) - {"generation"}
# Arguments that the weights speak for, or that do not change what a saved model computes.
_READ_FROM_WEIGHTS = frozenset({"adata", "registry", "ct_weight"})

CONDSCVI = Naming(
    values={
        "covariates.embedding.weight": ("_embeddings_dict.batch.weight", None),
        "label_weight": ("ct_weight", None),
        "observe.p_logits": ("px_r", None),
        "observe.log_theta": ("px_r", None),
        "observe.label_bias": ("per_ct_bias", None),
        "prior_of_state.loc": ("prior_means", None),
        "prior_of_state.log_scale": ("prior_log_std", None),
        "prior_of_state.logits": ("prior_logits", None),
    },
    heads={
        "observe.f": "px_decoder",
        "encode.loc": "z_encoder.mean_encoder",
        "encode.log_variance": "z_encoder.var_encoder",
    },
    trunks={"encode.mlp": "z_encoder.encoder", "decode": "decoder"},
)
"""Weights of CondSCVI; what the paper's generation calls ``px_decoder.0`` is called as in the later one."""


def condscvi_options(state: dict[str, Tensor], arguments: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Translate the constructor arguments of a CondSCVI, and bring the names in ``state`` to those of one generation.

    Raises
    ------
    FileFormatError
        If one would change what the model computes and has no counterpart here.
    """
    _one_name(state)
    unknown = {
        name: value
        for name, value in arguments.items()
        if name not in _CELL_OPTIONS | _READ_FROM_WEIGHTS and value is not None
    }
    if unknown or any(name.startswith("classifier.") for name in state):
        what = shortly(unknown) if unknown else "a classifier of fine labels"
        message = f"{path} was built with {what}, which countvi.CondSCVI has no counterpart for."
        raise FileFormatError(message)
    options = {name: value for name, value in arguments.items() if name in _CELL_OPTIONS}
    later = "per_ct_bias" in state
    return {**options, "generation": "mean-dispersion" if later else "rate-shape"}


def load_destvi(
    state: dict[str, Tensor],
    registry: data_layer.Registry,
    arguments: Mapping[str, Any],
    adata: AnnData | None,
    path: str | Path,
) -> DestVI:
    """Read a DestVI of the paper's generation.

    Parameters
    ----------
    state
        Its weights.
    registry, arguments
        Of its set-up, and of its constructor.
    adata
        The slide.
    path
        For messages.

    Raises
    ------
    FileFormatError
        If it is of the later generation.
    MismatchError
        If the slide has another number of spots.
    """
    _one_name(state)
    if "px_o" not in state:
        message = (
            f"{path} holds a DestVI of scvi-tools 1.4.1 or later, which is another model (softmax proportions, several "
            "states per type). load_scvi_tools reads those of scvi-tools up to 1.4.0."
        )
        raise FileFormatError(message)
    n_types, n_latent, n_spots = state["gamma"].permute(1, 0, 2).shape
    options = DestVIOptions(
        cell_types=tuple(str(name) for name in arguments["cell_type_mapping"]),
        n_hidden=arguments["n_hidden"],
        n_latent=n_latent,
        n_layers=arguments["n_layers"],
        n_components=state["mp_vprior"].shape[1],
        n_spots=n_spots,
        **{
            name: arguments[name]
            for name in ("amortization", "l1_reg", "beta_reg", "eta_reg", "dropout_amortization")
            if name in arguments
        },
    )
    if "amortization" not in arguments:
        options = dataclasses.replace(options, amortization="both")
    if adata is not None and adata.n_obs != n_spots and options.amortization != "both":
        message = f"The model in {path} has parameters of {n_spots:,} spots; this slide has {adata.n_obs:,}."
        raise MismatchError(message)
    spots = pd.RangeIndex(n_spots).astype(str) if adata is None else data_layer.unique_names(adata.obs_names)
    init_args = {
        **dataclasses.asdict(options),
        "spots": None if options.amortization == "both" else [str(name) for name in spots],
        "missing_genes": [],
    }
    model = DestVI.restore(adata, registry, init_args, seed=0)
    weights = weights_from_scvi(state, model.module.state_dict(), _destvi_naming(n_types, n_latent))
    persistence.load_weights(model.module, weights, path)
    return model


def _destvi_naming(n_types: int, n_latent: int) -> Naming:
    # Of each spot, or of the output of a network, types run fastest there, dimensions here.
    by_type = partial(_by_type, n_types=n_types, n_latent=n_latent)
    return Naming(
        values={
            "infer_gamma.table": ("gamma", lambda value: value.permute(2, 1, 0).flatten(1)),
            "infer_beta.table": ("V", lambda value: value.T.contiguous()),
            "infer_gamma.out.weight": ("gamma_encoder.1.weight", by_type),
            "infer_gamma.out.bias": ("gamma_encoder.1.bias", by_type),
            "log_alpha": ("beta", None),
            "eta": ("eta", None),
            "p_logits": ("px_o", None),
            "prior_of_gamma.loc": ("mean_vprior", None),
            "prior_of_gamma.scale": ("var_vprior", lambda value: value.sqrt() + _LEAST_SCALE),
            "prior_of_gamma.weights": ("mp_vprior", None),
        },
        heads={"f": "px_decoder", "infer_beta.out": "V_encoder.1"},
        trunks={"decode": "decoder", "infer_gamma.mlp": "gamma_encoder.0", "infer_beta.mlp": "V_encoder.0"},
    )


def _by_type(value: Tensor, n_types: int, n_latent: int) -> Tensor:
    rest = value.shape[1:]
    return value.view(n_latent, n_types, *rest).transpose(0, 1).reshape(n_types * n_latent, *rest)


def _one_name(state: dict[str, Tensor]) -> None:
    for leaf in ("weight", "bias"):
        if f"px_decoder.0.{leaf}" in state:
            state[f"px_decoder.{leaf}"] = state.pop(f"px_decoder.0.{leaf}")
