"""Components of protein counts, the efficiency, and layers with one-hot levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from countvi import seeding
from countvi.batch import Design, Factor
from countvi.nn.linear import Appended, Head, LevelHead, head
from countvi.nn.mlp import Mlp, MlpConfig
from countvi.nn.protein import Efficiency, two_components
from countvi.nn.trunks import Trunks

DESIGN = Design(torch.tensor([[0, 2], [1, 0], [1, 1], [0, 1]]), torch.randn(4, 2, generator=seeding.generator(9)))
FACTORS = (Factor(0, 2), Factor(1, 3))


def test_two_components_are_recovered():
    rng = np.random.default_rng(0)
    n_rows, n_values = 40, 300
    low, spread = rng.uniform(0.5, 2.0, (n_rows, 1)), rng.uniform(0.1, 0.4, (n_rows, 1))
    high = rng.random((n_rows, n_values)) < 0.4
    values = low + np.where(high, 4.0, 0.0) + rng.normal(size=high.shape) * np.where(high, 0.6, spread)
    found = two_components(torch.as_tensor(values))
    error = 5 * spread.ravel() / np.sqrt(0.6 * n_values)
    assert (np.abs(found.low.numpy() - low.ravel()) < error).all()
    assert (np.abs(found.high.numpy() - low.ravel() - 4.0) < 5 * 0.6 / np.sqrt(0.4 * n_values)).all()
    np.testing.assert_allclose(found.low_scale, spread.ravel(), rtol=0.25)
    np.testing.assert_allclose(found.high_scale, 0.6, rtol=0.25)
    np.testing.assert_allclose(found.high_share, high.mean(1), atol=0.01)


def test_two_components_beside_scikit_learn():
    from sklearn import mixture

    rng = np.random.default_rng(1)
    values = np.log1p(rng.poisson(np.where(rng.random((6, 60)) < 0.3, 200.0, 5.0))).astype(np.float64)
    found = two_components(torch.as_tensor(values))
    for i, row in enumerate(values):
        fitted = mixture.GaussianMixture(2, tol=1e-10, max_iter=1000, n_init=3, random_state=0).fit(row[:, None])
        low, high = fitted.means_.ravel().argsort()
        for k, loc, scale in ((low, found.low, found.low_scale), (high, found.high, found.high_scale)):
            np.testing.assert_allclose(loc[i], fitted.means_[k, 0], rtol=1e-4)
            np.testing.assert_allclose(scale[i], np.sqrt(fitted.covariances_[k, 0, 0]), rtol=1e-3)
        np.testing.assert_allclose(found.high_share[i], fitted.weights_[high], rtol=1e-3)


def test_components_of_constant_rows_are_finite():
    found = two_components(torch.tensor([[2.0] * 6, [0.0] * 6]))
    assert all(torch.isfinite(part).all() for part in found) and (found.low_scale > 0).all()
    np.testing.assert_allclose(found.low, [2.0, 0.0], atol=1e-6)


def test_the_prior_of_log_efficiency_has_its_jacobian():
    efficiency = Efficiency(FACTORS[0], 3)
    with torch.no_grad():
        efficiency.log_efficiency.normal_(generator=seeding.generator(0))
    e = efficiency.log_efficiency.detach().exp().double().numpy()
    # The density of log e is that of e times e.
    expected = (stats.lognorm.logpdf(e, 1.0) + np.log(e)).sum()
    np.testing.assert_allclose(efficiency.log_prior().item(), expected, rtol=1e-6)
    torch.testing.assert_close(efficiency(DESIGN), efficiency.log_efficiency[DESIGN.codes[:, 0]])


@pytest.mark.parametrize("samples", [(), (5,)])
def test_a_level_head_is_a_linear_layer_on_one_hot_levels(samples):
    with seeding.forked(0):
        layer = head(6 + 3 + 2, 7, FACTORS)
        state, hidden = torch.randn(*samples, 4, 3), torch.randn(*samples, 4, 6)
    assert isinstance(layer, LevelHead) and isinstance(head(3, 7, [Factor(0, 1)]), Head)
    appended = Appended(FACTORS)(state, DESIGN.continuous, DESIGN)
    one_hot = torch.cat([torch.eye(2)[DESIGN.codes[:, 0]], torch.eye(3)[DESIGN.codes[:, 1]]], dim=1)
    parts = [part.expand(*samples, *part.shape) for part in (DESIGN.continuous, one_hot)]
    torch.testing.assert_close(appended, torch.cat([state, *parts], dim=-1))
    out = layer(torch.cat([hidden, appended], dim=-1))
    by_hand = torch.cat([hidden, state, parts[0]], dim=-1) @ layer.inputs + layer.bias + layer.levels(DESIGN)
    torch.testing.assert_close(out, by_hand)


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_trunks_are_networks_side_by_side(n_layers, norm):
    config = MlpConfig(6, n_layers, 0.0, batch_norm=norm == "batch", layer_norm=norm == "layer")
    with seeding.forked(0):
        trunks = Trunks(3, 4, config, 2, FACTORS).double()
        x = torch.randn(2, 4, 4, dtype=torch.float64)
    design = DESIGN.to(dtype=torch.float64)
    together = trunks(x, design.continuous, design)
    for i, part in enumerate(together):
        alone = Mlp(4, config, 2, FACTORS).double()
        units, first = slice(6 * i, 6 * (i + 1)), alone.layers[0].linear
        with torch.no_grad():
            first.weight.copy_(trunks.first.linear.weight[units])
            first.bias.copy_(trunks.first.linear.bias[units])
            first.features.copy_(trunks.first.linear.features[units])
            first.levels.weight.copy_(trunks.first.linear.levels.weight[:, units])
        if n_layers > 1:
            alone.layers[1:].load_state_dict(trunks.rest[i].layers.state_dict())
        torch.testing.assert_close(part, alone(x, design.continuous, design))
