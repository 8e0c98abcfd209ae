"""Tables with a row per level of covariates: their base class, and which rows the cells of a minibatch take."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from countvi.batch import Design, Factor


class ByLevel(nn.Module, ABC):
    """Base of every part of a model that has tables with a row per level of covariates.

    It is how a model grows when cells with new levels are mapped onto it; see :mod:`countvi.nn.surgery`. The rows of a
    table are the levels of the first covariate, below them those of the second, and so on. Without covariates there is
    one row, which all cells share.
    """

    factors: tuple[Factor, ...]
    """The covariates, in the order of their rows."""
    tables: ClassVar[tuple[str, ...]]
    """Names of the parameters and buffers that are such tables."""
    single_level_has_row: ClassVar[bool] = True
    """Whether a covariate with one level has a row; if not, it is as if that row were zero."""


class ModalityTables(NamedTuple):
    """Tables that are learned from the counts of one modality alone."""

    part: ByLevel
    """What has them."""
    by_feature: bool
    """Whether each column is learned from a feature of its own; else all columns from all features."""
    columns: slice = slice(None)
    """The columns that are meant, of those that do not belong to features."""


def level_tables(module: nn.Module, *, by_feature: bool = False) -> list[ModalityTables]:
    """Return the tables of a module that is learned from the counts of one modality alone."""
    return [ModalityTables(part, by_feature) for part in module.modules() if isinstance(part, ByLevel)]


@torch.no_grad()
def fill_levels_without_data(tables: ModalityTables, factor: Factor, lacking: Tensor) -> None:
    """Give levels that had nothing to learn from the mean of those that had.

    Parameters
    ----------
    tables
        The tables; nothing happens if they do not follow the covariate.
    factor
        The covariate.
    lacking
        Which features no cell of a level had, shape ``(levels, features)``, bool. Columns that no level had data for
        stay as they are.
    """
    part, columns = tables.part, tables.columns
    if factor not in part.factors:
        return
    start = sum(other.n_levels for other in part.factors[: part.factors.index(factor)])
    without_data = lacking if tables.by_feature else lacking.all(1, keepdim=True)
    has = ~without_data
    for name in part.tables:
        rows = part.get_parameter(name)[start : start + factor.n_levels, columns]
        mean = (rows * has).sum(0) / has.sum(0).clamp(min=1)
        rows.copy_(torch.where(without_data & has.any(0), mean, rows))


class Combinations(NamedTuple):
    """The combinations of levels of some covariates that occur in a minibatch.

    As a rule there are far fewer of them than cells, and what belongs to a combination is computed once.
    """

    index: Tensor
    """Row of each covariate's level in a table that has the levels of all covariates below each other, shape
    ``(covariates, combinations)``, int64."""
    code: Tensor | None
    """Combination of each cell, shape ``(cells,)``, int64; ``None`` if there can be only one."""


def n_rows(factors: Sequence[Factor]) -> int:
    """Number of rows of a table with the levels of some covariates: at least one, for cells without any."""
    return max(1, sum(factor.n_levels for factor in factors))


def combinations(design: Design, factors: Sequence[Factor]) -> Combinations:
    """Find the combinations of levels that occur.

    Parameters
    ----------
    design
        Cells.
    factors
        The covariates; without any, all cells take the only row there is.
    """
    starts = list(accumulate((factor.n_levels for factor in factors), initial=0))
    if all(factor.n_levels == 1 for factor in factors):
        return Combinations(_column(starts[: max(1, len(factors))], design), None)
    strides = list(accumulate((factor.n_levels for factor in factors), lambda a, b: a * b, initial=1))
    assert strides[-1] < 2**62, "so many combinations of covariates cannot be numbered"
    number = sum(design.levels(factor) * stride for factor, stride in zip(factors, strides, strict=False))
    assert isinstance(number, Tensor)
    if design.codes.is_cuda and strides[-1] <= design.n_cells:
        # To find out which occur, everything would have to wait for the device; those that do not cost little.
        found, code = torch.arange(strides[-1], device=design.codes.device), number
    else:
        found, code = number.unique(return_inverse=True)
    parts = zip(factors, starts, strides, strict=False)
    rows = [start + found.div(stride, rounding_mode="floor") % factor.n_levels for factor, start, stride in parts]
    return Combinations(torch.stack(rows), code)


def _column(numbers: Sequence[int], design: Design) -> Tensor:
    """Return numbers below each other on the device of a design, written there rather than copied to it."""
    return torch.stack([design.codes.new_full((1,), number) for number in numbers])
