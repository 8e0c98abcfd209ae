"""Callbacks: what a user runs between the epochs of training."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from countvi.models.count_model import CountModel
from countvi.train.history import Row


@dataclass
class Progress:
    """What a callback may look at, and the one thing it may change.

    Parameters
    ----------
    model
        The model in training.
    epoch
        Number of the epoch, counted from zero over all runs of the model.
    epochs_done, max_epochs
        Position in this run.
    row
        The history of the epoch just finished; empty before the first.
    stop
        Set to true to end the run after this epoch.
    interrupted
        Whether Ctrl-C ended the run.
    """

    model: CountModel
    max_epochs: int
    epoch: int = 0
    epochs_done: int = 0
    row: Row | None = None
    stop: bool = False
    interrupted: bool = False


class Callback(ABC):  # noqa: B024 - every hook is optional
    """Base of callbacks: override the hooks you need."""

    def on_train_start(self, progress: Progress) -> None:  # noqa: B027
        """Before the first epoch."""

    def on_epoch_end(self, progress: Progress) -> None:  # noqa: B027
        """After every epoch, validation included."""

    def on_train_end(self, progress: Progress) -> None:  # noqa: B027
        """After the last epoch, also when an error ended the run."""
