from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from countvi.errors import FileFormatError
from countvi.files import DIGEST, FORMAT_VERSION, MIGRATIONS, Manifest


def make(**changes) -> Manifest:
    fields = {
        "model_class": "SCVI",
        "init_args": {"n_latent": 3, "dropout_rate": 0.1, "layers": [1, 2]},
        "registry": {"var_names": ["g0", "β-actin"], "batch": {"key": None}},
        "history": {"epoch": [0, 1], "elbo": [10.5, 9.25]},
        "split": True,
        "seed": 7,
        "versions": {"countvi": "0.1.0"},
        "data_fingerprint": "ab12",
        "is_trained": True,
        "created": "2026-01-01T00:00:00+00:00",
        "extra": {"note": "x"},
    }
    return Manifest(**{**fields, **changes})


def edited(change) -> str:
    values = json.loads(make().to_json())
    del values[DIGEST]  # as in manifests that were written without
    change(values)
    return json.dumps(values)


def test_round_trip():
    manifest = make()
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().seed = 3  # pyright: ignore


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_survives_as_ascii(extra):
    text = make(extra=extra).to_json()
    assert text.isascii()
    assert Manifest.from_json(text).extra == extra


def test_numpy_becomes_plain():
    manifest = make(
        seed=np.int64(3),
        is_trained=np.bool_(True),
        init_args={"a": np.float32(0.5), "b": (1, np.int8(2)), "c": np.array([[1, 2]]), "d": np.str_("x")},
        history={"epoch": np.arange(2), "elbo": np.array([1.5, 2.5], dtype=np.float32)},
    )
    back = Manifest.from_json(manifest.to_json())
    assert back.init_args == {"a": 0.5, "b": [1, 2], "c": [[1, 2]], "d": "x"}
    assert type(back.init_args["a"]) is float
    assert back.seed == 3
    assert back.is_trained is True
    assert back.history == {"epoch": [0, 1], "elbo": [1.5, 2.5]}


