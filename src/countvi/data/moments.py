"""Variance over mean of the counts of a gene within the levels of a covariate."""

from __future__ import annotations

import torch
from torch import Tensor

from countvi.data.dataset import Dataset


def variance_ratio(data: Dataset, modality: str, column: int) -> Tensor:
    r"""Variance over mean of the counts of each gene around the mean of the cell's level, in one pass.

    .. math:: \frac{\sum_n (x_{ng} - T_n \bar f_{c_n g})^2}{\sum_n T_n \bar f_{c_n g}}, \qquad
        \bar f_{cg} = \frac{\sum_{n \in c} x_{ng}}{\sum_{n \in c} T_n}

    with T the total of a cell.

    Parameters
    ----------
    data
        Cells.
    modality
        Which counts.
    column
        The covariate, a column of the codes.

    Returns
    -------
    Tensor
        Shape ``(genes,)``, float64; one for a gene without counts, as for Poisson counts.
    """
    source, n_levels = data.sources[modality], data.registry.factor(column).n_levels
    n_genes = source.n_features
    squares = torch.zeros(n_genes, dtype=torch.float64)
    # Of the totals and their squares by level, and of x and T x by level and gene.
    totals, totals_squared = torch.zeros(2, n_levels, dtype=torch.float64)
    sums, weighted = torch.zeros(2, n_levels * n_genes, dtype=torch.float64)
    start = 0
    for block in source.blocks():
        level = data.codes[start : start + block.n_cells, column]
        total, values = block.totals().double(), block.values.double()
        totals.index_add_(0, level, total)
        totals_squared.index_add_(0, level, total.square())
        squares.index_add_(0, block.columns, values.square())
        place = level[block.rows] * n_genes + block.columns
        sums.index_add_(0, place, values)
        weighted.index_add_(0, place, values * total[block.rows])
        start += block.n_cells
    sums, weighted = sums.view(n_levels, n_genes), weighted.view(n_levels, n_genes)
    frequency = sums / totals.clamp(min=1.0).unsqueeze(-1)
    spread = squares + (totals_squared.unsqueeze(-1) * frequency.square() - 2.0 * frequency * weighted).sum(0)
    expected = sums.sum(0)
    return torch.where(expected > 0, spread / expected.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
