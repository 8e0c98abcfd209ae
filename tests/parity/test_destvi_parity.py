"""CondSCVI and DestVI saved by scvi-tools, loaded by us, must compute what scvi-tools computed.

The fixtures hold models with random weights of both generations of CondSCVI, and of the paper's DestVI in each mode of
amortisation; ``make_destvi_fixtures.py`` wrote them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import countvi
from countvi.batch import RNA
from countvi.errors import FileFormatError, MismatchError, OptionError
from countvi.io import load_scvi_tools

FOLDER = Path(__file__).parent / "deconvolution"
RTOL, ATOL = 1e-4, 1e-6
"""Agreement in float32."""

pytestmark = pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")


@dataclass
class Case:
    """A fixture: our model with their weights, and what they computed."""

    model: Any
    adata: anndata.AnnData
    expected: dict[str, np.ndarray]
    arguments: dict[str, Any]


def read(name: str) -> tuple[anndata.AnnData, dict[str, np.ndarray], dict[str, Any]]:
    with np.load(FOLDER / name / "expected.npz", allow_pickle=False) as file:
        expected = {key: file[key] for key in file.files}
    obs = pd.DataFrame({k.removeprefix("obs_"): v for k, v in expected.items() if k.startswith("obs_")})
    obs.index = [f"cell{i}" for i in range(len(expected["counts"]))]
    adata = anndata.AnnData(expected["counts"], obs=obs, var=pd.DataFrame(index=expected["var_names"].astype(str)))
    arguments = json.loads(str(expected["case"]))
    if arguments["counts_in"] != "X":
        adata.layers[arguments["counts_in"]] = adata.X
        adata.X = np.zeros_like(adata.X)
    return adata, expected, arguments


def load(name: str) -> Case:
    adata, expected, arguments = read(name)
    return Case(load_scvi_tools(FOLDER / name, adata), adata, expected, arguments)


def close(mine: Any, theirs: np.ndarray) -> None:
    mine = mine.detach().numpy() if isinstance(mine, torch.Tensor) else np.asarray(mine)
    np.testing.assert_allclose(mine, theirs, rtol=RTOL, atol=ATOL)


CELLS = sorted(path.name for path in FOLDER.iterdir() if path.name.startswith("c"))
SPOTS = sorted(path.name for path in FOLDER.iterdir() if path.name.startswith("d"))


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    case = load(name)
    model, expected = case.model, case.expected
    assert type(model) is countvi.CondSCVI
    loc, variance = model.get_latent_representation(return_dist=True)
    close(loc, expected["qz_mean"])
    close(variance, expected["qz_var"])
    batch = model.dataset.batch(np.arange(case.adata.n_obs))
    with torch.no_grad():
        q, p = model.module.guide(batch), model.module.prior(batch.design)
        latents = type(q)(gamma=q.gamma.loc, log_library=q.log_library.value)
        likelihood = model.module.generate(latents, batch.design)[RNA]
        close(likelihood.mean, expected["mean"])
        close(likelihood.theta.expand(likelihood.mean.shape), expected["theta"])
        close(-likelihood.log_prob(batch.counts[RNA]), expected["reconstruction_loss"])
        if "kl" in expected:
            close(q.gamma.kl(p.gamma), expected["kl"])
    prior = model.get_vamp_prior(p=4)
    for part in ("mean", "var", "weights"):
        close(prior[f"{part}_vprior"], expected[f"vprior_{part}"])


@pytest.mark.parametrize("name", CELLS)
def test_a_loaded_reference_trains_on_and_deconvolves(name):
    case = load(name)
    before = case.model.get_elbo()
    case.model.train(2, enable_progress_bar=False)
    assert np.isfinite(case.model.get_elbo()) and case.model.get_elbo() != before
    slide = anndata.AnnData(case.expected["counts"], obs=case.adata.obs[[]], var=case.adata.var)
    countvi.DestVI.setup_anndata(slide)
    if name.startswith("c2"):
        with pytest.raises(OptionError, match=r"1\.4\.1"):
            countvi.DestVI.from_rna_model(slide, case.model)
    else:
        spatial = countvi.DestVI.from_rna_model(slide, case.model, vamp_prior_p=4)
        spatial.train(2, enable_progress_bar=False)
        np.testing.assert_allclose(spatial.get_proportions().sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", SPOTS)
def test_spots(name):
    case = load(name)
    model, expected = case.model, case.expected
    assert type(model) is countvi.DestVI and model.options.amortization == case.arguments["init"]["amortization"]
    close(model.get_proportions(), expected["proportions"])
    close(model.get_proportions(keep_noise=True, normalize=False), expected["abundances"])
    close(model.get_gamma(return_numpy=True), expected["gamma"])
    for index, label in enumerate(model.cell_types):
        close(model.get_scale_for_ct(label), expected[f"scale_{index}"])
    close(model.get_reconstruction_error(return_mean=False)["reconstruction_loss"], expected["reconstruction_loss"])
    with torch.no_grad():
        close(sum(model.module.penalty().values()), expected["penalty"])
        elbo = model.module.elbo(model.dataset.batch(np.arange(case.adata.n_obs)))
    close(elbo.kl["gamma"], expected["kl"])


def test_spots_are_those_of_the_file():
    adata, *_ = read("d1_none")
    with pytest.raises(MismatchError, match="24 spots"):
        load_scvi_tools(FOLDER / "d1_none", adata[:5].copy())
    model = load_scvi_tools(FOLDER / "d1_none")
    with pytest.raises(MismatchError, match="no data"):
        model.get_proportions()
    # Those of a network can be any.
    both = load_scvi_tools(FOLDER / "d1_both", adata[:5].copy())
    assert both.get_proportions().shape == (5, 3)


def test_the_later_spatial_generation_is_refused(monkeypatch):
    from countvi import files

    archive = files.read_scvi_archive(FOLDER / "d1_none")
    archive.state["px_r"] = archive.state.pop("px_o")
    monkeypatch.setattr(files, "read_scvi_archive", lambda path: archive)
    with pytest.raises(FileFormatError, match=r"1\.4\.1 or later"):
        load_scvi_tools(FOLDER / "d1_none")
