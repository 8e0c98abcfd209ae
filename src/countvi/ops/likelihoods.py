"""Log-likelihoods of counts; :mod:`countvi.ops` says what their arguments share."""

from __future__ import annotations

import torch
from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops import reference
from countvi.ops._backend import full, implementation
from countvi.ops.affine import Affine
from countvi.ops.indexed import Indexed
from countvi.ops.link import Link
from countvi.typing import CellsGenes, CellsHidden, CellsTypes, CellsTypesHidden, Genes, PerCell

__all__ = [
    "gamma_poisson",
    "gamma_poisson_head",
    "mixed_types_negative_binomial",
    "negative_binomial",
    "negative_binomial_mixture",
    "normal",
    "poisson",
    "rate_shape_negative_binomial",
    "zero_inflated_negative_binomial",
]


def negative_binomial(
    logits: CellsGenes, log_library: PerCell, log_theta: Tensor, counts: CountBlock, link: Link
) -> PerCell:
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
    logits: CellsGenes, log_library: PerCell, log_theta: Tensor, pi_logits: CellsGenes, counts: CountBlock, link: Link
) -> PerCell:
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


def poisson(logits: CellsGenes, log_library: PerCell, counts: CountBlock, link: Link) -> PerCell:
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


def gamma_poisson(
    logits: CellsGenes,
    log_library: PerCell,
    log_theta: Indexed,
    log_background: Indexed | None,
    log_scaling: Indexed | None,
    counts: CountBlock,
) -> PerCell:
    r"""Log-likelihood of negative binomial counts whose mean has an additive background and a scaling of its gene.

    .. math:: \mu = \ell\, y\, \left(\log(1 + e^{\text{logits}}) + B\right), \qquad
        \mathrm{Var}[x] = \mu + \mu^2 / \theta

    Parameters
    ----------
    logits
        Of the cell's own expression, any real number, shape ``(*samples, cells, genes)``.
    log_library
        Logarithm of :math:`\ell`, ``-inf`` allowed, shape ``(*samples, cells)`` or ``(cells,)``.
    log_theta
        Logarithm of the inverse dispersion, between -80 and 80.
    log_background
        Logarithm of :math:`B`, ``-inf`` allowed; ``None`` for no background, which gives
        :func:`negative_binomial` with the softplus.
    log_scaling
        Logarithm of :math:`y`; ``None`` for one. The logarithm of :math:`\mu` stays below 80.
    counts
        Non-negative, shape ``(cells, genes)``.

    Returns
    -------
    Tensor
        Nats per cell, shape ``(*samples, cells)``; ``-inf`` where a cell with ``log_library = -inf`` has counts.

    Notes
    -----
    The tables are differentiated too: a row's slope is the sum over the cells that take it. Error in float32 as in
    :func:`negative_binomial`; the slopes by ``logits``, ``log_background`` and ``log_scaling`` are right to 3e-6 of
    their value.
    """
    logits, log_library = full(logits), full(log_library)
    tables = (rows.table for rows in (log_theta, log_background, log_scaling) if rows is not None)
    chosen = implementation(logits, log_library, *tables)
    return chosen.gamma_poisson(logits, log_library, log_theta, log_background, log_scaling, counts)


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


def negative_binomial_mixture(
    log_background: CellsGenes,
    log_foreground: CellsGenes,
    mixing_logits: CellsGenes,
    log_theta: Tensor,
    counts: CountBlock,
    measured: Tensor | None = None,
) -> PerCell:
    r"""Log-likelihood of protein counts that are background with probability pi, else foreground.

    .. math:: \log p(x) = \log\left(\pi\, \mathrm{NB}(x; \mu_1, \theta)
        + (1 - \pi)\, \mathrm{NB}(x; \mu_2, \theta)\right), \qquad \pi = \mathrm{sigmoid}(\text{mixing\_logits})

    Parameters
    ----------
    log_background, log_foreground
        Logarithms of the two means, below 80, shape ``(*samples, cells, proteins)``.
    mixing_logits
        Log-odds of the background, any real number, shape ``(*samples, cells, proteins)``.
    log_theta
        Logarithm of the inverse dispersion of both, between -80 and 80, shape ``(proteins,)``, ``(cells, proteins)`` or
        ``(*samples, cells, proteins)``.
    counts
        Non-negative, shape ``(cells, proteins)``.
    measured
        Which proteins were measured in which cells, shape ``(cells, proteins)``, bool; ``None`` if all in all. The
        others contribute exactly nothing, neither to the value nor to a gradient, whatever their counts and parameters.

    Returns
    -------
    Tensor
        Nats per cell, shape ``(*samples, cells)``.

    Notes
    -----
    Computed in float64 and rounded in the end. The foreground need not be the larger one.
    """
    parameters = [full(t) for t in (log_background, log_foreground, mixing_logits, log_theta)]
    return implementation(*parameters).negative_binomial_mixture(*parameters, counts, measured)


