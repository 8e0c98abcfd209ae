"""The table of covariates that determine each other, against counting by hand."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import completeness_score

from countvi.data import Column, Covariates, Registry, confounding_table, warn_of_confounding
from countvi.errors import DataWarning

LABELS = 1


def make(columns: dict[str, Any], **roles: Any) -> tuple[np.ndarray, Registry]:
    """Codes and registry; the first column is the batch, the second the labels."""
    described, codes = [], []
    for key, values in columns.items():
        levels, code = np.unique(values, return_inverse=True)
        described.append(Column(None if key.startswith("no ") else key, tuple(levels.tolist())))
        codes.append(code)
    return np.stack(codes, 1), Registry("m", {}, (), tuple(described), Covariates(**roles))


def row(table: pd.DataFrame, key: str, other: str) -> pd.Series:
    found = table[(table["key"] == key) & (table["other"] == other)]
    assert len(found) == 1
    return found.iloc[0]


def random_columns(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sample = rng.integers(0, 6, 80)
    return {
        "sample": sample,
        "label": np.where(sample == 3, 7, rng.integers(0, 4, 80)),
        "site": sample // 2,
        "other": rng.integers(0, 3, 80),
    }


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_those_of_a_slow_count(seed: int) -> None:
    columns = random_columns(seed)
    table = confounding_table(*make(columns, conditioning=(2, 3)))
    assert len(table) == 4 * 3
    for key, a in columns.items():
        for other, b in columns.items():
            if key == other:
                continue
            found = row(table, key, other)
            alone = [len({y for x, y in zip(a, b, strict=True) if x == mine}) == 1 for mine in a]
            assert found["alone"] == pytest.approx(np.mean(alone))
            # Completeness: what the clustering ``b`` has of its entropy taken away by the classes ``a``.
            assert found["explained"] == pytest.approx(completeness_score(a, b), abs=1e-12)


def test_what_is_constant_or_not_given_is_left_out() -> None:
    codes, registry = make({"no batch": [0] * 4, "no labels": [0] * 4, "one": ["x"] * 4, "two": list("xxyy")})
    assert confounding_table(codes, registry).empty
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_confounding(confounding_table(codes, registry), "here")


def warning_of(columns: dict[str, Any], **roles: Any) -> str:
    with pytest.warns(DataWarning) as caught:
        warn_of_confounding(confounding_table(*make(columns, **roles)), "model.confounding")
    (warning,) = caught
    assert str(warning.message).startswith("Covariates are confounded: ")
    assert str(warning.message).endswith("(see model.confounding).")
    return str(warning.message)


def test_a_key_that_determines_the_label() -> None:
    text = warning_of({"batch": list("aabbcc"), "type": list("TTTTBB")})
    assert "each level of 'batch' has one level of 'type', so that correcting for 'batch' can remove 'type'" in text


def test_a_label_that_determines_a_key() -> None:
    text = warning_of({"batch": list("aaaabb"), "type": list("TTNNBB")})
    assert "no level of 'type' occurs in two levels of 'batch'" in text


def test_a_label_and_a_key_that_are_the_same() -> None:
    text = warning_of({"batch": list("aabb"), "type": list("TTBB")})
    assert text.count("divide the cells alike") == 1


def test_a_label_that_is_partly_alone_is_no_warning() -> None:
    table = confounding_table(*make({"batch": list("aaabbb"), "type": list("TTBTTT")}))
    found = row(table, "type", "batch")
    assert found["alone"] == pytest.approx(1 / 6)
    assert not table["problem"].any()
    assert found["meaning"] == "17% of the cells are of a level of 'type' that one level of 'batch' has to itself"


NESTED = {"no batch": [0] * 8, "no labels": [0] * 8, "sample": list("aabbccdd"), "site": list("xxxxyyyy")}


def test_backgrounds_of_nested_keys_cannot_be_told_apart() -> None:
    text = warning_of(NESTED, ambient=(2, 3))
    assert "levels of 'site' are groups of levels of 'sample', so that a background of 'site' cannot be told" in text
    assert text.count(";") == 0


@pytest.mark.parametrize(
    "roles",
    [{"ambient": (2,), "conditioning": (3,)}, {"conditioning": (2, 3)}, {"conditioning": (2, 3), "scaling": (2, 3)}],
    ids=str,
)
def test_other_nested_keys_are_told_but_not_warned_of(roles: dict[str, Any]) -> None:
    table = confounding_table(*make(NESTED, **roles))
    assert not table["problem"].any()
    assert row(table, "sample", "site")["meaning"] == "levels of 'site' are groups of levels of 'sample'"
    assert row(table, "site", "sample")["meaning"] == ""
    assert row(table, "sample", "site")["serves"] == ("ambient" if "ambient" in roles else ", ".join(roles))


def test_the_same_key_twice() -> None:
    columns = {**NESTED, "site": list("11223344")}
    text = warning_of(columns, conditioning=(2, 3))
    assert "'sample' and 'site' divide the cells alike and both serve conditioning; one is enough" in text
    assert text.count("one is enough") == 1
    assert not confounding_table(*make(columns, ambient=(2,), conditioning=(3,)))["problem"].any()


def test_only_some_pairs_are_named() -> None:
    columns = {"batch": list("aabb"), "type": list("TTBB"), **{f"k{i}": list("1122") for i in range(5)}}
    text = warning_of(columns, conditioning=tuple(range(2, 7)))
    n_problems = 1 + 5 + 10  # the batch and five keys with the labels; ten pairs of keys
    assert f"; and {n_problems - 3} more (see" in text


def test_levels_that_do_not_occur_do_not_matter() -> None:
    codes, registry = make({"batch": list("aabbc"), "type": list("TTBBT")})
    kept = codes[:4]
    assert row(confounding_table(kept, registry), "batch", "type")["alone"] == 1.0
    assert row(confounding_table(codes, registry), "type", "batch")["alone"] == pytest.approx(2 / 5)


def test_rows_come_in_the_order_of_the_columns() -> None:
    table = confounding_table(*make(random_columns(0)))
    order = {"sample": 0, "label": 1, "site": 2, "other": 3}
    pairs = [(order[key], order[other]) for key, other in zip(table["key"], table["other"], strict=True)]
    assert all(a < b for a, b in pairwise(pairs))
