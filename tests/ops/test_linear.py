"""The last layer of a decoder against numpy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from countvi import ops

# Sums of n products in float32, each factor and each partial sum rounded: n + 2 roundings of the absolute terms.
UNIT = 2.0**-24


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("by_input", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (130, 300, 128), (2, 64, 500, 128)])
def test_product_and_gradients(shape: tuple[int, ...], by_input: bool, backend: str) -> None:
    *cells, genes, hidden = shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*cells, hidden, generator=generator)
    weight, bias = torch.randn(genes, hidden, generator=generator), torch.randn(genes, generator=generator)
    if by_input:
        weight = weight.t().contiguous().t()
    gradient = torch.randn(*cells, genes, generator=generator)
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    with ops.backend(backend):
        out = ops.linear(*leaves)
        out.backward(gradient)
    assert out.shape == (*cells, genes)
    a, w, b, g = (t.double().numpy() for t in (x, weight, bias, gradient))
    flat_a, flat_g = a.reshape(-1, hidden), g.reshape(-1, genes)
    expected = [
        (out, a @ w.T + b, np.abs(a) @ np.abs(w).T + np.abs(b), hidden),
        (leaves[0].grad, g @ w, np.abs(g) @ np.abs(w), genes),
        (leaves[1].grad, flat_g.T @ flat_a, np.abs(flat_g).T @ np.abs(flat_a), len(flat_a)),
        (leaves[2].grad, flat_g.sum(0), np.abs(flat_g).sum(0), len(flat_g)),
    ]
    for found, truth, size, n in expected:
        assert found is not None
        assert (np.abs(found.detach().numpy() - truth) <= (n + 2) * UNIT * size).all()


def test_the_gradient_lies_as_the_weight_does() -> None:
    """Else it would be copied in every step."""
    weight = torch.randn(128, 600).t().requires_grad_()
    ops.linear(torch.randn(100, 128), weight, torch.zeros(600)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()
