"""Differences in what one type expresses between two groups of spots: a moderated t-test, or a rank test.

The numbers compared are expected values under the model, one per spot or per sample. Nothing is drawn, so a p-value
cannot be had smaller by drawing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np

from countvi.query.effects import benjamini_hochberg

# Genes whose expression is held for all spots at once.
_GENES = 256


class Difference(NamedTuple):
    """One number per gene each, shape ``(genes,)``."""

    mean_first: np.ndarray
    """Weighted mean expression in the first group."""
    mean_second: np.ndarray
    log2_change: np.ndarray
    """Of the first group over the second, from the weighted means of the log."""
    p_value: np.ndarray
    fdr: np.ndarray
    """Benjamini and Hochberg."""


def compare_types(
    expression: Callable[[np.ndarray], np.ndarray],
    n_genes: int,
    first: np.ndarray,
    weight: np.ndarray,
    samples: np.ndarray | None = None,
) -> Difference:
    """Compare the expression of one type between two groups of spots.

    With ``samples``, the weighted mean of the log is taken in each sample, and the samples of the two groups are
    compared by a t-test whose variances are moderated over genes (Smyth 2004). Otherwise spots are compared by ranks
    (Mann, Whitney), which holds for the spots at hand and says nothing of other samples.

    Parameters
    ----------
    expression
        From columns to the expected expression of the type in all spots, positive, shape ``(spots, len(columns))``.
    n_genes
        Number of genes.
    first
        Which spots are in the first group, bool, shape ``(spots,)``; the others are the second.
    weight
        How much of the type is in each spot, shape ``(spots,)``.
    samples
        Code of the sample of each spot, shape ``(spots,)``; a sample is in one group.
    """
    logs = np.empty((2, n_genes))
    means = np.empty((2, n_genes))
    ranked = np.ones(n_genes)
    groups = (first, ~first)
    codes = None if samples is None else np.unique(samples)
    by_sample = np.empty((0 if codes is None else len(codes), n_genes))
    for start in range(0, n_genes, _GENES):
        columns = np.arange(start, min(start + _GENES, n_genes))
        values = expression(columns).astype(np.float64)
        log = np.log2(values)
        for g, group in enumerate(groups):
            logs[g, columns] = np.average(log[group], axis=0, weights=weight[group])
            means[g, columns] = np.average(values[group], axis=0, weights=weight[group])
        if codes is None or samples is None:
            ranked[columns] = _rank_test(log, first)
        else:
            for i, code in enumerate(codes):
                rows = samples == code
                by_sample[i, columns] = np.average(log[rows], axis=0, weights=weight[rows])
    if codes is None or samples is None:
        return Difference(means[0], means[1], logs[0] - logs[1], ranked, benjamini_hochberg(ranked))
    of_first = np.array([first[samples == code][0] for code in codes])
    p_value = moderated_t_test(by_sample[of_first], by_sample[~of_first])
    change = by_sample[of_first].mean(0) - by_sample[~of_first].mean(0)
    return Difference(means[0], means[1], change, p_value, benjamini_hochberg(p_value))


def moderated_t_test(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two-sided p-values of a t-test with variances moderated over genes (Smyth 2004).

    Parameters
    ----------
    first, second
        Shape ``(samples, genes)``; at least three samples together, and one each.
    """
    from scipy.stats import t  # slow to import, and only needed here

    n1, n2 = len(first), len(second)
    degrees = n1 + n2 - 2
    residual = ((first - first.mean(0)) ** 2).sum(0) + ((second - second.mean(0)) ** 2).sum(0)
    variance = residual / degrees
    prior_variance, prior_degrees = _prior_of_variance(variance, degrees)
    if np.isinf(prior_degrees):
        moderated = np.full_like(variance, prior_variance)
    else:
        moderated = (prior_degrees * prior_variance + degrees * variance) / (prior_degrees + degrees)
    scale = np.sqrt(moderated * (1 / n1 + 1 / n2))
    difference = first.mean(0) - second.mean(0)
    statistic = np.divide(difference, scale, out=np.zeros_like(scale), where=scale > 0)
    return 2.0 * t.sf(np.abs(statistic), min(prior_degrees + degrees, degrees * variance.size))


def _prior_of_variance(variance: np.ndarray, degrees: int) -> tuple[float, float]:
    """Scale and degrees of freedom of the scaled inverse chi-squared of the variances, by moments of the log."""
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    known = variance[variance > 0]
    if len(known) < 3:  # too few genes to say how variances vary
        return (float(known.mean()) if len(known) else 1.0), 0.0
    logs = np.log(known) - digamma(degrees / 2) + np.log(degrees / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, degrees / 2))
    if excess <= polygamma(1, 1e6):
        return float(np.exp(logs.mean())), np.inf
    half = float(cast("float", brentq(lambda x: polygamma(1, x) - excess, 1e-6, 1e7)))
    return float(np.exp(logs.mean() + digamma(half) - np.log(half))), 2.0 * half


def _rank_test(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    from scipy.stats import mannwhitneyu  # slow to import, and only needed here

    # Rounded, so that what differs by arithmetic alone is a tie.
    rounded = np.round(values, 6)
    same = (rounded == rounded[:1]).all(0)
    p_value = np.ones(values.shape[1])
    if not same.all():
        test = mannwhitneyu(rounded[first][:, ~same], rounded[~first][:, ~same], axis=0, method="asymptotic")
        p_value[~same] = test.pvalue
    return p_value
