"""Timing both sides in turn, and what is kept of it."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).parent
PEER = "scvi-tools"
FLOOR = "floor"
"""Other side of a comparison with the plain arithmetic of the same work."""
METHODS = "methods"
"""Other side of rows that compare methods with each other, not libraries."""
_PACKAGES = ("countvi", PEER, "torch", "numpy", "anndata", "numba", "scikit-learn")

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Parameters
    ----------
    results
        Folder of the results.
    scratch
        Folder for large temporary files.
    smoke
        Tiny sizes: see whether a part runs, not how fast.
    reuse
        Take up finished training runs of the last day.
    seeds
        Seeds of the trainings instead of each data set's own.
    """

    results: Path = HERE / "results"
    scratch: Path = Path(tempfile.gettempdir())
    smoke: bool = False
    reuse: bool = False
    seeds: tuple[int, ...] = ()

    @property
    def repeats(self) -> int:
        """How often each side is timed."""
        return self.pick(5, 2)

    def pick(self, full: T, tiny: T) -> T:
        """One of two sizes."""
        return tiny if self.smoke else full


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
        A figure per repeat, in the same order: repeat ``i`` of one ran right beside repeat ``i`` of the other. No
        ``theirs`` where there is no other side.
    elbo_ours, elbo_theirs
        Held-out ELBO per cell (nats, higher is better) where a model was trained, per repeat.
    scores_ours, scores_theirs
        What else is known of the trained models, by name, a figure per repeat.
    missed
        In how many repeats ours did not get there, however long; they have no figures.
    notes
        Sizes, epochs, and whatever else a reader needs.
    data, n_genes, likelihood
        Real data set, how many of its most variable genes, and the likelihood, where the row is a default training.
    other
        Name of the other side.
    method
        What did the work, in rows that compare methods.
    """

    work: str
    unit: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    elbo_ours: list[float] = field(default_factory=list)
    elbo_theirs: list[float] = field(default_factory=list)
    scores_ours: dict[str, list[float]] = field(default_factory=dict)
    scores_theirs: dict[str, list[float]] = field(default_factory=dict)
    missed: int = 0
    notes: str = ""
    data: str = ""
    n_genes: int | None = None
    likelihood: str = ""
    other: str = PEER
    method: str = ""

    def add_run(self, run: Any) -> None:
        """Add the seconds, the ELBO and the scores of a training or an estimate of ours."""
        self.ours.append(run.seconds)
        if math.isfinite(run.elbo):
            self.elbo_ours.append(run.elbo)
        for name, value in run.scores.items():
            self.scores_ours.setdefault(name, []).append(value)

    @property
    def ratios(self) -> list[float]:
        """Theirs over ours, repeat by repeat: above one, ours is smaller. Empty without another side."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)] if self.theirs else []


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


def peak_memory() -> float:
    """Peak resident memory of this process so far, in GB (1e9 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux a child starts with the peak of the process that started it.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024 / 1e9
    in_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * in_bytes / 1e9


@functools.cache
def machine() -> dict[str, object]:
    """What the figures hold for."""
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "../src") else ""),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=HERE).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write(folder: Path, name: str, comparisons: list[Comparison]) -> Path:
    """Keep results as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"machine": machine(), "comparisons": [asdict(comparison) for comparison in comparisons]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def spread(values: list[float], digits: int = 3) -> str:
    """Minimum, median and maximum of a list as text; a single value stands alone."""
    distinct = (min(values), statistics.median(values), max(values)) if len(values) > 1 else values
    return " / ".join(f"{value:.{digits}g}" for value in distinct)


def in_subprocess(code: str, environment: dict[str, str] | None = None) -> str:
    """Run Python code in a fresh interpreter, where this folder can be imported from, and return what it printed last.

    Raises
    ------
    RuntimeError
        If it fails, with the end of what it wrote to standard error.
    """
    paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, **(environment or {})}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise RuntimeError(f"A subprocess of the benchmark failed:\n{run.stderr[-2_000:]}")
    return run.stdout.strip().splitlines()[-1]


def quiet_lightning() -> None:
    """Keep the other side from telling of devices and of its end; each import of a part of lightning undoes it."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
