"""Effects per replicate, and their summary over replicates by Student's t.

Cells of one donor are not independent: a test that counts cells finds differences between donors wherever there are
many cells (Squair et al. 2021). Here every replicate contributes one number, its mean over cells, so that both the
differences between replicates and the noise within them are in the spread of these numbers, and Student's t is exact
for however few there are. Replicates count alike: weights by precision are themselves estimated, and from few
replicates tests with them reject too often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi.query.effects import Columns, Pair, benjamini_hochberg

_LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Replicates:
    """Which replicate each cell is of.

    Parameters
    ----------
    codes
        Replicate of each cell of the source, shape ``(cells,)``; -1 for none.
    names
        Of the replicates.
    """

    codes: np.ndarray
    names: np.ndarray

    def summarize(self, pair: Pair, pseudocounts: np.ndarray) -> Columns:
        """Compare populations by replicates.

        If at least two replicates have cells in both populations, their differences are summarised; otherwise the
        means of the replicates of each population, which are then compared.

        Parameters
        ----------
        pair
            Draws of both populations.
        pseudocounts
            Added to expression before logarithms, shape ``(features,)``.

        Returns
        -------
        dict
            Columns of numbers, one per feature; the names begin with ``replicate``.
        """
        (a, in_first), (b, in_second) = self._levels(pair, pseudocounts)
        shared = in_first & in_second
        if shared.sum() >= 2:
            changes = a[shared] - b[shared]
            per_replicate = dict(zip([f"lfc_{name}" for name in self.names[shared]], changes, strict=True))
            tested = _tested(*mean_and_error(changes))
        else:
            per_replicate = {
                f"log2_scale{group}_{name}": row
                for group, level, present in ((1, a, in_first), (2, b, in_second))
                for name, row in zip(self.names[present], level[present], strict=True)
            }
            tested = _tested(*_difference(a[in_first], b[in_second]))
        both = (in_first, in_second)
        counts = {f"n_replicates{i + 1}": np.full(pair.n_features, present.sum()) for i, present in enumerate(both)}
        return {**tested, **counts, **per_replicate}

    def _levels(self, pair: Pair, pseudocounts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean log2 expression of each replicate, ``(replicates, features)``, and which have draws; by population."""
        number = np.arange(len(self.names))[:, None]
        members = [torch.from_numpy((number == self.codes[rows]).astype(np.float64)) for rows in pair.rows()]
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for at, *draws in pair:
            c = torch.from_numpy(pseudocounts[at])
            for part, member, values in zip(parts, members, draws, strict=True):
                part.append(member @ torch.log2(values.double() + c))
        levels = []
        for part, member in zip(parts, members, strict=True):
            n = member.sum(1).numpy()
            levels.append((torch.cat(part, dim=1).numpy() / np.maximum(n, 1)[:, None], n > 0))
        return levels


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over replicates, its standard error and degrees of freedom.

    Parameters
    ----------
    values
        One number of each replicate, shape ``(replicates, features)``.

    Returns
    -------
    mean, error, df
        Shape ``(features,)`` each. The error is NaN for a single replicate.
    """
    n, n_features = values.shape
    nothing = np.full(n_features, np.nan)
    error = values.std(0, ddof=1) / np.sqrt(n) if n > 1 else nothing
    return values.mean(0) if n else nothing, error, np.full(n_features, n - 1.0)


def _difference(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of means of separate replicates, its standard error and degrees of freedom (Welch 1947)."""
    (mean1, error1, df1), (mean2, error2, df2) = mean_and_error(first), mean_and_error(second)
    a, b = error1**2, error2**2
    with np.errstate(invalid="ignore", divide="ignore"):
        df = (a + b) ** 2 / (a**2 / df1 + b**2 / df2)
    return mean1 - mean2, np.sqrt(a + b), df


def _tested(effect: np.ndarray, error: np.ndarray, df: np.ndarray) -> Columns:
    from scipy import stats  # slow to import, and only needed here

    t: Any = stats.t
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2.0 * t.sf(np.abs(effect) / error, df)
        half = t.ppf(0.5 + _LEVEL / 2, df) * error
    return {
        "replicate_lfc": effect,
        "replicate_lfc_se": error,
        "replicate_lfc_min": effect - half,
        "replicate_lfc_max": effect + half,
        "replicate_df": df,
        "replicate_pvalue": p,
        "replicate_qvalue": benjamini_hochberg(p),
    }
