"""The kernels of an encoder's first layer as a differentiable function of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops import reference
from countvi.ops.cpu import linear
from countvi.ops.cpu.job import readable, run
from countvi.typing import Cells, CellsHidden


def sparse_linear(
    counts: CountBlock, weight: Tensor, bias: Tensor | None, log1p: bool, divisor: Cells | None = None
) -> CellsHidden:
    """Counts, or their log1p, times the transposed weight, plus the bias."""
    if counts.values.requires_grad:
        return reference.sparse_linear(counts, weight, bias, log1p, divisor)
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    return _SparseLinear.apply(counts, weight, bias, log1p, divisor)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, counts: CountBlock, weight: Tensor, bias: Tensor, log1p: bool, divisor: Tensor | None
    ) -> Tensor:
        counts = readable(counts)
        assert weight.shape[1] == counts.n_features, (
            f"a weight for {weight.shape[1]} genes, counts of {counts.n_features}"
        )
        assert bias.shape == weight.shape[:1], f"a bias of shape {tuple(bias.shape)} for {weight.shape[0]} units"
        entries = torch.empty_like(counts.values)
        out = weight.new_empty(counts.n_cells, weight.shape[0])
        by_gene = weight.t().contiguous()
        ctx.counts, ctx.entries, ctx.hidden = counts, entries, weight.shape[0]
        divisor = None if divisor is None else divisor.to(torch.float32).contiguous()
        _run_linear(
            ctx,
            linear.FORWARD,
            tasks=counts.n_cells,
            log1p=log1p,
            weight=by_gene,
            bias=bias.contiguous(),
            out=out,
            divisor=divisor,
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_weight = d_bias = None
        grad = grad.contiguous()
        if ctx.needs_input_grad[1]:
            by_gene = grad.new_empty(ctx.counts.n_features, ctx.hidden)
            # Each task looks at all entries, so there are no more of them than threads.
            tasks = torch.get_num_threads()
            _run_linear(ctx, linear.BACKWARD, tasks=tasks, d_out=grad, d_weight=by_gene)
            d_weight = by_gene.t()
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum(0)
        return None, d_weight, d_bias, None, None


def _run_linear(ctx: Any, compiled: Any, **numbers: Tensor | int | None) -> None:
    counts = ctx.counts
    run(
        compiled,
        linear.SLOTS,
        # What a stored entry costs, in entries of a dense matrix.
        work=counts.n_cells * ctx.hidden + counts.values.shape[0] * max(1, ctx.hidden // 8),
        cells=counts.n_cells,
        genes=counts.n_features,
        hidden=ctx.hidden,
        nonzeros=counts.values.shape[0],
        values=counts.values,
        columns=counts.columns,
        offsets=counts.offsets,
        entries=ctx.entries,
        **numbers,
    )
