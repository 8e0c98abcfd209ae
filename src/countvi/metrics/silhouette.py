"""Average silhouette width of labels, and of batches within labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from countvi.errors import DataError
from countvi.metrics._inputs import check_levels, check_states, check_varied

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def silhouette_label(states: ArrayLike, labels: ArrayLike) -> float:
    r"""Label separation, :math:`(1 + \bar s) / 2` with the mean silhouette of the cells.

    Parameters
    ----------
    states
        Shape ``(cells, dimensions)``.
    labels
        Of each cell, at least two.

    Returns
    -------
    float
        From 0 to 1; 0.5 where labels overlap, 1 where they lie apart.
    """
    from sklearn.metrics import silhouette_samples  # slow to import, and only needed here

    array = check_states(states)
    codes = check_levels(labels, len(array), "labels")
    if check_varied(codes, "labels") == len(array):
        message = "Every cell has a label of its own; a silhouette needs labels that cells share."
        raise DataError(message)
    return float((1 + silhouette_samples(array, codes).mean()) / 2)


def silhouette_batch(states: ArrayLike, labels: ArrayLike, batch: ArrayLike) -> float:
    r"""Batch mixing within labels, :math:`1 - |s|` averaged over the cells of each label, then over labels.

    Labels in one batch only, and those of which each cell is a batch of its own, are left out.

    Parameters
    ----------
    states
        Shape ``(cells, dimensions)``.
    labels, batch
        Of each cell.

    Returns
    -------
    float
        From 0 to 1; 1 where the batches of each label overlap.

    Raises
    ------
    DataError
        If no label is in several batches.
    """
    from sklearn.metrics import silhouette_samples

    array = check_states(states)
    kinds, batches = check_levels(labels, len(array), "labels"), check_levels(batch, len(array), "batch")
    means = []
    for kind in np.unique(kinds):
        of_kind = kinds == kind
        if 1 < len(np.unique(batches[of_kind])) < of_kind.sum():
            widths = np.asarray(silhouette_samples(array[of_kind], batches[of_kind]))
            means.append(1 - np.abs(widths).mean())
    if not means:
        message = "No label is in several batches, so that nothing shows how well batches mix within labels."
        raise DataError(message)
    return float(np.mean(means))
