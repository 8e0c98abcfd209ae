"""Negative binomial whose counts are replaced by zero with probability pi = sigmoid(a).

With q(x) the negative binomial's log-probability,

    log p(0) = log(pi + (1 - pi) exp q(0)) = log1p(t),   t = sigmoid(-a) expm1(q(0)),
    log p(x) = q(x) - softplus(a).

t is in (-1, 0]. Where p(0) is small, 1 + t has lost its digits, and log p(0) = logaddexp(a, q(0)) - softplus(a).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops.link import Link
from countvi.ops.reference.negative_binomial import negative_binomial_entries
from countvi.ops.reference.rate import log_rate, softplus
from countvi.ops.reference.stored import at_stored, put_stored
from countvi.typing import CellsGenes, PerCell


def zero_inflated_negative_binomial(
    logits: CellsGenes, log_library: PerCell, log_theta: Tensor, pi_logits: CellsGenes, counts: CountBlock, link: Link
) -> PerCell:
    """Log-likelihood per cell."""
    entries = negative_binomial_entries(log_rate(logits, log_library, link), log_theta, counts)
    return zero_inflate(entries, pi_logits, counts).sum(-1)


def zero_inflate(entries: CellsGenes, pi_logits: CellsGenes, counts: CountBlock) -> CellsGenes:
    """Log-probability of each count from its log-probability without the inflation."""
    entries, pi_logits = torch.broadcast_tensors(entries, pi_logits)
    return _ZeroInflate.apply(entries, pi_logits, counts)


class _ZeroInflate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entries: Tensor, pi_logits: Tensor, counts: CountBlock) -> Tensor:
        t = torch.sigmoid(-pi_logits) * torch.expm1(entries)
        at_zero = torch.where(t > -0.5, t.log1p(), torch.logaddexp(pi_logits, entries) - softplus(pi_logits))
        ctx.save_for_backward(entries, pi_logits, t)
        ctx.counts = counts
        at_count = at_stored(entries, counts) - softplus(at_stored(pi_logits, counts))
        return put_stored(at_zero, _where_count(counts, at_count, at_stored(at_zero, counts)), counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        entries, pi_logits, t = ctx.saved_tensors
        counts, log_odds = ctx.counts, pi_logits - entries
        grad_entries = grad_pi_logits = None
        if ctx.needs_input_grad[0]:  # the probability that a zero came from the negative binomial
            slope = torch.sigmoid(-log_odds)
            one = slope.new_ones((), dtype=torch.float64)
            grad_entries = grad * put_stored(slope, _where_count(counts, one, at_stored(slope, counts)), counts)
        if ctx.needs_input_grad[1]:  # sigmoid(-a) minus that probability, in a form that does not cancel
            slope = -t * torch.sigmoid(log_odds)
            at_count = -torch.sigmoid(at_stored(pi_logits, counts))
            grad_pi_logits = grad * put_stored(slope, _where_count(counts, at_count, at_stored(slope, counts)), counts)
        return grad_entries, grad_pi_logits, None


def _where_count(counts: CountBlock, at_count: Tensor, at_zero: Tensor) -> Tensor:
    """Tell the stored entries that are counts from the stored zeros."""
    return torch.where(counts.values > 0, at_count, at_zero)
