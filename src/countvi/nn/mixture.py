"""How much of each type is in a spot: a mixture of known profiles."""

from __future__ import annotations

import torch
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.typing import CellsGenes

# Counts have a variance of at least their mean, and a gene that no type has says nothing.
_LEAST_SHARE = 1e-12


@torch.no_grad()
def least_squares_abundances(counts: CountBlock, profiles: CellsGenes) -> Tensor:
    r"""Abundances by weighted non-negative least squares.

    .. math:: \hat v_s = \operatorname{arg\,min}_{v \ge 0} \sum_g \frac{1}{\bar r_g}
        \Big( y_{sg} - \sum_c v_c\, r_{cg} \Big)^2

    with :math:`\bar r_g` the mean of a gene over the types: a count varies as much as its mean.

    Parameters
    ----------
    counts
        Spots, shape ``(spots, genes)``.
    profiles
        Expected expression r of each type, not negative, shape ``(types, genes)``.

    Returns
    -------
    Tensor
        v, shape ``(spots, types)``, in the precision of the profiles: counts, if the rows of r sum to one.
    """
    exact = profiles.double()
    mean = exact.mean(0)
    weight = torch.where(mean > _LEAST_SHARE * mean.sum(), 1.0 / mean, 0.0)
    weighted = exact * weight
    cross = ops.sparse_linear(counts, weighted, None, log1p=False)
    return ops.non_negative_least_squares(weighted @ exact.T, cross).to(profiles.dtype)


@torch.no_grad()
def mixture_abundances(
    counts: CountBlock, profiles: CellsGenes, start: Tensor, *, sparsity: float = 0.0, n_steps: int = 100
) -> Tensor:
    r"""Abundances by penalised maximum likelihood of Poisson counts: expectation and maximisation in turn.

    .. math:: \hat v_s = \operatorname{arg\,max}_{v \ge 0} \sum_g \big( y_{sg} \log r_{sg} - r_{sg} \big)
        - k \sum_c \log v_c, \qquad r_{sg} = \sum_c v_c\, r_{cg}

    No step makes it worse. A type that would explain fewer than k counts disappears, and with k = 0 none ever does.

    Parameters
    ----------
    counts
        Spots, shape ``(spots, genes)``.
    profiles
        Expected expression of each type, not negative, shape ``(types, genes)``.
    start
        Where to start, shape ``(spots, types)``; a type at zero stays there.
    sparsity
        k, in counts.
    n_steps
        Number of steps.

    Returns
    -------
    Tensor
        v, shape ``(spots, types)``, in the precision of the profiles.
    """
    totals = profiles.sum(-1)
    observed = counts.to(dtype=profiles.dtype).to_dense()
    tiny = torch.finfo(profiles.dtype).tiny
    v = start.to(profiles.dtype)
    for _ in range(n_steps):
        rate = v @ profiles
        share = torch.where(rate > 0, observed / rate.clamp(min=tiny), 0.0)
        v = (v * (share @ profiles.T) - sparsity).clamp(min=0.0) / totals.clamp(min=tiny)
    return v
