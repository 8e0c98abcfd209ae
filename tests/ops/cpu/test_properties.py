"""Laws that hold for the kernels whatever the numbers: finiteness, limits, and bits that depend on the cell alone."""

from __future__ import annotations

import dataclasses
import importlib
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.cpu.agreement import COUNT_CASES, LINKS, Inputs, draw, draw_weight, run, threads
from tests.reference.cases import NB, POISSON, ZINB, Case
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Link

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

CASES = pytest.mark.parametrize("case", COUNT_CASES, ids=str)
EVERY_LINK = pytest.mark.parametrize("link", LINKS)
extreme = st.floats(-1e4, 1e4, width=32)


def bits(inputs: Inputs, case: Case, link: Link, weight: Tensor | None = None) -> list[Tensor]:
    """Value and gradients, as integers: -0 is not 0, and NaN is itself."""
    with ops.backend("cpu"):
        value, gradients = run(inputs, case, link, weight)
    return [t.contiguous().view(torch.int32) for t in (value, *gradients)]


def assert_same(some: list[Tensor], others: list[Tensor]) -> None:
    for a, b in zip(some, others, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(COUNT_CASES),
    link=st.sampled_from(LINKS),
    logits=st.lists(extreme, min_size=1, max_size=40),
    log_library=st.one_of(st.just(-torch.inf), st.floats(-50, 60, width=32)),
    log_theta=st.floats(-60, 60, width=32),
    pi_logit=extreme,
    count=st.floats(0, 1e6, width=32),
)
def test_nothing_is_nan(case, link, logits, log_library, log_theta, pi_logit, count) -> None:
    n = len(logits)
    dense = torch.zeros(2, n)
    if log_library > -torch.inf:
        dense[0, 0] = count
    extras = {"log_theta": torch.full((n,), log_theta), "pi_logits": torch.full((2, n), pi_logit)}
    inputs = Inputs(torch.tensor([logits, logits]), torch.full((2,), log_library), extras, CountBlock.from_dense(dense))
    with ops.backend("cpu"):
        value, gradients = run(inputs, case, link)
    assert value.isfinite().all()
    assert (value <= 1e-3).all()
    assert all(g.isfinite().all() for g in gradients)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(COUNT_CASES),
    link=st.sampled_from(LINKS),
    cells=st.integers(1, 20),
    genes=st.integers(1, 70),
    samples=st.sampled_from([(), (1,), (2,), (2, 3)]),
    per=st.sampled_from(["gene", "cell", "sample"]),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_shapes(case, link, cells, genes, samples, per, density, seed) -> None:
    inputs = draw(cells, genes, seed, per, samples, density=density)
    with ops.backend("cpu"):
        value, gradients = run(inputs, case, link)
    assert value.shape == (*samples, cells)
    assert [g.shape for g in gradients] == [t.shape for t in inputs.tensors(case)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(COUNT_CASES),
    cells=st.integers(1, 9),
    genes=st.integers(1, 300),
    spread=st.sampled_from([0.0, 1.0, 10.0, 60.0]),
    seed=st.integers(0, 1000),
)
def test_softmax_does_not_see_a_shift(case, cells, genes, spread, seed) -> None:
    """So the slopes of a cell sum to zero; what is left is the rounding of the slopes by log mu."""
    inputs = draw(cells, genes, seed, logits=(-spread, spread))
    with ops.backend("cpu"):
        _, gradients = run(inputs, case, Link.SOFTMAX)
        # Each entry's slope by log mu, under the softmax's own rate.
        rate = inputs.logits.double().softmax(-1)
        total = gradients[1].double()
    by_logits = gradients[0].double()
    slopes = (by_logits + rate * total[:, None]).abs()
    # Entries, and the rate that multiplies their sum, to the stated error of slopes; rounding of log mu, up to
    # 2e-7 of the largest logarithm, moves every rate.
    allowed = (2e-6 + 2e-7 * max(1.0, 2 * spread)) * (slopes.sum(-1) + total.abs()) + genes * 1e-9
    assert (by_logits.sum(-1).abs() <= allowed).all()


@EVERY_LINK
@pytest.mark.parametrize("pi_logit", [-40.0, -200.0, -1e4])
def test_no_dropout_is_negative_binomial(link: Link, pi_logit: float) -> None:
    # exp(-40) of p(0) is nothing unless the negative binomial's p(0) is as small.
    inputs = draw(9, 60, seed=1, theta=(1e-2, 5.0), logits=(-2.0, 2.0), pi_logits=(pi_logit, pi_logit))
    inputs = dataclasses.replace(inputs, log_library=inputs.log_library / 4)
    with ops.backend("cpu"):
        value, gradients = run(inputs, ZINB, link)
        expected, expected_gradients = run(inputs, NB, link)
    torch.testing.assert_close(value, expected, rtol=4e-6, atol=0)
    for actual, wanted in zip(gradients, expected_gradients, strict=False):
        torch.testing.assert_close(actual, wanted, rtol=6e-6, atol=1e-5 * wanted.abs().max().item())
    assert (gradients[-1].abs() < 1e-10).all()


