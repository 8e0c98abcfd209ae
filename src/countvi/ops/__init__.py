r"""Numerics with exact gradients: tensors in, tensors out.

A function that has kernels chooses an implementation by the backend in force (:func:`backend`);
:mod:`countvi.ops.reference` has all functions, and is the specification that every implementation is tested against.

The likelihoods share their arguments. ``logits`` are what the decoder's last layer gives, before any normalisation;
``log_library`` is the logarithm of the size of each cell, ``-inf`` for an empty one; together with a :class:`Link` they
make :math:`\log\mu` (:func:`log_rate`). Leading ``samples`` axes are optional on every tensor and broadcast; counts
have none. Counts may be fractions and stored zeros are allowed. Half precision is widened to float32. Results are
differentiable once, with respect to every tensor of floating point. Nothing is added to a logarithm's argument: zero
means zero.

Errors in float32 are measured against mpmath with 50 digits. The error that comes with :math:`\log\mu` in float32 is
not the operation's and adds to what is stated: half a unit in the last place of :math:`\log\mu` (5e-7 at
:math:`\mu` = 1e6) times the slope, which is at most :math:`|x - \mu|`.
"""

from __future__ import annotations

from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops import reference
from countvi.ops._backend import active_backend, backend, full, implementation
from countvi.ops._likelihoods import (
    gamma_poisson,
    mixed_types_negative_binomial,
    negative_binomial_mixture,
    rate_shape_negative_binomial,
)
from countvi.ops._networks import (
    batch_norm_rectify,
    linear,
    rectify,
    sparse_linear,
    standard_deviation,
    standard_divergence,
)
from countvi.ops.affine import Affine
from countvi.ops.link import Link
from countvi.ops.reference import FoldChanges
from countvi.ops.rows import Rows
from countvi.typing import Cells, CellsGenes, CellsHidden

__all__ = [
    "Affine",
    "FoldChanges",
    "Link",
    "Rows",
    "active_backend",
    "backend",
    "batch_norm_rectify",
    "fold_changes",
    "gamma_poisson",
    "gamma_poisson_head",
    "linear",
    "log_rate",
    "log_scale",
    "mixed_types_negative_binomial",
    "negative_binomial",
    "negative_binomial_mixture",
    "non_negative_least_squares",
    "normal",
    "poisson",
    "rate_shape_negative_binomial",
    "rectify",
    "scale",
    "sparse_linear",
    "standard_deviation",
    "standard_divergence",
    "zero_inflated_negative_binomial",
]


def log_scale(logits: CellsGenes, link: Link) -> CellsGenes:
    r"""Logarithm of :math:`\rho`, the mean before it is multiplied by the library size.

    .. math:: \log\rho = \mathrm{log\,softmax}(\text{logits})
        \quad\text{or}\quad \log\log(1 + e^{\text{logits}})

    Parameters
    ----------
    logits
        Any real number, shape ``(*samples, cells, genes)``.
    link
        Which of the two.

    Returns
    -------
    Tensor
        Shape ``(*samples, cells, genes)``. With the softplus, finite and with the right slope however negative the
        logits are; error in float32 below 2e-7 of the larger of 1 and the result.
    """
    return reference.log_scale(logits, link)


def scale(logits: CellsGenes, link: Link) -> CellsGenes:
    r""":math:`\rho`, the mean before it is multiplied by the library size; see :func:`log_scale`.

    Parameters
    ----------
    logits
        Any real number, shape ``(*samples, cells, genes)``.
    link
        Softmax, or softplus.

    Returns
    -------
    Tensor
        Shape ``(*samples, cells, genes)``.
    """
    return reference.scale(logits, link)


def log_rate(logits: CellsGenes, log_library: Cells, link: Link) -> CellsGenes:
    r"""Logarithm of the mean :math:`\mu = \ell\rho`.

    Parameters
    ----------
    logits
        Any real number, shape ``(*samples, cells, genes)``.
    log_library
        Logarithm of the library size or size factor, ``-inf`` allowed, shape ``(*samples, cells)`` or ``(cells,)``.
    link
        How logits become :math:`\rho`; see :func:`log_scale`.

    Returns
    -------
    Tensor
        Shape ``(*samples, cells, genes)``.
    """
    return reference.log_rate(logits, log_library, link)


def negative_binomial(
    logits: CellsGenes, log_library: Cells, log_theta: Tensor, counts: CountBlock, link: Link
) -> Cells:
    r"""Log-likelihood of counts that are negative binomial with mean mu and inverse dispersion theta.

    .. math:: \log p(x) = \log\Gamma(x + \theta) - \log\Gamma(\theta) - \log\Gamma(x + 1)
        + \theta \log\frac{\theta}{\theta + \mu} + x \log\frac{\mu}{\theta + \mu},
        \qquad \mathrm{Var}[x] = \mu + \mu^2 / \theta

    Parameters
    ----------
    logits, log_library, link
        Make :math:`\log\mu`; see :func:`log_rate`. The sum stays below 80.
    log_theta
        Between -80 and 80, shape ``(genes,)``, ``(cells, genes)`` or ``(*samples, cells, genes)``. Towards infinity the
        result tends to :func:`poisson`.
    counts
        Non-negative, shape ``(cells, genes)``.

    Returns
    -------
    Tensor
        Nats per cell, shape ``(*samples, cells)``; ``-inf`` where a cell with ``log_library = -inf`` has counts.

    Notes
    -----
    Error in float32, for theta in 1e-4 ... 1e8, mu in 1e-6 ... 1e6 and counts 0 ... 1e6: below 2e-6 of the value for
    each entry; below 2e-6 of the slopes by :math:`\log\mu` and :math:`\log\theta`, plus 1e-9. For whole cells
    of 2,000 to 20,000 genes and up to 1e5 counts: below 1e-6 of the value.
    """
    logits, log_library, log_theta = full(logits), full(log_library), full(log_theta)
    chosen = implementation(logits, log_library, log_theta)
    return chosen.negative_binomial(logits, log_library, log_theta, counts, link)


