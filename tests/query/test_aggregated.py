"""The aggregated posterior, beside scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm, t

from countvi.query.aggregated import aggregated_log_density, aggregated_posterior


def mixture(shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(shift, 2.0, (17, 3)), rng.normal(shift, 2.0, (11, 3)), rng.uniform(0.05, 2.0, (11, 3))


@pytest.mark.parametrize("dof", [None, 3.0])
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_it_is_the_mean_of_the_densities(dof: float | None, shift: float) -> None:
    points, loc, scale = mixture(shift)
    density = norm(loc, scale) if dof is None else t(dof, loc, scale)
    expected = logsumexp(density.logpdf(points[:, None]).sum(-1), axis=1) - np.log(len(loc))
    np.testing.assert_allclose(aggregated_log_density(points, loc, scale, dof), expected, rtol=1e-8)


def test_far_from_everything_it_is_finite_and_in_small_blocks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points, loc, scale = mixture()
    points[0] = 1e4
    whole = aggregated_log_density(points, loc, scale)
    assert np.isfinite(whole).all()
    monkeypatch.setattr("countvi.query.aggregated._BLOCK", 22)
    np.testing.assert_allclose(aggregated_log_density(points, loc, scale), whole, rtol=1e-12)


@pytest.mark.parametrize("dof", [None, 5.0])
def test_the_distribution_has_the_moments_of_its_parts(dof: float | None) -> None:
    _, loc, scale = mixture()
    found = aggregated_posterior(loc, scale, dof)
    inflation = 1.0 if dof is None else dof / (dof - 2.0)
    np.testing.assert_allclose(found.mean.numpy(), loc.mean(0))
    np.testing.assert_allclose(found.variance.numpy(), inflation * (scale**2).mean(0) + loc.var(0))
