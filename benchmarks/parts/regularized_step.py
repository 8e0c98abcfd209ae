"""A training step of the regularised model at its large size, beside regularizedvi; and its memory with many peaks.

regularizedvi is not on PyPI. Unpack a copy of its repository, and name its ``src`` folder in the variable
COUNTVI_REGULARIZEDVI; it runs on the installed scvi-tools. Without it only our side is timed. The steps take about 3
minutes on 2 cores, the memory 2.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import anndata
import datasets
import numpy as np
import pandas as pd
import scipy.sparse as sp
from measure import Comparison, Settings, alternate, in_subprocess, peak_memory, seconds

import countvi

_OTHER = "regularizedvi"
_FOLDER = "COUNTVI_REGULARIZEDVI"
_N_HIDDEN, _N_LATENT, _BATCH = 512, 128, 1_024
_SIZES = ((4_096, 2_000, 0.13), (2_048, 20_000, 0.04))
"""Cells, genes and share of nonzero entries."""


def step(settings: Settings) -> list[Comparison]:
    """Wall time of a training step of both sides."""
    theirs = _regularizedvi()
    rows = []
    for n_cells, n_genes, density in settings.pick(_SIZES, ((512, 100, 0.13),)):
        adata = datasets.simulate(n_cells, n_genes, density=density)
        size = settings.pick((_N_HIDDEN, _N_LATENT, _BATCH), (16, 4, 256))
        nonzero = adata.X.nnz / np.prod(adata.shape)
        row = Comparison(
            f"training step, {size[0]} units, {size[1]} dimensions, {n_genes:,} genes, batch {size[2]:,}",
            "ms",
            notes=f"{n_cells:,} simulated cells, {nonzero:.1%} nonzero",
            other=_OTHER,
        )
        ours = _stepper(countvi.AmbientRegularizedSCVI, adata, size, {})
        if theirs is None:
            ours()
            row.ours = [ours() for _ in range(settings.repeats)]
            rows.append(row)
            continue
        other = _stepper(theirs, adata, size, {"accelerator": "cpu"})
        rows.append(alternate(row, settings.pick(3, 1), ours, other))
    return rows


def _stepper(model_class: Any, adata: anndata.AnnData, size: tuple[int, int, int], options: dict[str, Any]):
    adata, (n_hidden, n_latent, batch_size) = adata.copy(), size
    everything, nothing = np.arange(adata.n_obs), np.empty(0, dtype=np.int64)
    split = [everything, nothing] if not options else [everything, nothing, nothing]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_class.setup_anndata(adata, batch_key="batch")
        model = model_class(adata, n_hidden=n_hidden, n_latent=n_latent)

    def milliseconds() -> float:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            took = seconds(
                lambda: model.train(
                    1,
                    batch_size=batch_size,
                    datasplitter_kwargs={"external_indexing": split},
                    enable_progress_bar=False,
                    **options,
                )
            )
        return 1e3 * took / -(-adata.n_obs // batch_size)

    return milliseconds


def _regularizedvi() -> Any:
    """Import the other side from where the user has unpacked it."""
    folder = os.environ.get(_FOLDER)
    if folder is None:
        print(f"Without {_OTHER}: {_FOLDER} does not name the folder of its sources.", flush=True)
        return None
    sys.path.append(folder)
    version: Callable[[str], str] = importlib.metadata.version
    # It asks for its own version, which what is only unpacked does not have.
    importlib.metadata.version = lambda name: "unpacked" if name == _OTHER else version(name)
    try:
        import regularizedvi
    finally:
        importlib.metadata.version = version
    return regularizedvi.AmbientRegularizedSCVI


def memory(settings: Settings) -> list[Comparison]:
    """Peak memory of training on RNA and many peaks, in a process of its own."""
    n_cells, n_genes, n_peaks = settings.pick((4_096, 2_000, 120_000), (256, 100, 3_000))
    told = json.loads(
        in_subprocess(
            f"from parts.regularized_step import train_on_peaks; print(train_on_peaks{n_cells, n_genes, n_peaks})"
        )
    )
    work = f"peak memory: import, 1 epoch and latent of {n_cells:,} cells, {n_genes:,} genes and {n_peaks:,} peaks"
    notes = (
        f"{told['before']:.2f} GB of it once the data are in memory; parameters with gradients and averages of Adam "
        f"{told['parameters']:.2f} GB; as a dense matrix in float32 the counts would take {told['dense']:.2f} GB"
    )
    return [Comparison(work, "GB", [told["peak"]], notes=notes, other=_OTHER)]


def train_on_peaks(n_cells: int, n_genes: int, n_peaks: int) -> str:
    """Train for one epoch; return what is to be told of it as JSON."""
    import mudata

    rna, atac = datasets.simulate(n_cells, n_genes, density=0.05), _peaks(n_cells, n_peaks)
    atac.obs_names = rna.obs_names
    with warnings.catch_warnings(), mudata.set_options(pull_on_update=False):
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({"rna": rna, "atac": atac})
    before = peak_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        countvi.RegularizedMultimodalVI.setup_mudata(mdata)
        model = countvi.RegularizedMultimodalVI(mdata)
        model.train(1, enable_progress_bar=False)
    model.get_latent_representation()
    n_numbers = sum(parameter.numel() for parameter in model.module.parameters())
    return json.dumps(
        {
            "peak": peak_memory(),
            "before": before,
            "parameters": 16 * n_numbers / 1e9,
            "dense": 4 * n_cells * (n_genes + n_peaks) / 1e9,
        }
    )


def _peaks(n_cells: int, n_peaks: int, n_open: int = 2_500) -> anndata.AnnData:
    """Peaks that are open in a cell, some of them by its type, without a dense matrix on the way."""
    rng = np.random.default_rng(0)
    types = rng.integers(10, size=n_cells)
    popular = (n_peaks * rng.random((n_cells, min(n_open, n_peaks // 4))) ** 2).astype(np.int64)
    moved = rng.random(popular.shape) < 0.3
    columns = np.where(moved, (popular + types[:, None] * (n_peaks // 10)) % n_peaks, popular)
    counts = sp.csr_matrix(
        (np.ones(columns.size, np.float32), columns.ravel(), np.arange(n_cells + 1) * columns.shape[1]),
        (n_cells, n_peaks),
    )
    counts.sum_duplicates()
    names = [f"chr1:{1_000 * i}-{1_000 * i + 500}" for i in range(n_peaks)]
    return anndata.AnnData(counts, var=pd.DataFrame(index=names))
