"""Print what scib-metrics computes for the cells of ``test_fixed.py``.

Run in an environment of its own, which countvi is not part of::

    pip install scib-metrics==0.5.10 && python tests/metrics/make_fixed.py
"""

from __future__ import annotations

import numpy as np
from scib_metrics import metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from scipy.spatial.distance import cdist


def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four types in three batches that are partly mixed; one type is in one batch only."""
    rng = np.random.default_rng(20)
    labels = rng.choice(4, 240, p=[0.4, 0.3, 0.2, 0.1])
    batch = np.where(labels == 3, 1, rng.choice(3, 240, p=[0.5, 0.3, 0.2]))
    centres = rng.normal(0, 2.0, (4, 5))
    shifts = rng.normal(0, 0.8, (3, 5))
    return centres[labels] + shifts[batch] + rng.normal(0, 1.0, (240, 5)), labels, batch


def main() -> None:
    """Print the numbers."""
    states, labels, batch = cells()
    distances = cdist(states, states)
    order = np.argsort(distances, axis=1, kind="stable")[:, :60]
    neighbors = NeighborsResults(indices=order, distances=np.take_along_axis(distances, order, 1))
    found = metrics.lisi_knn(neighbors, batch, perplexity=20)
    print("lisi", [float(value) for value in np.asarray(found)[:6]])
    print("ilisi", float(metrics.ilisi_knn(neighbors, batch, perplexity=20)))
    print("clisi", float(metrics.clisi_knn(neighbors, labels, perplexity=20)))
    print("silhouette_label", float(metrics.silhouette_label(states, labels)))
    print("silhouette_batch", float(metrics.silhouette_batch(states, labels, batch)))


if __name__ == "__main__":
    main()
