"""All scores at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from countvi.metrics.agreement import graph_connectivity, kmeans_agreement
from countvi.metrics.lisi import clisi, ilisi
from countvi.metrics.silhouette import silhouette_batch, silhouette_label

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def integration_scores(
    states: ArrayLike, labels: ArrayLike, batch: ArrayLike | None = None, *, perplexity: float = 30.0, seed: int = 0
) -> dict[str, float]:
    """Score how well labels are kept apart, and batches together.

    The silhouettes compare all pairs of cells: draw some 20,000 from larger data.

    Parameters
    ----------
    states
        Shape ``(cells, dimensions)``.
    labels
        Cell type of each cell, at least two.
    batch
        Batch of each cell, at least two; ``None`` leaves the scores of mixing out.
    perplexity
        Of :func:`countvi.metrics.ilisi` and :func:`countvi.metrics.clisi`.
    seed
        Of k-means.

    Returns
    -------
    dict
        Labels: ``"clisi"``, ``"silhouette_label"``, ``"nmi"``, ``"ari"``. Batches: ``"ilisi"``, ``"silhouette_batch"``,
        ``"graph_connectivity"``. Higher is better for each.
    """
    scores = {
        "clisi": clisi(states, labels, perplexity),
        "silhouette_label": silhouette_label(states, labels),
        **kmeans_agreement(states, labels, seed),
    }
    if batch is not None:
        scores |= {
            "ilisi": ilisi(states, batch, perplexity),
            "silhouette_batch": silhouette_batch(states, labels, batch),
            "graph_connectivity": graph_connectivity(states, labels),
        }
    return scores
