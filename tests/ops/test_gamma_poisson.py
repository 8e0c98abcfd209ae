"""Counts around a rate with background and scaling: against 50-digit arithmetic, SciPy and limits."""

from __future__ import annotations

import itertools
from functools import cache

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.reference import twins
from torch import Tensor

from countvi import ops
from countvi.batch import CountBlock
from countvi.ops import Indexed, Link

NAMES = ("logits", "log_library", "log_theta", "log_background", "log_scaling")


def twin(x: float, logit: float, log_library: float, log_theta: float, log_background: float, log_scaling: float):
    """The textbook formula; nothing arranged for stability."""
    rho = mp.log1p(mp.exp(mp.mpf(logit))) + mp.exp(mp.mpf(log_background))
    return twins.log_nb(x, mp.mpf(log_library) + mp.mpf(log_scaling) + mp.log(rho), log_theta)


@cache
def grid() -> tuple[Tensor, ...]:
    """Count and parameters of single entries: numbers that float32 holds, in float64."""
    axes = [
        (0.0, 1.0, 40.0, 1e5),
        (-60.0, -8.0, 0.3, 25.0),
        (-3.0, 4.0),
        (-4.0, 2.0, 15.0),
        (-20.0, -4.0, 1.0),
        (-0.5, 0.2),
    ]
    columns = zip(*itertools.product(*axes), strict=True)
    return tuple(torch.tensor(column, dtype=torch.float32).double() for column in columns)


@cache
def witness() -> tuple[Tensor, list[Tensor]]:
    points = list(zip(*(a.tolist() for a in grid()), strict=True))
    values = torch.tensor([twins.evaluate(twin, *p) for p in points], dtype=torch.float64)
    slopes = [torch.tensor([twins.slope(twin, *p, by=by) for p in points], dtype=torch.float64) for by in range(1, 6)]
    return values, slopes


def entrywise(x: Tensor, *parameters: Tensor) -> Tensor:
    """Single entries as cells of one gene, each with rows of its own."""
    logits, log_library, *tables = parameters
    rows = [Indexed(table[:, None], torch.arange(len(x))) for table in tables]
    return ops.gamma_poisson(logits[:, None], log_library, *rows, CountBlock.from_dense(x[:, None]))


