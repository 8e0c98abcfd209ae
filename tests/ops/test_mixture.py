"""Mixture of background and foreground: against 50-digit arithmetic, SciPy and limits."""

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

NAMES = ("log_background", "log_foreground", "mixing_logits", "log_theta")


def twin(x: float, log_background: float, log_foreground: float, mixing_logit: float, log_theta: float):
    """The textbook formula; nothing arranged for stability."""
    m = mp.mpf(mixing_logit)
    background = mp.exp(twins.log_nb(x, log_background, log_theta)) / (1 + mp.exp(-m))
    foreground = mp.exp(twins.log_nb(x, log_foreground, log_theta)) / (1 + mp.exp(m))
    return mp.log(background + foreground)


@cache
def grid() -> tuple[Tensor, ...]:
    """Count and parameters of single entries: numbers that float32 holds, in float64."""
    axes = [
        (0.0, 0.5, 1.0, 40.0, 1e6),
        (-6.0, 2.0, 11.0),
        (2.0, 2.0001, 13.0),
        (-40.0, -1.5, 3.0, 40.0),
        (-9.2, 0.4, 4.0, 18.4),
    ]
    columns = zip(*itertools.product(*axes), strict=True)
    return tuple(torch.tensor(column, dtype=torch.float32).double() for column in columns)


@cache
def witness() -> tuple[Tensor, list[Tensor]]:
    points = list(zip(*(a.tolist() for a in grid()), strict=True))
    values = torch.tensor([twins.evaluate(twin, *p) for p in points], dtype=torch.float64)
    slopes = [torch.tensor([twins.slope(twin, *p, by=by) for p in points], dtype=torch.float64) for by in range(1, 5)]
    return values, slopes


