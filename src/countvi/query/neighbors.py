"""Labels from the nearest labelled cells, and how much they can be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

_CHUNK = 16_384


class Votes(NamedTuple):
    """What the nearest labelled cells say of each cell."""

    shares: NDArray[np.float64]
    """Weight of each label among the neighbours, ``(cells, labels)``; rows sum to one."""
    typicality: NDArray[np.float64]
    """Share of the labelled cells with the most voted label that are at least as far from their own nearest cells,
    ``(cells,)``: small where there is nothing like the cell."""


def vote(
    states: NDArray[np.floating], codes: NDArray[np.int64], query: NDArray[np.floating], n_neighbors: int
) -> Votes:
    r"""Let the nearest labelled cells vote.

    A neighbour at distance d weighs :math:`e^{-d^2 / 2 s^2}`, with s the mean distance of the neighbours of the cell.

    Parameters
    ----------
    states
        States of the labelled cells, ``(labelled, dimensions)``.
    codes
        Their labels, ``(labelled,)``, from 0.
    query
        States of the cells to label, ``(cells, dimensions)``.
    n_neighbors
        How many neighbours vote; fewer than there are labelled cells.
    """
    tree, n_labels = KDTree(states), int(codes.max()) + 1
    far = np.concatenate(
        [
            tree.query(states[start : start + _CHUNK], n_neighbors + 1)[0][:, 1:].mean(1)
            for start in range(0, len(states), _CHUNK)
        ]
    )
    usual = [np.sort(far[codes == code]) for code in range(n_labels)]
    shares, typicality = np.zeros((len(query), n_labels)), np.empty(len(query))
    for start in range(0, len(query), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        distances, rows = (np.reshape(a, (-1, n_neighbors)) for a in tree.query(query[chunk], n_neighbors))
        mean = distances.mean(1)
        weights = np.exp(-0.5 * np.square(distances / np.where(mean > 0, mean, 1.0)[:, None]))
        cells = np.arange(len(rows))[:, None]
        np.add.at(shares[chunk], (cells, codes[rows]), weights / weights.sum(1, keepdims=True))
        best = shares[chunk].argmax(1)
        for label in np.unique(best):
            here = best == label
            nearer = np.searchsorted(usual[label], mean[here])
            typicality[chunk][here] = 1.0 - nearer / len(usual[label])
    return Votes(shares, typicality)
