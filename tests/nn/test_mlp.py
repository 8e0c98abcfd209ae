"""Layers: normalisation of any shape of input, and counts that stay sparse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from countvi import seeding
from countvi.batch import CountBlock, Design, Factor
from countvi.nn.linear import CountInput
from countvi.nn.mlp import BatchNorm, Mlp, MlpConfig


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeding.generator(seed))


def norms(n_units: int = 4) -> tuple[BatchNorm, nn.BatchNorm1d]:
    """Ours and PyTorch's with the same state."""
    ours = BatchNorm(n_units).double()
    theirs = nn.BatchNorm1d(n_units, eps=ours.eps, momentum=ours.momentum).double()
    with torch.no_grad():
        ours.weight.copy_(normals(n_units, seed=1))
        ours.bias.copy_(normals(n_units, seed=2))
        ours.running_mean.copy_(normals(n_units, seed=3))
        ours.running_var.copy_(normals(n_units, seed=4).exp())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_batch_norm_of_cells_by_hand():
    ours, _ = norms()
    before = ours.running_mean.clone(), ours.running_var.clone()
    x = 3.0 * normals(10, 4, seed=5) + 1.0
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + ours.eps).sqrt() * ours.weight + ours.bias
    torch.testing.assert_close(ours(x), expected)
    keep = 1.0 - ours.momentum
    torch.testing.assert_close(ours.running_mean, keep * before[0] + ours.momentum * x.mean(0))
    torch.testing.assert_close(ours.running_var, keep * before[1] + ours.momentum * x.var(0))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_with_samples_equals_batch_norm_of_all_draws(training):
    ours, theirs = norms()
    ours.train(training), theirs.train(training)
    x = normals(5, 10, 4, seed=5)
    torch.testing.assert_close(ours(x), theirs(x.reshape(50, 4)).reshape(5, 10, 4))
    for name, buffer in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer)


def test_batch_norm_of_one_cell_uses_the_running_statistics():
    ours, theirs = norms()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    x = normals(1, 4, seed=5).requires_grad_()
    out = ours(x)
    torch.testing.assert_close(out, theirs.eval()(x))
    out.sum().backward()
    assert torch.isfinite(x.grad).all() and ours.weight.grad is not None
    for name, tensor in before.items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_batch_norm_of_one_cell_with_many_samples_is_a_batch():
    ours, theirs = norms()
    x = normals(6, 1, 4, seed=5)
    torch.testing.assert_close(ours(x), theirs(x[:, 0]).unsqueeze(1))


def problem(n_cells: int = 8) -> tuple[torch.Tensor, torch.Tensor, Design]:
    x = torch.poisson(torch.full((n_cells, 11), 0.8, dtype=torch.float64), generator=seeding.generator(1))
    codes = torch.arange(n_cells).remainder(3).unsqueeze(1)
    continuous = normals(n_cells, 2, seed=2)
    return x, continuous, Design(codes=codes, continuous=continuous)


