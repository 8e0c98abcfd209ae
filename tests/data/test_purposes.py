"""Covariates by purpose: what a user says, and which columns a model then reads."""

from __future__ import annotations

import json
import warnings
from typing import Any

import anndata
import numpy as np
import pytest

from countvi.batch import Factor
from countvi.data import Column, CovariateKeys, Purposes, Registry, bind, setup_anndata, setup_by_purpose
from countvi.errors import DataError, DataWarning, MismatchError, OptionError, UnknownNameError

ALL: dict[str, Any] = {
    "ambient_covariate_keys": ["batch", "donor"],
    "nn_conditioning_covariate_keys": ["plate", "donor"],
    "nn_continuous_covariate_keys": ["age"],
    "feature_scaling_covariate_keys": ["plate"],
    "dispersion_key": "donor",
    "library_size_key": "batch",
    "labels_key": "cell_type",
}


@pytest.fixture
def adata(adata: anndata.AnnData) -> anndata.AnnData:
    adata.obs["plate"] = np.array(["p1", "p2"])[np.arange(23) // 12]
    return adata


def test_each_column_is_stored_once_and_serves_several_purposes(adata: anndata.AnnData) -> None:
    registry = setup_by_purpose(adata, CovariateKeys(**ALL))
    assert registry.columns == (
        Column("batch", None, (0,)),
        Column("labels", "cell_type", ("T", "B")),
        Column("covariate", "batch", ("a", "b", "c")),
        Column("covariate", "donor", (0, 1, 2, 3)),
        Column("covariate", "plate", ("p1", "p2")),
    )
    assert registry.purposes == Purposes(
        ambient=(2, 3), conditioning=(4, 3), scaling=(4,), dispersion=3, library=2, encoder=()
    )
    assert registry.factors(registry.purposes.ambient) == (Factor(2, 3), Factor(3, 4))
    assert registry.factor(registry.purposes.dispersion) == Factor(3, 4)
    assert registry.continuous_keys == ("age",)
    codes = bind(adata, registry).codes.numpy()
    cell = np.arange(23)
    np.testing.assert_array_equal(codes[:, 2], np.array([1, 0, 2])[cell % 3])
    np.testing.assert_array_equal(codes[:, 3], cell % 4)
    np.testing.assert_array_equal(codes[:, 4], cell // 12)


def test_the_batch_fans_out(adata: anndata.AnnData) -> None:
    keys = CovariateKeys(batch_key="batch", nn_conditioning_covariate_keys=["donor", "batch"])
    registry = setup_by_purpose(adata, keys)
    assert [column.key for column in registry.columns] == ["batch", None, "donor"]
    assert registry.purposes == Purposes(ambient=(0,), conditioning=(2, 0), scaling=(), dispersion=0, library=0)
    assert registry.batch == Factor(0, 3)


def test_without_any_key_all_cells_are_one_group(adata: anndata.AnnData) -> None:
    registry = setup_by_purpose(adata, CovariateKeys())
    purposes = registry.purposes
    assert purposes is not None
    assert registry.factors(purposes.ambient) == (Factor(0, 1),)
    assert registry.factor(purposes.dispersion) == registry.factor(purposes.library) == Factor(0, 1)
    assert purposes.conditioning == purposes.scaling == purposes.encoder == ()


def test_what_is_left_out_is_one_group(adata: anndata.AnnData) -> None:
    registry = setup_by_purpose(adata, CovariateKeys(ambient_covariate_keys=["donor"]))
    assert registry.purposes == Purposes(ambient=(2,), dispersion=0, library=0)
    assert registry.batch.n_levels == 1


@pytest.mark.parametrize(
    "clash",
    [
        {"ambient_covariate_keys": ["donor"]},
        {"ambient_covariate_keys": []},
        {"dispersion_key": "donor"},
        {"library_size_key": "batch"},
        {"dispersion_key": "donor", "library_size_key": "donor"},
    ],
    ids=str,
)
def test_the_batch_and_what_it_stands_for_are_two_ways(clash: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        CovariateKeys(batch_key="batch", **clash)
    assert isinstance(error.value, OptionError)
    text = str(error.value)
    assert f"batch_key='batch' is given together with {' and '.join(clash)}" in text
    assert "two ways: batch_key alone" in text
    assert "or ambient_covariate_keys, dispersion_key, library_size_key by themselves" in text


def test_the_encoder_sees_counts_only_unless_asked(adata: anndata.AnnData) -> None:
    for quiet in (False, None, []):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert setup_by_purpose(adata, CovariateKeys(encoder_covariate_keys=quiet)).purposes == Purposes()
    with pytest.warns(DataWarning, match=r"encoder_covariate_keys=\['donor'\].*into the cell state"):
        keys = CovariateKeys(encoder_covariate_keys=["donor"])
    assert setup_by_purpose(adata, keys).purposes == Purposes(encoder=(2,))


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"ambient_covariate_keys": "donor"}, OptionError, r"ambient_covariate_keys must be a list.*Write \['donor'\]"),
        (
            {"encoder_covariate_keys": True},
            OptionError,
            "encoder_covariate_keys must be a list of column names; got True",
        ),
        ({"nn_conditioning_covariate_keys": [1]}, OptionError, r"must be a list of column names; got \[1\]"),
        ({"dispersion_key": ["donor"]}, OptionError, r"dispersion_key must be the name of one column.*\['donor'\]"),
        ({"ambient_covariate_keys": ["donor", "donor"]}, DataError, "names 'donor' more than once"),
        (
            {"nn_continuous_covariate_keys": ["donor"], "dispersion_key": "donor"},
            DataError,
            "'donor' is named in nn_continuous_covariate_keys and also as a categorical",
        ),
    ],
)
def test_keys_that_cannot_be(keys: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        CovariateKeys(**keys)


@pytest.mark.parametrize("argument", [name for name in ALL if name != "batch_key"])
def test_unknown_columns(adata: anndata.AnnData, argument: str) -> None:
    wrong = ["Donorr"] if isinstance(ALL[argument], list) else "Donorr"
    with pytest.raises(UnknownNameError, match=rf"{argument}: adata\.obs has no column 'Donorr'.*Did you mean 'donor'"):
        setup_by_purpose(adata, CovariateKeys(**{argument: wrong}))


def test_a_registry_survives_json_with_what_was_asked_for(adata: anndata.AnnData) -> None:
    registry = setup_by_purpose(adata, CovariateKeys(batch_key="batch", nn_conditioning_covariate_keys=["donor"]))
    again = Registry.from_json(json.loads(json.dumps(registry.to_json(), allow_nan=False)))
    assert again == registry
    # As given, before the batch fanned out: setting up with these arguments again is possible.
    given = {name: value for name, value in again.setup_args.items() if name != "layer"}
    assert given["ambient_covariate_keys"] is None
    assert setup_by_purpose(adata, CovariateKeys(**given)) == registry


def test_registries_of_before_can_be_read(adata: anndata.AnnData) -> None:
    values = setup_anndata(adata, batch_key="batch").to_json()
    del values["purposes"]
    for modality in values["modalities"]:
        del modality["part"], modality["feature_type"]
    assert Registry.from_json(values) == setup_anndata(adata, batch_key="batch")


def test_labels_that_nothing_reads_need_not_be_there(adata: anndata.AnnData) -> None:
    registry = setup_by_purpose(adata, CovariateKeys(labels_key="cell_type", batch_key="batch"))
    query = adata.copy()
    query.obs["cell_type"] = "unheard of"
    assert bind(query, registry, {"labels"}).codes[:, 1].tolist() == [0] * 23
    with pytest.raises(MismatchError, match="unheard of"):
        bind(query, registry)
    # A column of labels that serves a purpose besides is read for its sake.
    registry = setup_by_purpose(adata, CovariateKeys(labels_key="cell_type", dispersion_key="cell_type"))
    assert registry.purposes == Purposes(dispersion=1)
    with pytest.raises(MismatchError, match="unheard of"):
        bind(query, registry, {"labels"})


def test_names_of_purposes() -> None:
    purposes = Purposes(ambient=(0, 2), conditioning=(2,), dispersion=2, library=3)
    assert purposes.of(0) == ("ambient",)
    assert purposes.of(1) == ()
    assert purposes.of(2) == ("ambient", "conditioning", "dispersion")
    assert purposes.of(3) == ("library",)
