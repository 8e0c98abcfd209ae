"""Minibatches for the loop from a data set in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from countvi.batch import Batch
from countvi.data import Dataset, Split, epoch_batches, even_batches
from countvi.train import Feed

# Held-out cells are only read forward, so their minibatches may be larger than those of training.
_VALIDATION_BATCH = 512


class DatasetFeed(Feed):
    """Minibatches of near-equal size, none above ``batch_size``, drawn without worker processes.

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
        self._n_batches = len(even_batches(split.train, batch_size))
        self._order = partial(epoch_batches, split.train, batch_size, seed)
        self._held_out = even_batches(split.validation, _VALIDATION_BATCH) if self.n_validation else []

    def n_steps(self, world: int = 1) -> int:
        """Minibatches of an epoch per process: rounded up, so that all processes step equally often."""
        return -(-self._n_batches // world)

    def train(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
        """Minibatches of an epoch; the first ones come twice where the processes do not divide them evenly."""
        order = self._order(epoch)
        for step in range(self.n_steps(world)):
            rows = order[(step * world + rank) % len(order)]
            yield rows, self.data.batch(rows)

    def validation(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Minibatches of the held-out cells."""
        for rows in self._held_out[rank::world]:
            yield self.data.batch(rows)
