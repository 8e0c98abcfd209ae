"""The manifest of a saved model: everything except the tensors, as JSON; migrations from earlier formats.

The text is plain ASCII (other characters are escaped), so a gene name survives every editor and code page.
JSON has no NaN: in ``history`` a number that is not finite is written as null; anywhere else it is an error.

The entry ``manifest_sha256`` is a digest of all other entries, so that a damaged manifest is noticed whatever was
damaged. It is no signature: who edits a manifest can make a new one. Manifests of countvi before 0.1 lack it, and a
manifest that lacks it is read all the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeGuard

import numpy as np

from countvi.errors import FileFormatError, shorten

FORMAT_VERSION = 2
"""Version of the model folder that this countvi writes, and the newest that it reads."""

FORMAT_NAME = "countvi model"
"""Value of the manifest's ``format`` entry, by which a folder is recognised as ours."""

DIGEST = "manifest_sha256"
"""Entry of the manifest with the digest of all its other entries."""

_SHOWN = 60  # characters of a value in a message

Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the JSON object of one format version and returns that of the next; need not set ``format_version``."""


def _covariate_roles(values: dict[str, Any]) -> dict[str, Any]:
    """From format 1, which knew covariates by the word of each column, or by ``purposes``, to roles in one object."""
    registry = values["registry"]
    words = [column.pop("role") for column in registry["columns"]]
    purposes = registry.pop("purposes", None) or {}
    several = {role: purposes.get(role, []) for role in ("ambient", "conditioning", "scaling", "encoder")}
    registry["covariates"] = {
        "batch": 0,
        "labels": 1,
        "categorical": [i for i, word in enumerate(words) if word == "categorical"],
        "panel": next((i for i, word in enumerate(words) if word == "panel"), None),
        "dispersion": purposes.get("dispersion"),
        "library": purposes.get("library"),
        **several,
    }
    for modality in registry["modalities"]:  # which were left out before they had these fields
        for name in ("part", "feature_type", "names_key", "gaps"):
            modality.setdefault(name, None)
    return values


MIGRATIONS: Mapping[int, Migration] = {1: _covariate_roles}
"""What brings a manifest of version ``key`` to version ``key + 1``."""


@dataclass(frozen=True)
class Manifest:
    """What a saved model says about itself.

    Parameters
    ----------
    model_class
        Name of the estimator class, such as ``"SCVI"``.
    init_args
        Arguments of its constructor.
    registry
        What was set up: gene names, categories, keys.
    history
        Table of the training history: column name to values, columns of equal length. Empty if not trained.
    split
        Whether the arrays of the train/validation/test split are among the tensors.
    seed
        Seed of the fit, or ``None``.
    versions
        Versions of packages, by name. ``versions["countvi"]`` is named in messages.
    data_fingerprint
        Fingerprint of the training data, or ``None``.
    is_trained
        Whether the model has been fitted.
    created
        Time of saving, ISO 8601.
    format_version
        Version of the folder's format.
    tensors
        Data type and shape of each tensor: ``{name: {"dtype": "float32", "shape": [2, 3]}}``. Filled in on writing.
    tensors_sha256
        SHA-256 of the tensor file, 64 hexadecimal digits. Filled in on writing.
    extra
        Anything else a model wants to keep.
    """

    model_class: str
    init_args: dict[str, Any]
    registry: dict[str, Any]
    history: dict[str, list[Any]]
    split: bool
    seed: int | None
    versions: dict[str, str]
    data_fingerprint: str | None
    is_trained: bool
    created: str
    format_version: int = FORMAT_VERSION
    tensors: dict[str, Any] = field(default_factory=dict)
    tensors_sha256: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the manifest as ASCII JSON text.

        Numpy scalars and arrays become numbers and lists, tuples become lists.

        Raises
        ------
        FileFormatError
            If a field holds something that JSON cannot, or has the wrong type; the message names the field.
        """
        values = {
            f.name: _plain(getattr(self, f.name), f.name, null_for_nan=f.name == "history")
            for f in dataclasses.fields(self)
        }
        _check_fields(values, "the model's manifest")
        values = {"format": FORMAT_NAME, **values}
        values[DIGEST] = _digest(values)
        return json.dumps(values, ensure_ascii=True, allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(
        cls,
        text: str,
        *,
        where: str = "manifest.json",
        migrations: Mapping[int, Migration] = MIGRATIONS,
        latest: int = FORMAT_VERSION,
    ) -> Manifest:
        """Read a manifest; bring an older format up to ``latest`` first.

        Parameters
        ----------
        text
            What :meth:`to_json` wrote, of this or an older format version.
        where
            The file, for messages.
        migrations
            Functions from each older version to the next, applied in order.
        latest
            The newest format version that can be read.

        Raises
        ------
        FileFormatError
            If the text is not JSON, is not a countvi manifest, is of a newer format, was changed after it was
            written, or has a field that is missing, unknown or of the wrong type.
        """
        values = _parse(text, where)
        _check_version(values, where, latest)
        _check_digest(values, where)
        values = _migrate(values, where, migrations, latest)
        del values["format"]
        _check_fields(values, where)
        return cls(**values)


def is_manifest(text: str) -> bool:
    """Whether the text is the manifest of a countvi model, of any format version."""
    try:
        _parse(text, "")
    except FileFormatError:
        return False
    return True


def _parse(text: str, where: str) -> dict[str, Any]:
    """JSON object of a countvi manifest of any version."""
    try:
        values = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite_number, object_pairs_hook=_unique_keys
        )
    except (ValueError, RecursionError) as error:
        message = f"{where} is not valid JSON ({error}): it is damaged or was edited by hand; use another copy."
        raise FileFormatError(message) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT_NAME:
        message = f"{where} is JSON, but not the manifest of a countvi model (no entry 'format': '{FORMAT_NAME}')."
        raise FileFormatError(message)
    return values


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not a JSON number"
    raise ValueError(message)


