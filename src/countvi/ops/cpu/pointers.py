"""Arrays at the addresses of a job, as the kernels see them."""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import numpy as np
from numba import carray

from countvi.ops.cpu.compiler import apart, part, pointer, strict


@strict
def matrix(address, rows, columns):
    """Return a float32 matrix; one that is absent has no rows."""
    return carray(pointer(address), (rows if address != 0 else 0, columns), np.float32)


@strict
def vector(address, length):
    """Return a float32 vector."""
    return carray(pointer(address), (length,), np.float32)


@strict
def sums(address, length):
    """Return a float64 vector."""
    return carray(pointer(address), (length,), np.float64)


@strict
def integers(address, length):
    """Return an int64 vector."""
    return carray(pointer(address), (length,), np.int64)


@part
def counts_of(job):
    """Return values, columns and offsets of the counts."""
    return (
        vector(job.values, job.nonzeros),
        integers(job.columns, job.nonzeros),
        integers(job.offsets, job.cells + 1),
    )


@strict
def copy(row, out):
    """``out = row``.

    numba's own ``out[:] = row`` brings a message about shapes, and the handling of text takes it a second to compile.
    """
    apart()
    for k in range(out.shape[0]):
        out[k] = row[k]
