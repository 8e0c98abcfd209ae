"""A threshold for the proportions of each type (Otsu): from which on the type is worth looking at."""

from __future__ import annotations

import numpy as np

_N_BINS = 256
# Below this a proportion is as good as zero.
_LEAST = 1e-3


def proportion_thresholds(proportions: np.ndarray) -> np.ndarray:
    """Cut the proportions of each type in two, such that the logarithms within each part differ least (Otsu 1979).

    Parameters
    ----------
    proportions
        Shape ``(spots, types)``.

    Returns
    -------
    ndarray
        A proportion for each type, shape ``(types,)``.
    """
    return np.array([_otsu(np.log(np.maximum(column, _LEAST))) for column in proportions.T])


def _otsu(logs: np.ndarray) -> float:
    if np.ptp(logs) == 0:
        return float(np.exp(logs[0]))
    counts, edges = np.histogram(logs, _N_BINS)
    middle = (edges[:-1] + edges[1:]) / 2
    below, above = counts.cumsum(), counts.sum() - counts.cumsum()
    sums = (counts * middle).cumsum()
    valid = (below > 0) & (above > 0)
    low = sums[valid] / below[valid]
    high = (sums[-1] - sums[valid]) / above[valid]
    between = below[valid] * above[valid] * (high - low) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    cut = edges[1:][valid][best]
    return float(np.exp((cut[0] + cut[-1]) / 2))  # the middle of a gap
