"""Axes along which the states of a type vary over a slide, and the genes that go with them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from countvi.models.destvi import DestVI
from countvi.query.cells import Cells, evaluation
from countvi.query.neighbors import nearest


class StateAxes(NamedTuple):
    """Axes of the states of one type, the one with most spatial variation first."""

    scores: np.ndarray
    """Coordinate of each spot on each axis, shape ``(spots, axes)``; the weighted mean is zero."""
    directions: np.ndarray
    """Unit vectors, shape ``(axes, latent)``."""
    variance: np.ndarray
    """Share of the weighted variance of the states on each axis, shape ``(axes,)``."""
    moran: np.ndarray
    """Moran's I of each axis: 1 where neighbours are alike, 0 where they are like any two spots; shape ``(axes,)``."""


def spatial_axes(gamma: np.ndarray, weight: np.ndarray, locations: np.ndarray, n_neighbors: int = 6) -> StateAxes:
    r"""Principal axes of what neighbouring spots have in common.

    With :math:`\tilde\gamma_s` the states less their mean under the weights w, and :math:`N(s)` the neighbours of a
    spot, the axes are the eigenvectors of the symmetric part of

    .. math:: \sum_s \frac{w_s}{\sum_t w_t}\, \tilde\gamma_s \bar\gamma_s^\top, \qquad
        \bar\gamma_s = \sum_{t \in N(s)} w_t \tilde\gamma_t \Big/ \sum_{t \in N(s)} w_t .

    Variation that is not smooth over space, such as noise of single spots, has no part in it; ordinary principal
    components would have it.

    Parameters
    ----------
    gamma
        State of the type in each spot, shape ``(spots, latent)``.
    weight
        How much of the type each spot has, not negative, shape ``(spots,)``.
    locations
        Shape ``(spots, dimensions)``.
    n_neighbors
        Neighbours of a spot, those at the same distance as the last left to chance of their order.
    """
    states, weight = gamma.astype(np.float64), weight.astype(np.float64)
    share = weight / weight.sum()
    centred = states - share @ states
    near = _neighbours(locations, n_neighbors) @ sp.diags_array(weight)
    total = np.asarray(near.sum(1)).ravel()
    around = sp.diags_array(np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)) @ near @ centred
    common = (centred * share[:, None]).T @ around
    spread = (centred * share[:, None]).T @ centred
    values, vectors = np.linalg.eigh((common + common.T) / 2)
    order = np.argsort(-values)
    directions = vectors[:, order].T
    # Eigenvectors have no sign: let the largest entry be positive.
    directions *= np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])[:, None]
    variance = np.einsum("ij,jk,ik->i", directions, spread, directions)
    moran = np.divide(values[order], variance, out=np.zeros_like(variance), where=variance > 0)
    whole = variance.sum()
    return StateAxes(centred @ directions.T, directions, variance / (whole if whole > 0 else 1.0), moran)


def axis_genes(
    model: DestVI, cells: Cells, type_index: int, scores: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How the expression of a type goes along its axes.

    Parameters
    ----------
    model
        The model.
    cells
        Spots.
    type_index
        Which type.
    scores
        Of those spots, shape ``(spots, axes)``, with a weighted mean of zero.
    weight
        Shape ``(spots,)``.

    Returns
    -------
    correlation, slope
        Weighted correlation with log expression, and the change in log2 expression per standard deviation of the axis;
        shape ``(axes, genes)`` each.
    """
    share = weight.astype(np.float64) / weight.sum()
    spread = np.sqrt(share @ scores**2)
    unit = np.divide(scores, spread, out=np.zeros_like(scores), where=spread > 0)
    mean = square = cross = np.zeros(())
    with evaluation(model):
        for block, batch in cells:
            values = model.expression(model.guide(batch).gamma.value, type_index).log2().double().cpu().numpy()
            part = share[block, None]
            mean, square = mean + (part * values).sum(0), square + (part * values**2).sum(0)
            cross = cross + (part * unit[block]).T @ values
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    correlation = np.divide(cross, deviation, out=np.zeros_like(cross), where=deviation > 1e-6)
    return np.clip(correlation, -1.0, 1.0), cross


def _neighbours(locations: np.ndarray, n_neighbors: int) -> sp.csr_array:
    """Return the graph of nearest neighbours, a spot not being its own: ones, shape ``(spots, spots)``."""
    n = len(locations)
    index = np.concatenate([rows for *_, rows in nearest(locations, locations, min(n_neighbors, n - 1) + 1)])
    other = index != np.arange(n)[:, None]
    # Where spots share a place, a spot may be missing from its own list: drop its farthest neighbour instead.
    other[other.all(1), -1] = False
    rows, columns = np.nonzero(other)
    return sp.csr_array((np.ones(len(rows)), (rows, index[rows, columns])), (n, n))
