"""Reading TOTALVI of scvi-tools, of all three generations of that class."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from countvi import data as data_layer
from countvi import files
from countvi.batch import PROTEIN, RNA
from countvi.errors import FileFormatError, MismatchError
from countvi.estimators import persistence
from countvi.estimators.bounded import shortly
from countvi.estimators.build.totalvi import TOTALVIOptions
from countvi.estimators.totalvi import TOTALVI

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_OPTIONS = frozenset(TOTALVIOptions.__dataclass_fields__)
# Arguments of scvi-tools that do not change what a saved model computes.
_WITHOUT_EFFECT = frozenset({"adata", "registry", "protein_batch_mask", "use_size_factor_key"})
_EFFICIENCY = "log_per_batch_efficiency"
_TRUNKS = ("px_decoder", "py_back_decoder", "py_fore_decoder", "sigmoid_decoder")
_HEADS = {
    "rho": "px_scale_decoder",
    "observe.pi_logits": "px_dropout_decoder_gene",
    "protein.loc": "py_back_mean_log_alpha",
    "protein.scale": "py_back_mean_log_beta",
    "protein.alpha": "py_fore_scale_decoder",
    "protein.pi": "py_background_decoder",
}
_ENCODERS = {"encode_z": ("encoder", "z"), "library.encode": ("l_gene_encoder", "l_gene")}


def totalvi_from_scvi(
    archive: files.ScviArchive, registry: data_layer.Registry, adata: AnnData | MuData | None, path: str | Path
) -> TOTALVI:
    """Make the estimator with the weights of a file.

    Parameters
    ----------
    archive
        What the file holds.
    registry
        Its RNA and covariates, as of a model of RNA alone.
    adata
        Data for the read-outs, or ``None``.
    path
        Where it comes from, for messages.

    Notes
    -----
    Files of scvi-tools before 1.3.1 have no efficiencies, and an encoder that sees counts that were not divided; before
    1.2 the standard deviation of the log background is an exponential.
    """
    source: Mapping[str, Any] = archive.attributes["registry_"]
    options = _options(archive, source, path)
    registry = _registry(source, archive.var_names, registry, overridden=options["override_missing_proteins"])
    model = TOTALVI.restore(adata, registry, options, seed=0)
    weights = {}
    for name, old in model.module.state_dict().items():
        value = _find(name, archive.state, model.module.state_dict())
        if value.shape != old.shape:
            message = (
                f"The weight for {name} has shape {tuple(value.shape)} in the file; this model expects "
                f"{tuple(old.shape)}."
            )
            raise MismatchError(message)
        weights[name] = value.to(old.dtype).contiguous()
    persistence.load_weights(model.module, weights, path)
    return model


def _options(archive: files.ScviArchive, source: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Translate the constructor arguments of scvi-tools, and what its version stands for."""
    init = archive.attributes.get("init_params_", {})
    flat = dict(init.get("non_kwargs", {}))
    for nested in init.get("kwargs", {}).values():
        flat |= nested if isinstance(nested, Mapping) else {}
    decoder = dict(flat.pop("extra_decoder_kwargs", None) or {})
    recent = _EFFICIENCY in archive.state
    link = decoder.pop("activation_function_bg", None) or ("exp" if _version(source) < (1, 2) else "softplus")
    unknown = {
        name: value for name, value in flat.items() if name not in _OPTIONS | _WITHOUT_EFFECT and value is not None
    }
    unknown |= {f"extra_decoder_kwargs[{name!r}]": value for name, value in decoder.items()}
    if unknown:
        message = f"{path} was built with {shortly(unknown)}, which countvi.TOTALVI has no counterpart for."
        raise FileFormatError(message)
    given = {name: value for name, value in flat.items() if name in _OPTIONS}
    return {
        **dataclasses.asdict(TOTALVIOptions()),
        **given,
        "activation_function_bg": link,
        "normalize_encoder_input": recent,
        "protein_batch_efficiency": recent,
    }


def _version(source: Mapping[str, Any]) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", str(source.get("scvi_version", "")))
    return (0, 0) if numbers is None else (int(numbers[1]), int(numbers[2]))


def _registry(
    source: Mapping[str, Any], var_names: Any, base: data_layer.Registry, *, overridden: bool
) -> data_layer.Registry:
    """Add proteins and panels to a registry of RNA."""
    fields, arguments = source["field_registries"], source["setup_args"]
    proteins, panel_key = fields["proteins"]["state_registry"], arguments.get("panel_key")
    columns, covariates = base.columns, base.covariates
    if panel_key is not None:
        categories = fields["panel"]["state_registry"]["categorical_mapping"]
        values = tuple(value.item() if isinstance(value, np.generic) else value for value in categories)
        covariates = dataclasses.replace(covariates, panel=len(columns))
        columns = (*columns, data_layer.Column(str(panel_key), values))
    panel = covariates.batch if covariates.panel is None else covariates.panel
    mask = {} if overridden else proteins.get("protein_batch_mask") or {}
    levels = range(len(columns[panel].categories)) if mask else ()
    unmeasured = tuple(
        tuple(np.flatnonzero(~np.asarray(mask[str(level)], dtype=bool)).tolist()) if str(level) in mask else ()
        for level in levels
    )
    gaps = data_layer.Gaps(panel, None, unmeasured)
    names, names_key = tuple(str(name) for name in proteins["column_names"]), arguments.get("protein_names_uns_key")
    rna, protein = (_place(fields[key]["data_registry"]) for key in ("X", "proteins"))
    genes = base.modality(RNA).feature_names if rna[1] is None else tuple(str(name) for name in var_names[rna[1]])
    return dataclasses.replace(
        base,
        modalities=(
            data_layer.CountMatrix(RNA, rna[0], genes, rna[1], data_layer.GENES),
            data_layer.CountMatrix(PROTEIN, protein[0], names, protein[1], data_layer.PROTEINS, names_key, gaps),
        ),
        columns=columns,
        covariates=covariates,
    )


