"""The kernels of an encoder's first layer: sparse counts times a dense weight.

The weight is read by gene, ``(genes, hidden)``, so that each stored entry adds one contiguous row. Its gradient is made
gene by gene from the entries of that gene, sorted by counting, so that every row is written once, by one thread.

Sums are over the stored entries in their order, whatever the number of threads.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops import reference
from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, part, strict
from countvi.ops.cpu.elementary import ONE, ZERO, log_one_minus
from countvi.ops.cpu.launch import COUNTS, job_type, launch, readable
from countvi.ops.cpu.pointers import copy, counts_of, matrix, vector
from countvi.typing import CellsHidden, PerCell

JOB = job_type(f"{COUNTS} hidden tasks log1p divisor entries weight bias out d_out d_weight")
"""``tasks`` are parts of the cells going forward and of the genes going back; ``entries`` are the encoded counts."""

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
        job = carray(data, (1,), JOB)[0]
        cells, genes, hidden = job.cells, job.genes, job.hidden
        values, columns, offsets = counts_of(job)
        entries = vector(job.entries, job.nonzeros)
        weight, out = matrix(job.weight, genes, hidden), matrix(job.out, cells, hidden)
        while True:
            task = next_ticket(data)
            if task >= job.tasks:
                break
            for cell in range(cells * task // job.tasks, cells * (task + 1) // job.tasks):
                own = slice(offsets[cell], offsets[cell + 1])
                factor = ONE / vector(job.divisor, cells)[cell] if job.divisor != 0 else ONE
                _encode(values[own], factor, job.log1p, entries[own])
                row = out[cell]
                copy(vector(job.bias, hidden), row)
                _add_all(entries[own], columns[own], weight, row)

    def backward(data):
        _ = sources
        job = carray(data, (1,), JOB)[0]
        cells, genes, hidden = job.cells, job.genes, job.hidden
        _, columns, offsets = counts_of(job)
        entries, d_out = vector(job.entries, job.nonzeros), matrix(job.d_out, cells, hidden)
        d_weight = matrix(job.d_weight, genes, hidden)
        while True:
            task = next_ticket(data)
            if task >= job.tasks:
                break
            first, last = genes * task // job.tasks, genes * (task + 1) // job.tasks
            begin, owners, sorted_entries = _sort_by_gene(columns, offsets, entries, first, last)
            for gene in range(first, last):
                own = slice(begin[gene - first], begin[gene - first + 1])
                row = d_weight[gene]
                row[:] = ZERO
                _add_all(sorted_entries[own], owners[own], d_out, row)

    return kernel(forward), kernel(backward)


_FORWARD, _BACKWARD = _make_kernels(digest())


def sparse_linear(
    counts: CountBlock, weight: Tensor, bias: Tensor | None, log1p: bool, divisor: PerCell | None = None
) -> CellsHidden:
    """Counts, or their log1p, times the transposed weight, plus the bias."""
    if counts.values.requires_grad:
        return reference.sparse_linear(counts, weight, bias, log1p, divisor)
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    return _SparseLinear.apply(counts, weight, bias, log1p, divisor)


class _SparseLinear(torch.autograd.Function):
    # Not an `Operation`: it gives no number per row, and its gradient is a kernel of its own, run when it is asked for.

    @staticmethod
    def forward(
        ctx: Any, counts: CountBlock, weight: Tensor, bias: Tensor, log1p: bool, divisor: Tensor | None
    ) -> Tensor:
        counts = readable(counts)
        (n_hidden, n_genes), n_cells = weight.shape, counts.n_cells
        assert n_genes == counts.n_features, f"a weight for {n_genes} genes, counts of {counts.n_features}"
        assert bias.shape == (n_hidden,), f"a bias of shape {tuple(bias.shape)} for {n_hidden} units"
        entries, out = torch.empty_like(counts.values), weight.new_empty(n_cells, n_hidden)
        ctx.counts, ctx.entries, ctx.hidden = counts, entries, n_hidden
        divisor = None if divisor is None else divisor.to(torch.float32).contiguous()
        by_gene, bias = weight.t().contiguous(), bias.contiguous()
        _launch(ctx, _FORWARD, tasks=n_cells, log1p=log1p, weight=by_gene, bias=bias, out=out, divisor=divisor)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_weight = d_bias = None
        grad = grad.contiguous()
        if ctx.needs_input_grad[1]:
            by_gene = grad.new_empty(ctx.counts.n_features, ctx.hidden)
            # Each task looks at all entries, so there are no more of them than threads.
            _launch(ctx, _BACKWARD, tasks=torch.get_num_threads(), d_out=grad, d_weight=by_gene)
            d_weight = by_gene.t()
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum(0)
        return None, d_weight, d_bias, None, None


def _launch(ctx: Any, compiled: Any, **fields: Tensor | int | None) -> None:
    counts, hidden = ctx.counts, ctx.hidden
    # What a stored entry costs, in entries of a dense matrix.
    work = counts.n_cells * hidden + counts.values.shape[0] * max(1, hidden // 8)
    launch(compiled, JOB, work, counts, hidden=hidden, entries=ctx.entries, **fields)
