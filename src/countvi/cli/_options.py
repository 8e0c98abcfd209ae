"""Options of a run: those of the command line over those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml

from countvi.errors import OptionError, UnknownNameError, did_you_mean

# Options by the call they are arguments of; what is in none of these goes to the model. Repeated options are singular
# on the command line, plural in Python.
_SETUP = {
    "layer": "layer",
    "batch_key": "batch_key",
    "labels_key": "labels_key",
    "size_factor_key": "size_factor_key",
    "categorical_covariate_key": "categorical_covariate_keys",
    "continuous_covariate_key": "continuous_covariate_keys",
    "protein_expression_obsm_key": "protein_expression_obsm_key",
    "protein_names_uns_key": "protein_names_uns_key",
    "protein_mask_obsm_key": "protein_mask_obsm_key",
    "panel_key": "panel_key",
    "modality": "modalities",
    "ambient_covariate_key": "ambient_covariate_keys",
    "nn_conditioning_covariate_key": "nn_conditioning_covariate_keys",
    "nn_continuous_covariate_key": "nn_continuous_covariate_keys",
    "feature_scaling_covariate_key": "feature_scaling_covariate_keys",
    "dispersion_key": "dispersion_key",
    "library_size_key": "library_size_key",
    "encoder_covariate_key": "encoder_covariate_keys",
}
_MODEL = {
    "background_modality": "additive_background_modalities",
    "scaling_modality": "feature_scaling_modalities",
}
_TRAIN = ("max_epochs", "batch_size", "train_size", "early_stopping", "accelerator")
_FILES = ("counts", "out", "write_h5ad")

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


_PATHS = ("counts", "out", "write_h5ad")


@dataclass(frozen=True)
class Switches:
    """What belongs to one call and not to the run: it is not kept in ``run.yaml``."""

    config: Path | None
    overwrite: bool
    resume: bool
    quiet: bool


@dataclass(frozen=True)
class Options:
    """What makes a run.

    Parameters
    ----------
    values
        Options by name, as plain YAML values; those that nobody gave are missing.
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, what in (("counts", "the file with the counts"), ("out", "--out, a folder")):
            if name not in self.values:
                message = f"Name {what}, on the command line or in --config."
                raise OptionError(message)

    @property
    def counts(self) -> Path:
        """The input."""
        return Path(self.values["counts"])

    @property
    def out(self) -> Path:
        """The folder for the results."""
        return Path(self.values["out"])

    @property
    def write_h5ad(self) -> Path | None:
        """Where the input goes, with the latent space."""
        name = self.values.get("write_h5ad")
        return None if name is None else Path(name)

    @property
    def setup(self) -> dict[str, Any]:
        """Arguments of ``setup_anndata`` or ``setup_mudata``."""
        return {_SETUP[name]: value for name, value in self.values.items() if name in _SETUP}

    @property
    def train(self) -> dict[str, Any]:
        """Arguments of ``train``."""
        return {name: value for name, value in self.values.items() if name in _TRAIN}

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of the model."""
        others = {*_SETUP, *_TRAIN, *_FILES}
        return {_MODEL.get(name, name): value for name, value in self.values.items() if name not in others}

    def to_yaml(self) -> str:
        """Text that ``--config`` reads back as these options."""
        # Whole paths, so that the file means the same read from another folder.
        values = {n: str(Path(v).resolve()) if n in _PATHS else v for n, v in self.values.items()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def resolve(given: Mapping[str, Any], config: Path | None, kinds: Mapping[str, Any]) -> Options:
    """Put the options of the command line over those of a file.

    Parameters
    ----------
    given
        Options of the command line; ``None`` where one was not given.
    config
        YAML file with options, by the same names.
    kinds
        Type of every option, with or without ``None``.

    Raises
    ------
    UnknownNameError
        If the file has an option that does not exist.
    OptionError
        If the file does not hold options, one of them is of the wrong kind, or one that must be given is missing.
    """
    options = {} if config is None else _read(config, given, kinds)
    options |= {name: value for name, value in given.items() if value is not None and value != []}
    return Options({name: str(value) if isinstance(value, Path) else value for name, value in options.items()})


def _read(config: Path, known: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{config} is not readable YAML: {error}"
        raise OptionError(message) from error
    if content is None:  # an empty file, or one of comments
        return {}
    if not isinstance(content, dict):
        message = f"{config} must hold options, such as 'batch-key: donor'; it holds {type(content).__name__}."
        raise OptionError(message)
    options: dict[str, Any] = {}
    for written, value in content.items():
        name = str(written).replace("-", "_")
        if name not in known:
            hint = did_you_mean(name.replace("_", "-"), [other.replace("_", "-") for other in known])
            message = f"{config} has an unknown option {written!r}.{hint}"
            raise UnknownNameError(message)
        if name in options:
            message = f"{config} gives {name.replace('_', '-')!r} twice, once with '_' and once with '-'. Remove one."
            raise OptionError(message)
        if value is not None:
            options[name] = _converted(config, str(written), value, kinds[name])
    return options


def _converted(config: Path, name: str, value: Any, kind: Any) -> Any:
    """The value as its option takes it; YAML alone would let text through as a number, and numbers as text."""
    kind = next((part for part in get_args(kind) if part is not type(None)), kind) if _is_union(kind) else kind
    if kind == list[str]:
        return [_converted(config, name, part, str) for part in (value if isinstance(value, list) else [value])]
    if kind in (str, Path) and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind is float and not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            return float(value)  # of text too: YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    elif isinstance(value, str if kind is Path else kind) and not (kind is int and isinstance(value, bool)):
        return value
    quote = " Put it in quotes." if kind in (str, Path) and not isinstance(value, list | dict) else ""
    message = f"{config}: {name} must be {_WORDS[kind]}; got {value!r}.{quote}"
    raise OptionError(message)


def _is_union(kind: Any) -> bool:
    return isinstance(kind, UnionType) or type(None) in get_args(kind)
