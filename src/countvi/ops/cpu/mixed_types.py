"""The kernel of spots that mix cell types: from the logits of a few spots, types x genes each, to value and slopes.

A spot has as many rows of logits as types that it holds. They are read once and overwritten by the gradient. Softplus
and sigmoid of the types of one spot stay in the second level of cache between the sum over types, which the likelihood
needs, and what the likelihood's slope is multiplied by. Slopes are of the log-likelihood of a spot itself: what
multiplies them is known later, and each spot's own number. The sums over spots are left to the caller.

With s = alpha sum_c v_c softplus(l_c) + v_noise noise, r = library s, and e = d log p / d s (library included),

    d / d l_cg = e_g alpha_g v_c sigmoid(l_cg),    d / d v_c = sum_g e_g alpha_g softplus(l_cg),
    d / d noise_g = e_g v_noise,    d / d v_noise = sum_g e_g noise_g,
    d / d log alpha_g = e_g (s_g - v_noise noise_g).
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# What is compiled is typed by numba.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from countvi.batch import CountBlock
from countvi.ops.affine import Affine
from countvi.ops.cpu import dense, stored
from countvi.ops.cpu.compiler import apart, digest, kernel, next_ticket, part, strict
from countvi.ops.cpu.elementary import ZERO, log64
from countvi.ops.cpu.launch import COUNTS, job_type, launch, readable
from countvi.ops.cpu.pointers import counts_of, integers, matrix, vector
from countvi.ops.cpu.product import product
from countvi.typing import CellsTypes, CellsTypesHidden, Genes, PerCell

JOB = job_type(
    f"{COUNTS} first here types pairs logits starts kinds abundance alpha noise library p_logits p_softplus p_sigmoid "
    "out d_shape d_log_alpha d_abundance d_log_library d_p_logits"
)
"""``cells`` are spots. ``kinds`` are the types of the pairs of spot and type, spot by spot from ``starts`` on.

``logits`` are of the pairs of the ``here`` spots from ``first`` on; all else is of all spots. ``d_abundance`` is zero
at the start. ``d_shape`` is e; without it there is no gradient. ``d_log_alpha`` and ``d_p_logits`` have a row per spot.
"""

# Logits that exist at once take so many bytes, which the last level of cache holds.
_SPACE = 1 << 22
# What an entry of the logits costs, in entries of a dense matrix.
_COST = 2
# By a shape that is smaller, the derivative is as there, so that it stays finite.
_SMALLEST = 1e-30
# Rows of the work space in float32 besides one for each type.
_N_ROWS = 3


@part
def _work_space(job, offsets):
    """Rows in float32, rows in float64 as long as the longest of the spots, and its genes."""
    space = np.empty((_N_ROWS + job.types, job.genes + 80), np.float32)
    work, nonzero = stored.work_space(offsets, job.first, job.first + job.here)
    return space, work, nonzero


@strict
def _mix(mixed, factor, alpha, noise, out):
    """``out = alpha * mixed + factor * noise``; ``mixed`` becomes its first term."""
    apart()
    for g in range(out.shape[0]):
        mixed[g] *= alpha[g]
    for g in range(out.shape[0]):
        out[g] = mixed[g] + factor * noise[g]


@strict
def _take(shapes, genes, library, r, log_r):
    """Write r and its logarithm at some genes, in float64, and set the shapes there to zero."""
    apart()
    for j in range(genes.shape[0]):
        r[j] = np.float64(shapes[genes[j]]) * library
        log_r[j] = log64(r[j]) if r[j] > 0.0 else (-np.inf if r[j] == 0.0 else np.nan)
        shapes[genes[j]] = ZERO


@strict
def _put_slopes(slopes, genes, library, r, out):
    """Write the slopes by s, from those by log r, in their place."""
    apart()
    for j in range(genes.shape[0]):
        out[genes[j]] = np.float32(library * slopes[j] / (r[j] if r[j] > _SMALLEST else _SMALLEST))


@part
def _types_of(job, spot):
    """The types that a spot holds, and their logits."""
    starts, kinds = integers(job.starts, job.cells + 1), integers(job.kinds, job.pairs)
    before, last = starts[job.first], starts[job.first + job.here]
    logits = matrix(job.logits, last - before, job.genes)
    return kinds[starts[spot] : starts[spot + 1]], logits[starts[spot] - before : starts[spot + 1] - before]


@part
def _gradient(job, spot, nonzero, space):
    """Write the slopes of a spot; rows of the space are softplus, the shapes of what is zero, and the types' part."""
    rows, work, _ = space
    genes, types, n_spots = job.genes, job.types, job.cells
    own, shapes, by_type = rows[types][:genes], rows[types + 1][:genes], rows[types + 2][:genes]
    library = np.float64(vector(job.library, n_spots)[spot])
    abundance = matrix(job.abundance, n_spots, types + 1)[spot]
    slopes = matrix(job.d_shape, n_spots, genes)[spot]
    dense.copy_scaled(vector(job.p_softplus, genes), np.float32(-library), slopes)
    _put_slopes(work[stored.SLOPE], nonzero, library, work[stored.RATE], slopes)
    if job.d_log_alpha != 0:
        dense.product_into(slopes, np.float32(1), own, matrix(job.d_log_alpha, n_spots, genes)[spot])
    if job.d_p_logits != 0:
        by_p = matrix(job.d_p_logits, n_spots, genes)[spot]
        dense.product_into(shapes, np.float32(-library), vector(job.p_sigmoid, genes), by_p)
        stored.put(work[stored.P_SLOPE], nonzero, by_p)
    by_abundance = matrix(job.d_abundance, n_spots, types + 1)[spot]
    by_abundance[types] = np.float32(dense.dot(slopes, vector(job.noise, genes)))
    dense.product_into(slopes, np.float32(1), vector(job.alpha, genes), by_type)
    kinds, logits = _types_of(job, spot)
    for i in range(kinds.shape[0]):
        by_abundance[kinds[i]] = np.float32(dense.dot(by_type, rows[i][:genes]))
        dense.multiply_scaled(logits[i], abundance[kinds[i]], by_type)


