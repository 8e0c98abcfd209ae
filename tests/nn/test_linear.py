"""Covariates gathered from tables equal one-hot columns of one linear layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from countvi import seeding
from countvi.batch import CountBlock, Design, Factor
from countvi.nn.linear import CountInput, CovariateFeatures, LevelTable, Linear

FACTORS = {
    "none": [],
    "one": [Factor(0, 3)],
    "two": [Factor(0, 3), Factor(2, 4)],
    "reversed": [Factor(2, 4), Factor(0, 3)],
    "with one level": [Factor(1, 1), Factor(2, 4)],
    "one column twice": [Factor(0, 3), Factor(0, 3)],
}


def design(n_cells: int = 9, n_continuous: int = 2) -> Design:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, n, n_cells) for n in (3, 1, 4)], axis=1)
    continuous = torch.as_tensor(rng.normal(size=(n_cells, n_continuous)))
    return Design(codes=torch.as_tensor(codes), continuous=continuous)


def one_hots(d: Design, factors: list[Factor]) -> torch.Tensor:
    """Written with loops: cell by cell, covariate by covariate."""
    columns = []
    for factor in factors:
        if factor.n_levels == 1:
            continue
        codes = [int(code) for code in d.codes[:, factor.column]]
        columns += [[1.0 if code == level else 0.0 for code in codes] for level in range(factor.n_levels)]
    return torch.tensor(columns, dtype=torch.float64).reshape(-1, d.n_cells).T


def joined(layer: Linear) -> nn.Linear:
    """One linear layer with the same weights on ``[input, features, one-hot]``."""
    parts = [layer.weight]
    parts += [layer.features] if layer.features is not None else []
    parts += [layer.levels.weight.T] if layer.levels is not None else []
    weight = torch.cat(parts, dim=1).detach()
    plain = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(weight)
        plain.bias.copy_(layer.bias)
    return plain


@pytest.mark.parametrize("n_features", [0, 2])
@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_equals_one_linear_layer(factors, n_features):
    layer = Linear(5, 4, n_features, factors).double()
    d, x = design(), torch.randn(9, 5, dtype=torch.float64, generator=seeding.generator(1))
    features = d.continuous if n_features else None
    inputs = [x, *([features] if n_features else []), one_hots(d, factors)]
    torch.testing.assert_close(layer(x, features, d), joined(layer)(torch.cat(inputs, dim=1)))


@pytest.mark.parametrize("log1p", [True, False])
def test_sparse_counts_equal_dense(log1p):
    layer = Linear(7, 4, 2, [Factor(0, 3)]).double()
    d = design()
    x = torch.poisson(torch.full((9, 7), 0.7, dtype=torch.float64), generator=seeding.generator(2))
    x[3] = 0.0
    sparse = layer(CountInput([CountBlock.from_dense(x)], log1p), d.continuous, d)
    inputs = torch.cat([torch.log(1.0 + x) if log1p else x, d.continuous, one_hots(d, [Factor(0, 3)])], dim=1)
    torch.testing.assert_close(sparse, joined(layer)(inputs))


def test_samples_lead():
    layer = Linear(5, 4, 2, [Factor(0, 3)]).double()
    d, x = design(), torch.randn(6, 9, 5, dtype=torch.float64, generator=seeding.generator(1))
    out = layer(x, d.continuous, d)
    assert out.shape == (6, 9, 4)
    for sample in range(6):
        torch.testing.assert_close(out[sample], layer(x[sample], d.continuous, d))


def test_gradient_of_a_level_is_the_sum_over_its_cells():
    layer = Linear(5, 4, 0, [Factor(0, 3)]).double()
    d = design()
    upstream = torch.randn(9, 4, dtype=torch.float64, generator=seeding.generator(3))
    (layer(torch.zeros(9, 5, dtype=torch.float64), None, d) * upstream).sum().backward()
    for level in range(3):
        torch.testing.assert_close(layer.levels.weight.grad[level], upstream[d.codes[:, 0] == level].sum(0))


@pytest.mark.parametrize("n_features", [0, 2])
@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_initial_bound_counts_every_input(factors, n_features):
    n_inputs = 50 + n_features + sum(f.n_levels for f in factors if f.n_levels > 1)
    with seeding.forked(0):
        layer = Linear(50, 400, n_features, factors)
    bound = 1.0 / math.sqrt(n_inputs)
    for name, parameter in layer.named_parameters():
        top = parameter.abs().max().item()
        assert bound * 0.97 < top <= bound, name
        assert abs(parameter.mean().item()) < 5 * bound / math.sqrt(3 * parameter.numel()), name


def test_a_covariate_with_one_level_gives_no_parameter():
    layer = Linear(5, 4, 0, [Factor(1, 1)])
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    mixed = Linear(5, 4, 0, [Factor(1, 1), Factor(2, 4)])
    assert mixed.levels.weight.shape == (4, 4)


def test_level_table_sums_over_covariates():
    factors = [Factor(0, 3), Factor(2, 4)]
    table = LevelTable(factors, 5).double()
    with torch.no_grad():
        table.weight.copy_(torch.arange(35.0).view(7, 5))
    d = design()
    expected = torch.stack([table.weight[a] + table.weight[3 + c] for a, _, c in d.codes.tolist()])
    torch.testing.assert_close(table(d), expected)


def test_only_weights_are_saved():
    assert set(Linear(5, 4, 2, [Factor(0, 3)]).state_dict()) == {"weight", "bias", "features", "levels.weight"}


def test_covariate_features_side_by_side():
    embedded = CovariateFeatures(2, Factor(2, 4), n_embedding=3).double()
    d = design()
    out = embedded(d)
    assert embedded.n_features == 5 and out.shape == (9, 5)
    torch.testing.assert_close(out[:, :2], d.continuous)
    torch.testing.assert_close(out[:, 2:], torch.stack([embedded.embedding.weight[c] for c in d.codes[:, 2].tolist()]))
    assert CovariateFeatures(0)(d) is None
    assert CovariateFeatures(2)(d) is not None
    assert not list(CovariateFeatures(2).parameters())
