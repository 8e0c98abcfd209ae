"""A normal posterior: its scale, and how far it is from a unit normal.

Each is a handful of operations on few numbers. Done one by one they cost more in bookkeeping than in arithmetic, so
each is a function with a gradient of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def standard_deviation(log_variance: Tensor, floor: float, ceiling: float) -> Tensor:
    """Root of the variance, which stays above a floor."""
    return _StandardDeviation.apply(log_variance, floor, ceiling)


def standard_divergence(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(Normal(loc, scale) || Normal(0, I)) per cell."""
    return _StandardDivergence.apply(loc, scale)


class _StandardDeviation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_variance: Tensor, floor: float, ceiling: float) -> Tensor:
        above = log_variance.clamp(max=ceiling).exp_()
        scale = (above + floor).sqrt_()
        ctx.save_for_backward(log_variance, above, scale)
        ctx.ceiling = ceiling
        return scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        log_variance, above, scale = ctx.saved_tensors
        slope = (above / scale).mul_(log_variance <= ctx.ceiling)
        return slope.mul_(grad).mul_(0.5), None, None


class _StandardDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale)
        squares = torch.addcmul(loc * loc, scale, scale).sub_(1.0)
        return squares.mul_(0.5).sub_(scale.log()).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        return grad * loc, (scale - scale.reciprocal()).mul_(grad)