@pytest.mark.parametrize("log_theta", [40.0, 60.0, 80.0])
@EVERY_LINK
def test_large_theta_is_poisson(link: Link, log_theta: float) -> None:
    inputs = draw(9, 60, seed=2, largest=100.0)
    inputs = dataclasses.replace(inputs, log_library=inputs.log_library / 4)
    inputs.extras["log_theta"].fill_(log_theta)
    with ops.backend("cpu"):
        value, gradients = run(inputs, NB, link)
        expected, expected_gradients = run(inputs, POISSON, link)
    torch.testing.assert_close(value, expected, rtol=4e-6, atol=0)
    for actual, wanted in zip(gradients, expected_gradients, strict=False):
        torch.testing.assert_close(actual, wanted, rtol=6e-6, atol=1e-5 * wanted.abs().max().item())
    # d log p / d log theta is of order (x^2 + mu^2) / theta.
    size = (inputs.counts.to_dense() ** 2).sum() + inputs.counts.n_cells * 60 * 1e6
    assert (gradients[-1].abs() <= size / torch.tensor(log_theta).exp() + 9e-9 * 9).all()


@pytest.mark.parametrize("case", [NB, POISSON], ids=str)
def test_poisson_and_negative_binomial_sum_to_one(case: Case) -> None:
    """Probabilities of all counts of one gene, a cell each."""
    x = torch.arange(2000.0)
    extras = {"log_theta": torch.tensor([1.0])}
    inputs = Inputs(torch.zeros(2000, 1), torch.full((2000,), 3.0), extras, CountBlock.from_dense(x[:, None]))
    with ops.backend("cpu"):
        value, _ = run(inputs, case, Link.SOFTMAX)
    # The terms that matter are above exp(-20), and right to 2e-6 of that logarithm.
    assert value.double().exp().sum().item() == pytest.approx(1.0, abs=2e-5)


@CASES
@EVERY_LINK
@pytest.mark.parametrize("per", ["gene", "cell"])
def test_the_number_of_threads_changes_no_bit(case: Case, link: Link, per: str) -> None:
    inputs, weight = draw(90, 1500, seed=3, per=per), draw_weight(torch.Size([90]))
    with threads(1):
        expected = bits(inputs, case, link, weight)
    for number in (1, 2, 3, 7):
        with threads(number):
            for _ in range(3):
                assert_same(bits(inputs, case, link, weight), expected)


@CASES
def test_threads_that_call_at_the_same_time_do_not_meet(case: Case) -> None:
    problems = [draw(40, 900, seed=seed) for seed in range(4)]
    expected = [bits(inputs, case, Link.SOFTMAX) for inputs in problems]
    with threads(2), ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = pool.map(lambda inputs: bits(inputs, case, Link.SOFTMAX), problems)
            for some, others in zip(results, expected, strict=True):
                assert_same(some, others)


