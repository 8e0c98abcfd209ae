"""The first layer of an encoder."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from countvi import ops
from countvi.batch import CountBlock


def block(matrix: sp.csr_array) -> CountBlock:
    indices = [torch.tensor(a, dtype=torch.int64) for a in (matrix.indices, matrix.indptr)]
    return CountBlock(torch.tensor(matrix.data), *indices, n_features=matrix.shape[1])


@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 9), (41, 401)])
def test_against_scipy(log1p: bool, with_bias: bool, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    matrix = sp.csr_array(rng.poisson(0.3, shape).astype(np.float64))
    weight, bias = rng.normal(size=(6, shape[1])), rng.normal(size=6)
    expected = (matrix.log1p() if log1p else matrix) @ weight.T + (bias if with_bias else 0)
    actual = ops.sparse_linear(block(matrix), torch.tensor(weight), torch.tensor(bias) if with_bias else None, log1p)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("log1p", [False, True])
def test_gradients(log1p: bool) -> None:
    counts = CountBlock.from_dense(torch.tensor([[0.0, 3.0, 0.0], [1.5, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, b: ops.sparse_linear(counts, w, b, log1p), [weight, bias])


def test_empty_cells_give_the_bias() -> None:
    counts = CountBlock.from_dense(torch.zeros(2, 3))
    bias = torch.tensor([1.0, -2.0])
    assert torch.equal(ops.sparse_linear(counts, torch.ones(2, 3), bias, True), bias.expand(2, 2))


def test_counts_follow_the_precision_of_the_weight() -> None:
    counts = CountBlock.from_dense(torch.ones(2, 3))
    assert ops.sparse_linear(counts, torch.ones(4, 3, dtype=torch.float64), None, False).dtype == torch.float64
