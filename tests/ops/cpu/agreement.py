"""What a kernel in float32 may differ by from the float64 reference: the bounds that the docstrings of ops state.

Each entry of the count matrix may be off by the stated error, and by what the result changes when log mu moves by its
own rounding. The second is found by moving it: the reference is evaluated at log mu plus and minus the rounding. With
zero inflation, what counts at a zero is the distance between the log-odds and the negative binomial's log-probability,
so the log-odds are moved by the error that is stated for that. The chain rule carries the errors of the entries to sums
and through the link.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tests.reference.cases import NB, POISSON, ZINB, Case, entrywise
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Link

COUNT_CASES = (NB, ZINB, POISSON)
LINKS = tuple(Link)
WHOLE = 2_000
"""A cell of at least so many genes is held to the error that is stated for whole cells."""

_UNIT = 2.0**-24
_ENTRY = {"nb": 2e-6, "zinb": 2e-6, "poisson": 2e-7}
_PI_SLOPE = 3e-6
_FLOOR = 1e-9
_LOG_SCALE = 2e-7
_WHOLE_CELL = 1e-6
_LOWEST_MEAN = 1e-6
_SOFTPLUS_SLOPE = 4e-7


@dataclass(frozen=True)
class Inputs:
    """Arguments of the likelihoods. Numbers are float32, or float64 that float32 holds."""

    logits: Tensor
    log_library: Tensor
    extras: dict[str, Tensor]
    counts: CountBlock

    def tensors(self, case: Case) -> list[Tensor]:
        """Return what the operation differentiates, in order, detached."""
        return [t.detach() for t in (self.logits, self.log_library, *(self.extras[name] for name in case.extras))]

    def evaluate(self, case: Case, link: Link, tensors: list[Tensor]) -> Tensor:
        """Call the operation on other tensors."""
        logits, log_library, *rest = tensors
        return case(logits, log_library, dict(zip(case.extras, rest, strict=True)), self.counts, link)

    def double(self) -> Inputs:
        """Cast everything to float64."""
        extras = {name: value.detach().double() for name, value in self.extras.items()}
        counts = self.counts.to(dtype=torch.float64)
        counts = dataclasses.replace(counts, columns=counts.columns.long(), offsets=counts.offsets.long())
        return Inputs(self.logits.detach().double(), self.log_library.detach().double(), extras, counts)

    def cells(self, chosen: slice) -> Inputs:
        """Return some of the cells; theta is per gene."""
        counts = CountBlock.from_dense(self.counts.to_dense()[chosen])
        extras = {name: value if value.ndim == 1 else value[..., chosen, :] for name, value in self.extras.items()}
        return Inputs(self.logits[..., chosen, :], self.log_library[..., chosen], extras, counts)


def draw(
    cells: int,
    genes: int,
    seed: int = 0,
    per: str = "gene",
    samples: tuple[int, ...] = (),
    logits: tuple[float, float] = (-4.0, 4.0),
    pi_logits: tuple[float, float] = (-6.0, 6.0),
    theta: tuple[float, float] = (1e-4, 1e8),
    largest: float = 1e6,
    density: float = 0.15,
) -> Inputs:
    """Draw parameters uniformly (theta in logarithm), and counts of every kind, with stored zeros and empty cells.

    Parameters
    ----------
    per
        What has a dispersion of its own: gene, cell or sample.
    samples
        Leading axes of logits and pi_logits.
    largest
        About the largest count; most are small.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)).float()

    own = {"gene": (genes,), "cell": (cells, genes), "sample": (*samples, cells, genes)}[per]
    small = torch.floor(torch.exp(uniform(0, 4, cells, genes)))
    fraction = torch.floor(uniform(1, 200, cells, genes)) / 8
    large = torch.floor(torch.exp(uniform(0, math.log(largest), cells, genes)))
    kind = uniform(0, 1, cells, genes)
    values = torch.where(kind < 0.6, small, torch.where(kind < 0.8, fraction, torch.where(kind < 0.95, large, 0.0)))
    is_stored = uniform(0, 1, cells, genes) < density
    is_stored[1::5] = False
    rows, columns = is_stored.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), is_stored.sum(1).cumsum(0)])
    return Inputs(
        logits=uniform(*logits, *samples, cells, genes),
        log_library=uniform(0, math.log(1e5), cells),
        extras={
            "log_theta": uniform(math.log(theta[0]), math.log(theta[1]), *own),
            "pi_logits": uniform(*pi_logits, *samples, cells, genes),
        },
        counts=CountBlock(values[rows, columns], columns, offsets, n_features=genes),
    )


def draw_weight(shape: torch.Size, seed: int = 0) -> Tensor:
    """Draw what the likelihoods of the cells are multiplied by; some are zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight * (torch.rand(shape, generator=generator) < 0.8)


def run(inputs: Inputs, case: Case, link: Link, weight: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Return the value and the gradients of its weighted sum, on the backend in force."""
    tensors = [t.clone().requires_grad_() for t in inputs.tensors(case)]
    value = inputs.evaluate(case, link, tensors)
    weight = torch.ones_like(value) if weight is None else weight.to(value.dtype)
    return value.detach(), list(torch.autograd.grad(value, tensors, weight))


@dataclass(frozen=True)
class Entries:
    """Value and slopes at each entry, by log mu and the extras, and how far they may be off."""

    value: Tensor
    slopes: list[Tensor]
    value_moves: Tensor
    errors: list[Tensor]


