"""How well cell states keep cell types apart and batches together, in the definitions of scIB (Luecken et al. 2022).

Functions of arrays: cell states ``(cells, dimensions)`` and a label or batch per cell.
"""

from __future__ import annotations

from countvi.metrics.agreement import graph_connectivity, kmeans_agreement
from countvi.metrics.lisi import clisi, ilisi, lisi
from countvi.metrics.scores import integration_scores
from countvi.metrics.silhouette import silhouette_batch, silhouette_label

__all__ = [
    "clisi",
    "graph_connectivity",
    "ilisi",
    "integration_scores",
    "kmeans_agreement",
    "lisi",
    "silhouette_batch",
    "silhouette_label",
]
