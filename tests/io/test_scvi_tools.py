"""Models of scvi-tools: what is refused, and that data are matched by name. Numbers: see tests/parity."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import countvi
from countvi.errors import DataWarning, FileFormatError, MismatchError
from countvi.io._weights import weights_from_scvi
from countvi.io.scvi_tools import NAMES, options_from_scvi

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"

pytestmark = pytest.mark.parity


def data_of(case: str) -> anndata.AnnData:
    with np.load(FIXTURES / case / "expected.npz", allow_pickle=False) as file:
        expected = {name: file[name] for name in file.files}
    assert json.loads(str(expected["case"]))["counts_in"] == "X"
    obs = pd.DataFrame({name[4:]: value for name, value in expected.items() if name.startswith("obs_")})
    obs.index = [f"cell{i}" for i in range(len(expected["counts"]))]
    return anndata.AnnData(expected["counts"], obs=obs, var=pd.DataFrame(index=expected["var_names"].astype(str)))


def copy_of(case: str, folder: Path, change) -> Path:
    """A fixture whose content was changed."""
    content = torch.load(FIXTURES / case / "model.pt", map_location="cpu", weights_only=False)
    change(content)
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "model.pt")
    return folder


def load(case: str | Path, adata: anndata.AnnData | None = None) -> countvi.SCVI:
    model = countvi.io.load_scvi_tools(FIXTURES / case, adata)
    model.is_trained = True  # the fixtures have random weights
    return model


@pytest.fixture
def adata():
    return data_of("zinb_trained")


@pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")
def test_genes_are_matched_by_name(adata):
    expected = load("zinb_trained", adata)
    order = np.random.default_rng(0).permutation(adata.n_vars)
    shuffled = adata[:, order].copy()
    model = load("zinb_trained", shuffled)
    np.testing.assert_allclose(
        model.get_latent_representation(), expected.get_latent_representation(), rtol=2e-5, atol=2e-6
    )
    np.testing.assert_allclose(
        model.get_elbo(return_mean=False), expected.get_elbo(return_mean=False), rtol=2e-5, atol=2e-6
    )
    assert not np.array_equal(order, np.arange(adata.n_vars))
    with pytest.raises(MismatchError, match="prepare_query_anndata"):
        load("zinb_trained", adata[:, 1:].copy())


@pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")
def test_without_data(adata):
    model = load("zinb_trained")
    assert model.adata is None
    with pytest.raises(MismatchError, match="has no data"):
        model.get_latent_representation()
    expected = load("zinb_trained", adata).get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)
    by_file = countvi.io.load_scvi_tools(FIXTURES / "zinb_trained" / "model.pt")
    np.testing.assert_array_equal(by_file.get_latent_representation(adata), expected)


@pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")
def test_it_trains_on_and_saves(adata, tmp_path):
    model = load("zinb_trained", adata)
    before = model.get_latent_representation()
    model.train(1, enable_progress_bar=False)
    assert not np.array_equal(model.get_latent_representation(), before)
    model.save(tmp_path / "model")
    loaded = countvi.SCVI.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


def test_other_data_get_a_split_of_their_own(adata):
    few = adata[:5].copy()
    with pytest.warns(DataWarning) as caught:
        model = countvi.io.load_scvi_tools(FIXTURES / "zinb_trained", few)
    assert any("do not fit the data given" in str(warning.message) for warning in caught)
    assert model.split is None


def test_a_model_of_another_class(tmp_path):
    def rename(content):
        content["attr_dict"]["registry_"]["model_name"] = "SCANVI"

    folder = copy_of("zinb_trained", tmp_path / "other", rename)
    with pytest.raises(FileFormatError, match="holds a model of class SCANVI; load_scvi_tools reads 'SCVI', 'TOTALVI'"):
        countvi.io.load_scvi_tools(folder)


def test_an_option_without_counterpart(tmp_path):
    def add(content):
        content["attr_dict"]["init_params_"]["kwargs"] = {"kwargs": {"extra_encoder": 3}}

    folder = copy_of("zinb_trained", tmp_path / "other", add)
    with pytest.raises(FileFormatError, match=r"extra_encoder.*no counterpart"):
        countvi.io.load_scvi_tools(folder)


def test_a_missing_weight(tmp_path):
    def drop(content):
        del content["model_state_dict"]["px_r"]

    folder = copy_of("zinb_trained", tmp_path / "other", drop)
    with pytest.raises(MismatchError, match="no weight 'px_r'"):
        countvi.io.load_scvi_tools(folder)


def test_a_weight_of_another_shape():
    state = {"px_r": torch.zeros(3)}
    with pytest.raises(MismatchError, match=r"has shape \(3,\) in the file; this model expects \(4,\)"):
        weights_from_scvi(state, {"observe.log_theta.value": torch.zeros(4)}, NAMES)


def test_what_is_not_a_model(tmp_path):
    (tmp_path / "text.pt").write_text("not a model")
    (tmp_path / "empty").mkdir()
    with open(tmp_path / "plain.pt", "wb") as file:
        pickle.dump({"a": 1}, file)
    shutil.copy(FIXTURES / "zinb_trained" / "expected.npz", tmp_path / "archive.pt")
    truncated = tmp_path / "truncated.pt"
    whole = (FIXTURES / "zinb_trained" / "model.pt").read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    for name in ("nothing", "nothing.pt", "text.pt", "empty", "plain.pt", "archive.pt", "truncated.pt"):
        with pytest.raises(FileFormatError) as caught:
            countvi.io.load_scvi_tools(tmp_path / name)
        assert name in str(caught.value)


def test_a_model_of_ours_is_not_one_of_theirs(simulate, fit, tmp_path):
    fit(simulate()).save(tmp_path / "ours")
    with pytest.raises(FileFormatError):
        countvi.io.load_scvi_tools(tmp_path / "ours")
    with pytest.raises(FileFormatError, match=r"countvi\.io\.load_scvi_tools"):
        countvi.SCVI.load(FIXTURES / "zinb_trained")


def test_options_are_translated():
    parameters = {"non_kwargs": {"n_hidden": 7, "gene_likelihood": "poisson", "dispersion": "gene-cell"}, "kwargs": {}}
    assert options_from_scvi(parameters, "x") == {"n_hidden": 7, "gene_likelihood": "poisson", "dispersion": "gene"}