def _finite_number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of the entries, whatever their order and the white space between them."""
    text = json.dumps(values, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _check_digest(values: dict[str, Any], where: str) -> None:
    """Take the digest out, where there is one, and compare."""
    if DIGEST not in values:
        return
    if values.pop(DIGEST) != _digest(values):
        message = (
            f"{where} is not what was saved (its SHA-256 checksum, {DIGEST!r}, differs): it was damaged in copying or "
            "edited by hand; copy the model again from where it was saved."
        )
        raise FileFormatError(message)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        message = f"an object has the key {next(n for n in names if names.count(n) > 1)!r} twice"
        raise ValueError(message)
    return values


def _check_version(values: dict[str, Any], where: str, latest: int) -> None:
    version = values.get("format_version")
    if not _is_int(version):
        message = f"Field 'format_version' of {where} must be a whole number; got {_shown(version)}."
        raise FileFormatError(message)
    if version > latest:
        versions = values.get("versions")
        writer = versions.get("countvi", "of unknown version") if isinstance(versions, dict) else "of unknown version"
        message = (
            f"{where} was written by countvi {str(writer)[:_SHOWN]}, format {version}; this countvi reads up to "
            f"{latest}: upgrade countvi to open it."
        )
        raise FileFormatError(message)


def _migrate(values: dict[str, Any], where: str, migrations: Mapping[int, Migration], latest: int) -> dict[str, Any]:
    """Apply the migrations from the manifest's version up to the latest."""
    version = values["format_version"]
    while version < latest:
        if version not in migrations:
            message = f"{where} has format {version}, which this countvi cannot bring up to format {latest}."
            raise FileFormatError(message)
        try:
            values = migrations[version](values)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            message = f"{where} is damaged: it is not a whole manifest of format {version} ({error!r})."
            raise FileFormatError(message) from error
        version += 1
        values["format_version"] = version
    return values


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_table(value: object) -> bool:
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return False
    numbers = all(item is None or isinstance(item, int | float) for column in value.values() for item in column)
    return numbers and len({len(column) for column in value.values()}) <= 1


def _is_tensor_table(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(entry, dict)
        and set(entry) == {"dtype", "shape"}
        and isinstance(entry["dtype"], str)
        and isinstance(entry["shape"], list)
        and all(_is_int(n) and n >= 0 for n in entry["shape"])
        for entry in value.values()
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "model_class": (_is_text, "text"),
    "init_args": (_is_object, "an object"),
    "registry": (_is_object, "an object"),
    "history": (_is_table, "an object of lists of numbers of equal length"),
    "split": (_is_bool, "true or false"),
    "seed": (lambda value: value is None or _is_int(value), "a whole number or null"),
    "versions": (
        lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
        "an object of texts",
    ),
    "data_fingerprint": (lambda value: value is None or isinstance(value, str), "text or null"),
    "is_trained": (_is_bool, "true or false"),
    "created": (_is_text, "text"),
    "format_version": (_is_int, "a whole number"),
    "tensors": (_is_tensor_table, "an object of {dtype, shape}"),
    "tensors_sha256": (_is_text, "text"),
    "extra": (_is_object, "an object"),
}


def _check_fields(values: dict[str, Any], where: str) -> None:
    """Every field there, none else, each of its type."""
    missing = [name for name in _CHECKS if name not in values]
    if missing:
        message = f"{where} lacks the field {shorten(missing)}: it is damaged or was edited by hand."
        raise FileFormatError(message)
    unknown = [name for name in values if name not in _CHECKS]
    if unknown:
        message = f"{where} has the unknown field {shorten(unknown)}; expected {', '.join(_CHECKS)}."
        raise FileFormatError(message)
    for name, (check, expected) in _CHECKS.items():
        if not check(values[name]):
            message = f"Field {name!r} of {where} must be {expected}; got {_shown(values[name])}."
            raise FileFormatError(message)


def _plain(value: Any, where: str, *, null_for_nan: bool) -> Any:
    """Only None, bool, int, float, str, list and dict with text keys; ``where`` names the value in messages."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _finite(value, where, null_for_nan=null_for_nan)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                message = f"Keys of {where} must be text to be saved as JSON; got {key!r} ({type(key).__name__})."
                raise FileFormatError(message)
        return {str(k): _plain(v, f"{where}[{k!r}]", null_for_nan=null_for_nan) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(v, f"{where}[{i}]", null_for_nan=null_for_nan) for i, v in enumerate(value)]
    message = (
        f"{where} cannot be saved as JSON: expected numbers, text, lists and dictionaries; got {type(value).__name__}."
    )
    raise FileFormatError(message)


def _finite(value: float, where: str, *, null_for_nan: bool) -> float | None:
    if math.isfinite(value):
        return value
    if null_for_nan:
        return None
    message = f"{where} is {value}, which JSON cannot hold; only numbers in history may be non-finite."
    raise FileFormatError(message)
