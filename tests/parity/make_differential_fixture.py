"""Make the fixture of test_differential.py: a model that scvi-tools trained and saved, and its tables.

Run it with a Python that has scvi-tools 1.4.2; it rewrites ``tests/parity/differential``.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scvi

FOLDER = Path(__file__).parent / "differential"
N_CELLS, N_GENES = 150, 40
COLUMNS = ("proba_de", "lfc_mean", "lfc_median", "lfc_std", "scale1", "scale2", "raw_mean1", "raw_normalized_mean2")


def make_cells() -> anndata.AnnData:
    """Cells of three types in two batches."""
    rng = np.random.default_rng(0)
    kind, batch = rng.integers(3, size=N_CELLS), rng.integers(2, size=N_CELLS)
    log = (
        rng.normal(0.5, 1.0, N_GENES) + rng.normal(0, 0.8, (3, N_GENES))[kind] + rng.normal(0, 0.3, (2, N_GENES))[batch]
    )
    log[:, :3] = -6.0
    counts = rng.poisson(rng.gamma(4.0, np.exp(log) / 4.0)).astype(np.float32)
    counts[:, 5] += 1
    obs = pd.DataFrame({"type": np.array(["a", "b", "c"])[kind], "batch": np.array(["x", "y"])[batch]})
    obs.index = [f"cell{i}" for i in range(N_CELLS)]
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


def main() -> None:
    """Write the fixture."""
    warnings.filterwarnings("ignore")
    scvi.settings.seed = 0
    cells = make_cells()
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=4, gene_likelihood="nb")
    model.train(60, accelerator="cpu", enable_progress_bar=False, logger=None)
    found: dict[str, np.ndarray] = {}
    for name, options in {
        "own": {"batch_correction": False},
        "corrected": {"batch_correction": True},
        "given": {"batch_correction": False, "pseudocounts": 1e-3},
    }.items():
        table = model.differential_expression(
            groupby="type", mode="change", n_samples_overall=20_000, silent=True, **options
        )
        for group, part in table.groupby("group1"):
            part = part.loc[cells.var_names]
            for column in COLUMNS:
                found[f"{name}/{group}/{column}"] = part[column].to_numpy(dtype=np.float32)
            found[f"{name}/{group}/pseudocounts"] = part["pseudocounts"].to_numpy(dtype=np.float64)[:1]
    vanilla = model.differential_expression(groupby="type", mode="vanilla", n_samples_overall=20_000, silent=True)
    for group, part in vanilla.groupby("group1"):
        found[f"vanilla/{group}/proba_m1"] = part.loc[cells.var_names, "proba_m1"].to_numpy(dtype=np.float32)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        model.save(f"{scratch}/model")
        shutil.copyfile(f"{scratch}/model/model.pt", FOLDER / "model.pt")
    np.savez_compressed(
        FOLDER / "expected.npz",
        counts=np.asarray(cells.X).astype(np.uint16),
        type=cells.obs["type"].to_numpy().astype(str),
        batch=cells.obs["batch"].to_numpy().astype(str),
        **found,
    )
    print({path.name: path.stat().st_size for path in FOLDER.iterdir()})


if __name__ == "__main__":
    main()
