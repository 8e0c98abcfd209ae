"""Real cells: the defaults reach at least the held-out ELBO that scvi-tools reached on the same split and sizes.

And proteins are on the cells that biology has them on.

Reads the folder that COUNTVI_TEST_DATA names. What scvi-tools reached, with its own defaults and number of epochs, is
recorded in ``benchmarks/results/quality-*.json`` by ``benchmarks/run.py``, whose data sets and splits these are.
Rows without a data set in them are not default trainings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import countvi

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_RECORDED = [
    row
    for path in sorted((_BENCHMARKS / "results").glob("quality-*.json"))
    for row in json.loads(path.read_text())["comparisons"]
    if row["data"]
]
_SEED = 0

pytestmark = pytest.mark.data


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    import datasets
    import sides

    yield datasets, sides
    for name in ("datasets", "sides"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("recorded", _RECORDED, ids=lambda row: row["work"])
def test_defaults_reach_the_recorded_elbo(recorded, benchmark):
    datasets, sides = benchmark
    if recorded["data"] not in datasets.available():
        pytest.skip("COUNTVI_TEST_DATA does not name a folder with this data set")
    adata = datasets.load(recorded["data"], recorded["n_genes"])
    train, held_out = datasets.halves(adata.n_obs, _SEED)
    ours = sides.Countvi()
    model = ours.build(adata, _SEED, gene_likelihood=recorded.get("likelihood") or "zinb")
    ours.train(model, train, held_out, None)
    assert np.isfinite(model.history.to_numpy()).all()
    assert model.history["n_rollbacks"].iloc[-1] == 0
    assert ours.elbo(model, held_out) >= recorded["elbo_theirs"][_SEED]


def test_markers_are_foreground_in_the_types_that_have_them(benchmark):
    """Types are those that RNA tells; cells whose type it does not tell are left out of the scores."""
    from sklearn import metrics

    datasets, _ = benchmark
    if "citeseq" not in datasets.available():
        pytest.skip("COUNTVI_TEST_DATA does not name a folder with this data set")
    adata = datasets.load("citeseq", 400)
    adata = adata[adata.obs["protein_observed"].to_numpy(dtype=bool)][::3].copy()
    countvi.TOTALVI.setup_anndata(adata, "protein_expression", batch_key="batch")
    model = countvi.TOTALVI(adata)
    model.train(25, enable_progress_bar=False)
    foreground = model.get_protein_foreground_probability(n_samples=5)
    assert np.isfinite(model.history.to_numpy()).all()
    types = adata.obs["cell_type"].astype(str)
    clear = ~types.isin(["ambiguous", "other myeloid"])
    for name, kinds in {"CD3": ["CD4 T", "CD8 T"], "CD19": ["B"], "CD14": ["CD14 Mono"]}.items():
        has, probability = types.isin(kinds)[clear], foreground[name][clear]
        assert metrics.roc_auc_score(has, probability) > 0.95, name
        assert probability[has].mean() > 0.8 > 0.2 > probability[~has].mean(), name