def zero_inflated_negative_binomial(
    logits: CellsGenes, log_library: Cells, log_theta: Tensor, pi_logits: CellsGenes, counts: CountBlock, link: Link
) -> Cells:
    r"""Log-likelihood of negative binomial counts that were replaced by zero with probability pi.

    .. math:: \log p(0) = \log\left(\pi + (1 - \pi)\, \mathrm{NB}(0)\right), \qquad
        \log p(x) = \log(1 - \pi) + \log \mathrm{NB}(x), \qquad \pi = \mathrm{sigmoid}(\text{pi\_logits})

    Parameters
    ----------
    logits, log_library, link, log_theta, counts
        As in :func:`negative_binomial`.
    pi_logits
        Log-odds of the dropout probability, any real number, shape ``(*samples, cells, genes)``. Towards minus infinity
        the result tends to :func:`negative_binomial`.

    Returns
    -------
    Tensor
        Nats per cell, shape ``(*samples, cells)``.

    Notes
    -----
    Error in float32 as in :func:`negative_binomial`, for ``pi_logits`` in -40 ... 40; the slope by ``pi_logits`` too is
    right to 3e-6 of its value. At a zero, 2e-6 of log NB(0) adds to the relative error of the slopes, which depend on
    its exponential.
    """
    logits, log_library, log_theta, pi_logits = (full(t) for t in (logits, log_library, log_theta, pi_logits))
    chosen = implementation(logits, log_library, log_theta, pi_logits)
    return chosen.zero_inflated_negative_binomial(logits, log_library, log_theta, pi_logits, counts, link)


def gamma_poisson_head(
    hidden: CellsHidden,
    weight: Tensor,
    bias: Tensor,
    log_library: Cells,
    tables: tuple[Rows, Rows | None, Rows | None],
    counts: CountBlock,
    step: int,
    n_cells: int,
) -> Cells:
    """Last layer of a decoder and :func:`gamma_poisson` in one: no matrix of cells x genes is kept for the gradient.

    Parameters
    ----------
    hidden, weight, bias
        As in :func:`linear`, which makes the logits.
    log_library, counts
        As in :func:`gamma_poisson`.
    tables
        Its ``log_theta``, ``log_background`` and ``log_scaling``.
    step
        How many genes to do at a time: what bounds the memory.
    n_cells
        How many cells the loss is a mean over, if it is one; with another loss all is computed twice.

    Returns
    -------
    Tensor
        Nats per cell, shape ``(*samples, cells)``.

    Notes
    -----
    Errors as in :func:`gamma_poisson`.
    """
    hidden, log_library = full(hidden), full(log_library)
    chosen = implementation(hidden, weight, bias, log_library, *(rows.table for rows in tables if rows is not None))
    return chosen.gamma_poisson_head(hidden, weight, bias, log_library, tables, counts, step, n_cells)


def poisson(logits: CellsGenes, log_library: Cells, counts: CountBlock, link: Link) -> Cells:
    r"""Log-likelihood of Poisson counts.

    .. math:: \log p(x) = x \log\mu - \mu - \log\Gamma(x + 1)

    Parameters
    ----------
    logits, log_library, link
        Make :math:`\log\mu`; see :func:`log_rate`. The sum stays below 80.
    counts
        Non-negative, shape ``(cells, genes)``.

    Returns
    -------
    Tensor
        Nats per cell, shape ``(*samples, cells)``; ``-inf`` where a cell with ``log_library = -inf`` has counts.

    Notes
    -----
    Error in float32, for mu in 1e-6 ... 1e6 and counts 0 ... 1e6: below 2e-7 of the value and of the slope by
    :math:`\log\mu` for each entry.
    """
    logits, log_library = full(logits), full(log_library)
    return implementation(logits, log_library).poisson(logits, log_library, counts, link)


def normal(logits: CellsGenes, log_library: Cells, log_scale: Tensor, counts: CountBlock, link: Link) -> Cells:
    r"""Log-likelihood of values that are normal around the rate.

    .. math:: \log p(x) = -\frac{(x - \mu)^2}{2\sigma^2} - \log\sigma - \frac{1}{2}\log 2\pi

    Parameters
    ----------
    logits, log_library, link
        Make :math:`\log\mu`; see :func:`log_rate`. The sum stays below 40, so that the square of the mean is finite.
    log_scale
        Logarithm of the standard deviation sigma, shape ``(genes,)``, ``(cells, genes)`` or
        ``(*samples, cells, genes)``.
    counts
        Any real number, shape ``(cells, genes)``.

    Returns
    -------
    Tensor
        Nats per cell, shape ``(*samples, cells)``.

    Notes
    -----
    Error in float32 for each entry: below 5e-7 of the larger of 1, ``|log_scale|`` and
    :math:`(|x| + \mu)|x - \mu| / \sigma^2`: the mean is rounded to float32 before it is subtracted.
    """
    return reference.normal(logits, log_library, log_scale, counts, link)


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
