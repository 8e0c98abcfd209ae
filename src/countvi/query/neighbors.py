"""Labels from the nearest labelled cells, and how much they can be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

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
    tree, n_labels = KDTree(states), int(codes.max()) + 1
    far = np.concatenate(
        [
            tree.query(states[start : start + _CHUNK], n_neighbors + 1)[0][:, 1:].mean(1)
            for start in range(0, len(states), _CHUNK)
        ]
    )
    shares, typicality = np.zeros((n_cells, n_labels)), np.empty(n_cells)
    for start in range(0, n_cells, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        distances, rows = (np.reshape(a, (-1, n_neighbors)) for a in tree.query(query.states[chunk], n_neighbors))
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


def _share_beyond(values: NDArray[np.floating], bounds: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of the values that are at least as large as each bound."""
    return 1.0 - np.searchsorted(np.sort(values), bounds) / len(values)