def entrywise(x: Tensor, *parameters: Tensor) -> Tensor:
    """Single entries as cells of one protein."""
    return ops.negative_binomial_mixture(*(p[:, None] for p in parameters), CountBlock.from_dense(x[:, None]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_slopes_against_mpmath(dtype: torch.dtype) -> None:
    x, *parameters = (a.to(dtype, copy=True) for a in grid())
    for p in parameters:
        p.requires_grad_()
    values = entrywise(x, *parameters)
    slopes = torch.autograd.grad(values.sum(), parameters)
    expected, expected_slopes = witness()
    relative = 2e-7 if dtype == torch.float32 else 1e-9
    assert ((values.double() - expected).abs() <= relative * expected.abs()).all()
    x, background, foreground, _, _ = grid()
    # The slopes are made of terms as large as x + mu, that cancel; shares of the components have the error of d.
    size = x + torch.maximum(background, foreground).exp()
    for name, value, true in zip(NAMES, slopes, expected_slopes, strict=True):
        bound = relative * true.abs() + 1e-12 * size + 1e-14
        assert ((value.double() - true).abs() <= bound).all(), name


@pytest.mark.parametrize("pi", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("theta", [0.3, 20.0])
def test_against_scipy(pi: float, theta: float) -> None:
    rng = np.random.default_rng(0)
    background = rng.lognormal(1.0, 0.5, (5, 4))
    foreground = background * rng.lognormal(2.0, 0.5, (5, 4))
    x = rng.poisson(np.where(rng.random((5, 4)) < pi, background, foreground))
    x[0] = 0
    actual = ops.negative_binomial_mixture(
        torch.tensor(background).log(),
        torch.tensor(foreground).log(),
        torch.full((5, 4), pi, dtype=torch.float64).logit(),
        torch.full((4,), theta, dtype=torch.float64).log(),
        CountBlock.from_dense(torch.tensor(x).double()),
    )
    one, two = (stats.nbinom(theta, theta / (theta + mu)).pmf(x) for mu in (background, foreground))
    np.testing.assert_allclose(actual, np.log(pi * one + (1 - pi) * two).sum(1), rtol=1e-10)


def problem(samples: tuple[int, ...] = (), cells: int = 5, proteins: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = torch.poisson(normal(cells, proteins).exp() * 4, generator=generator)
    x[0] = 0.0
    return {
        "log_background": normal(*samples, cells, proteins),
        "log_foreground": normal(*samples, cells, proteins) + 2,
        "mixing_logits": 2 * normal(*samples, cells, proteins),
        "log_theta": normal(proteins),
        "x": x,
        "measured": torch.rand(cells, proteins, generator=generator) < 0.7,
    }


def evaluate(p: dict[str, Tensor], masked: bool = False) -> Tensor:
    measured = p["measured"] if masked else None
    return ops.negative_binomial_mixture(*(p[name] for name in NAMES), CountBlock.from_dense(p["x"]), measured)


@pytest.mark.parametrize("samples", [(), (2,)])
@pytest.mark.parametrize("per", ["protein", "cell", "sample"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(samples: tuple[int, ...], per: str, masked: bool) -> None:
    p = problem(samples)
    shape = {"protein": (3,), "cell": (5, 3), "sample": (*samples, 5, 3)}[per]
    p["log_theta"] = p["log_theta"].expand(shape).clone()
    tensors = [p[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *t: evaluate({**p, **dict(zip(NAMES, t, strict=True))}, masked), tensors)


def test_samples_are_a_loop() -> None:
    p = problem((2, 3))
    together = evaluate(p, masked=True)
    assert together.shape == (2, 3, 5)
    for s in ((0, 0), (1, 2)):
        one = {name: p[name][s] for name in NAMES[:3]}
        torch.testing.assert_close(together[s], evaluate({**p, **one}, masked=True))


def test_what_was_not_measured_contributes_nothing() -> None:
    """Against the proteins that were, cell by cell, whatever stands where nothing was measured."""
    p = problem()
    spoilt = {**p, **{name: p[name].clone() for name in NAMES[:3]}, "x": p["x"].clone()}
    for name in ("log_background", "mixing_logits", "x"):
        spoilt[name][~p["measured"]] = torch.nan
    spoilt["log_foreground"][~p["measured"]] = 300.0
    tensors = [spoilt[name].requires_grad_() for name in NAMES]
    value = evaluate(spoilt, masked=True)
    gradients = torch.autograd.grad(value.sum(), tensors)
    for i in range(5):
        kept = p["measured"][i]
        own = {name: p[name][i : i + 1, kept] for name in (*NAMES[:3], "x")}
        torch.testing.assert_close(value[i : i + 1], evaluate({**own, "log_theta": p["log_theta"][kept]}))
    for gradient in gradients[:3]:
        assert not gradient[~p["measured"]].any()
        assert gradient[p["measured"]].all()


@pytest.mark.parametrize(("logit", "which"), [(1e4, 0), (-1e4, 1)])
def test_certain_components_are_negative_binomials(logit: float, which: int) -> None:
    p = problem(seed=1)
    p["mixing_logits"].fill_(logit)
    log_mu = p[NAMES[which]]
    nb = stats.nbinom.logpmf(p["x"], p["log_theta"].exp(), torch.sigmoid(p["log_theta"] - log_mu))
    np.testing.assert_allclose(evaluate(p), nb.sum(1), rtol=1e-10)


def test_equal_components_are_one() -> None:
    """The mixing then has no effect, and exactly no slope."""
    p = problem(seed=2)
    p["log_foreground"] = p["log_background"].clone()
    mixing = p["mixing_logits"].requires_grad_()
    value = evaluate(p)
    nb = stats.nbinom.logpmf(p["x"], p["log_theta"].exp(), torch.sigmoid(p["log_theta"] - p["log_background"]))
    np.testing.assert_allclose(value.detach(), nb.sum(1), rtol=1e-10)
    assert not torch.autograd.grad(value.sum(), mixing)[0].any()


def test_components_may_be_exchanged() -> None:
    p = problem(seed=3)
    mirrored = {**p, "log_background": p["log_foreground"], "log_foreground": p["log_background"]}
    torch.testing.assert_close(evaluate(p), evaluate({**mirrored, "mixing_logits": -p["mixing_logits"]}))


@pytest.mark.parametrize("theta", [0.5, 30.0])
def test_probabilities_sum_to_one(theta: float) -> None:
    x = torch.arange(6000, dtype=torch.float64)
    log_p = entrywise(x, *(torch.full_like(x, p) for p in (0.3, 4.0, 0.7, np.log(theta))))
    assert abs(log_p.exp().sum().item() - 1) < 1e-9


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    log_background=st.floats(-70, 70, width=32),
    log_foreground=st.floats(-70, 70, width=32),
    mixing_logit=st.floats(-1e4, 1e4, width=32),
    log_theta=st.floats(-70, 70, width=32),
    count=st.floats(0, 1e6, width=32),
)
def test_nothing_is_nan(log_background, log_foreground, mixing_logit, log_theta, count) -> None:
    tensors = [torch.full((2, 1), p) for p in (log_background, log_foreground, mixing_logit, log_theta)]
    tensors = [t.requires_grad_() for t in tensors]
    value = ops.negative_binomial_mixture(*tensors, CountBlock.from_dense(torch.tensor([[count], [0.0]])))
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), tensors))
