"""The cells of a read-out, block by block; evaluation mode; outputs, dense and sparse.

Every read-out goes over its cells block by block, so its memory is that of one block and of what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from countvi.batch import Batch, CountBlock
from countvi.errors import OptionError


class BatchSource(Protocol):
    """Where cells come from: data in memory, on disk, or on a device."""

    @property
    def n_cells(self) -> int:
        """Number of cells that can be asked for."""
        ...

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the cells at ``rows`` (integers, any order, repeats allowed), in that order."""
        ...


class Writable(Protocol):
    """An array that blocks can be written into: NumPy, ``np.memmap``, a zarr array, an h5py data set."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    def __setitem__(self, index: Any, value: Any) -> None: ...


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one read-out.

    Iterating yields ``(slice of the output, Batch on the device)`` for block after block. Without any cell it yields
    one empty block, so that a read-out of nothing has the right shape.

    Parameters
    ----------
    source
        Where cells come from.
    rows
        Which cells, in the order of the output; shape ``(cells,)``, integers.
    chunk
        How many cells, or draws of cells, are decoded at once.
    device
        Where the model is.
    """

    source: BatchSource
    rows: np.ndarray
    chunk: int
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.chunk < 1:
            message = f"The number of cells decoded at once must be at least 1; got {self.chunk}."
            raise OptionError(message)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[slice, Batch]]:
        n = len(self)
        for start in range(0, max(n, 1), self.chunk):
            block = slice(start, min(start + self.chunk, n))
            yield block, self.source.batch(self.rows[block]).to(self.device)

    def n_features(self, modality: str, columns: np.ndarray | None = None) -> int:
        """Number of features of a modality, or of those chosen."""
        return self.source.batch(self.rows[:1]).n_features(modality) if columns is None else len(columns)


def select(values: Tensor, columns: np.ndarray | None) -> Tensor:
    """Return some features, the last axis, in the order of ``columns``; ``None`` for all."""
    if columns is None:
        return values
    return values.index_select(-1, torch.as_tensor(np.asarray(columns), dtype=torch.int64, device=values.device))


def to_csr(counts: CountBlock, values: Tensor | None = None) -> sp.csr_array:
    """Return counts, or other values at the same places, as SciPy holds them, ``(cells, features)``."""
    kept = counts.values if values is None else values
    parts = (kept.cpu().numpy(), counts.columns.cpu().numpy(), counts.offsets.cpu().numpy())
    return sp.csr_array(parts, shape=(counts.n_cells, counts.n_features))


def stacked(blocks: Iterable[sp.csr_array]) -> sp.csr_array:
    """Return the cells of several blocks in one array."""
    return sp.csr_array(sp.vstack(list(blocks), format="csr"))


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Switch dropout and batch statistics off and record no gradients; give each module its mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def map_cells(model: nn.Module, cells: Cells, compute: Callable[[Batch], Sequence[Tensor]]) -> list[np.ndarray]:
    """Run a computation over all cells in evaluation mode.

    Parameters
    ----------
    model
        Model to put in evaluation mode.
    cells
        Cells to go over.
    compute
        From a batch to tensors whose first axis is cells.

    Returns
    -------
    list of ndarray
        One array for each tensor, cells first.
    """
    outputs: list[np.ndarray] | None = None
    with evaluation(model):
        for block, batch in cells:
            values = [value.cpu().numpy() for value in compute(batch)]
            if outputs is None:
                outputs = [np.empty((len(cells), *value.shape[1:]), value.dtype) for value in values]
            for output, value in zip(outputs, values, strict=True):
                output[block] = value
    assert outputs is not None, "an iteration over cells yields at least one block"
    return outputs


class OutputWriter:
    """Takes an output block by block.

    Parameters
    ----------
    shape
        Shape of the whole output.
    out
        Where to write it. Anything with a shape that takes ``out[a:b, ...] = block``; ``None`` for a new float32 array.

    Raises
    ------
    OptionError
        If ``out`` has another shape, or cannot hold fractions.
    """

    def __init__(self, shape: tuple[int, ...], out: Writable | None = None) -> None:
        if out is not None:
            _check_out(shape, out)
        self.out: Any = np.empty(shape, np.float32) if out is None else out

    def write(self, block: Tensor, *index: slice) -> None:
        """Write a block at the leading slices ``index``; the remaining axes are complete."""
        # zarr and h5py have no empty selections.
        if block.numel():
            self.out[(*index, ...)] = block.cpu().numpy()


def _check_out(shape: tuple[int, ...], out: Writable) -> None:
    given = getattr(out, "shape", None)
    if given is None:
        message = f"out must be an array of shape {shape} (NumPy, zarr, h5py); got {type(out).__name__}."
        raise OptionError(message)
    if tuple(given) != shape:
        size = math.prod(shape) * 4 / 2**20
        message = f"out must have shape {shape} ({size:,.1f} MiB in float32); got {tuple(given)}."
        raise OptionError(message)
    dtype = getattr(out, "dtype", None)
    if dtype is not None and np.dtype(dtype).kind != "f":
        message = f"out must hold floating-point numbers, float32 for instance; got {dtype}, which drops the fractions."
        raise OptionError(message)
