"""Whether a type is in a spot at all: a probability, calibrated on spots that are sums of reference cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import scipy.sparse as sp
import torch

from countvi import seeding
from countvi.batch import CountBlock
from countvi.nn.mixture import least_squares_abundances, mixture_abundances, without_each

# Spots that are dense at once.
_CHUNK = 512
# Share of a spot's counts at which a type starts that least squares puts at zero, from where it can rise.
_LEAST_SHARE = 0.02
# Types with fewer simulated spots that have them, or lack them, borrow from all other types.
_FEWEST = 30
_N_UPDATES = 200


class Presence(NamedTuple):
    """Presence calls, shape ``(spots, types)`` each."""

    probability: np.ndarray
    """That at least one cell of the type is in the spot."""
    fdr: np.ndarray
    """Expected share of false calls among the type's calls that are at least as probable."""


def evidence_of_types(counts: sp.csr_array, profiles: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit spots as mixtures of profiles, with all types and without each.

    Parameters
    ----------
    counts
        Spots, shape ``(spots, genes)``.
    profiles
        Expected expression of each type, in one state or several, shape ``(profiles, genes)``.
    types
        Code of the type of each profile, shape ``(profiles,)``; every code from 0 on has one.

    Returns
    -------
    abundance, ratio
        Counts of each type, and twice the log of the likelihood ratio with and without it, in nats; shape ``(spots,
        types)`` each.
    """
    frequency = torch.from_numpy(profiles / profiles.sum(1, keepdims=True)).float()
    codes = torch.from_numpy(types)
    n_types = int(types.max()) + 1
    member = torch.nn.functional.one_hot(codes, n_types).float()
    abundance, ratio = (np.empty((_shape(counts)[0], n_types), np.float32) for _ in range(2))
    for start in range(0, _shape(counts)[0], _CHUNK):
        block = _block(counts[start : start + _CHUNK])
        fitted = least_squares_abundances(block, frequency)
        fitted = fitted + _LEAST_SHARE * block.totals().unsqueeze(-1) / len(frequency)
        fitted = mixture_abundances(block, frequency, fitted)
        abundance[start : start + _CHUNK] = (fitted @ member).numpy()
        ratio[start : start + _CHUNK] = without_each(block, frequency, fitted, codes).numpy()
    return abundance, ratio


class ReferenceCells(NamedTuple):
    """Cells that spots can be made of."""

    counts: sp.csr_array
    """Whole numbers, shape ``(cells, genes)``."""
    labels: np.ndarray
    """Code of the type of each, shape ``(cells,)``."""
    states: np.ndarray
    """Code of the state of each within its type, shape ``(cells,)``."""


def sums_of_cells(
    reference: ReferenceCells,
    shares: np.ndarray,
    library: np.ndarray,
    *,
    n_cells: int,
    factor: np.ndarray | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> tuple[sp.csr_array, np.ndarray]:
    """Draw spots as sums of reference cells.

    Parameters
    ----------
    reference
        The cells. Those of one type in a spot are drawn from one state, as the model of the spots supposes: where
        neighbours are alike, their deviations from the type do not cancel.
    shares
        Probability that a cell of a spot is of each type, shape ``(spots, types)``.
    library
        Counts that a spot has at most, shape ``(spots,)``: what there is more is thinned.
    n_cells
        Cells of a spot.
    factor
        How much of each gene the spots' assay sees beside that of the cells, shape ``(genes,)``.
    seed
        Of the draws.

    Returns
    -------
    spots, n_of_type
        Counts, and the number of cells of each type, shape ``(spots, types)``.
    """
    cells, labels, states = reference
    rng = np.random.default_rng(seed)
    exact = shares.astype(np.float64)
    n_of_type = rng.multinomial(n_cells, exact / exact.sum(1, keepdims=True))
    spot, cell = [], []
    for label in range(shares.shape[1]):
        rows = np.repeat(np.arange(len(shares)), n_of_type[:, label])
        pool = np.flatnonzero(labels == label)
        pool = pool[np.argsort(states[pool], kind="stable")]
        spot.append(rows)
        cell.append(pool[_alike(states[pool], len(shares), rng)(rows)] if len(rows) else rows)
    rows, columns = np.concatenate(spot), np.concatenate(cell)
    member = sp.csr_array((np.ones(len(rows), np.float32), (rows, columns)), (len(shares), _shape(cells)[0]))
    total = sp.csr_array(member @ cells)
    seen = np.ones(_shape(cells)[1]) if factor is None else factor / factor.max()
    depth = np.asarray(total @ seen).ravel()
    keep = np.minimum(1.0, library / np.maximum(depth, 1.0))
    probability = np.repeat(keep, np.diff(total.indptr)) * seen[total.indices]
    total.data = rng.binomial(np.rint(total.data).astype(np.int64), probability).astype(np.float32)
    total.eliminate_zeros()
    return total, n_of_type


def _alike(states: np.ndarray, n_spots: int, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """From the spot of each cell to a cell of sorted ``states``: one state for all cells of a spot."""
    of_spot = states[rng.integers(len(states), size=n_spots)]
    start, stop = np.searchsorted(states, of_spot), np.searchsorted(states, of_spot, side="right")
    return lambda spot: start[spot] + (rng.random(len(spot)) * (stop - start)[spot]).astype(np.int64)


def calibrated_presence(observed: np.ndarray, simulated: np.ndarray, present: np.ndarray) -> Presence:
    r"""Turn evidence into the probability that a type is present.

    Among simulated spots the share of those that have the type is a rising function of the evidence, found by isotonic
    regression. As types may be more or less frequent on the slide than in the simulation, their frequency :math:`\pi`
    on the slide is estimated by expectation and maximisation (Saerens, Latinne, Decaestecker 2002), and the odds are
    multiplied by :math:`\pi (1 - \pi_0) / (\pi_0 (1 - \pi))`.

    Parameters
    ----------
    observed
        Evidence of each type in the spots, larger where it is more likely there; shape ``(spots, types)``.
    simulated
        The same for simulated spots.
    present
        Whether the type is in the simulated spot, bool.
    """
    probability = np.empty(observed.shape)
    fdr = np.empty(observed.shape)
    for c in range(observed.shape[1]):
        seen, truth = simulated[:, c], present[:, c]
        if min(truth.sum(), (~truth).sum()) < _FEWEST:
            seen, truth = simulated.ravel(), present.ravel()
        probability[:, c] = _shifted(_isotonic(seen, truth, observed[:, c]), float(truth.mean()))
        fdr[:, c] = _false_discovery_rate(probability[:, c])
    return Presence(probability, fdr)


def _isotonic(evidence: np.ndarray, present: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Share of spots that have the type by their evidence, rising; never zero or one, as there are only so many."""
    from scipy.optimize import isotonic_regression  # slow to import, and only needed here

    values, inverse, sizes = np.unique(evidence, return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, weights=present) / sizes
    fit = isotonic_regression(shares, weights=sizes)
    starts = fit.blocks[:-1]
    n = np.add.reduceat(sizes, starts)
    smoothed = np.maximum.accumulate((fit.x[starts] * n + 0.5 * present.mean()) / (n + 0.5))
    smoothed = np.minimum(smoothed, (len(evidence) - 0.5) / len(evidence))
    # Constant within a block, and straight between the last of one and the first of the next.
    ends = np.append(starts[1:], len(values)) - 1
    return np.interp(at, np.stack([values[starts], values[ends]], 1).ravel(), np.repeat(smoothed, 2))


def _shifted(probability: np.ndarray, prevalence: float) -> np.ndarray:
    """Probabilities under the frequency that is found on the slide itself."""
    if not 0.0 < prevalence < 1.0 or not len(probability):
        return probability
    odds = probability / (1.0 - probability) * (1.0 - prevalence) / prevalence
    found, result = prevalence, probability
    for _ in range(_N_UPDATES):
        # One spot more that has the type and one that lacks it: no type is ruled out altogether.
        found = (result.sum() + prevalence) / (len(result) + 1.0)
        result = odds * found / (odds * found + 1.0 - found)
    return result


def _false_discovery_rate(probability: np.ndarray) -> np.ndarray:
    """Mean probability of absence among the calls that are at least as probable (Newton et al. 2004)."""
    order = np.argsort(-probability, kind="stable")
    rate = np.cumsum(1.0 - probability[order]) / np.arange(1, len(order) + 1)
    out = np.empty(len(order))
    out[order] = rate
    return out


def _block(counts: sp.csr_array) -> CountBlock:
    return CountBlock(
        values=torch.from_numpy(counts.data.astype(np.float32)),
        columns=torch.from_numpy(counts.indices.astype(np.int64)),
        offsets=torch.from_numpy(counts.indptr.astype(np.int64)),
        n_features=_shape(counts)[1],
    )


def _shape(matrix: sp.csr_array) -> tuple[int, int]:
    return cast("tuple[int, int]", matrix.shape)
