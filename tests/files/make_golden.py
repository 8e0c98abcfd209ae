"""Write model folders of the present format, and what the models in them compute, for ``test_golden.py``.

Run this only when ``countvi.files.manifest.FORMAT_VERSION`` changes: it writes new folders, and those of older formats
stay as they are, because they prove that models saved by older versions can still be read. Run it for nothing else: if
``test_golden.py`` fails, the format has changed without a new version, or a model computes something else than before::

    PYTHONPATH=src python tests/files/make_golden.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import countvi
from countvi.files.manifest import FORMAT_VERSION

GOLDEN = Path(__file__).parent / "golden"
FIRST = "scvi_v1"
"""The data of the first format serve all later ones."""
SHORT = {"batch_size": 16, "train_size": 0.7, "validation_size": 0.2, "enable_progress_bar": False}
AT_MEAN = {"use_z_mean": True, "return_numpy": True}


def golden_data() -> anndata.AnnData:
    """Thirty cells of twelve genes, with categories that are text, numbers and booleans, and four proteins."""
    with np.load(GOLDEN / f"{FIRST}.npz", allow_pickle=False) as file:
        content = {key: file[key] for key in file.files}
    obs = pd.DataFrame({key.removeprefix("obs_"): value for key, value in content.items() if key.startswith("obs_")})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = content["counts"]
    proteins = 3.0 * counts[:, :4] + np.arange(30)[:, None] % 5
    proteins[obs["treated"], 2] = 0.0  # so it counts as not measured there
    names = ["P0", "P1", "P2", "P3"]
    return anndata.AnnData(
        obs=obs,
        var=pd.DataFrame(index=content["var_names"].astype(str)),
        layers={"counts": sp.csr_matrix(counts)},
        obsm={"protein": pd.DataFrame(proteins, index=obs.index, columns=names)},
    )


def of_both(adata: anndata.AnnData) -> Any:
    """The cells with the genes as one modality, and all but five of them with other features as another."""
    import mudata

    counts = sp.csr_matrix(adata.layers["counts"])
    rna = anndata.AnnData(counts, obs=adata.obs.copy(), var=adata.var.copy())
    peaks = pd.DataFrame(index=[f"chr1:{i}00-{i}50" for i in range(8)])
    atac = anndata.AnnData(counts[5:, :8].copy(), obs=adata.obs.iloc[5:][[]].copy(), var=peaks)
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": rna, "atac": atac})


def scvi(adata: anndata.AnnData) -> countvi.SCVI:
    """Every kind of covariate."""
    countvi.SCVI.setup_anndata(
        adata,
        layer="counts",
        batch_key="batch",
        labels_key="label",
        categorical_covariate_keys=["donor", "treated"],
        continuous_covariate_keys=["age"],
    )
    model = countvi.SCVI(
        adata,
        n_hidden=6,
        n_latent=3,
        n_layers=2,
        dispersion="gene-batch",
        use_observed_lib_size=False,
        latent_distribution="ln",
        encode_covariates=True,
        batch_representation="embedding",
    )
    model.train(3, **SHORT)
    return model


def mapped(adata: anndata.AnnData) -> countvi.SCVI:
    """Mapped onto a reference that lacks a donor."""
    reference = scvi(adata[adata.obs["donor"] != adata.obs["donor"].max()].copy())
    model = countvi.SCVI.load_query_data(adata, reference)
    model.train(2, **SHORT)
    return model


def totalvi(adata: anndata.AnnData) -> countvi.TOTALVI:
    """With panels, and a protein that one of them lacks."""
    countvi.TOTALVI.setup_anndata(
        adata,
        "protein",
        layer="counts",
        batch_key="batch",
        panel_key="treated",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
        labels_key="label",
    )
    model = countvi.TOTALVI(adata, n_latent=3, gene_dispersion="gene-label", n_hidden=6)
    model.train(3, **SHORT)
    return model


def condscvi(adata: anndata.AnnData) -> countvi.CondSCVI:
    """With types and batches."""
    countvi.CondSCVI.setup_anndata(adata, labels_key="label", layer="counts", batch_key="batch")
    model = countvi.CondSCVI(adata, n_hidden=6, n_latent=2, n_layers=1)
    model.train(3, **SHORT)
    return model


def destvi(adata: anndata.AnnData) -> countvi.DestVI:
    """The same cells as spots."""
    reference = condscvi(adata.copy())
    countvi.DestVI.setup_anndata(adata, layer="counts")
    model = countvi.DestVI.from_rna_model(adata, reference, vamp_prior_p=2)
    model.train(3, batch_size=16, enable_progress_bar=False)
    return model


ROLES = {
    "labels_key": "label",
    "ambient_covariate_keys": ["batch", "donor"],
    "nn_conditioning_covariate_keys": ["treated", "donor"],
    "nn_continuous_covariate_keys": ["age"],
    "dispersion_key": "donor",
    "library_size_key": "batch",
}


def ambient(adata: anndata.AnnData) -> countvi.AmbientRegularizedSCVI:
    """Every covariate role."""
    model_class = countvi.AmbientRegularizedSCVI
    scaling, encoder = ["treated"], ["batch"]
    model_class.setup_anndata(
        adata, layer="counts", feature_scaling_covariate_keys=scaling, encoder_covariate_keys=encoder, **ROLES
    )
    model = model_class(adata, n_hidden=6, n_latent=3)
    model.train(3, **SHORT)
    return model


def multimodal(adata: anndata.AnnData) -> countvi.RegularizedMultimodalVI:
    """Two modalities, one of which some cells lack."""
    mdata = of_both(adata)
    countvi.RegularizedMultimodalVI.setup_mudata(mdata, **ROLES)
    model = countvi.RegularizedMultimodalVI(mdata, n_hidden=6, n_latent=3)
    model.train(3, **SHORT)
    return model


CASES: dict[str, Callable[[anndata.AnnData], Any]] = {
    "scvi": scvi,
    "mapped": mapped,
    "totalvi": totalvi,
    "condscvi": condscvi,
    "destvi": destvi,
    "ambient": ambient,
    "multimodal": multimodal,
}


def read_outs(model: Any) -> dict[str, np.ndarray]:
    """Read-outs that take no random numbers."""
    if isinstance(model, countvi.DestVI):
        proportions, states = model.get_proportions(), model.get_gamma(return_numpy=True)
        return {"proportions": np.asarray(proportions), "loc": np.asarray(states)}
    loc, variance = model.get_latent_representation(return_dist=True)
    found: dict[str, Any] = {"loc": loc, "variance": variance}
    if isinstance(model, countvi.TOTALVI):
        found["library"] = model.get_latent_library_size()
        found["expression"] = model.get_normalized_expression(use_z_mean=True, return_numpy=True)
        found["foreground"] = np.asarray(model.get_protein_foreground_probability(use_z_mean=True))
    else:
        found["library"] = model.get_latent_library_size()
        found["expression"] = model.get_normalized_expression(**AT_MEAN)
        found["rates"] = model.get_normalized_expression(library_size="latent", **AT_MEAN)
    if isinstance(model, (countvi.AmbientRegularizedSCVI, countvi.RegularizedMultimodalVI)):
        found["theta"] = model.get_inverse_dispersion()
        found["background"] = model.get_background_profile()
        found["scaling"] = model.get_feature_scaling()
        found["ambient"] = model.get_ambient_fraction()
    elif isinstance(model, countvi.SCVI):
        found["theta"] = model.get_likelihood_parameters()["dispersions"]
    return dict(_arrays(found))


def _arrays(found: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """One entry for each array, of those of several modalities as well."""
    arrays = []
    for name, value in found.items():
        parts = dict(enumerate(value)) if isinstance(value, tuple) else value
        parts = parts if isinstance(parts, dict) else {"": parts}
        arrays += [(f"{name}{key}", np.asarray(part)) for key, part in parts.items()]
    return arrays


def main() -> None:
    """Train, save, and write down what comes out."""
    for case, train in CASES.items():
        name = f"{case}_v{FORMAT_VERSION}"
        if (GOLDEN / name).exists():
            continue
        model = train(golden_data())
        model.save(GOLDEN / name)
        split = {"train": model.train_indices, "validation": model.validation_indices, "test": model.test_indices}
        np.savez_compressed(GOLDEN / f"{name}.npz", **split, **read_outs(model))


if __name__ == "__main__":
    main()
