"""A decoder's last layer and the likelihood of counts around its rate, as one differentiable function.

Some genes are done at a time: their logits, then likelihood and slopes, then what the slopes add to the gradients of
the layer. No matrix of all genes is kept for the backward pass, and nothing is computed twice.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops.cpu.ambient import GAMMA_POISSON, checked, codes, exponentials
from countvi.ops.cpu.differentiable import Fixed, Gradients, differentiable
from countvi.ops.cpu.product import product
from countvi.ops.indexed import Indexed
from countvi.typing import CellsHidden, PerCell


def gamma_poisson_head(
    hidden: CellsHidden,
    weight: Tensor,
    bias: Tensor,
    log_library: PerCell,
    tables: tuple[Indexed, Indexed | None, Indexed | None],
    counts: CountBlock,
    step: int,
    n_cells: int,
) -> PerCell:
    """Log-likelihood per cell."""
    given = checked(*tables, weight, counts)
    shape = torch.broadcast_shapes(hidden.shape[:-1], log_library.shape)
    assert shape[-1] == counts.n_cells, f"{shape[-1]} cells do not fit counts of {counts.n_cells}"
    flat = hidden.expand(*shape, hidden.shape[-1]).reshape(-1, hidden.shape[-1])
    inputs = (flat, weight, bias, log_library.expand(shape).reshape(-1), *(t.table for t in given))
    n_rows, n_samples = shape.numel(), shape[:-1].numel()
    solve = functools.partial(_solve, step=step)
    return differentiable(solve, inputs, counts, codes(given), n_rows, n_cells * n_samples).view(shape)


def _solve(
    inputs: Sequence[Tensor],
    counts: CountBlock,
    fixed: Fixed,
    weight: Tensor,
    needed: Sequence[bool],
    step: int,
) -> tuple[Tensor, Gradients]:
    """Log-likelihood per row, and the gradients by the inputs times a number per row; ``fixed`` are the codes."""
    hidden, layer, bias, library, *tables = inputs
    n_genes = counts.n_features
    gradients = _Parts(inputs, needed)
    by_part = (any(needed[:3]), *needed[3:])
    out = weight.new_zeros(weight.shape)
    with torch.autocast("cpu", enabled=False):
        for start in range(0, n_genes, step):
            genes = slice(start, min(start + step, n_genes))
            whole = genes == slice(0, n_genes)
            some = counts if whole else counts.features(genes.start, genes.stop)
            logits = product(hidden, layer[genes], bias[genes])
            rows = [table[:, genes].contiguous() for table in tables]
            arguments, others = (logits, library, *rows), {**exponentials(rows), **fixed}
            value, found = GAMMA_POISSON.solve(arguments, some, others, weight, by_part, logits.shape)
            out += value
            gradients.add(found, genes)
    return out, tuple(gradients.found)


class _Parts:
    """Gradients by hidden units, weight, bias, library and the three tables, put together from parts of the genes."""

    def __init__(self, inputs: Sequence[Tensor], needed: Sequence[bool]) -> None:
        self.hidden, self.weight = inputs[:2]
        self.found: list[Tensor | None] = [
            tensor.new_zeros(tensor.shape) if need else None for tensor, need in zip(inputs, needed, strict=True)
        ]
        if needed[1]:
            # Stored as the weight is: by input.
            self.found[1] = self.weight.new_empty(self.weight.shape[::-1]).t()

    def add(self, part: Gradients, genes: slice) -> None:
        """Add what some genes contribute: gradients by their logits, by the library and by their part of the tables."""
        slopes, library, *tables = part
        d_hidden, d_weight, d_bias, d_library, *d_tables = self.found
        if d_hidden is not None and slopes is not None:
            d_hidden += product(slopes, self.weight[genes].t(), None)
        if d_weight is not None and slopes is not None:
            d_weight[genes] = product(self.hidden.t(), slopes.t(), None).t()
        if d_bias is not None and slopes is not None:
            d_bias[genes] = slopes.sum(0)
        if d_library is not None and library is not None:
            d_library += library
        for whole, of_genes in zip(d_tables, tables, strict=True):
            if whole is not None and of_genes is not None:
                whole[:, genes] = of_genes
