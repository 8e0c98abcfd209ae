"""The kernels of the count likelihoods as differentiable functions of tensors.

A kernel gives value and gradient in one pass, before it is known what the gradient will be multiplied by. It takes this
to be what the mean over the rows asks for, as in training. Where it is something else, the kernel runs once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from countvi.batch import CountBlock
from countvi.ops.cpu import likelihood
from countvi.ops.cpu.job import guess, readable, run
from countvi.ops.link import Link
from countvi.typing import Cells, CellsGenes

# Cells that a thread takes at a time.
_CHUNK = 8


def negative_binomial(
    logits: CellsGenes, log_library: Cells, log_theta: Tensor, counts: CountBlock, link: Link
) -> Cells:
    """Log-likelihood per cell."""
    settings = _Settings(likelihood.NEGATIVE_BINOMIAL, link, torch.is_grad_enabled())
    return _LogLikelihood.apply(logits, log_library, log_theta, None, counts, settings)


def zero_inflated_negative_binomial(
    logits: CellsGenes, log_library: Cells, log_theta: Tensor, pi_logits: CellsGenes, counts: CountBlock, link: Link
) -> Cells:
    """Log-likelihood per cell."""
    settings = _Settings(likelihood.ZERO_INFLATED, link, torch.is_grad_enabled())
    return _LogLikelihood.apply(logits, log_library, log_theta, pi_logits, counts, settings)


def poisson(logits: CellsGenes, log_library: Cells, counts: CountBlock, link: Link) -> Cells:
    """Log-likelihood per cell."""
    settings = _Settings(likelihood.POISSON, link, torch.is_grad_enabled())
    return _LogLikelihood.apply(logits, log_library, None, None, counts, settings)


class _Settings(NamedTuple):
    """What is not a tensor."""

    family: int
    link: Link
    with_gradient: bool


@dataclass(frozen=True, eq=False)
class _Problem:
    """Parameters as the kernel reads them: contiguous, a row for every sample and cell."""

    logits: Tensor
    log_library: Tensor
    log_theta: Tensor | None
    pi_logits: Tensor | None
    counts: CountBlock
    settings: _Settings
    shape: torch.Size

    @classmethod
    def of(
        cls,
        logits: Tensor,
        log_library: Tensor,
        log_theta: Tensor | None,
        pi_logits: Tensor | None,
        counts: CountBlock,
        settings: _Settings,
    ) -> _Problem:
        """Broadcast the parameters; the counts are readable."""
        n_genes = logits.shape[-1]
        shape = _common_shape(logits, log_theta, pi_logits, log_library)
        assert shape[-2:] == (counts.n_cells, counts.n_features), f"parameters {tuple(shape)} do not fit the counts"

        def rows(tensor: Tensor) -> Tensor:
            return tensor.expand(shape).reshape(-1, n_genes).contiguous()

        if log_theta is not None:  # which may be shared by samples, or by all
            log_theta = log_theta.reshape(-1, n_genes).contiguous() if log_theta.ndim <= 2 else rows(log_theta)
        return cls(
            logits=rows(logits),
            log_library=log_library.expand(shape[:-1]).reshape(-1).contiguous(),
            log_theta=log_theta,
            pi_logits=None if pi_logits is None else rows(pi_logits),
            counts=counts,
            settings=settings,
            shape=shape,
        )

    def solve(self, weight: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor, _Gradients | None]:
        """Log-likelihood per row, and its gradient times a weight per row."""
        n_rows, n_genes = self.logits.shape
        out, chunks = weight.new_empty(n_rows), -(-n_rows // _CHUNK)
        theta_rows = 0 if self.log_theta is None else self.log_theta.shape[0]
        gradients = None
        if any(needed):
            d_theta_rows = chunks if theta_rows == 1 else n_rows
            gradients = _Gradients(
                logits=torch.empty_like(self.logits),
                log_library=torch.empty_like(self.log_library),
                log_theta=weight.new_empty(d_theta_rows, n_genes) if needed[2] else None,
                pi_logits=torch.empty_like(self.logits) if needed[3] else None,
            )
        run(
            likelihood.LOG_LIKELIHOOD,
            likelihood.SLOTS,
            work=n_rows * n_genes,
            rows=n_rows,
            cells=self.counts.n_cells,
            genes=n_genes,
            chunk=_CHUNK,
            chunks=chunks,
            nonzeros=self.counts.values.shape[0],
            family=self.settings.family,
            softmax=self.settings.link is Link.SOFTMAX,
            theta_rows=theta_rows,
            logits=self.logits,
            log_library=self.log_library,
            log_theta=self.log_theta,
            pi_logits=self.pi_logits,
            values=self.counts.values,
            columns=self.counts.columns,
            offsets=self.counts.offsets,
            weight=weight,
            out=out,
            **({f"d_{name}": value for name, value in vars(gradients).items()} if gradients else {}),
        )
        return out, gradients


@dataclass(frozen=True, eq=False)
class _Gradients:
    """By the inputs, a row for every sample and cell; by the dispersion, one per chunk where all rows share it."""

    logits: Tensor
    log_library: Tensor
    log_theta: Tensor | None
    pi_logits: Tensor | None


def _common_shape(
    logits: Tensor, log_theta: Tensor | None, pi_logits: Tensor | None, log_library: Tensor
) -> torch.Size:
    per_gene = [tensor.shape for tensor in (log_theta, pi_logits) if tensor is not None and tensor.ndim > 1]
    per_gene_fits = log_theta is None or log_theta.shape[-1] == logits.shape[-1]
    if per_gene_fits and log_library.shape == logits.shape[:-1] and all(shape == logits.shape for shape in per_gene):
        return logits.shape  # as in training; torch takes its time over the general case
    dense = [tensor.shape for tensor in (logits, log_theta, pi_logits) if tensor is not None]
    return torch.broadcast_shapes(*dense, (*log_library.shape, logits.shape[-1]))


class _LogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_library: Tensor,
        log_theta: Tensor | None,
        pi_logits: Tensor | None,
        counts: CountBlock,
        settings: _Settings,
    ) -> Tensor:
        counts = readable(counts)
        problem = _Problem.of(logits, log_library, log_theta, pi_logits, counts, settings)
        # What asks for a gradient does so outside `no_grad` too.
        needed = tuple(settings.with_gradient and need for need in ctx.needs_input_grad[:4])
        n_rows = problem.logits.shape[0]
        out, ctx.gradients = problem.solve(problem.logits.new_full((n_rows,), float(guess(n_rows))), needed)
        ctx.save_for_backward(logits, log_library, log_theta, pi_logits, counts.values, counts.columns, counts.offsets)
        ctx.n_genes, ctx.settings, ctx.needed, ctx.shape = counts.n_features, settings, needed, problem.shape
        return out.view(problem.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, values, columns, offsets = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        weight = grad.reshape(-1).contiguous()
        if gradients is None or not (weight.numpy() == guess(weight.shape[0])).all():
            counts = CountBlock(values, columns, offsets, ctx.n_genes)
            _, gradients = _Problem.of(*inputs, counts=counts, settings=ctx.settings).solve(weight, ctx.needed)
        wanted = zip(ctx.needed, inputs, vars(gradients).values(), strict=True)
        return (*(_sum_to(g, x, ctx.shape) if need else None for need, x, g in wanted), None, None)


def _sum_to(gradient: Tensor, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Sum over the axes along which an input was repeated."""
    full = shape if gradient.ndim == 2 else shape[:-1]
    if gradient.numel() != full.numel():  # by a dispersion that all rows share
        return gradient.sum(0).view(tensor.shape)
    return gradient.view(full).sum_to_size(tensor.shape)
