"""Models saved by scvi-tools, read without running their pickles."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from countvi import data as data_layer
from countvi import files
from countvi.batch import RNA
from countvi.errors import DataWarning, FileFormatError, MismatchError
from countvi.estimators import _persistence
from countvi.estimators._build import SCVIOptions
from countvi.estimators.scvi import SCVI
from countvi.estimators.totalvi import TOTALVI
from countvi.io._totalvi import totalvi_from_scvi

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_OPTIONS = frozenset(SCVIOptions.__dataclass_fields__)
# Arguments of scvi-tools that do not change what a saved model computes.
_WITHOUT_EFFECT = frozenset({"adata", "registry", "var_activation", "use_size_factor_key"})


def load_scvi_tools(path: str | Path, adata: AnnData | MuData | None = None, *, device: str = "cpu") -> SCVI | TOTALVI:
    """Read an SCVI or TOTALVI model that scvi-tools saved, with the same weights.

    Parameters
    ----------
    path
        The folder that ``model.save`` of scvi-tools wrote, or the ``model.pt`` in it.
    adata
        Data for the read-outs; by default none. Genes are matched by name and categories by value.
    device
        Where to put the model.

    Returns
    -------
    countvi.SCVI or countvi.TOTALVI
        Trained, ready for read-outs and for further training.

    Raises
    ------
    FileFormatError
        If the file is not such a model, or its pickle asks for anything but plain data.
    MismatchError
        If ``adata`` lacks genes of the model.
    """
    archive = files.read_scvi_archive(path)
    source = archive.attributes.get("registry_")
    name = source.get("model_name") if isinstance(source, Mapping) else None
    if not isinstance(source, Mapping) or name not in ("SCVI", "TOTALVI"):
        message = f"{path} holds a model of class {name or 'unknown'}; load_scvi_tools reads SCVI and TOTALVI."
        raise FileFormatError(message)
    registry = registry_from_scvi(source, [str(name) for name in archive.var_names])
    model: SCVI | TOTALVI
    if name == "TOTALVI":
        model = totalvi_from_scvi(archive, registry, adata, path)
    else:
        options = options_from_scvi(archive.attributes.get("init_params_", {}), path)
        model = SCVI._restore(adata, registry, options, seed=0)
        weights = weights_from_scvi(archive.state, model.module.state_dict())
        _persistence.load_weights(model.module, weights, path)
    model.is_trained = bool(archive.attributes.get("is_trained_", True))
    split = [archive.attributes.get(f"{part}_indices_") for part in ("train", "validation", "test")]
    if model._data is not None and split[0] is not None:
        model._split = _split_from_scvi(split, model._data.n_cells)
    model.to_device(device)
    return model


def _split_from_scvi(parts: list[Any], n_cells: int) -> data_layer.Split | None:
    train, validation, test = (np.sort(np.asarray([] if part is None else part, dtype=np.int64)) for part in parts)
    try:
        return data_layer.split_from_indices(n_cells, train, validation, test)
    except ValueError:
        message = (
            "The training and held-out cells stored with this model do not fit the data given; train() will draw a "
            "new split."
        )
        warnings.warn(message, DataWarning, stacklevel=3)
        return None


def registry_from_scvi(source: Mapping[str, Any], var_names: list[str]) -> data_layer.Registry:
    """Translate the registry of scvi-tools.

    Parameters
    ----------
    source
        Its ``registry_``.
    var_names
        Gene names stored beside it.
    """
    fields = source["field_registries"]
    arguments = {name: value for name, value in source["setup_args"].items() if name != "use_minified"}
    layer = arguments.get("layer")

    def state(field: str) -> Mapping[str, Any]:
        return fields.get(field, {}).get("state_registry", {})

    def column(role: str, field: str, key: str | None) -> data_layer.Column:
        categories = state(field).get("categorical_mapping", [0]) if key is not None else [0]
        return data_layer.Column(role, key, tuple(_plain(value) for value in categories))

    covariates = state("extra_categorical_covs")
    categorical = tuple(
        data_layer.Column("categorical", str(key), tuple(_plain(value) for value in covariates["mappings"][key]))
        for key in covariates.get("field_keys", [])
    )
    return data_layer.Registry(
        method=str(source.get("setup_method_name", "setup_anndata")),
        setup_args={
            name: list(value) if isinstance(value, (list, tuple)) else value for name, value in arguments.items()
        },
        modalities=(data_layer.Modality(RNA, "X" if layer is None else f"layers/{layer}", tuple(var_names)),),
        columns=(
            column("batch", "batch", arguments.get("batch_key")),
            column("labels", "labels", arguments.get("labels_key")),
            *categorical,
        ),
        continuous_keys=tuple(str(key) for key in state("extra_continuous_covs").get("columns", [])),
        size_factor_key=arguments.get("size_factor_key"),
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def options_from_scvi(init_params: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Translate the constructor arguments of scvi-tools.

    Raises
    ------
    FileFormatError
        If one would change what the model computes and has no counterpart here.
    """
    flat = dict(init_params.get("non_kwargs", {}))
    for nested in init_params.get("kwargs", {}).values():
        flat |= nested if isinstance(nested, Mapping) else {}
    options = {name: value for name, value in flat.items() if name in _OPTIONS}
    unknown = {
        name: value for name, value in flat.items() if name not in _OPTIONS | _WITHOUT_EFFECT and value is not None
    }
    if unknown:
        message = f"{path} was built with {unknown}, which countvi.SCVI has no counterpart for."
        raise FileFormatError(message)
    if options.get("gene_likelihood") == "poisson":
        options["dispersion"] = "gene"  # a Poisson model of scvi-tools carries a dispersion that nothing reads
    return options


