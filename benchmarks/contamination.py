"""Counts with a contamination that is known, estimates to compare with, and how much of it they remove.

The estimates are written for this comparison, after the ideas of SoupX (Young and Behjati 2020) and DecontX (Yang
et al. 2020); they are not those programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp

REMOVED, LOST = "contamination removed", "own counts lost"
REMOVED_BY_TYPE, LOST_BY_TYPE = "removed, mean of a type", "lost, mean of a type"
SHARE_ERROR, SHARE_CORRELATION = "mean share, estimated - true", "correlation of shares"

_N_EM_STEPS = 60


@dataclass(frozen=True)
class Contaminated:
    """Cells, a known part of whose counts comes from elsewhere.

    Parameters
    ----------
    adata
        Counts as a model sees them, with ``obs["batch"]`` and ``obs["cell_type"]``.
    own
        What was in the cells, ``(cells, genes)``: never more than the counts.
    soup
        Frequencies that each batch's contamination was drawn from, ``(batches, genes)``.
    batch
        Batch of each cell, a number.
    """

    adata: anndata.AnnData
    own: sp.csr_matrix
    soup: np.ndarray
    batch: np.ndarray

    @property
    def counts(self) -> sp.csr_matrix:
        """The counts."""
        return self.adata.X

    @property
    def types(self) -> np.ndarray:
        """Type of each cell, a number."""
        return np.unique(self.adata.obs["cell_type"].astype(str), return_inverse=True)[1]

    @property
    def share(self) -> np.ndarray:
        """True share of contamination in each cell."""
        return 1 - _sums(self.own, 1) / np.maximum(_sums(self.counts, 1), 1)


def contaminate(
    adata: anndata.AnnData, soup: np.ndarray, batch: np.ndarray, share: np.ndarray, seed: int
) -> Contaminated:
    """Replace a share of each cell's counts by draws from the soup of its batch.

    Parameters
    ----------
    adata
        Counts; not changed.
    soup
        Frequencies by batch, ``(batches, genes)``.
    batch
        Batch of each cell.
    share
        Expected share in each batch; that of a cell is drawn around it.
    seed
        Seed.
    """
    rng = np.random.default_rng(seed)
    counts = sp.csr_matrix(adata.X)
    of_cell = rng.beta(10 * share[batch], 10 * (1 - share[batch]))
    own = counts.copy()
    own.data = rng.binomial(counts.data.astype(np.int64), 1 - np.repeat(of_cell, np.diff(counts.indptr))).astype(
        np.float32
    )
    own.eliminate_zeros()
    taken = (_sums(counts, 1) - _sums(own, 1)).astype(np.int64)
    added = sp.csr_matrix(
        np.stack([rng.multinomial(n, soup[b]) for n, b in zip(taken, batch, strict=True)]).astype(np.float32)
    )
    obs = adata.obs[["cell_type"]].copy()
    obs["batch"] = [f"s{b}" for b in batch]
    return Contaminated(
        anndata.AnnData(sp.csr_matrix(own + added), obs=obs, var=adata.var[[]].copy()), own, soup, batch
    )


def scores(data: Contaminated, cleaned: Any, share: np.ndarray | None, *, of_counts: bool = True) -> dict[str, float]:
    """How much of the contamination is gone, and how much of the cells' own counts with it.

    Parameters
    ----------
    data
        The truth.
    cleaned
        An estimate of the own counts, ``(cells, genes)``.
    share
        Estimated share of contamination of each cell.
    of_counts
        Whether the estimate is one of counts, entry by entry, and not of expectations only.
    """
    added = data.counts - data.own
    result = {}
    if of_counts:
        excess = sp.csr_matrix(cleaned) - data.own
        result[REMOVED] = 1 - excess.maximum(0).sum() / added.sum()
        result[LOST] = (-excess).maximum(0).sum() / data.own.sum()
    by_type = [_by_type(data.types, matrix) for matrix in (cleaned, data.own, added)]
    result[REMOVED_BY_TYPE] = 1 - np.maximum(by_type[0] - by_type[1], 0).sum() / by_type[2].sum()
    result[LOST_BY_TYPE] = np.maximum(by_type[1] - by_type[0], 0).sum() / by_type[1].sum()
    if share is not None:
        result[SHARE_ERROR] = share.mean() - data.share.mean()
        result[SHARE_CORRELATION] = np.corrcoef(share, data.share)[0, 1]
    return {name: float(value) for name, value in result.items()}


def known_soup(data: Contaminated) -> tuple[sp.csr_matrix, np.ndarray]:
    """Subtract a soup whose frequencies are known, as SoupX does: by clusters, here the true types.

    The share of a batch is the median over types and genes of observed by expected counts, of the genes that a type has
    least of, relative to the soup.

    Returns
    -------
    tuple
        Own counts, and the estimated share of each cell.
    """
    counts, totals = data.counts, _sums(data.counts, 1)
    keep, share = np.ones(counts.shape[0]), np.zeros(counts.shape[0])
    cleaned = sp.lil_matrix(counts.shape, dtype=np.float64).tocsr()
    for batch, soup in enumerate(data.soup):
        inside = data.batch == batch
        groups = [np.flatnonzero(inside & (data.types == t)) for t in np.unique(data.types[inside])]
        sums = np.stack([_sums(counts[rows], 0) for rows in groups])
        expected = np.stack([totals[rows].sum() * soup for rows in groups])
        ratio = np.where(expected >= 50, sums / np.maximum(expected, 1e-12), np.inf)
        # Of each frequent gene of the soup, the type that has least of it; of these genes, the lowest tenth.
        least = np.sort(ratio.min(0)[np.isfinite(ratio.min(0))])
        estimate = float(np.median(least[: max(1, len(least) // 10)])) if len(least) else 0.0
        share[inside] = estimate
        for rows, of_group, of_soup in zip(groups, sums, expected, strict=True):
            left = 1 - np.minimum(1, estimate * of_soup / np.maximum(of_group, 1e-12))
            keep_rows = sp.diags(keep[rows]) @ counts[rows] @ sp.diags(left)
            cleaned = cleaned + _placed(keep_rows, rows, counts.shape)
    return sp.csr_matrix(cleaned), share


def mixture_of_types(data: Contaminated) -> tuple[sp.csr_matrix, np.ndarray]:
    """Each cell mixes the profile of its type with that of the other types of its batch, as DecontX has it.

    Clusters are the true types. Shares and profiles are found by expectation and maximisation.

    Returns
    -------
    tuple
        Own counts, and the estimated share of each cell.
    """
    cleaned, share = sp.csr_matrix(data.counts.shape), np.zeros(data.counts.shape[0])
    for batch in range(len(data.soup)):
        rows = np.flatnonzero(data.batch == batch)
        counts, types = data.counts[rows].tocoo(), np.unique(data.types[rows], return_inverse=True)[1]
        n_types, n_genes, totals = types.max() + 1, counts.shape[1], _sums(data.counts[rows], 1)
        kind = types[counts.row]
        native, own_share = counts.data.astype(np.float64), np.full(len(rows), 0.9)
        for _ in range(_N_EM_STEPS):
            profile = np.zeros((n_types, n_genes))
            np.add.at(profile, (kind, counts.col), native)
            others = profile.sum(0) - profile + 1e-3
            profile = (profile + 1e-6) / (profile + 1e-6).sum(1, keepdims=True)
            others /= others.sum(1, keepdims=True)
            a = own_share[counts.row] * profile[kind, counts.col]
            b = (1 - own_share[counts.row]) * others[kind, counts.col]
            native = counts.data * a / (a + b)
            kept = np.bincount(counts.row, native, len(rows))
            own_share = (kept + 10) / (totals + 20)
        cleaned = cleaned + _placed(
            sp.csr_matrix((native, (counts.row, counts.col)), counts.shape), rows, data.counts.shape
        )
        share[rows] = 1 - own_share
    return sp.csr_matrix(cleaned), share


def _placed(part: sp.spmatrix, rows: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    part = part.tocoo()
    return sp.csr_matrix((part.data, (rows[part.row], part.col)), shape)


def _by_type(types: np.ndarray, matrix: Any) -> np.ndarray:
    """Sums over the cells of each type, ``(types, genes)``."""
    pick = sp.csr_matrix((np.ones(len(types)), (types, np.arange(len(types)))))
    total = pick @ matrix
    return np.asarray(total.todense()) if sp.issparse(total) else np.asarray(total)


def _sums(matrix: sp.spmatrix, axis: int) -> np.ndarray:
    return np.asarray(matrix.sum(axis)).ravel()
