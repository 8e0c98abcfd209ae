"""Protein counts of background and foreground, as a differentiable function of tensors.

See :mod:`countvi.ops.cpu.autograd`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops.cpu import mixture
from countvi.ops.cpu.job import guess, readable, run
from countvi.typing import Cells, CellsGenes

# Cells that a thread takes at a time, and what an entry costs, in entries of a dense matrix in float32.
_CHUNK, _COST = 8, 32


def negative_binomial_mixture(
    log_background: CellsGenes,
    log_foreground: CellsGenes,
    mixing_logits: CellsGenes,
    log_theta: Tensor,
    counts: CountBlock,
    measured: Tensor | None = None,
) -> Cells:
    """Log-likelihood per cell."""
    fixed = _Fixed(counts, measured, torch.is_grad_enabled())
    return _Mixture.apply(log_background, log_foreground, mixing_logits, log_theta, fixed)


class _Fixed(NamedTuple):
    """What gets no gradient, and whether anything may be asked for one."""

    counts: CountBlock
    measured: Tensor | None
    with_gradient: bool


class _Gradients(NamedTuple):
    """A row for every sample and cell; by the dispersion, one per chunk where all rows share it."""

    log_background: Tensor
    log_foreground: Tensor
    mixing_logits: Tensor
    log_theta: Tensor


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_background: Tensor,
        log_foreground: Tensor,
        mixing_logits: Tensor,
        log_theta: Tensor,
        fixed: _Fixed,
    ) -> Tensor:
        inputs = (log_background, log_foreground, mixing_logits, log_theta)
        counts, measured = readable(fixed.counts), fixed.measured
        size = (counts.n_cells, counts.n_features)
        shape = torch.broadcast_shapes(*(t.shape for t in inputs))
        assert shape[-2:] == size, f"parameters {tuple(shape)} do not fit the counts {size}"
        if measured is not None:
            assert measured.dtype == torch.bool, f"`measured` in {measured.dtype}, not in torch.bool"
            assert measured.shape == size, f"`measured` of shape {tuple(measured.shape)} does not fit the counts {size}"
            measured = measured.contiguous()
        ctx.needed = tuple(fixed.with_gradient and need for need in ctx.needs_input_grad[:4])
        ctx.shape, ctx.fixed = shape, _Fixed(counts, measured, fixed.with_gradient)
        n_rows = shape[:-1].numel()
        weight = log_background.new_full((n_rows,), float(guess(n_rows)))
        out, ctx.gradients = _solve(inputs, ctx.fixed, shape, weight, any(ctx.needed))
        ctx.save_for_backward(*inputs)
        return out.view(shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        weight = grad.reshape(-1).contiguous()
        if gradients is None or not (weight.numpy() == guess(weight.shape[0])).all():
            _, gradients = _solve(inputs, ctx.fixed, ctx.shape, weight, with_gradient=True)
        assert gradients is not None, "a backward pass without inputs that need a gradient"
        wanted = zip(ctx.needed, inputs, gradients, strict=True)
        return (*(_sum_to(g, x, ctx.shape) if need else None for need, x, g in wanted), None)


def _sum_to(gradient: Tensor, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Sum over the axes along which an input was repeated."""
    if gradient.shape[0] != shape[:-1].numel():  # by a dispersion that all rows share
        return gradient.sum(0).view(tensor.shape)
    return gradient.view(shape).sum_to_size(tensor.shape)


def _solve(
    inputs: tuple[Tensor, ...], fixed: _Fixed, shape: torch.Size, weight: Tensor, with_gradient: bool
) -> tuple[Tensor, _Gradients | None]:
    """Log-likelihood per row, and its gradient times a weight per row."""
    counts, n_rows, n_proteins = fixed.counts, weight.shape[0], shape[-1]
    *means_and_odds, log_theta = inputs
    rows = [t.expand(shape).reshape(-1, n_proteins).contiguous() for t in means_and_odds]
    is_shared = log_theta.ndim == 1
    theta = log_theta if is_shared else log_theta.expand(shape)
    theta = theta.reshape(-1, n_proteins).contiguous()
    out, chunks, gradients = weight.new_empty(n_rows), -(-n_rows // _CHUNK), None
    if with_gradient:
        by_mean_one, by_mean_two, by_odds = (torch.empty_like(t) for t in rows)
        by_theta = weight.new_empty(chunks if theta.shape[0] == 1 else n_rows, n_proteins)
        gradients = _Gradients(by_mean_one, by_mean_two, by_odds, by_theta)
    run(
        mixture.MIXTURE,
        mixture.SLOTS,
        work=_COST * n_rows * n_proteins,
        rows=n_rows,
        cells=counts.n_cells,
        proteins=n_proteins,
        chunk=_CHUNK,
        chunks=chunks,
        nonzeros=counts.values.shape[0],
        theta_rows=theta.shape[0],
        log_background=rows[0],
        log_foreground=rows[1],
        mixing_logits=rows[2],
        log_theta=theta,
        measured=fixed.measured,
        values=counts.values,
        columns=counts.columns,
        offsets=counts.offsets,
        weight=weight,
        out=out,
        **({f"d_{name}": value for name, value in gradients._asdict().items()} if gradients else {}),
    )
    return out, gradients
