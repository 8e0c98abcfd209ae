"""Train scVI on 700 real blood cells: what ``make demo`` runs.

The counts come from a data set that scanpy brings along, so that nothing is downloaded. Everything is written to
``build/demo``; running again replaces it.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("build/demo")


def recover_counts() -> AnnData:
    """Peripheral blood cells (Zheng et al. 2017) with raw counts in ``X``: 700 cells x 765 genes.

    scanpy ships log(1 + 10,000 x / n) to about three decimals, and n, the total count of each cell, beside it. That
    is enough to tell every count x.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what scanpy and anndata say about their own imports
        import scanpy
        from anndata import AnnData

        shipped = scanpy.datasets.pbmc68k_reduced()
    logged = shipped.raw.X.toarray().astype(np.float64)
    per_cell = shipped.obs["n_counts"].to_numpy(dtype=np.float64)[:, None] / 10_000
    counts = np.round(np.expm1(logged) * per_cell)
    error = float(np.abs(np.log1p(counts / per_cell) - logged).max())
    if error > 1e-3:
        raise SystemExit(f"The data set in this version of scanpy is another one: counts are off by {error:.2g}.")
    return AnnData(
        csr_matrix(counts.astype(np.float32)),
        obs=shipped.obs[["bulk_labels", "n_counts", "phase"]].copy(),
        var=shipped.raw.var[[]].copy(),
    )


def countvi_command() -> list[str]:
    """The ``countvi`` of the environment that runs this script."""
    script = Path(sys.executable).with_name("countvi")
    return [str(script)] if script.exists() else [sys.executable, "-m", "countvi.cli"]


def train(counts: Path, run: Path) -> None:
    """Train as a user would, on the command line."""
    if (ROOT / run).exists():
        shutil.rmtree(ROOT / run)
    arguments = ["train", "scvi", str(counts), "--out", str(run)]
    print(f"\n$ countvi {shlex.join(arguments)}\n", flush=True)
    finished = subprocess.run([*countvi_command(), *arguments], cwd=ROOT, check=False)
    if finished.returncode:
        raise SystemExit(finished.returncode)


def draw(run: Path, labels: pd.Series, picture: Path) -> None:
    """Draw the latent space, coloured by cell type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anndata
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        import countvi.plot

    adata = anndata.read_h5ad(ROOT / run / "latent.h5ad")
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    countvi.plot.latent(adata.obsm["X_scVI"], labels.reindex(adata.obs_names), ax=figure.subplots())
    figure.savefig(ROOT / picture, dpi=150)


def main() -> None:
    counts, run, picture = FOLDER / "pbmc68k_counts.h5ad", FOLDER / "run", FOLDER / "latent.png"
    adata = recover_counts()
    (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(ROOT / counts)
    print(f"{adata.n_obs} blood cells x {adata.n_vars} genes, raw counts: {counts}", flush=True)
    train(counts, run)
    draw(run, adata.obs["bulk_labels"].rename("cell type"), picture)
    print("\nTwo pictures to look at:")
    print(f"  {run / 'training.png'}  is the fit good? the ELBO of training and held-out cells")
    print(f"  {picture}        the latent space, coloured by cell type")


if __name__ == "__main__":
    main()