@part
def _spot(job, spot, counts, space):
    """Log-likelihood of one spot, and its slopes if asked."""
    rows, work, all_genes = space
    genes, types, n_spots = job.genes, job.types, job.cells
    own, shapes = rows[types][:genes], rows[types + 1][:genes]
    library = np.float64(vector(job.library, n_spots)[spot])
    abundance = matrix(job.abundance, n_spots, types + 1)[spot]
    kinds, logits = _types_of(job, spot)
    own[:] = ZERO
    for i in range(kinds.shape[0]):
        dense.soften(logits[i], rows[i][:genes])
        dense.add_scaled(rows[i][:genes], abundance[kinds[i]], own)
    _mix(own, abundance[types], vector(job.alpha, genes), vector(job.noise, genes), shapes)
    nonzero = all_genes[: stored.gather(counts, spot, all_genes, work)]
    n = nonzero.shape[0]
    _take(shapes, nonzero, library, work[stored.RATE], work[stored.LOG_MU])
    stored.pick(vector(job.p_logits, genes), nonzero, 0.0, work[stored.LOG_THETA])
    stored.rate_shape(work, n)
    at_zero = -library * dense.dot(shapes, vector(job.p_softplus, genes))
    if job.d_shape != 0:
        vector(job.d_log_library, n_spots)[spot] = np.float32(at_zero + stored.total(work[stored.SLOPE], n))
        _gradient(job, spot, nonzero, space)
    return at_zero + stored.total(work[stored.VALUE], n)


def _make_kernel(sources: int):
    """Make the kernel; ``sources`` is in its closure, see :mod:`countvi.ops.cpu.compiler`."""

    def mixed_types(data):
        _ = sources
        job = carray(data, (1,), JOB)[0]
        counts = counts_of(job)
        space = _work_space(job, counts[2])
        out = vector(job.out, job.cells)
        while True:
            ticket = next_ticket(data)
            if ticket >= job.here:
                break
            spot = job.first + ticket
            out[spot] = np.float32(_spot(job, spot, counts, space))

    return kernel(mixed_types)


_MIXED_TYPES = _make_kernel(digest())


def mixed_types_negative_binomial(
    hidden: CellsTypesHidden,
    layer: Affine,
    log_alpha: Genes,
    abundance: CellsTypes,
    noise: Genes,
    log_library: PerCell,
    p_logits: Genes,
    counts: CountBlock,
) -> PerCell:
    """Log-likelihood per spot.

    A few spots at a time: the product with the decoder's last layer, the kernel, which turns the logits into their
    gradient, and the product back. So the logits of all types of all spots never exist at once, and there are two
    products in all. What a spot does not hold is left out of both.
    """
    inputs = (hidden, log_alpha, abundance, noise, log_library, p_logits)
    _check(inputs, layer, counts)
    if not torch.is_grad_enabled():
        return _solve(inputs, layer, counts, (False,) * len(inputs))[0]
    return _MixedTypes.apply(layer, counts, *inputs)


