"""Run a kernel on several threads: those of torch where that can be, else a few of our own.

Two OpenMP runtimes in one process wait for work by spinning, each on all cores, and bring each other to a halt. So the
kernels join the one that torch has loaded, where it is GNU's, whose entry point ``GOMP_parallel`` is stable. Elsewhere
a pool of Python threads calls the kernel, with the lock of the interpreter released.

The threads of OpenMP do not survive a fork, and a child that asks for them waits forever: there, kernels run on one
thread. torch's own operations wait in the same way: call ``torch.set_num_threads(1)`` in the child, or use "spawn".
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

GRAIN = 16_384
"""Entries of a dense matrix that are worth a thread of their own."""

_HOME = os.getpid()
_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Run = Callable[[int, int, int], None]


def run(address: int, job: np.ndarray, entries: int) -> None:
    """Run a kernel until its tickets are used up.

    Parameters
    ----------
    address
        Where the compiled kernel is.
    job
        The record that it takes, whose ticket is zero.
    entries
        How much work there is, in entries of a dense matrix.
    """
    threads = min(torch.get_num_threads(), max(1, entries // GRAIN))
    if threads == 1 or (os.getpid() != _HOME and _runner() is not _python_threads):
        _kernel(address)(job.ctypes.data)
    else:
        _runner()(address, job.ctypes.data, threads)


@functools.cache
def _kernel(address: int) -> Callable[[int], None]:
    return _Kernel(address)


@functools.cache
def _runner() -> _Run:
    return _openmp() or _python_threads


def _openmp() -> _Run | None:
    """Return what runs on the threads of torch's OpenMP, or ``None`` where that is not GNU's."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        parallel = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return lambda address, job, threads: parallel(address, job, threads, 0)


def _python_threads(address: int, job: int, threads: int) -> None:
    call = _kernel(address)
    others = [_pool(os.getpid(), threads).submit(call, job) for _ in range(threads - 1)]
    call(job)
    for other in others:
        other.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the pool of a process: threads do not survive a fork, so a child makes its own."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="countvi-kernel")