@CASES
def test_threads_of_our_own_change_no_bit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in where torch's OpenMP is not GNU's."""
    inputs, weight = draw(90, 1500, seed=3), draw_weight(torch.Size([90]))
    with threads(1):
        expected = bits(inputs, case, Link.SOFTMAX, weight)
    threads_module = importlib.import_module("countvi.ops.cpu.threads")
    monkeypatch.setattr(threads_module, "_runner", lambda: threads_module._python_threads)
    with threads(3):
        for _ in range(5):
            assert_same(bits(inputs, case, Link.SOFTMAX, weight), expected)


@CASES
@EVERY_LINK
@pytest.mark.parametrize("genes", [1, 13, 256, 401])
def test_cells_do_not_see_each_other(case: Case, link: Link, genes: int) -> None:
    """One cell or many, wherever it stands in memory: the same bits."""
    inputs = draw(37, genes, seed=4, samples=(2,))
    value, by_logits, *_ = bits(inputs, case, link)
    for chosen in (slice(0, 1), slice(3, 4), slice(36, 37), slice(5, 21), slice(1, None)):
        alone, alone_by_logits, *_ = bits(inputs.cells(chosen), case, link)
        assert torch.equal(alone, value[:, chosen])
        assert torch.equal(alone_by_logits, by_logits[:, chosen])


@CASES
@EVERY_LINK
def test_theta_per_cell_is_theta_per_gene(case: Case, link: Link) -> None:
    inputs = draw(7, 33, seed=5)
    spread = {"log_theta": inputs.extras["log_theta"].expand(7, 33), "pi_logits": inputs.extras["pi_logits"]}
    value, by_logits, *_ = bits(inputs, case, link)
    other, other_by_logits, *_ = bits(dataclasses.replace(inputs, extras=spread), case, link)
    assert torch.equal(value, other)
    assert torch.equal(by_logits, other_by_logits)


@CASES
@EVERY_LINK
def test_stored_zeros_change_no_bit(case: Case, link: Link) -> None:
    inputs = draw(7, 33, seed=6)
    dense = inputs.counts.to_dense()
    every = CountBlock(dense.flatten(), torch.arange(33).repeat(7), torch.arange(0, 232, 33), n_features=33)
    padded = dataclasses.replace(inputs, counts=every)
    bare = dataclasses.replace(inputs, counts=CountBlock.from_dense(dense))
    assert_same(bits(padded, case, link), bits(bare, case, link))


@pytest.mark.parametrize(
    ("case", "where"),
    [(case, where) for case in COUNT_CASES for where in ("logits", "log_library", *case.extras, "counts")],
    ids=str,
)
@EVERY_LINK
@pytest.mark.parametrize("is_counted", [False, True])
def test_nan_stays_in_its_cell(case: Case, link: Link, where: str, is_counted: bool) -> None:
    inputs = draw(6, 40, seed=7, per="cell", density=0.5)
    dense = inputs.counts.to_dense()
    dense[2, 11], dense[2, 12] = float(is_counted), 3.0
    clean = dataclasses.replace(inputs, counts=CountBlock.from_dense(dense))
    expected = bits(clean, case, link)
    broken = Inputs(clean.logits.clone(), clean.log_library.clone(), dict(clean.extras), clean.counts)
    if where == "counts":
        dense[2, 11] = torch.nan
        broken = dataclasses.replace(broken, counts=CountBlock.from_dense(dense))
    elif where == "log_library":
        broken.log_library[2] = torch.nan
    elif where == "logits":
        broken.logits[2, 11] = torch.nan
    else:
        broken.extras[where] = broken.extras[where].clone()
        broken.extras[where][2, 11] = torch.nan
    with ops.backend("cpu"):
        value, gradients = run(broken, case, link)
    assert value[2].isnan()
    assert any(g[2].isnan().any() for g in gradients)
    others = [0, 1, 3, 4, 5]
    for actual, wanted in zip((value, *gradients), expected, strict=True):
        assert torch.equal(actual[others].contiguous().view(torch.int32), wanted[others])


@pytest.mark.parametrize(
    ("case", "changed"), [(case, i) for case in COUNT_CASES for i in range(2 + len(case.extras))], ids=str
)
@EVERY_LINK
def test_a_second_derivative_is_refused(case: Case, link: Link, changed: int) -> None:
    inputs = draw(4, 9, seed=8)
    with ops.backend("cpu"):
        tensors = [t.clone() for t in inputs.tensors(case)]
        tensors[changed].requires_grad_()
        value = inputs.evaluate(case, link, tensors)
        (gradient,) = torch.autograd.grad(value.sum(), [tensors[changed]], create_graph=True)
        with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
            torch.autograd.grad(gradient.sum(), [tensors[changed]])


def linear_bits(counts: CountBlock, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    with ops.backend("cpu"):
        out = ops.sparse_linear(counts, *leaves, True)
        results = (out.detach(), *torch.autograd.grad(out, leaves, gradient))
    return [t.contiguous().view(torch.int32) for t in results]


def test_the_number_of_threads_changes_no_bit_of_the_first_layer() -> None:
    counts = draw(90, 1500, seed=9).counts
    generator = torch.Generator().manual_seed(0)
    weight, bias, gradient = (torch.randn(*s, generator=generator) for s in ((64, 1500), (64,), (90, 64)))
    with threads(1):
        expected = linear_bits(counts, weight, bias, gradient)
    for number in (1, 2, 3, 7):
        with threads(number):
            for _ in range(3):
                assert_same(linear_bits(counts, weight, bias, gradient), expected)


@pytest.mark.parametrize("hidden", [1, 10, 64])
@pytest.mark.parametrize("n_dense", [0, 9])
def test_cells_do_not_see_each_other_in_the_first_layer(hidden: int, n_dense: int) -> None:
    """Cells with many counts among cells with few, or not."""
    inputs = draw(37, 80, seed=10, density=0.05)
    dense = inputs.counts.to_dense()
    dense[5 : 5 + n_dense] += 1
    inputs = dataclasses.replace(inputs, counts=CountBlock.from_dense(dense))
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(hidden, 80, generator=generator), torch.randn(hidden, generator=generator)
    with ops.backend("cpu"):
        together = ops.sparse_linear(inputs.counts, weight, bias, True)
        for chosen in (slice(0, 1), slice(36, 37), slice(5, 21)):
            assert torch.equal(ops.sparse_linear(inputs.cells(chosen).counts, weight, bias, True), together[chosen])


def test_a_second_derivative_of_the_first_layer_is_refused_or_right() -> None:
    """The layer is linear in its weight, but its gradient is linear in what comes from above."""
    counts = draw(5, 9, seed=11).counts
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 9, generator=generator, requires_grad=True)
    above = torch.randn(5, 3, generator=generator, requires_grad=True)
    with ops.backend("cpu"):
        out = ops.sparse_linear(counts, weight, None, False)
        (gradient,) = torch.autograd.grad(out, [weight], above, create_graph=True)
    try:
        (second,) = torch.autograd.grad(gradient.sum(), [above])
    except RuntimeError as error:
        assert re.search("once_differentiable|appears to not have been used", str(error))
    else:
        torch.testing.assert_close(second, counts.to_dense().sum(1)[:, None].expand(5, 3))
