"""The command line as a user meets it: files written, sentences said, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml

import countvi
from countvi.cli import main
from countvi.cli.folder import RunFolder
from countvi.cli.train import kept_elbo

SMALL = ["--max-epochs", "2", "--n-hidden", "8", "--n-latent", "2", "--quiet"]


@pytest.fixture
def counts() -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (60, 30)).astype(np.float32))


@pytest.fixture
def cells(tmp_path, counts) -> Path:
    obs = pd.DataFrame({"donor": ["a", "b"] * 30}, index=[f"c{i}" for i in range(60)])
    adata = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))
    adata.layers["raw"] = counts.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def run(*arguments: object) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_a_run_writes_what_it_says(cells, tmp_path, capsys):
    out = tmp_path / "run"
    written = tmp_path / "with_latent.h5ad"
    assert run("train", "scvi", cells, "--out", out, "--batch-key", "donor", "--write-h5ad", written, *SMALL) == 0
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"model", "latent.h5ad", "history.csv", "training.png", "run.yaml"}
    for path in out.iterdir():
        assert str(path) in said
    assert "ELBO" in said
    assert "countvi.SCVI.load" in said

    adata = anndata.read_h5ad(cells)
    model = countvi.SCVI.load(out / "model", adata)
    latent = anndata.read_h5ad(out / "latent.h5ad")
    np.testing.assert_array_equal(latent.obsm["X_scVI"], model.get_latent_representation())
    assert latent.obs_names.equals(adata.obs_names)
    assert latent.n_vars == 0
    whole = anndata.read_h5ad(written)
    np.testing.assert_array_equal(whole.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(whole.obsm["X_scVI"], latent.obsm["X_scVI"])
    assert len(pd.read_csv(out / "history.csv", index_col="epoch")) == 2
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert model.registry.columns[0].key == "donor"


def test_the_written_config_repeats_the_run(cells, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("train", "scvi", cells, "--out", first, "--layer", "raw", "--seed", 5, *SMALL) == 0
    assert run("train", "scvi", "--config", first / "run.yaml", "--out", second, "--quiet") == 0
    name = "model/model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    again = yaml.safe_load((second / "run.yaml").read_text())
    assert again == yaml.safe_load((first / "run.yaml").read_text()) | {"out": str(second)}


def test_the_command_line_beats_the_config(cells, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"counts: {cells}\nmax-epochs: 3\nn_hidden: 8\nn-latent: 4\ncategorical-covariate-key: [donor]\n")
    assert run("train", "scvi", "--config", config, "--out", tmp_path / "out", "--max-epochs", "1", "--quiet") == 0
    model = countvi.SCVI.load(tmp_path / "out" / "model")
    assert len(model.history) == 1
    assert model.module.n_latent == 4
    assert [column.key for column in model.registry.columns[2:]] == ["donor"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.h5ad", "--out", "o"], "There is no file missing.h5ad"),
        (["CELLS", "--out", "o", "--batch-key", "donr"], "Did you mean 'donor'?"),
        (["CELLS", "--out", "o", "--gene-likelihood", "zinbb"], "Did you mean 'zinb'?"),
        (["CELLS", "--out", "o", "--layer", "raww"], "Did you mean 'raw'?"),
        (["CELLS"], "--out"),
        (["--out", "o"], "counts"),
        (["CELLS", "--out", "o", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["CELLS", "--out", "o", "--write-h5ad", "CELLS"], "would replace the input"),
        (["CELLS", "--out", "CELLS"], "is a file"),
        (["CELLS", "--out", "o", "--write-h5ad", "o/latent.h5ad"], "has the place of a result"),
        (["CELLS", "--out", "o", "--write-h5ad", "."], "is a folder"),
        (["CELLS", "--out", "o", "--seed", "-1"], "seed"),
        (["CELLS", "--out", "o", "--accelerator", "gpuu"], "accelerator='gpuu'"),
        (["CELLS", "--out", "o", "--train-size", "1.5"], "train_size must be above 0"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(arguments, sentence, cells, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    filled = [str(cells) if argument == "CELLS" else argument for argument in arguments]
    assert run("train", "scvi", *filled, *SMALL) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("countvi: ")
    assert "Traceback" not in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("n-hiden: 3", "Did you mean 'n-hidden'?"),
        ("- 1", "must hold options"),
        ("a: [", "not readable YAML"),
        ("train-size: most", "train-size must be a number; got 'most'."),
        ("n-latent: 2.5", "n-latent must be a whole number; got 2.5."),
        ("n-layers: true", "n-layers must be a whole number; got True."),
        ("encode-covariates: 'no'", "encode-covariates must be true or false; got 'no'."),
        ("batch-key: no", "batch-key must be text; got False. Put it in quotes."),
        ("layer: [raw]", "layer must be text; got ['raw']."),
        ("seed: -1", "seed"),
        ("n-latent: 2\nn_latent: 3", "twice"),
    ],
)
def test_a_bad_config(content, sentence, cells, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(content)
    assert run("train", "scvi", cells, "--out", tmp_path / "o", "--config", config, *SMALL) == 2
    assert sentence in capsys.readouterr().err


def test_nothing_is_replaced_unasked(cells, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "history.csv").write_text("old")
    assert run("train", "scvi", cells, "--out", out, *SMALL) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "history.csv").read_text() == "old"
    assert run("train", "scvi", cells, "--out", out, "--overwrite", *SMALL) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "history.csv").read_text() != "old"


@pytest.mark.parametrize(
    "mistake", [["--batch-key", "donr"], ["--n-latent", "0"], ["--batch-size", "0"], ["--train-size", "2"]]
)
def test_a_mistake_does_not_cost_the_last_results(mistake, cells, tmp_path):
    out = tmp_path / "run"
    assert run("train", "scvi", cells, "--out", out, *SMALL) == 0
    before = contents(out)
    assert len(before) == 6  # the model is two of them
    assert run("train", "scvi", cells, "--out", out, "--overwrite", *SMALL, *mistake) == 2
    assert contents(out) == before


def test_the_input_is_never_replaced(cells, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    counts = out / "latent.h5ad"
    counts.write_bytes(cells.read_bytes())
    assert run("train", "scvi", counts, "--out", out, "--overwrite", *SMALL) == 2
    assert "has the place of a result" in capsys.readouterr().err
    assert counts.read_bytes() == cells.read_bytes()


def test_a_cut_off_run_is_resumed_to_the_same_bits(cells, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = [*SMALL[2:], "--max-epochs", "4"]
    assert run("train", "scvi", cells, "--out", whole, *options) == 0

    from countvi.train import loop

    write, n_written = loop.write_checkpoint, []

    def interrupt(*arguments):
        write(*arguments)
        n_written.append(1)
        if len(n_written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", interrupt)
    capsys.readouterr()
    assert run("train", "scvi", cells, "--out", cut, *options) == 130
    assert "--resume goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert {path.name for path in cut.iterdir()} == {"checkpoint", "run.yaml"}

    assert run("train", "scvi", cells, "--out", cut, *options) == 2
    assert "Pass --resume to go on" in capsys.readouterr().err
    assert run("train", "scvi", cells, "--out", cut, "--resume", *options) == 0
    assert not (cut / "checkpoint").exists()
    name = "model/model.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()

    before = contents(cut)
    assert run("train", "scvi", cells, "--out", cut, "--resume", *options) == 2
    assert "that run has ended" in capsys.readouterr().err
    assert contents(cut) == before


def test_resuming_does_not_drop_the_checkpoint_before_the_next(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state").write_text("four hours")
    RunFolder(tmp_path, overwrite=True, resume=True).begin("", None)
    assert (tmp_path / "checkpoint" / "state").exists()
    RunFolder(tmp_path, overwrite=True, resume=False).begin("", None)
    assert not (tmp_path / "checkpoint").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_device_that_is_not_there_is_said(cells, tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run("train", "scvi", cells, "--out", tmp_path / "o", "--accelerator", "cuda", *SMALL) == 2
    said = capsys.readouterr().err
    assert said.startswith("countvi: ") and "accelerator='cuda'" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_the_lines_it_suggests_run(cells, tmp_path, capsys):
    pytest.importorskip("scanpy", reason="needs the optional package: pip install 'countvi[demo]'")
    assert run("train", "scvi", cells, "--out", tmp_path / "run", "--batch-key", "donor", *SMALL) == 0
    lines = capsys.readouterr().out.split("Next, in Python:\n")[1].splitlines()
    for call in ("countvi.SCVI.load(", "sc.pp.neighbors(", "get_normalized_expression("):
        assert sum(call in line for line in lines) == 1
    code = "\n".join(line.strip() for line in lines)
    look = """
