"""Tell whoever waits that the kernels are being compiled."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Reading the kernels from disk takes less; whoever waits longer is told why.
_PATIENCE = 2.0
_NOTICE = "countvi: compiling its kernels for this machine. This takes some seconds, once."


@contextmanager
def noticed() -> Iterator[None]:
    """Print to standard error if what happens in the ``with`` block takes long."""
    notice = threading.Timer(_PATIENCE, _tell)
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


@functools.cache
def _tell() -> None:
    """Print the notice, once in a process."""
    print(_NOTICE, file=sys.stderr, flush=True)
