"""Continuous covariates in their own units."""

from __future__ import annotations

import json
from typing import Any

import anndata
import numpy as np
import pytest
from tests.data.set_up import set_up

import countvi
from countvi.data import Registry, bind

SETUP = {"continuous_covariate_keys": ["age"]}


@pytest.mark.parametrize("unit", [(1.0, 0.0), (900.0, 3000.0), (1.0, 1.7e9)], ids=["years", "genes", "seconds"])
def test_the_unit_makes_no_difference(adata: anndata.AnnData, unit: tuple[float, float]) -> None:
    age = adata.obs["age"].to_numpy()
    expected = (age - age.mean()) / age.std()
    adata.obs["age"] = age * unit[0] + unit[1]
    found = bind(adata, set_up(adata, **SETUP)).continuous
    np.testing.assert_allclose(found.numpy()[:, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0, 7, 0.1, 1e30])
def test_a_constant_is_zero(adata: anndata.AnnData, value: float) -> None:
    adata.obs["age"] = value
    found = bind(adata, set_up(adata, **SETUP)).continuous.numpy()
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1e-12 * max(1, value)).all()


def test_a_query_is_measured_by_the_reference(adata: anndata.AnnData) -> None:
    registry = set_up(adata, **SETUP)
    age = adata.obs["age"].to_numpy()
    query = adata[:4].copy()
    query.obs["age"] = [100.0, 200.0, 300.0, 400.0]
    again = Registry.from_json(json.loads(json.dumps(registry.to_json())))
    expected = (query.obs["age"].to_numpy() - age.mean()) / age.std()
    np.testing.assert_allclose(bind(query, again).continuous.numpy()[:, 0], expected, rtol=1e-6)


def test_a_registry_without_moments_uses_values_as_they_are(adata: anndata.AnnData) -> None:
    values = set_up(adata, **SETUP).to_json()
    del values["continuous_moments"]
    found = bind(adata, Registry.from_json(values)).continuous.numpy()[:, 0]
    np.testing.assert_array_equal(found, adata.obs["age"].to_numpy(np.float32))


def test_models_in_two_units_are_one(adata: anndata.AnnData, capsys: Any) -> None:
    """A power of two as the unit, so that the standardised values are the same to the bit."""
    latent = []
    for unit in (1.0, 4096.0):
        adata.obs["age"] = np.arange(adata.n_obs) * 0.5 * unit
        countvi.SCVI.setup_anndata(adata, **SETUP)
        model = countvi.SCVI(adata, n_hidden=8, n_latent=2, encode_covariates=True)
        model.train(2, enable_progress_bar=False)
        latent.append(model.get_latent_representation())
    np.testing.assert_array_equal(*latent)
    model.view_anndata_setup()
    told = " ".join(capsys.readouterr().out.split())
    age = adata.obs["age"]
    assert f"standardised by its mean {age.mean():.6g} and standard deviation {age.std(ddof=0):.6g}" in told
