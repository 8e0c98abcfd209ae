"""Negative binomial around a rate that has a background and a scaling, in log space.

With softplus(l) the cell's own rate, B the background and y the scaling of its gene,

    log mu = log library + log y + logaddexp(log softplus(l), log B).

The derivatives, from e = d log p / d log mu of the negative binomial, are

    d / d log library = sum of e over genes,     d / d log y = e,
    d / d log B = e B / (softplus(l) + B),       d / d l = e sigmoid(l) / (softplus(l) + B).

The last one is e times two weights in [0, 1], softplus / (softplus + B) and sigmoid / softplus, so it neither overflows
nor becomes 0 / 0 where the softplus underflows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from countvi.batch import CountBlock
from countvi.ops.indexed import Indexed
from countvi.ops.reference.linear import linear
from countvi.ops.reference.negative_binomial import negative_binomial_entries
from countvi.ops.reference.rate import log_softplus
from countvi.typing import CellsGenes, CellsHidden, PerCell


def gamma_poisson(
    logits: CellsGenes,
    log_library: PerCell,
    log_theta: Indexed,
    log_background: Indexed | None,
    log_scaling: Indexed | None,
    counts: CountBlock,
) -> PerCell:
    """Log-likelihood per cell."""
    log_mu = log_library[..., None] + _log_rho(logits, log_background)
    if log_scaling is not None:
        log_mu = log_mu + log_scaling.of_cells()
    return negative_binomial_entries(log_mu, log_theta.of_cells(), counts).sum(-1)


def _log_rho(logits: CellsGenes, log_background: Indexed | None) -> Tensor:
    own = log_softplus(logits)
    return own if log_background is None else torch.logaddexp(own, log_background.of_cells())


def gamma_poisson_head(
    hidden: CellsHidden,
    weight: Tensor,
    bias: Tensor,
    log_library: PerCell,
    tables: tuple[Indexed, Indexed | None, Indexed | None],
    counts: CountBlock,
    step: int,
    n_cells: int,
) -> PerCell:
    """Log-likelihood per cell, of ``step`` genes at a time; each part is computed again for its gradient."""

    def of(start: int, stop: int, some: CountBlock) -> Tensor:
        rows = [None if table is None else table.genes(start, stop) for table in tables]
        logits = linear(hidden, weight[start:stop], bias[start:stop])
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return gamma_poisson(logits, log_library, rows[0], rows[1], rows[2], some)  # type: ignore[arg-type]

    if step >= counts.n_features:
        return of(0, counts.n_features, counts)
    parts = []
    for start in range(0, counts.n_features, step):
        stop = min(start + step, counts.n_features)
        arguments = (of, start, stop, counts.features(start, stop))
        parts.append(checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False))
    return torch.stack(parts).sum(0)
