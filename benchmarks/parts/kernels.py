"""The operations of a step alone: the backend that is in force by default against the reference."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import datasets
import torch
from measure import Comparison, Settings, alternate, in_subprocess, seconds
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock

_BATCH, _HIDDEN = 128, 128
_OTHER = "reference ops"
_SIZES = ((2_000, 0.1, 200), (20_000, 0.04, 20))
"""Genes, share of nonzero entries, and calls that are timed together."""


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
        nonzero = counts.values.shape[0] / (_BATCH * n_genes)
        for work in works(counts):

            def milliseconds(backend: str, work=work, counts=counts, n_calls=n_calls) -> float:
                with ops.backend(backend):
                    return 1e3 / n_calls * seconds(lambda: [work(counts) for _ in range(n_calls)])

            name = f"{work.name}, forward and backward, {_BATCH} x {n_genes:,}"
            row = Comparison(name, "ms", notes=f"{nonzero:.1%} nonzero", other=_OTHER)
            rows.append(
                alternate(
                    row, settings.repeats, lambda f=milliseconds: f("auto"), lambda f=milliseconds: f("reference")
                )
            )
    return [*rows, *_first_calls()]


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
            f"sparse first layer, {_HIDDEN} units",
            lambda x: ops.sparse_linear(x, weight, bias, log1p=True),
            (weight, bias),
            torch.randn(_BATCH, _HIDDEN, generator=draw),
        ),
    ]


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
    return seconds(lambda: [work(counts) for work in works(counts)])
