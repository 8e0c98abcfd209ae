"""The kernel of counts around a rate with background and scaling, against the reference in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Indexed

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

# Relative to the largest entry of each result: eight roundings in float32 on the way to a slope, and one in each logit.
TOLERANCE = 1e-6


def counts_of(cells: int, genes: int, generator: torch.Generator) -> CountBlock:
    dense = torch.poisson(torch.rand(cells, genes, generator=generator) * 3, generator=generator)
    dense[torch.rand(cells, genes, generator=generator) < 0.7] = 0
    dense[0] = 0
    dense[-1, : genes // 3] = 12.5
    dense[-1, -1] = 3e5
    return CountBlock.from_dense(dense)


def problem(cells: int, genes: int, rows: tuple[int, int, int], samples: tuple[int, ...] = ()):
    generator = torch.Generator().manual_seed(cells * genes + sum(rows))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tables = [
        None if n == 0 else loc + scale * normal(n, genes)
        for n, loc, scale in zip(rows, (0.5, -2.0, 0.0), (1.5, 2.0, 0.3), strict=True)
    ]
    codes = [torch.randint(n, (cells,), generator=generator) if n > 1 else None for n in rows]
    tensors = [3 * normal(*samples, cells, genes), normal(*samples, cells), *tables]
    return tensors, codes, counts_of(cells, genes, generator)


def evaluate(backend: str, dtype: torch.dtype, tensors, codes, counts, weight: Tensor | None) -> list[Tensor | None]:
    leaves = [None if t is None else t.to(dtype).clone().requires_grad_() for t in tensors]
    logits, library, *tables = leaves
    rows = [None if t is None else Indexed(t, code) for t, code in zip(tables, codes, strict=True)]
    with ops.backend(backend):
        out = ops.gamma_poisson(logits, library, *rows, counts)
    (-out.mean() if weight is None else (out * weight.to(dtype)).sum()).backward()
    return [out.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


def assert_agrees(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None) is (b is None)
        if a is not None and b is not None:
            assert a.dtype == torch.float32
            assert a.shape == b.shape
            assert ((a.double() - b).abs() <= TOLERANCE * b.abs().max() + 1e-9).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("samples", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("rows", [(1, 1, 1), (3, 2, 4), (2, 0, 0), (1, 3, 0), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (41, 401)], ids=str)
def test_value_and_gradients(shape, rows, samples, weighted) -> None:
    tensors, codes, counts = problem(*shape, rows, samples)
    weight = torch.rand(*samples, shape[0], generator=torch.Generator().manual_seed(9)) if weighted else None
    found = evaluate("cpu", torch.float32, tensors, codes, counts, weight)
    assert_agrees(found, evaluate("reference", torch.float64, tensors, codes, counts, weight))


def test_each_subset_of_gradients() -> None:
    tensors, codes, counts = problem(9, 30, (2, 2, 2))
    full = evaluate("cpu", torch.float32, tensors, codes, counts, None)
    for asked in itertools.product((True, False), repeat=5):
        leaves = [t.clone().requires_grad_(a) for t, a in zip(tensors, asked, strict=True)]
        logits, library, *tables = leaves
        rows = [Indexed(t, code) for t, code in zip(tables, codes, strict=True)]
        with ops.backend("cpu"):
            out = ops.gamma_poisson(logits, library, *rows, counts)
        assert torch.equal(out.detach(), full[0])
        if any(asked):
            (-out.mean()).backward()
        for leaf, is_asked, expected in zip(leaves, asked, full[1:], strict=True):
            assert torch.equal(leaf.grad, expected) if is_asked else leaf.grad is None


def test_asked_for_twice() -> None:
    tensors, codes, counts = problem(9, 30, (2, 2, 2))
    leaf = tensors[0].clone().requires_grad_()
    rows = [Indexed(t, code) for t, code in zip(tensors[2:], codes, strict=True)]
    with ops.backend("cpu"):
        loss = -ops.gamma_poisson(leaf, tensors[1], *rows, counts).mean()
    once, twice = (torch.autograd.grad(loss, leaf, retain_graph=True)[0].clone() for _ in range(2))
    assert torch.equal(once, twice)


def test_extremes_are_finite() -> None:
    """Logits at which the softplus underflows, no background, an empty cell without a library."""
    logits = torch.tensor([[-200.0, 80.0, 0.0], [-95.0, -30.0, 40.0], [0.0, 0.0, 0.0]], requires_grad=True)
    library = torch.tensor([0.0, -3.0, -torch.inf], requires_grad=True)
    background = torch.tensor([[-torch.inf, -80.0, 2.0]], requires_grad=True)
    theta = torch.tensor([[-20.0, 30.0, 0.0]], requires_grad=True)
    counts = CountBlock.from_dense(torch.tensor([[0.0, 2.0, 0.0], [0.0, 1.0, 5.0], [0.0, 0.0, 0.0]]))
    with ops.backend("cpu"):
        out = ops.gamma_poisson(logits, library, Indexed(theta, None), Indexed(background, None), None, counts)
    gradients = torch.autograd.grad(out.sum(), [logits, theta])
    assert out.isfinite().all()
    assert out[2] == 0
    assert all(g.isfinite().all() for g in gradients)


def test_nan_stays_in_its_cell() -> None:
    tensors, codes, counts = problem(6, 20, (2, 2, 2))
    rows = [Indexed(t, code) for t, code in zip(tensors[2:], codes, strict=True)]
    spoilt = tensors[0].clone()
    spoilt[3, 7] = torch.nan
    with ops.backend("cpu"):
        out = ops.gamma_poisson(spoilt, tensors[1], *rows, counts)
    assert out.isnan().tolist() == [cell == 3 for cell in range(6)]


def test_counts_of_another_size_are_refused() -> None:
    tensors, codes, _ = problem(6, 20, (2, 2, 2))
    rows = [Indexed(t, code) for t, code in zip(tensors[2:], codes, strict=True)]
    with ops.backend("cpu"), pytest.raises(AssertionError, match="fit"):
        ops.gamma_poisson(tensors[0], tensors[1], *rows, CountBlock.from_dense(torch.ones(6, 21)))


@pytest.mark.parametrize("code", [[0, 1, 2, 0, 0, 0], [0, -1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0] * 7])
def test_codes_that_do_not_fit_are_refused(code: list[int]) -> None:
    tensors, codes, counts = problem(6, 20, (2, 2, 2))
    rows = [Indexed(t, code_) for t, code_ in zip(tensors[2:], codes, strict=True)]
    for position in range(3):
        wrong = [*rows]
        wrong[position] = Indexed(rows[position].table, torch.tensor(code))
        with ops.backend("cpu"), pytest.raises(AssertionError, match="code"):
            ops.gamma_poisson(tensors[0], tensors[1], *wrong, counts)


def test_tables_that_do_not_fit_are_refused() -> None:
    tensors, _, counts = problem(6, 20, (2, 2, 2))
    with ops.backend("cpu"), pytest.raises(AssertionError, match="no code"):
        ops.gamma_poisson(tensors[0], tensors[1], Indexed(tensors[2], None), None, None, counts)
    with ops.backend("cpu"), pytest.raises(AssertionError, match="genes"):
        ops.gamma_poisson(tensors[0], tensors[1], Indexed(torch.zeros(1, 40), None), None, None, counts)