def _place(data_registry: Mapping[str, Any]) -> tuple[str, str | None]:
    """Where a matrix lies: location, and modality of a MuData."""
    store, key = data_registry["attr_name"], data_registry.get("attr_key")
    return ("X" if store == "X" else f"{store}/{key}"), data_registry.get("mod_key")


def _find(name: str, state: Mapping[str, Tensor], template: Mapping[str, Tensor]) -> Tensor:
    """The tensor of the file that a tensor of ours is made of."""
    simple = {
        "library.loc": lambda: _get(state, "library_log_means").flatten(),
        "library.scale": lambda: _get(state, "library_log_vars").flatten().sqrt(),
        "observe.log_theta.value": lambda: _by_level(_get(state, "px_r")),
        "protein.log_phi.value": lambda: _by_level(_get(state, "py_r")),
        "protein.efficiency.log_efficiency": lambda: _get(state, _EFFICIENCY).T,
        "protein.prior.loc": lambda: _panels(_get(state, "background_pro_alpha"), template[name]),
        "protein.prior.log_scale": lambda: _panels(_get(state, "background_pro_log_beta"), template[name]),
    }
    if name in simple:
        return simple[name]()
    for ours, theirs in _HEADS.items():
        if name.startswith(f"{ours}."):
            return _head(name.removeprefix(f"{ours}."), _layer(state, f"decoder.{theirs}", 0), template, ours)
    for ours, (network, letter) in _ENCODERS.items():
        if name.startswith(f"{ours}.mlp.layers."):
            index, _, part = name.removeprefix(f"{ours}.mlp.layers.").partition(".")
            return _part(
                part, [_layer(state, f"encoder.{network}", int(index))], template, f"{ours}.mlp.layers.{index}"
            )
        for leaf, kind in (("loc", "mean"), ("log_variance", "var")):
            if name.startswith(f"{ours}.{leaf}."):
                return _get(state, f"encoder.{letter}_{kind}_encoder.{name.rpartition('.')[2]}")
    if name.startswith("decode.first."):
        layers = [_layer(state, f"decoder.{trunk}", 0) for trunk in _TRUNKS]
        return _part(name.removeprefix("decode.first."), layers, template, "decode.first")
    found = re.fullmatch(r"decode\.rest\.(\d+)\.layers\.(\d+)\.(.+)", name)
    assert found is not None, f"no rule for the weight {name}"
    trunk, index, part = found.groups()
    layer = _layer(state, f"decoder.{_TRUNKS[int(trunk)]}", int(index) + 1)
    return _part(part, [layer], template, f"decode.rest.{trunk}.layers.{index}")


def _layer(state: Mapping[str, Tensor], network: str, index: int) -> dict[str, Tensor]:
    """Tensors of one layer by their names in it."""
    prefix = f"{network}.fc_layers.Layer {index}."
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        _get(state, f"{prefix}0.weight")
    return found


def _head(part: str, layer: Mapping[str, Tensor], template: Mapping[str, Tensor], ours: str) -> Tensor:
    weight = layer["0.weight"]
    if part == "levels.weight":
        return weight[:, template[f"{ours}.inputs"].shape[0] :].T
    if part == "inputs":
        return weight[:, : template[f"{ours}.inputs"].shape[0]].T
    return layer[f"0.{part}"]


def _part(part: str, layers: list[dict[str, Tensor]], template: Mapping[str, Tensor], ours: str) -> Tensor:
    """One tensor of a layer, of several networks below each other."""
    if part == "batch_norm.num_batches_tracked":
        return layers[0]["1.num_batches_tracked"]
    if part.startswith("batch_norm."):
        return torch.cat([layer[f"1.{part.removeprefix('batch_norm.')}"] for layer in layers])
    if part == "linear.bias":
        return torch.cat([layer["0.bias"] for layer in layers])
    matrix = torch.cat([layer["0.weight"] for layer in layers])
    # There, one matrix acts on [input, other inputs, covariate features, one-hot levels].
    sizes = {"weight": 0, "others.0": 0, "features": 0}
    for leaf in sizes:
        tensor = template.get(f"{ours}.linear.{leaf}")
        sizes[leaf] = 0 if tensor is None else tensor.shape[1]
    start = 0
    for leaf, size in sizes.items():
        if part == f"linear.{leaf}":
            return matrix[:, start : start + size]
        start += size
    return matrix[:, start:].T


def _by_level(value: Tensor) -> Tensor:
    return value.T if value.dim() == 2 else value


def _panels(value: Tensor, like: Tensor) -> Tensor:
    """A prior of each panel, from one for all where the file has that."""
    return value.T if value.dim() == 2 else value.expand(like.shape)


def _get(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        message = f"The file has no weight {key!r}. It was written by a version of scvi-tools that is not known here."
        raise MismatchError(message)
    return state[key]
