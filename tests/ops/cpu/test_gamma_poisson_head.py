"""The last layer and the likelihood in one, against the two in float64, and what is kept for the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Indexed

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

CELLS, GENES, HIDDEN = 13, 37, 5
# Relative to the largest entry of each result: roundings in float32, and sums over genes and cells.
TOLERANCE = 2e-6


def problem(samples: tuple[int, ...] = ()) -> tuple[list[Tensor], list[Tensor | None], CountBlock]:
    generator = torch.Generator().manual_seed(len(samples))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    counts = torch.poisson(torch.rand(CELLS, GENES, generator=generator) * 2, generator=generator)
    codes = [torch.randint(2, (CELLS,), generator=generator), torch.randint(3, (CELLS,), generator=generator), None]
    tensors = [
        normal(*samples, CELLS, HIDDEN),
        normal(GENES, HIDDEN),
        normal(GENES),
        0.3 * normal(*samples, CELLS),
        normal(2, GENES),
        normal(3, GENES) - 2,
        0.2 * normal(1, GENES),
    ]
    return tensors, codes, CountBlock.from_dense(counts)


def leaves_of(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype).clone().requires_grad_() for tensor in tensors]


def fused(leaves: list[Tensor], codes, counts: CountBlock, step: int, n_cells: int = CELLS) -> Tensor:
    hidden, weight, bias, library, *tables = leaves
    rows = tuple(Indexed(table, code) for table, code in zip(tables, codes, strict=True))
    return ops.gamma_poisson_head(hidden, weight, bias, library, rows, counts, step, n_cells)


def apart(leaves: list[Tensor], codes, counts: CountBlock) -> Tensor:
    hidden, weight, bias, library, *tables = leaves
    rows = [Indexed(table, code) for table, code in zip(tables, codes, strict=True)]
    return ops.gamma_poisson(hidden @ weight.T + bias, library, *rows, counts)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("loss", ["mean", "of a part", "weighted"])
@pytest.mark.parametrize("samples", [(), (2,)], ids=str)
@pytest.mark.parametrize("step", [GENES, 10, 1])
def test_value_and_gradients(step, samples, loss, backend):
    """With the loss that is expected, one over more cells, and one that is no mean at all."""
    tensors, codes, counts = problem(samples)
    weights = torch.rand(*samples, CELLS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    n_cells = 40 if loss == "of a part" else CELLS

    def descend(out: Tensor) -> Tensor:
        return (
            (out * weights.to(out.dtype)).sum()
            if loss == "weighted"
            else -out.sum() / (n_cells * (2 if samples else 1))
        )

    with ops.backend(backend):
        ours = leaves_of(tensors, torch.float32)
        found = fused(ours, codes, counts, step, n_cells)
        slopes = torch.autograd.grad(descend(found), ours)
    exact = leaves_of(tensors, torch.float64)
    with ops.backend("reference"):
        expected = apart(exact, codes, counts.to(dtype=torch.float64))
        exact_slopes = torch.autograd.grad(descend(expected), exact)
    for a, b in zip((found, *slopes), (expected, *exact_slopes), strict=True):
        assert a.shape == b.shape
        assert ((a.double() - b).abs() <= TOLERANCE * b.abs().max() + 1e-7).all()


def test_each_gradient_alone():
    tensors, codes, counts = problem()
    whole = leaves_of(tensors, torch.float32)
    with ops.backend("cpu"):
        expected = torch.autograd.grad(-fused(whole, codes, counts, 10).mean(), whole)
        for i in range(len(tensors)):
            leaves = [tensor.clone().requires_grad_(i == j) for j, tensor in enumerate(tensors)]
            (found,) = torch.autograd.grad(-fused(leaves, codes, counts, 10).mean(), [leaves[i]])
            torch.testing.assert_close(found, expected[i])


def test_asked_for_twice():
    tensors, codes, counts = problem()
    leaves = leaves_of(tensors, torch.float32)
    with ops.backend("cpu"):
        loss = -fused(leaves, codes, counts, 10).mean()
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_a_weight_stored_by_input_gets_a_gradient_stored_so():
    tensors, codes, counts = problem()
    tensors[1] = tensors[1].t().contiguous().t()
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with ops.backend("cpu"):
        (-fused(leaves, codes, counts, 10).mean()).backward()
    assert leaves[1].grad is not None
    assert leaves[1].grad.t().is_contiguous()


def test_no_logits_are_kept():
    """What autograd holds between the passes has no matrix of cells x genes."""
    tensors, codes, counts = problem()
    leaves, kept = leaves_of(tensors, torch.float32), []
    with ops.backend("cpu"), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        fused(leaves, codes, counts, 10)
    assert kept
    assert torch.Size((CELLS, GENES)) not in kept


def test_mu_far_above_theta_and_nan():
    """A ratio of the two that overflows in float32, and a cell that is lost."""
    tensors, codes, counts = problem()
    tensors[4][0] = -60.0
    tensors[3][:] = 20.0
    exact = leaves_of(tensors, torch.float64)
    with ops.backend("reference"):
        expected = apart(exact, codes, counts.to(dtype=torch.float64))
    with ops.backend("cpu"):
        ours = leaves_of(tensors, torch.float32)
        found = fused(ours, codes, counts, GENES)
        slopes = torch.autograd.grad(-found.mean(), ours)
        tensors[0][3] = torch.nan
        spoilt = fused(leaves_of(tensors, torch.float32), codes, counts, GENES)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)
    for a, b in zip(slopes, torch.autograd.grad(-expected.mean(), exact), strict=True):
        assert ((a.double() - b).abs() <= 1e-5 * b.abs().max() + 1e-7).all()
    assert spoilt.isnan().tolist() == [cell == 3 for cell in range(CELLS)]
