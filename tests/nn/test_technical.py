"""Background, scaling and dispersion: rows against loops, priors against SciPy, optima against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from countvi import seeding
from countvi.batch import Design, Factor
from countvi.nn.priors import GammaPrior
from countvi.nn.technical import Background, FeatureScaling, PosteriorDispersion

G = 5
DESIGN = Design(torch.tensor([[0, 1], [2, 0], [1, 1], [2, 0]]), torch.zeros(4, 0))
KEYS = {"one": [Factor(0, 3)], "two": [Factor(1, 2), Factor(0, 3)]}


def shake(parameter: torch.Tensor, seed: int = 0) -> None:
    with torch.no_grad():
        parameter += torch.randn(parameter.shape, generator=seeding.generator(seed), dtype=parameter.dtype)


def rows_of_cells(factors: list[Factor]) -> list[list[int]]:
    starts = np.cumsum([0, *(factor.n_levels for factor in factors)])
    return [[int(s + row[f.column]) for s, f in zip(starts, factors, strict=False)] for row in DESIGN.codes]


@pytest.mark.parametrize("factors", KEYS.values(), ids=KEYS)
def test_backgrounds_add_up(factors):
    background = Background(factors, G).double()
    shake(background.beta)
    beta = background.beta.detach().numpy()
    expected = [np.exp(beta[rows]).sum(0) for rows in rows_of_cells(factors)]
    np.testing.assert_allclose(background(DESIGN).of_cells().exp().detach(), expected)
    np.testing.assert_allclose(torch.cat(background.per_level()).detach(), np.exp(beta))


@pytest.mark.parametrize("factors", KEYS.values(), ids=KEYS)
def test_scalings_multiply(factors):
    scaling = FeatureScaling(factors, G).double()
    shake(scaling.gamma)
    gamma = scaling.gamma.detach().numpy()
    expected = [np.prod(np.log1p(np.exp(gamma[rows])) / 0.7, axis=0) for rows in rows_of_cells(factors)]
    np.testing.assert_allclose(scaling(DESIGN).of_cells().exp().detach(), expected)
    np.testing.assert_allclose(torch.cat(scaling.per_level()).detach(), np.log1p(np.exp(gamma)) / 0.7)


@pytest.mark.parametrize("factors", [[], *KEYS.values()], ids=len)
def test_where_they_start_does_not_depend_on_the_number_of_covariates(factors):
    np.testing.assert_allclose(FeatureScaling(factors, G).double()(DESIGN).of_cells().detach(), 0.0, atol=1e-7)
    if factors:
        np.testing.assert_allclose(Background(factors, G)(DESIGN).of_cells().exp().detach(), 0.01, rtol=1e-5)


def test_without_covariates_all_cells_share_a_factor():
    scaling = FeatureScaling([], G)
    shake(scaling.gamma)
    rows = scaling(DESIGN)
    assert scaling.gamma.shape == (1, G) and rows.code is None and rows.table.shape == (1, G)


@pytest.mark.parametrize("factors", KEYS.values(), ids=KEYS)
def test_prior_of_the_background(factors):
    background = Background(factors, G, GammaPrior(1.0, 100.0)).double()
    shake(background.beta)
    s = background.beta.detach().exp().numpy()
    # The logarithm is what is learned: its density has the Jacobian s.
    expected = stats.gamma(1 / len(factors), scale=1 / 100).logpdf(s) + np.log(s)
    assert abs(background.log_prior().item() - expected.sum()) < 1e-8 * abs(expected.sum())
    assert Background(factors, G).log_prior() == 0


def test_prior_of_the_scaling():
    scaling = FeatureScaling([Factor(0, 3)], G).double()
    shake(scaling.gamma)
    gamma = scaling.gamma.detach().numpy()
    y = np.log1p(np.exp(gamma)) / 0.7
    slope = 1 / (1 + np.exp(-gamma)) / 0.7
    expected = stats.gamma(200, scale=1 / 200).logpdf(y) + np.log(slope)
    assert abs(scaling.log_prior().item() - expected.sum()) < 1e-10 * abs(expected.sum())


def descend(module: Background | FeatureScaling) -> None:
    """Minimise what the prior alone asks for."""
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -module.log_prior()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_without_data_the_background_is_the_priors_mean():
    background = Background(KEYS["two"], G, GammaPrior(1.0, 100.0)).double()
    shake(background.beta)
    descend(background)
    np.testing.assert_allclose(background(DESIGN).of_cells().exp().detach(), 0.01, rtol=1e-5)


def test_without_data_the_scaling_is_where_its_density_is_largest():
    scaling = FeatureScaling([Factor(0, 3)], G).double()
    shake(scaling.gamma)
    descend(scaling)

    def minus_log_density(gamma: float) -> float:
        y = math.log1p(math.exp(gamma)) / 0.7
        return -199 * math.log(y) + 200 * y + math.log1p(math.exp(-gamma))

    best = optimize.minimize_scalar(minus_log_density, bounds=(-1, 1), method="bounded", options={"xatol": 1e-10})
    np.testing.assert_allclose(scaling.gamma.detach(), best.x, atol=1e-6)


def test_dispersion_starts_at_the_square_of_the_rate():
    dispersion = PosteriorDispersion(G, Factor(0, 3)).eval()
    rows = dispersion(DESIGN)
    np.testing.assert_allclose(rows.of_cells().exp().detach(), 9.0, rtol=1e-5)
    assert rows.of_cells().shape == (4, G)
    assert PosteriorDispersion(G)(DESIGN).of_cells().shape == (G,)


def test_dispersion_of_a_cell_is_that_of_its_group():
    dispersion = PosteriorDispersion(G, Factor(0, 3)).eval()
    shake(dispersion.loc)
    expected = torch.stack([dispersion.loc[code] for code in (0, 2, 1, 2)])
    torch.testing.assert_close(dispersion(DESIGN).of_cells(), expected)


def test_training_draws_from_the_posterior_once_for_all_cells():
    dispersion = PosteriorDispersion(2000, Factor(0, 3))
    with torch.no_grad():
        dispersion.log_scale.fill_(math.log(0.3))
    with seeding.forked(0):
        first = dispersion(DESIGN).of_cells()
        second = dispersion(DESIGN).of_cells()
    assert torch.equal(first[1], first[3])  # the same group
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)
    standard = (first[0] - dispersion.loc[0]) / 0.3
    assert stats.kstest(standard.detach(), "norm").pvalue > 1e-3
    first.sum().backward()
    torch.testing.assert_close(dispersion.loc.grad[2], torch.full((2000,), 2.0))
    assert dispersion.log_scale.grad.abs().max() > 0
    with seeding.forked(0):
        assert torch.equal(dispersion(DESIGN).of_cells(), first)


def test_evaluation_is_deterministic_and_leaves_the_default_stream():
    dispersion, before = PosteriorDispersion(G, Factor(0, 3)).eval(), torch.get_rng_state()
    assert torch.equal(dispersion(DESIGN).table, dispersion(DESIGN).table)
    assert torch.equal(torch.get_rng_state(), before)


def test_prior_of_the_dispersion_is_minus_the_divergence():
    dispersion = PosteriorDispersion(G, Factor(0, 3)).double()
    torch.testing.assert_close(dispersion.log_prior(), dispersion.prior.elbo(dispersion.loc, dispersion.log_scale))
    (slope,) = torch.autograd.grad(dispersion.log_prior(), dispersion.log_scale)
    assert (slope > 0).all()  # far narrower than the prior
