"""How much of each type is in a spot: a mixture of known profiles, by least squares."""

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
