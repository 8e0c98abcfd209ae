"""A temporary array, on disk if it is large."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from countvi.errors import OptionError

# Arrays up to this size are in memory, larger ones on disk.
_IN_MEMORY_BYTES = 256 * 2**20


@contextmanager
def temporary_array(shape: tuple[int, ...], what: str, advice: str) -> Iterator[np.ndarray]:
    """Lend a float32 array, on disk if it is large.

    Parameters
    ----------
    shape
        Of the array.
    what
        What it is for, to begin a message with.
    advice
        What to do where the disk is too small.

    Raises
    ------
    OptionError
        If it is.
    """
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if size <= _IN_MEMORY_BYTES:
        yield np.empty(shape, np.float32)
        return
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:  # writing to a mapped file on a full disk would kill the process
        message = (
            f"{what} takes {size / 2**30:,.1f} GiB of disk, but {folder} has {free / 2**30:,.1f} GiB free. {advice}, "
            "or point TMPDIR to a larger disk."
        )
        raise OptionError(message)
    with tempfile.TemporaryFile() as file:
        yield np.memmap(file, np.float32, "w+", shape=shape)
