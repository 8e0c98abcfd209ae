"""Timing both sides in turn, and what is kept of it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass
class Comparison:
    """One row of the table.

    Parameters
    ----------
    work
        What was done.
    unit
        Unit of the figures.
    ours, theirs
        A figure per repeat, in the same order: repeat ``i`` of one ran right beside repeat ``i`` of the other.
    elbo_ours, elbo_theirs
        Held-out ELBO per cell (nats, higher is better) where a model was trained, per repeat.
    notes
        Sizes, epochs, and whatever else a reader needs.
    data, n_genes
        Real data set, and how many of its most variable genes.
    """

    work: str
    unit: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    elbo_ours: list[float] = field(default_factory=list)
    elbo_theirs: list[float] = field(default_factory=list)
    notes: str = ""
    data: str = ""
    n_genes: int | None = None

    @property
    def ratios(self) -> list[float]:
        """Theirs over ours, repeat by repeat: above one, ours is smaller."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(
    comparison: Comparison, repeats: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> Comparison:
    """Measure both sides in turn, ours first and theirs first alternately, after one uncounted call of each."""
    ours(), theirs()
    for repeat in range(repeats):
        order = [(comparison.ours, ours), (comparison.theirs, theirs)]
        for figures, call in order if repeat % 2 == 0 else reversed(order):
            figures.append(call())
    return comparison


def machine() -> dict[str, object]:
    """What the figures hold for."""
    import torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("countvi", "scvi-tools", "torch", "numpy", "anndata")},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write(name: str, comparisons: list[Comparison]) -> Path:
    """Keep results as JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"machine": machine(), "comparisons": [asdict(comparison) for comparison in comparisons]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def spread(values: list[float], digits: int = 3) -> str:
    """Minimum, median and maximum of a list as text."""
    if not values:
        return ""
    return " / ".join(f"{value:.{digits}g}" for value in (min(values), statistics.median(values), max(values)))


def in_subprocess(code: str) -> str:
    """Run Python code in a fresh interpreter and return what it printed last."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip().splitlines()[-1]
