"""Renaming and reshaping the weights of scvi-tools for a countvi model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from countvi.errors import MismatchError

Change = Callable[[Tensor], Tensor] | None
"""What is done to a tensor; ``None`` for nothing."""


@dataclass(frozen=True)
class Naming:
    """Where the weights of a model are in a file of scvi-tools.

    Parameters
    ----------
    values
        Single tensors by our name: theirs, and what is done to it.
    heads
        Linear layers without covariates.
    trunks
        Networks with layers that see covariates.
    """

    values: Mapping[str, tuple[str, Change]] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    trunks: Mapping[str, str] = field(default_factory=dict)


def weights_from_scvi(state: Mapping[str, Tensor], template: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Rename and reshape the weights of scvi-tools for a countvi model.

    There, one matrix acts on ``[input, covariate features, one-hot levels]``; here each block is a parameter of its
    own.

    Parameters
    ----------
    state
        ``model_state_dict`` of scvi-tools.
    template
        State of the countvi model to fill: names and shapes.
    naming
        What is where.

    Raises
    ------
    MismatchError
        If a tensor is missing or has another shape.
    """
    weights: dict[str, Tensor] = {}
    for name, old in template.items():
        value = _find(name, state, template, naming)
        if value.shape != old.shape:
            message = (
                f"The weight for {name} has shape {tuple(value.shape)} in the file; this model expects "
                f"{tuple(old.shape)}."
            )
            raise MismatchError(message)
        weights[name] = value.to(old.dtype)
    return weights


def _find(name: str, state: Mapping[str, Tensor], template: Mapping[str, Tensor], naming: Naming) -> Tensor:
    if name in naming.values:
        key, change = naming.values[name]
        return _get(state, key) if change is None else change(_get(state, key))
    module, _, leaf = name.rpartition(".")
    if module in naming.heads:
        return _get(state, f"{naming.heads[module]}.{leaf}")
    trunk = next(ours for ours in naming.trunks if module.startswith(f"{ours}.layers."))
    index, _, part = module.removeprefix(f"{trunk}.layers.").partition(".")
    layer = f"{naming.trunks[trunk]}.fc_layers.Layer {index}"
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