assert list(expression.columns) == ["g0", "g1"] and len(expression) == 60
assert "connectivities" in adata.obsp
"""
    finished = subprocess.run([sys.executable, "-c", code + "\n" + look], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_elbo_it_reports_is_that_of_the_weights_it_keeps():
    table = pd.DataFrame(
        {"elbo_train": [9.0, 7, 6, 5, 4], "elbo_validation": [1.0, 8, np.nan, 7, 9], "kl_weight": [0.5, 1, 1, 1, 1]}
    )
    # The first epoch is the best, but within the warm-up, where early stopping does not look.
    assert kept_elbo(table, early_stopping=True) == (-7.0, "held-out cells")
    assert kept_elbo(table, early_stopping=False) == (-9.0, "held-out cells")
    assert kept_elbo(table.drop(columns="elbo_validation"), early_stopping=False) == (-4.0, "training cells")
    assert kept_elbo(table.assign(kl_weight=0.5), early_stopping=True) == (-9.0, "held-out cells")


def test_remarks_on_the_data_are_notes(tmp_path, counts, capsys):
    dense = counts.toarray()
    dense[:, 3] = 0
    anndata.AnnData(sp.csr_matrix(dense)).write_h5ad(tmp_path / "cells.h5ad")
    assert run("train", "scvi", tmp_path / "cells.h5ad", "--out", tmp_path / "run", *SMALL) == 0
    said = capsys.readouterr().err
    assert "note: 1 of 30 genes have no counts" in said
    assert "Warning" not in said


def test_cell_ranger_input(tmp_path, counts, capsys):
    path = tmp_path / "cells.h5"
    by_feature = counts.astype(np.int32)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = by_feature.data, by_feature.indices, by_feature.indptr
        group["shape"] = np.array([30, 60])
        group["barcodes"] = np.array([f"cell{i}" for i in range(60)], dtype="S")
        group["features/id"] = np.array([f"ENSG{i}" for i in range(30)], dtype="S")
        group["features/name"] = np.array([f"g{i}" for i in range(30)], dtype="S")
        group["features/feature_type"] = np.array(["Gene Expression"] * 28 + ["Antibody Capture"] * 2, dtype="S")
    assert run("train", "scvi", path, "--out", tmp_path / "run", *SMALL) == 0
    adata = countvi.io.read_counts(path)
    assert adata.shape == (60, 28)
    np.testing.assert_array_equal(adata.X.toarray(), counts.toarray()[:, :28])


def test_info(cells, tmp_path, capsys):
    assert run("train", "scvi", cells, "--out", tmp_path / "run", "--batch-key", "donor", *SMALL) == 0
    capsys.readouterr()
    assert run("info", tmp_path / "run" / "model") == 0
    said = capsys.readouterr().out
    for fact in ("SCVI", "30 in X", "obs['donor'], 2 categories", "n_latent=2", "2 epochs, seed 0", "held-out ELBO -"):
        assert fact in said
    assert run("info", tmp_path) == 2


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert run("--debug", "train", "scvi", "missing.h5ad", "--out", tmp_path / "o") == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_and_version_are_quick_and_need_no_torch():
    code = (
        "import sys, contextlib\nfrom countvi.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--version'])\n"
        "with contextlib.suppress(SystemExit): main(['train', 'scvi', '--help'])\n"
        "assert 'torch' not in sys.modules and 'anndata' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert countvi.__version__ in finished.stdout
    assert "--batch-key" in finished.stdout


def test_the_config_works_from_another_folder(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(cells.parent)
    assert run("train", "scvi", cells.name, "--out", "first", *SMALL) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run("train", "scvi", "--config", tmp_path / "first" / "run.yaml", "--out", "second", "--quiet") == 0
    assert (elsewhere / "second" / "model").is_dir()


def test_differential_expression_is_that_of_the_model(cells, tmp_path, capsys):
    out, table = tmp_path / "run", tmp_path / "tables" / "de.csv"
    assert run("train", "scvi", cells, "--out", out, *SMALL) == 0
    arguments = ("de", out / "model", cells, "--groupby", "donor", "--n-samples-overall", "50", "--out", table)
    capsys.readouterr()
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert "a vs Rest" in said
    assert "60 rows" in said
    written = pd.read_csv(table, index_col=0)
    model = countvi.SCVI.load(out / "model", anndata.read_h5ad(cells))
    expected = model.differential_expression(groupby="donor", n_samples_overall=50)
    pd.testing.assert_frame_equal(written.rename_axis(None), expected, check_dtype=False)
    assert run(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*arguments, "--overwrite", "--group1", "c") == 2
    assert "'c' is no group" in capsys.readouterr().err
    assert run(*arguments[:-1], tmp_path / "de.xlsx") == 2
    assert ".csv" in capsys.readouterr().err
