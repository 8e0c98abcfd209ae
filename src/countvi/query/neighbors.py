"""Nearest neighbours, and labels that they vote for, with how much they can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CHUNK = 16_384


class CellPositions(NamedTuple):
    """Where cells lie, and how sure that is."""

    states: NDArray[np.floating]
    """Means, ``(cells, dimensions)``."""
    variance: NDArray[np.floating]
    """Posterior variance summed over dimensions, ``(cells,)``."""


class Votes(NamedTuple):
    """What the nearest labelled cells say of each cell."""

    shares: NDArray[np.float64]
    """Weight of each label among the neighbours, ``(cells, labels)``; rows sum to one."""
    typicality: NDArray[np.float64]
    """Share of the labelled cells with the most voted label that are at least as far from their own nearest cells, or
    at least as unsure of their state, whichever is less, ``(cells,)``: small where there is nothing like the cell."""


def knn_vote(known: CellPositions, codes: NDArray[np.int64], query: CellPositions, n_neighbors: int) -> Votes:
    r"""Let the nearest labelled cells vote.

    An encoder that meets what it was not trained on may put it far from everything, or among what it knows, with a wide
    posterior. Typicality looks for both.

    A neighbour at distance d weighs :math:`e^{-d^2 / 2 s^2}`, with s the mean distance of the neighbours of the cell.

    Parameters
    ----------
    known
        The labelled cells.
    codes
        Their labels, ``(labelled,)``, from 0.
    query
        The cells to label.
    n_neighbors
        How many neighbours vote; fewer than there are labelled cells.
    """
    states, n_cells = known.states, len(query.states)
    far = np.concatenate([apart[:, 1:].mean(1) for _, apart, _ in nearest(states, states, n_neighbors + 1)])
    shares, typicality = np.zeros((n_cells, int(codes.max()) + 1)), np.empty(n_cells)
    for chunk, distances, rows in nearest(states, query.states, n_neighbors):
        mean = distances.mean(1)
        weights = np.exp(-0.5 * np.square(distances / np.where(mean > 0, mean, 1.0)[:, None]))
        cells = np.arange(len(rows))[:, None]
        np.add.at(shares[chunk], (cells, codes[rows]), weights / weights.sum(1, keepdims=True))
        best = shares[chunk].argmax(1)
        for label in np.unique(best):
            here, alike = best == label, codes == label
            beyond = _share_beyond(far[alike], mean[here])
            vaguer = _share_beyond(known.variance[alike], query.variance[chunk][here])
            typicality[chunk][here] = np.minimum(beyond, vaguer)
    return Votes(shares, typicality)


def nearest(
    known: NDArray[np.floating], points: NDArray[np.floating], n_neighbors: int
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.int64]]]:
    """Find the nearest of some known points, chunk by chunk.

    Parameters
    ----------
    known
        Shape ``(known, dimensions)``.
    points
        Whose neighbours are looked for, shape ``(points, dimensions)``. A point that is known itself is its own
        neighbour.
    n_neighbors
        How many, at most as many as are known.

    Yields
    ------
    chunk, distances, rows
        Which of the points; and of their neighbours, the nearest first, the distance and the row in ``known``, shape
        ``(points of the chunk, n_neighbors)``.
    """
    from scipy.spatial import KDTree  # slow to import, and only needed here

    tree = KDTree(known)
    for start in range(0, len(points), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        distances, rows = tree.query(points[chunk], n_neighbors)
        yield chunk, np.reshape(distances, (-1, n_neighbors)), np.reshape(rows, (-1, n_neighbors))


def _share_beyond(values: NDArray[np.floating], bounds: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of the values that are at least as large as each bound."""
    return 1.0 - np.searchsorted(np.sort(values), bounds) / len(values)
