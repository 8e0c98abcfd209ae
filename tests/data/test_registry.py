from __future__ import annotations

import json

import numpy as np
import pytest

from countvi.batch import Factor
from countvi.data import Column, CountMatrix, Covariates, Moments, Registry
from countvi.errors import UnknownNameError


@pytest.fixture
def registry() -> Registry:
    return Registry(
        method="setup_anndata",
        setup_args={"layer": "counts", "batch_key": "batch", "categorical_covariate_keys": ["donor", "treated"]},
        modalities=(CountMatrix("rna", "layers/counts", ("g1", "g2")),),
        columns=(
            Column("batch", ("day 1", "day 2")),
            Column(None, (0,)),
            Column("donor", (0, 1, 7)),
            Column("treated", (False, True)),
            Column("dose", (0.5, 1.0)),
        ),
        covariates=Covariates(categorical=(2, 3, 4)),
        continuous_keys=("age",),
        continuous_moments=(Moments(41.5, 9.25),),
        size_factor_key="sf",
    )


def test_json_gives_the_registry_back_with_the_types_of_its_categories(registry: Registry) -> None:
    back = Registry.from_json(json.loads(json.dumps(registry.to_json(), allow_nan=False)))
    assert back == registry
    for ours, theirs in zip(registry.columns, back.columns, strict=True):
        assert [type(c) for c in ours.categories] == [type(c) for c in theirs.categories]


def test_factors(registry: Registry) -> None:
    assert registry.batch == Factor(0, 2)
    assert registry.labels == Factor(1, 1)
    assert registry.factors(registry.covariates.categorical) == (Factor(2, 3), Factor(3, 2), Factor(4, 2))
    assert registry.factor(registry.covariates.panel) == Factor(0, 2)  # nothing was given, so that of the batch


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        (0, "day 2", 1),
        (0, np.str_("day 1"), 0),
        (2, 7, 2),
        (2, np.int64(0), 0),
        (2, 7.0, 2),
        (3, np.True_, 1),
        (4, 1, 1),
    ],
)
def test_code_of_goes_by_value(registry: Registry, column: int, value: object, code: int) -> None:
    assert registry.code_of(column, value) == code


@pytest.mark.parametrize(("column", "value"), [(2, 3), (2, "7"), (2, True), (3, 1), (0, ["day 1"]), (0, None), (4, 0)])
def test_code_of_something_else(registry: Registry, column: int, value: object) -> None:
    with pytest.raises(UnknownNameError, match="is not a category of"):
        registry.code_of(column, value)


def test_code_of_says_what_could_have_been_meant(registry: Registry) -> None:
    with pytest.raises(UnknownNameError) as error:
        registry.code_of(0, "Day1")
    assert "'Day1' is not a category of obs['batch'] (batch)" in str(error.value)
    assert "the model knows 'day 1', 'day 2'" in str(error.value)
    assert "Did you mean 'day 1'" in str(error.value)


def test_code_of_a_covariate_that_was_not_given(registry: Registry) -> None:
    assert registry.code_of(1, 0) == 0
    with pytest.raises(UnknownNameError, match="set up without a labels key"):
        registry.code_of(1, "T cell")


def test_many_candidates_are_cut_short() -> None:
    registry = Registry("m", {}, (), (Column("sample", tuple(range(14))),))
    with pytest.raises(UnknownNameError, match="8, 9 and 4 more"):
        registry.code_of(0, 99)


def test_modality(registry: Registry) -> None:
    assert registry.modality("rna").n_features == 2
    with pytest.raises(UnknownNameError, match=r"no modality 'rnaa'; the model has 'rna'\. Did you mean 'rna'"):
        registry.modality("rnaa")
