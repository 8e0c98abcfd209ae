"""Reading a model that scvi-tools saved (``model.pt``), without running the pickle inside it."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi.errors import FileFormatError, shorten
from countvi.files.restricted_pickle import ReadStorage, check_extent, restricted_load

MODEL_FILE = "model.pt"
_ENTRIES = ("model_state_dict", "var_names", "attr_dict")
_ZIP_START = b"PK\x03\x04"
_LEGACY_FILES = ("model_params.pt", "attr.pkl", "var_names.csv")


@dataclass(frozen=True, eq=False)
class ScviArchive:
    """What an scvi-tools model file holds, as plain values.

    Parameters
    ----------
    state
        The module's tensors by their name in scvi-tools, on the CPU.
    var_names
        Names of the features; of each modality, if the model was set up with MuData.
    attributes
        The model's attributes that end in an underscore, such as ``init_params_``, ``registry_`` and ``history_``.
        Of ``history_``, each metric is a dictionary of columns: ``{"epoch": ..., metric: ...}``.
    """

    state: dict[str, Tensor]
    var_names: list[str] | dict[str, list[str]]
    attributes: dict[str, Any]


def read_scvi_archive(path: str | os.PathLike[str], *, prefix: str = "") -> ScviArchive:
    """Read an scvi-tools model of version 0.15 or newer.

    Parameters
    ----------
    path
        The folder that ``save`` of scvi-tools wrote, or the ``model.pt`` in it.
    prefix
        The ``prefix`` that was given to ``save``; only with a folder.

    Raises
    ------
    FileFormatError
        If there is no such file, if it is not a zip archive of torch, is damaged, is not an scvi-tools model, or asks
        to run anything (it is refused by name, and not run).
    """
    file = _find(Path(path), prefix)
    with _open(file) as archive:
        root = _root(archive, file)
        payload = _member(archive, f"{root}data.pkl", file)
        content = restricted_load(payload, _storage_reader(archive, root, file), str(file))
    try:
        check_extent(content)
    except (ValueError, RecursionError) as error:
        message = f"{file} is not a readable scvi-tools model: it holds {error}."
        raise FileFormatError(message) from error
    if not isinstance(content, dict) or any(name not in content for name in _ENTRIES):
        message = f"{file} is a torch file, but not an scvi-tools model: expected the entries {shorten(_ENTRIES)}."
        raise FileFormatError(message)
    attributes = content["attr_dict"]
    if not isinstance(attributes, dict):
        message = f"{file} is not a readable scvi-tools model: 'attr_dict' is a {type(attributes).__name__}."
        raise FileFormatError(message)
    return ScviArchive(_state(content["model_state_dict"], file), _var_names(content["var_names"], file), attributes)


def _find(path: Path, prefix: str) -> Path:
    """The model file."""
    if path.is_file():
        return path
    file = path / f"{prefix}{MODEL_FILE}"
    if file.is_file():
        return file
    if not path.is_dir():
        message = f"{path} does not exist: expected a folder saved by scvi-tools, or the {MODEL_FILE} in it."
        raise FileFormatError(message)
    if any(list(path.glob(f"*{name}")) for name in _LEGACY_FILES):
        message = (
            f"{path} was saved by scvi-tools before 0.15: convert it with scvi-tools' convert_legacy_save, then read "
            "the folder that it writes."
        )
        raise FileFormatError(message)
    others = sorted(other.name.removesuffix(MODEL_FILE) for other in path.glob(f"*{MODEL_FILE}"))
    hint = ""
    if others:
        whole = path / f"{others[0]}{MODEL_FILE}"
        hint = f" It has models with the prefix {shorten(others)}: give the file itself, {str(whole)!r}."
    message = f"{path} is not a model saved by scvi-tools: it has no {file.name}.{hint}"
    raise FileFormatError(message)


def _open(file: Path) -> zipfile.ZipFile:
    """Open the zip archive, or say what the file is instead."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_ZIP_START))
    except OSError as error:
        message = f"{file} cannot be read ({error.strerror})."
        raise FileFormatError(message) from error
    if start != _ZIP_START:
        message = (
            f"{file} is not a zip archive, so it is not a model of a current scvi-tools. If it is in the older torch "
            "format and you trust it, convert it where scvi-tools is installed: "
            "torch.save(torch.load(path, weights_only=False), path)."
        )
        raise FileFormatError(message)
    try:
        return zipfile.ZipFile(file)
    except Exception as error:  # a damaged archive can fail in any way
        message = f"{file} is truncated or damaged ({error}): copy it again from where it was saved."
        raise FileFormatError(message) from error


