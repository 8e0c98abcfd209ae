"""What is computed from a fitted model or from counts, without gradients."""

from __future__ import annotations

from torch import Tensor

from countvi.ops import reference
from countvi.ops._backend import implementation
from countvi.ops.reference import FoldChanges


def fold_changes(first: Tensor, second: Tensor, pseudocounts: Tensor, delta: float) -> FoldChanges:
    r"""Log fold changes between pairs of numbers, and what is said of them by column.

    .. math:: e_{pg} = \log_2 \frac{a_{pg} + c_g}{b_{pg} + c_g}

    Parameters
    ----------
    first, second
        a and b, not negative, shape ``(pairs, columns)``; at least one pair.
    pseudocounts
        c, at least 1e-12, shape ``(columns,)``.
    delta
        What a change must reach to count as one, not negative.

    Returns
    -------
    FoldChanges
        The changes by column, shares of pairs that reach delta, and moments. Not differentiable.

    Notes
    -----
    Error in float32: 5e-7 of the larger of 1 and the change; shares count the changes as computed. Sums are made in
    float64.
    """
    chosen = implementation(first, second, pseudocounts)
    return chosen.fold_changes(first.detach(), second.detach(), pseudocounts.detach(), delta)


def non_negative_least_squares(gram: Tensor, cross: Tensor) -> Tensor:
    r"""Least squares with coefficients that are not negative, for many right-hand sides and one design matrix.

    .. math:: x_s = \operatorname{arg\,min}_{x \ge 0} \| A x - y_s \|^2, \qquad G = A^\top A,\; b_s = A^\top y_s

    Parameters
    ----------
    gram
        G, shape ``(columns, columns)``, symmetric and positive semi-definite.
    cross
        b, shape ``(rows, columns)``.

    Returns
    -------
    Tensor
        x, shape ``(rows, columns)``; not differentiable. Columns of A that are copies of each other share their part.

    Notes
    -----
    Computed in float64. The optimality conditions hold to 1e-10 of the largest entry of a row of b, both scaled to
    columns of A of length one.
    """
    return reference.non_negative_least_squares(gram.detach(), cross.detach())
