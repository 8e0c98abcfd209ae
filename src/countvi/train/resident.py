"""All cells of a run on the device that trains, and minibatches of them that never leave it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from countvi.batch import Batch, CountBlock, Design


@dataclass(frozen=True, eq=False)
class ResidentCounts:
    """Counts of all cells of one modality, from which rows are taken with shapes known beforehand.

    Parameters
    ----------
    block
        All cells, on the device; one stored entry at least.
    longest
        Number of stored entries of the fullest cell.
    """

    block: CountBlock
    longest: int

    @cached_property
    def _within(self) -> Tensor:
        return torch.arange(self.longest, device=self.block.offsets.device)

    def take(self, rows: Tensor) -> CountBlock:
        """Return some rows, with every entry stored.

        The number of entries that are not zero differs from minibatch to minibatch, and memory of another size is what
        a recorded step cannot ask for. So each cell reads as many entries as the fullest has, those beyond its own into
        a column that is cut off.
        """
        block, n_features, n_cells = self.block, self.block.n_features, rows.shape[0]
        starts, ends = block.offsets.index_select(0, rows), block.offsets.index_select(0, rows + 1)
        at = starts.unsqueeze(1) + self._within
        own = at < ends.unsqueeze(1)
        at = torch.where(own, at, 0)
        columns = torch.where(own, block.columns[at].long(), n_features)
        dense = block.values.new_zeros(n_cells, n_features + 1)
        values = dense.scatter_(1, columns, block.values[at])[:, :n_features]
        every = torch.arange(n_features, device=rows.device).expand(n_cells, -1)
        offsets = torch.arange(n_cells + 1, device=rows.device) * n_features
        return CountBlock(values.reshape(-1), every.reshape(-1), offsets, n_features)


@dataclass(frozen=True, eq=False)
class Resident:
    """Cells on a device.

    Parameters
    ----------
    counts
        By modality.
    design
        What else is known of them.
    """

    counts: Mapping[str, ResidentCounts]
    design: Design

    def batch(self, rows: Tensor) -> Batch:
        """Return the cells at some positions, shape ``(cells,)``, int64, on the device; nothing waits for it."""
        return Batch(
            counts={name: counts.take(rows) for name, counts in self.counts.items()}, design=self.design.cells(rows)
        )

    @classmethod
    def join(cls, parts: Iterable[Batch], device: torch.device, dtype: torch.dtype, limit: float) -> Resident | None:
        """Put cells on a device.

        Parameters
        ----------
        parts
            All cells, in their order, measured in full: an entry that is not there would become a stored zero.
        device, dtype
            Where to, and the type of what is not a code.
        limit
            Bytes that they may take.

        Returns
        -------
        Resident or None
            ``None`` if they take more.
        """
        moved: list[Batch] = []
        total = 0
        for part in parts:
            part = Batch({name: _narrow(block) for name, block in part.counts.items()}, part.design)
            moved.append(part.to(device, dtype))
            total += sum(_bytes(tensor) for tensor in _tensors(moved[-1]))
            if 2 * total > limit:  # the parts and the whole are there at the same time
                return None
        counts = {name: _join_counts([part.counts[name] for part in moved]) for name in moved[0].counts}
        return cls(counts, _join_designs([part.design for part in moved]))


def _narrow(block: CountBlock) -> CountBlock:
    """Half the memory for what says where the entries are."""
    return CountBlock(block.values, block.columns.int(), block.offsets, block.n_features)


def _join_counts(blocks: Sequence[CountBlock]) -> ResidentCounts:
    lengths = torch.cat([block.offsets.diff() for block in blocks])
    # An entry that no cell owns, so that there is something to read where there are no counts at all.
    nothing = blocks[0].values.new_zeros(1)
    whole = CountBlock(
        values=torch.cat([*(block.values for block in blocks), nothing]),
        columns=torch.cat([*(block.columns for block in blocks), nothing.int()]),
        offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        n_features=blocks[0].n_features,
    )
    return ResidentCounts(whole, longest=max(1, int(lengths.max())))


def _join_designs(designs: Sequence[Design]) -> Design:
    return Design(
        codes=torch.cat([design.codes for design in designs]),
        continuous=torch.cat([design.continuous for design in designs]),
        size_factor=_join_optional([design.size_factor for design in designs]),
        position=_join_optional([design.position for design in designs]),
    )


def _join_optional(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def _tensors(batch: Batch) -> Iterable[Tensor]:
    for block in batch.counts.values():
        yield from (block.values, block.columns, block.offsets)
    design = batch.design
    yield from (design.codes, design.continuous)
    yield from (tensor for tensor in (design.size_factor, design.position) if tensor is not None)


def _bytes(tensor: Tensor) -> int:
    return tensor.element_size() * tensor.nelement()
