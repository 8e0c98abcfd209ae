"""The commands of the regularised models."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi import cli

SMALL = ["--max-epochs", "2", "--n-hidden", "8", "--n-latent", "2", "--quiet"]


def run(*arguments: object) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def draw(n_genes: int, seed: int) -> anndata.AnnData:
    counts = np.random.default_rng(seed).poisson(2.0, (60, n_genes)).astype(np.float32)
    obs = pd.DataFrame(
        {"well": ["a", "b"] * 30, "site": (["x"] * 3 + ["y"] * 2) * 12, "hours": np.arange(60.0)},
        index=[f"c{i}" for i in range(60)],
    )
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


@pytest.fixture
def cells(tmp_path) -> Path:
    draw(30, 0).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def multiome(tmp_path) -> Path:
    mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
    rna, atac = draw(20, 0), draw(15, 1)
    atac.var_names = [f"chr1:{i}-{i + 1}" for i in range(15)]
    with mudata.set_options(pull_on_update=False):
        mudata.MuData({"rna": rna, "atac": atac}).write(tmp_path / "cells.h5mu")
    return tmp_path / "cells.h5mu"


def test_ambient_writes_fractions_and_clean_counts(cells, tmp_path, capsys):
    out, written = tmp_path / "run", tmp_path / "clean.h5ad"
    assert run("train", "ambient", cells, "--out", out, "--batch-key", "well", "--write-h5ad", written, *SMALL) == 0
    said = capsys.readouterr().out
    assert "countvi train ambient --config" in said and "ambient fractions" in said
    adata = anndata.read_h5ad(cells)
    model = countvi.AmbientRegularizedSCVI.load(out / "model", adata)
    small, whole = anndata.read_h5ad(out / "latent.h5ad"), anndata.read_h5ad(written)
    np.testing.assert_array_equal(small.obsm["X_ambient"], model.get_latent_representation())
    np.testing.assert_allclose(small.obs["ambient_fraction"], model.get_ambient_fraction(), rtol=1e-6)
    clean, raw = whole.layers["decontaminated"].toarray(), adata.X.toarray()
    assert (clean <= raw).all() and (clean < raw).any()
    np.testing.assert_array_equal(whole.X.toarray(), raw)


def test_each_key_reaches_its_purpose(cells, tmp_path):
    keys = ["--ambient-covariate-key", "well", "--ambient-covariate-key", "site", "--dispersion-key", "well"]
    keys += ["--library-size-key", "site", "--nn-conditioning-covariate-key", "site"]
    keys += ["--feature-scaling-covariate-key", "well", "--nn-continuous-covariate-key", "hours"]
    keys += ["--encoder-covariate-key", "site"]
    assert run("train", "ambient", cells, "--out", tmp_path / "run", *keys, *SMALL) == 0
    registry = countvi.AmbientRegularizedSCVI.load(tmp_path / "run" / "model").registry
    covariates, columns = registry.covariates, [column.key for column in registry.columns]
    assert [columns[i] for i in covariates.ambient] == ["well", "site"]
    assert [columns[i] for i in covariates.conditioning] == ["site"] == [columns[i] for i in covariates.encoder]
    assert [columns[i] for i in covariates.scaling] == ["well"]
    assert columns[covariates.dispersion] == "well" and columns[covariates.library] == "site"
    assert list(registry.continuous_keys) == ["hours"]


def test_a_run_without_a_background_has_no_fractions(cells, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", "ambient", cells, "--out", out, "--no-use-additive-background", *SMALL) == 0
    assert "ambient_fraction" not in anndata.read_h5ad(out / "latent.h5ad").obs
    assert "ambient fraction" not in capsys.readouterr().out


def test_the_two_ways_to_name_covariates_exclude_each_other(cells, tmp_path, capsys):
    assert (
        run("train", "ambient", cells, "--out", tmp_path / "o", "--batch-key", "well", "--dispersion-key", "well") == 2
    )
    assert "There are two ways" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_multimodal(multiome, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--batch-key", "well", "--latent-mode", "weighted_mean", "--scaling-modality", "rna"]
    assert run("train", "multimodal", multiome, "--out", out, *options, *SMALL) == 0
    said = capsys.readouterr().out
    assert "countvi.io.read_mudata(" in said and "modality='rna'" in said
    mdata = countvi.io.read_mudata(multiome)
    model = countvi.RegularizedMultimodalVI.load(out / "model", mdata)
    small = anndata.read_h5ad(out / "latent.h5ad")
    np.testing.assert_array_equal(small.obsm["X_multimodal"], model.get_latent_representation())
    np.testing.assert_allclose(small.obs["ambient_fraction_rna"], model.get_ambient_fraction(modality="rna"), rtol=1e-6)
    assert model.get_feature_scaling().keys() == {"rna"}
    assert run("train", "multimodal", "--config", out / "run.yaml", "--out", tmp_path / "again", "--quiet") == 0
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.h5mu", "--out", "o"], "There is no file missing.h5mu"),
        (["CELLS", "--out", "o", "--modality", "atca"], "Did you mean 'atac'?"),
        (["CELLS", "--out", "o", "--background-modality", "ran"], "Did you mean 'rna'?"),
        (["CELLS", "--out", "o", "--latent-mode", "mean"], "latent_mode"),
        (["H5AD", "--out", "o"], "must end in .h5mu"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(arguments, sentence, multiome, cells, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    filled = [{"CELLS": str(multiome), "H5AD": str(cells)}.get(argument, argument) for argument in arguments]
    assert run("train", "multimodal", *filled, *SMALL) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("countvi: ")
    assert not (tmp_path / "o").exists()
