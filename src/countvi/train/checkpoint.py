"""Checkpoints of a run: one safetensors file, replaced atomically after every epoch.

Everything random in an epoch is a function of the seed and the epoch, so a checkpoint holds no random state: weights,
optimiser, the position in the run and the history are enough to continue to the same bits.

The file carries a digest of all that it holds, and is on the disk before it takes the place of the previous one. It is
resumed with the options, covariates, counts and settings that it was written with, and otherwise refused. Checkpoints
that earlier versions wrote do not record options and covariates, and cannot be resumed by this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from countvi.errors import FileFormatError, OptionError
from countvi.train.history import Row
from countvi.train.schedules import Plateau, Stopper

_FILE = "checkpoint.safetensors"
_ADVERSARY = "companions/0/"
_HASHED = "sha256 "
_SHOWN = 60  # characters of a value in a message


@dataclass
class RunState:
    """Where a run stands.

    Parameters
    ----------
    epochs_done, steps_done
        Epochs and optimiser steps finished in this run.
    lr_scale
        Halved by every rollback.
    n_rollbacks
        How many there were.
    plateau, stopper
        Memory of the metric-driven rules, where the run has them.
    rows
        The history of this run.
    best
        Weights at the best validation, for early stopping.
    adversary
        State of the classifier that is trained beside the model, where there is one.
    """

    epochs_done: int = 0
    steps_done: int = 0
    lr_scale: float = 1.0
    n_rollbacks: int = 0
    plateau: Plateau | None = None
    stopper: Stopper | None = None
    rows: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    adversary: dict[str, Tensor] = field(default_factory=dict)


def signature(model: nn.Module) -> str:
    """Short name of what a model consists of: which weights, of which shapes."""
    parts = [f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items()]
    parts += [f"{name} held" for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return f"{len(parts)} tensors, {hashlib.sha256('; '.join(parts).encode()).hexdigest()[:8]}"


def write_checkpoint(
    folder: Path, identity: dict[str, Any], state: RunState, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint; a crash while writing leaves the previous one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(optimizer).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (state.best or {}).items()}
    tensors |= {f"{_ADVERSARY}{name}": tensor for name, tensor in state.adversary.items()}
    scalars = {
        "epochs_done": state.epochs_done,
        "steps_done": state.steps_done,
        "lr_scale": state.lr_scale,
        "n_rollbacks": state.n_rollbacks,
        "plateau": asdict(state.plateau) if state.plateau else None,
        "stopper": asdict(state.stopper) if state.stopper else None,
        "rows": state.rows,
    }
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"identity": json.dumps(identity), "state": json.dumps(scalars)}
    metadata["sha256"] = _digest(metadata, held)
    temporary = folder / f".{_FILE}.{os.getpid()}"
    try:
        save_file(held, temporary, metadata)
        _to_disk(temporary)
        os.replace(temporary, folder / _FILE)
        _to_disk(folder)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a checkpoint holds."""
    digest = hashlib.sha256()
    for text in (metadata["identity"], metadata["state"]):
        digest.update(hashlib.sha256(text.encode()).digest())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    """Make a file, or the renames in a folder, survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder as a file
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(
    folder: Path, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> RunState | None:
    """Load a checkpoint into the model and the optimiser.

    Returns
    -------
    RunState or None
        ``None`` if the folder holds no checkpoint.

    Raises
    ------
    OptionError
        If the checkpoint stems from a run with other settings.
    FileFormatError
        If the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    if not path.is_file():  # opening a pipe would wait for ever
        raise _unreadable(path, "it is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        identity_text, state_text = metadata["identity"], metadata["state"]
        if "sha256" in metadata and metadata["sha256"] != _digest(metadata, tensors):
            raise _unreadable(path, "it is not what was written: its SHA-256 checksum differs")
        written, scalars = json.loads(identity_text), json.loads(state_text)
    except FileFormatError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if "sha256" not in metadata:
        message = (
            f"{path} cannot be resumed: the version of countvi that wrote this checkpoint did not record the options "
            "and covariates of the model. Finish the run with that version, or train with resume=False."
        )
        raise FileFormatError(message)
    _check_identity(path, written, json.loads(json.dumps(identity)))
    try:
        _check_scalars(scalars)
        plateau, stopper = scalars.pop("plateau"), scalars.pop("stopper")
        state = RunState(
            **scalars,
            plateau=Plateau(**plateau) if plateau else None,
            stopper=Stopper(**stopper) if stopper else None,
            best=under(tensors, "best/") or None,
            adversary=under(tensors, _ADVERSARY),
        )
        weights = under(tensors, "model/")
        if missing := model.state_dict().keys() - weights.keys():
            raise KeyError(", ".join(sorted(missing)))
        model.load_state_dict(weights)
        load_optimizer(optimizer, under(tensors, "optimizer/"))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise _unreadable(path, error) from error
    return state


def _check_scalars(scalars: dict[str, Any]) -> None:
    """Refuse a position in a run that no run can have."""
    counts = [scalars["epochs_done"], scalars["steps_done"], scalars["n_rollbacks"]]
    rows, rate = scalars["rows"], scalars["lr_scale"]
    fine = all(type(count) is int and count >= 0 for count in counts)
    fine = fine and isinstance(rate, int | float) and math.isfinite(rate) and rate > 0
    fine = fine and isinstance(rows, list) and len(rows) == counts[0]
    fine = fine and all(isinstance(row, dict) and all(isinstance(x, int | float) for x in row.values()) for row in rows)
    for rule in (scalars["plateau"], scalars["stopper"]):
        fine = fine and (rule is None or all(x is None or isinstance(x, int | float) for x in rule.values()))
    if not fine:
        message = "its position in the run is none that a run can have"
        raise ValueError(message)


def _unreadable(path: Path, error: Exception | str) -> FileFormatError:
    message = f"{path} is not a readable checkpoint ({error}). Delete it, or train with resume=False."
    return FileFormatError(message)


def _check_identity(path: Path, written: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(written, dict):
        raise _unreadable(path, "it does not say of which run it is")
    different = [
        _difference(name, written.get(name), wanted.get(name))
        for name in sorted({*written, *wanted})
        if written.get(name) != wanted.get(name)
    ]
    if different:
        message = (
            f"{path} belongs to a run with other settings: {', '.join(different)}. "
            "Call train with the same settings to resume it, or with resume=False to start anew."
        )
        raise OptionError(message)


def hashed(*parts: bytes) -> str:
    """Return a value of an identity that is compared, and not shown in messages."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return f"{_HASHED}{digest.hexdigest()[:32]}"


def _difference(name: str, then: Any, now: Any) -> str:
    if any(isinstance(value, str) and value.startswith(_HASHED) for value in (then, now)):
        return name
    return f"{name} ({_short(then)} then, {_short(now)} now)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser remembers, by number of the parameter and name."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": tensor for index, slots in state.items() for name, tensor in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, slots: dict[str, Tensor]) -> None:
    """Give an optimiser back what :func:`optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in slots.items():
        index, slot = name.split("/")
        state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
