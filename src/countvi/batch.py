"""The typed values that cross layers: counts, covariates, and both together.

Counts stay sparse from the file to the loss. A :class:`CountBlock` holds the rows of a minibatch in
compressed sparse row form; a :class:`Design` holds what is known about the cells besides their counts;
a :class:`Batch` is both. All three are immutable: a counterfactual is a new ``Design``, not a flag.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from countvi.errors import OptionError
from countvi.typing import CellsGenes, Codes, PerCell

RNA = "rna"
"""Name of the modality in models that have one."""
PROTEIN = "protein"
"""Name of the second modality of CITE-seq."""


class Factor(NamedTuple):
    """A categorical covariate as a model sees it: where its codes are, and how many levels it has."""

    column: int
    """Column of :attr:`Design.codes`."""
    n_levels: int
    """Number of categories; codes run from 0 to ``n_levels - 1``."""


@dataclass(frozen=True, eq=False)
class CountBlock:
    """Rows of a sparse count matrix (compressed sparse rows, explicit zeros allowed).

    Parameters
    ----------
    values
        Stored entries, shape ``(nonzeros,)``, floating point.
    columns
        Feature of each entry, shape ``(nonzeros,)``, int64; distinct within a row.
    offsets
        Row ``i`` owns entries ``offsets[i]:offsets[i + 1]``, shape ``(cells + 1,)``, int64.
    n_features
        Number of columns of the matrix.
    """

    values: Tensor
    columns: Tensor
    offsets: Tensor
    n_features: int

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return self.offsets.shape[0] - 1

    @cached_property
    def rows(self) -> Tensor:
        """Row of each entry, shape ``(nonzeros,)``, int64."""
        lengths = self.offsets[1:] - self.offsets[:-1]
        index = torch.arange(self.n_cells, device=self.offsets.device)
        return torch.repeat_interleave(index, lengths, output_size=self.values.shape[0])

    @cached_property
    def flat_index(self) -> Tensor:
        """Position of each entry in the row-major dense matrix, shape ``(nonzeros,)``, int64."""
        return self.rows * self.n_features + self.columns

    def totals(self) -> PerCell:
        """Sum of each row, shape ``(cells,)``."""
        return torch.segment_reduce(self.values, "sum", offsets=self.offsets, initial=0.0)

    def sum_rows(self, entries: Tensor) -> Tensor:
        """Sum numbers that stand at the stored entries over each row.

        Parameters
        ----------
        entries
            Shape ``(*samples, nonzeros)``.

        Returns
        -------
        Tensor
            Shape ``(*samples, cells)``.
        """
        out = entries.new_zeros((*entries.shape[:-1], self.n_cells))
        return out.index_add(-1, self.rows, entries)

    def map(self, function: Callable[[Tensor], Tensor]) -> CountBlock:
        """Apply a function with ``function(0) = 0`` to the stored entries."""
        return dataclasses.replace(self, values=function(self.values))

    def divide_rows(self, divisor: PerCell) -> CountBlock:
        """Divide the entries of each row by one number, shape ``(cells,)``."""
        return dataclasses.replace(self, values=self.values / divisor.index_select(0, self.rows))

    def to_dense(self) -> CellsGenes:
        """Return the dense matrix, shape ``(cells, n_features)``."""
        dense = self.values.new_zeros(self.n_cells * self.n_features)
        return dense.index_add(0, self.flat_index, self.values).view(self.n_cells, self.n_features)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CountBlock:
        """Move to a device, and cast the stored entries; itself if there is nothing to do."""
        if (device is None or torch.device(device) == self.values.device) and dtype in (None, self.values.dtype):
            return self
        return CountBlock(
            values=self.values.to(device=device, dtype=dtype),
            columns=self.columns.to(device=device),
            offsets=self.offsets.to(device=device),
            n_features=self.n_features,
        )

    def features(self, start: int, stop: int) -> CountBlock:
        """Return the columns from ``start`` to ``stop`` (excluded)."""
        inside = (self.columns >= start) & (self.columns < stop)
        before = torch.cat([self.offsets.new_zeros(1), inside.cumsum(0)])
        return CountBlock(
            values=self.values[inside],
            columns=self.columns[inside] - start,
            offsets=before.index_select(0, self.offsets),
            n_features=stop - start,
        )

    @classmethod
    def side_by_side(cls, blocks: Sequence[CountBlock]) -> CountBlock:
        """Join the features of the same cells.

        Parameters
        ----------
        blocks
            With the same number of cells each, at least one.

        Returns
        -------
        CountBlock
            The features of all blocks, in their order.
        """
        if len(blocks) == 1:
            return blocks[0]
        offsets = torch.stack([block.offsets for block in blocks]).sum(0)
        total = sum(block.values.shape[0] for block in blocks)
        values, columns = blocks[0].values.new_empty(total), blocks[0].columns.new_empty(total)
        before, n_features = offsets[:-1].clone(), 0
        for block in blocks:
            place = torch.arange(block.values.shape[0], device=offsets.device)
            place += (before - block.offsets[:-1]).index_select(0, block.rows)
            values[place], columns[place] = block.values, block.columns + n_features
            before += block.offsets[1:] - block.offsets[:-1]
            n_features += block.n_features
        return cls(values=values, columns=columns, offsets=offsets, n_features=n_features)

    @classmethod
    def from_dense(cls, dense: Tensor) -> CountBlock:
        """Build from a dense matrix of shape ``(cells, features)``."""
        rows, columns = dense.nonzero(as_tuple=True)
        lengths = torch.bincount(rows, minlength=dense.shape[0])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return cls(values=dense[rows, columns], columns=columns, offsets=offsets, n_features=dense.shape[1])


@dataclass(frozen=True, eq=False)
class Design:
    """What is known about the cells of a minibatch besides their counts.

    Each categorical covariate is stored once, as one column of codes; a model's parts name the columns they
    use by :class:`Factor`. So one column (the batch, say) can serve several purposes, and a counterfactual
    replaces it for all of them.

    Parameters
    ----------
    codes
        Integer codes of the categorical covariates, shape ``(cells, columns)``, int64.
    continuous
        Continuous covariates, shape ``(cells, n_continuous)``.
    size_factor
        Size factors given by the user, shape ``(cells,)``, or ``None``.
    present
        Which cells each modality was measured in, shape ``(cells,)``, bool, by name. A modality that is not named was
        measured in all cells; ``None`` is short for an empty mapping. The row of counts of a cell that a modality was
        not measured in is empty, and says nothing about the cell.
    position
        Row of each cell in the tables of a model that has parameters of single cells, shape ``(cells,)``, int64;
        ``None`` where there are no such tables.
    entries
        Which features of a modality were measured in each cell, shape ``(cells, features)``, bool, by name; a modality
        that is not named was measured whole in its cells. What was not measured is no count, not a count of zero.
    """

    codes: Codes
    continuous: Tensor
    size_factor: Tensor | None = None
    present: Mapping[str, Tensor] | None = None
    position: Tensor | None = None
    entries: Mapping[str, Tensor] | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.codes.shape[0]

    def levels(self, factor: Factor) -> Tensor:
        """Codes of one covariate, shape ``(cells,)``."""
        return self.codes[:, factor.column]

    def measured(self, modality: str) -> Tensor | None:
        """Which cells a modality was measured in, shape ``(cells,)``, bool; ``None`` if in all."""
        return None if self.present is None else self.present.get(modality)

    def measured_entries(self, modality: str) -> Tensor | None:
        """Which features were measured in each cell, shape ``(cells, features)``, bool; ``None`` if all in all."""
        return None if self.entries is None else self.entries.get(modality)

    def with_level(self, column: int, code: int) -> Design:
        """Return the design in which every cell has one category of one covariate."""
        codes = self.codes.clone()
        codes[:, column] = code
        return dataclasses.replace(self, codes=codes)

    def cells(self, index: Tensor) -> Design:
        """Return the design of some of the cells, at positions ``index``, repeats allowed."""
        return Design(
            codes=self.codes.index_select(0, index),
            continuous=self.continuous.index_select(0, index),
            size_factor=None if self.size_factor is None else self.size_factor.index_select(0, index),
            present=None if self.present is None else {k: v.index_select(0, index) for k, v in self.present.items()},
            position=None if self.position is None else self.position.index_select(0, index),
            entries=None if self.entries is None else {k: v.index_select(0, index) for k, v in self.entries.items()},
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Design:
        """Move to a device, and cast the numbers that are not codes."""
        return Design(
            codes=self.codes.to(device=device),
            continuous=self.continuous.to(device=device, dtype=dtype),
            size_factor=None if self.size_factor is None else self.size_factor.to(device=device, dtype=dtype),
            present=None if self.present is None else {k: v.to(device=device) for k, v in self.present.items()},
            position=None if self.position is None else self.position.to(device=device),
            entries=None if self.entries is None else {k: v.to(device=device) for k, v in self.entries.items()},
        )


@dataclass(frozen=True)
class AbsentCounts(Mapping[str, CountBlock]):
    """Stands for counts of cells of which only the posterior was kept; says so when they are asked for.

    Parameters
    ----------
    sizes
        Number of features by modality.
    """

    sizes: Mapping[str, int]

    def __getitem__(self, modality: str) -> CountBlock:
        """Raise, as there are none."""
        message = (
            "This needs counts, and the model keeps the posterior of its cells instead of them (minify_adata). Pass "
            "adata=, with the counts."
        )
        raise OptionError(message)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class Batch:
    """A minibatch of cells: counts per modality, and the design.

    Parameters
    ----------
    counts
        By modality.
    design
        What else is known.
    stored
        Mean and standard deviation (``None`` for what is given) of the posterior of each latent variable, by its name,
        in place of counts; ``None`` where there are counts.
    """

    counts: Mapping[str, CountBlock]
    design: Design
    stored: Mapping[str, tuple[Tensor, Tensor | None]] | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.design.n_cells

    def n_features(self, modality: str) -> int:
        """Number of features of a modality."""
        if isinstance(self.counts, AbsentCounts):
            return self.counts.sizes[modality]
        return self.counts[modality].n_features

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """Move to a device, and cast everything that is not a code or an index."""
        if self.stored is not None:
            moved = {
                name: (loc.to(device, dtype), None if scale is None else scale.to(device, dtype))
                for name, (loc, scale) in self.stored.items()
            }
            return Batch(self.counts, self.design.to(device, dtype), moved)
        return Batch(
            counts={name: block.to(device, dtype) for name, block in self.counts.items()},
            design=self.design.to(device, dtype),
        )
