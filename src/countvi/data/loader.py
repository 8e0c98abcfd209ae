"""Shuffling rows into minibatches. Reading them is :meth:`countvi.data.dataset.Dataset.batch`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from countvi.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def even_batches(rows: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut rows into as few batches as ``batch_size`` allows, of sizes that differ by one at most.

    No cell is left over alone, which batch normalisation could not use: batches of one cell occur only where
    ``batch_size`` is 1 or there is one row in all. An odd number of rows in pairs is possible only with a batch
    of three, the one case in which a batch is larger than ``batch_size``.

    Parameters
    ----------
    rows
        Row numbers, shape ``(cells,)``.
    batch_size
        Largest number of cells in a batch.

    Returns
    -------
    list of numpy.ndarray
        The rows in their order, cut; empty if there are none.

    Raises
    ------
    OptionError
        If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        message = f"batch_size must be at least 1; got {batch_size}."
        raise OptionError(message)
    n_rows = len(rows)
    if n_rows == 0:
        return []
    n_batches = math.ceil(n_rows / batch_size)
    if batch_size == 2:
        n_batches = max(1, n_rows // 2)
    return np.array_split(rows, n_batches)


def epoch_batches(rows: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Shuffle rows and cut them into batches; a function of the arguments alone, so a resumed run sees the same.

    Parameters
    ----------
    rows
        Row numbers, shape ``(cells,)``.
    batch_size
        Largest number of cells in a batch, see :func:`even_batches`.
    seed
        Seed of the run, not negative.
    epoch
        Number of the epoch, from 0.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch,))
    return even_batches(np.random.default_rng(sequence).permutation(rows), batch_size)


def epoch_pools(
    rows: NDArray[np.int64], pool_size: int, run_length: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Cut rows into runs that lie together in a file, shuffle the runs, and gather them into pools.

    For data that are read from a file: a pool is read in one go, mostly forwards, and shuffled in memory. A pool holds
    runs from all over the file, so that a file sorted by batch or cell type still gives mixed minibatches.

    Parameters
    ----------
    rows
        Row numbers in increasing order, shape ``(cells,)``.
    pool_size
        Cells in a pool, roughly.
    run_length
        Cells in a run.
    seed, epoch
        The order is a function of these alone.

    Returns
    -------
    list of numpy.ndarray
        Rows of each pool, increasing.
    """
    if len(rows) == 0:
        return []
    runs = np.array_split(rows, math.ceil(len(rows) / run_length))
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch, 0))
    order = np.random.default_rng(sequence).permutation(len(runs))
    n_pools = min(len(runs), max(1, round(len(rows) / pool_size)))
    groups = np.array_split(order, n_pools)
    return [np.sort(np.concatenate([runs[i] for i in group])) for group in groups]
