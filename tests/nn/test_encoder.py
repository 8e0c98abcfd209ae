"""The amortised posterior."""

from __future__ import annotations

import pytest
import torch

from countvi import seeding
from countvi.batch import CountBlock, Design, Factor
from countvi.nn.encoder import GaussianEncoder, Softmax
from countvi.nn.mlp import MlpConfig


def problem() -> tuple[torch.Tensor, Design]:
    x = torch.poisson(torch.full((8, 11), 0.8, dtype=torch.float64), generator=seeding.generator(1))
    codes = torch.arange(8).remainder(3).unsqueeze(1)
    return x, Design(codes=codes, continuous=torch.zeros(8, 0, dtype=torch.float64))


@pytest.mark.parametrize("log1p", [True, False])
@pytest.mark.parametrize("n_out", [None, 1, 4])
def test_moments(n_out, log1p):
    x, design = problem()
    encoder = GaussianEncoder(11, n_out, MlpConfig(n_hidden=6), log1p=log1p, factors=[Factor(0, 3)]).double().eval()
    q = encoder(CountBlock.from_dense(x), None, design)
    h = encoder.mlp(x.log1p() if log1p else x, None, design)
    loc = h @ encoder.loc.weight.T + encoder.loc.bias
    variance = (h @ encoder.log_variance.weight.T + encoder.log_variance.bias).exp() + 1e-4
    if n_out is None:
        loc, variance = loc[:, 0], variance[:, 0]
    assert q.event_dims == (0 if n_out is None else 1)
    assert q.loc.shape == ((8,) if n_out is None else (8, n_out))
    torch.testing.assert_close(q.loc, loc)
    torch.testing.assert_close(q.scale.square(), variance)


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_extreme_variances_stay_finite_with_finite_gradients(bias):
    x, design = problem()
    encoder = GaussianEncoder(11, 3, MlpConfig(n_hidden=6))
    with torch.no_grad():
        encoder.log_variance.bias.fill_(bias)
    q = encoder(CountBlock.from_dense(x.float()), None, design)
    assert (q.scale > 0).all() and torch.isfinite(q.scale).all()
    q.scale.log().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_softmax_is_over_the_latent_axis():
    z = torch.randn(5, 8, 3, dtype=torch.float64, generator=seeding.generator(0))
    out = Softmax()(z)
    torch.testing.assert_close(out.sum(-1), torch.ones(5, 8, dtype=torch.float64))
    torch.testing.assert_close(out[2, 4], z[2, 4].exp() / z[2, 4].exp().sum())
