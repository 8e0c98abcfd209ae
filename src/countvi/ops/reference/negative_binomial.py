"""Negative binomial with mean mu and inverse dispersion theta, in log space.

With delta = log mu - log theta, and D(x, theta) = lgamma(x + theta) - lgamma(theta) - x log(theta),

    log p(0) = -theta softplus(delta)
    log p(x) = x log mu - (x + theta) softplus(delta) + D(x, theta) - lgamma(x + 1).

Derivatives, arranged so that what cancels for theta to infinity (the Poisson limit) cancels on paper:

    d log p(x) / d log mu    = (x - mu) sigmoid(-delta)
    d log p(x) / d log theta = theta dD/dtheta - theta softplus(delta) + (x + theta) sigmoid(delta)
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops.link import Link
from countvi.ops.reference.gamma import binet, binet_slope, log_ratio, log_ratio_slope
from countvi.ops.reference.rate import log_rate, softplus
from countvi.ops.reference.stored import at_stored, put_stored
from countvi.typing import CellsGenes, PerCell


def negative_binomial(
    logits: CellsGenes, log_library: PerCell, log_theta: Tensor, counts: CountBlock, link: Link
) -> PerCell:
    """Log-likelihood per cell."""
    return negative_binomial_entries(log_rate(logits, log_library, link), log_theta, counts).sum(-1)


def negative_binomial_entries(log_mu: CellsGenes, log_theta: Tensor, counts: CountBlock) -> CellsGenes:
    """Log-probability of each count, ``(*samples, cells, genes)``."""
    shape = torch.broadcast_shapes(log_mu.shape, log_theta.shape)
    return _Entries.apply(log_mu.expand(shape), log_theta, counts)


class _Entries(torch.autograd.Function):
    """The dense matrix of terms at zero, with the stored entries in place."""

    @staticmethod
    def forward(ctx: Any, log_mu: Tensor, log_theta: Tensor, counts: CountBlock) -> Tensor:
        softened = softplus(log_mu - log_theta)
        stored = _Stored(counts, log_mu, log_theta)
        ctx.save_for_backward(softened, log_theta)
        ctx.stored, ctx.counts = stored, counts
        return put_stored(-log_theta.exp() * softened, stored.log_prob(), counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        softened, log_theta = ctx.saved_tensors
        theta = log_theta.exp()
        grad_log_mu = grad_log_theta = None
        if ctx.needs_input_grad[0]:
            slope = softened.neg().expm1_().mul_(theta)
            grad_log_mu = put_stored(slope, ctx.stored.d_log_mu(), ctx.counts).mul_(grad)
        if ctx.needs_input_grad[1]:
            slope = softplus_excess(softened).mul_(-theta)
            slope = put_stored(slope, ctx.stored.d_log_theta(), ctx.counts).mul_(grad)
            grad_log_theta = slope.sum_to_size(log_theta.shape)
        return grad_log_mu, grad_log_theta, None


def softplus_excess(softened: Tensor) -> Tensor:
    """Return softplus(d) - sigmoid(d) = s - (1 - exp(-s)) from s = softplus(d).

    Near s^2 / 2 for small s, where a difference in float32 would be nothing but rounding.
    """
    s = softened.double()
    return s.neg().expm1_().add_(s).to(softened.dtype)


class _Stored:
    """Log-probability and slopes at the stored entries, ``(*samples, nonzeros)``, in float64."""

    def __init__(self, counts: CountBlock, log_mu: Tensor, log_theta: Tensor) -> None:
        self.x = counts.values.double()
        self.log_mu = at_stored(log_mu, counts)
        # What depends on theta alone is computed once per gene where theta is one number per gene.
        per_gene = log_theta.ndim == 1
        self._columns = counts.columns if per_gene else None
        self._log_theta = log_theta.double() if per_gene else at_stored(log_theta, counts)
        self.theta = self._at_entries(self._log_theta.exp())
        self.delta = self.log_mu - self._at_entries(self._log_theta)

    def _at_entries(self, of_theta: Tensor) -> Tensor:
        return of_theta if self._columns is None else of_theta.index_select(0, self._columns)

    @cached_property
    def softened(self) -> Tensor:
        return softplus(self.delta)

    def log_prob(self) -> Tensor:
        x, theta = self.x, self.theta
        ratio = log_ratio(x, theta, self._at_entries(binet(self._log_theta.exp())))
        # A stored zero in an empty cell would be 0 * -inf.
        power = torch.where(x > 0, x * self.log_mu, 0.0)
        return power - (x + theta) * self.softened + ratio - torch.lgamma(x + 1)

    def d_log_mu(self) -> Tensor:
        return (self.x - self.log_mu.exp()) * torch.sigmoid(-self.delta)

    def d_log_theta(self) -> Tensor:
        x, theta = self.x, self.theta
        ratio = log_ratio_slope(x, theta, self._at_entries(binet_slope(self._log_theta.exp())))
        return ratio - theta * self.softened + (x + theta) * torch.sigmoid(self.delta)
