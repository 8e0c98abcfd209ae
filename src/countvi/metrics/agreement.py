"""Whether labels are found again in cell states: by clustering, and as connected parts of the neighbour graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from countvi.metrics._inputs import check_levels, check_states, check_varied, nearest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_STARTS = 10


def kmeans_agreement(states: ArrayLike, labels: ArrayLike, seed: int = 0) -> dict[str, float]:
    """Agreement of labels with as many k-means clusters.

    Parameters
    ----------
    states
        Shape ``(cells, dimensions)``.
    labels
        Of each cell, at least two.
    seed
        Of the starts of k-means, of which the best of ten counts.

    Returns
    -------
    dict
        ``"nmi"``: normalised mutual information (arithmetic mean), 0 to 1; ``"ari"``: adjusted Rand index, 0 by
        chance, 1 for the same groups.
    """
    from sklearn.cluster import KMeans  # slow to import, and only needed here
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    array = check_states(states)
    codes = check_levels(labels, len(array), "labels")
    n_labels = check_varied(codes, "labels")
    clusters = KMeans(n_labels, n_init=_STARTS, random_state=seed).fit_predict(array)  # type: ignore[arg-type]
    return {
        "nmi": float(normalized_mutual_info_score(codes, clusters)),
        "ari": float(adjusted_rand_score(codes, clusters)),
    }


def graph_connectivity(states: ArrayLike, labels: ArrayLike, n_neighbors: int = 15) -> float:
    """Share of a label's cells in its largest connected part, averaged over labels.

    Two cells are connected where one is among the nearest ``n_neighbors`` of the other.

    Parameters
    ----------
    states
        Shape ``(cells, dimensions)``.
    labels
        Of each cell.
    n_neighbors
        Other cells that a cell is connected to at least.

    Returns
    -------
    float
        Above 0, at most 1.
    """
    array = check_states(states)
    codes = check_levels(labels, len(array), "labels")
    rows = nearest(array, n_neighbors)[1]
    offsets = np.arange(0, rows.size + 1, n_neighbors)
    graph = sp.csr_array((np.ones(rows.size, dtype=np.int8), rows.ravel(), offsets), shape=(len(array),) * 2)
    shares = []
    for code in np.unique(codes):
        cells = np.flatnonzero(codes == code)
        parts = connected_components(graph[cells][:, cells], directed=False)[1]
        shares.append(np.bincount(parts).max() / len(cells))
    return float(np.mean(shares))
