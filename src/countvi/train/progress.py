"""Progress of a run: a bar in a terminal or notebook, a few plain lines elsewhere, or nothing."""

from __future__ import annotations

import math
import sys
import time
from importlib.util import find_spec
from typing import Any

from countvi.train.callbacks import Callback, Progress

_PLAIN_LINES = 10


def progress_callback(enabled: bool) -> list[Callback]:
    """Return the callback that suits where the output goes, in a list; an empty list for silence."""
    if not enabled:
        return []
    from rich.console import Console

    console = Console(stderr=True)
    # Without ipywidgets rich shows nothing in a notebook while a bar moves, and warns.
    shown = find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
    return [BarProgress(console)] if shown else [PlainProgress()]


def _elbo_text(progress: Progress) -> str:
    row = progress.row or {}
    value = row.get("elbo_validation", row.get("elbo_train", math.nan))
    kind = "held-out" if "elbo_validation" in row else "train"
    return f"ELBO ({kind}) {-value:,.1f}"


class BarProgress(Callback):
    """A bar with the time left and the current ELBO."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[elbo]}"),
            console=console,
        )

    def on_train_start(self, progress: Progress) -> None:
        """Show the bar."""
        self._task = self._bar.add_task("", total=progress.max_epochs, completed=progress.epochs_done, elbo="")
        self._bar.start()

    def on_epoch_end(self, progress: Progress) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=progress.epochs_done, elbo=_elbo_text(progress))

    def on_train_end(self, progress: Progress) -> None:
        """Draw the bar where it is, and leave it."""
        self._bar.refresh()  # a notebook is not drawn once more when the bar stops
        self._bar.stop()


class PlainProgress(Callback):
    """About ten lines over the run, on standard error."""

    def on_train_start(self, progress: Progress) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._first = progress.epochs_done

    def on_epoch_end(self, progress: Progress) -> None:
        """Print when a tenth of the run has passed, and at its end."""
        done, total = progress.epochs_done, progress.max_epochs
        if done != total and done % max(1, total // _PLAIN_LINES):
            return
        elapsed = time.monotonic() - self._started
        left = elapsed / max(done - self._first, 1) * (total - done)
        line = f"epoch {done}/{total}  {_elbo_text(progress)}  {elapsed:.0f} s, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)
