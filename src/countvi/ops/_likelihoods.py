"""The likelihoods whose mean is more than a link of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops._backend import full, implementation
from countvi.ops.affine import Affine
from countvi.ops.rows import Rows
from countvi.typing import Cells, CellsGenes, CellsTypes, CellsTypesHidden, Genes


def gamma_poisson(
    logits: CellsGenes,
    log_library: Cells,
    log_theta: Rows,
    log_background: Rows | None,
    log_scaling: Rows | None,
    counts: CountBlock,
) -> Cells:
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


def negative_binomial_mixture(
    log_background: CellsGenes,
    log_foreground: CellsGenes,
    mixing_logits: CellsGenes,
    log_theta: Tensor,
    counts: CountBlock,
    measured: Tensor | None = None,
) -> Cells:
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


def rate_shape_negative_binomial(logits: CellsGenes, log_library: Cells, p_logits: Genes, counts: CountBlock) -> Cells:
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
    log_library: Cells,
    p_logits: Genes,
    counts: CountBlock,
) -> Cells:
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