def rate_shape_negative_binomial(
    logits: CellsGenes, log_library: PerCell, p_logits: Genes, counts: CountBlock
) -> PerCell:
    r"""Log-likelihood of negative binomial counts whose shape is the rate, with log-odds of each gene.

    .. math:: \log p(x) = \log\Gamma(x + r) - \log\Gamma(r) - \log\Gamma(x + 1)
        - r \log(1 + e^p) - x \log(1 + e^{-p}), \qquad r = \ell \log(1 + e^{\text{logits}})

    The mean is :math:`r e^p` and the variance :math:`r e^p (1 + e^p)`.

    Parameters
    ----------
    logits
        Any real number, shape ``(*samples, cells, genes)``.
    log_library
        Logarithm of :math:`\ell`, ``-inf`` allowed, shape ``(*samples, cells)`` or ``(cells,)``. The logarithm of
        :math:`r` stays below 80.
    p_logits
        :math:`p`, between -80 and 80, shape ``(genes,)``.
    counts
        Non-negative, shape ``(cells, genes)``.

    Returns
    -------
    Tensor
        Nats per cell, shape ``(*samples, cells)``; ``-inf`` where a cell with ``log_library = -inf`` has counts.
    """
    logits, log_library, p_logits = full(logits), full(log_library), full(p_logits)
    chosen = implementation(logits, log_library, p_logits)
    return chosen.rate_shape_negative_binomial(logits, log_library, p_logits, counts)


def mixed_types_negative_binomial(
    hidden: CellsTypesHidden,
    layer: Affine,
    log_alpha: Genes,
    abundance: CellsTypes,
    noise: Genes,
    log_library: PerCell,
    p_logits: Genes,
    counts: CountBlock,
) -> PerCell:
    r"""Log-likelihood of the counts of spots, each a mixture of cell types with a state of their own, and of noise.

    .. math:: r_{sg} = \ell_s \left(\alpha_g \sum_c \beta_{sc} \log(1 + e^{w_g \cdot h_{sc} + b_g})
        + \beta_{s,\mathrm{noise}}\, \epsilon_g\right)

    and counts are negative binomial with shape :math:`r` and log-odds :math:`p_g`: see
    :func:`rate_shape_negative_binomial`.

    Parameters
    ----------
    hidden
        :math:`h`, what the decoder's last layer takes, shape ``(spots, types, hidden)``. There is no axis of samples.
    layer
        :math:`w` and :math:`b`, that last layer. It gets no gradient and may not ask for one.
    log_alpha
        Logarithm of the factor of each gene between the technologies, shape ``(genes,)``.
    abundance
        :math:`\beta`, not negative, shape ``(spots, types + 1)``; the last column is the noise. A type with an
        abundance of exactly zero is left out of the spot: it takes no time, and its abundance has no slope.
    noise
        :math:`\epsilon`, not negative, the profile of the noise, shape ``(genes,)``.
    log_library
        Logarithm of :math:`\ell`, ``-inf`` allowed, shape ``(spots,)``.
    p_logits
        :math:`p`, between -80 and 80, shape ``(genes,)``.
    counts
        Non-negative, shape ``(spots, genes)``.

    Returns
    -------
    Tensor
        Nats per spot, shape ``(spots,)``; ``-inf`` where a spot has counts of a gene of which nothing is expected.
    """
    asks = any(t.requires_grad for t in layer) and torch.is_grad_enabled()
    assert not asks, "the layer is taken as fixed, and gets no gradient: `requires_grad_(False)` first"
    tensors = [full(t) for t in (hidden, log_alpha, abundance, noise, log_library, p_logits)]
    hidden, log_alpha, abundance, noise, log_library, p_logits = tensors
    layer = Affine(*(full(t) for t in layer))
    chosen = implementation(*tensors, *layer)
    return chosen.mixed_types_negative_binomial(
        hidden, layer, log_alpha, abundance, noise, log_library, p_logits, counts
    )


def normal(logits: CellsGenes, log_library: PerCell, log_scale: Tensor, counts: CountBlock, link: Link) -> PerCell:
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
