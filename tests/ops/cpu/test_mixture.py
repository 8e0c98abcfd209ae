"""The kernel of the mixture of background and foreground, against the reference in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.cpu.agreement import threads
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.errors import OptionError

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

# Both compute in float64: the rounding of each result, and the float64 of sums as large as 1e6.
RELATIVE, FLOOR = 2e-7, 1e-8


def problem(
    cells: int, proteins: int, samples: tuple[int, ...] = (), per: str = "protein", seed: int = 0
) -> tuple[list[Tensor], CountBlock, Tensor]:
    """Parameters, counts of every kind (an empty cell, stored zeros, fractions, 1e6), and what was measured."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    own = {"protein": (proteins,), "cell": (cells, proteins), "sample": (*samples, cells, proteins)}[per]
    x = torch.poisson(torch.exp(2 * normal(cells, proteins) + 1), generator=generator)
    x[0] = 0
    x[-1, : proteins // 3] = 12.5
    x[-1, -1] = 1e6
    full = [torch.arange(proteins).repeat(cells), torch.arange(0, cells * proteins + 1, proteins)]
    counts = CountBlock(x.flatten(), *full, proteins) if seed % 2 else CountBlock.from_dense(x)
    shape = (*samples, cells, proteins)
    tensors = [normal(*shape), 2 + 2 * normal(*shape), 5 * normal(*shape), 4 * normal(*own)]
    return tensors, counts, torch.rand(cells, proteins, generator=generator) < 0.6


def evaluate(
    backend: str, dtype: torch.dtype, tensors: list[Tensor], counts: CountBlock, measured, weight: Tensor | None
) -> list[Tensor]:
    leaves = [t.to(dtype).clone().requires_grad_() for t in tensors]
    with ops.backend(backend):
        out = ops.negative_binomial_mixture(*leaves, counts, measured)
    loss = -out.mean() if weight is None else (out * weight.to(dtype)).sum()
    return [out.detach(), *torch.autograd.grad(loss, leaves)]


def assert_agrees(tensors: list[Tensor], counts: CountBlock, measured, weight: Tensor | None) -> None:
    found = evaluate("cpu", torch.float32, tensors, counts, measured, weight)
    expected = evaluate("reference", torch.float64, tensors, counts, measured, weight)
    # What is summed over cells is rounded like the largest of its parts.
    apart = [*tensors[:3], tensors[3].expand(tensors[0].shape)]
    sizes = [t.abs() for t in evaluate("reference", torch.float64, apart, counts, measured, weight)]
    for a, b, size in zip(found, expected, sizes, strict=True):
        assert a.dtype == torch.float32
        assert a.shape == b.shape
        assert ((a.double() - b).abs() <= RELATIVE * size.sum_to_size(b.shape) + FLOOR).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("samples", "per"), [((), "protein"), ((), "cell"), ((2, 3), "protein"), ((3,), "sample")])
@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (41, 401), (50, 1)], ids=str)
def test_value_and_gradients(shape, samples, per, masked, weighted) -> None:
    tensors, counts, measured = problem(*shape, samples, per, seed=sum(shape))
    weight = torch.rand(*samples, shape[0], generator=torch.Generator().manual_seed(9)) if weighted else None
    assert_agrees(tensors, counts, measured if masked else None, weight)


def test_each_subset_of_gradients() -> None:
    tensors, counts, measured = problem(9, 30)
    full = evaluate("cpu", torch.float32, tensors, counts, measured, None)
    for asked in itertools.product((True, False), repeat=4):
        leaves = [t.clone().requires_grad_(a) for t, a in zip(tensors, asked, strict=True)]
        with ops.backend("cpu"):
            out = ops.negative_binomial_mixture(*leaves, counts, measured)
        assert torch.equal(out.detach(), full[0])
        if any(asked):
            (-out.mean()).backward()
        for leaf, is_asked, expected in zip(leaves, asked, full[1:], strict=True):
            assert torch.equal(leaf.grad, expected) if is_asked else leaf.grad is None


