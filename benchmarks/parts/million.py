"""A million cells from a file."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
from large import write_simulated
from measure import Comparison, Settings, in_subprocess, peak_memory, seconds
from sides import SIDES

# Held-out cells whose ELBO is taken, out of a tenth of all.
_EVALUATED = 10_000


def measure(settings: Settings) -> list[Comparison]:
    """Simulate the file, and train on it in a process of its own."""
    n_cells, n_genes = settings.pick((1_000_000, 2_000), (6_000, 100))
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        path = Path(folder) / "million.h5ad"
        density = 0.0

        def simulate() -> None:
            nonlocal density
            density = write_simulated(path, n_cells, n_genes)

        print(f"simulated {n_cells:,} cells in {seconds(simulate):.0f} s", flush=True)
        size = path.stat().st_size / 1e9
        told = json.loads(in_subprocess(f"from parts.million import fit; print(fit({str(path)!r}))"))
    notes = (
        f"{density:.1%} nonzero, a file of {size:.2g} GB, {told['epochs']} epochs of {told['trained']:,} cells; "
        "from opening the file with backed='r' to the trained model; ELBO of "
        f"{told['evaluated']:,} held-out cells; scvi-tools was not run on this"
    )
    work = f"default training from an .h5ad on disk, {n_cells:,} cells x {n_genes:,} genes"
    return [
        Comparison(work, "s", [told["seconds"]], elbo_ours=[told["elbo"]], notes=notes),
        Comparison(f"peak memory of the {work}", "GB", [told["peak"]]),
    ]


def fit(path: str) -> str:
    """Train with all defaults on a file; return what is to be told of it as JSON."""
    started = time.perf_counter()
    side = SIDES[0]
    model = side.build(anndata.read_h5ad(path, backed="r"), 0)
    model.train(enable_progress_bar=False)
    took, peak = time.perf_counter() - started, peak_memory()
    held_out = np.sort(np.random.default_rng(0).permutation(model.validation_indices)[:_EVALUATED])
    return json.dumps(
        {
            "seconds": took,
            "peak": peak,
            "epochs": side.epochs(model),
            "trained": len(model.train_indices),
            "evaluated": len(held_out),
            "elbo": side.elbo(model, held_out),
        }
    )
