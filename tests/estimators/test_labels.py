"""Labels of a reference on the cells of a query, of which some are of a type that the reference does not have."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import countvi
from countvi import errors

N_GENES = 60
FOLDER = os.environ.get("COUNTVI_TEST_DATA")


def cells(types: str, batch: str, seed: int) -> anndata.AnnData:
    """Thirty cells of each type; a type has ten genes of its own, and each batch its own capture of all genes."""
    rng = np.random.default_rng(seed)
    label = np.repeat(list(types), 30)
    rates = np.full((len(label), N_GENES), 2.0)
    for i, name in enumerate("ABCD"):
        rates[np.ix_(label == name, range(10 * i, 10 * i + 10))] = 12.0
    rates *= np.random.default_rng(len(batch)).lognormal(0.0, 0.3, N_GENES)
    obs = pd.DataFrame({"batch": batch, "type": label}, index=[f"{batch}{i}" for i in range(len(label))])
    return anndata.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs)


@pytest.fixture(scope="module")
def models() -> tuple[countvi.SCVI, countvi.SCVI]:
    reference, query = cells("ABC", "old", 0), cells("ABCD", "newer", 1)
    reference.obs["partly"] = reference.obs["type"].where(np.arange(90) % 3 > 0)
    countvi.SCVI.setup_anndata(reference, batch_key="batch")
    model = countvi.SCVI(reference, n_hidden=16, n_latent=4, gene_likelihood="nb", encode_covariates=True)
    quiet = {"batch_size": 32, "enable_progress_bar": False}
    model.train(60, **quiet)
    mapped = countvi.SCVI.load_query_data(query, model)
    mapped.train(10, **quiet)
    return model, mapped


def test_known_types_are_found_and_the_hidden_one_is_not_called_known(models) -> None:
    model, mapped = models
    found = model.transfer_labels(mapped, "type")
    truth = mapped.adata.obs["type"]
    assert list(found.columns) == ["label", "best", "uncertainty", "typicality"]
    assert found.index.equals(mapped.adata.obs_names)
    known = truth != "D"
    assert (found["best"][known] == truth[known]).mean() > 0.95
    unknown = found["label"] == "unknown"
    assert unknown[~known].mean() > 0.85
    assert unknown[known].mean() < 0.25


def test_thresholds_do_what_they_say(models) -> None:
    model, mapped = models
    found = model.transfer_labels(mapped, "type", max_uncertainty=1.0, min_typicality=0.0)
    assert (found["label"] == found["best"]).all()
    strict = model.transfer_labels(mapped, "type", max_uncertainty=0.2, min_typicality=0.3, unknown="?")
    expected = (strict["uncertainty"] > 0.2) | (strict["typicality"] < 0.3)
    np.testing.assert_array_equal(strict["label"] == "?", expected)


def test_cells_of_known_batches_need_no_model_of_their_own(models) -> None:
    model, _ = models
    found = model.transfer_labels(cells("AC", "old", 7), "type", n_neighbors=5)
    assert set(found["best"]) == {"A", "C"}


def test_cells_without_a_label_have_no_vote(models) -> None:
    model, mapped = models
    found = model.transfer_labels(mapped, "partly")
    assert set(found["best"]) == {"A", "B", "C"}
    assert found["best"].notna().all()


def test_clear_errors(models) -> None:
    model, mapped = models
    with pytest.raises(errors.UnknownNameError, match="no column 'typ'"):
        model.transfer_labels(mapped, "typ")
    with pytest.raises(errors.OptionError, match="below the number of cells with a label"):
        model.transfer_labels(mapped, "type", n_neighbors=90)
    with pytest.raises(errors.OptionError, match="is a label of"):
        model.transfer_labels(mapped, "type", unknown="A")
    with pytest.raises(errors.OptionError, match="between 0 and 1"):
        model.transfer_labels(mapped, "type", max_uncertainty=5)
    with pytest.raises(errors.OptionError, match="one space"):
        mapped.transfer_labels(model, "type")


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="COUNTVI_TEST_DATA is not set")
def test_stimulated_blood_cells_on_a_reference_of_resting_ones_without_b_cells() -> None:
    assert FOLDER is not None
    adata = anndata.read_h5ad(Path(FOLDER) / "pbmc_kang_ctrl_stim.h5ad")
    seen = np.asarray((adata.X > 0).sum(0)).ravel()
    adata = adata[:, np.argsort(-seen)[:2000]].copy()
    resting, stimulated = (adata[adata.obs["batch"] == name].copy() for name in ("ctrl", "stim"))
    resting = resting[resting.obs["cell_type"] != "B"].copy()
    countvi.SCVI.setup_anndata(resting, batch_key="batch")
    model = countvi.SCVI(resting, gene_likelihood="nb", encode_covariates=True)
    model.train(40, enable_progress_bar=False)
    mapped = countvi.SCVI.load_query_data(stimulated, model)
    mapped.train(20, enable_progress_bar=False)
    found, truth = model.transfer_labels(mapped, "cell_type"), stimulated.obs["cell_type"].astype(str)
    b_cells = truth == "B"
    assert (found["best"] == truth)[~b_cells].mean() > 0.7
    unknown = found["label"] == "unknown"
    assert unknown[b_cells].mean() > 2 * unknown[~b_cells].mean()
