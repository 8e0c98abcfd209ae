"""``countvi deconvolve`` and ``countvi.deconvolve`` on a tiny slide: what is written, and what is refused."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi.cli import main
from countvi.errors import DataWarning, MismatchError


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.4, 1.0, (2, 30))
    profiles *= 300 / profiles.sum(1, keepdims=True)
    kinds = rng.integers(2, size=80)
    cells = anndata.AnnData(sp.csr_matrix(rng.poisson(profiles[kinds]).astype(np.float32)))
    cells.var_names = [f"g{i}" for i in range(30)]
    cells.obs["cell_type"] = np.array(["a", "b"])[kinds]
    mixed = rng.dirichlet([0.5, 0.5], 36) @ profiles * 4
    slide = anndata.AnnData(sp.csr_matrix(rng.poisson(mixed).astype(np.float32)))
    slide.var_names = [f"g{i}" for i in range(5, 30)] + [f"h{i}" for i in range(5)]
    slide.obsm["spatial"] = np.stack(np.divmod(np.arange(36), 6), 1).astype(float)
    return cells, slide


@pytest.fixture
def paths(data, tmp_path):
    names = tmp_path / "cells.h5ad", tmp_path / "slide.h5ad"
    for adata, path in zip(data, names, strict=True):
        adata.write_h5ad(path)
    return names


def command(paths, out, *more: str) -> None:
    cells, slide = map(str, paths)
    given = ["--reference", cells, "--labels-key", "cell_type", "--spatial", slide, "--out", str(out), "--quiet"]
    main(["deconvolve", *given, "--max-epochs", "1", "--spatial-max-epochs", "1", "--n-genes", "20", *more])


def test_everything_is_written(paths, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        command(paths, out, "--gene", "g7")
    assert end.value.code in (0, None), capsys.readouterr().err
    proportions = pd.read_csv(out / "proportions.csv", index_col=0)
    assert proportions.shape == (36, 2)
    np.testing.assert_allclose(proportions.sum(1), 1.0, rtol=1e-5)
    for name in ("presence.csv", "presence_fdr.csv", "thresholds.csv", "axes.csv", "axes_genes.csv"):
        assert len(pd.read_csv(out / name)) > 0
    for name in ("proportions.png", "presence.png", "genes.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    model = countvi.DestVI.load(out / "slide", anndata.read_h5ad(paths[1]))
    np.testing.assert_allclose(model.get_proportions(), proportions, atol=1e-6)
    with pytest.raises(SystemExit) as end:
        command(paths, out)
    assert end.value.code == 2
    assert "--overwrite" in capsys.readouterr().err


def test_mistakes_are_said_before_anything_is_trained(paths, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        command(paths, tmp_path / "out", "--gene", "g99")
    assert "the slide has no 'g99'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_genes_are_those_of_both_and_the_data_stay_as_they_are(data) -> None:
    cells, slide = data
    before = cells.copy(), slide.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        short = {"max_epochs": 1, "spatial_max_epochs": 1, "enable_progress_bar": False}
        found = countvi.deconvolve(cells, slide, labels_key="cell_type", n_genes=20, **short)
    genes = found.model.registry.modalities[0].feature_names
    assert len(genes) == 20
    assert set(genes) <= {f"g{i}" for i in range(5, 30)}
    for adata, copy in zip(data, before, strict=True):
        assert (adata.X != copy.X).nnz == 0
        assert list(adata.obs) == list(copy.obs)
        assert list(adata.obsm) == list(copy.obsm)
    other = slide.copy()
    other.var_names = [f"ENSG{i}" for i in range(30)]
    with pytest.raises(MismatchError, match="share no genes"):
        countvi.deconvolve(cells, other, labels_key="cell_type")
