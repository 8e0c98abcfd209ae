"""Presence of cell types in spots: a probability, learned from spots that are sums of reference cells."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import scipy.sparse as sp
import torch

from countvi import seeding
from countvi.batch import CountBlock
from countvi.nn.mixture import least_squares_abundances, mixture_abundances
from countvi.query.effects import false_discovery_rate

# Spots that are dense at once.
_CHUNK = 512
# Share of a spot's counts at which a type starts that least squares puts at zero, from where it can rise.
_LEAST_SHARE = 0.02
_N_SPOTS, _N_TREES = 2_000, 300
# Concentration of the composition of simulated spots: a few types have most of the cells.
_CONCENTRATION = 0.3
# What is left of the differences between two assays when each gene has been given its factor: standard deviation of the
# log. Without it, spots of another assay look like spots of more types than they are.
_LEFT_OVER = 0.25
# A type with fewer cells lends all of them to both the profiles and the spots.
_FEWEST_CELLS = 4


class Presence(NamedTuple):
    """Presence calls, shape ``(spots, types)`` each."""

    probability: np.ndarray
    """That at least one cell of the type is in the spot."""
    fdr: np.ndarray
    """Expected share of false calls among the type's calls that are at least as probable."""


class ReferenceCells(NamedTuple):
    """Cells that spots can be made of."""

    counts: sp.csr_array
    """Whole numbers, shape ``(cells, genes)``."""
    labels: np.ndarray
    """Code of the type of each, shape ``(cells,)``; every code from 0 to the last has cells."""
    states: np.ndarray
    """Code of the state of each within its type, shape ``(cells,)``."""

    def some(self, cells: np.ndarray) -> ReferenceCells:
        """Return those in a mask ``(cells,)``."""
        return ReferenceCells(sp.csr_array(self.counts[cells]), self.labels[cells], self.states[cells])


def presence_of_types(
    spots: sp.csr_array,
    reference: ReferenceCells,
    factor: np.ndarray,
    *,
    cells_per_spot: float,
    seed: int = seeding.DEFAULT_SEED,
) -> Presence:
    """Learn to tell from a spot's counts which types are there, on sums of cells for which it is known.

    One half of the cells of each type gives the profiles that spots are taken for mixtures of, the other half the
    simulated spots: profiles fit their own cells better than those of a slide. A random forest (Breiman 2001) goes from
    the abundances that are found in a spot to the types that it holds. Simulated spots do not follow what seems to be
    on the slide, so that nothing that is found there can confirm itself.

    Parameters
    ----------
    spots
        Counts, shape ``(spots, genes)``.
    reference
        Cells of the reference.
    factor
        How much of each gene the assay of the spots sees beside that of the cells, shape ``(genes,)``.
    cells_per_spot
        Mean number of cells of a spot.
    seed
        Of everything that is drawn.
    """
    from sklearn.ensemble import RandomForestClassifier  # slow to import, and only needed here

    rng = np.random.default_rng(seed)
    for_profiles, for_spots = _halves(reference.labels, rng)
    profiles, types = profiles_of(reference.some(for_profiles))
    mean = profiles.mean(0)
    seen = factor * (mean.sum() / (factor @ mean))
    profiles = profiles * seen
    known, n_of_type = sums_of_cells(
        reference.some(for_spots),
        rng.choice(np.asarray(spots.sum(1)).ravel(), _N_SPOTS),
        factor=seen * np.exp(rng.normal(0.0, _LEFT_OVER, len(seen))),
        cells_per_spot=cells_per_spot,
        rng=rng,
    )
    present = n_of_type > 0
    several = present.shape[1] > 1
    forest = RandomForestClassifier(
        _N_TREES,
        min_samples_leaf=3,
        max_features=1 / 3,  # type: ignore[arg-type]
        random_state=int(rng.integers(2**31)),
        n_jobs=torch.get_num_threads(),
    )
    forest.fit(abundances(known, profiles, types), present if several else present[:, 0])
    forest.set_params(n_jobs=1)  # several threads would add up in any order
    said = forest.predict_proba(abundances(spots, profiles, types))
    # Shares of trees by class; all simulated spots may hold a type, or none, and then there is one class.
    by_type = zip(said, forest.classes_, strict=True) if several else [(said, forest.classes_)]
    probability = np.stack([shares @ np.asarray(classes, dtype=float) for shares, classes in by_type], axis=1)
    return Presence(probability, np.stack([false_discovery_rate(column) for column in probability.T], axis=1))


