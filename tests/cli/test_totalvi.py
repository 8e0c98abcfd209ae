"""The command of TOTALVI."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi import cli

SMALL = ["--max-epochs", "1", "--n-hidden", "8", "--n-latent", "2", "--quiet"]


@pytest.fixture
def cells(tmp_path):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"well": ["a", "b"] * 20}, index=[f"c{i}" for i in range(40)])
    adata = anndata.AnnData(sp.csr_matrix(rng.poisson(2.0, (40, 12)).astype(np.float32)), obs=obs)
    adata.obsm["adt"] = pd.DataFrame(rng.poisson(9.0, (40, 3)), index=obs.index, columns=["CD3", "CD4", "CD19"])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_a_model_is_trained_and_can_be_loaded(cells, tmp_path, capsys):
    out = tmp_path / "run"
    asked = ["--protein-expression-obsm-key", "adt", "--batch-key", "well", "--protein-dispersion", "protein-batch"]
    assert run("train", "totalvi", cells, "--out", out, *asked, *SMALL) == 0
    assert "rna, protein = model" in capsys.readouterr().out
    model = countvi.TOTALVI.load(out / "model", anndata.read_h5ad(cells))
    assert model.get_protein_foreground_probability().columns.tolist() == ["CD3", "CD4", "CD19"]
    assert anndata.read_h5ad(out / "latent.h5ad").obsm["X_totalVI"].shape == (40, 2)
    again = tmp_path / "again"
    assert run("train", "totalvi", "--config", out / "run.yaml", "--out", again, "--quiet") == 0
    assert model.arguments == countvi.TOTALVI.load(again / "model", False).arguments


def test_the_proteins_must_be_named(cells, tmp_path, capsys):
    assert run("train", "totalvi", cells, "--out", tmp_path / "run", *SMALL) == 2
    assert "--protein-expression-obsm-key" in capsys.readouterr().err
