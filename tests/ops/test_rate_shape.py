"""Counts whose shape is the rate, of cells and of spots: against 50-digit arithmetic, SciPy and limits."""

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
from countvi.ops import Affine

NAMES = ("logits", "log_library", "p_logits")


def twin(x: float, logit: float, log_library: float, p_logit: float):
    """The textbook formula; nothing arranged for stability."""
    x, p = mp.mpf(x), 1 / (1 + mp.exp(-mp.mpf(p_logit)))
    r = mp.exp(mp.mpf(log_library)) * mp.log1p(mp.exp(mp.mpf(logit)))
    return mp.loggamma(x + r) - mp.loggamma(r) - mp.loggamma(x + 1) + r * mp.log(1 - p) + x * mp.log(p)


@cache
def grid() -> tuple[Tensor, ...]:
    """Count and parameters of single entries: numbers that float32 holds, in float64."""
    axes = [
        (0.0, 0.5, 1.0, 5.0, 40.0, 1e6),
        (-90.0, -12.0, 0.3, 20.0),
        (0.0, 4.0, 14.0),
        (-12.0, -0.7, 2.0, 12.0),
    ]
    columns = zip(*itertools.product(*axes), strict=True)
    return tuple(torch.tensor(column, dtype=torch.float32).double() for column in columns)


@cache
def witness() -> tuple[Tensor, list[Tensor]]:
    points = list(zip(*(a.tolist() for a in grid()), strict=True))
    values = torch.tensor([twins.evaluate(twin, *p) for p in points], dtype=torch.float64)
    slopes = [torch.tensor([twins.slope(twin, *p, by=by) for p in points], dtype=torch.float64) for by in range(1, 4)]
    return values, slopes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_slopes_against_mpmath(dtype: torch.dtype) -> None:
    """Cells of one gene; the log-odds too have a gene for each point."""
    x, logits, log_library, p_logits = (a.to(dtype, copy=True).requires_grad_() for a in grid())
    points = len(x)
    values, slopes = [], []
    for i in range(points):
        own = [logits[i : i + 1, None], log_library[i : i + 1], p_logits[i : i + 1]]
        value = ops.rate_shape_negative_binomial(*own, CountBlock.from_dense(x[i : i + 1, None].detach()))
        values.append(value.detach().double())
        slopes.append(torch.stack([g.double().flatten() for g in torch.autograd.grad(value.sum(), own)]))
    expected, expected_slopes = witness()
    unit = torch.finfo(dtype).eps
    r = grid()[2].exp() * torch.nn.functional.softplus(grid()[1])
    log_r = grid()[2] + torch.where(grid()[1] < -40, grid()[1], torch.nn.functional.softplus(grid()[1]).log())
    # What rounding log r does, and what cancels in float64.
    carried = 2 * unit * log_r.abs().clamp(min=1) * expected_slopes[1].abs()
    cancelled = 1e-15 * (grid()[0] + r * (1 + grid()[3].exp()) + 1) * 20
    value_bound = (3e-7 if dtype == torch.float32 else 1e-12) * expected.abs() + carried + cancelled
    assert ((torch.cat(values) - expected).abs() <= value_bound).all()
    moved = 2 * unit * log_r.abs().clamp(min=1) * (r * (1 + grid()[3].exp()) + grid()[0].clamp(max=1))
    for k, (name, true) in enumerate(zip(NAMES, expected_slopes, strict=True)):
        value = torch.stack(slopes)[:, k, 0]
        bound = (2e-6 if dtype == torch.float32 else 1e-12) * true.abs() + cancelled + moved
        assert ((value - true).abs() <= bound).all(), name


def problem(samples: tuple[int, ...] = (), cells: int = 5, genes: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "logits": 2 * normal(*samples, cells, genes),
        "log_library": normal(cells) + 1,
        "p_logits": normal(genes),
        "x": torch.poisson(normal(cells, genes).exp() * 2, generator=generator),
    }


def evaluate(p: dict[str, Tensor]) -> Tensor:
    return ops.rate_shape_negative_binomial(*(p[name] for name in NAMES), CountBlock.from_dense(p["x"]))