def profiles_of(cells: ReferenceCells) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean expression of each type in each state, ``(profiles, genes)``, and the type of each profile."""
    pairs, member = np.unique(np.stack([cells.labels, cells.states]), axis=1, return_inverse=True)
    ones = np.ones(len(cells.labels))
    sums = sp.csr_array(sp.csr_array((ones, (member.ravel(), np.arange(len(ones))))) @ cells.counts)
    dense = sums.toarray().astype(np.float64)
    return dense / np.maximum(dense.sum(1, keepdims=True), 1.0), pairs[0]


def abundances(spots: sp.csr_array, profiles: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Fit spots as mixtures of profiles, in two ways.

    Parameters
    ----------
    spots
        Counts, shape ``(spots, genes)``.
    profiles
        Expected expression of each type, in one state or several, shape ``(profiles, genes)``.
    types
        Code of the type of each profile, shape ``(profiles,)``; every code from 0 on has one.

    Returns
    -------
    ndarray
        Shares of the types by least squares, by maximum likelihood, and the log of the spot's counts, shape ``(spots, 2
        types + 1)``, float32.
    """
    frequency = torch.from_numpy(profiles).float()
    member = torch.nn.functional.one_hot(torch.from_numpy(types)).float()
    rows = []
    for start in range(0, _shape(spots)[0], _CHUNK):
        block = _block(spots[start : start + _CHUNK])
        squares = least_squares_abundances(block, frequency)
        lifted = squares + _LEAST_SHARE * block.totals().unsqueeze(-1) / len(frequency)
        likely = mixture_abundances(block, frequency, lifted)
        shares = [fitted @ member for fitted in (squares, likely)]
        shares = [fitted / fitted.sum(1, keepdim=True).clamp(min=1e-12) for fitted in shares]
        rows.append(torch.cat([*shares, block.totals().unsqueeze(-1).log1p()], dim=1).numpy())
    return np.concatenate(rows)


def sums_of_cells(
    cells: ReferenceCells,
    library: np.ndarray,
    *,
    factor: np.ndarray,
    cells_per_spot: float,
    rng: np.random.Generator,
) -> tuple[sp.csr_array, np.ndarray]:
    """Draw spots as sums of reference cells.

    Their number is uniform from one to nearly twice the mean; their types follow a composition that is drawn for each
    spot. In every second spot those of a type share a state: neighbours may be alike.

    Parameters
    ----------
    cells
        To draw from.
    library
        Expected counts of each spot, shape ``(spots,)``.
    factor
        How much of each gene the spots' assay sees beside that of the cells, shape ``(genes,)``.
    cells_per_spot
        Mean number of cells of a spot.
    rng
        Source of the draws.

    Returns
    -------
    spots, n_of_type
        Counts, and the number of cells of each type, shape ``(spots, types)``.
    """
    n_spots, n_types = len(library), int(cells.labels.max()) + 1
    n_cells = rng.integers(1, max(round(2 * cells_per_spot), 2), n_spots)
    shares = rng.dirichlet(np.full(n_types, _CONCENTRATION), n_spots)
    n_of_type = rng.multinomial(n_cells, shares)
    alike = np.arange(n_spots) % 2 == 0
    chosen = []
    for label in range(n_types):
        spot = np.repeat(np.arange(n_spots), n_of_type[:, label])
        pool = np.flatnonzero(cells.labels == label)
        pool = pool[np.argsort(cells.states[pool], kind="stable")]
        states = cells.states[pool]
        of_spot = states[rng.integers(len(states), size=n_spots)]
        start = np.where(alike, np.searchsorted(states, of_spot), 0)
        stop = np.where(alike, np.searchsorted(states, of_spot, side="right"), len(states))
        chosen.append((spot, pool[start[spot] + (rng.random(len(spot)) * (stop - start)[spot]).astype(np.int64)]))
    rows, columns = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    member = sp.csr_array((np.ones(len(rows)), (rows, columns)), (n_spots, len(cells.labels)))
    total = sp.csr_array(member @ cells.counts)
    times = np.repeat(library / np.maximum(total @ factor, 1.0), np.diff(total.indptr)) * factor[total.indices]
    # A count is seen a whole number of times, and once more with the probability that is left.
    whole = np.floor(times)
    counts = np.rint(total.data).astype(np.int64)
    total.data = (counts * whole + rng.binomial(counts, times - whole)).astype(np.float32)
    total.eliminate_zeros()
    return total, n_of_type


def _halves(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Masks of two halves of the cells of each type; both have all cells of a type that has too few."""
    first, second = np.zeros((2, len(labels)), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        half = len(rows) // 2 if len(rows) >= _FEWEST_CELLS else 0
        first[rows[half:]] = True
        second[rows[:half] if half else rows] = True
    return first, second


def _block(counts: sp.csr_array) -> CountBlock:
    return CountBlock(
        values=torch.from_numpy(counts.data.astype(np.float32)),
        columns=torch.from_numpy(counts.indices.astype(np.int64)),
        offsets=torch.from_numpy(counts.indptr.astype(np.int64)),
        n_features=_shape(counts)[1],
    )


def _shape(matrix: sp.csr_array) -> tuple[int, int]:
    return cast("tuple[int, int]", matrix.shape)
