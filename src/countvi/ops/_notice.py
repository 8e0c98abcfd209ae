"""Tell whoever waits that kernels are being compiled, unless silence was asked for."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# Whoever waits longer than this is told why, in seconds of compiling.
_PATIENCE = 2.0
_NOTICE = "countvi: compiling its kernels for this machine. This takes some seconds, once."
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_spent = [0.0]


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Say nothing of compiling in the ``with`` block, if asked to."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


@contextmanager
def noticed() -> Iterator[None]:
    """Print to standard error if numba compiles long in the ``with`` block; reading from its cache is not compiling."""
    from numba.core import event

    class Compiling(event.Listener):
        """Starts the clock at the first pass of the compiler: a kernel that is read from disk has none."""

        timer: threading.Timer | None = None
        began = 0.0

        def on_start(self, event: Any) -> None:
            if self.timer is None:
                self.began = time.monotonic()
                self.timer = threading.Timer(max(0.0, _PATIENCE - _spent[0]), _tell)
                self.timer.daemon = True
                self.timer.start()

        def on_end(self, event: Any) -> None:
            """Wait for the whole kernel, of which this is one pass."""

    if _quiet.get():
        yield
        return
    compiling = Compiling()
    try:
        with event.install_listener("numba:run_pass", compiling):
            yield
    finally:
        if compiling.timer is not None:
            compiling.timer.cancel()
            _spent[0] += time.monotonic() - compiling.began


@functools.cache
def _tell() -> None:
    """Print the notice, once in a process."""
    print(_NOTICE, file=sys.stderr, flush=True)
