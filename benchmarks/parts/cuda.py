"""A training step on a GPU."""

from __future__ import annotations

import importlib.util

import torch
from measure import Comparison, Settings, alternate
from sides import Countvi, ScviTools, Side

from parts import step

_EPOCHS, _REPEATS = 10, 3


def measure(settings: Settings) -> list[Comparison]:
    """Wall time of a training step where there is a GPU; recording included, as a user pays for it too."""
    if not torch.cuda.is_available():
        print("There is no CUDA device here.", flush=True)
        return []
    sides: list[Side] = [Countvi("cuda")]
    if importlib.util.find_spec("scvi") is None:
        print("scvi-tools is not installed: countvi alone.", flush=True)
    else:
        sides.append(ScviTools("cuda"))
    rows = []
    for row, steps in step.cases(settings, sides, "training step on a GPU", (_EPOCHS, _EPOCHS)):
        row.notes += f", {_EPOCHS} epochs, {torch.cuda.get_device_name()}"
        if len(steps) > 1:
            alternate(row, _REPEATS, *steps)
        else:
            row.ours = [steps[0]() for _ in range(_REPEATS + 1)][1:]
        rows.append(row)
    return rows