def test_asked_for_twice() -> None:
    tensors, counts, _ = problem(9, 30)
    leaf = tensors[0].clone().requires_grad_()
    with ops.backend("cpu"):
        loss = -ops.negative_binomial_mixture(leaf, *tensors[1:], counts).mean()
    once, twice = (torch.autograd.grad(loss, leaf, retain_graph=True)[0].clone() for _ in range(2))
    assert torch.equal(once, twice)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    tensors, counts, measured = problem(120, 60)
    one, two = [], []
    for number, results in ((1, one), (2, two)):
        with threads(number):
            results += evaluate("cpu", torch.float32, tensors, counts, measured, None)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(narrow: torch.dtype) -> None:
    tensors, counts, measured = problem(5, 7)
    tensors = [t.to(narrow) for t in tensors]
    with ops.backend("cpu"):
        out = ops.negative_binomial_mixture(*tensors, counts, measured)
        assert torch.equal(out, ops.negative_binomial_mixture(*(t.float() for t in tensors), counts, measured))


def test_float64_has_no_kernel() -> None:
    tensors, counts, _ = problem(5, 7)
    tensors = [t.double() for t in tensors]
    assert ops.negative_binomial_mixture(*tensors, counts).dtype == torch.float64
    with ops.backend("cpu"), pytest.raises(OptionError, match=r"torch\.float32"):
        ops.negative_binomial_mixture(*tensors, counts)


def test_nothing_measured() -> None:
    tensors, counts, measured = problem(4, 6)
    spoilt = [torch.full_like(t, torch.nan) for t in tensors]
    found = evaluate("cpu", torch.float32, spoilt, counts, torch.zeros_like(measured), None)
    assert not any(t.any() for t in found)


def test_nan_stays_in_its_cell() -> None:
    tensors, counts, _ = problem(6, 20)
    for spoilt in range(3):
        wrong = [t.clone() for t in tensors]
        wrong[spoilt][3, 7] = torch.nan
        with ops.backend("cpu"):
            out = ops.negative_binomial_mixture(*wrong, counts)
        assert out.isnan().tolist() == [cell == 3 for cell in range(6)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    log_means=st.lists(st.floats(-60, 40, width=32), min_size=2, max_size=2),
    mixing_logit=st.floats(-1e4, 1e4, width=32),
    log_theta=st.floats(-60, 60, width=32),
    count=st.one_of(st.integers(0, 20).map(float), st.floats(0, 1e6, width=32)),
)
def test_extremes(log_means, mixing_logit, log_theta, count) -> None:
    tensors = [torch.full((1, 1), p) for p in (*log_means, mixing_logit, log_theta)]
    counts = CountBlock.from_dense(torch.tensor([[count]]))
    found = evaluate("cpu", torch.float32, tensors, counts, None, None)
    expected = evaluate("reference", torch.float64, tensors, counts, None, None)
    # Float64 of terms as large as these, in each of the log-probabilities and in the slopes.
    size = count * max(abs(mean) for mean in log_means) + count + max(torch.tensor(log_means).exp().tolist())
    difference = sum(t.abs().sum() for t in tensors)
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        assert ((a.double() - b).abs() <= RELATIVE * b.abs() + FLOOR + 1e-14 * (size + difference)).all()


def test_what_does_not_fit_is_refused() -> None:
    tensors, _, measured = problem(6, 20)
    with ops.backend("cpu"):
        with pytest.raises(AssertionError, match="fit"):
            ops.negative_binomial_mixture(*tensors, CountBlock.from_dense(torch.ones(6, 21)))
        with pytest.raises(AssertionError, match="fit"):
            ops.negative_binomial_mixture(*tensors, CountBlock.from_dense(torch.ones(6, 20)), measured[:5])
        with pytest.raises(AssertionError, match="bool"):
            ops.negative_binomial_mixture(*tensors, CountBlock.from_dense(torch.ones(6, 20)), measured.float())
