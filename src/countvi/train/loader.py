"""The protocol of what gives the loop its minibatches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from countvi.batch import Batch
from countvi.train.resident import Resident


class BatchLoader(Protocol):
    """Minibatches of training cells in a fixed order per epoch, and of held-out cells.

    The order of an epoch is a function of the seed and the epoch alone, so that a resumed run sees what an
    uninterrupted one sees. Several processes share an epoch: process ``rank`` of ``world`` takes every ``world``-th
    minibatch.
    """

    n_train: int
    """Number of training cells."""
    n_validation: int
    """Number of held-out cells."""

    @abstractmethod
    def n_steps(self, world: int = 1) -> int:
        """Minibatches of an epoch per process."""

    @abstractmethod
    def train(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
        """Minibatches of an epoch, each with the rows of its cells."""

    @abstractmethod
    def order(self, epoch: int) -> list[np.ndarray]:
        """Rows of the minibatches of an epoch, where all cells are in memory."""

    @abstractmethod
    def resident(self, device: torch.device, dtype: torch.dtype, limit: float) -> Resident | None:
        """All cells on a device, or ``None`` if they take more than ``limit`` bytes there, or are not in memory."""

    @abstractmethod
    def validation(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Minibatches of the held-out cells."""
