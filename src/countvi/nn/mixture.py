"""Abundances of cell types in spots as mixtures of known profiles, by least squares and by Poisson likelihood."""

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
    r"""Abundances by penalised maximum likelihood of Poisson counts: :func:`mixture_of_states` with one state per type.

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
    weights = profiles.new_ones(len(profiles), 1)
    states = profiles.unsqueeze(1)
    return mixture_of_states(counts, states, weights, start.unsqueeze(-1), sparsity=sparsity, n_steps=n_steps)[..., 0]


@torch.no_grad()
def mixture_of_states(
    counts: CountBlock,
    profiles: Tensor,
    weights: Tensor,
    start: Tensor,
    *,
    sparsity: float = 0.0,
    concentration: float = 0.0,
    n_steps: int = 100,
) -> Tensor:
    r"""Abundances of types in several states, by penalised maximum likelihood of Poisson counts.

    With :math:`n_{sck} = v_{sck} \sum_g r_{ckg}` counts of spot s from type c in state k, of which type c has
    :math:`n_{sc}`,

    .. math:: \hat v_s = \operatorname{arg\,max}_{v \ge 0} \sum_g \big( y_{sg} \log \rho_{sg} - \rho_{sg} \big)
        - \kappa \sum_c \log n_{sc} + \lambda \sum_{ck} w_{ck} \log \frac{n_{sck}}{n_{sc}},
        \qquad \rho_{sg} = \sum_{ck} v_{sck}\, r_{ckg}

    by expectation and maximisation in turn: no step makes it worse. A type that would explain fewer than
    :math:`\kappa` counts disappears, and with 0 none ever does.

    Parameters
    ----------
    counts
        Spots, shape ``(spots, genes)``.
    profiles
        Expected expression r of each type in each state, not negative, shape ``(types, states, genes)``.
    weights
        w, how frequent the states of a type are, shape ``(types, states)``; rows sum to one.
    start
        Where to start, shape ``(spots, types, states)``; what is at zero stays there if the concentration is 0.
    sparsity
        :math:`\kappa`, in counts.
    concentration
        :math:`\lambda`, in counts: how many it takes for the states of a type in a spot to leave their frequencies.
    n_steps
        Number of steps.

    Returns
    -------
    Tensor
        v, shape ``(spots, types, states)``, in the precision of the profiles.
    """
    n_types, n_states, n_genes = profiles.shape
    tiny = torch.finfo(profiles.dtype).tiny
    flat = profiles.reshape(-1, n_genes)
    totals = flat.sum(-1).view(n_types, n_states).clamp(min=tiny)
    observed = counts.to(dtype=profiles.dtype).to_dense()
    v = start.to(profiles.dtype)
    for _ in range(n_steps):
        rate = v.flatten(1) @ flat
        share = torch.where(rate > 0, observed / rate.clamp(min=tiny), 0.0)
        explained = v * (share @ flat.T).view(-1, n_types, n_states)
        of_type = explained.sum(-1, keepdim=True)
        states = (explained + concentration * weights) / (of_type + concentration).clamp(min=tiny)
        v = (of_type - sparsity).clamp(min=0.0) * states / totals
    return v
