"""The kernels of an encoder's first layer: sparse counts times a dense weight.

The weight is read by gene, ``(genes, hidden)``, so that each stored entry adds one contiguous row. Its gradient is made
gene by gene from the entries of that gene, sorted by counting, so that every row is written once, by one thread.

Sums are over the stored entries in their order, whatever the number of threads.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import math

import numpy as np
from numba import carray

from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, part, strict
from countvi.ops.cpu.elementary import ONE, ZERO, log_one_minus
from countvi.ops.cpu.views import copy, integers, matrix, vector

SLOTS = (
    "ticket",
    "cells",
    "genes",
    "hidden",
    "tasks",
    "nonzeros",
    "log1p",
    "values",
    "columns",
    "offsets",
    "divisor",
    "entries",
    "weight",
    "bias",
    "out",
    "d_out",
    "d_weight",
)
"""What the numbers of a job are: sizes, a flag, then addresses, zero for an array that is absent."""

(_TICKET, _CELLS, _GENES, _HIDDEN, _TASKS, _NONZEROS, _LOG1P) = range(7)
(_VALUES, _COLUMNS, _OFFSETS, _DIVISOR, _ENTRIES, _WEIGHT, _BIAS, _OUT, _D_OUT, _D_WEIGHT) = range(7, 17)
_N_SLOTS = len(SLOTS)
_NAN = np.float32(math.nan)


@strict
def _encode(values, factor, log1p, entries):
    """Write ``factor * values``, or its log1p, to ``entries``."""
    apart()
    if log1p:
        for i in range(values.shape[0]):
            x = factor * values[i]
            entries[i] = log_one_minus(-x, ONE + x) if x > -ONE else _NAN
    else:
        for i in range(values.shape[0]):
            entries[i] = factor * values[i]


@strict
def _add_row(entry, row, out):
    """``out += entry * row``."""
    apart()
    for k in range(out.shape[0]):
        out[k] += entry * row[k]


@strict
def _add_rows(entries, rows, out):
    """``out += sum of entries * rows``, four at a time."""
    apart()
    e0, e1, e2, e3 = entries
    r0, r1, r2, r3 = rows
    for k in range(out.shape[0]):
        out[k] += (e0 * r0[k] + e1 * r1[k]) + (e2 * r2[k] + e3 * r3[k])


@strict
def _add_all(entries, index, matrix, out):
    """``out += sum of entries[i] * matrix[index[i]]``."""
    n = entries.shape[0]
    whole = n - n % 4
    for i in range(0, whole, 4):
        four = (entries[i], entries[i + 1], entries[i + 2], entries[i + 3])
        rows = (matrix[index[i]], matrix[index[i + 1]], matrix[index[i + 2]], matrix[index[i + 3]])
        _add_rows(four, rows, out)
    for i in range(whole, n):
        _add_row(entries[i], matrix[index[i]], out)


@part
def _sort_by_gene(columns, offsets, entries, first, last):
    """Entries of the genes ``first ... last - 1`` by gene: where each gene begins, their cells, their values."""
    begin = np.zeros(last - first + 2, np.int64)
    for i in range(columns.shape[0]):
        if first <= columns[i] < last:
            begin[columns[i] - first + 2] += 1
    for g in range(1, begin.shape[0]):
        begin[g] += begin[g - 1]
    cells, values = np.empty(begin[-1], np.int64), np.empty(begin[-1], np.float32)
    for cell in range(offsets.shape[0] - 1):
        for i in range(offsets[cell], offsets[cell + 1]):
            gene = columns[i] - first
            if 0 <= gene < last - first:
                position = begin[gene + 1]
                cells[position] = cell
                values[position] = entries[i]
                begin[gene + 1] = position + 1
    return begin, cells, values


def _make_kernels(sources: int):
    """Make the two kernels; ``sources`` is in their closures, see :mod:`countvi.ops.cpu.compiler`."""

    def forward(data):
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        cells, genes, hidden, n = job[_CELLS], job[_GENES], job[_HIDDEN], job[_NONZEROS]
        values, columns = vector(job[_VALUES], n), integers(job[_COLUMNS], n)
        offsets, entries = integers(job[_OFFSETS], cells + 1), vector(job[_ENTRIES], n)
        weight, out = matrix(job[_WEIGHT], genes, hidden), matrix(job[_OUT], cells, hidden)
        while True:
            task = next_ticket(data)
            if task >= job[_TASKS]:
                break
            for cell in range(cells * task // job[_TASKS], cells * (task + 1) // job[_TASKS]):
                own = slice(offsets[cell], offsets[cell + 1])
                factor = ONE / vector(job[_DIVISOR], cells)[cell] if job[_DIVISOR] != 0 else ONE
                _encode(values[own], factor, job[_LOG1P], entries[own])
                row = out[cell]
                copy(vector(job[_BIAS], hidden), row)
                _add_all(entries[own], columns[own], weight, row)

    def backward(data):
        _ = sources
        job = carray(data, (_N_SLOTS,), np.int64)
        cells, genes, hidden, n = job[_CELLS], job[_GENES], job[_HIDDEN], job[_NONZEROS]
        columns, offsets = integers(job[_COLUMNS], n), integers(job[_OFFSETS], cells + 1)
        entries, d_out = vector(job[_ENTRIES], n), matrix(job[_D_OUT], cells, hidden)
        d_weight = matrix(job[_D_WEIGHT], genes, hidden)
        while True:
            task = next_ticket(data)
            if task >= job[_TASKS]:
                break
            first, last = genes * task // job[_TASKS], genes * (task + 1) // job[_TASKS]
            begin, owners, sorted_entries = _sort_by_gene(columns, offsets, entries, first, last)
            for gene in range(first, last):
                own = slice(begin[gene - first], begin[gene - first + 1])
                row = d_weight[gene]
                row[:] = ZERO
                _add_all(sorted_entries[own], owners[own], d_out, row)

    return kernel(forward), kernel(backward)


FORWARD, BACKWARD = _make_kernels(digest())