def entries(case: Case, x: Tensor, log_mu: Tensor, rounding: Tensor, extras: list[Tensor]) -> Entries:
    """Evaluate the reference at each entry, where log mu is, and where its rounding may put it."""
    shape, flat_x = log_mu.shape, x.expand(log_mu.shape).flatten()

    def evaluate(which: Case, *parameters: Tensor) -> list[Tensor]:
        point = [t.expand(shape).flatten().clone().requires_grad_() for t in parameters]
        value = entrywise(which, flat_x, *point)
        return [t.detach().view(shape) for t in (value, *torch.autograd.grad(value.sum(), point))]

    def moves(*around: list[Tensor]) -> list[Tensor]:
        return [torch.stack([(there[i] - here[i]).abs() for there in around]).amax(0) for i in range(len(here))]

    here = evaluate(case, log_mu, *extras)
    moved = moves(*(evaluate(case, log_mu + sign * rounding, *extras) for sign in (1, -1)))
    if case is ZINB:
        distance = torch.where(x > 0, 0.0, _ENTRY[NB.name] * evaluate(NB, log_mu, extras[0])[0].abs())
        odds = moves(*(evaluate(case, log_mu, extras[0], extras[1] + sign * distance) for sign in (1, -1)))
        moved = [moved[0], *(a + b for a, b in zip(moved[1:], odds[1:], strict=True))]
    bounds = [_ENTRY[case.name]] * 2 + [_PI_SLOPE]
    errors = [b * s.abs() + _FLOOR + m for b, s, m in zip(bounds, here[1:], moved[1:], strict=False)]
    return Entries(here[0], here[1:], moved[0].nan_to_num(0.0), errors)


def tolerances(inputs: Inputs, case: Case, link: Link, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the largest admissible difference of the value and of each gradient."""
    exact = inputs.double()
    x, extras = exact.counts.to_dense(), [exact.extras[name] for name in case.extras]
    log_scale, log_mu = ops.log_scale(exact.logits, link), ops.log_rate(exact.logits, exact.log_library, link)
    shape = torch.broadcast_shapes(log_mu.shape, *(e.shape for e in extras))
    relative = _LOG_SCALE * log_scale.abs().clamp(min=1.0)
    rounding = torch.where(log_mu.isfinite(), _UNIT * log_mu.abs() + relative, 0.0).expand(shape)
    at = entries(case, x, log_mu.expand(shape), rounding, extras)

    genes = shape[-1]
    per_entry = _ENTRY[case.name]
    per_cell = per_entry if genes == 1 else _WHOLE_CELL if genes >= WHOLE else max(per_entry, _WHOLE_CELL)
    # For means below those that the docstrings speak of, what they say about the smallest.
    value = (per_cell * at.value.abs().clamp(min=_LOWEST_MEAN) + at.value_moves).sum(-1)

    weight = weight.double().abs()[..., None]
    by_log_mu, slope = at.errors[0], at.slopes[0]
    total = by_log_mu.sum(-1, keepdim=True)
    if link is Link.SOFTMAX:
        rho = log_scale.exp()
        logits = by_log_mu + rho * (total + relative * slope.sum(-1, keepdim=True).abs())
    else:
        factor = torch.exp(torch.nn.functional.logsigmoid(exact.logits) - log_scale)
        logits = factor * (by_log_mu + _SOFTPLUS_SLOPE * slope.abs())
    allowed = [logits * weight, total * weight, *(e * weight for e in at.errors[1:])]
    allowed[1] = allowed[1][..., 0]
    return value, [a.sum_to_size(t.shape) for a, t in zip(allowed, exact.tensors(case), strict=True)]


def assert_within(actual: Tensor, expected: Tensor, allowed: Tensor) -> None:
    """Compare, and show the worst."""
    assert actual.shape == expected.shape
    is_finite = expected.isfinite()
    assert torch.equal(actual.double()[~is_finite], expected[~is_finite])
    difference = torch.where(is_finite, (actual.double() - expected).abs(), 0.0)
    excess = torch.where(difference == 0, 0.0, difference / allowed)
    if not (excess <= 1).all():
        worst = excess.nan_to_num(math.inf).argmax()
        place = tuple(int(i) for i in torch.unravel_index(worst, excess.shape))
        message = f"{int((~(excess <= 1)).sum())} of {excess.numel()}; at {place}: {actual[place]:.9g}"
        raise AssertionError(f"{message} for {expected[place]:.9g}, may be off by {allowed[place]:.3g}")


def assert_agrees(inputs: Inputs, case: Case, link: Link, weight: Tensor | None = None) -> None:
    """Compare value and gradients on the backend ``cpu`` with the reference in float64."""
    with ops.backend("cpu"):
        value, gradients = run(inputs, case, link, weight)
    assert all(t.dtype == torch.float32 for t in (value, *gradients))
    with ops.backend("reference"):
        expected, expected_gradients = run(inputs.double(), case, link, weight)
        allowed, allowed_gradients = tolerances(
            inputs, case, link, torch.ones_like(value) if weight is None else weight
        )
    assert_within(value, expected, allowed)
    for triple in zip(gradients, expected_gradients, allowed_gradients, strict=True):
        assert_within(*triple)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute on so many threads in the ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
