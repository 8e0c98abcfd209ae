"""Counts of a cell and its surroundings: the rate in NumPy, probabilities in SciPy, parts against the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from countvi import seeding
from countvi.batch import CountBlock
from countvi.errors import MismatchError, OptionError
from countvi.likelihoods import gamma_poisson
from countvi.likelihoods.ambient_rate import AmbientRate
from countvi.likelihoods.gamma_poisson import GammaPoisson
from countvi.ops import Indexed

N, G, H = 6, 7, 3
CODE = torch.tensor([0, 2, 1, 2, 0, 1])
GAPS = torch.tensor([True, False, True, True, False, True])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeding.generator(seed, len(shape)), dtype=torch.float64)


def rate(samples: tuple[int, ...] = (), background: bool = True, scaling: bool = True, seed: int = 0) -> AmbientRate:
    return AmbientRate(
        hidden=draw(*samples, N, H, seed=seed),
        weight=draw(G, H, seed=seed + 10),
        bias=draw(G, seed=seed + 20),
        log_library=draw(N, seed=seed + 30) + 1.0,
        log_unit=torch.tensor(2.0, dtype=torch.float64),
        log_background=Indexed(draw(3, G, seed=seed + 40) - 1, CODE) if background else None,
        log_scaling=Indexed(0.2 * draw(2, G, seed=seed + 50), CODE.clamp(max=1)) if scaling else None,
    )


def theta(seed: int = 0) -> Indexed:
    return Indexed(draw(3, G, seed=seed + 60), CODE)


def counts(seed: int = 0) -> CountBlock:
    return CountBlock.from_dense(torch.poisson(draw(N, G, seed=seed + 70).exp() * 2, generator=seeding.generator(seed)))


def by_hand(r: AmbientRate, background: bool = True, scaling: bool = True) -> dict[str, np.ndarray]:
    rho = np.log1p(np.exp((r.hidden @ r.weight.T + r.bias).numpy()))
    b = np.exp(r.log_background.table.numpy())[CODE] if background else 0.0
    y = np.exp(r.log_scaling.table.numpy())[CODE.clamp(max=1)] if scaling else 1.0
    mean = np.exp(r.log_library.numpy())[:, None] * (rho + b) * y
    return {"rho": rho, "total": rho + b, "mean": mean, "own_share": rho / (rho + b)}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("scaling", [True, False])
@pytest.mark.parametrize("samples", [(), (2,)])
def test_rate(background, scaling, samples):
    r = rate(samples, background, scaling)
    expected = by_hand(r, background, scaling)
    np.testing.assert_allclose(r.mean, expected["mean"], rtol=1e-12)
    np.testing.assert_allclose(r.log_mean, np.log(expected["mean"]), rtol=1e-12, atol=1e-13)
    # Frequencies: in units of an average cell.
    np.testing.assert_allclose(r.scale, expected["rho"] / np.exp(2.0), rtol=1e-12)
    np.testing.assert_allclose(r.log_scale, np.log(expected["rho"]) - 2.0, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(r.scale_with_background, expected["total"] / np.exp(2.0), rtol=1e-12)
    np.testing.assert_allclose(r.own_share, expected["own_share"] * np.ones_like(expected["mean"]), rtol=1e-12)
    assert r.batch_shape == (*samples, N) and r.n_genes == G
    own = {True: expected["mean"] * expected["own_share"], False: expected["rho"] / np.exp(2.0)}
    for library in (True, False):
        both = r.mean if library else r.scale_with_background
        np.testing.assert_allclose(r.expression(library=library, background=False), own[library], rtol=1e-12)
        assert torch.equal(r.expression(library=library, background=True), both)


def test_some_genes_and_some_cells():
    r, index = rate((2,)), torch.tensor([4, 1, 2])
    torch.testing.assert_close(r.genes(2, 5).mean, r.mean[..., 2:5])
    torch.testing.assert_close(r.cells(index).mean, r.mean[:, index])


def test_log_prob_against_scipy():
    r, x = rate(), counts()
    mean, t = by_hand(r)["mean"], theta().of_cells().exp().numpy()
    expected = stats.nbinom.logpmf(x.to_dense().numpy(), t, t / (t + mean)).sum(1)
    np.testing.assert_allclose(GammaPoisson(r, theta()).log_prob(x), expected, rtol=1e-9)


def test_moments_and_theta():
    likelihood = GammaPoisson(rate((2,)), theta())
    t = theta().of_cells().exp()
    torch.testing.assert_close(likelihood.theta, t)
    torch.testing.assert_close(likelihood.mean, rate((2,)).mean)
    torch.testing.assert_close(likelihood.variance, likelihood.mean + likelihood.mean.square() / t)
    assert likelihood.dropout_probability is None
    assert GammaPoisson(rate(), Indexed(draw(1, G), None)).theta.shape == (G,)


def test_draws_have_the_moments():
    likelihood = GammaPoisson(rate(), theta())
    n = 40_000
    x = likelihood.sample((n,), seeding.generator(0))
    assert x.shape == (n, N, G) and torch.equal(x, x.round())
    error = (x.mean(0) - likelihood.mean) / (likelihood.variance / n).sqrt()
    assert error.abs().max() < 5
    deviations = (x - likelihood.mean).square()
    error = (deviations.mean(0) - likelihood.variance) / (deviations.std(0) / n**0.5)
    assert error.abs().max() < 6


def leaves(r: AmbientRate, t: Indexed) -> list[torch.Tensor]:
    assert r.log_background is not None and r.log_scaling is not None
    tensors = [r.hidden, r.weight, r.bias, r.log_library, r.log_background.table, r.log_scaling.table, t.table]
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("samples", [(), (2,)])
@pytest.mark.parametrize("measured", [None, GAPS])
@pytest.mark.parametrize("block", [1, 12, 30])
def test_in_parts_it_is_the_same(monkeypatch, samples, measured, block):
    """One gene at a time, several, and an uneven split: values and every slope."""
    x = counts()
    if measured is not None:
        x = CountBlock.from_dense(x.to_dense() * measured[:, None])
    weights = draw(*samples, N, seed=5)
    results = []
    for size in (2**22, block):
        monkeypatch.setattr(gamma_poisson, "_BLOCK", size)
        r, t = rate(samples), theta()
        tensors = leaves(r, t)
        value = GammaPoisson(r, t, measured).log_prob(x)
        results.append((value, *torch.autograd.grad((value * weights).sum(), tensors)))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole)


def test_what_was_not_measured_says_nothing():
    x = CountBlock.from_dense(counts().to_dense() * GAPS[:, None])
    r, t = rate(), theta()
    tensors = leaves(r, t)
    complete = GammaPoisson(r, t).log_prob(x)
    value = GammaPoisson(r, t, GAPS).log_prob(x)
    torch.testing.assert_close(value[GAPS], complete[GAPS])
    assert not value[~GAPS].any()
    gradients = torch.autograd.grad(value.sum(), tensors)
    assert not gradients[0][~GAPS].any() and not gradients[3][~GAPS].any()
    # What is expected there is known all the same.
    torch.testing.assert_close(GammaPoisson(r, t, GAPS).mean, r.mean)


def test_nothing_was_measured():
    empty = CountBlock.from_dense(torch.zeros(N, G, dtype=torch.float64))
    assert not GammaPoisson(rate((2,)), theta(), torch.zeros(N, dtype=torch.bool)).log_prob(empty).any()


def test_wrong_counts_are_refused():
    likelihood = GammaPoisson(rate(), theta())
    with pytest.raises(OptionError, match=r"GammaPoisson\.log_prob expects a CountBlock"):
        likelihood.log_prob(torch.zeros(N, G))  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=f"expects counts of {N} cells x {G} genes; got {N} x 3"):
        likelihood.log_prob(CountBlock.from_dense(torch.zeros(N, 3)))
