"""Rectifier and dropout in one: a gate, which multiplies the units forward and the gradient backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_LEVELS = 1 << 32


def rectify(h: Tensor, dropout: float) -> Tensor:
    """Rectifier, then dropout."""
    if dropout == 0.0:
        return functional.relu(h)
    if h.device.type != "cpu" or dropout == 1.0:
        return functional.dropout(functional.relu(h), dropout)
    return _Gate.apply(h, dropout)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, dropout: float) -> Tensor:
        # Random numbers are most of the work: each of 64 bits serves two units.
        bits = torch.empty(-(-h.numel() // 2), dtype=torch.int64).random_(-(2**63), None)
        dropped = round(dropout * _LEVELS)
        kept = bits.view(torch.int32)[: h.numel()].view(h.shape) >= dropped - _LEVELS // 2
        gate = ((h > 0) & kept).to(h.dtype).mul_(_LEVELS / max(_LEVELS - dropped, 1))
        ctx.save_for_backward(gate)
        return h * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gate,) = ctx.saved_tensors
        return grad * gate, None
