"""Minibatches for the loop from a data set in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from countvi.batch import Batch
from countvi.data import Dataset, Split, epoch_batches, epoch_pools, even_batches
from countvi.train import Feed

# Held-out cells are only read forward, so their minibatches may be larger than those of training.
_VALIDATION_BATCH = 512
# Cells on disk are read in pools of runs: about 16,000 cells in memory at a time, 256 neighbours in the file together.
_POOL, _RUN = 16_384, 256


class DatasetFeed(Feed):
    """Minibatches of near-equal size, none above ``batch_size``, drawn without worker processes.

    Cells in memory are shuffled freely. Cells on disk are read in pools, each a mixture of runs from all over the file,
    and shuffled within a pool.

    Parameters
    ----------
    data
        Cells.
    split
        Which of them are trained on and which are held out.
    batch_size
        Cells per minibatch at most.
    seed
        Seed of the order.
    """

    def __init__(self, data: Dataset, split: Split, batch_size: int, seed: int) -> None:
        self.data = data
        self.n_train = len(split.train)
        self.n_validation = len(split.validation)
        self._rows, self._batch_size, self._seed = split.train, batch_size, seed
        self._held_out = split.validation
        self._n_batches = sum(len(even_batches(pool, batch_size)) for pool in self._pools(0))

    def n_steps(self, world: int = 1) -> int:
        """Minibatches of an epoch per process: rounded up, so that all processes step equally often."""
        return -(-self._n_batches // world)

    def train(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
        """Minibatches of an epoch; where the processes do not divide them evenly, some take their last one again."""
        position, last = 0, None
        for number, pool in enumerate(self._pools(epoch)):
            data = self.data if self.data.in_memory else self.data.load(pool)
            for rows in self._batches(pool, epoch, number):
                if position % world == rank:
                    last = (pool[rows], data.batch(pool[rows] if data is self.data else rows))
                    yield last
                position += 1
        if position % world and rank >= position % world:
            if last is None:  # fewer minibatches than processes
                pool = self._pools(epoch)[0]
                rows = pool[self._batches(pool, epoch, 0)[0]]
                last = (rows, self.data.batch(rows))
            yield last

    def validation(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Minibatches of the held-out cells."""
        for rows in self._held_out_batches()[rank::world]:
            yield self.data.batch(rows)

    def _held_out_batches(self) -> list[np.ndarray]:
        return even_batches(self._held_out, _VALIDATION_BATCH)

    def _pools(self, epoch: int) -> list[np.ndarray]:
        if self.data.in_memory:
            return [self._rows]
        return epoch_pools(self._rows, _POOL, _RUN, self._seed, epoch)

    def _batches(self, pool: np.ndarray, epoch: int, number: int) -> list[np.ndarray]:
        # Pools of one epoch need orders of their own; the first keeps the plain stream, as if it were the only one.
        seed = self._seed if number == 0 else self._seed + 1_000_003 * number
        return epoch_batches(np.arange(len(pool)), self._batch_size, seed, epoch)