def measured(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    x, *parameters = (a.to(dtype, copy=True) for a in grid())
    for p in parameters:
        p.requires_grad_()
    values = entrywise(x, *parameters)
    return values.detach().double(), [g.double() for g in torch.autograd.grad(values.sum(), parameters)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_slopes_against_mpmath(dtype: torch.dtype) -> None:
    values, slopes = measured(dtype)
    expected, expected_slopes = witness()
    single = dtype == torch.float32
    assert ((values - expected).abs() / expected.abs()).max() < (2e-6 if single else 1e-9)
    # What rounding log mu does to the slope by log theta is at most this times the slope by log mu.
    carried = 4 * torch.finfo(dtype).eps * expected_slopes[1].abs()
    cancelled = 1e-9 if single else 10 * torch.finfo(dtype).eps * grid()[0].max().item()
    for name, value, true in zip(NAMES, slopes, expected_slopes, strict=True):
        if name == "log_theta":
            bound = 3e-6 * true.abs() + cancelled + carried
        else:
            bound = (3e-6 if single else 1e-12) * true.abs()
        assert ((value - true).abs() <= bound).all(), name


@pytest.mark.parametrize("background", [0.0, 0.02, 3.0])
@pytest.mark.parametrize("theta", [0.3, 20.0])
def test_against_scipy(background: float, theta: float) -> None:
    rng = np.random.default_rng(0)
    logits, library = rng.normal(size=(5, 4)), rng.lognormal(2.0, 0.5, 5)
    scaling = rng.lognormal(0.0, 0.2, 4)
    mu = library[:, None] * (np.log1p(np.exp(logits)) + background) * scaling
    x = rng.poisson(mu)
    actual = ops.gamma_poisson(
        torch.tensor(logits),
        torch.tensor(library).log(),
        Indexed(torch.full((1, 4), theta, dtype=torch.float64).log(), None),
        Indexed(torch.full((1, 4), background, dtype=torch.float64).log(), None),
        Indexed(torch.tensor(scaling).log()[None], None),
        CountBlock.from_dense(torch.tensor(x).double()),
    )
    np.testing.assert_allclose(actual, stats.nbinom.logpmf(x, theta, theta / (theta + mu)).sum(1), rtol=1e-10)


def problem(samples: tuple[int, ...] = (), cells: int = 5, genes: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Parameters: two rows of dispersion, three of background, one of scaling."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "logits": 2 * normal(*samples, cells, genes),
        "log_library": normal(cells) + 1,
        "log_theta": normal(2, genes),
        "log_background": normal(3, genes) - 1,
        "log_scaling": 0.3 * normal(1, genes),
        "x": torch.poisson(normal(cells, genes).exp() * 2, generator=generator),
    }


def code(n_rows: int, cells: int) -> Tensor | None:
    return None if n_rows == 1 else torch.arange(cells).mul(7).remainder(n_rows)


def evaluate(p: dict[str, Tensor]) -> Tensor:
    cells = p["x"].shape[0]
    rows = [Indexed(p[name], code(len(p[name]), cells)) for name in NAMES[2:]]
    return ops.gamma_poisson(p["logits"], p["log_library"], *rows, CountBlock.from_dense(p["x"]))


@pytest.mark.parametrize("samples", [(), (2,)])
def test_gradients(samples: tuple[int, ...]) -> None:
    p = problem(samples)
    tensors = [p[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *t: evaluate({**p, **dict(zip(NAMES, t, strict=True))}), tensors)


def test_rows_are_gathered_and_their_slopes_summed() -> None:
    """Against cells one by one, each with tables of a single row."""
    p = problem()
    tables = {name: p[name].requires_grad_() for name in NAMES[2:]}
    together = evaluate(p)
    slopes = torch.autograd.grad(together.sum(), list(tables.values()))
    by_hand = {name: torch.zeros_like(table) for name, table in tables.items()}
    for i in range(5):
        taken = {name: 0 if len(t) == 1 else int(code(len(t), 5)[i]) for name, t in tables.items()}
        own = {name: tables[name].detach()[row : row + 1].requires_grad_() for name, row in taken.items()}
        alone = evaluate({**p, **own, **{name: p[name][i : i + 1] for name in ("logits", "log_library", "x")}})
        torch.testing.assert_close(alone[0], together[i])
        for name, slope in zip(own, torch.autograd.grad(alone.sum(), list(own.values())), strict=True):
            by_hand[name][taken[name]] += slope[0]
    for name, slope in zip(tables, slopes, strict=True):
        torch.testing.assert_close(slope, by_hand[name], msg=name)


def test_samples_are_a_loop() -> None:
    p = problem((2, 3))
    together = evaluate(p)
    assert together.shape == (2, 3, 5)
    for s in ((0, 0), (1, 2)):
        torch.testing.assert_close(together[s], evaluate({**p, "logits": p["logits"][s]}))
    library = p["log_library"] + torch.arange(6.0).view(2, 3, 1)
    shifted = evaluate({**p, "log_library": library})
    torch.testing.assert_close(
        shifted[1, 2], evaluate({**p, "logits": p["logits"][1, 2], "log_library": library[1, 2]})
    )


def test_without_background_and_scaling_it_is_the_negative_binomial() -> None:
    p = problem()
    counts = CountBlock.from_dense(p["x"])
    theta = Indexed(p["log_theta"][:1], None)
    expected = ops.negative_binomial(p["logits"], p["log_library"], theta.table[0], counts, Link.SOFTPLUS)
    plain = ops.gamma_poisson(p["logits"], p["log_library"], theta, None, None, counts)
    torch.testing.assert_close(plain, expected)
    nothing = Indexed(torch.full((1, 3), -torch.inf, dtype=torch.float64), None)
    one = Indexed(torch.zeros(1, 3, dtype=torch.float64), None)
    torch.testing.assert_close(ops.gamma_poisson(p["logits"], p["log_library"], theta, nothing, one, counts), expected)


def test_a_background_without_expression_is_the_background() -> None:
    """Where the softplus underflows, what is left is library x background, and the slope by the logits is zero."""
    x, log_b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.4, -30.0]])
    logits = torch.full((1, 2), -1e4, requires_grad=True)
    theta = Indexed(torch.zeros(1, 2), None)
    value = ops.gamma_poisson(logits, torch.ones(1), theta, Indexed(log_b, None), None, CountBlock.from_dense(x))
    mu = np.exp(1.0 + log_b.numpy())
    np.testing.assert_allclose(value.detach(), stats.nbinom.logpmf(x.numpy(), 1.0, 1.0 / (1.0 + mu)).sum(1), rtol=1e-5)
    assert not torch.autograd.grad(value.sum(), logits)[0].any()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    logit=st.floats(-1e4, 1e3, width=32),
    log_library=st.one_of(st.just(-torch.inf), st.floats(-50, 50, width=32)),
    log_theta=st.floats(-60, 60, width=32),
    log_background=st.one_of(st.just(-torch.inf), st.floats(-200, 20, width=32)),
    count=st.floats(0, 1e6, width=32),
)
def test_nothing_is_nan(logit, log_library, log_theta, log_background, count) -> None:
    x = torch.zeros(2, 2)
    if log_library > -torch.inf:
        x[0, 0] = count
    tensors = [torch.full((2, 2), logit), torch.full((2,), log_library)]
    tensors += [torch.full((1, 2), value) for value in (log_theta, log_background, 0.5)]
    tensors = [t.requires_grad_() for t in tensors]
    value = ops.gamma_poisson(*tensors[:2], *(Indexed(t, None) for t in tensors[2:]), CountBlock.from_dense(x))
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), tensors))


def test_an_empty_cell_without_a_library_is_certain() -> None:
    p = problem()
    p["x"][0] = 0.0
    p["log_library"][0] = -torch.inf
    tensors = [p[name].requires_grad_() for name in NAMES]
    value = evaluate(p)
    assert value[0] == 0
    logits, library, *_ = torch.autograd.grad(value.sum(), tensors)
    assert not logits[0].any() and library[0] == 0
    p["x"][0] = 1.0
    assert evaluate({name: tensor.detach() for name, tensor in p.items()})[0] == -torch.inf


def test_whole_cells_in_float32() -> None:
    p = problem(cells=6, genes=4000, seed=3)
    single = {name: tensor.float() for name, tensor in p.items()}
    results = []
    for version in (single, {name: tensor.double() for name, tensor in single.items()}):
        tensors = [version[name].requires_grad_() for name in NAMES]
        value = evaluate(version)
        results.append((value.detach().double(), *torch.autograd.grad(value.sum(), tensors)))
    (value32, *slopes32), (value64, *slopes64) = results
    assert ((value32 - value64) / value64).abs().max() < 1e-6
    for a, b in zip(slopes32, slopes64, strict=True):
        assert (a.double() - b).norm() < 1e-5 * b.norm()
