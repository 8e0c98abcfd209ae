"""The errors that the docstrings of the operations state, measured against 50-digit arithmetic."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from tests.reference import twins
from tests.reference.cases import CASES, NB, NORMAL, POISSON, ZINB, Case, entrywise, problem
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Link

THETA = (1e-4, 0.3, 7.0, 16.0, 1e4, 1e8)
MU = (1e-6, 0.1, 1.0, 30.0, 1e6)
COUNTS = (0.0, 0.5, 1.0, 5.0, 40.0, 1e6)
PI_LOGITS = (-40.0, -3.0, 0.5, 40.0)
LINKS = tuple(Link)


@cache
def grid(case: Case) -> tuple[Tensor, ...]:
    """Arguments of the twin: x, log mu, extras; numbers that float32 holds exactly, in float64."""
    log_mu, log_theta = torch.tensor(MU).log().tolist(), torch.tensor(THETA).log().tolist()
    axes = [COUNTS, log_mu]
    axes += [{"log_theta": log_theta, "pi_logits": PI_LOGITS, "log_scale": (-3.0, 0.25, 5.0)}[e] for e in case.extras]
    if case is ZINB:  # what theta does is seen in the other table
        axes[2] = log_theta[1::2]
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*itertools.product(*axes), strict=True))


@cache
def witness(case: Case) -> tuple[Tensor, list[Tensor]]:
    """Values and slopes by the twin."""
    points = list(zip(*(a.tolist() for a in grid(case)), strict=True))
    values = torch.tensor([twins.evaluate(case.twin, *p) for p in points], dtype=torch.float64)
    slopes = [
        torch.tensor([twins.slope(case.twin, *p, by=by) for p in points], dtype=torch.float64)
        for by in range(1, len(points[0]))
    ]
    return values, slopes


def measured(case: Case, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    x, *parameters = (a.to(dtype, copy=True) for a in grid(case))
    for p in parameters:
        p.requires_grad_()
    values = entrywise(case, x, *parameters)
    return values.detach().double(), [g.double() for g in torch.autograd.grad(values.sum(), parameters)]


@pytest.mark.parametrize("case", [NB, ZINB, POISSON], ids=str)
def test_values_in_float32(case: Case) -> None:
    values, _ = measured(case, torch.float32)
    expected, _ = witness(case)
    bound = 2e-7 if case is POISSON else 2e-6
    assert ((values - expected).abs() / expected.abs()).max() < bound


@pytest.mark.parametrize("case", [NB, ZINB, POISSON], ids=str)
def test_slopes_in_float32(case: Case) -> None:
    _, slopes = measured(case, torch.float32)
    _, expected = witness(case)
    relative, floor = {NB: (2e-6, 1e-9), ZINB: (3e-6, 1e-9), POISSON: (2e-7, 1e-9)}[case]
    for slope, true in zip(slopes, expected, strict=True):
        assert ((slope - true).abs() - floor).div(true.abs() + 1e-300).max() < relative


@pytest.mark.parametrize("case", [NB, ZINB, POISSON], ids=str)
def test_values_and_slopes_in_float64(case: Case) -> None:
    values, slopes = measured(case, torch.float64)
    expected, expected_slopes = witness(case)
    # lgamma(1e6) in float64 has an error of 2e-9, and the sum is of order 10.
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=0)
    # The slopes are made of ten terms, some as large as x + mu, that cancel.
    x, log_mu = grid(case)[:2]
    rounding = 10 * torch.finfo(torch.float64).eps * (x + log_mu.exp())
    for slope, true in zip(slopes, expected_slopes, strict=True):
        assert ((slope - true).abs() <= rounding + 1e-9 * true.abs()).all()


def test_normal() -> None:
    x, log_mu, log_scale = grid(NORMAL)
    expected, expected_slopes = witness(NORMAL)
    mu, sigma = log_mu.exp(), log_scale.exp()
    # The mean is rounded before it is subtracted.
    scale = torch.stack([torch.ones_like(x), log_scale.abs(), (x + mu) * (x - mu).abs() / sigma**2]).amax(0)
    for dtype, bound in ((torch.float64, 1e-15), (torch.float32, 5e-7)):
        values, _ = measured(NORMAL, dtype)
        assert ((values - expected).abs() / scale).max() < bound
    _, slopes = measured(NORMAL, torch.float64)
    for slope, true in zip(slopes, expected_slopes, strict=True):
        assert ((slope - true).abs() <= 1e-14 * (1 + (x + mu) ** 2 / sigma**2)).all()


@pytest.mark.parametrize("genes", [2_000, 20_000])
@pytest.mark.parametrize("link", LINKS)
def test_whole_cells_in_float32(genes: int, link: Link) -> None:
    """The float64 operation, which the tables above check, is the witness for sums over many genes."""
    data = problem(8, genes, seed=genes, density=0.1)
    counts = data.counts.to(dtype=torch.float32)
    for case in (NB, ZINB):
        single = [t.float() for t in (data.logits, counts.totals().log(), *(data.extras[e] for e in case.extras))]
        single32 = [t.clone().requires_grad_() for t in single]
        single64 = [t.double().requires_grad_() for t in single]
        value32 = problem_like(case, single32, counts, link)
        value64 = problem_like(case, single64, counts.to(dtype=torch.float64), link)
        assert ((value32.double() - value64) / value64).abs().max() < 1e-6
        for g32, g64 in zip(
            torch.autograd.grad(value32.sum(), single32), torch.autograd.grad(value64.sum(), single64), strict=True
        ):
            assert (g32.double() - g64).norm() < 1e-5 * g64.norm()


def problem_like(case: Case, tensors: list[Tensor], counts: CountBlock, link: Link) -> Tensor:
    logits, log_library, *rest = tensors
    return case(logits, log_library, dict(zip(case.extras, rest, strict=True)), counts, link)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("per", ["gene", "cell"])
def test_a_small_matrix_entry_by_entry(case: Case, link: Link, per: str) -> None:
    """Gather, place and sum: the twin knows nothing of sparse rows."""
    data = problem(3, 4, seed=5, per=per)
    log_mu = ops.log_rate(data.logits, data.log_library, link)
    arguments = [data.counts.to_dense(), log_mu, *(data.extras[e].expand(3, 4) for e in case.extras)]
    expected = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            expected[i] += twins.evaluate(case.twin, *(a[i, j].item() for a in arguments))
    actual = data.evaluate(case, link, *data.tensors(case))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
