"""The kernel of log fold changes: effects and all sums over them in one pass.

A task takes some columns and goes over all pairs, a few rows at a time, so that the effects, which are wanted by
column, are written in pieces of a cache line.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import numpy as np
import torch
from numba import carray
from torch import Tensor

from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, strict
from countvi.ops.cpu.elementary import ONE, ZERO, log
from countvi.ops.cpu.launch import job_type, launch
from countvi.ops.cpu.pointers import matrix, sums, vector
from countvi.ops.reference.folds import FoldChanges

JOB = job_type(
    "pairs columns stride_first stride_second tasks first second pseudocounts delta effects up down mean_first "
    "mean_second mean deviation"
)

_LOG2_E = np.float32(1.4426950408889634)
_ROWS = 16
# Columns of a task: their sums stay in the first cache.
_WIDTH = 128


@strict
def _changes(a, b, c, out):
    """Write the log2 fold changes of a row."""
    apart()
    for k in range(out.shape[0]):
        out[k] = log((a[k] + c[k]) / (b[k] + c[k])) * _LOG2_E


@strict
def _add(row, total):
    apart()
    for k in range(total.shape[0]):
        total[k] += row[k]


@strict
def _add_squares(row, total):
    apart()
    for k in range(total.shape[0]):
        x = np.float64(row[k])
        total[k] += x * x


@strict
def _count(row, delta, up, down):
    apart()
    for k in range(row.shape[0]):
        up[k] += ONE if row[k] >= delta else ZERO
        down[k] += ONE if row[k] <= -delta else ZERO


@strict
def _by_column(tile, n, out, at):
    """Write ``n`` rows of a tile as columns."""
    apart()
    for k in range(out.shape[0]):
        for i in range(n):
            out[k, at + i] = tile[i, k]


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def fold_changes(data):
        _ = sources
        job = carray(data, (1,), JOB)[0]
        n, columns = job.pairs, job.columns
        a, b = matrix(job.first, n, job.stride_first), matrix(job.second, n, job.stride_second)
        delta = vector(job.delta, 1)[0]
        effects = matrix(job.effects, columns, n)
        while True:
            task = next_ticket(data)
            if task >= job.tasks:
                break
            own = slice(columns * task // job.tasks, columns * (task + 1) // job.tasks)
            c = vector(job.pseudocounts, columns)[own]
            up, down = vector(job.up, columns)[own], vector(job.down, columns)[own]
            mean_a, mean_b = sums(job.mean_first, columns)[own], sums(job.mean_second, columns)[own]
            mean, deviation = sums(job.mean, columns)[own], sums(job.deviation, columns)[own]
            tile = np.empty((_ROWS, c.shape[0]), np.float32)
            for start in range(0, n, _ROWS):
                rows = min(_ROWS, n - start)
                for i in range(rows):
                    first, second, row = a[start + i][own], b[start + i][own], tile[i]
                    _changes(first, second, c, row)
                    _add(first, mean_a)
                    _add(second, mean_b)
                    _add(row, mean)
                    _add_squares(row, deviation)
                    _count(row, delta, up, down)
                _by_column(tile, rows, effects[own], start)

    return kernel(fold_changes)


_FOLD_CHANGES = _make_kernel(digest())


def fold_changes(first: Tensor, second: Tensor, pseudocounts: Tensor, delta: float) -> FoldChanges:
    """Summarise log2 fold changes."""
    first, second = (tensor if tensor.stride(1) == 1 else tensor.contiguous() for tensor in (first, second))
    n, columns = first.shape
    zeros = first.new_zeros
    totals = {name: zeros(columns, dtype=torch.float64) for name in ("mean_first", "mean_second", "mean", "deviation")}
    counts = {name: zeros(columns) for name in ("up", "down")}
    effects = first.new_empty(columns, n)
    launch(
        _FOLD_CHANGES,
        JOB,
        n * columns,
        pairs=n,
        columns=columns,
        stride_first=first.stride(0),
        stride_second=second.stride(0),
        tasks=-(-columns // _WIDTH),
        first=first,
        second=second,
        pseudocounts=pseudocounts.contiguous(),
        delta=torch.tensor([delta], dtype=torch.float32),
        effects=effects,
        **totals,
        **counts,
    )
    means = {name: total / n for name, total in totals.items()}
    variance = means.pop("deviation") - means["mean"].square()
    shares = {name: total.double() / n for name, total in counts.items()}
    return FoldChanges(effects=effects, deviation=variance.clamp_(min=0.0).sqrt_(), **means, **shares)
