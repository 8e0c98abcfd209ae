"""What ``import countvi`` gives, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import countvi

SRC = Path(__file__).resolve().parents[1] / "src"

HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "anndata",
    "scanpy",
    "h5py",
    "safetensors",
    "numba",
    "lightning",
    "lightning_fabric",
    "matplotlib",
    "mudata",
    "rich",
    "sklearn",
    "typer",
)


def run_fresh(code: str) -> list[str]:
    """Words that a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def loaded_after(statements: str) -> set[str]:
    return set(run_fresh(f"import sys\n{statements}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"))


def test_import_loads_nothing_heavy() -> None:
    assert loaded_after("import countvi; countvi.__version__; dir(countvi); countvi.errors") == set()


def test_a_name_is_loaded_when_it_is_used() -> None:
    assert "torch" in loaded_after("import countvi; countvi.batch")


def test_plot_does_not_load_the_estimators() -> None:
    assert run_fresh("import sys, countvi.plot; print('countvi.estimators' in sys.modules)") == ["False"]


def test_scvi_is_the_estimator() -> None:
    from countvi.estimators.scvi import SCVI

    assert countvi.SCVI is SCVI


def test_pl_is_plot() -> None:
    import countvi.plot

    assert countvi.pl is countvi.plot


def test_every_public_name_resolves() -> None:
    for name in dir(countvi):
        assert getattr(countvi, name) is not None, name
    assert set(countvi.__all__) <= set(dir(countvi))


def test_every_part_of_the_package_is_an_attribute() -> None:
    package = SRC / "countvi"
    files = {path.stem for path in package.glob("*.py")}
    folders = {path.name for path in package.iterdir() if path.is_dir()}
    parts = {name for name in files | folders if not name.startswith("_")}
    assert parts - set(dir(countvi)) == set()


def test_a_wrong_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'SCIV'\. Did you mean 'SCVI'"):
        _ = countvi.SCIV
    with pytest.raises(ImportError):
        from countvi import no_such_name  # noqa: F401


def test_the_version_is_the_installed_one() -> None:
    try:
        installed = metadata.version("countvi")
    except metadata.PackageNotFoundError:
        pytest.skip("countvi is run from its sources, not installed")
    assert countvi.__version__ == installed


LEAVES_ALONE = """
import importlib, pkgutil, sys, warnings
import anndata, h5py, lightning_fabric, matplotlib.pyplot, numpy, pandas, rich.progress, safetensors.torch
import scipy.sparse, scipy.stats, torch, torch.distributions, typer, yaml

def state():
    return {
        "warnings": list(warnings.filters),
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "gradients": (torch.is_grad_enabled(), torch.is_anomaly_enabled()),
        "validation": torch.distributions.Distribution._validate_args,
        "torch stream": torch.get_rng_state().tolist(),
        "numpy stream": numpy.random.get_state()[1].tolist(),
        "numpy errors": numpy.geterr(),
        "matplotlib": dict(matplotlib.rcParams),
        "excepthook": sys.excepthook,
    }

before = state()
import countvi
names = [m.name for m in pkgutil.walk_packages(countvi.__path__, "countvi.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
after = state()
print(len(names), *[key for key in before if before[key] != after[key]])
"""


def test_importing_every_module_leaves_global_state_alone() -> None:
    count, *changed = run_fresh(LEAVES_ALONE)
    assert int(count) > 30
    assert changed == []