def _root(archive: zipfile.ZipFile, file: Path) -> str:
    """Name of the folder in the archive, with its slash."""
    names = dict.fromkeys(archive.namelist())
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        message = f"{file} is a zip archive, but not one of torch: expected one folder with data.pkl in it."
        raise FileFormatError(message)
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        # torch never compresses; without compression an archive cannot unfold to more than its own size
        message = f"{file} has compressed members, which torch does not write: it is not an scvi-tools model."
        raise FileFormatError(message)
    return roots[0]


def _member(archive: zipfile.ZipFile, name: str, file: Path) -> bytes:
    """Contents of one member."""
    try:
        return archive.read(name)
    except Exception as error:  # a damaged archive can fail in any way, names and encryption included
        message = f"{file} is damaged: its member {name!r} cannot be read ({error}); copy it again."
        raise FileFormatError(message) from error


def _storage_reader(archive: zipfile.ZipFile, root: str, file: Path) -> ReadStorage:
    """How the pickle gets at the storages of this archive."""
    order = "little"
    if f"{root}byteorder" in archive.namelist():
        order = _member(archive, f"{root}byteorder", file).decode("ascii", "replace")
    if order not in ("little", "big"):
        message = f"{file} has the unknown byte order {order!r}: it is damaged."
        raise FileFormatError(message)

    def read(key: str, dtype: torch.dtype, length: int) -> Tensor:
        payload = _member(archive, f"{root}data/{key}", file)
        if len(payload) != length * dtype.itemsize:
            message = f"{file} is damaged: storage {key} has {len(payload)} bytes, expected {length * dtype.itemsize}."
            raise FileFormatError(message)
        if not length:
            return torch.empty(0, dtype=dtype)
        if order != sys.byteorder:
            payload = np.frombuffer(payload, dtype=f"u{dtype.itemsize}").byteswap().tobytes()
        return torch.frombuffer(bytearray(payload), dtype=dtype)

    return read


def _state(state: Any, file: Path) -> dict[str, Tensor]:
    """The module's tensors, without what Pyro keeps beside them."""
    if not isinstance(state, Mapping):
        message = f"{file} is not a readable scvi-tools model: 'model_state_dict' is a {type(state).__name__}."
        raise FileFormatError(message)
    tensors = {name: value for name, value in state.items() if name != "pyro_param_store"}
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            message = f"{file}: expected tensors in 'model_state_dict'; {name!r} is a {type(value).__name__}."
            raise FileFormatError(message)
    return tensors


def _var_names(names: Any, file: Path) -> list[str] | dict[str, list[str]]:
    if isinstance(names, dict):
        return {str(modality): _name_list(part, file) for modality, part in names.items()}
    return _name_list(names, file)


def _name_list(names: Any, file: Path) -> list[str]:
    if not isinstance(names, np.ndarray | list | tuple):
        message = f"{file}: expected 'var_names' to be an array of names; it is a {type(names).__name__}."
        raise FileFormatError(message)
    for name in names:
        if not isinstance(name, str | int | float | np.generic):
            message = f"{file}: expected names in 'var_names'; there is a {type(name).__name__}."
            raise FileFormatError(message)
    return [str(name) for name in names]
