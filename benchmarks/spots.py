"""Simulated slides whose composition and states are known: sums of real cells, and the simulation of the DestVI paper.

References and slides have integer counts in ``X`` (CSR, float32) and the types in ``obs["cell_type"]``; what is true of
a slide is in :class:`Truth`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import anndata
import datasets
import numpy as np
import pandas as pd
import scipy.sparse as sp

_UNKNOWN = ("unassigned", "ambiguous", "?")
# A type with fewer cells has too few for both halves.
_FEWEST_CELLS = 12
_INPUTS = "COUNTVI_DESTVI_SIMULATION"
# What makes a smooth kernel positive definite in float64.
_JITTER = 1e-6


@dataclass(frozen=True)
class Truth:
    """What is known of a simulated slide.

    Parameters
    ----------
    cells
        Share of the cells of each type, ``(spots, types)``.
    rna
        Share of the counts that come from each type, ``(spots, types)``.
    expression
        By type, what its cells contributed, ``(spots, genes)``: counts, or expected frequencies.
    groups
        By type, which spots hold the type in the second of two states; empty where there are no states.
    """

    cells: pd.DataFrame
    rna: pd.DataFrame
    expression: dict[str, sp.csr_matrix]
    groups: dict[str, np.ndarray]


@dataclass(frozen=True)
class Slide:
    """A reference, a slide, and what is true of the slide."""

    reference: anndata.AnnData
    spots: anndata.AnnData
    truth: Truth


def mixed(
    name: str,
    *,
    n_genes: int = 1_000,
    n_spots: int = 600,
    cells: tuple[int, int] = (2, 10),
    uneven: bool = True,
    assay: float = 0.0,
    seed: int = 0,
) -> Slide:
    """Sum 2 to 10 cells of one half of a real data set in each spot; the other half is the reference.

    Parameters
    ----------
    name
        One of :func:`datasets.available`.
    n_genes
        How many of the most variable genes.
    n_spots
        Number of spots.
    cells
        Fewest and most cells in a spot.
    uneven
        Whether some types are rare and others dominant on the slide, rather than all alike.
    assay
        Standard deviation of the log of a factor of each gene, by which the counts of spots are thinned: the difference
        between two assays. 0 for none.
    seed
        Seed.
    """
    rng = np.random.default_rng(seed)
    adata = datasets.load(name, n_genes)
    kinds = adata.obs["cell_type"].astype(str)
    keep = ~kinds.isin(_UNKNOWN) & (kinds.map(kinds.value_counts()) >= _FEWEST_CELLS)
    adata = adata[keep.to_numpy()].copy()
    kinds = adata.obs["cell_type"].astype(str).to_numpy()
    types = np.unique(kinds)
    held_out = np.zeros(adata.n_obs, dtype=bool)
    for kind in types:
        rows = rng.permutation(np.flatnonzero(kinds == kind))
        held_out[rows[: len(rows) // 2]] = True
    reference = adata[~held_out].copy()
    reference.obs["cell_type"] = pd.Categorical(kinds[~held_out], types)
    return Slide(
        reference, *_sum_cells(adata, kinds, held_out, _draw(rng, len(types), n_spots, cells, uneven), assay, rng)
    )


def _draw(rng: np.random.Generator, n_types: int, n_spots: int, cells: tuple[int, int], uneven: bool) -> np.ndarray:
    """Number of cells of each type in each spot, ``(spots, types)``."""
    weight = np.geomspace(0.1, 3.0, n_types) if uneven else np.ones(n_types)
    alpha = 0.3 * n_types * rng.permutation(weight) / weight.sum()
    return rng.multinomial(rng.integers(cells[0], cells[1] + 1, n_spots), rng.dirichlet(alpha, n_spots))


def _sum_cells(
    adata: anndata.AnnData,
    kinds: np.ndarray,
    held_out: np.ndarray,
    n_cells: np.ndarray,
    assay: float,
    rng: np.random.Generator,
) -> tuple[anndata.AnnData, Truth]:
    types, n_spots = np.unique(kinds), len(n_cells)
    # Kang: a spot is of one condition or the other, for all of its cells.
    batch = adata.obs["batch"].astype(str).to_numpy() if adata.obs.get("batch") is not None else None
    states = np.unique(batch) if batch is not None else []
    second = rng.random(n_spots) < 0.5 if len(states) == 2 else None
    thin = np.minimum(1.0, rng.lognormal(-2 * assay, assay, adata.n_vars)) if assay else None
    expression: dict[str, sp.csr_matrix] = {}
    for c, kind in enumerate(types):
        spot = np.repeat(np.arange(n_spots), n_cells[:, c])
        if second is None:
            cell = rng.choice(np.flatnonzero((kinds == kind) & held_out), len(spot))
        else:
            pools = [np.flatnonzero((kinds == kind) & held_out & (batch == state)) for state in states]
            cell = np.where(second[spot], rng.choice(pools[1], len(spot)), rng.choice(pools[0], len(spot)))
        member = sp.csr_matrix((np.ones(len(spot), np.float32), (spot, cell)), (n_spots, adata.n_obs))
        counts = (member @ adata.X).tocsr()
        if thin is not None:
            counts.data = rng.binomial(counts.data.astype(int), thin[counts.indices]).astype(np.float32)
            counts.eliminate_zeros()
        expression[kind] = counts
    total = sum(expression.values())
    side = int(np.ceil(np.sqrt(n_spots)))
    names = [f"s{i}" for i in range(n_spots)]
    spots = anndata.AnnData(
        sp.csr_matrix(total), obs=pd.DataFrame(index=names), var=pd.DataFrame(index=adata.var_names.copy())
    )
    spots.obsm["spatial"] = np.stack(np.divmod(np.arange(n_spots), side), 1).astype(float)
    rna = np.stack([np.asarray(expression[kind].sum(1)).ravel() for kind in types], 1)
    groups = {} if second is None else {kind: second for kind in types}
    truth = Truth(_shares(n_cells, names, types), _shares(rna, names, types), expression, groups)
    return spots, truth


def _shares(amounts: np.ndarray, names: list[str], types: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(amounts / np.maximum(amounts.sum(1, keepdims=True), 1e-12), names, types)


def paper_is_available() -> bool:
    """Whether the parameters of the paper's simulation are on this machine.

    They are ``simulations/input_data/grtruth_PCA.npz`` and ``inv-dispersion.npy`` of
    github.com/romain-lopez/DestVI-reproducibility, in the folder that COUNTVI_DESTVI_SIMULATION names.
    """
    folder = os.environ.get(_INPUTS)
    return folder is not None and (Path(folder) / "grtruth_PCA.npz").exists()


def paper(*, step: float = 0.5, n_cells: int = 100, n_reference: int = 20, seed: int = 0) -> Slide:
    r"""Draw the simulation of Lopez et al. (2022), from its description.

    On a grid, log-proportions of five types are Gaussian processes with a squared exponential kernel (0.1 times the
    squared median distance), and the four coordinates of a state, which all types of a spot share, others (0.5 times,
    variance 15). A cell of type c has expected log-counts :math:`m_c + \gamma W_c`, of a sparse PCA of lymph node
    cells, and negative binomial counts; a spot is the mean of its 100 cells with noise of the same kind. Some of the
    cells are the reference.

    Parameters
    ----------
    step
        Distance between neighbouring spots on a grid from -10 to 10.
    n_cells
        Cells of a spot.
    n_reference
        How many of them are in the reference.
    seed
        Seed.
    """
    folder = Path(os.environ[_INPUTS])
    rng = np.random.default_rng(seed)
    with np.load(folder / "grtruth_PCA.npz") as parameters:
        mean, loadings = parameters["mean_"], parameters["components_"]
    theta = 100.0 * np.load(folder / "inv-dispersion.npy").astype(float)
    place = np.arange(-10.0, 10.0, step)
    locations = np.stack(np.meshgrid(place, place, indexing="ij"), -1).reshape(-1, 2)
    squared = np.square(locations[:, None] - locations[None]).sum(-1)
    median = np.median(squared[np.triu_indices(len(squared), 1)])
    logits = _process(np.exp(-squared / (0.1 * median)), len(mean), rng)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gamma = _process(15.0 * np.exp(-squared / (0.5 * median)), loadings.shape[1], rng)
    blocks, labels, sums = [], [], np.empty((len(locations), mean.shape[1]))
    floor = _floor(mean, loadings, gamma)
    for s in range(len(locations)):
        kinds = rng.choice(len(mean), n_cells, p=shares[s])
        log_mean = mean[kinds] + np.tensordot(gamma[s], loadings[kinds], (0, 1))
        rate = np.expm1(np.where(log_mean > 0, log_mean, floor))
        rate = rng.gamma(theta, rate / theta)
        sums[s] = rate.mean(0)
        blocks.append(sp.csr_matrix(rng.poisson(rate[:n_reference]).astype(np.float32)))
        labels.append(kinds[:n_reference])
    counts = rng.poisson(rng.gamma(theta, sums / theta)).astype(np.float32)
    types = np.array([str(c) for c in range(len(mean))])
    genes = pd.DataFrame(index=[f"g{i}" for i in range(mean.shape[1])])
    cells = pd.DataFrame({"cell_type": pd.Categorical(types[np.concatenate(labels)], types)})
    cells.index = [f"c{i}" for i in range(len(cells))]
    reference = anndata.AnnData(sp.vstack(blocks, format="csr"), obs=cells, var=genes)
    names = [f"s{i}" for i in range(len(locations))]
    spots = anndata.AnnData(sp.csr_matrix(counts), obs=pd.DataFrame(index=names), var=genes.copy())
    spots.obsm["spatial"] = locations
    return Slide(reference, spots, _paper_truth(shares, gamma, names))


def paper_as_drawn_there() -> Slide | None:
    """The simulation that the paper's own script draws, if what it writes is in the folder too.

    They are the files ``sc_simu.h5ad`` and ``st_simu.h5ad`` of its ``make_dataset.py``.
    """
    folder = Path(os.environ[_INPUTS])
    if not (folder / "st_simu.h5ad").exists():
        return None
    cells, drawn = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("sc_simu", "st_simu"))
    genes = pd.DataFrame(index=[f"g{i}" for i in range(cells.n_vars)])
    kinds = cells.obs["cell_type"].astype(int).astype(str).to_numpy()
    obs = pd.DataFrame({"cell_type": pd.Categorical(kinds)}, index=[f"c{i}" for i in range(len(kinds))])
    reference = anndata.AnnData(sp.csr_matrix(cells.X).astype(np.float32), obs=obs, var=genes)
    names = [f"s{i}" for i in range(drawn.n_obs)]
    counts = sp.csr_matrix(drawn.X).astype(np.float32)
    spots = anndata.AnnData(counts, obs=pd.DataFrame(index=names), var=genes.copy())
    spots.obsm["spatial"] = np.asarray(drawn.obsm["locations"])
    return Slide(reference, spots, _paper_truth(drawn.obsm["cell_type"], drawn.obsm["gamma"], names))


def _paper_truth(shares: np.ndarray, gamma: np.ndarray, names: list[str]) -> Truth:
    """What is known of shares ``(spots, types)`` and states ``(spots, 4)`` in the paper's simulation."""
    with np.load(Path(os.environ[_INPUTS]) / "grtruth_PCA.npz") as parameters:
        mean, loadings = parameters["mean_"], parameters["components_"]
    types = np.array([str(c) for c in range(len(mean))])
    expression, totals = {}, np.empty_like(shares)
    for c, kind in enumerate(types):
        rate = np.expm1(np.maximum(mean[c] + gamma @ loadings[c], 0.0))
        totals[:, c] = rate.sum(1)
        expression[kind] = sp.csr_matrix(rate / rate.sum(1, keepdims=True))
    return Truth(_shares(shares, names, types), _shares(shares * totals, names, types), expression, {})


def varying_genes() -> list[np.ndarray]:
    """Columns of the genes that vary within each type in the paper's simulation."""
    with np.load(Path(os.environ[_INPUTS]) / "grtruth_PCA.npz") as parameters:
        return [np.flatnonzero((loadings != 0).any(0)) for loadings in parameters["components_"]]


def _process(kernel: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``n`` Gaussian processes, ``(places, n)``."""
    # Not by eigenvectors, whose signs and order are another machine's others.
    factor = np.linalg.cholesky(kernel + _JITTER * kernel[0, 0] * np.eye(len(kernel)))
    return factor @ rng.normal(size=(len(kernel), n))


def _floor(mean: np.ndarray, loadings: np.ndarray, gamma: np.ndarray) -> float:
    """Expected log-count where the linear model gives none that is positive: a hundredth of the smallest that is."""
    values = [np.where((m := mean[c] + gamma @ loadings[c]) > 0, m, np.inf).min() for c in range(len(mean))]
    return 0.01 * float(min(values))
