"""Counts around a rate with background and scaling, as a differentiable function of tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops.cpu import ambient
from countvi.ops.cpu.job import guess, readable, run
from countvi.ops.rows import Rows
from countvi.typing import Cells, CellsGenes

# A thread takes so many rows at a time at least, and the tables' gradients take so many numbers at most.
_CHUNK, _SPACE = 8, 1 << 24


def gamma_poisson(
    logits: CellsGenes,
    log_library: Cells,
    log_theta: Rows,
    log_background: Rows | None,
    log_scaling: Rows | None,
    counts: CountBlock,
) -> Cells:
    """Log-likelihood per cell."""
    tables = checked(log_theta, log_background, log_scaling, logits, counts)
    settings = Settings(tuple(rows.code for rows in tables), torch.is_grad_enabled())
    return _GammaPoisson.apply(logits, log_library, *(rows.table for rows in tables), counts, settings)


def checked(
    log_theta: Rows, log_background: Rows | None, log_scaling: Rows | None, like: Tensor, counts: CountBlock
) -> tuple[Rows, Rows, Rows]:
    """Tables of theta, background and scaling, those that are absent filled in, whose codes the kernel may follow."""
    n_genes = counts.n_features
    if log_background is None:
        log_background = Rows(like.new_full((1, n_genes), -torch.inf), None)
    if log_scaling is None:
        log_scaling = Rows(like.new_zeros(1, n_genes), None)
    for rows in (log_theta, log_background, log_scaling):
        _check(rows, counts)
    return log_theta, log_background, log_scaling


def _check(rows: Rows, counts: CountBlock) -> None:
    """The kernel would read beyond a table, where torch raises."""
    n_rows, n_genes = rows.table.shape
    assert n_genes == counts.n_features, f"a table of {n_genes} genes does not fit counts of {counts.n_features}"
    if rows.code is None:
        assert n_rows == 1, f"{n_rows} rows in a table, and no code that says which a cell takes"
        return
    assert rows.code.shape == (counts.n_cells,), f"{rows.code.shape[0]} codes for {counts.n_cells} cells"
    assert rows.code.dtype == torch.int64, f"codes of {rows.code.dtype}"
    in_range = counts.n_cells == 0 or (rows.code.min() >= 0 and rows.code.max() < n_rows)
    assert in_range, f"codes beyond the {n_rows} rows of a table"


class Settings(NamedTuple):
    """Row of theta, background and scaling that each cell takes; whether a gradient may be asked for."""

    codes: tuple[Tensor | None, ...]
    with_gradient: bool


class Gradients(NamedTuple):
    """By the inputs, a row for every sample and cell; by the tables, one of each per chunk."""

    logits: Tensor
    log_library: Tensor
    tables: tuple[Tensor | None, ...]


class _GammaPoisson(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_library: Tensor,
        log_theta: Tensor,
        log_background: Tensor,
        log_scaling: Tensor,
        counts: CountBlock,
        settings: Settings,
    ) -> Tensor:
        counts = readable(counts)
        inputs = (logits, log_library, log_theta, log_background, log_scaling)
        shape = torch.broadcast_shapes(logits.shape, (*log_library.shape, logits.shape[-1]))
        assert shape[-2:] == (counts.n_cells, counts.n_features), f"parameters {tuple(shape)} do not fit the counts"
        ctx.needed = tuple(settings.with_gradient and need for need in ctx.needs_input_grad[:5])
        ctx.shape, ctx.settings, ctx.n_genes = shape, settings, counts.n_features
        n_rows = shape[:-1].numel()
        weight = logits.new_full((n_rows,), float(guess(n_rows)))
        out, ctx.gradients = solve(inputs, counts, settings, shape, weight, ctx.needed)
        ctx.save_for_backward(*inputs, counts.values, counts.columns, counts.offsets)
        return out.view(shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, values, columns, offsets = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        weight = grad.reshape(-1).contiguous()
        if gradients is None or not (weight.numpy() == guess(weight.shape[0])).all():
            counts = CountBlock(values, columns, offsets, ctx.n_genes)
            _, gradients = solve(tuple(inputs), counts, ctx.settings, ctx.shape, weight, ctx.needed)
        assert gradients is not None, "a backward pass without inputs that need a gradient"
        found = [
            gradients.logits.view(ctx.shape).sum_to_size(inputs[0].shape) if ctx.needed[0] else None,
            gradients.log_library.view(ctx.shape[:-1]).sum_to_size(inputs[1].shape) if ctx.needed[1] else None,
            *(None if table is None else table.sum(0) for table in gradients.tables),
        ]
        return (*found, None, None)


def solve(
    inputs: tuple[Tensor, ...],
    counts: CountBlock,
    settings: Settings,
    shape: torch.Size,
    weight: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor, Gradients | None]:
    """Log-likelihood per row, and its gradient times a weight per row."""
    n_rows, n_genes = weight.shape[0], counts.n_features
    logits = inputs[0].expand(shape).reshape(-1, n_genes).contiguous()
    log_library = inputs[1].expand(shape[:-1]).reshape(-1).contiguous()
    log_theta, log_background, log_scaling = (table.contiguous() for table in inputs[2:])
    sizes = [table.shape[0] for table in (log_theta, log_background, log_scaling)]
    most = max(1, min(-(-n_rows // _CHUNK), _SPACE // max(1, sum(sizes) * n_genes)))
    chunk = max(1, -(-n_rows // most))
    chunks = -(-n_rows // chunk)
    out, gradients = weight.new_empty(n_rows), None
    if any(needed):
        tables = (
            weight.new_empty(chunks, size, n_genes) if need else None
            for size, need in zip(sizes, needed[2:], strict=True)
        )
        gradients = Gradients(torch.empty_like(logits), torch.empty_like(log_library), tuple(tables))
    d_theta, d_background, d_scaling = gradients.tables if gradients else (None, None, None)
    theta_code, background_code, scaling_code = (c if c is None else c.contiguous() for c in settings.codes)
    run(
        ambient.GAMMA_POISSON,
        ambient.SLOTS,
        work=n_rows * n_genes,
        rows=n_rows,
        cells=counts.n_cells,
        genes=n_genes,
        chunk=chunk,
        chunks=chunks,
        nonzeros=counts.values.shape[0],
        theta_rows=sizes[0],
        background_rows=sizes[1],
        scaling_rows=sizes[2],
        logits=logits,
        log_library=log_library,
        log_theta=log_theta,
        theta=log_theta.exp(),
        background=log_background.exp(),
        log_scaling=log_scaling,
        scaling=log_scaling.exp(),
        theta_code=theta_code,
        background_code=background_code,
        scaling_code=scaling_code,
        values=counts.values,
        columns=counts.columns,
        offsets=counts.offsets,
        weight=weight,
        out=out,
        d_logits=gradients.logits if gradients else None,
        d_log_library=gradients.log_library if gradients else None,
        d_log_theta=d_theta,
        d_log_background=d_background,
        d_log_scaling=d_scaling,
    )
    return out, gradients
