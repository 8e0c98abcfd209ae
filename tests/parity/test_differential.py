"""Differential expression of a model that scvi-tools trained and saved, beside its own tables."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import countvi
from countvi.io import load_scvi_tools

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")]

FOLDER = Path(__file__).parent / "differential"
OPTIONS = {"own": {}, "corrected": {"batch_correction": True}, "given": {"pseudocounts": 1e-3}}


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(theirs: dict[str, np.ndarray]) -> countvi.SCVI:
    counts = theirs["counts"].astype(np.float32)
    obs = pd.DataFrame(
        {"type": theirs["type"], "batch": theirs["batch"]}, index=[f"cell{i}" for i in range(len(counts))]
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(counts.shape[1])])
    return load_scvi_tools(FOLDER, anndata.AnnData(counts, obs=obs, var=var))


@pytest.mark.parametrize("case", OPTIONS)
def test_tables_agree(model, theirs, case):
    table = model.differential_expression(
        groupby="type", n_samples_overall=20_000, convention="scvi-tools", **OPTIONS[case]
    )
    for group, unordered in table.groupby("group1"):
        part = unordered.loc[model.adata.var_names]
        expected = {name: theirs[f"{case}/{group}/{name}"] for name in ("lfc_mean", "lfc_median", "proba_de", "scale1")}
        assert stats.spearmanr(part["lfc_mean"], expected["lfc_mean"]).statistic > 0.99
        assert stats.spearmanr(part["proba_de"], expected["proba_de"]).statistic > 0.98
        # Both draw 20,000 pairs: the differences are those of two sets of draws.
        np.testing.assert_allclose(part["proba_de"], expected["proba_de"], atol=0.03)
        np.testing.assert_allclose(part["lfc_median"], expected["lfc_median"], atol=0.06)
        np.testing.assert_allclose(part["scale1"], expected["scale1"], rtol=0.05)
        np.testing.assert_allclose(part["raw_mean1"], theirs[f"{case}/{group}/raw_mean1"], rtol=1e-5)
        np.testing.assert_allclose(
            part["raw_normalized_mean2"], theirs[f"{case}/{group}/raw_normalized_mean2"], rtol=1e-4
        )
        # The largest of many draws, so known to a factor only.
        ratio = part["pseudocounts"].iloc[0] / theirs[f"{case}/{group}/pseudocounts"][0]
        assert 0.5 < ratio < 2


def test_vanilla_agrees(model, theirs):
    table = model.differential_expression(groupby="type", mode="vanilla", n_samples_overall=20_000)
    for group, unordered in table.groupby("group1"):
        part = unordered.loc[model.adata.var_names]
        np.testing.assert_allclose(part["proba_m1"], theirs[f"vanilla/{group}/proba_m1"], atol=0.03)


def test_the_definition_ranks_alike(model, theirs):
    table = model.differential_expression(groupby="type", n_samples_overall=20_000)
    for group, part in table.groupby("group1"):
        seen = part.loc[model.adata.var_names]["raw_mean1"].to_numpy() > 0.1
        lfc = part.loc[model.adata.var_names]["lfc_mean"].to_numpy()
        assert stats.spearmanr(lfc[seen], theirs[f"own/{group}/lfc_mean"][seen]).statistic > 0.95
