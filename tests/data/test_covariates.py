"""Covariate roles: what a user says, and which columns a model then reads."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import anndata
import numpy as np
import pytest
from tests.data.set_up import set_up, set_up_by_role

from countvi.batch import Factor
from countvi.data import ROLES, Column, Covariates, Registry, bind
from countvi.errors import DataError, DataWarning, FileFormatError, MismatchError, OptionError, UnknownNameError

ALL: dict[str, Any] = {
    "ambient_covariate_keys": ["batch", "donor"],
    "nn_conditioning_covariate_keys": ["plate", "donor"],
    "nn_continuous_covariate_keys": ["age"],
    "feature_scaling_covariate_keys": ["plate"],
    "dispersion_key": "donor",
    "library_size_key": "batch",
    "labels_key": "cell_type",
}

OF_THE_BATCH: dict[str, Any] = {"ambient": (0,), "dispersion": 0, "library": 0}


@pytest.fixture
def adata(adata: anndata.AnnData) -> anndata.AnnData:
    adata.obs["plate"] = np.array(["p1", "p2"])[np.arange(23) // 12]
    return adata


def test_each_column_is_stored_once_and_serves_several_roles(adata: anndata.AnnData) -> None:
    registry = set_up_by_role(adata, **ALL)
    assert registry.columns == (
        Column(None, (0,)),
        Column("cell_type", ("T", "B")),
        Column("batch", ("a", "b", "c")),
        Column("donor", (0, 1, 2, 3)),
        Column("plate", ("p1", "p2")),
    )
    assert registry.covariates == Covariates(
        ambient=(2, 3), conditioning=(4, 3), scaling=(4,), dispersion=3, library=2, encoder=()
    )
    assert registry.factors(registry.covariates.ambient) == (Factor(2, 3), Factor(3, 4))
    assert registry.factor(registry.covariates.dispersion) == Factor(3, 4)
    assert registry.continuous_keys == ("age",)
    codes = bind(adata, registry).codes.numpy()
    cell = np.arange(23)
    np.testing.assert_array_equal(codes[:, 2], np.array([1, 0, 2])[cell % 3])
    np.testing.assert_array_equal(codes[:, 3], cell % 4)
    np.testing.assert_array_equal(codes[:, 4], cell // 12)


def test_the_batch_fans_out(adata: anndata.AnnData) -> None:
    registry = set_up_by_role(adata, batch_key="batch", nn_conditioning_covariate_keys=["donor", "batch"])
    assert [column.key for column in registry.columns] == ["batch", None, "donor"]
    assert registry.covariates == Covariates(ambient=(0,), conditioning=(2, 0), scaling=(), dispersion=0, library=0)
    assert registry.batch == Factor(0, 3)


def test_without_any_key_all_cells_are_one_group(adata: anndata.AnnData) -> None:
    registry = set_up_by_role(adata)
    covariates = registry.covariates
    assert registry.factors(covariates.ambient) == (Factor(0, 1),)
    assert registry.factor(covariates.dispersion) == registry.factor(covariates.library) == Factor(0, 1)
    assert covariates.conditioning == covariates.scaling == covariates.encoder == ()


def test_what_is_left_out_is_one_group(adata: anndata.AnnData) -> None:
    registry = set_up_by_role(adata, ambient_covariate_keys=["donor"])
    assert registry.covariates == Covariates(ambient=(2,), dispersion=0, library=0)
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
def test_the_batch_and_what_it_stands_for_are_two_ways(adata: anndata.AnnData, clash: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        set_up_by_role(adata, batch_key="batch", **clash)
    assert isinstance(error.value, OptionError)
    text = str(error.value)
    assert f"batch_key='batch' is given together with {' and '.join(clash)}" in text
    assert "two ways: batch_key alone" in text
    assert "or ambient_covariate_keys, dispersion_key, library_size_key by themselves" in text


def test_the_encoder_sees_counts_only_unless_asked(adata: anndata.AnnData) -> None:
    for quiet in (False, None, []):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert set_up_by_role(adata, encoder_covariate_keys=quiet).covariates == Covariates(**OF_THE_BATCH)
    with pytest.warns(DataWarning, match=r"encoder_covariate_keys=\['donor'\].*into the cell state"):
        registry = set_up_by_role(adata, encoder_covariate_keys=["donor"])
    assert registry.covariates == Covariates(**OF_THE_BATCH, encoder=(2,))


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
def test_keys_that_cannot_be(adata: anndata.AnnData, keys: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        set_up_by_role(adata, **keys)


@pytest.mark.parametrize("argument", [name for name in ALL if name != "batch_key"])
def test_unknown_columns(adata: anndata.AnnData, argument: str) -> None:
    wrong = ["Donorr"] if isinstance(ALL[argument], list) else "Donorr"
    with pytest.raises(UnknownNameError, match=rf"{argument}: adata\.obs has no column 'Donorr'.*Did you mean 'donor'"):
        set_up_by_role(adata, **{argument: wrong})


def test_a_registry_survives_json_with_what_was_asked_for(adata: anndata.AnnData) -> None:
    registry = set_up_by_role(adata, batch_key="batch", nn_conditioning_covariate_keys=["donor"])
    again = Registry.from_json(json.loads(json.dumps(registry.to_json(), allow_nan=False)))
    assert again == registry
    # As given, before the batch fanned out: setting up with these arguments again is possible.
    given = {name: value for name, value in again.setup_args.items() if name != "layer"}
    assert given["ambient_covariate_keys"] is None
    assert set_up_by_role(adata, **given) == registry


def test_labels_that_nothing_reads_need_not_be_there(adata: anndata.AnnData) -> None:
    registry = set_up_by_role(adata, labels_key="cell_type", batch_key="batch")
    query = adata.copy()
    query.obs["cell_type"] = "unheard of"
    assert bind(query, registry, ROLES - {"labels"}).codes[:, 1].tolist() == [0] * 23
    with pytest.raises(MismatchError, match="unheard of"):
        bind(query, registry)
    # A column of labels that has a role besides is read for its sake.
    registry = set_up_by_role(adata, labels_key="cell_type", dispersion_key="cell_type")
    assert registry.covariates == Covariates(ambient=(0,), dispersion=1, library=0)
    with pytest.raises(MismatchError, match="unheard of"):
        bind(query, registry, ROLES - {"labels"})


def test_roles_of_a_column() -> None:
    covariates = Covariates(ambient=(0, 2), conditioning=(2,), dispersion=2, library=3)
    assert covariates.of(0) == ("batch", "ambient")
    assert covariates.of(1) == ("labels",)
    assert covariates.of(2) == ("ambient", "conditioning", "dispersion")
    assert covariates.of(3) == ("library",)
    assert [covariates.name(i) for i in range(4)] == ["batch", "labels", "covariate", "covariate"]
    assert [covariates.serves(i) for i in range(3)] == ["ambient", "labels", "ambient, conditioning, dispersion"]
    assert set(ROLES) == {field.name for field in dataclasses.fields(Covariates)}


def test_a_column_that_is_named_twice_is_stored_once(adata: anndata.AnnData) -> None:
    registry = set_up(adata, labels_key="cell_type", categorical_covariate_keys=["donor", "cell_type"])
    assert [column.key for column in registry.columns] == [None, "cell_type", "donor"]
    assert registry.covariates == Covariates(categorical=(2, 1))
    query = adata.copy()
    query.obs["cell_type"] = "unheard of"
    with pytest.raises(MismatchError, match=r"obs\['cell_type'\] \(labels\)"):  # read, as networks see it
        bind(query, registry, ROLES - {"labels"})


def test_a_role_of_a_later_version_is_refused_by_name() -> None:
    values = Covariates(categorical=(2,)).to_json()
    assert Covariates.from_json({"categorical": values["categorical"]}) == Covariates(categorical=(2,))
    with pytest.raises(FileFormatError, match="a role not known here, 'weather': upgrade countvi"):
        Covariates.from_json({**values, "weather": [2]})