def test_non_finite_history_is_null():
    text = make(history={"elbo": [1.0, math.nan, np.float32("inf"), -math.inf]}).to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert Manifest.from_json(text).history == {"elbo": [1.0, None, None, None]}


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan")])
def test_non_finite_elsewhere_is_refused_by_name(value):
    with pytest.raises(FileFormatError, match=r"init_args\['depth'\]\[1\] is (nan|inf)"):
        make(init_args={"depth": [0.0, value]}).to_json()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"extra": {"x": {1, 2}}}, r"extra\['x'\].*got set"),
        ({"extra": {"x": b"bytes"}}, r"extra\['x'\].*got bytes"),
        ({"extra": {"x": object()}}, r"extra\['x'\].*got object"),
        ({"registry": {"codes": {3: "a"}}}, r"registry\['codes'\] must be text.*got 3 \(int\)"),
        ({"seed": 1.5}, "'seed'.*whole number.*got 1.5"),
        ({"history": {"a": [1], "b": [1, 2]}}, "'history'.*equal length"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(changes, named):
    with pytest.raises(FileFormatError, match=named):
        make(**changes).to_json()


FIELDS = [field.name for field in dataclasses.fields(Manifest)]


@pytest.mark.parametrize("field", [name for name in FIELDS if name != "format_version"])
def test_missing_field_is_named(field):
    with pytest.raises(FileFormatError, match=f"lacks the field '{field}'"):
        Manifest.from_json(edited(lambda values: values.pop(field)), where="here.json")


WRONG = {
    "model_class": 1,
    "init_args": [],
    "registry": "x",
    "history": {"a": 3},
    "split": 1,
    "seed": True,
    "versions": {"countvi": 1},
    "data_fingerprint": 3,
    "is_trained": None,
    "created": 0,
    "format_version": "1",
    "tensors": {"w": {"dtype": "float32"}},
    "tensors_sha256": None,
    "extra": None,
}


@pytest.mark.parametrize("field", FIELDS)
def test_wrong_type_is_named(field):
    text = edited(lambda values: values.update({field: WRONG[field]}))
    with pytest.raises(FileFormatError, match=f"Field '{field}' of here.json must be"):
        Manifest.from_json(text, where="here.json")


def test_unknown_field_is_named():
    with pytest.raises(FileFormatError, match="unknown field 'surprise'"):
        Manifest.from_json(edited(lambda values: values.update(surprise=1)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ('{"format": "countvi model", ', "not valid JSON"),
        ('{"format": "countvi model", "seed": NaN}', "NaN is not a JSON number"),
        ('{"format": "countvi model", "seed": 1, "seed": 2}', "'seed' twice"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not the manifest of a countvi model"),
        ('{"format_version": 1}', "not the manifest of a countvi model"),
    ],
)
def test_not_a_manifest(text, says):
    with pytest.raises(FileFormatError, match=says):
        Manifest.from_json(text)


def test_newer_format_says_who_wrote_it():
    def change(values):
        values.update(format_version=FORMAT_VERSION + 2, versions={"countvi": "9.1"}, unheard_of=[1])
        values.pop("registry")

    with pytest.raises(
        FileFormatError, match=r"written by countvi 9\.1, format 4; this countvi reads up to 2: upgrade"
    ):
        Manifest.from_json(edited(change))


def test_newer_format_of_unknown_writer():
    with pytest.raises(FileFormatError, match="written by countvi of unknown version, format 3"):
        Manifest.from_json(edited(lambda values: values.update(format_version=FORMAT_VERSION + 1, versions=None)))


def rename_class(values):
    values["model_class"] = values.pop("model")
    return values


def add_note(values):
    return {**values, "extra": {"came_through": values["model_class"]}}


def test_migrations_run_in_order():
    def make_old(values):
        values["model"] = values.pop("model_class")
        values["format_version"] = FORMAT_VERSION

    latest = FORMAT_VERSION + 2
    migrations = {FORMAT_VERSION: rename_class, FORMAT_VERSION + 1: add_note}
    manifest = Manifest.from_json(edited(make_old), migrations=migrations, latest=latest)
    assert manifest.format_version == latest
    assert manifest.model_class == "SCVI"
    assert manifest.extra == {"came_through": "SCVI"}


def test_current_manifest_is_not_migrated():
    def fail(values):
        raise AssertionError(values)

    assert Manifest.from_json(make().to_json(), migrations={FORMAT_VERSION - 1: fail, FORMAT_VERSION: fail}) == make()


def test_missing_migration():
    text = edited(lambda values: values.update(format_version=0))
    with pytest.raises(FileFormatError, match="format 0, which this countvi cannot bring up to format 2"):
        Manifest.from_json(text)


def test_migration_of_a_damaged_manifest():
    with pytest.raises(FileFormatError, match=r"not a whole manifest of format 2.*'model'"):
        Manifest.from_json(make().to_json(), migrations={FORMAT_VERSION: rename_class}, latest=FORMAT_VERSION + 1)


def test_every_older_version_has_a_migration():
    assert sorted(MIGRATIONS) == list(range(1, FORMAT_VERSION))


def test_covariates_of_the_first_format_get_roles():
    def of(words, **registry):
        columns = [{"role": word, "key": word, "categories": ["a"]} for word in words]
        values = {"columns": columns, "modalities": [{"name": "rna"}], **registry}
        text = edited(lambda manifest: manifest.update(format_version=1, registry=values))
        migrated = Manifest.from_json(text).registry
        assert migrated["columns"] == [{"key": word, "categories": ["a"]} for word in words]
        assert migrated["modalities"] == [
            {"name": "rna", "part": None, "feature_type": None, "names_key": None, "gaps": None}
        ]
        return migrated["covariates"]

    nothing = {"batch": 0, "labels": 1, "categorical": [], "panel": None, "ambient": [], "conditioning": []}
    nothing |= {"scaling": [], "dispersion": None, "library": None, "encoder": []}
    assert of(["batch", "labels"]) == nothing
    assert of(["batch", "labels", "categorical", "categorical", "panel"]) == {
        **nothing,
        "categorical": [2, 3],
        "panel": 4,
    }
    purposes = {"ambient": [2, 3], "conditioning": [3], "scaling": [], "dispersion": 0, "library": 2, "encoder": [1]}
    assert of(["batch", "labels", "covariate", "covariate"], purposes=purposes) == {**nothing, **purposes}


def test_a_damaged_manifest_of_the_first_format():
    text = edited(lambda values: values.update(format_version=1))
    with pytest.raises(FileFormatError, match=r"not a whole manifest of format 1.*'columns'"):
        Manifest.from_json(text)
