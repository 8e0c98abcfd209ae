"""The README and the demo do what they say."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests import pages
from tests.pages import ROOT, python

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return pages.blocks(TEXT, language)


def load_demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("countvi_demo", ROOT / "examples" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What the notebook example leaves behind, looked at from outside.
LOOK = """
assert set(np.unique(adata.X.data % 1)) == {0.0} and adata.X.data.min() == 1.0, "not counts"
assert adata.obsm["X_scVI"].shape == (700, 10) and np.isfinite(adata.obsm["X_scVI"]).all()
assert list(denoised.columns) == ["CD79A", "NKG7"] and len(denoised) == 700
b_cells = adata.obs["bulk_labels"] == "CD19+ B"
assert denoised.loc[b_cells, "CD79A"].mean() > 5 * denoised.loc[~b_cells, "CD79A"].mean()
import matplotlib.pyplot as plt
assert len(plt.get_fignums()) == 2
again = countvi.SCVI.load("model", adata)
assert np.array_equal(again.get_latent_representation(), adata.obsm["X_scVI"])
print("looked")
"""


@pytest.mark.slow
def test_the_notebook_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    result = python(code + LOOK, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "looked"


def test_the_notebook_example_fits_a_cell() -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    assert {node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)} == set()


def test_the_commands_are_targets_of_the_makefile() -> None:
    named = {line.split()[1] for block in blocks("") for line in block.splitlines() if line.startswith("make ")}
    assert named == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_command_line_example_is_understood(tmp_path: Path) -> None:
    (line,) = [line for block in blocks("") for line in block.splitlines() if line.startswith("countvi ")]
    words = line.split()
    assert words[:3] == ["countvi", "train", "scvi"]
    code = f"import sys; sys.argv = {['countvi', 'train', 'scvi', '--help']!r}\nfrom countvi.cli import main; main()"
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    for word in words:
        assert not word.startswith("--") or word in result.stdout


def test_the_names_in_the_text_exist() -> None:
    import countvi

    dotted = re.findall(r"`(countvi(?:\.\w+)+)", TEXT)
    assert "countvi.io.load_scvi_tools" in dotted
    for name in dotted:
        value: object = countvi
        for part in name.split(".")[1:]:
            value = getattr(value, part)
    for name in ("setup_anndata", "train", "get_latent_representation"):
        assert hasattr(countvi.SCVI, name)


def test_the_files_it_links_to_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) >= 8
    assert [link for link in links if not (ROOT / link).exists()] == []


# --- the demo


def test_the_demo_recovers_the_counts() -> None:
    adata = load_demo().recover_counts()
    assert adata.shape == (700, 765)
    assert adata.X.dtype == np.float32
    assert (adata.X.data >= 1).all() and (adata.X.data % 1 == 0).all()
    # Witness: the counts of these genes cannot exceed the count of all genes, which scanpy ships.
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    assert (totals <= adata.obs["n_counts"].to_numpy()).all()
    assert "CD19+ B" in set(adata.obs["bulk_labels"])


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    demo = load_demo()
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "countvi_command", lambda: [sys.executable, "-m", "countvi.cli"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    demo.main()
    said = capfd.readouterr()
    assert said.err == "" or "Warning" not in said.err
    assert re.search(r"ELBO -6\d\d\.\d nats per cell on held-out cells", said.out), said.out
    named = set(re.findall(r"build/demo/[\w./]+", said.out))
    assert {Path(name).name for name in named} >= {"model", "latent.h5ad", "history.csv", "training.png", "latent.png"}
    for name in named:
        assert (tmp_path / name).exists(), name
    import anndata

    latent = anndata.read_h5ad(tmp_path / "build/demo/run/latent.h5ad")
    assert latent.obsm["X_scVI"].shape == (700, 10)
    assert (tmp_path / "build/demo/latent.png").stat().st_size > 20_000
