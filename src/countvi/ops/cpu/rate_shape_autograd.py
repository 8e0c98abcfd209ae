"""Counts whose shape is the rate, as a differentiable function of tensors; see :mod:`countvi.ops.cpu.autograd`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from countvi.batch import CountBlock
from countvi.ops.cpu import rate_shape
from countvi.ops.cpu.job import guess, readable, run
from countvi.typing import Cells, CellsGenes, Genes

# Cells that a thread takes at a time.
_CHUNK = 8


def rate_shape_negative_binomial(logits: CellsGenes, log_library: Cells, p_logits: Genes, counts: CountBlock) -> Cells:
    """Log-likelihood per cell."""
    return _RateShape.apply(logits, log_library, p_logits, counts, torch.is_grad_enabled())


class _Gradients(NamedTuple):
    """A row for every sample and cell; by the log-odds of genes, one per chunk."""

    logits: Tensor
    log_library: Tensor
    p_logits: Tensor | None


class _RateShape(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, log_library: Tensor, p_logits: Tensor, counts: CountBlock, with_gradient: bool
    ) -> Tensor:
        counts, n_genes = readable(counts), logits.shape[-1]
        shape = torch.broadcast_shapes(logits.shape, (*log_library.shape, n_genes))
        assert shape[-2:] == (counts.n_cells, counts.n_features), f"parameters {tuple(shape)} do not fit the counts"
        assert p_logits.shape == (n_genes,), f"log-odds of shape {tuple(p_logits.shape)} for {n_genes} genes"
        ctx.needed = tuple(with_gradient and need for need in ctx.needs_input_grad[:3])
        ctx.shape = shape
        n_rows = shape[:-1].numel()
        weight = logits.new_full((n_rows,), float(guess(n_rows)))
        out, ctx.gradients = _solve((logits, log_library, p_logits), counts, shape, weight, ctx.needed)
        ctx.save_for_backward(logits, log_library, p_logits, counts.values, counts.columns, counts.offsets)
        return out.view(shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, values, columns, offsets = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        weight = grad.reshape(-1).contiguous()
        if gradients is None or not (weight.numpy() == guess(weight.shape[0])).all():
            counts = CountBlock(values, columns, offsets, ctx.shape[-1])
            _, gradients = _solve(tuple(inputs), counts, ctx.shape, weight, ctx.needed)
        assert gradients is not None, "a backward pass without inputs that need a gradient"
        return (
            gradients.logits.view(ctx.shape).sum_to_size(inputs[0].shape) if ctx.needed[0] else None,
            gradients.log_library.view(ctx.shape[:-1]).sum_to_size(inputs[1].shape) if ctx.needed[1] else None,
            None if gradients.p_logits is None else gradients.p_logits.sum(0),
            None,
            None,
        )


def _solve(
    inputs: tuple[Tensor, ...], counts: CountBlock, shape: torch.Size, weight: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor, _Gradients | None]:
    """Log-likelihood per row, and its gradient times a weight per row."""
    n_rows, n_genes = weight.shape[0], counts.n_features
    logits = inputs[0].expand(shape).reshape(-1, n_genes).contiguous()
    log_library = inputs[1].expand(shape[:-1]).reshape(-1).contiguous()
    p_logits = inputs[2].contiguous()
    out, chunks, gradients = weight.new_empty(n_rows), -(-n_rows // _CHUNK), None
    if any(needed):
        by_p = weight.new_empty(chunks, n_genes) if needed[2] else None
        gradients = _Gradients(torch.empty_like(logits), torch.empty_like(log_library), by_p)
    run(
        rate_shape.RATE_SHAPE,
        rate_shape.SLOTS,
        work=n_rows * n_genes,
        rows=n_rows,
        cells=counts.n_cells,
        genes=n_genes,
        chunk=_CHUNK,
        chunks=chunks,
        nonzeros=counts.values.shape[0],
        logits=logits,
        log_library=log_library,
        p_logits=p_logits,
        p_softplus=functional.softplus(p_logits, threshold=80.0),
        p_sigmoid=torch.sigmoid(p_logits),
        values=counts.values,
        columns=counts.columns,
        offsets=counts.offsets,
        weight=weight,
        out=out,
        **({f"d_{name}": value for name, value in gradients._asdict().items()} if gradients else {}),
    )
    return out, gradients