def test_against_scipy() -> None:
    p = problem()
    r = p["log_library"].exp().numpy()[:, None] * np.logaddexp(0, p["logits"].numpy())
    expected = stats.nbinom.logpmf(p["x"], r, torch.sigmoid(-p["p_logits"]).numpy()).sum(1)
    np.testing.assert_allclose(evaluate(p), expected, rtol=1e-11)


def test_mean_and_variance_by_summation() -> None:
    x = torch.arange(3000, dtype=torch.float64)
    logits, library, p = torch.tensor(0.7), torch.tensor(2.0), torch.tensor([0.9], dtype=torch.float64)
    log_p = ops.rate_shape_negative_binomial(
        logits.double().expand(3000, 1), library.double().expand(3000), p, CountBlock.from_dense(x[:, None])
    )
    r = float(library.exp() * np.logaddexp(0, 0.7))
    probability = log_p.exp()
    mean = (probability * x).sum()
    assert abs(probability.sum() - 1) < 1e-9
    assert abs(mean - r * np.exp(0.9)) < 1e-6
    assert abs((probability * (x - mean) ** 2).sum() - r * np.exp(0.9) * (1 + np.exp(0.9))) < 1e-5


@pytest.mark.parametrize("samples", [(), (2,)])
def test_gradients(samples: tuple[int, ...]) -> None:
    p = problem(samples)
    tensors = [p[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *t: evaluate({**p, **dict(zip(NAMES, t, strict=True))}), tensors)


def test_samples_are_a_loop() -> None:
    p = problem((2, 3))
    together = evaluate(p)
    assert together.shape == (2, 3, 5)
    for s in ((0, 0), (1, 2)):
        torch.testing.assert_close(together[s], evaluate({**p, "logits": p["logits"][s]}))


def test_small_log_odds_and_a_large_shape_are_poisson() -> None:
    """With mean mu kept, what is left is of order mu e^p."""
    p = problem()
    log_mu = p["log_library"][:, None] + torch.nn.functional.softplus(p["logits"]).log()
    p["p_logits"] = torch.full_like(p["p_logits"], -20.0)
    p["log_library"] = p["log_library"] + 20.0
    np.testing.assert_allclose(evaluate(p), stats.poisson.logpmf(p["x"], log_mu.exp()).sum(1), rtol=1e-6)


def with_stored_zeros(x: Tensor) -> CountBlock:
    cells, genes = x.shape
    return CountBlock(
        x.flatten(), torch.arange(genes).repeat(cells), torch.arange(0, x.numel() + 1, genes), n_features=genes
    )


def test_stored_zeros_and_empty_cells() -> None:
    p = problem()
    p["x"][0] = 0.0
    p["log_library"][0] = -torch.inf
    tensors = [p[name].requires_grad_() for name in NAMES]
    results = []
    for counts in (CountBlock.from_dense(p["x"]), with_stored_zeros(p["x"])):
        value = ops.rate_shape_negative_binomial(*tensors, counts)
        results.append((value, *torch.autograd.grad(value.sum(), tensors)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    value, logits, library, _ = results[0]
    assert value[0] == 0 and not logits[0].any() and library[0] == 0
    p["x"][0] = 1.0
    assert evaluate({name: t.detach() for name, t in p.items()})[0] == -torch.inf


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    logit=st.floats(-1e4, 1e3, width=32),
    log_library=st.one_of(st.just(-torch.inf), st.floats(-50, 40, width=32)),
    p_logit=st.floats(-70, 30, width=32),
    count=st.floats(0, 1e6, width=32),
)
def test_nothing_is_nan(logit, log_library, p_logit, count) -> None:
    x = torch.zeros(2, 2)
    if log_library > -torch.inf:
        x[0, 0] = count
    tensors = [torch.full((2, 2), logit), torch.full((2,), log_library), torch.full((2,), p_logit)]
    tensors = [t.requires_grad_() for t in tensors]
    value = ops.rate_shape_negative_binomial(*tensors, CountBlock.from_dense(x))
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), tensors))


# --- spots

SPOT_NAMES = ("hidden", "log_alpha", "abundance", "noise", "log_library", "p_logits")


