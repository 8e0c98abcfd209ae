"""The kernels of the likelihoods against the float64 reference, forward and backward."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from tests.ops.cpu.agreement import (
    COUNT_CASES,
    LINKS,
    Inputs,
    assert_agrees,
    assert_within,
    draw,
    draw_weight,
    run,
    tolerances,
)
from tests.reference.cases import NB, POISSON, ZINB, Case
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Link

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

SHAPES = [(1, 1), (1, 50), (50, 1), (41, 401), (128, 2000), (3, 20011)]
CASES = pytest.mark.parametrize("case", COUNT_CASES, ids=str)
EVERY_LINK = pytest.mark.parametrize("link", LINKS)


@CASES
@EVERY_LINK
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(case: Case, link: Link, shape: tuple[int, int]) -> None:
    inputs = draw(*shape, seed=sum(shape))
    assert_agrees(inputs, case, link, draw_weight(shape[:1]))


@CASES
@EVERY_LINK
@pytest.mark.parametrize("count", [0.0, 0.125, 1.0, 1.5, 2.0, 7.0, 7.5, 8.0, 9.0, 63.5, 1000.0, 1e6])
def test_one_count(case: Case, link: Link, count: float) -> None:
    """One cell and one gene, at many means and dispersions."""
    for log_theta, log_library in itertools.product((math.log(1e-4), -0.5, 1.2, 4.0, math.log(1e8)), (0.0, 3.0, 11.0)):
        inputs = draw(1, 1)
        inputs = Inputs(
            inputs.logits,
            torch.tensor([log_library]),
            inputs.extras | {"log_theta": torch.tensor([log_theta])},
            CountBlock.from_dense(torch.tensor([[count]])),
        )
        assert_agrees(inputs, case, link)


REGIMES = {
    "logits to 30": {"logits": (-30.0, 30.0)},
    "logits of a huge spread": {"logits": (-80.0, 20.0)},
    "logits that are all the same": {"logits": (3.0, 3.0)},
    "logits far from zero": {"logits": (70.0, 72.0)},
    "pi_logits to 40": {"pi_logits": (-40.0, 40.0)},
    "dropout is certain": {"pi_logits": (40.0, 40.0)},
    "no dropout": {"pi_logits": (-40.0, -40.0)},
    "small theta": {"theta": (1e-4, 1e-3)},
    "large theta": {"theta": (1e6, 1e8)},
    "small counts": {"largest": 8.0, "density": 0.5},
    "dense": {"density": 1.0},
    "no counts": {"density": 0.0},
}


@CASES
@EVERY_LINK
@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
def test_regimes(case: Case, link: Link, regime: dict) -> None:
    inputs = draw(20, 83, seed=1, **regime)
    if link is Link.SOFTPLUS:  # whose mean grows with the logits: the sum with log_library stays in the domain
        inputs = dataclasses.replace(inputs, log_library=inputs.log_library / 2)
    assert_agrees(inputs, case, link, draw_weight(torch.Size([20])))


@CASES
@EVERY_LINK
@pytest.mark.parametrize("per", ["gene", "cell", "sample"])
@pytest.mark.parametrize("samples", [(), (1,), (3,), (2, 3)])
def test_samples(case: Case, link: Link, per: str, samples: tuple[int, ...]) -> None:
    inputs = draw(7, 23, seed=2, per=per, samples=samples)
    assert_agrees(inputs, case, link, draw_weight(torch.Size([*samples, 7])))


@CASES
@EVERY_LINK
def test_any_tensor_may_lack_the_samples(case: Case, link: Link) -> None:
    full = draw(6, 11, seed=3, per="sample", samples=(3,))
    library = full.log_library + torch.arange(3.0)[:, None]
    full = dataclasses.replace(full, log_library=library)
    for present in itertools.product((True, False), repeat=2 + len(case.extras)):
        logits, log_library, *extras = (t if has else t[0] for t, has in zip(full.tensors(case), present, strict=True))
        inputs = Inputs(logits, log_library, dict(zip(case.extras, extras, strict=True)), full.counts)
        assert_agrees(inputs, case, link, draw_weight(torch.Size([3, 6] if any(present) else [6])))


@CASES
@EVERY_LINK
def test_samples_that_broadcast(case: Case, link: Link) -> None:
    inputs = draw(4, 9, seed=4, per="sample", samples=(2, 3))
    extras = {"log_theta": inputs.extras["log_theta"][:, :1], "pi_logits": inputs.extras["pi_logits"][0]}
    inputs = dataclasses.replace(inputs, logits=inputs.logits[:1], extras=extras)
    shape = torch.Size([1, 3, 4] if case is POISSON else [2, 3, 4])
    assert_agrees(inputs, case, link, draw_weight(shape))


@CASES
@EVERY_LINK
@pytest.mark.parametrize("weight", ["ones", "zeros"])
def test_constant_weight(case: Case, link: Link, weight: str) -> None:
    inputs = draw(9, 40, seed=5)
    assert_agrees(inputs, case, link, torch.ones(9) if weight == "ones" else torch.zeros(9))


@CASES
@EVERY_LINK
@pytest.mark.parametrize("store_zero", [False, True])
@pytest.mark.parametrize("with_counts", [False, True])
def test_cells_without_a_library(case: Case, link: Link, store_zero: bool, with_counts: bool) -> None:
    inputs = draw(8, 30, seed=6)
    dense = inputs.counts.to_dense()
    if not with_counts:
        dense[::2] = 0
    counts = CountBlock.from_dense(dense)
    if store_zero:
        every = (torch.arange(30).repeat(8), torch.arange(0, 241, 30))
        counts = CountBlock(dense.flatten(), *every, n_features=30)
    log_library = inputs.log_library.clone()
    log_library[::2] = -torch.inf
    inputs = dataclasses.replace(inputs, log_library=log_library, counts=counts)
    assert_agrees(inputs, case, link, draw_weight(torch.Size([8])))
    with ops.backend("cpu"):
        value, gradients = run(inputs, case, link)
    impossible = (dense[::2] > 0).any(-1)
    assert bool(impossible.any()) is with_counts
    assert torch.equal(value[::2], torch.where(impossible, -torch.inf, 0.0))
    assert all(g.isfinite().all() for g in gradients)


def strided(t: Tensor) -> Tensor:
    """Every second element of a larger tensor, whose other elements are NaN."""
    out = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), math.nan)[..., ::2]
    return out.copy_(t)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "strided": strided,
    "flipped twice": lambda t: t.flip(0).as_strided(t.shape, t.stride()).flip(0),
    "offset": lambda t: torch.cat([t.new_full((3,), math.nan), t.flatten()])[3:].view(t.shape),
}


@CASES
@EVERY_LINK
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(case: Case, link: Link, layout: Callable[[Tensor], Tensor]) -> None:
    inputs = draw(12, 31, seed=7, per="cell")
    tensors = [layout(t).requires_grad_() for t in inputs.tensors(case)]
    weight = layout(draw_weight(torch.Size([12])))
    with ops.backend("cpu"):
        value = inputs.evaluate(case, link, tensors)
        gradients = torch.autograd.grad(value, tensors, weight)
        expected, expected_gradients = run(inputs, case, link, weight.clone())
    for a, b in zip((value, *gradients), (expected, *expected_gradients), strict=True):
        assert torch.equal(a, b)


@CASES
@EVERY_LINK
def test_expanded_tensors(case: Case, link: Link) -> None:
    """Stride zero: one row of logits for all cells, one theta and one dropout for all genes."""
    inputs = draw(12, 31, seed=8)
    short = [inputs.logits[:1], inputs.log_library[:1], inputs.extras["log_theta"][:1], inputs.extras["pi_logits"][:1]]
    names = ("log_theta", "pi_logits")
    sizes = [(12, 31), (12,), (31,), (12, 31)][: 2 + len(case.extras)]
    results = []
    for make in (torch.Tensor.expand, lambda t, size: t.expand(size).contiguous()):
        leaves = [t.clone().requires_grad_() for t in short[: len(sizes)]]
        logits, log_library, *rest = (make(t, size) for t, size in zip(leaves, sizes, strict=True))
        full = Inputs(logits, log_library, dict(zip(names, rest, strict=False)), inputs.counts)
        with ops.backend("cpu"):
            value = case(logits, log_library, full.extras, full.counts, link)
            results.append((value, *torch.autograd.grad(value.sum(), leaves)))
        allowed, _ = tolerances(full, case, link, torch.ones(12))
        with ops.backend("reference"):
            assert_within(value.detach(), run(full.double(), case, link)[0], allowed)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@CASES
@EVERY_LINK
def test_each_subset_of_gradients(case: Case, link: Link) -> None:
    inputs = draw(6, 19, seed=9, per="cell")
    weight = draw_weight(torch.Size([6]))
    with ops.backend("cpu"):
        value, full = run(inputs, case, link, weight)
        for asked in itertools.product((True, False), repeat=len(full)):
            tensors = [t.clone().requires_grad_(a) for t, a in zip(inputs.tensors(case), asked, strict=True)]
            alone = inputs.evaluate(case, link, tensors)
            assert torch.equal(alone.detach(), value)
            assert alone.requires_grad is any(asked)
            if any(asked):
                alone.backward(weight)
            for tensor, is_asked, expected in zip(tensors, asked, full, strict=True):
                assert torch.equal(tensor.grad, expected) if is_asked else tensor.grad is None


@CASES
@EVERY_LINK
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(case: Case, link: Link, mode: Callable) -> None:
    inputs = draw(6, 19, seed=10)
    with ops.backend("cpu"):
        expected, _ = run(inputs, case, link)
        tensors = [t.clone().requires_grad_() for t in inputs.tensors(case)]
        with mode():
            value = inputs.evaluate(case, link, tensors)
            made_inside = inputs.evaluate(case, link, [t.clone() for t in tensors])
        assert not value.requires_grad
        assert torch.equal(value, expected)
        assert torch.equal(made_inside, expected)


COUNTS: dict[str, Callable[[CountBlock], CountBlock]] = {
    "float64 values": lambda c: c.to(dtype=torch.float64),
    "strided values": lambda c: dataclasses.replace(c, values=strided(c.values)),
    "strided columns": lambda c: dataclasses.replace(c, columns=torch.stack([c.columns, c.columns + 10**9], -1)[:, 0]),
    "strided offsets": lambda c: dataclasses.replace(c, offsets=torch.stack([c.offsets, c.offsets + 10**9], -1)[:, 0]),
    "int32 columns": lambda c: dataclasses.replace(c, columns=c.columns.int()),
    "int32 offsets": lambda c: dataclasses.replace(c, offsets=c.offsets.int()),
    "columns out of order": lambda c: reverse_rows(c),
}


def reverse_rows(counts: CountBlock) -> CountBlock:
    """List the entries of each row from the last column to the first."""
    order = torch.argsort(counts.rows * counts.n_features - counts.columns)
    return dataclasses.replace(counts, values=counts.values[order], columns=counts.columns[order])


@CASES
@EVERY_LINK
@pytest.mark.parametrize("layout", COUNTS.values(), ids=COUNTS)
def test_layouts_of_counts(case: Case, link: Link, layout: Callable[[CountBlock], CountBlock]) -> None:
    inputs = draw(12, 31, seed=11)
    inputs = dataclasses.replace(inputs, counts=layout(inputs.counts))
    # What has no kernel runs on the reference there, where the backend ``cpu`` may refuse it.
    value, gradients = run(inputs, case, link)
    with ops.backend("reference"):
        expected, expected_gradients = run(inputs.double(), case, link)
        allowed, allowed_gradients = tolerances(inputs, case, link, torch.ones(12))
    assert_within(value, expected, allowed)
    for triple in zip(gradients, expected_gradients, allowed_gradients, strict=True):
        assert_within(*triple)


@CASES
@EVERY_LINK
def test_inputs_live_until_the_backward_pass(case: Case, link: Link) -> None:
    """Nobody but the operation holds the tensors that it was given."""
    inputs = draw(40, 500, seed=12, per="cell")
    with ops.backend("cpu"):
        _, expected = run(inputs, case, link)
        leaves = [t.clone().requires_grad_() for t in inputs.tensors(case)]
        copy = dataclasses.replace(inputs, counts=inputs.counts.to(dtype=torch.float64).to(dtype=torch.float32))
        value = copy.evaluate(case, link, [t * 1 for t in leaves])
        del copy
        gc.collect()
        litter = [torch.full_like(t, math.nan) for t in leaves for _ in range(5)]
        value.sum().backward()
    assert len(litter) == 5 * len(leaves)
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("case", [NB, ZINB], ids=str)
@EVERY_LINK
def test_changing_an_input_before_the_backward_pass_is_an_error(case: Case, link: Link) -> None:
    inputs = draw(5, 9, seed=13)
    for changed in range(2 + len(case.extras)):
        with ops.backend("cpu"):
            leaves = [t.clone().requires_grad_() for t in inputs.tensors(case)]
            tensors = [t * 1 for t in leaves]
            value = inputs.evaluate(case, link, tensors)
            with torch.no_grad():
                tensors[changed].add_(1.0)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                value.sum().backward()