CONFIGS = {
    "one layer": MlpConfig(n_hidden=6),
    "three layers": MlpConfig(n_hidden=6, n_layers=3),
    "first layer only": MlpConfig(n_hidden=6, n_layers=3, inject_all=False),
    "layer norm": MlpConfig(n_hidden=6, n_layers=2, batch_norm=False, layer_norm=True),
    "both norms": MlpConfig(n_hidden=6, n_layers=2, layer_norm=True),
    "no norm": MlpConfig(n_hidden=6, n_layers=2, batch_norm=False),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("log1p", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_counts_equal_the_dense_path(config, log1p, training):
    x, features, design = problem()
    net = Mlp(11, config, 2, [Factor(0, 3)]).double().train(training)
    sparse = net(CountInput([CountBlock.from_dense(x)], log1p), features, design)
    torch.testing.assert_close(sparse, net(x.log1p() if log1p else x, features, design))


def test_a_layer_by_hand():
    """Linear, batch norm, layer norm without weights, rectifier: in this order."""
    x, features, design = problem()
    net = Mlp(11, MlpConfig(n_hidden=6, layer_norm=True), 2, [Factor(0, 3)]).double().eval()
    block = net.layers[0]
    with torch.no_grad():
        block.batch_norm.running_mean.copy_(normals(6, seed=7))
        block.batch_norm.running_var.copy_(normals(6, seed=8).exp())
        block.batch_norm.weight.copy_(normals(6, seed=9))
    h = x @ block.linear.weight.T + block.linear.bias + features @ block.linear.features.T
    h = h + block.linear.levels.weight[design.codes[:, 0]]
    norm = block.batch_norm
    h = (h - norm.running_mean) / (norm.running_var + 1e-3).sqrt() * norm.weight + norm.bias
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(net(x, features, design), h.clamp(min=0))


def tables(net: Mlp) -> list[bool]:
    return [block.linear.levels is not None for block in net.layers]


def test_where_covariates_enter():
    assert tables(Mlp(11, MlpConfig(n_hidden=6, n_layers=3), 2, [Factor(0, 3)])) == [True, True, True]
    shallow = Mlp(11, MlpConfig(n_hidden=6, n_layers=3, inject_all=False), 2, [Factor(0, 3)])
    assert tables(shallow) == [True, False, False]
    assert [block.linear.features is not None for block in shallow.layers] == [True, False, False]


def test_dropout_scales_what_is_left_and_is_off_in_evaluation():
    x, _, design = problem(400)
    net = Mlp(11, MlpConfig(n_hidden=50, dropout=0.3, batch_norm=False)).double()
    clean = net.eval()(x, None, design)
    with seeding.forked(0):
        dropped = net.train()(x, None, design)
    positive = clean > 0
    kept = dropped[positive] != 0
    torch.testing.assert_close(dropped[positive][kept], clean[positive][kept] / 0.7)
    n = kept.numel()
    assert abs(kept.double().mean().item() - 0.7) < 5 * (0.3 * 0.7 / n) ** 0.5
    torch.testing.assert_close(net.eval()(x, None, design), clean)


def test_samples_lead():
    _, features, design = problem()
    net = Mlp(3, MlpConfig(n_hidden=6, n_layers=2), 2, [Factor(0, 3)]).double().eval()
    z = normals(5, 8, 3, seed=3)
    torch.testing.assert_close(net(z, features, design), torch.stack([net(draw, features, design) for draw in z]))


DROP_INPUT = MlpConfig(n_hidden=50, dropout=0.3, batch_norm=False, drop_input=True)


def test_dropout_of_the_input_is_before_the_linear_map():
    """Each input is kept, and scaled, or not; the hidden units are never dropped, nor is what is not an input."""
    x, features, design = problem(400)
    net = Mlp(11, DROP_INPUT, 2, [Factor(0, 3)]).double()
    with seeding.forked(0):
        out = net.train()(x + 1.0, features, design)
    with seeding.forked(0):
        kept = torch.nn.functional.dropout(torch.ones_like(x), 0.3)
    torch.testing.assert_close(out, net.eval()((x + 1.0) * kept, features, design))
    assert set(kept.unique().tolist()) == {0.0, 1 / 0.7}


@pytest.mark.parametrize("log1p", [True, False])
def test_dropout_of_sparse_counts_drops_entries(log1p):
    x, features, design = problem(400)
    net = Mlp(11, DROP_INPUT, 2, [Factor(0, 3)]).double()
    counts = CountBlock.from_dense(x)
    sparse = CountInput([counts], log1p)
    with seeding.forked(0):
        out = net.train()(sparse, features, design)
    with seeding.forked(0):
        kept = torch.nn.functional.dropout(torch.ones_like(counts.values), 0.3)
    entries = x.log1p() if log1p else x
    dense = CountBlock(kept, counts.columns, counts.offsets, 11).to_dense() * entries
    torch.testing.assert_close(out, net.eval()(dense, features, design))
    # In evaluation mode nothing is dropped.
    torch.testing.assert_close(net(sparse, features, design), net(entries, features, design))


def test_dropout_of_the_input_of_every_layer():
    net = Mlp(11, MlpConfig(n_hidden=6, n_layers=3, dropout=0.4, batch_norm=False, drop_input=True))
    assert [(block.drop_input, block.dropout) for block in net.layers] == [(0.4, 0.0)] * 3
    plain = Mlp(11, MlpConfig(n_hidden=6, n_layers=3, dropout=0.4))
    assert [(block.drop_input, block.dropout) for block in plain.layers] == [(0.0, 0.4)] * 3


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_slopes_are_those_of_reverse_differentiation(config):
    _, features, design = problem()
    net = Mlp(3, config, 2, [Factor(0, 3)]).double().eval()
    for block in net.layers:
        if block.batch_norm is not None:
            with torch.no_grad():
                block.batch_norm.running_var.copy_(normals(6, seed=8).exp())
                block.batch_norm.weight.copy_(normals(6, seed=9))
    z = normals(8, 3, seed=3)
    slopes = torch.autograd.functional.jacobian(lambda x: net(x, features, design).sum(0), z)  # (hidden, cells, in)
    torch.testing.assert_close(net.slopes(z, features, design), slopes.permute(2, 1, 0))
