"""Negative binomial with a shape r of its own for each entry and log-odds p for each gene.

    log p(x) = lgamma(x + r) - lgamma(r) - lgamma(x + 1) - r softplus(p) - x softplus(-p),    mean r exp(p).

At zero it is linear in r. The derivatives are

    d log p(x) / d log r = r (digamma(x + r) - digamma(r)) - r softplus(p),
    d log p(x) / d p     = x sigmoid(-p) - r sigmoid(p).

Where r is small, lgamma(x + r) - lgamma(r) = log r + lgamma(x) for x > 0: below e^-80 it is continued like that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from countvi.batch import CountBlock
from countvi.ops.affine import Affine
from countvi.ops.link import Link
from countvi.ops.reference.gamma import binet, binet_slope, log_ratio, log_ratio_slope
from countvi.ops.reference.rate import log_rate, softplus
from countvi.ops.reference.stored import at_stored, put_stored
from countvi.typing import CellsGenes, CellsTypes, CellsTypesHidden, Genes, PerCell

_LOWEST = -80.0
_SMALLEST = 1e-30
"""By a shape that is smaller, the derivative is as there, so that it stays finite."""


def rate_shape_negative_binomial(
    logits: CellsGenes, log_library: PerCell, p_logits: Genes, counts: CountBlock
) -> PerCell:
    """Log-likelihood per cell."""
    shape = log_library.exp()[..., None] * softplus(logits)
    log_shape = at_stored(log_rate(logits, log_library, Link.SOFTPLUS), counts)
    return _Entries.apply(shape, log_shape, p_logits, counts).sum(-1)


def mixed_types_negative_binomial(
    hidden: CellsTypesHidden,
    layer: Affine,
    log_alpha: Genes,
    abundance: CellsTypes,
    noise: Genes,
    log_library: PerCell,
    p_logits: Genes,
    counts: CountBlock,
) -> PerCell:
    """Log-likelihood per spot."""
    types, of_noise = abundance[:, :-1], abundance[:, -1:]
    types = torch.where(types == 0, 0.0, types)  # without a slope
    with torch.autocast(hidden.device.type, enabled=False):
        profiles = softplus(functional.linear(hidden, *layer))
        mixed = (types[:, None] @ profiles).squeeze(1)
    shape = log_library.exp()[:, None] * (log_alpha.exp() * mixed + of_noise * noise)
    return _Entries.apply(shape, _Log.apply(at_stored(shape, counts)), p_logits, counts).sum(-1)


class _Log(torch.autograd.Function):
    """Logarithm; its derivative is held where a number is about to vanish."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / x.clamp(min=_SMALLEST)


class _Entries(torch.autograd.Function):
    """Log-probability of each count. What is a count is differentiated by the logarithm of r, what is zero by r."""

    @staticmethod
    def forward(ctx: Any, shape: Tensor, log_shape: Tensor, p_logits: Tensor, counts: CountBlock) -> Tensor:
        ctx.save_for_backward(shape, log_shape, p_logits)
        ctx.counts = counts
        x, log_r, p = counts.values.double(), log_shape, p_logits.index_select(0, counts.columns).double()
        r = log_r.clamp(min=_LOWEST).exp()
        gammas = log_ratio(x, r, binet(r)) + x * r.log() + (log_r - r.log()) - torch.lgamma(x + 1)
        # A stored zero in an empty cell would be -inf.
        stored = torch.where(x > 0, gammas, 0.0) - log_r.exp() * softplus(p) - x * softplus(-p)
        return put_stored(-shape * softplus(p_logits), stored, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        shape, log_r, p_logits = ctx.saved_tensors
        counts = ctx.counts
        x, p = counts.values.double(), p_logits.index_select(0, counts.columns).double()
        is_count = x > 0
        d_shape = d_log_shape = d_p = None
        if ctx.needs_input_grad[0]:
            at_zero = torch.where(is_count, 0.0, -softplus(p)).expand(log_r.shape)
            d_shape = put_stored(-softplus(p_logits).expand(shape.shape).clone(), at_zero, counts).mul_(grad)
        if ctx.needs_input_grad[1]:
            r = log_r.clamp(min=_LOWEST).exp()
            slope = log_ratio_slope(x, r, binet_slope(r)) + x - log_r.exp() * softplus(p)
            d_log_shape = torch.where(is_count, slope, 0.0) * at_stored(grad, counts)
        if ctx.needs_input_grad[2]:
            slope = x * torch.sigmoid(-p) - log_r.exp() * torch.sigmoid(p)
            d_p = put_stored(-shape * torch.sigmoid(p_logits), slope, counts).mul_(grad).sum_to_size(p_logits.shape)
        return d_shape, d_log_shape, d_p, None