def weights_from_scvi(state: Mapping[str, Tensor], template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the weights of scvi-tools for a countvi model.

    There, one matrix acts on ``[input, covariate features, one-hot levels]``; here each block is a parameter of its
    own.

    Parameters
    ----------
    state
        ``model_state_dict`` of scvi-tools.
    template
        State of the countvi model to fill: names and shapes.

    Raises
    ------
    MismatchError
        If a tensor is missing or has another shape.
    """
    weights: dict[str, Tensor] = {}
    for name, old in template.items():
        value = _find(name, state, template)
        if value.shape != old.shape:
            message = (
                f"The weight for {name} has shape {tuple(value.shape)} in the file; this model expects "
                f"{tuple(old.shape)}."
            )
            raise MismatchError(message)
        weights[name] = value.to(old.dtype)
    return weights


_HEADS = {
    "rho": "decoder.px_scale_decoder.0",
    "observe.pi_logits": "decoder.px_dropout_decoder",
    "observe.log_theta.head": "decoder.px_r_decoder",
    "observe.log_scale.head": "decoder.px_r_decoder",
    "encode_z.loc": "z_encoder.mean_encoder",
    "encode_z.log_variance": "z_encoder.var_encoder",
    "library.encode.loc": "l_encoder.mean_encoder",
    "library.encode.log_variance": "l_encoder.var_encoder",
}
_TRUNKS = {
    "encode_z.mlp": "z_encoder.encoder",
    "library.encode.mlp": "l_encoder.encoder",
    "decode": "decoder.px_decoder",
}


def _find(name: str, state: Mapping[str, Tensor], template: Mapping[str, Tensor]) -> Tensor:
    module, _, leaf = name.rpartition(".")
    if name == "covariates.embedding.weight":
        return _get(state, "_embeddings_dict.batch.weight")
    if name == "library.loc":
        return _get(state, "library_log_means").flatten()
    if name == "library.scale":
        return _get(state, "library_log_vars").flatten().sqrt()
    if name in ("observe.log_theta.value", "observe.log_scale.value"):
        value = _get(state, "px_r")
        return value.T.contiguous() if value.dim() == 2 else value
    if module in _HEADS:
        return _get(state, f"{_HEADS[module]}.{leaf}")
    trunk = next(ours for ours in _TRUNKS if module.startswith(f"{ours}.layers."))
    index, _, part = module.removeprefix(f"{trunk}.layers.").partition(".")
    layer = f"{_TRUNKS[trunk]}.fc_layers.Layer {index}"
    if part == "batch_norm":
        return _get(state, f"{layer}.1.{leaf}")
    if leaf == "bias":
        return _get(state, f"{layer}.0.bias")
    return _block(_get(state, f"{layer}.0.weight"), part, leaf, f"{trunk}.layers.{index}.linear", template)


def _block(matrix: Tensor, part: str, leaf: str, linear: str, template: Mapping[str, Tensor]) -> Tensor:
    n_in = template[f"{linear}.weight"].shape[1]
    features = template.get(f"{linear}.features")
    n_features = 0 if features is None else features.shape[1]
    if part == "linear.levels":
        return matrix[:, n_in + n_features :].T.contiguous()
    if leaf == "features":
        return matrix[:, n_in : n_in + n_features].contiguous()
    return matrix[:, :n_in].contiguous()


def _get(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        message = f"The file has no weight {key!r}. It was written by a version of scvi-tools that is not known here."
        raise MismatchError(message)
    return state[key]
