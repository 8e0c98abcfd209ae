"""The errors that the docstrings of ops state, measured on the kernels against 50-digit arithmetic.

The reference has no part in it.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import mpmath as mp
import pytest
import torch
from tests.reference import twins
from tests.reference.cases import NB, POISSON, ZINB, Case, entrywise
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Link

pytest.importorskip("numba", reason="the kernels need numba, which some platforms lack")

THETA = (1e-4, 0.02, 0.9, 7.5, 130.0, 1e5, 1e8)
MU = (1e-6, 0.03, 0.9, 1.1, 8.0, 400.0, 1e6)
COUNTS = (0.0, 0.25, 1.0, 2.0, 7.0, 7.5, 8.0, 8.5, 31.0, 5000.0, 1e6)
PI_LOGITS = (-40.0, -15.0, -0.1, 2.0, 40.0)
VALUE = {NB: 2e-6, ZINB: 2e-6, POISSON: 2e-7}
SLOPES = {NB: (2e-6, 2e-6), ZINB: (2e-6, 2e-6, 3e-6), POISSON: (2e-7,)}
FLOOR = 1e-9
ROUNDING = 2.0**-24
LOG_SCALE = 2e-7
COUNT_CASES = pytest.mark.parametrize("case", [NB, ZINB, POISSON], ids=str)


def logs(numbers: tuple[float, ...]) -> list[float]:
    """Logarithms, rounded to float32."""
    return torch.tensor(numbers).log().tolist()


def columns(*axes: tuple[float, ...] | list[float]) -> list[Tensor]:
    """Every combination, as float32."""
    return [torch.tensor(column) for column in zip(*itertools.product(*axes), strict=True)]


def table(case: Case) -> list[Tensor]:
    """Counts, log mu and extras."""
    if case is ZINB:
        counts, mu, theta = (0.0, 1.0, 8.5), MU[::2], THETA[::2]
        return columns(counts, logs(mu), logs(theta), PI_LOGITS)
    return columns(COUNTS, logs(MU), *[logs(THETA)] * (case is NB))


@cache
def witness(case: Case) -> list[Tensor]:
    """Value and slopes by the twin."""
    points = list(zip(*(a.tolist() for a in table(case)), strict=True))
    results = [[twins.evaluate(case.twin, *p) for p in points]]
    results += [[twins.slope(case.twin, *p, by=by) for p in points] for by in range(1, len(points[0]))]
    return [torch.tensor(result, dtype=torch.float64) for result in results]


@cache
def measured(case: Case) -> list[Tensor]:
    """Value and slopes by the kernel; the softmax of one gene is one, so that log mu has no rounding."""
    x, *parameters = table(case)
    for p in parameters:
        p.requires_grad_()
    with ops.backend("cpu"):
        values = entrywise(case, x, *parameters)
        slopes = torch.autograd.grad(values.sum(), parameters)
    return [t.detach().double() for t in (values, *slopes)]


@COUNT_CASES
def test_values(case: Case) -> None:
    error = (measured(case)[0] - witness(case)[0]).abs()
    assert (error / witness(case)[0].abs()).max() < VALUE[case]


@COUNT_CASES
def test_slopes(case: Case) -> None:
    for slope, true, bound in zip(measured(case)[1:], witness(case)[1:], SLOPES[case], strict=True):
        assert (((slope - true).abs() - FLOOR) / (true.abs() + 1e-300)).max() < bound


def around(case: Case, x: float, log_mu: mp.mpf, extras: tuple[float, ...]) -> tuple[float, float, float]:
    """Value, and first and second derivative by log mu."""
    with mp.workdps(3 * twins.DIGITS):
        step = mp.mpf(10) ** -twins.DIGITS
        below, here, above = (case.twin(x, log_mu + k * step, *extras) for k in (-1, 0, 1))
        return float(here), float((above - below) / (2 * step)), float((above - 2 * here + below) / step**2)


def extras_of(case: Case) -> list[tuple[float, ...]]:
    """Some combinations of log theta and log-odds of dropout."""
    axes = [logs((1e-2, 3.0, 1e6)), [-2.0, 9.0]][: len(case.extras)]
    return list(itertools.product(*axes))


def likelihood(case: Case, x: list[list[float]], log_library: list[float], logits: Tensor, extras, link: Link):
    """Run the kernel with extras that are the same in all cells and genes; return value and slopes by logits."""
    logits = logits.clone().requires_grad_()
    filled = dict(zip(case.extras, (torch.full(logits.shape, e) for e in extras), strict=True))
    counts = CountBlock.from_dense(torch.tensor(x))
    with ops.backend("cpu"):
        value = case(logits, torch.tensor(log_library), filled, counts, link)
        (slope,) = torch.autograd.grad(value.sum(), [logits])
    return value.detach().double(), slope.double()


@COUNT_CASES
def test_softplus(case: Case) -> None:
    """One gene: log mu is made from logits, with the rounding that is not the operation's."""
    x, log_library, logits = columns(
        (0.0, 1.0, 2.5, 40.0), (0.0, 6.0), (-12.0, -5.0, -0.3, 0.0, 2.0, 15.0, 80.0, 300.0)
    )
    for extras in extras_of(case):
        value, slope = likelihood(
            case, x[:, None].tolist(), log_library.tolist(), logits[:, None], extras, Link.SOFTPLUS
        )
        for i, (count, library, y) in enumerate(zip(x.tolist(), log_library.tolist(), logits.tolist(), strict=True)):
            with mp.workdps(3 * twins.DIGITS):
                log_scale = twins.log_softplus(y)
                log_mu = log_scale + mp.mpf(library)
            true, first, second = around(case, count, log_mu, extras)
            rounding = ROUNDING * abs(float(log_mu)) + LOG_SCALE * max(1.0, abs(float(log_scale)))
            assert abs(value[i].item() - true) <= VALUE[case] * abs(true) + rounding * abs(first)
            factor = twins.slope(twins.log_softplus, y, by=0)
            allowed = SLOPES[case][0] * abs(first) + FLOOR + rounding * abs(second) + 4e-7 * abs(first)
            assert abs(slope[i, 0].item() - factor * first) <= factor * allowed


