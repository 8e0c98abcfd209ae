"""Write a model folder of the present format, and what the model in it computes, for ``test_golden.py``.

Run this only when ``countvi.files.manifest.FORMAT_VERSION`` changes: it writes a new folder, and those of older formats
stay as they are, because they prove that models saved by older versions can still be read. Run it for nothing else: if
``test_golden.py`` fails, the format has changed without a new version, or a model computes something else than before::

    PYTHONPATH=src python tests/files/make_golden.py
"""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import countvi
from countvi.files.manifest import FORMAT_VERSION

GOLDEN = Path(__file__).parent / "golden"
FIRST = "scvi_v1"
"""The data of the first format serve all later ones."""


def golden_data(name: str = FIRST) -> anndata.AnnData:
    """Thirty cells of twelve genes, with categories that are text, numbers and booleans."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        content = {key: file[key] for key in file.files}
    obs = pd.DataFrame({key.removeprefix("obs_"): value for key, value in content.items() if key.startswith("obs_")})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return anndata.AnnData(
        obs=obs,
        var=pd.DataFrame(index=content["var_names"].astype(str)),
        layers={"counts": sp.csr_matrix(content["counts"])},
    )


def read_outs(model: countvi.SCVI) -> dict[str, np.ndarray]:
    """Read-outs that take no random numbers."""
    loc, variance = model.get_latent_representation(return_dist=True)
    at_mean = {"use_z_mean": True, "return_numpy": True}
    return {
        "loc": loc,
        "variance": variance,
        "library": model.get_latent_library_size(),
        "expression": np.asarray(model.get_normalized_expression(**at_mean)),
        "rates": np.asarray(model.get_normalized_expression(library_size="latent", **at_mean)),
        "theta": model.get_likelihood_parameters()["dispersions"],
    }


def main() -> None:
    """Train, save, and write down what comes out."""
    adata = golden_data()
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
    model.train(3, batch_size=16, train_size=0.7, validation_size=0.2, enable_progress_bar=False)
    name = f"scvi_v{FORMAT_VERSION}"
    model.save(GOLDEN / name)
    split = {"train": model.train_indices, "validation": model.validation_indices, "test": model.test_indices}
    given = {
        "counts": adata.layers["counts"].toarray(),
        "var_names": adata.var_names.to_numpy().astype(str),
        **{f"obs_{key}": _storable(adata.obs[key]) for key in adata.obs},
    }
    np.savez_compressed(GOLDEN / f"{name}.npz", **given, **split, **read_outs(model))


def _storable(column: pd.Series) -> np.ndarray:
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


if __name__ == "__main__":
    main()
