"""Warnings as a user of a command sees them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from countvi.errors import DataWarning, TrainingWarning


@contextmanager
def notes() -> Iterator[None]:
    """Show our warnings as notes, and silence those of other libraries, which a user of a command cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DataWarning)
        warnings.simplefilter("always", TrainingWarning)
        said: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            text = str(message)
            if text not in said:
                said.add(text)
                typer.echo(f"note: {text}", err=True)

        warnings.showwarning = show  # type: ignore[assignment]  # catch_warnings restores it
        yield
