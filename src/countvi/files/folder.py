"""The model folder: ``model.safetensors`` (tensors) and ``manifest.json`` (everything else). No pickle.

Saving is atomic. The new model is written into a hidden sibling folder and renamed into place; a model that is
replaced steps aside under a second hidden name first. If the process dies between the two renames, the folder is
missing but the old model is whole under that name, and both reading and the next save find it there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from countvi.errors import FileFormatError, OptionError, shorten
from countvi.files.manifest import FORMAT_VERSION, Manifest, is_manifest

TENSORS_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"
DATA_FILE = "adata.h5ad"
MUDATA_FILE = "mdata.h5mu"
_LARGEST_MANIFEST = 2**28  # bytes; that of 30,000 genes has about 2**19
_LARGEST_HEADER = 10**8  # of safetensors, which reads no larger one
_OURS = {TENSORS_FILE, MANIFEST_FILE, DATA_FILE, MUDATA_FILE}
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # file managers leave these wherever a user looks


def write_model(
    path: str | os.PathLike[str],
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    *,
    overwrite: bool = False,
    write_data: Callable[[Path], None] | None = None,
) -> None:
    """Save a model as a folder; at any moment the old or the new model is whole.

    Parameters
    ----------
    path
        The folder. Folders above it are made.
    manifest
        What the model says about itself. Its ``tensors`` and ``tensors_sha256`` are filled in here.
    tensors
        Any shapes, any device; stored densely from the CPU. The bytes depend on names and values only.
    overwrite
        Whether an existing countvi model may be replaced. Anything else that exists is never replaced.
    write_data
        Writes the data into the folder it is given, as :data:`DATA_FILE` or :data:`MUDATA_FILE`, to be kept with the
        model.

    Raises
    ------
    OptionError
        If the folder exists and ``overwrite`` is false, or holds anything besides a countvi model.
    FileFormatError
        If the manifest holds something that JSON cannot.
    OSError
        If the disk refuses; the old model, if there was one, is then still in place.
    """
    target = Path(os.path.realpath(path))
    previous = _previous(target)
    if previous.exists() and not target.exists():
        os.rename(previous, target)
    _check_replaceable(target, overwrite)
    _check_leftover(previous)
    payload = safetensors.torch.save({name: _dense(tensor) for name, tensor in tensors.items()})
    complete = dataclasses.replace(
        manifest,
        format_version=FORMAT_VERSION,
        tensors=_describe(tensors),
        tensors_sha256=hashlib.sha256(payload).hexdigest(),
    )
    text = complete.to_json()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.saving-{uuid.uuid4().hex[:12]}")
    try:
        os.mkdir(staging)
        _write_file(staging / TENSORS_FILE, payload)
        _write_file(staging / MANIFEST_FILE, text.encode("ascii"))
        if write_data is not None:
            write_data(staging)
        _sync_folder(staging)
        _swap(staging, target, previous)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def read_model(path: str | os.PathLike[str]) -> tuple[Manifest, dict[str, Tensor]]:
    """Read a model folder.

    Parameters
    ----------
    path
        The folder that :func:`write_model` wrote.

    Returns
    -------
    tuple
        The manifest, and the tensors by name, on the CPU.

    Raises
    ------
    FileFormatError
        If the folder or one of its files is missing, damaged, of a newer format, or if the tensors are not the
        ones that the manifest describes.
    """
    folder = _find(Path(os.path.realpath(path)))
    manifest = Manifest.from_json(_read_text(folder / MANIFEST_FILE), where=str(folder / MANIFEST_FILE))
    file = folder / TENSORS_FILE
    payload = _read_bytes(file, _size_of(manifest) + _LARGEST_HEADER)
    try:
        tensors = safetensors.torch.load(payload)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        message = f"{file} is truncated or damaged ({error}): copy the model again from where it was saved."
        raise FileFormatError(message) from error
    _check_tensors(tensors, manifest, file)
    if hashlib.sha256(payload).hexdigest() != manifest.tensors_sha256:
        message = (
            f"{file} is not the file that was saved with {MANIFEST_FILE} (its SHA-256 checksum differs): "
            "it was changed, or damaged in copying; copy the model again from where it was saved."
        )
        raise FileFormatError(message)
    return manifest, tensors


def _previous(target: Path) -> Path:
    """Name under which a model steps aside while it is replaced."""
    return target.with_name(f".{target.name}.replaced")


def _find(target: Path) -> Path:
    """The folder to read: the one asked for, or the one that a save that died had moved aside."""
    if target.is_dir():
        if not (target / MANIFEST_FILE).exists():
            hint = ""
            if list(target.glob("*model.pt")):
                hint = " It holds an scvi-tools model: use countvi.io.load_scvi_tools."
            message = f"{target} is not a countvi model: it has no {MANIFEST_FILE}.{hint}"
            raise FileFormatError(message)
        return target
    previous = _previous(target)
    if not target.exists() and (previous / MANIFEST_FILE).exists():
        return previous
    what = "is a file" if target.exists() else "does not exist"
    message = f"{target} {what}: expected the folder of a saved countvi model, with {MANIFEST_FILE} in it."
    raise FileFormatError(message)


def _size_of(manifest: Manifest) -> int:
    """Bytes of the tensors that a manifest describes."""
    return sum(8 * math.prod(entry["shape"]) for entry in manifest.tensors.values())


def _read_bytes(file: Path, largest: int) -> bytes:
    """Read a file that is one: opening a pipe would wait for ever, and a device may have no end."""
    try:
        if not file.is_file():
            missing = "is a pipe, a device or a folder" if file.exists() else "No such file or directory"
            message = f"{file} cannot be read ({missing}): the model in {file.parent} is not complete."
            raise FileFormatError(message)
        size = file.stat().st_size
        if size > largest:
            message = f"{file} has {size:,} bytes, more than the {largest:,} that such a file can have: it is damaged."
            raise FileFormatError(message)
        return file.read_bytes()
    except OSError as error:
        message = f"{file} cannot be read ({error.strerror}): the model in {file.parent} is not complete."
        raise FileFormatError(message) from error


def _read_text(file: Path) -> str:
    try:
        return _read_bytes(file, _LARGEST_MANIFEST).decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{file} is not text ({error.reason}): it is damaged; copy the model again from where it was saved."
        raise FileFormatError(message) from error


def _check_replaceable(target: Path, overwrite: bool) -> None:
    """Refuse to touch what exists, unless it is a countvi model and may be replaced, or an empty folder."""
    if not target.exists():
        return
    if not target.is_dir():
        message = f"{target} is a file: a model is saved as a folder; choose another path."
        raise OptionError(message)
    if not overwrite:
        message = f"{target} already exists: pass overwrite=True to replace the model in it, or choose another path."
        raise OptionError(message)
    names = {entry.name for entry in target.iterdir()} - _LITTER
    foreign = sorted(names - _OURS)
    if foreign:
        message = (
            f"{target} holds more than a countvi model ({shorten(foreign)}), and overwriting would delete it: "
            "move those files away, or choose another path."
        )
        raise OptionError(message)
    if names and not _has_our_manifest(target):
        message = f"{target} does not hold a countvi model, so it is not overwritten: choose another path."
        raise OptionError(message)


def _has_our_manifest(folder: Path) -> bool:
    try:
        return is_manifest(_read_text(folder / MANIFEST_FILE))
    except FileFormatError:
        return False


def _check_leftover(previous: Path) -> None:
    """A save that died may have left the replaced model, whole or half deleted; anything else is not ours."""
    if not previous.exists() and not previous.is_symlink():
        return
    if previous.is_symlink() or not previous.is_dir() or {e.name for e in previous.iterdir()} - _OURS - _LITTER:
        message = f"{previous} is in the way and is not a countvi model: move it away, or save to another path."
        raise OptionError(message)


def _swap(staging: Path, target: Path, previous: Path) -> None:
    """Rename the finished folder into place."""
    if not target.exists():
        os.rename(staging, target)
        _sync_folder(target.parent)
        return
    if previous.exists():
        shutil.rmtree(previous)
    os.rename(target, previous)
    try:
        os.rename(staging, target)
    except BaseException:
        os.rename(previous, target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _write_file(file: Path, payload: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder as a file
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dense(tensor: Tensor) -> Tensor:
    """A copy of its own: safetensors refuses strided and shared storage."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in sorted(tensors.items())
    }


def _check_tensors(tensors: Mapping[str, Tensor], manifest: Manifest, file: Path) -> None:
    """The tensors must be those that the manifest describes."""
    missing = sorted(set(manifest.tensors) - set(tensors))
    extra = sorted(set(tensors) - set(manifest.tensors))
    if missing or extra:
        parts = [f"lacks {shorten(missing)}"] * bool(missing) + [f"has {shorten(extra)} besides"] * bool(extra)
        message = f"{file} {' and '.join(parts)}, unlike {MANIFEST_FILE} says: the two files are not of one model."
        raise FileFormatError(message)
    for name, found in _describe(tensors).items():
        expected = manifest.tensors[name]
        if found != expected:
            message = (
                f"Tensor {name!r} of {file} is {found['dtype']} of shape {found['shape']}; {MANIFEST_FILE} says "
                f"{expected['dtype']} of shape {expected['shape']}: the two files are not of one model."
            )
            raise FileFormatError(message)
