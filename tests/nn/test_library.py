"""Library sizes: given, or with a prior whose moments come from the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from countvi import seeding
from countvi.batch import CountBlock, Design, Factor
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.latent import Gaussian, Given
from countvi.nn.library import (
    LibraryPrior,
    LogNormalLibrary,
    ObservedLibrary,
    ResidualLibrary,
    SizeFactorLibrary,
    library_moments,
)
from countvi.nn.mlp import MlpConfig


def moments(totals: np.ndarray, level: np.ndarray, n_levels: int) -> tuple[np.ndarray, np.ndarray]:
    loc, scale = library_moments(torch.as_tensor(totals), torch.as_tensor(level), n_levels)
    assert loc.dtype == scale.dtype == torch.float32
    assert loc.shape == scale.shape == (n_levels,)
    return loc.numpy(), scale.numpy()


def test_moments_per_batch():
    rng = np.random.default_rng(0)
    level = rng.integers(0, 4, 300)
    totals = np.round(rng.lognormal(6 + level, 0.2 + 0.1 * level)) + 1
    loc, scale = moments(totals, level, 4)
    for batch in range(4):
        logs = np.log(totals[level == batch])
        np.testing.assert_allclose(loc[batch], logs.mean(), rtol=1e-6)
        np.testing.assert_allclose(scale[batch], logs.std(), rtol=1e-6)


def test_large_totals_lose_no_digits():
    totals = np.array([1e7, 1e7 * (1 + 1e-5), 1e7 * (1 - 1e-5), 5.0])
    _, scale = moments(totals, np.array([0, 0, 0, 1]), 2)
    np.testing.assert_allclose(scale[0], np.log(totals[:3]).std(), rtol=1e-5)


def test_empty_cells_do_not_count():
    totals, level = np.array([0.0, 10.0, 20.0, 0.0, 30.0, 50.0]), np.array([0, 0, 0, 1, 1, 1])
    loc, scale = moments(totals, level, 2)
    np.testing.assert_allclose(loc, [np.log([10, 20]).mean(), np.log([30, 50]).mean()], rtol=1e-6)
    np.testing.assert_allclose(scale, [np.log([10, 20]).std(), np.log([30, 50]).std()], rtol=1e-6)


def test_a_batch_without_spread_takes_the_spread_of_all_cells():
    totals, level = np.array([10.0, 20.0, 40.0, 8.0, 8.0, 77.0]), np.array([0, 0, 0, 1, 1, 2])
    loc, scale = moments(totals, level, 4)
    everything = np.log(totals)
    np.testing.assert_allclose(loc, [np.log([10, 20, 40]).mean(), np.log(8), np.log(77), everything.mean()], rtol=1e-6)
    np.testing.assert_allclose(scale, [np.log([10, 20, 40]).std(), *3 * [everything.std()]], rtol=1e-6)


@pytest.mark.parametrize("totals", [[], [0.0, 0.0], [5.0], [5.0, 5.0, 5.0]], ids=str)
def test_the_prior_is_always_proper(totals):
    loc, scale = moments(np.array(totals), np.zeros(len(totals), dtype=np.int64), 2)
    assert np.isfinite(loc).all() and np.isfinite(scale).all() and (scale > 0).all()


X = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [4.0, 0.0, 1.0]])
DESIGN = Design(torch.tensor([[0], [1], [1]]), torch.zeros(3, 0), size_factor=torch.tensor([0.5, 1.0, 2.0]))


def test_observed():
    library = ObservedLibrary()
    q = library.guide(CountBlock.from_dense(X), None, DESIGN)
    assert isinstance(q, Given) and isinstance(library.prior(DESIGN), Given)
    torch.testing.assert_close(q.value, torch.tensor([np.log(3.0), -np.inf, np.log(5.0)], dtype=torch.float32))


def test_size_factor():
    library = SizeFactorLibrary()
    q = library.guide(CountBlock.from_dense(X), None, DESIGN)
    torch.testing.assert_close(q.value, torch.tensor([np.log(0.5), 0.0, np.log(2.0)], dtype=torch.float32))
    assert not list(library.parameters())


def test_log_normal():
    loc, scale = torch.tensor([5.0, 6.0]), torch.tensor([0.3, 0.4])
    library = LogNormalLibrary(GaussianEncoder(3, None, MlpConfig(n_hidden=4)), Factor(0, 2), loc, scale)
    p = library.prior(DESIGN)
    assert isinstance(p, Gaussian) and p.event_dims == 0
    torch.testing.assert_close(p.loc, torch.tensor([5.0, 6.0, 6.0]))
    torch.testing.assert_close(p.scale, torch.tensor([0.3, 0.4, 0.4]))
    q = library.guide(CountBlock.from_dense(X), None, DESIGN)
    assert q.loc.shape == (3,) and q.kl(p).shape == (3,)
    saved, learned = set(library.state_dict()), {name for name, _ in library.named_parameters()}
    assert {"loc", "scale"} <= saved and not {"loc", "scale"} & learned


def test_constrained_prior_has_half_the_variance():
    rng = np.random.default_rng(0)
    level = rng.integers(0, 3, 300)
    totals = np.round(rng.lognormal(6 + level, 0.2 + 0.1 * level)) + 1
    totals[:5] = 0.0
    prior = LibraryPrior.constrained(torch.as_tensor(totals), torch.as_tensor(level), 3)
    logs, known = np.log(totals[totals > 0]), totals > 0
    np.testing.assert_allclose(prior.centre, logs.mean(), rtol=1e-6)
    for group in range(3):
        of_group = np.log(totals[known & (level == group)])
        np.testing.assert_allclose(prior.loc[group], of_group.mean(), rtol=1e-6)
        np.testing.assert_allclose(prior.scale[group] ** 2, 0.5 * of_group.var(), rtol=1e-5)


@pytest.mark.parametrize(
    ("totals", "level"),
    [([10.0, 20.0, 30.0, 77.0], [0, 0, 0, 1]), ([10.0, 10.0, 20.0, 20.0], [0, 0, 1, 1]), ([5.0], [0]), ([0.0], [0])],
    ids=str,
)
def test_constrained_prior_of_small_groups_is_not_a_point(totals, level):
    prior = LibraryPrior.constrained(torch.tensor(totals), torch.tensor(level), 3)
    for value in (prior.centre, prior.loc, prior.scale):
        assert torch.isfinite(value).all()
    assert (prior.scale >= 0.05).all()


def residual(**options) -> ResidualLibrary:
    prior = LibraryPrior.constrained(torch.tensor([50.0, 3.0, 200.0]), torch.tensor([0, 0, 1]), 2)
    with seeding.forked(0):
        return ResidualLibrary(GaussianEncoder(3, None, MlpConfig(n_hidden=4), **options), Factor(0, 2), prior)


def test_residual_library_starts_at_the_total():
    x = torch.tensor([[30.0, 20.0, 0.0], [0.0, 0.0, 0.0], [150.0, 0.0, 50.0]])
    library = residual().eval()
    q = library.guide(CountBlock.from_dense(x), None, DESIGN)
    # exp of the log of the library size, and of half its variance, is the expected size.
    np.testing.assert_allclose((q.loc + q.scale**2 / 2).exp().detach(), [50.0, 1.0, 200.0], rtol=0.03)
    p = library.prior(DESIGN)
    torch.testing.assert_close(p.loc, library.loc[torch.tensor([0, 1, 1])])
    assert p.event_dims == q.event_dims == 0


def test_residual_library_by_hand():
    x = torch.tensor([[30.0, 20.0, 0.0], [0.0, 0.0, 0.0], [150.0, 0.0, 50.0]])
    library = residual().eval()
    with torch.no_grad():
        library.weight.fill_(0.6)
        library.encode.loc.bias.fill_(0.3)
    rest = library.encode(CountBlock.from_dense(x), None, DESIGN)
    log_total = torch.tensor([np.log(50.0), 0.0, np.log(200.0)], dtype=torch.float32)
    expected = library.centre + 0.6 * (log_total - library.centre) + rest.loc
    q = library.guide(CountBlock.from_dense(x), None, DESIGN)
    torch.testing.assert_close(q.loc, expected)
    torch.testing.assert_close(q.scale, rest.scale)


def test_residual_library_saves_its_prior():
    library = residual()
    assert {"loc", "scale", "centre", "weight"} <= set(library.state_dict())
    unknown = LibraryPrior.unknown(2)
    other = ResidualLibrary(GaussianEncoder(3, None, MlpConfig(n_hidden=4)), Factor(0, 2), unknown)
    other.load_state_dict(library.state_dict())
    torch.testing.assert_close(other.prior(DESIGN).loc, library.prior(DESIGN).loc)
    assert not unknown.loc.any()  # what was passed is not written to
