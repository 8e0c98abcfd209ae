"""Values that the decoder and the background start from, such that expected counts equal observed ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from countvi.nn.linear import Head
from countvi.nn.observation import ObserveRateShape
from countvi.nn.technical import Background

BACKGROUND_SHARE = 0.2
"""Share of a gene's counts that is taken for background before training."""
# Half a count: a gene that was never seen is not one that cannot be.
_UNSEEN = 0.5
# Small enough that what the last layer makes of its input does not move the mean through the bend of the softplus.
_WEIGHT_SCALE = 0.1
# Variance over mean less one, which is p / (1 - p): genes may look like Poisson by chance, or vary for other reasons.
_LEAST_ODDS, _MOST_ODDS = 0.02, 20.0


@torch.no_grad()
def start_from_counts(
    rho: Head, background: Background | None, sums: Sequence[Tensor], log_unit: Tensor, share: float | None = None
) -> None:
    r"""Set the decoder's bias and the background to the mean of the data.

    With :math:`X_g` the sum of the counts of a gene, :math:`X` of all, :math:`X_{g|a}` and :math:`X_a` within a level,
    u the counts of an average cell, K the number of covariates and b the share of the background,

    .. math:: \rho_g = (1 - b)\, u\, X_g / X, \qquad e^{\beta_{k,a,g}} = (b / K)\, u\, X_{g|a} / X_a,

    so that :math:`\sum_n (T_n / u)(\rho_g + B_{ng}) = X_g` for any number of covariates.

    Parameters
    ----------
    rho
        The decoder's last layer.
    background
        ``None`` where there is none.
    sums
        Sums of counts over the cells of each level, ``(levels, genes)`` for each covariate of the background; without a
        background one tensor, whose levels are added up.
    log_unit
        Logarithm of u.
    share
        b; ``None`` for 0.2 with a background.
    """
    genes = sums[0].double().sum(0)
    unit = log_unit.double().exp()
    frequency = genes.clamp(min=_UNSEEN) / genes.sum().clamp(min=_UNSEEN)
    share = 0.0 if background is None else BACKGROUND_SHARE if share is None else share
    own = (1.0 - share) * unit * frequency
    rho.weight.mul_(_WEIGHT_SCALE)
    rho.bias.copy_(inverse_softplus(own))
    if background is None:
        return
    assert len(sums) == len(background.factors), "one table of sums for each covariate of the background"
    # An average cell's worth of the overall profile, for what a small level happens not to contain.
    levels = [(s.double() + unit * frequency) / (s.double().sum(-1, keepdim=True) + unit) for s in sums]
    background.beta.copy_((share / len(sums) * unit * torch.cat(levels)).log())


@torch.no_grad()
def start_shapes(observe: ObserveRateShape, totals: Tensor, ratio: Tensor) -> None:
    r"""Set the decoder's bias to the mean of the data, and p to their variance.

    With v the ratio of variance and mean, which is :math:`1 / (1 - p)`, and :math:`X_g` the counts of a gene, X of all,

    .. math:: \frac{p_g}{1 - p_g} = v_g - 1, \qquad f^g = \frac{X_g}{X} \frac{1 - p_g}{p_g}.

    Parameters
    ----------
    observe
        The decoder's last layer, and p.
    totals
        Sums of the counts of each gene, shape ``(genes,)``.
    ratio
        v, shape ``(genes,)``.
    """
    odds = (ratio.double() - 1.0).clamp(_LEAST_ODDS, _MOST_ODDS)
    frequency = totals.double().clamp(min=_UNSEEN) / totals.double().sum().clamp(min=_UNSEEN)
    observe.f.weight.mul_(_WEIGHT_SCALE)
    observe.f.bias.copy_(inverse_softplus(frequency / odds))
    observe.p_logits.copy_(odds.log())


def inverse_softplus(values: Tensor) -> Tensor:
    """Return what the softplus of is ``values``, all positive."""
    return values + (-torch.expm1(-values)).log()
