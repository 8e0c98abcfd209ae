"""Scale of a posterior, and its divergence from a unit normal."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from countvi import ops

GENERATOR = torch.Generator().manual_seed(0)


def test_the_divergence_is_that_of_normals() -> None:
    loc = torch.randn(4, 7, 3, generator=GENERATOR, dtype=torch.float64)
    scale = torch.rand(4, 7, 3, generator=GENERATOR, dtype=torch.float64) * 3 + 1e-3
    expected = kl_divergence(Normal(loc, scale), Normal(torch.zeros_like(loc), torch.ones_like(scale))).sum(-1)
    torch.testing.assert_close(ops.standard_divergence(loc, scale), expected, rtol=1e-12, atol=1e-12)


def test_a_unit_normal_has_no_divergence() -> None:
    assert ops.standard_divergence(torch.zeros(3, 2), torch.ones(3, 2)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("log_variance", "expected"),
    [(0.0, math.sqrt(1 + 1e-4)), (-200.0, 1e-2), (20.0, math.exp(10.0)), (1e30, math.exp(10.0))],
)
def test_the_scale_stays_between_its_bounds(log_variance: float, expected: float) -> None:
    out = ops.standard_deviation(torch.tensor([log_variance], dtype=torch.float64), 1e-4, 20.0)
    assert out.item() == pytest.approx(expected, rel=1e-9)


def test_slopes() -> None:
    loc = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    log_variance = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(5, 3, generator=GENERATOR, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(ops.standard_divergence, (loc, scale))
    assert torch.autograd.gradcheck(lambda a: ops.standard_deviation(a, 1e-4, 20.0), (log_variance,))


def test_no_slope_beyond_the_ceiling_and_nan_is_seen() -> None:
    log_variance = torch.tensor([25.0, 1.0], requires_grad=True)
    ops.standard_deviation(log_variance, 1e-4, 20.0).sum().backward()
    assert log_variance.grad is not None
    assert log_variance.grad[0] == 0
    assert log_variance.grad[1] > 0
    assert ops.standard_deviation(torch.tensor([math.nan]), 1e-4, 20.0).isnan().all()
    assert ops.standard_divergence(torch.tensor([[math.nan]]), torch.ones(1, 1)).isnan().all()
