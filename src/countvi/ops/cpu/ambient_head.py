"""A decoder's last layer and the likelihood of counts around its rate, as one differentiable function.

Some genes are done at a time: their logits, then likelihood and slopes, then what the slopes add to the gradients of
the layer. No matrix of all genes is kept for the backward pass, and nothing is computed twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops.cpu.ambient_autograd import Settings, checked, solve
from countvi.ops.cpu.job import guess, readable
from countvi.ops.cpu.product import product
from countvi.ops.rows import Rows
from countvi.typing import Cells, CellsHidden


def gamma_poisson_head(
    hidden: CellsHidden,
    weight: Tensor,
    bias: Tensor,
    log_library: Cells,
    tables: tuple[Rows, Rows | None, Rows | None],
    counts: CountBlock,
    step: int,
    n_cells: int,
) -> Cells:
    """Log-likelihood per cell."""
    rows = checked(*tables, weight, counts)
    shape = torch.broadcast_shapes(hidden.shape[:-1], log_library.shape)
    assert shape[-1] == counts.n_cells, f"{shape[-1]} cells do not fit counts of {counts.n_cells}"
    flat = hidden.expand(*shape, hidden.shape[-1]).reshape(-1, hidden.shape[-1])
    settings = _Settings(Settings(tuple(r.code for r in rows), torch.is_grad_enabled()), step, n_cells)
    library = log_library.expand(shape).reshape(-1)
    out = _Head.apply(flat, weight, bias, library, *(r.table for r in rows), counts, settings)
    return out.view(shape)


class _Settings(NamedTuple):
    """Those of the likelihood; how many genes are done at a time; how many cells the loss is a mean over."""

    likelihood: Settings
    step: int
    n_cells: int


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *inputs, counts, settings = arguments
        counts = readable(counts)
        n_rows = inputs[0].shape[0]
        ctx.needed = tuple(settings.likelihood.with_gradient and need for need in ctx.needs_input_grad[:7])
        ctx.settings, ctx.n_genes = settings, counts.n_features
        ctx.guess = guess(settings.n_cells * (n_rows // max(counts.n_cells, 1)))
        upstream = inputs[0].new_full((n_rows,), float(ctx.guess))
        out, ctx.gradients = _solve(tuple(inputs), counts, settings, upstream, ctx.needed)
        ctx.save_for_backward(*inputs, counts.values, counts.columns, counts.offsets)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, values, columns, offsets = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        upstream = grad.contiguous()
        if gradients is None or not (upstream.numpy() == ctx.guess).all():
            counts = CountBlock(values, columns, offsets, ctx.n_genes)
            _, gradients = _solve(tuple(inputs), counts, ctx.settings, upstream, ctx.needed)
        return (*gradients, None, None)


def _solve(
    inputs: tuple[Tensor, ...], counts: CountBlock, settings: _Settings, upstream: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Log-likelihood per row, and the gradients by the inputs times a number per row."""
    hidden, weight, bias, library, *tables = inputs
    n_genes = counts.n_features
    gradients = _Gradients(inputs, needed)
    by_part = (any(needed[:3]), *needed[3:])
    out = upstream.new_zeros(upstream.shape)
    with torch.autocast("cpu", enabled=False):
        for start in range(0, n_genes, settings.step):
            genes = slice(start, min(start + settings.step, n_genes))
            whole = genes == slice(0, n_genes)
            some = counts if whole else counts.features(genes.start, genes.stop)
            logits = product(hidden, weight[genes], bias[genes])
            arguments = (logits, library, *(table[:, genes] for table in tables))
            value, found = solve(arguments, some, settings.likelihood, logits.shape, upstream, by_part)
            out += value
            if found is not None:
                gradients.add(found, genes)
    return out, gradients.of_inputs


class _Gradients:
    """Gradients by hidden units, weight, bias, library and the three tables, put together from parts of the genes."""

    def __init__(self, inputs: tuple[Tensor, ...], needed: tuple[bool, ...]) -> None:
        self.hidden, self.weight = inputs[:2]
        self.found: list[Tensor | None] = [
            tensor.new_zeros(tensor.shape) if need else None for tensor, need in zip(inputs, needed, strict=True)
        ]
        if needed[1]:
            # Stored as the weight is: by input.
            self.found[1] = self.weight.new_empty(self.weight.shape[::-1]).t()

    @property
    def of_inputs(self) -> tuple[Tensor | None, ...]:
        return tuple(self.found)

    def add(self, part: Any, genes: slice) -> None:
        """Add what some genes contribute."""
        d_hidden, d_weight, d_bias, d_library, *d_tables = self.found
        slopes = part.logits
        if d_hidden is not None:
            d_hidden += product(slopes, self.weight[genes].t(), None)
        if d_weight is not None:
            d_weight[genes] = product(self.hidden.t(), slopes.t(), None).t()
        if d_bias is not None:
            d_bias[genes] = slopes.sum(0)
        if d_library is not None:
            d_library += part.log_library
        for total, of_chunks in zip(d_tables, part.tables, strict=True):
            if total is not None:
                total[:, genes] = of_chunks.sum(0)
