"""Inliers of a population of cells: robust distances from its middle (FAST-MCD, of scikit-learn)."""

from __future__ import annotations

import warnings

import numpy as np

# Of normally distributed cells, this share is kept.
_KEPT = 0.975
# Cells that the middle is estimated from: enough for its shape, and the time does not grow with the population.
_FITTED = 1_000


def inliers(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Find the cells within the bulk of a population.

    Distances are Mahalanobis, from the mean and covariance of the half of the cells whose covariance has the smallest
    determinant (Rousseeuw and Van Driessen 1999; of a thousand cells drawn at random, where there are more), scaled so
    that the median distance is that of a normal distribution.

    Parameters
    ----------
    states
        Where the cells lie, shape ``(cells, dimensions)``.
    rng
        For the draw of cells, and the starts.

    Returns
    -------
    ndarray
        Mask, shape ``(cells,)``. All cells of a population that has fewer than twice as many as there are dimensions,
        plus two, or of which half lie in one point: they have no shape.
    """
    from scipy import linalg, stats  # slow to import, and only needed here
    from sklearn.covariance import MinCovDet

    n, d = states.shape
    if n < 2 * (d + 1):
        return np.ones(n, dtype=bool)
    x = states.astype(np.float64)
    drawn = x if n <= _FITTED else x[np.sort(rng.choice(n, _FITTED, replace=False))]
    bulk = MinCovDet(random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of directions in which the cells do not differ
        try:
            bulk.fit(drawn)
        except ValueError:  # half of the cells lie in one point
            return np.ones(n, dtype=bool)
    distance = np.einsum(
        "ij,jk,ik->i", x - bulk.raw_location_, linalg.pinvh(bulk.raw_covariance_), x - bulk.raw_location_
    )
    scaled = distance * (stats.chi2.ppf(0.5, d) / max(float(np.median(distance)), 1e-300))
    return scaled <= stats.chi2.ppf(_KEPT, d)
