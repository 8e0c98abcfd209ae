"""What encoders and decoders are made of."""

from __future__ import annotations

from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops import reference
from countvi.ops._backend import implementation
from countvi.ops.link import Link
from countvi.typing import CellsGenes, CellsHidden, PerCell


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Last layer of a decoder: an affine map to genes.

    Parameters
    ----------
    x
        Shape ``(*samples, cells, hidden)``.
    weight
        Shape ``(genes, hidden)``.
    bias
        Shape ``(genes,)``.

    Returns
    -------
    Tensor
        Shape ``(*samples, cells, genes)``.

    Notes
    -----
    Fastest with a weight that is stored by its input: the transpose of a contiguous ``(hidden, genes)``.
    """
    return implementation(x, weight, bias).linear(x, weight, bias)


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


def log_rate(logits: CellsGenes, log_library: PerCell, link: Link) -> CellsGenes:
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


def drop(x: Tensor, dropout: float) -> Tensor:
    """Dropout as in training: set a share of the entries to zero, and divide the others by what is left.

    Parameters
    ----------
    x
        Any shape.
    dropout
        Share that is dropped, 0 to 1.

    Returns
    -------
    Tensor
        Of the same shape. On the CPU drawn from :func:`countvi.seeding.layer_generator`.
    """
    return reference.drop(x, dropout)


def rectify(h: Tensor, dropout: float) -> Tensor:
    """Rectifier, then dropout: zero where ``h`` is negative or a unit is switched off, and what is kept scaled up.

    Parameters
    ----------
    h
        Any shape.
    dropout
        Share of units to switch off, from 0 to 1; drawn from torch's global stream.

    Returns
    -------
    Tensor
        The shape of ``h``.

    Notes
    -----
    The share is rounded to a multiple of 2 ** -16 on the CPU.
    """
    return reference.rectify(h, dropout)


def batch_norm_rectify(
    h: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], momentum: float, eps: float, dropout: float
) -> Tensor:
    """Batch normalisation in training, then :func:`rectify`.

    Parameters
    ----------
    h
        Shape ``(cells, units)``, of two cells at least.
    weight, bias
        Scale and shift after the normalisation, shape ``(units,)``.
    running
        Mean and variance over past batches, shape ``(units,)`` each; updated in place.
    momentum
        What a batch weighs in them.
    eps
        Added to the variance of the batch.
    dropout
        As in :func:`rectify`.

    Returns
    -------
    Tensor
        The shape of ``h``.
    """
    return reference.batch_norm_rectify(h, weight, bias, running, momentum, eps, dropout)


def standard_deviation(log_variance: Tensor, floor: float, ceiling: float) -> Tensor:
    r"""Standard deviation of a posterior, :math:`\sqrt{e^{\min(a, c)} + f}`.

    Parameters
    ----------
    log_variance
        a, any real number, any shape.
    floor
        f, at least zero: what the variance stays above.
    ceiling
        c: beyond it the result and its slope are constant.

    Returns
    -------
    Tensor
        The shape of ``log_variance``.
    """
    return reference.standard_deviation(log_variance, floor, ceiling)


def standard_divergence(loc: Tensor, scale: Tensor) -> PerCell:
    r"""Kullback-Leibler divergence of independent normals from unit normals.

    .. math:: \sum_d \tfrac12 \left(m_d^2 + s_d^2 - 1\right) - \log s_d

    Parameters
    ----------
    loc, scale
        m and s, s positive, shape ``(*samples, cells, dimensions)``.

    Returns
    -------
    Tensor
        Nats, shape ``(*samples, cells)``.
    """
    return reference.standard_divergence(loc, scale)


def sparse_linear(
    counts: CountBlock, weight: Tensor, bias: Tensor | None, log1p: bool, divisor: PerCell | None = None
) -> CellsHidden:
    r"""First layer of an encoder: a linear map of counts, or of :math:`\log(1 + x)`.

    Parameters
    ----------
    counts
        Shape ``(cells, genes)``; cast to the precision of the weight. With ``log1p`` the values are above -1.
    weight
        Shape ``(hidden, genes)``.
    bias
        Shape ``(hidden,)``, or ``None``.
    log1p
        Whether to take the logarithm first.
    divisor
        What the counts of each cell are divided by before that, shape ``(cells,)``, or ``None``. It gets no gradient.

    Returns
    -------
    Tensor
        Shape ``(cells, hidden)``.

    Notes
    -----
    Fastest with a weight that is stored by gene: the transpose of a contiguous ``(genes, hidden)``.
    """
    return implementation(weight, *(() if bias is None else (bias,))).sparse_linear(
        counts, weight, bias, log1p, divisor
    )
