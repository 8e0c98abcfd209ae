"""Mixture of two negative binomials, background and foreground, with one inverse dispersion theta.

With delta_k = log mu_k - log theta, D(x, theta) as in :mod:`countvi.ops.reference.negative_binomial`, m the log-odds of
the background, and pi = sigmoid(m),

    q_k = x log mu_k - (x + theta) softplus(delta_k) + D(x, theta) - lgamma(x + 1),
    log p(x) = log(pi exp(q_1) + (1 - pi) exp(q_2)).

The gammas are the same in both, and the components differ by

    d = q_1 - q_2 = x (log mu_1 - log mu_2) - (x + theta) (softplus(delta_1) - softplus(delta_2)).

From the larger of the two, with w the weight of the other, log p = max(q_1, q_2) + log1p(w expm1(-|d|)). Where that
argument has lost its digits, near -1, it is softplus(m + d) - softplus(m) + q_2 or its mirror image.

With s = sigmoid(m + d) the share of the background in this entry, d log p / d log mu_1 is s times that of the
component, and so on; by the log-odds it is s - pi, in a form that does not cancel for small d,

    s - pi = sigmoid(m) sigmoid(-m - d) expm1(d) for d <= 0,    -sigmoid(-m) sigmoid(m + d) expm1(-d) for d > 0.

Proteins are few and mostly not zero: everything is computed densely, in float64.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops.reference.gamma import binet, binet_slope, log_ratio, log_ratio_slope
from countvi.ops.reference.rate import softplus
from countvi.typing import CellsGenes, PerCell


def negative_binomial_mixture(
    log_background: CellsGenes,
    log_foreground: CellsGenes,
    mixing_logits: CellsGenes,
    log_theta: Tensor,
    counts: CountBlock,
    measured: Tensor | None = None,
) -> PerCell:
    """Log-likelihood per cell."""
    parameters = torch.broadcast_tensors(log_background, log_foreground, mixing_logits, log_theta)
    return _Entries.apply(*parameters, counts, measured).sum(-1)


class _Entries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_background: Tensor,
        log_foreground: Tensor,
        mixing_logits: Tensor,
        log_theta: Tensor,
        counts: CountBlock,
        measured: Tensor | None,
    ) -> Tensor:
        ctx.terms = _Terms(log_background, log_foreground, mixing_logits, log_theta, counts)
        ctx.measured = measured
        return _where(measured, ctx.terms.log_prob()).to(log_background.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        terms = ctx.terms
        slopes = (terms.d_log_background, terms.d_log_foreground, terms.d_mixing_logits, terms.d_log_theta)
        wanted = zip(ctx.needs_input_grad[:4], slopes, strict=True)
        found = (_where(ctx.measured, slope()).to(grad.dtype) * grad if need else None for need, slope in wanted)
        return (*found, None, None)


def _where(measured: Tensor | None, entries: Tensor) -> Tensor:
    """Zero where nothing was measured, whatever stands there."""
    return entries if measured is None else torch.where(measured, entries, 0.0)


class _Terms:
    """Log-probability and slopes at all entries, in float64."""

    def __init__(
        self,
        log_background: Tensor,
        log_foreground: Tensor,
        mixing_logits: Tensor,
        log_theta: Tensor,
        counts: CountBlock,
    ) -> None:
        self.x = counts.to_dense().double()
        self.log_mu = log_background.double(), log_foreground.double()
        self.m = mixing_logits.double()
        self.theta = log_theta.double().exp()
        self.delta = tuple(log_mu - log_theta.double() for log_mu in self.log_mu)
        self.softened = tuple(softplus(delta) for delta in self.delta)

    @cached_property
    def d(self) -> Tensor:
        """Log-probability in the background minus that in the foreground."""
        softened = self.softened[0] - self.softened[1]
        return self.x * (self.log_mu[0] - self.log_mu[1]) - (self.x + self.theta) * softened

    @cached_property
    def share(self) -> Tensor:
        """Of the background and of the foreground."""
        return torch.stack([torch.sigmoid(self.m + self.d), torch.sigmoid(-self.m - self.d)])

    def log_prob(self) -> Tensor:
        x, theta, m, d = self.x, self.theta, self.m, self.d
        gammas = log_ratio(x, theta, binet(theta)) - torch.lgamma(x + 1)
        powers = [x * log_mu - (x + theta) * s for log_mu, s in zip(self.log_mu, self.softened, strict=True)]
        other_odds = torch.where(d > 0, -m, m)
        t = torch.sigmoid(other_odds) * torch.expm1(-d.abs())
        far = softplus(other_odds - d.abs()) - softplus(other_odds)
        return torch.where(d > 0, *powers) + torch.where(t > -0.5, t.log1p(), far) + gammas

    def d_log_background(self) -> Tensor:
        return self._d_log_mu(0)

    def d_log_foreground(self) -> Tensor:
        return self._d_log_mu(1)

    def _d_log_mu(self, k: int) -> Tensor:
        return self.share[k] * (self.x - self.log_mu[k].exp()) * torch.sigmoid(-self.delta[k])

    def d_mixing_logits(self) -> Tensor:
        m, d = self.m, self.d
        below = torch.sigmoid(m) * self.share[1]
        above = -torch.sigmoid(-m) * self.share[0]
        return torch.where(d > 0, above, below) * torch.expm1(-d.abs())

    def d_log_theta(self) -> Tensor:
        x, theta = self.x, self.theta
        slope = log_ratio_slope(x, theta, binet_slope(theta))
        for share, delta, softened in zip(self.share, self.delta, self.softened, strict=True):
            slope = slope + share * ((x + theta) * torch.sigmoid(delta) - theta * softened)
        return slope
