"""The likelihoods of counts around a rate in one table, so that every law is tested on each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp
import torch
from tests.reference import twins
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.normal import Normal
from countvi.likelihoods.poisson import Poisson
from countvi.likelihoods.zero_inflated import ZeroInflatedNegativeBinomial
from countvi.ops import Link


@dataclass(frozen=True)
class Case:
    """An operation, what it takes besides logits and library, its slow twin, and the distribution that calls it."""

    name: str
    operation: Callable[..., Tensor]
    extras: tuple[str, ...]
    twin: Callable[..., mp.mpf]
    likelihood: Callable[..., CountLikelihood]

    def __call__(
        self, logits: Tensor, log_library: Tensor, extras: dict[str, Tensor], counts: CountBlock, link: Link
    ) -> Tensor:
        return self.operation(logits, log_library, *(extras[name] for name in self.extras), counts, link)

    def __str__(self) -> str:
        return self.name


NB = Case("nb", ops.negative_binomial, ("log_theta",), twins.log_nb, NegativeBinomial)
ZINB = Case(
    "zinb",
    ops.zero_inflated_negative_binomial,
    ("log_theta", "pi_logits"),
    twins.log_zinb,
    ZeroInflatedNegativeBinomial,
)
POISSON = Case("poisson", ops.poisson, (), twins.log_poisson, Poisson)
NORMAL = Case("normal", ops.normal, ("log_scale",), twins.log_normal, Normal)
CASES = (NB, ZINB, POISSON, NORMAL)


@dataclass(frozen=True)
class Problem:
    """Random parameters and counts, float64."""

    logits: Tensor
    log_library: Tensor
    extras: dict[str, Tensor]
    counts: CountBlock

    def tensors(self, case: Case) -> list[Tensor]:
        """Return what the operation differentiates, in order."""
        return [self.logits, self.log_library, *(self.extras[name] for name in case.extras)]

    def evaluate(self, case: Case, link: Link, *tensors: Tensor) -> Tensor:
        """Call the operation on other tensors than the problem's."""
        logits, log_library, *rest = tensors
        return case(logits, log_library, dict(zip(case.extras, rest, strict=True)), self.counts, link)


def problem(
    cells: int, genes: int, samples: tuple[int, ...] = (), seed: int = 0, density: float = 0.3, per: str = "gene"
) -> Problem:
    """Draw a problem. ``per`` is what has a dispersion of its own: gene, cell or sample."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    own = {"gene": (genes,), "cell": (cells, genes), "sample": (*samples, cells, genes)}[per]
    dense = torch.poisson(torch.exp(1.5 * normal(cells, genes) + 1), generator=generator)
    keep = torch.rand(cells, genes, generator=generator) < density
    return Problem(
        logits=2 * normal(*samples, cells, genes),
        log_library=normal(cells) + 2,
        extras={
            "log_theta": 2 * normal(*own),
            "pi_logits": 2 * normal(*samples, cells, genes),
            "log_scale": normal(*own),
        },
        counts=CountBlock.from_dense(dense * keep),
    )


def entrywise(case: Case, x: Tensor, log_mu: Tensor, *extras: Tensor) -> Tensor:
    """Evaluate single entries: cells of one gene, whose softmax is one, so that log mu is the log library exactly."""
    columns = {name: value[:, None] for name, value in zip(case.extras, extras, strict=True)}
    counts = CountBlock.from_dense(x[:, None])
    return case(torch.zeros_like(x)[:, None], log_mu, columns, counts, Link.SOFTMAX)
