from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from countvi.data import Split, make_split, split_from_indices
from countvi.errors import OptionError


def sizes(split: Split) -> tuple[int, int, int]:
    return len(split.train), len(split.validation), len(split.test)


@pytest.mark.parametrize(
    ("n_cells", "train", "validation", "expected"),
    [
        (100, 0.9, None, (90, 10, 0)),
        (100, 0.8, 0.1, (80, 10, 10)),
        (100, 1.0, None, (100, 0, 0)),
        (100, 0.5, 0.0, (50, 0, 50)),
        (100, 0.07, 0.07, (7, 7, 86)),  # 0.07 * 100 is above 7 in floating point
        (100, 0.29, 0.57, (29, 57, 14)),  # 0.29 * 100 and 0.57 * 100 are below 29 and 57
        (11, 0.9, 0.1, (10, 1, 0)),
        (3, 0.9, None, (3, 0, 0)),
        (2, 0.5, None, (1, 1, 0)),
        (1, 0.9, None, (1, 0, 0)),
        (1, 0.1, 0.9, (1, 0, 0)),
        (2, 0.01, 0.99, (1, 1, 0)),
    ],
)
def test_sizes(n_cells: int, train: float, validation: float | None, expected: tuple[int, int, int]) -> None:
    assert sizes(make_split(n_cells, train_size=train, validation_size=validation, seed=0)) == expected


@given(
    n_cells=st.integers(1, 300),
    train=st.floats(0.001, 1),
    share=st.none() | st.floats(0, 1),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_cell_is_in_one_set(n_cells: int, train: float, share: float | None, shuffle: bool, seed: int) -> None:
    validation = None if share is None else share * (1 - train)
    split = make_split(n_cells, train_size=train, validation_size=validation, shuffle=shuffle, seed=seed)
    together = np.concatenate([split.train, split.validation, split.test])
    assert sorted(together.tolist()) == list(range(n_cells))
    assert len(split.train) >= 1
    for rows in (split.train, split.validation, split.test):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    if validation is None:
        assert len(split.test) == 0


def test_the_seed_decides() -> None:
    one, same, other = (make_split(200, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.train, same.train)
    np.testing.assert_array_equal(one.validation, same.validation)
    assert set(one.validation) != set(other.validation)


def test_cells_are_drawn_evenly() -> None:
    times = np.zeros(20)
    for seed in range(2000):
        times[make_split(20, train_size=0.75, seed=seed).validation] += 1
    # Each count is Binomial(2000, 1/4): mean 500, standard deviation 19.4.
    assert np.abs(times - 500).max() < 5 * 19.4


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make_split(50, seed=3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_without_shuffling() -> None:
    split = make_split(10, train_size=0.5, validation_size=0.3, shuffle=False, seed=0)
    assert split.train.tolist() == [0, 1, 2, 3, 4]
    assert split.validation.tolist() == [5, 6, 7]
    assert split.test.tolist() == [8, 9]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_cells": 0}, "at least one cell to split; got 0"),
        ({"train_size": 0}, "train_size must be above 0 and at most 1; got 0"),
        ({"train_size": 1.1}, "train_size must be above 0 and at most 1; got 1.1"),
        ({"train_size": float("nan")}, "train_size must be .* got nan"),
        ({"validation_size": -0.1}, "validation_size must be between 0 and 1.*got -0.1"),
        ({"validation_size": float("nan")}, "validation_size must be .* got nan"),
        ({"train_size": 0.9, "validation_size": 0.2}, r"must be at most 1; got 0\.9 \+ 0\.2"),
    ],
)
def test_sizes_out_of_range(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make_split(**{"n_cells": 10, "seed": 0, **arguments})


def test_sizes_that_sum_to_one_in_floating_point() -> None:
    assert sizes(make_split(10, train_size=0.7, validation_size=0.3 + 1e-16, seed=0)) == (7, 3, 0)


def test_given_indices() -> None:
    split = split_from_indices(6, [4, 0], np.array([5], dtype=np.int32), np.array([0, 1, 0, 0, 0, 0], dtype=bool))
    assert split.train.tolist() == [0, 4]
    assert split.validation.tolist() == [5]
    assert split.test.tolist() == [1]
    assert split.train.dtype == split.validation.dtype == split.test.dtype == np.int64
    assert sizes(split_from_indices(6, range(6))) == (6, 0, 0)
    assert sizes(split_from_indices(6, [1], [], [])) == (1, 0, 0)


@pytest.mark.parametrize(
    ("train", "validation", "test", "words"),
    [
        ([], [1], None, "at least one training cell"),
        ([0, 0, 1], None, None, r"train indices name 1 cells more than once \(first: 0\)"),
        ([0], [6], None, "validation indices must be between 0 and 5; got 6"),
        ([0], None, [-1], "test indices must be between 0 and 5; got -1"),
        ([0, 1, 2], [1, 2], None, r"train and validation indices share 2 cells \(first: 1\)"),
        ([0], [1], [1], "validation and test indices share 1 cells"),
        ([0], [1], [0], "train and test indices share 1 cells"),
        ([0.0], None, None, "list of row numbers or a boolean mask of length 6; got float64"),
        ([[0]], None, None, r"of shape \(1, 1\)"),
        ([True, False], None, None, "boolean mask of length 6; got bool"),
    ],
)
def test_indices_that_are_no_split(train: Any, validation: Any, test: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        split_from_indices(6, train, validation, test)