@COUNT_CASES
@pytest.mark.parametrize("x", [(0.0, 0.0), (3.0, 0.0), (0.0, 0.5), (12.5, 1.0)])
def test_softmax(case: Case, x: tuple[float, float]) -> None:
    """Two genes: each has its share of the other's slope."""
    library, differences = 5.0, (-16.0, -3.0, 0.0, 0.7, 9.0)
    logits = torch.tensor([[d, 0.0] for d in differences])
    for extras in extras_of(case):
        value, slope = likelihood(case, [list(x)] * len(logits), [library] * len(logits), logits, extras, Link.SOFTMAX)
        for i, d in enumerate(differences):
            log_rho = [-math.log1p(math.exp(-d)), -math.log1p(math.exp(d))]
            with mp.workdps(3 * twins.DIGITS):
                exact = [-mp.log1p(mp.exp(-mp.mpf(d))) + library, -mp.log1p(mp.exp(mp.mpf(d))) + library]
            genes = [around(case, count, log_mu, extras) for count, log_mu in zip(x, exact, strict=True)]
            roundings = [ROUNDING * abs(log_rho[g] + library) + LOG_SCALE * max(1.0, abs(log_rho[g])) for g in range(2)]
            bounds = zip(genes, roundings, strict=True)
            moves = sum(VALUE[case] * abs(v) + r * abs(s) for (v, s, _), r in bounds)
            assert abs(value[i].item() - genes[0][0] - genes[1][0]) <= moves
            errors = [
                SLOPES[case][0] * abs(s) + FLOOR + r * abs(s2) for (_, s, s2), r in zip(genes, roundings, strict=True)
            ]
            total = genes[0][1] + genes[1][1]
            for g in range(2):
                rho = math.exp(log_rho[g])
                true = genes[g][1] - rho * total
                share = sum(errors) + LOG_SCALE * max(1.0, abs(log_rho[g])) * abs(total)
                assert abs(slope[i, g].item() - true) <= errors[g] + rho * share


@pytest.mark.parametrize("count", [0.0, 1.0, 30.0])
def test_far_softplus_has_the_right_slope(count: float) -> None:
    """Logits so low that the softplus underflows in float32 still have the slope of their logarithm, one."""
    logits = torch.tensor([[-90.0], [-200.0], [-1e4]])
    value, slope = likelihood(POISSON, [[count]] * 3, [0.0] * 3, logits, (), Link.SOFTPLUS)
    expected = count * logits[:, 0].double() - math.lgamma(count + 1)
    assert ((value - expected).abs() <= 2e-7 * expected.abs() + 1e-30).all()
    assert ((slope[:, 0] - count).abs() <= 4e-7 * count + FLOOR).all()
