"""Differential expression: every type with the rest, and what it says where nothing differs."""

from __future__ import annotations

import warnings
from typing import Any

import anndata
import datasets
import numpy as np
import pandas as pd
import scipy.sparse as sp
from measure import Comparison, Settings, in_subprocess, peak_memory, seconds
from sides import SIDES

_N_TYPES = 20
_OPTIONS: dict[str, Any] = {"groupby": "cell_type", "mode": "change", "silent": True}


def measure(settings: Settings) -> list[Comparison]:
    """Time and peak memory of one-versus-rest, each side in a process of its own; error rates of a null simulation."""
    n_cells, n_genes = settings.pick((20_000, 2_000), (600, 60))
    notes = f"{n_cells:,} simulated cells x {n_genes:,} genes, 5,000 draws of each population"
    time = Comparison(f"one-versus-rest of {_N_TYPES} types", "s", notes=notes)
    memory = Comparison(f"peak memory: import, 1 epoch, one-versus-rest of {_N_TYPES} types", "GB", notes=notes)
    for repeat in range(settings.pick(3, 1)):
        order = (0, 1) if repeat % 2 == 0 else (1, 0)
        for i in order:
            code = f"from parts.differential import use; print(*use({i}, {n_cells}, {n_genes}))"
            took, peak = map(float, in_subprocess(code).split())
            (time.ours if i == 0 else time.theirs).append(took)
            (memory.ours if i == 0 else memory.theirs).append(peak)
    return [time, memory, *_false_discoveries(settings)]


def use(index: int, n_cells: int, n_genes: int) -> tuple[float, float]:
    """Compare every type with the rest on one side; return seconds and the peak memory in GB."""
    adata = datasets.simulate(n_cells, n_genes, density=0.1, n_types=_N_TYPES)
    side = SIDES[index]
    model = side.build(adata, 0)
    side.train(model, *datasets.halves(n_cells), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.differential_expression(**{**_OPTIONS, "groupby": "batch", "n_samples_overall": 100})  # uncounted
        took = seconds(lambda: model.differential_expression(**_OPTIONS))
    return took, peak_memory()


def _false_discoveries(settings: Settings) -> list[Comparison]:
    """Share of genes rightly left alone where cases and controls differ in no gene, only in their donors."""
    n_cells, n_genes = settings.pick((200, 500), (30, 40))
    notes = f"5 donors each, who differ by a standard deviation of 0.5; {n_cells} cells of each donor, {n_genes} genes"
    p = Comparison("null genes with p > 0.05, by donors", "share", notes=notes, other="t-test over cells")
    fdr = Comparison("null genes not found at FDR 0.05, by donors", "share", notes=notes, other="posterior over cells")
    for seed in range(settings.pick(5, 1)):
        adata = null_donors(10, n_cells, n_genes, seed)
        model = SIDES[0].build(adata, seed)
        SIDES[0].train(model, *datasets.halves(adata.n_obs), settings.pick(None, 2))
        table = model.differential_expression(groupby="case", group1="case", sample_key="donor")
        p.ours.append(float((table["replicate_pvalue"] > 0.05).mean()))
        p.theirs.append(_per_cell(adata))
        fdr.ours.append(float((~table["is_de_replicates_fdr_0.05"]).mean()))
        fdr.theirs.append(float((~table["is_de_fdr_0.05"]).mean()))
    return [p, fdr]


def _per_cell(adata: anndata.AnnData) -> float:
    from scipy import stats

    x = np.log1p(1e4 * adata.X.toarray() / np.maximum(adata.X.sum(1), 1))
    case = (adata.obs["case"] == "case").to_numpy()
    return float((stats.ttest_ind(np.asarray(x)[case], np.asarray(x)[~case]).pvalue > 0.05).mean())


def null_donors(n_donors: int, n_cells: int, n_genes: int, seed: int) -> anndata.AnnData:
    """Draw cells of donors who differ at random, half of whom are called cases."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n_cells)
    log = rng.normal(0.5, 1.0, n_genes) + rng.normal(0, 0.5, (n_donors, n_genes))[donor]
    rate = np.exp(log) * rng.lognormal(0, 0.3, (len(donor), 1))
    obs = pd.DataFrame({"donor": [f"d{d}" for d in donor], "case": np.where(donor % 2, "case", "control")})
    obs.index = [f"c{i}" for i in range(len(donor))]
    counts = sp.csr_matrix(rng.poisson(rng.gamma(3.0, rate / 3.0)).astype(np.float32))
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
