"""The operations of a step alone: the backend that is in force by default against the reference."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import datasets
import torch
from measure import Comparison, Settings, alternate, in_subprocess, seconds
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock

_BATCH, _HIDDEN, _TYPES = 128, 128, 12
_OTHER = "reference ops"
_SIZES = ((2_000, 0.1, 200), (20_000, 0.04, 20))
"""Genes, share of nonzero entries, and calls that are timed together."""
_PROTEINS = ((30, 0.8, 200), (200, 0.8, 50))
"""The same of proteins."""


@dataclass(frozen=True)
class Work:
    """An operation forward and backward.

    Parameters
    ----------
    name
        What it is.
    forward
        The operation on a block.
    inputs
        What it is differentiated by.
    upstream
        Gradient of its result.
    """

    name: str
    forward: Callable[[CountBlock], Tensor]
    inputs: tuple[Tensor, ...]
    upstream: Tensor

    def __call__(self, counts: CountBlock) -> None:
        """Run once. The block is a new one, as in training: nothing that was derived from it is at hand."""
        torch.autograd.grad(self.forward(dataclasses.replace(counts)), self.inputs, self.upstream)


def measure(settings: Settings) -> list[Comparison]:
    """Time each operation on both backends, and the compilation."""
    rows = []
    for n_genes, density, n_calls in settings.pick(_SIZES, ((100, 0.1, 2),)):
        counts = block(n_genes, density)
        rows += [_compare(work, counts, settings.repeats, n_calls) for work in works(counts)]
        # Twelve times as many logits, so fewer calls.
        rows.append(_compare(spots(counts), counts, settings.repeats, max(1, n_calls // _TYPES)))
    for n_proteins, density, n_calls in settings.pick(_PROTEINS, ((10, 0.8, 2),)):
        counts = block(n_proteins, density)
        rows.append(_compare(proteins(counts), counts, settings.repeats, n_calls))
    return [*rows, *_first_calls()]


def _compare(work: Work, counts: CountBlock, repeats: int, n_calls: int) -> Comparison:
    """Time an operation on both backends, in turn."""

    def milliseconds(backend: str) -> float:
        with ops.backend(backend):
            return 1e3 / n_calls * seconds(lambda: [work(counts) for _ in range(n_calls)])

    nonzero = counts.values.shape[0] / (_BATCH * counts.n_features)
    name = f"{work.name}, forward and backward, {_BATCH} x {counts.n_features:,}"
    row = Comparison(name, "ms", notes=f"{nonzero:.1%} nonzero", other=_OTHER)
    return alternate(row, repeats, lambda: milliseconds("auto"), lambda: milliseconds("reference"))


def block(n_genes: int, density: float) -> CountBlock:
    """Simulated counts of a minibatch."""
    matrix = datasets.simulate(_BATCH, n_genes, density=density).X
    return CountBlock.from_dense(torch.from_numpy(matrix.toarray()))


def works(counts: CountBlock) -> list[Work]:
    """What a step consists of, at parameters as they are early in a training."""
    n_genes = counts.n_features
    draw = torch.Generator().manual_seed(0)
    logits, pi_logits = (torch.randn(_BATCH, n_genes, generator=draw).requires_grad_() for _ in range(2))
    log_theta = torch.randn(n_genes, generator=draw).requires_grad_()
    weight = (torch.randn(_HIDDEN, n_genes, generator=draw) / n_genes**0.5).requires_grad_()
    bias = torch.zeros(_HIDDEN, requires_grad=True)
    log_library, link = counts.totals().log(), ops.Link.SOFTMAX
    mean = torch.full((_BATCH,), -1 / _BATCH)
    return [
        Work(
            "NB log-likelihood",
            lambda x: ops.negative_binomial(logits, log_library, log_theta, x, link),
            (logits, log_theta),
            mean,
        ),
        Work(
            "ZINB log-likelihood",
            lambda x: ops.zero_inflated_negative_binomial(logits, log_library, log_theta, pi_logits, x, link),
            (logits, log_theta, pi_logits),
            mean,
        ),
        Work("Poisson log-likelihood", lambda x: ops.poisson(logits, log_library, x, link), (logits,), mean),
        Work(
            "NB log-likelihood, rate as shape",
            lambda x: ops.rate_shape_negative_binomial(logits, log_library, log_theta, x),
            (logits, log_theta),
            mean,
        ),
        Work(
            f"sparse first layer, {_HIDDEN} units",
            lambda x: ops.sparse_linear(x, weight, bias, log1p=True),
            (weight, bias),
            torch.randn(_BATCH, _HIDDEN, generator=draw),
        ),
    ]


def spots(counts: CountBlock) -> Work:
    """Spots that mix cell types, with the frozen last layer of the decoder, by all that is trained."""
    n_genes = counts.n_features
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(_BATCH, _TYPES, _HIDDEN, generator=draw).relu().requires_grad_()
    layer = ops.Affine(torch.randn(n_genes, _HIDDEN, generator=draw) / _HIDDEN**0.5, torch.zeros(n_genes))
    abundance = torch.rand(_BATCH, _TYPES + 1, generator=draw).requires_grad_()
    log_alpha, noise = (torch.rand(n_genes, generator=draw).requires_grad_() for _ in range(2))
    log_library, p_logits = counts.totals().log() - math.log(n_genes), torch.randn(n_genes, generator=draw)
    return Work(
        f"NB log-likelihood of {_TYPES} mixed types",
        lambda x: ops.mixed_types_negative_binomial(
            hidden, layer, log_alpha, abundance, noise, log_library, p_logits, x
        ),
        (hidden, log_alpha, abundance, noise),
        torch.full((_BATCH,), -1 / _BATCH),
    )


def proteins(counts: CountBlock) -> Work:
    """Mixture of background and foreground."""
    shape = (_BATCH, counts.n_features)
    draw = torch.Generator().manual_seed(0)
    background, foreground, mixing = (torch.randn(shape, generator=draw).requires_grad_() for _ in range(3))
    log_theta = torch.randn(counts.n_features, generator=draw).requires_grad_()
    return Work(
        "log-likelihood of protein mixture",
        lambda x: ops.negative_binomial_mixture(background, foreground, mixing, log_theta, x),
        (background, foreground, mixing, log_theta),
        torch.full((_BATCH,), -1 / _BATCH),
    )


def _first_calls() -> list[Comparison]:
    """First call of every operation in a fresh process, with nothing compiled before and with all of it on disk."""
    code = "from parts.kernels import first_calls; print(first_calls())"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for state in ("nothing compiled before", "compiled before"):
            took = float(in_subprocess(code, {"NUMBA_CACHE_DIR": folder}))
            rows.append(Comparison(f"first call of every operation above, {state}", "s", [took], other=_OTHER))
    return rows


def first_calls() -> float:
    """Seconds until each operation has run once."""
    counts = block(100, 0.1)
    return seconds(lambda: [work(counts) for work in (*works(counts), spots(counts), proteins(counts))])