class _Slopes(NamedTuple):
    """Of the log-likelihood of each spot, a row for every spot; ``None`` where nobody asks."""

    hidden: Tensor | None
    log_alpha: Tensor | None
    abundance: Tensor
    shape: Tensor
    """By the shape before it is multiplied by the library."""
    log_library: Tensor
    p_logits: Tensor | None

    @classmethod
    def empty(cls, hidden: Tensor, abundance: Tensor, n_genes: int, needed: tuple[bool, ...]) -> _Slopes:
        """Places for what the kernel writes; types that a spot does not hold have a slope of zero."""
        n_spots = hidden.shape[0]
        return cls(
            hidden=torch.zeros_like(hidden) if needed[0] else None,
            log_alpha=hidden.new_empty(n_spots, n_genes) if needed[1] else None,
            abundance=torch.zeros_like(abundance),
            shape=hidden.new_empty(n_spots, n_genes),
            log_library=hidden.new_empty(n_spots),
            p_logits=hidden.new_empty(n_spots, n_genes) if needed[5] else None,
        )


class _MixedTypes(torch.autograd.Function):
    # Not an `Operation`: the slopes that are kept are of each spot, so whatever gradient comes multiplies them, and
    # nothing is assumed of it or computed twice.

    @staticmethod
    def forward(ctx: Any, layer: Affine, counts: CountBlock, *inputs: Tensor) -> Tensor:
        ctx.needed = ctx.needs_input_grad[2:]
        ctx.save_for_backward(inputs[2])
        out, ctx.slopes = _solve(inputs, layer, counts, ctx.needed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (abundance,), slopes, needed = ctx.saved_tensors, ctx.slopes, ctx.needed
        by_noise = grad * abundance[:, -1]
        return (
            None,
            None,
            slopes.hidden * grad[:, None, None] if needed[0] else None,
            _sum_of_rows(grad, slopes.log_alpha) if needed[1] else None,
            slopes.abundance * grad[:, None] if needed[2] else None,
            _sum_of_rows(by_noise, slopes.shape) if needed[3] else None,
            slopes.log_library * grad if needed[4] else None,
            _sum_of_rows(grad, slopes.p_logits) if needed[5] else None,
        )


def _sum_of_rows(weight: Tensor, rows: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return weight @ rows


def _check(inputs: tuple[Tensor, ...], layer: Affine, counts: CountBlock) -> None:
    """The kernel would read beyond what does not fit."""
    hidden, _, abundance, _, log_library, _ = inputs
    weight, bias = layer
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
    counts, (n_spots, n_types, n_units), n_genes = readable(counts), hidden.shape, counts.n_features
    slopes = _Slopes.empty(hidden, abundance, n_genes, needed) if any(needed) else None
    held = abundance[:, :-1] != 0
    starts = torch.cat([held.new_zeros(1, dtype=torch.int64), held.sum(1).cumsum(0)])
    at = held.flatten().nonzero().squeeze(-1)
    fields = {
        "types": n_types,
        "pairs": len(at),
        "starts": starts,
        "kinds": at % n_types,
        "abundance": abundance,
        "alpha": log_alpha.exp(),
        "noise": noise,
        "library": log_library.exp(),
        "p_logits": p_logits,
        "p_softplus": functional.softplus(p_logits, threshold=80.0),
        "p_sigmoid": torch.sigmoid(p_logits),
        "out": hidden.new_empty(n_spots),
    }
    if slopes is not None:
        fields |= {f"d_{name}": value for name, value in slopes._asdict().items() if name != "hidden"}
    bounds = starts.tolist()
    rows = hidden.view(-1, n_units)
    size = max(1, min(n_spots, _SPACE * n_spots // max(1, 4 * len(at) * n_genes)))
    with torch.autocast("cpu", enabled=False):
        for first in range(0, n_spots, size):
            here = min(size, n_spots - first)
            pairs = at[bounds[first] : bounds[first + here]]
            logits = product(rows.index_select(0, pairs), *layer).contiguous()
            work = _COST * logits.numel()
            launch(_MIXED_TYPES, JOB, work, counts, first=first, here=here, logits=logits, **fields)
            if slopes is not None and slopes.hidden is not None:
                slopes.hidden.view(-1, n_units).index_copy_(0, pairs, product(logits, layer.weight.t(), None))
    return fields["out"], slopes
