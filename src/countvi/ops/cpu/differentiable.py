"""The kernels of likelihoods as differentiable functions of tensors.

A kernel gives value and gradient in one pass, before it is known what the gradient will be multiplied by. It takes this
to be what the mean over the rows asks for, as in training. Where it is something else, the kernel runs once more.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops.cpu.launch import COUNTS, job_type, launch, readable

# Rows that a thread takes at a time at least, and numbers that the gradients by tables take at most.
_CHUNK, _SPACE = 8, 1 << 24

Fields = dict[str, Tensor | int | None]
"""Of a job, by name."""
Fixed = Mapping[str, Tensor | None]
"""Fields that get no gradient."""
Gradients = tuple[Tensor | None, ...]
"""By each input; ``None`` where it is not needed."""


class Per(Enum):
    """What an input has a number for, by its shape.

    The kernel reads a row for each cell of each sample, or rows that several of these share. It writes the gradient in
    the same way, to be summed to the shape of the input. Where all share what they read, threads would meet: there it
    writes one for each chunk, the rows that a thread takes at a time.
    """

    ENTRY = "(*samples, cells, genes)"
    CELL = "(*samples, cells)"
    GENE = "(genes,) for all, (cells, genes) for all samples, or (*samples, cells, genes)"
    TABLE = "(rows, genes), with a code for each cell"

    @property
    def may_be_shared(self) -> bool:
        """Whether rows may read the same numbers."""
        return self is Per.GENE or self is Per.TABLE

    def rows(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """Return what the kernel reads, in one piece; ``shape`` is (*samples, cells, genes)."""
        if self is Per.TABLE:
            return tensor.contiguous()
        if self is Per.GENE and tensor.ndim <= 2 and tensor.shape[-1] == shape[-1]:
            return tensor.reshape(-1, shape[-1]).contiguous()
        if self is Per.CELL:
            return tensor.expand(shape[:-1]).reshape(-1).contiguous()
        return tensor.expand(shape).reshape(-1, shape[-1]).contiguous()

    def new_gradient(self, rows: Tensor, shape: torch.Size, n_chunks: int) -> Tensor:
        """Return where the kernel writes the gradient by its rows."""
        if self is Per.TABLE or (self is Per.GENE and rows.shape[0] == 1):
            return rows.new_empty(n_chunks, *rows.shape)
        return rows.new_empty(shape[:-1].numel(), *rows.shape[1:])

    def sum_to(self, gradient: Tensor, tensor: Tensor, shape: torch.Size) -> Tensor:
        """Sum a gradient over chunks, or the axes along which the input was repeated."""
        if gradient.ndim == 3:
            gradient = gradient.sum(0)
        if gradient.shape == tensor.shape:
            return gradient
        if gradient.numel() == tensor.numel():
            return gradient.view(tensor.shape)
        return gradient.view(shape[:-1] if self is Per.CELL else shape).sum_to_size(tensor.shape)


class Input(NamedTuple):
    """What an operation is differentiated by: a field of the job of its kernel."""

    name: str
    per: Per


def job_of_rows(inputs: Sequence[Input], others: str = "") -> np.dtype[np.void]:
    """Return the job of a kernel of rows: ``cells`` of each sample after those of the one before.

    ``chunks`` of ``chunk`` rows are taken by ticket. Row ``r`` has the counts of cell ``r % cells``; its value goes to
    ``out``, and its gradient is multiplied by its ``weight``. Of each input ``x`` the job has

    * ``x``, laid out in rows as :class:`Per` says;
    * ``d_x``, where its gradient goes, zero if none is to be written; with a part for each chunk if ``x`` is a table or
      has one row, else a row for each row;
    * ``x_rows``, how many rows it has, if rows may share them.

    ``others`` are fields of the kernel's own.
    """
    shared = (f"{name}_rows" for name, per in inputs if per.may_be_shared)
    own = (f"{name} d_{name}" for name, _ in inputs)
    return job_type(" ".join([COUNTS, "rows chunk chunks weight out", *own, *shared, others]))


@dataclass(frozen=True, eq=False)
class Operation:
    """A kernel of rows, and what calls it: a differentiable function of its inputs that gives a number per row."""

    kernel: Any
    job: np.dtype[np.void]
    inputs: tuple[Input, ...]
    """The first is per entry."""
    cost: int = 1
    """What an entry costs, in entries of a dense matrix in float32."""

    def __call__(
        self,
        inputs: Sequence[Tensor],
        counts: CountBlock,
        fixed: Fixed | None = None,
        **flags: int,
    ) -> Tensor:
        """Return the value per cell, shape ``(*samples, cells)``.

        Parameters
        ----------
        inputs
            In the order of the declaration; the last may be left out if the kernel can do without.
        counts
            What the kernel reads with them.
        fixed
            Other arrays of the job.
        flags
            Other numbers of the job.
        """
        shape = self._shape(inputs)
        assert shape[-2:] == (counts.n_cells, counts.n_features), f"parameters {tuple(shape)} do not fit the counts"
        solve = functools.partial(self.solve, shape=shape, **flags)
        n_rows = shape[:-1].numel()
        return differentiable(solve, inputs, counts, fixed or {}, n_rows, n_rows)

    def solve(
        self,
        inputs: Sequence[Tensor],
        counts: CountBlock,
        fixed: Fixed,
        weight: Tensor,
        needed: Sequence[bool],
        shape: torch.Size,
        **flags: int,
    ) -> tuple[Tensor, Gradients]:
        """Return the value of each row, and the gradient by the inputs of the sum of the rows times ``weight``."""
        n_rows, n_genes = shape[:-1].numel(), shape[-1]
        declared = self.inputs[: len(inputs)]
        rows = [per.rows(x, shape) for (_, per), x in zip(declared, inputs, strict=True)]
        chunk = self._chunk(rows, n_rows)
        out, chunks = weight.new_empty(shape[:-1]), -(-n_rows // chunk)
        fields: Fields = {"rows": n_rows, "chunk": chunk, "chunks": chunks, "weight": weight, "out": out}
        by_rows: list[Tensor | None] = []
        for (name, per), x, need in zip(declared, rows, needed, strict=True):
            # The kernels write what has a place for each row, needed or not.
            is_written = need or (any(needed) and not per.may_be_shared)
            by_rows.append(per.new_gradient(x, shape, chunks) if is_written else None)
            fields |= {name: x, f"d_{name}": by_rows[-1]}
            if per.may_be_shared:
                fields[f"{name}_rows"] = x.shape[0]
        launch(self.kernel, self.job, self.cost * n_rows * n_genes, counts, **fields, **fixed, **flags)
        gradients = zip(declared, by_rows, inputs, needed, strict=True)
        return out, tuple(i.per.sum_to(g, x, shape) if need and g is not None else None for i, g, x, need in gradients)

    def _shape(self, inputs: Sequence[Tensor]) -> torch.Size:
        """Shape to which the inputs are broadcast."""
        first = inputs[0].shape
        pairs = [(per, x.shape) for (_, per), x in zip(self.inputs, inputs, strict=False) if per is not Per.TABLE]
        shapes = [(*shape, first[-1]) if per is Per.CELL else shape for per, shape in pairs]
        if all(shape in (first, first[-1:]) for shape in shapes):
            return first  # as in training; torch takes its time over the general case
        return torch.broadcast_shapes(*shapes)

    def _chunk(self, rows: Sequence[Tensor], n_rows: int) -> int:
        """How many rows a thread takes at a time: more, where a gradient by tables for each chunk would not fit."""
        sizes = [x.numel() for (_, per), x in zip(self.inputs, rows, strict=False) if per is Per.TABLE]
        if not sizes:
            return _CHUNK
        most = max(1, min(-(-n_rows // _CHUNK), _SPACE // max(1, sum(sizes))))
        return max(1, -(-n_rows // most))


class Solve(Protocol):
    """What :func:`differentiable` makes a function of."""

    def __call__(
        self,
        inputs: Sequence[Tensor],
        counts: CountBlock,
        fixed: Fixed,
        weight: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor, Gradients]:
        """Return the value of each row, and the gradient by the inputs of the sum of the rows times ``weight``."""
        ...


def differentiable(
    solve: Solve,
    inputs: Sequence[Tensor],
    counts: CountBlock,
    fixed: Fixed,
    n_rows: int,
    n_averaged: int,
) -> Tensor:
    """Return the values of ``solve``, whose gradient is that of ``solve``.

    Parameters
    ----------
    solve
        Value and gradient in one pass.
    inputs
        What it is differentiated by.
    counts, fixed
        What else it reads.
    n_rows
        How many values there are.
    n_averaged
        How many the loss is a mean over, if it is one; with another loss all is computed twice.
    """
    counts, assumed = readable(counts), gradient_of_mean(n_averaged)
    weight = inputs[0].new_full((n_rows,), float(assumed))
    if not torch.is_grad_enabled():
        return solve(inputs, counts, fixed, weight, (False,) * len(inputs))[0]
    return _Ahead.apply(solve, counts, fixed, weight, assumed, *inputs)


def gradient_of_mean(n_rows: int) -> np.float32:
    """Gradient by the value of a row that is assumed: of the negative mean over rows."""
    return np.float32(-1.0) / np.float32(max(n_rows, 1))


class _Ahead(torch.autograd.Function):
    """What finds its gradient in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        solve: Solve,
        counts: CountBlock,
        fixed: Fixed,
        weight: Tensor,
        assumed: np.float32,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.needed = ctx.needs_input_grad[-len(inputs) :]
        out, ctx.gradients = solve(inputs, counts, fixed, weight, ctx.needed)
        # Saved in this way, tensors do not outlive the backward pass.
        ctx.save_for_backward(counts.values, counts.columns, counts.offsets, *inputs, *fixed.values())
        ctx.solve, ctx.n_genes, ctx.names, ctx.assumed = solve, counts.n_features, tuple(fixed), assumed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, columns, offsets, *others = ctx.saved_tensors
        inputs, fixed = others[: len(ctx.needed)], others[len(ctx.needed) :]
        gradients, ctx.gradients = ctx.gradients, None
        weight = grad.reshape(-1).contiguous()
        if gradients is None or not (weight.numpy() == ctx.assumed).all():
            counts = CountBlock(values, columns, offsets, ctx.n_genes)
            _, gradients = ctx.solve(inputs, counts, dict(zip(ctx.names, fixed, strict=True)), weight, ctx.needed)
        return (*[None] * 5, *gradients)
