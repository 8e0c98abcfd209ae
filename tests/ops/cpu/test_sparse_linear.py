"""The kernel of the first layer against scipy in float64, forward and backward."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

SHAPES = [(1, 1, 1), (1, 50, 3), (50, 1, 7), (41, 401, 10), (128, 2000, 128), (3, 20011, 16), (5, 9, 257)]
UNIT = 2.0**-24


def draw(
    cells: int, genes: int, hidden: int, seed: int = 0, density: float = 0.15
) -> tuple[CountBlock, Tensor, Tensor]:
    """Draw counts with fractions, large numbers, stored zeros and empty cells; weight and bias."""
    rng = np.random.default_rng(seed)
    values = np.choose(
        rng.integers(0, 4, (cells, genes)),
        [
            rng.geometric(0.3, (cells, genes)),
            rng.integers(1, 99, (cells, genes)) / 8,
            np.floor(10 ** rng.uniform(0, 6, (cells, genes))),
            np.zeros((cells, genes)),
        ],
    )
    is_stored = rng.random((cells, genes)) < density
    is_stored[1::5] = False
    rows, columns = np.nonzero(is_stored)
    offsets = np.concatenate([[0], np.cumsum(is_stored.sum(1))])
    counts = CountBlock(
        torch.tensor(values[rows, columns], dtype=torch.float32),
        torch.tensor(columns),
        torch.tensor(offsets),
        n_features=genes,
    )
    weight, bias = rng.normal(size=(hidden, genes)), rng.normal(size=hidden)
    return counts, torch.tensor(weight, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)


def as_scipy(counts: CountBlock, log1p: bool) -> sp.csr_array:
    parts = (counts.values.double().numpy(), counts.columns.numpy(), counts.offsets.numpy())
    matrix = sp.csr_array(parts, shape=(counts.n_cells, counts.n_features))
    return matrix.log1p() if log1p else matrix


def assert_product(actual: Tensor, left: sp.csr_array, right: np.ndarray, added: np.ndarray | float = 0.0) -> None:
    """Compare with ``left @ right + added``.

    A sum of n products in float32, in any order, is within n units of the sum of their absolute values; two more
    are the rounding of a division, two that of a logarithm, one that of the addition.
    """
    terms = np.diff(left.indptr)[:, None] + 5
    allowed = terms * UNIT * (abs(left) @ np.abs(right) + np.abs(added))
    assert actual.dtype == torch.float32
    assert actual.shape == allowed.shape
    assert (np.abs(actual.double().numpy() - (left @ right + added)) <= allowed).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_against_scipy(shape: tuple[int, int, int], log1p: bool, with_bias: bool) -> None:
    counts, weight, bias = draw(*shape)
    matrix = as_scipy(counts, log1p)
    weight.requires_grad_()
    bias.requires_grad_()
    gradient = torch.randn(shape[0], shape[2], generator=torch.Generator().manual_seed(1))
    with ops.backend("cpu"):
        out = ops.sparse_linear(counts, weight, bias if with_bias else None, log1p)
        out.backward(gradient)
    assert_product(
        out.detach(), matrix, weight.detach().double().numpy().T, bias.detach().double().numpy() if with_bias else 0.0
    )
    assert weight.grad is not None
    assert_product(weight.grad.T, sp.csr_array(matrix.T), gradient.double().numpy())
    if with_bias:
        assert bias.grad is not None
        ones = sp.csr_array(np.ones((1, shape[0])))
        assert_product(bias.grad[None], ones, gradient.double().numpy())


@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("density", [0.1, 1.0])
@pytest.mark.parametrize(
    "layout",
    [torch.clone, lambda t: t.double(), lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1)[:, 0]],
    ids=["float32", "float64", "strided"],
)
def test_divisor(log1p: bool, density: float, layout: Callable[[Tensor], Tensor]) -> None:
    counts, weight, bias = draw(12, 40, 8, density=density)
    divisor = 1 + 10 * torch.rand(12, generator=torch.Generator().manual_seed(4))
    matrix = sp.csr_array(sp.diags_array(1 / divisor.double().numpy()) @ as_scipy(counts, False))
    matrix = matrix.log1p() if log1p else matrix
    weight.requires_grad_()
    # What has no kernel runs on the reference there, where the backend ``cpu`` may refuse it.
    out = ops.sparse_linear(counts, weight, bias, log1p, layout(divisor))
    out.sum().backward()
    assert_product(out.detach(), matrix, weight.detach().double().numpy().T, bias.double().numpy())
    assert weight.grad is not None
    assert_product(weight.grad.T, sp.csr_array(matrix.T), np.ones((12, 8)))


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("log1p", [False, True])
def test_densities(density: float, log1p: bool) -> None:
    counts, weight, bias = draw(12, 40, 8, density=density)
    weight.requires_grad_()
    with ops.backend("cpu"):
        out = ops.sparse_linear(counts, weight, bias, log1p)
        out.sum().backward()
    matrix = as_scipy(counts, log1p)
    assert_product(out.detach(), matrix, weight.detach().double().numpy().T, bias.double().numpy())
    assert weight.grad is not None
    assert_product(weight.grad.T, sp.csr_array(matrix.T), np.ones((12, 8)))


def test_empty_cells_give_the_bias() -> None:
    counts = CountBlock.from_dense(torch.zeros(2, 3))
    bias = torch.tensor([1.0, -2.0])
    with ops.backend("cpu"):
        assert torch.equal(ops.sparse_linear(counts, torch.ones(2, 3), bias, True), bias.expand(2, 2))


@pytest.mark.parametrize("log1p", [False, True])
def test_negative_and_non_finite_values(log1p: bool) -> None:
    """Values are any number above -1; NaN stays in its cell."""
    counts = CountBlock.from_dense(torch.tensor([[-0.5, 0.0, 2.0], [torch.nan, 1.0, 0.0], [0.0, 3.0, 0.0]]))
    weight = torch.tensor([[1.0, 2.0, -3.0]])
    with ops.backend("cpu"):
        out = ops.sparse_linear(counts, weight, None, log1p)
    f = np.log1p if log1p else np.asarray
    np.testing.assert_allclose(out[0], f(-0.5) - 3 * f(2.0), rtol=4 * UNIT)
    assert out[1].isnan().all()
    np.testing.assert_allclose(out[2], 2 * f(3.0), rtol=4 * UNIT)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.T.contiguous().T,
    "strided": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
    "offset": lambda t: torch.cat([t.new_full((3,), torch.nan), t.flatten()])[3:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout: Callable[[Tensor], Tensor]) -> None:
    counts, weight, bias = draw(12, 31, 6)
    gradient = torch.randn(12, 6, generator=torch.Generator().manual_seed(2))
    results = []
    for make in (layout, torch.clone):
        leaves = [make(weight).requires_grad_(), torch.stack([bias, bias], -1)[:, 0].requires_grad_()]
        with ops.backend("cpu"):
            out = ops.sparse_linear(counts, *leaves, True)
            results.append((out, *torch.autograd.grad(out, leaves, make(gradient))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_expanded_weight() -> None:
    counts, weight, _ = draw(12, 31, 6)
    matrix = as_scipy(counts, False)
    row = weight[:1].clone().requires_grad_()
    with ops.backend("cpu"):
        out = ops.sparse_linear(counts, row.expand(6, 31), None, False)
        out.sum().backward()
    assert_product(out.detach(), matrix, weight[:1].expand(6, 31).double().numpy().T)
    assert row.grad is not None
    # torch adds six rows that are the same.
    allowed = (np.diff(sp.csr_array(matrix.T).indptr) + 8) * UNIT * (6 * abs(matrix).sum(0))
    assert (np.abs(row.grad[0].double().numpy() - 6 * matrix.sum(0)) <= allowed).all()


def reverse_rows(counts: CountBlock) -> CountBlock:
    """List the entries of each row from the last column to the first."""
    order = torch.argsort(counts.rows * counts.n_features - counts.columns)
    return dataclasses.replace(counts, values=counts.values[order], columns=counts.columns[order])


COUNTS: dict[str, Callable[[CountBlock], CountBlock]] = {
    "float64 values": lambda c: c.to(dtype=torch.float64),
    "strided values": lambda c: dataclasses.replace(c, values=torch.stack([c.values, -c.values], -1)[:, 0]),
    "strided columns": lambda c: dataclasses.replace(c, columns=torch.stack([c.columns, c.columns + 10**9], -1)[:, 0]),
    "int32 columns": lambda c: dataclasses.replace(c, columns=c.columns.int()),
    "int32 offsets": lambda c: dataclasses.replace(c, offsets=c.offsets.int()),
    "columns out of order": reverse_rows,
}


@pytest.mark.parametrize("layout", COUNTS.values(), ids=COUNTS)
def test_layouts_of_counts(layout: Callable[[CountBlock], CountBlock]) -> None:
    counts, weight, bias = draw(12, 31, 6)
    matrix = as_scipy(counts, True)
    weight.requires_grad_()
    # What has no kernel runs on the reference there, where the backend ``cpu`` may refuse it.
    out = ops.sparse_linear(layout(counts), weight, bias, True)
    out.sum().backward()
    assert_product(out.detach(), matrix, weight.detach().double().numpy().T, bias.double().numpy())
    assert weight.grad is not None
    assert_product(weight.grad.T, sp.csr_array(matrix.T), np.ones((12, 6)))


def test_each_subset_of_gradients() -> None:
    counts, weight, bias = draw(12, 31, 6)
    gradient = torch.randn(12, 6, generator=torch.Generator().manual_seed(3))
    with ops.backend("cpu"):
        leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        out = ops.sparse_linear(counts, *leaves, True)
        full = torch.autograd.grad(out, leaves, gradient)
        for asked in itertools.product((True, False), repeat=2):
            some = [t.clone().requires_grad_(a) for t, a in zip((weight, bias), asked, strict=True)]
            alone = ops.sparse_linear(counts, *some, True)
            assert torch.equal(alone, out)
            assert alone.requires_grad is any(asked)
            if any(asked):
                alone.backward(gradient)
            for tensor, is_asked, expected in zip(some, asked, full, strict=True):
                assert torch.equal(tensor.grad, expected) if is_asked else tensor.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Callable) -> None:
    counts, weight, bias = draw(12, 31, 6)
    leaves = [weight.requires_grad_(), bias.requires_grad_()]
    with ops.backend("cpu"):
        expected = ops.sparse_linear(counts, *leaves, True)
        with mode():
            out = ops.sparse_linear(counts, *leaves, True)
    assert not out.requires_grad
    assert torch.equal(out, expected.detach())


@pytest.mark.parametrize("log1p", [False, True])
def test_gradient_by_the_counts(log1p: bool) -> None:
    """Attributions differentiate the encoder by its input; no kernel may drop that gradient."""
    counts, weight, bias = draw(12, 31, 6)
    values = counts.values.clone().requires_grad_()
    out = ops.sparse_linear(dataclasses.replace(counts, values=values), weight, bias, log1p)
    (gradient,) = torch.autograd.grad(out.sum(), [values])
    slope = 1 / (1 + counts.values.double()) if log1p else torch.ones_like(counts.values)
    expected = slope * weight.double().sum(0)[counts.columns]
    torch.testing.assert_close(gradient.double(), expected.double(), rtol=1e-5, atol=1e-6)
