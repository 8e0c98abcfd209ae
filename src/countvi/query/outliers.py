"""Inliers of a population of cells: robust distances from its middle (FAST-MCD)."""

from __future__ import annotations

import numpy as np

# Of normally distributed cells, this share is kept.
_KEPT = 0.975
# scikit-learn's MinCovDet starts from hundreds of subsets and keeps the same cells (all but 0.4% of 10,000 in ten
# dimensions), in twenty times as long; a comparison of ten groups looks at twenty populations.
_STARTS, _STEPS = 5, 30


def inliers(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Find the cells within the bulk of a population.

    Distances are Mahalanobis, from the mean and covariance of the half of the cells whose covariance has the smallest
    determinant (Rousseeuw and Van Driessen 1999, from random starts and one at the medians), scaled so that the median
    distance is that of a normal distribution.

    Parameters
    ----------
    states
        Where the cells lie, shape ``(cells, dimensions)``.
    rng
        For the starts.

    Returns
    -------
    ndarray
        Mask, shape ``(cells,)``. All cells of a population that has fewer than twice as many as there are dimensions,
        plus two: they have no shape.
    """
    from scipy import stats  # slow to import, and only needed here

    n, d = states.shape
    if n < 2 * (d + 1):
        return np.ones(n, dtype=bool)
    x = states.astype(np.float64)
    half = (n + d + 1) // 2
    starts = [np.argsort(_from_medians(x))[:half]]
    starts += [rng.choice(n, d + 1, replace=False) for _ in range(_STARTS)]
    _, distance = min((_concentrate(x, start, half) for start in starts), key=lambda found: found[0])
    scaled = distance * (stats.chi2.ppf(0.5, d) / max(float(np.median(distance)), 1e-300))
    return scaled <= stats.chi2.ppf(_KEPT, d)


def _from_medians(x: np.ndarray) -> np.ndarray:
    centre = np.median(x, axis=0)
    spread = np.median(np.abs(x - centre), axis=0)
    return (((x - centre) / np.where(spread > 0, spread, 1.0)) ** 2).sum(1)


def _concentrate(x: np.ndarray, chosen: np.ndarray, half: int) -> tuple[float, np.ndarray]:
    """Let the half of the cells nearest to the chosen ones become the chosen ones, until they stay."""
    volume, distance = np.inf, np.zeros(len(x))
    for _ in range(_STEPS):
        centre = x[chosen].mean(0)
        covariance = np.cov(x[chosen], rowvar=False).reshape(x.shape[1], x.shape[1])
        covariance += (1e-9 * np.trace(covariance) / len(covariance) + 1e-300) * np.eye(len(covariance))
        before, volume = volume, float(np.linalg.slogdet(covariance)[1])
        distance = np.einsum("ij,ij->i", x - centre, np.linalg.solve(covariance, (x - centre).T).T)
        if len(chosen) == half and volume >= before - 1e-12:
            break
        chosen = np.argpartition(distance, half - 1)[:half]
    return volume, distance
