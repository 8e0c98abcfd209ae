"""Simulated counts that never are in memory as a whole, for data sets of a million cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd

_CHUNK = 5_000
_N_PROFILES, _N_TYPES, _N_BATCHES = 4_000, 20, 4
# Entries in a chunk of the file: about what h5py picks by itself for a matrix of this size.
_STORED = 1 << 15


class Profiles(NamedTuple):
    """What cells are drawn from: negative binomials that some 250 cells of a million share.

    ``none`` is the probability of a zero and ``odds`` is mu / (mu + theta), shape ``(profiles, genes)``; ``theta`` has
    shape ``(genes,)``, ``types`` and ``batch`` have shape ``(profiles,)``.
    """

    none: np.ndarray
    odds: np.ndarray
    theta: np.ndarray
    types: np.ndarray
    batch: np.ndarray


def profiles(n_genes: int, density: float, rng: np.random.Generator) -> Profiles:
    """Draw profiles around those of cell types in batches, at a depth that gives the share of nonzero entries."""
    types, batch = rng.integers(_N_TYPES, size=_N_PROFILES), rng.integers(_N_BATCHES, size=_N_PROFILES)
    loadings = rng.normal(0.0, 1.0, (_N_TYPES, n_genes)) * (rng.random((_N_TYPES, n_genes)) < 0.15)
    shift = rng.normal(0.0, 0.3, (_N_BATCHES, n_genes))
    logits = rng.normal(0.0, 1.5, n_genes) + loadings[types] * rng.lognormal(0.0, 0.3, (_N_PROFILES, 1)) + shift[batch]
    frequency = np.exp(logits - logits.max(1, keepdims=True))
    frequency *= rng.lognormal(0.0, 0.4, (_N_PROFILES, 1)) / frequency.sum(1, keepdims=True)
    theta = rng.gamma(2.0, 1.0, n_genes) + 0.3
    low, high = 0.0, np.log(1e3 * n_genes)
    for _ in range(20):
        middle = (low + high) / 2
        some = 1 + np.exp(middle) * frequency[:200] / theta
        low, high = (middle, high) if (1 - some**-theta).mean() < density else (low, middle)
    scaled = 1 + np.exp(low) * frequency / theta
    return Profiles((scaled**-theta).astype(np.float32), 1 - 1 / scaled, theta, types, batch)


def write_simulated(path: Path, n_cells: int, n_genes: int, *, density: float = 0.08, seed: int = 0) -> float:
    """Write simulated cells to an .h5ad: ``X`` in CSR (float32, int32, uncompressed), a chunk of cells at a time.

    Parameters
    ----------
    path
        The file; replaced.
    n_cells, n_genes
        Size.
    density
        Share of nonzero entries.
    seed
        Seed.

    Returns
    -------
    float
        The share of nonzero entries that came out.
    """
    rng = np.random.default_rng(seed)
    source = profiles(n_genes, density, rng)
    chosen = rng.integers(_N_PROFILES, size=n_cells)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(source.batch[chosen].astype(str)),
            "cell_type": pd.Categorical(source.types[chosen].astype(str)),
        },
        index=[f"c{i}" for i in range(n_cells)],
    )
    anndata.AnnData(obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])).write_h5ad(path)
    offsets = [np.zeros(1, np.int64)]
    with h5py.File(path, "a") as file:
        if "X" in file:
            del file["X"]
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_cells, n_genes)})
        stored = {
            name: group.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(_STORED,), dtype=dtype)
            for name, dtype in (("data", "f4"), ("indices", "i4"))
        }
        for values, columns, lengths in _chunks(source, chosen, rng):
            offsets.append(offsets[-1][-1] + np.cumsum(lengths))
            for dataset, entries in zip(stored.values(), (values, columns), strict=True):
                dataset.resize((offsets[-1][-1],))
                dataset[-len(entries) :] = entries
        group["indptr"] = np.concatenate(offsets)
    return float(offsets[-1][-1] / (n_cells * n_genes))


def _chunks(
    source: Profiles, chosen: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Counts, genes and number of nonzeros per cell, for a chunk of cells at a time."""
    n_genes = len(source.theta)
    for start in range(0, len(chosen), _CHUNK):
        profile = chosen[start : start + _CHUNK]
        uniform = rng.random((len(profile), n_genes), dtype=np.float32)
        nonzero = np.flatnonzero(uniform >= source.none[profile])
        row, gene = np.divmod(nonzero, n_genes)
        place = profile[row], gene
        values = _invert(uniform.ravel()[nonzero], source.none[place], source.odds[place], source.theta[gene])
        yield values, gene.astype(np.int32), np.bincount(row, minlength=len(profile))


def _invert(uniform: np.ndarray, none: np.ndarray, odds: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Smallest count whose distribution function is above ``uniform``, given that it is not zero.

    Goes up from one by p(x) = p(x - 1) (x - 1 + theta) / x * odds, with ever fewer entries left.
    """
    counts = np.ones(len(uniform), np.float32)
    left = np.arange(len(uniform))
    density = none * theta * odds
    missing = uniform - none - density
    x = 1
    # The rest of a tail is below what a float32 in (0, 1) can tell.
    while (go_on := (missing > 0) & (density > 1e-9)).any():
        left, density, missing = left[go_on], density[go_on], missing[go_on]
        odds, theta = odds[go_on], theta[go_on]
        x += 1
        density *= (x - 1 + theta) / x * odds
        missing -= density
        counts[left] = x
    return counts
