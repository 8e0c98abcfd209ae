"""Dense products through oneDNN, in float32.

torch takes MKL for them, which on processors that are not Intel's uses half the width of the vector units; oneDNN uses
all of it. The entry point is the one that torch's own compiler calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Below so many multiplications the call costs more than is gained.
_WORTHWHILE = 1 << 22


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x`` times the transposed weight, plus the bias."""
    if torch.is_autocast_enabled("cpu") or not _is_worthwhile(x, weight):
        return functional.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return :func:`linear` of a matrix in float32, without a gradient; both may be parts of larger matrices."""
    return _product(x, weight, bias) if _is_worthwhile(x, weight) else functional.linear(x, weight, bias)


def _is_worthwhile(x: Tensor, weight: Tensor) -> bool:
    if x.numel() * weight.shape[0] < _WORTHWHILE or _onednn() is None:
        return False
    return _in_one_piece(x) and _in_one_piece(weight)


def _in_one_piece(matrix: Tensor) -> bool:
    # Rows or columns of a larger matrix oneDNN multiplies number by number, hundreds of times slower.
    return matrix.ndim != 2 or matrix.is_contiguous() or matrix.t().is_contiguous()


def _onednn() -> Any:
    """Return oneDNN's product, ``None`` where torch was built without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _onednn()(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        flat = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[0]:
            d_x = product(flat, weight.t(), None).view(x.shape)
        if ctx.needs_input_grad[1]:
            d_weight = product(x.reshape(-1, x.shape[-1]).t(), flat.t(), None).t()
        if ctx.needs_input_grad[2]:
            d_bias = flat.sum(0)
        return d_x, d_weight, d_bias
