"""Rows of tables by combination of levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from countvi.batch import Design, Factor
from countvi.nn.levels import ModalityTables, combinations, fill_levels_without_data, n_rows
from countvi.nn.linear import LevelTable

FACTORS = {
    "one": [Factor(0, 3)],
    "two": [Factor(0, 3), Factor(2, 4)],
    "reversed": [Factor(2, 4), Factor(0, 3)],
    "three, one of them with one level": [Factor(2, 4), Factor(1, 1), Factor(0, 3)],
    "one column twice": [Factor(0, 3), Factor(0, 3)],
}


def design(n_cells: int = 9, seed: int = 0) -> Design:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, n, n_cells) for n in (3, 1, 4)], axis=1)
    return Design(torch.as_tensor(codes), torch.zeros(n_cells, 0))


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("n_cells", [1, 9, 400])
def test_each_cell_finds_the_rows_of_its_levels(factors, n_cells):
    d = design(n_cells)
    found = combinations(d, factors)
    starts = np.cumsum([0, *(factor.n_levels for factor in factors)])
    assert n_rows(factors) == starts[-1]
    expected = [
        [start + int(row[factor.column]) for start, factor in zip(starts, factors, strict=False)] for row in d.codes
    ]
    np.testing.assert_array_equal(found.index[:, found.code].T, expected)
    # What belongs to a combination is computed once.
    assert found.index.shape == (len(factors), len({tuple(row) for row in expected}))


@pytest.mark.parametrize("factors", [[], [Factor(1, 1)], [Factor(1, 1), Factor(1, 1)]], ids=len)
def test_without_levels_there_is_one_row_for_all(factors):
    found = combinations(design(), factors)
    assert found.code is None
    assert found.index.tolist() == [[i] for i in range(max(1, len(factors)))]
    assert n_rows(factors) == max(1, len(factors))


def test_no_cells():
    found = combinations(design(0), FACTORS["two"])
    assert found.code.shape == (0,) and found.index.shape == (2, 0)


def test_levels_without_data_take_the_mean_of_the_others_of_their_covariate():
    batch, donor = Factor(0, 3), Factor(1, 2)
    table = LevelTable((donor, batch), 3)
    with torch.no_grad():
        table.weight.copy_(torch.arange(15.0).view(5, 3))
    before = table.weight.detach().clone()
    # The first column was learned nowhere, the second not of the middle level, the third of the last one only.
    lacking = torch.tensor([[True, False, True], [True, True, True], [True, False, False]])
    tables = ModalityTables(table, by_feature=True)
    fill_levels_without_data(tables, Factor(2, 3), lacking)
    assert torch.equal(table.weight, before), "a covariate that the table does not follow"
    fill_levels_without_data(tables, batch, lacking)
    expected = before.clone()
    expected[3, 1] = (7.0 + 13.0) / 2
    expected[2:4, 2] = 14.0
    assert torch.equal(table.weight, expected)


def test_units_are_learned_from_any_feature():
    table = LevelTable((Factor(0, 3),), 4)
    with torch.no_grad():
        table.weight.copy_(torch.arange(12.0).view(3, 4))
    expected = table.weight.detach().clone()
    expected[0, 1:3] = torch.tensor([7.0, 8.0])
    lacking = torch.tensor([[True, True], [False, True], [False, False]])
    fill_levels_without_data(ModalityTables(table, by_feature=False, columns=slice(1, 3)), Factor(0, 3), lacking)
    assert torch.equal(table.weight, expected)
