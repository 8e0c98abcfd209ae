"""``load_scvi_tools``: reading models of scvi-tools without running their pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from countvi import data as data_layer
from countvi import files
from countvi.batch import RNA
from countvi.errors import DataWarning, FileFormatError, OptionError, shorten, warn
from countvi.estimators import persistence
from countvi.estimators.base import Estimator
from countvi.estimators.bounded import check_depth, shortly, whole
from countvi.estimators.build.scvi import SCVIOptions
from countvi.estimators.condscvi import CondSCVI
from countvi.estimators.scvi import SCVI
from countvi.io._deconvolution import CONDSCVI, condscvi_options, load_destvi
from countvi.io._totalvi import totalvi_from_scvi
from countvi.io._weights import Naming, weights_from_scvi

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_OPTIONS = frozenset(SCVIOptions.__dataclass_fields__)
# Arguments of scvi-tools that do not change what a saved model computes.
_WITHOUT_EFFECT = frozenset({"adata", "registry", "var_activation", "use_size_factor_key"})
_READ = ("SCVI", "TOTALVI", "CondSCVI", "DestVI")


def _dispersion(value: Tensor) -> Tensor:
    return value.T.contiguous() if value.dim() == 2 else value


NAMES = Naming(
    values={
        "covariates.embedding.weight": ("_embeddings_dict.batch.weight", None),
        "library.loc": ("library_log_means", Tensor.flatten),
        "library.scale": ("library_log_vars", lambda value: value.flatten().sqrt()),
        "observe.log_theta.value": ("px_r", _dispersion),
        "observe.log_scale.value": ("px_r", _dispersion),
    },
    heads={
        "rho": "decoder.px_scale_decoder.0",
        "observe.pi_logits": "decoder.px_dropout_decoder",
        "observe.log_theta.head": "decoder.px_r_decoder",
        "observe.log_scale.head": "decoder.px_r_decoder",
        "encode_z.loc": "z_encoder.mean_encoder",
        "encode_z.log_variance": "z_encoder.var_encoder",
        "library.encode.loc": "l_encoder.mean_encoder",
        "library.encode.log_variance": "l_encoder.var_encoder",
    },
    trunks={
        "encode_z.mlp": "z_encoder.encoder",
        "library.encode.mlp": "l_encoder.encoder",
        "decode": "decoder.px_decoder",
    },
)
"""Weights of SCVI."""


def load_scvi_tools(path: str | Path, adata: AnnData | MuData | None = None, *, device: str = "cpu") -> Any:
    """Read a model that scvi-tools saved, with the same weights.

    SCVI, TOTALVI, CondSCVI, and DestVI up to scvi-tools 1.4.0.

    Parameters
    ----------
    path
        The folder that ``model.save`` of scvi-tools wrote, or the ``model.pt`` in it.
    adata
        Data for the read-outs; by default none. Genes are matched by name and categories by value. The spots of a
        DestVI have no names in its file: the slide must have them in the order they had there.
    device
        Where to put the model.

    Returns
    -------
    countvi.SCVI, countvi.TOTALVI, countvi.CondSCVI or countvi.DestVI
        Trained, ready for read-outs and for further training.

    Raises
    ------
    FileFormatError
        If the file is not such a model, or its pickle asks for anything but plain data.
    MismatchError
        If ``adata`` lacks genes of the model, or has another number of spots.
    OptionError
        If ``adata`` is a MuData and the model reads an AnnData.
    """
    from anndata import AnnData

    archive = files.read_scvi_archive(path)
    source = archive.attributes.get("registry_")
    name = source.get("model_name") if isinstance(source, Mapping) else None
    if not isinstance(source, Mapping) or name not in _READ:
        message = (
            f"{path} holds a model of class {str(name or 'unknown')[:40]}; load_scvi_tools reads {shorten(_READ)}."
        )
        raise FileFormatError(message)
    if adata is not None and name != "TOTALVI" and not isinstance(adata, AnnData):
        message = f"A model of class {name} reads an AnnData; got a {type(adata).__name__}. Pass one of its modalities."
        raise OptionError(message)
    with whole(path, archive.state):
        registry = registry_from_scvi(source, [str(gene) for gene in archive.var_names])
        registry.check()
        check_depth(path, flat_arguments(archive.attributes.get("init_params_", {})), archive.state)
        model = _assemble(name, archive, registry, adata, path)
        model.is_trained = bool(archive.attributes.get("is_trained_", True))
        split = [archive.attributes.get(f"{part}_indices_") for part in ("train", "validation", "test")]
        if model.bound is not None and split[0] is not None:
            model.split = _split_from_scvi(split, model.bound.n_cells)
    model.to_device(device)
    return model


def _assemble(
    name: str, archive: files.ScviArchive, registry: data_layer.Registry, adata: Any, path: str | Path
) -> Estimator:
    """The estimator of one class, with the weights of a file."""
    if name == "TOTALVI":
        return totalvi_from_scvi(archive, registry, adata, path)
    init_params = archive.attributes.get("init_params_", {})
    if name == "DestVI":
        return load_destvi(archive.state, registry, flat_arguments(init_params), adata, path)
    model: Estimator
    if name == "SCVI":
        model = SCVI.restore(adata, registry, options_from_scvi(init_params, path), seed=0)
    else:
        options = condscvi_options(archive.state, flat_arguments(init_params), path)
        model = CondSCVI.restore(adata, registry, options, seed=0)
    naming = NAMES if name == "SCVI" else CONDSCVI
    weights = weights_from_scvi(archive.state, model.module.state_dict(), naming)
    persistence.load_weights(model.module, weights, path)
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
        warn(message, DataWarning)
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

    def column(field: str, key: str | None) -> data_layer.Column:
        categories = state(field).get("categorical_mapping", [0]) if key is not None else [0]
        return data_layer.Column(key, tuple(_plain(value) for value in categories))

    covariates = state("extra_categorical_covs")
    categorical = tuple(
        data_layer.Column(str(key), tuple(_plain(value) for value in covariates["mappings"][key]))
        for key in covariates.get("field_keys", [])
    )
    return data_layer.Registry(
        method=str(source.get("setup_method_name", "setup_anndata")),
        setup_args={
            name: list(value) if isinstance(value, (list, tuple)) else value for name, value in arguments.items()
        },
        modalities=(data_layer.CountMatrix(RNA, "X" if layer is None else f"layers/{layer}", tuple(var_names)),),
        columns=(
            column("batch", arguments.get("batch_key")),
            column("labels", arguments.get("labels_key")),
            *categorical,
        ),
        covariates=data_layer.Covariates(categorical=tuple(range(2, 2 + len(categorical)))),
        continuous_keys=tuple(str(key) for key in state("extra_continuous_covs").get("columns", [])),
        size_factor_key=arguments.get("size_factor_key"),
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def flat_arguments(init_params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor of scvi-tools without their nesting."""
    flat = dict(init_params.get("non_kwargs", {}))
    for nested in init_params.get("kwargs", {}).values():
        flat |= nested if isinstance(nested, Mapping) else {}
    return flat


def options_from_scvi(init_params: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Translate the constructor arguments of scvi-tools.

    Raises
    ------
    FileFormatError
        If one would change what the model computes and has no counterpart here.
    """
    flat = flat_arguments(init_params)
    options = {name: value for name, value in flat.items() if name in _OPTIONS}
    unknown = {
        name: value for name, value in flat.items() if name not in _OPTIONS | _WITHOUT_EFFECT and value is not None
    }
    if unknown:
        message = f"{path} was built with {shortly(unknown)}, which countvi.SCVI has no counterpart for."
        raise FileFormatError(message)
    if options.get("gene_likelihood") == "poisson":
        options["dispersion"] = "gene"  # a Poisson model of scvi-tools carries a dispersion that nothing reads
    return options
