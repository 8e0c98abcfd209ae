"""Rectifier and dropout in one: a gate, which multiplies the units forward and the gradient backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from countvi import seeding

_LEVELS = 1 << 16


def drop(x: Tensor, dropout: float) -> Tensor:
    """Dropout."""
    generator = seeding.layer_generator()
    if generator is None or x.device.type != "cpu" or dropout in (0.0, 1.0):
        return functional.dropout(x, dropout)
    return x * torch.empty_like(x).bernoulli_(1.0 - dropout, generator=generator).div_(1.0 - dropout)


def rectify(h: Tensor, dropout: float) -> Tensor:
    """Rectifier, then dropout."""
    if dropout == 0.0:
        return functional.relu(h)
    if h.device.type != "cpu" or dropout == 1.0:
        return drop(functional.relu(h), dropout)
    return _Gate.apply(h, dropout)


def batch_norm_rectify(
    h: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], momentum: float, eps: float, dropout: float
) -> Tensor:
    """Batch normalisation, rectifier, dropout."""
    if h.device.type != "cpu" or dropout == 1.0:
        normed = functional.batch_norm(h, *running, weight, bias, training=True, momentum=momentum, eps=eps)
        return rectify(normed, dropout)
    return _NormedGate.apply(h, weight, bias, running, momentum, eps, dropout)


def _gate(h: Tensor, dropout: float) -> Tensor:
    """What each unit is multiplied by: zero, or what makes up for those that are dropped."""
    positive = h > 0
    if dropout == 0.0:
        return positive.to(h.dtype)
    # Random numbers are most of the work: each of 64 bits serves four units.
    bits = torch.empty(-(-h.numel() // 4), dtype=torch.int64).random_(
        -(2**63), None, generator=seeding.layer_generator()
    )
    dropped = round(dropout * _LEVELS)
    kept = bits.view(torch.int16)[: h.numel()].view(h.shape) >= dropped - _LEVELS // 2
    return positive.logical_and_(kept).to(h.dtype).mul_(1.0 / (1.0 - dropout))


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, dropout: float) -> Tensor:
        gate = _gate(h, dropout)
        ctx.save_for_backward(gate)
        return h * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gate,) = ctx.saved_tensors
        return grad * gate, None


class _NormedGate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor],
        momentum: float,
        eps: float,
        dropout: float,
    ) -> Tensor:
        out, mean, inverse = torch.native_batch_norm(h, weight, bias, *running, True, momentum, eps)
        gate = _gate(out, dropout)
        ctx.save_for_backward(h, weight, mean, inverse, gate)
        ctx.eps = eps
        return out.mul_(gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, mean, inverse, gate = ctx.saved_tensors
        d_h, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            grad * gate, h, weight, None, None, mean, inverse, True, ctx.eps, ctx.needs_input_grad[:3]
        )
        return d_h, d_weight, d_bias, None, None, None, None