def spots(n_spots: int = 4, types: int = 3, units: int = 5, genes: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden": normal(n_spots, types, units),
        "log_alpha": 0.3 * normal(genes),
        "abundance": normal(n_spots, types + 1).exp(),
        "noise": normal(genes).exp(),
        "log_library": normal(n_spots) + 1,
        "p_logits": normal(genes),
        "weight": normal(genes, units) / units**0.5,
        "bias": normal(genes),
        "x": torch.poisson(3 * normal(n_spots, genes).exp(), generator=generator),
    }


def evaluate_spots(p: dict[str, Tensor], counts: CountBlock | None = None) -> Tensor:
    counts = CountBlock.from_dense(p["x"]) if counts is None else counts
    hidden, *rest = (p[name] for name in SPOT_NAMES)
    return ops.mixed_types_negative_binomial(hidden, Affine(p["weight"], p["bias"]), *rest, counts)


def test_spots_against_scipy() -> None:
    """The shapes by loops."""
    p = {name: t.numpy() for name, t in spots().items()}
    r = np.zeros((4, 6))
    for s, g in itertools.product(range(4), range(6)):
        for c in range(3):
            r[s, g] += p["abundance"][s, c] * np.log1p(np.exp(p["hidden"][s, c] @ p["weight"][g] + p["bias"][g]))
        r[s, g] = r[s, g] * np.exp(p["log_alpha"][g]) + p["abundance"][s, 3] * p["noise"][g]
        r[s, g] *= np.exp(p["log_library"][s])
    expected = stats.nbinom.logpmf(p["x"], r, 1 / (1 + np.exp(p["p_logits"]))).sum(1)
    np.testing.assert_allclose(evaluate_spots(spots()), expected, rtol=1e-11)


def test_gradients_of_spots() -> None:
    p = spots()
    tensors = [p[name].requires_grad_() for name in SPOT_NAMES]
    assert torch.autograd.gradcheck(lambda *t: evaluate_spots({**p, **dict(zip(SPOT_NAMES, t, strict=True))}), tensors)


def test_one_type_without_noise_is_a_cell() -> None:
    p = spots(types=1)
    p["abundance"] = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(4, 2)
    p["log_alpha"].zero_()
    logits = p["hidden"][:, 0] @ p["weight"].T + p["bias"]
    expected = ops.rate_shape_negative_binomial(
        logits, p["log_library"] + np.log(2), p["p_logits"], CountBlock.from_dense(p["x"])
    )
    torch.testing.assert_close(evaluate_spots(p), expected)


def test_a_type_counted_as_two() -> None:
    """Two halves of a type in the same state are the whole."""
    p = spots(types=2)
    halves = {**p, "hidden": p["hidden"][:, [0, 0, 1]]}
    v = p["abundance"]
    halves["abundance"] = torch.stack([0.25 * v[:, 0], 0.75 * v[:, 0], v[:, 1], v[:, 2]], 1)
    torch.testing.assert_close(evaluate_spots(halves), evaluate_spots(p))


def test_a_spot_of_which_nothing_is_expected() -> None:
    """Certain without counts, where more abundance costs at a finite rate; impossible with them."""
    p = spots()
    p["abundance"][0], p["x"][0] = 0.0, 0.0
    results = []
    for counts in (CountBlock.from_dense(p["x"]), with_stored_zeros(p["x"])):
        tensors = [p[name].detach().requires_grad_() for name in SPOT_NAMES]
        value = evaluate_spots({**p, **dict(zip(SPOT_NAMES, tensors, strict=True))}, counts)
        results.append((value, *torch.autograd.grad(value.sum(), tensors)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    value, hidden, _, abundance, *_ = results[0]
    assert value[0] == 0
    assert not hidden[0].any()
    softened = torch.nn.functional.softplus(p["p_logits"])
    by_hand = -p["log_library"][0].exp() * (p["noise"] * softened).sum()
    torch.testing.assert_close(abundance[0, -1], by_hand)
    p["x"][0, 1] = 1.0
    assert evaluate_spots(p)[0] == -torch.inf


def test_the_layer_may_not_ask_for_a_gradient() -> None:
    p = spots()
    p["weight"].requires_grad_()
    with pytest.raises(AssertionError, match="fixed"):
        evaluate_spots(p)
    with torch.no_grad():
        assert evaluate_spots(p).isfinite().all()
