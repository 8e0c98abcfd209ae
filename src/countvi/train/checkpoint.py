"""Checkpoints of a run: one safetensors file, replaced atomically after every epoch.

Everything random in an epoch is a function of the seed and the epoch, so a checkpoint holds no random state: weights,
optimiser, the position in the run and the history are enough to continue to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
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
    metadata = {"identity": json.dumps(identity), "state": json.dumps(scalars)}
    temporary = folder / f".{_FILE}.{os.getpid()}"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    os.replace(temporary, folder / _FILE)


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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        written, scalars = json.loads(metadata["identity"]), json.loads(metadata["state"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise _unreadable(path, error) from error
    _check_identity(path, written, json.loads(json.dumps(identity)))
    try:
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
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    return state


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    message = f"{path} is not a readable checkpoint ({error}). Delete it, or train with resume=False."
    return FileFormatError(message)


def _check_identity(path: Path, written: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [
        f"{name} ({written.get(name)!r} then, {wanted.get(name)!r} now)"
        for name in sorted({*written, *wanted})
        if written.get(name) != wanted.get(name)
    ]
    if different:
        message = (
            f"{path} belongs to a run with other settings: {', '.join(different)}. "
            "Call train with the same settings to resume it, or with resume=False to start anew."
        )
        raise OptionError(message)


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
