"""Local inverse Simpson's index: how many levels the neighbourhood of a cell holds (Korsunsky et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from countvi.errors import OptionError
from countvi.metrics._inputs import check_levels, check_states, check_varied, nearest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_CHUNK = 4096
# 80 / 2^35 of log beta is left.
_HALVINGS = 35


def lisi(states: ArrayLike, levels: ArrayLike, perplexity: float = 30.0) -> NDArray[np.float64]:
    r"""Effective number of levels among the neighbours of each cell.

    The inverse of :math:`\sum_l p_l^2` with :math:`p_l` the weight of a level among the nearest :math:`3h - 1` other
    cells. A neighbour at distance d weighs :math:`\propto e^{-\beta d}`, where :math:`\beta` gives the weights of each
    cell the perplexity h.

    Parameters
    ----------
    states
        Shape ``(cells, dimensions)``.
    levels
        Batch or label of each cell.
    perplexity
        Effective number of neighbours.

    Returns
    -------
    numpy.ndarray
        Shape ``(cells,)``, between 1 and the number of levels.

    Raises
    ------
    OptionError
        If there are fewer than ``3 * perplexity`` cells.
    """
    array = check_states(states)
    codes = check_levels(levels, len(array), "levels")
    n_neighbors = int(3 * perplexity) - 1
    if not perplexity >= 1 or n_neighbors >= len(array):
        message = (
            f"perplexity must be at least 1 and at most a third of the number of cells ({len(array):,}); got "
            f"{perplexity}."
        )
        raise OptionError(message)
    distances, rows = nearest(array, n_neighbors)
    n_levels = int(codes.max()) + 1
    out = np.empty(len(array))
    for start in range(0, len(array), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        out[chunk] = _inverse_simpson(_weights(distances[chunk], perplexity), codes[rows[chunk]], n_levels)
    return out


def ilisi(states: ArrayLike, batch: ArrayLike, perplexity: float = 30.0) -> float:
    """Batch mixing from 0, each batch by itself, to 1, all batches in each neighbourhood.

    The median of :func:`lisi` over cells, scaled by the number of batches.
    """
    n_batches = _n_levels(states, batch, "batch")
    return float((np.median(lisi(states, batch, perplexity)) - 1) / (n_batches - 1))


def clisi(states: ArrayLike, labels: ArrayLike, perplexity: float = 30.0) -> float:
    """Label separation from 0, all labels in each neighbourhood, to 1, each label by itself.

    The median of :func:`lisi` over cells, scaled by the number of labels.
    """
    n_labels = _n_levels(states, labels, "labels")
    return float((n_labels - np.median(lisi(states, labels, perplexity))) / (n_labels - 1))


def _n_levels(states: ArrayLike, levels: ArrayLike, name: str) -> int:
    return check_varied(check_levels(levels, len(check_states(states)), name), name)


def _weights(distances: NDArray[np.float64], perplexity: float) -> NDArray[np.float64]:
    """Weights of the neighbours of each cell, ``(cells, neighbours)``, that sum to one and have the perplexity.

    Entropy falls as beta grows, so that beta is found by bisection, all cells at a time. Neighbours at one distance
    have equal weights at any beta, and keep them.
    """
    shifted = distances - distances[:, :1]  # the nearest weighs one before scaling, so that nothing underflows to 0
    scale = shifted.mean(1, keepdims=True)
    scaled = shifted / np.where(scale > 0, scale, 1.0)
    low, high = np.full(len(scaled), -40.0), np.full(len(scaled), 40.0)  # of log beta
    target = np.log(perplexity)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = _gibbs(scaled, np.exp(middle))[1] > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return _gibbs(scaled, np.exp((low + high) / 2))[0]


def _gibbs(
    distances: NDArray[np.float64], beta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    exponents = -beta[:, None] * distances
    weights = np.exp(exponents)
    total = weights.sum(1, keepdims=True)
    weights /= total
    return weights, np.log(total[:, 0]) - (weights * exponents).sum(1)


def _inverse_simpson(weights: NDArray[np.float64], codes: NDArray[np.int64], n_levels: int) -> NDArray[np.float64]:
    cells = np.arange(len(weights))[:, None]
    share = np.bincount((cells * n_levels + codes).ravel(), weights.ravel(), minlength=len(weights) * n_levels)
    return 1.0 / np.square(share.reshape(len(weights), n_levels)).sum(1)
