"""``countvi map``: new cells on a model that was trained by a command."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi.cli import main
from countvi.errors import DataWarning


def run(*arguments: object) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def write(path: Path, batch: str, n_genes: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"donor": batch, "type": ["T", "B"] * 30}, index=[f"{batch}{i}" for i in range(60)])
    counts = sp.csr_matrix(rng.poisson(2.0 + 4.0 * (np.arange(60) % 2)[:, None], (60, n_genes)).astype(np.float32))
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    anndata.AnnData(counts, obs=obs, var=var).write_h5ad(path)
    return path


@pytest.fixture
def trained(tmp_path) -> Path:
    cells = write(tmp_path / "old.h5ad", "old", 30, 0)
    small = ["--max-epochs", "2", "--n-hidden", "8", "--n-latent", "2", "--quiet"]
    assert run("train", "scvi", cells, "--out", tmp_path / "run", "--batch-key", "donor", *small) == 0
    return tmp_path


def test_states_and_labels_of_new_cells(trained, capsys):
    new = write(trained / "new.h5ad", "new", 28, 1)  # two genes are missing
    arguments = ["map", trained / "run" / "model", new, "--out", trained / "mapped", "--max-epochs", "2", "--quiet"]
    labels = ["--labels-key", "type", "--reference-cells", trained / "old.h5ad"]
    capsys.readouterr()
    assert run(*arguments, *labels) == 0
    said = capsys.readouterr().out
    assert "60 cells mapped" in said
    latent = anndata.read_h5ad(trained / "mapped" / "latent.h5ad")
    reference = countvi.SCVI.load(trained / "run" / "model", anndata.read_h5ad(trained / "old.h5ad"))
    prepared = countvi.SCVI.prepare_query_anndata(anndata.read_h5ad(new), reference)
    with pytest.warns(DataWarning, match="2 of 30 genes have no counts"):
        model = countvi.SCVI.load(trained / "mapped" / "model", prepared)
    assert "mapped onto a reference" in repr(model)
    np.testing.assert_array_equal(latent.obsm["X_scVI"], model.get_latent_representation())
    found = reference.transfer_labels(model, "type")
    np.testing.assert_array_equal(latent.obs["transferred_label"].astype(str), found["label"])
    assert (trained / "mapped" / "training.png").exists()
    assert run(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_labels_need_the_cells_of_the_reference(trained, capsys):
    arguments = ["map", trained / "run" / "model", trained / "old.h5ad", "--out", trained / "mapped"]
    assert run(*arguments, "--labels-key", "type") == 2
    assert "--reference-cells" in capsys.readouterr().err
    assert not (trained / "mapped").exists()
