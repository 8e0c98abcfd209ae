"""Spots that mix cell types, as a differentiable function of tensors.

A few spots at a time: the product with the decoder's last layer, the kernel, which turns the logits into their
gradient, and the product back. So the logits of all types of all spots never exist at once, and there are two products
in all. What a spot does not hold is left out of both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from countvi.batch import CountBlock
from countvi.ops.affine import Affine
from countvi.ops.cpu import mixed_types
from countvi.ops.cpu.job import readable, run
from countvi.ops.cpu.product import product
from countvi.typing import Cells, CellsTypes, CellsTypesHidden, Genes

# Logits that exist at once take so many bytes, which the last level of cache holds.
_SPACE = 1 << 22
# What an entry of the logits costs, in entries of a dense matrix.
_COST = 2


def mixed_types_negative_binomial(
    hidden: CellsTypesHidden,
    layer: Affine,
    log_alpha: Genes,
    abundance: CellsTypes,
    noise: Genes,
    log_library: Cells,
    p_logits: Genes,
    counts: CountBlock,
) -> Cells:
    """Log-likelihood per spot."""
    fixed = _Fixed(layer, counts, torch.is_grad_enabled())
    return _MixedTypes.apply(hidden, log_alpha, abundance, noise, log_library, p_logits, fixed)


class _Fixed(NamedTuple):
    """What gets no gradient, and whether anything may be asked for one."""

    layer: Affine
    counts: CountBlock
    with_gradient: bool


class _Slopes(NamedTuple):
    """Of the log-likelihood of each spot, a row for every spot; ``None`` where nobody asks."""

    hidden: Tensor | None
    log_alpha: Tensor | None
    abundance: Tensor
    shape: Tensor
    """By the shape before it is multiplied by the library."""
    log_library: Tensor
    p_logits: Tensor | None


class _MixedTypes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        log_alpha: Tensor,
        abundance: Tensor,
        noise: Tensor,
        log_library: Tensor,
        p_logits: Tensor,
        fixed: _Fixed,
    ) -> Tensor:
        inputs = (hidden, log_alpha, abundance, noise, log_library, p_logits)
        _check(inputs, fixed)
        ctx.needed = tuple(fixed.with_gradient and need for need in ctx.needs_input_grad[:6])
        ctx.save_for_backward(abundance)
        with torch.autocast("cpu", enabled=False):
            out, ctx.slopes = _solve(inputs, fixed.layer, readable(fixed.counts), ctx.needed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (abundance,), slopes, needed = ctx.saved_tensors, ctx.slopes, ctx.needed
        by_noise = grad * abundance[:, -1]
        return (
            slopes.hidden * grad[:, None, None] if needed[0] else None,
            _sum_of_rows(grad, slopes.log_alpha) if needed[1] else None,
            slopes.abundance * grad[:, None] if needed[2] else None,
            _sum_of_rows(by_noise, slopes.shape) if needed[3] else None,
            slopes.log_library * grad if needed[4] else None,
            _sum_of_rows(grad, slopes.p_logits) if needed[5] else None,
            None,
        )


def _sum_of_rows(weight: Tensor, rows: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return weight @ rows


def _check(inputs: tuple[Tensor, ...], fixed: _Fixed) -> None:
    """The kernel would read beyond what does not fit."""
    hidden, _, abundance, _, log_library, _ = inputs
    (weight, bias), counts = fixed.layer, fixed.counts
    n_spots, n_types, n_units = hidden.shape
    genes = (counts.n_features,)
    assert n_spots == counts.n_cells, f"{n_spots} spots do not fit the counts of {counts.n_cells}"
    assert weight.shape == (*genes, n_units), f"a layer of {tuple(weight.shape)} does not fit {genes[0]} genes"
    assert abundance.shape == (n_spots, n_types + 1), f"abundances {tuple(abundance.shape)} do not fit {n_types} types"
    assert log_library.shape == (n_spots,), f"libraries {tuple(log_library.shape)} do not fit {n_spots} spots"
    per_gene = (bias, inputs[1], inputs[3], inputs[5])
    assert all(t.shape == genes for t in per_gene), f"a parameter of genes does not fit {genes[0]} of them"


def _solve(
    inputs: tuple[Tensor, ...], layer: Affine, counts: CountBlock, needed: tuple[bool, ...]
) -> tuple[Tensor, _Slopes | None]:
    """Log-likelihood per spot, and its slopes."""
    hidden, log_alpha, abundance, noise, log_library, p_logits = (t.contiguous() for t in inputs)
    n_spots, n_types, n_units = hidden.shape
    n_genes = counts.n_features
    out = hidden.new_empty(n_spots)
    slopes = None
    if any(needed):
        slopes = _Slopes(
            hidden=torch.zeros_like(hidden) if needed[0] else None,
            log_alpha=hidden.new_empty(n_spots, n_genes) if needed[1] else None,
            abundance=torch.zeros_like(abundance),
            shape=hidden.new_empty(n_spots, n_genes),
            log_library=torch.empty_like(log_library),
            p_logits=hidden.new_empty(n_spots, n_genes) if needed[5] else None,
        )
    held = abundance[:, :-1] != 0
    starts = torch.cat([held.new_zeros(1, dtype=torch.int64), held.sum(1).cumsum(0)])
    at = held.flatten().nonzero().squeeze(-1)
    numbers = {
        "spots": n_spots,
        "types": n_types,
        "pairs": len(at),
        "starts": starts,
        "kinds": at % n_types,
        "genes": n_genes,
        "nonzeros": counts.values.shape[0],
        "abundance": abundance,
        "alpha": log_alpha.exp(),
        "noise": noise,
        "library": log_library.exp(),
        "p_logits": p_logits,
        "p_softplus": functional.softplus(p_logits, threshold=80.0),
        "p_sigmoid": torch.sigmoid(p_logits),
        "values": counts.values,
        "columns": counts.columns,
        "offsets": counts.offsets,
        "out": out,
    }
    if slopes is not None:
        numbers |= {f"d_{name}": value for name, value in slopes._asdict().items() if name != "hidden"}
    bounds = starts.tolist()
    rows = hidden.view(-1, n_units)
    size = max(1, min(n_spots, _SPACE * n_spots // max(1, 4 * len(at) * n_genes)))
    for first in range(0, n_spots, size):
        here = min(size, n_spots - first)
        pairs = at[bounds[first] : bounds[first + here]]
        logits = product(rows.index_select(0, pairs), *layer).contiguous()
        work = _COST * logits.numel()
        run(mixed_types.MIXED_TYPES, mixed_types.SLOTS, work=work, first=first, here=here, logits=logits, **numbers)
        if slopes is not None and slopes.hidden is not None:
            slopes.hidden.view(-1, n_units).index_copy_(0, pairs, product(logits, layer.weight.t(), None))
    return out, slopes
