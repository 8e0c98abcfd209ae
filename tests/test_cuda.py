"""Every model on a GPU, where there is one: it trains there, and what is read out there is what the CPU says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import countvi
from countvi.errors import TrainingWarning
from countvi.train import loop
from countvi.train.cuda_graph import CudaGraphSteps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

N_CELLS, N_GENES = 300, 40
GPU: dict[str, Any] = {"accelerator": "cuda", "enable_progress_bar": False, "batch_size": 64}
SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 4}


def cells(n_batches: int = 2) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, N_CELLS)
    rates = rng.gamma(1.0, 2.0, (2, N_GENES))[kind] * rng.lognormal(0, 0.3, (N_CELLS, 1))
    obs = pd.DataFrame(
        {"batch": [f"b{i % n_batches}" for i in range(N_CELLS)], "type": np.array(["T", "B"])[kind]},
        index=[f"c{i}" for i in range(N_CELLS)],
    )
    x = rng.poisson(rates).astype(np.float32)
    x[:, 0] += 1
    x[0] += 1
    adata = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    adata.obsm["protein"] = rng.poisson(rng.gamma(1.0, 9.0, (N_CELLS, 5))).astype(np.float32)
    return adata


def scvi(**options: Any) -> countvi.SCVI:
    adata = cells()
    countvi.SCVI.setup_anndata(adata, batch_key="batch", labels_key="type")
    return countvi.SCVI(adata, **SMALL, **options)


def totalvi() -> countvi.TOTALVI:
    adata = cells()
    countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    return countvi.TOTALVI(adata, **SMALL)


def missing_proteins() -> countvi.TOTALVI:
    adata = cells()
    adata.obsm["protein"][(adata.obs["batch"] == "b0").to_numpy(), 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
        return countvi.TOTALVI(adata, **SMALL)


def ambient(n_batches: int = 2) -> countvi.AmbientRegularizedSCVI:
    adata = cells(n_batches)
    countvi.AmbientRegularizedSCVI.setup_anndata(adata, batch_key="batch")
    return countvi.AmbientRegularizedSCVI(adata, **SMALL)


def multimodal() -> countvi.RegularizedMultimodalVI:
    mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
    with mudata.set_options(pull_on_update=False):
        second = cells()[40:].copy()
        second.var_names = [f"p{i}" for i in range(N_GENES)]
        mdata = mudata.MuData({"rna": cells(), "atac": second})
    mdata.obs["batch"] = cells().obs["batch"]
    countvi.RegularizedMultimodalVI.setup_mudata(mdata, batch_key="batch", modalities={"rna": "rna", "atac": "atac"})
    return countvi.RegularizedMultimodalVI(mdata)


def condscvi() -> countvi.CondSCVI:
    adata = cells()
    countvi.CondSCVI.setup_anndata(adata, labels_key="type")
    return countvi.CondSCVI(adata, **SMALL)


BUILD: dict[str, Callable[[], Any]] = {
    "nb": scvi,
    "zinb": lambda: scvi(gene_likelihood="zinb", dispersion="gene-batch"),
    "poisson": lambda: scvi(gene_likelihood="poisson"),
    "a dispersion per cell": lambda: scvi(dispersion="gene-cell"),
    "an inferred library": lambda: scvi(use_observed_lib_size=False),
    "logistic normal": lambda: scvi(latent_distribution="ln", n_layers=2),
    "proteins": totalvi,
    "missing proteins": missing_proteins,
    "ambient": ambient,
    "ambient, one batch": lambda: ambient(1),
    "two modalities": multimodal,
    "reference": condscvi,
}
RECORDED = {
    "nb",
    "zinb",
    "poisson",
    "a dispersion per cell",
    "an inferred library",
    "logistic normal",
    "proteins",
    "ambient",
    "ambient, one batch",
    "reference",
}


@pytest.mark.parametrize("name", BUILD)
def test_what_is_read_out_is_what_the_cpu_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    sizes: list[int] = []
    record = CudaGraphSteps._recorded

    def noted(self: CudaGraphSteps, size: int) -> Callable[[], None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            replay = record(self, size)
        sizes.append(size)
        said.extend(str(w.message) for w in caught if issubclass(w.category, TrainingWarning))
        return replay

    monkeypatch.setattr(CudaGraphSteps, "_recorded", noted)
    model = BUILD[name]()
    model.train(4, **GPU)
    assert model.device.type == "cuda"
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()
    if name in RECORDED:
        assert sizes and not said, "the steps were recorded"
    there = model.get_latent_representation()
    elbo = model.get_elbo(seed=0)
    model.to_device("cpu")
    if name != "logistic normal":  # the mean of which is one of draws, and a GPU draws other numbers
        np.testing.assert_allclose(there, model.get_latent_representation(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(elbo, model.get_elbo(seed=0), rtol=0.05)


def test_spots() -> None:
    reference = condscvi()
    reference.train(4, **GPU)
    slide = cells()
    countvi.DestVI.setup_anndata(slide)
    model = countvi.DestVI.from_rna_model(slide, reference)
    model.train(4, **GPU)
    assert model.device.type == "cuda"
    proportions = model.get_proportions()
    np.testing.assert_allclose(proportions.sum(1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded_steps_are_the_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = BUILD[name]()
    recorded.train(5, **GPU)
    prepare = loop._Run._record

    def one_by_one(run: loop._Run) -> CudaGraphSteps:
        steps = prepare(run)
        assert steps is not None
        steps._record = False
        return steps

    monkeypatch.setattr(loop._Run, "_record", one_by_one)
    by_step = BUILD[name]()
    by_step.train(5, **GPU)
    np.testing.assert_allclose(recorded.history["train_loss"], by_step.history["train_loss"], rtol=1e-5)
