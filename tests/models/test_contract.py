"""What every model in every configuration does. The configurations are in ``table.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from tests.models.table import ROWS, Row

from countvi import seeding
from countvi.batch import Batch, CountBlock, Design
from countvi.models.count_model import CountModel
from countvi.models.objective import Objective
from countvi.nn.latent import Gaussian, Given, Point
from countvi.nn.mlp import Block

pytestmark = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """Some cells of a minibatch, cut out of the dense matrix."""
    design = batch.design
    factor = None if design.size_factor is None else design.size_factor[rows]
    present = None if design.present is None else {name: mask[rows] for name, mask in design.present.items()}
    entries = None if design.entries is None else {name: mask[rows] for name, mask in design.entries.items()}
    return Batch(
        counts={name: CountBlock.from_dense(block.to_dense()[rows]) for name, block in batch.counts.items()},
        design=Design(
            design.codes[rows],
            design.continuous[rows],
            factor,
            present,
            None if design.position is None else design.position[rows],
            entries,
        ),
    )


def in_double(row: Row, seed: int = 0) -> tuple[CountModel, Batch]:
    """Model in evaluation mode with running statistics that are not the initial ones, and cells."""
    model, batch = row.build(seed)
    model, batch = model.double(), batch.to(dtype=torch.float64)
    model.train()
    with torch.no_grad(), seeding.forked(seed):
        for _ in range(3):
            model.elbo(batch, seeding.generator(seed))
    return model.eval(), batch


def terms(model: CountModel, batch: Batch, noise: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Per-cell terms for noise that belongs to the cells."""
    q, p = model.guide(batch), model.prior(batch.design)
    values = [
        d.loc + d.scale * noise[name] if isinstance(d, Gaussian) else d.rsample()
        for name, d in zip(q._fields, q, strict=True)
    ]
    likelihoods = model.generate(type(q)(*values), batch.design)
    log_lik = {f"log_lik {name}": y.log_prob(batch.counts[name]) for name, y in likelihoods.items()}
    divergences = {}
    for name, a, b, value in zip(q._fields, q, p, values, strict=True):
        if isinstance(a, Gaussian) and isinstance(b, Gaussian):
            divergences[f"kl {name}"] = a.kl(b)
        elif isinstance(a, Gaussian):
            divergences[f"kl {name}"] = a.log_prob(value) - b.log_prob(value)
        elif isinstance(a, Point):
            divergences[f"kl {name}"] = -b.log_prob(value)
    conditional = model.conditional(likelihoods, batch.design)
    divergences |= {f"kl {name}": c.posterior.kl(c.prior) for name, c in conditional.items()}
    return log_lik | {name: values for name, values in divergences.items() if name[3:] not in model.noise}


def test_only_the_heads_in_use_exist(row):
    model, _ = row.build(0)
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert learned == row.n_parameters


def test_every_parameter_receives_a_gradient(row):
    model, batch = row.build(0)
    model, batch = model.double().train(), batch.to(dtype=torch.float64)
    with seeding.forked(0):
        elbo = model.elbo(batch, seeding.generator(0))
    loss = Objective(n_cells=100, annealed=model.annealed).loss(elbo, kl_weight=1.0)
    assert torch.isfinite(loss)
    loss.backward()
    # A constant before batch normalisation is subtracted again: its gradient exists, and is zero.
    before_norm = {
        id(block.linear.bias) for block in model.modules() if isinstance(block, Block) and block.batch_norm is not None
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, f"{name} is not learned, but has a gradient"
            continue
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"
        assert id(parameter) in before_norm or parameter.grad.abs().max() > 1e-12, f"{name} has gradient zero"


@pytest.mark.parametrize("training", [True, False])
def test_elbo_is_finite_in_single_precision(row, training):
    model, batch = row.build(0)
    model.train(training)
    with torch.no_grad(), seeding.forked(0):
        elbo = model.elbo(batch, seeding.generator(0))
    for values in (*elbo.log_lik.values(), *elbo.kl.values()):
        assert values.shape == (batch.n_cells,) and values.dtype == torch.float32
        assert torch.isfinite(values).all()
    with torch.no_grad(), seeding.forked(0):
        q, p = model.guide(batch), model.prior(batch.design)
    closed = [n for n, a, b in zip(q._fields, q, p, strict=True) if isinstance(a, Gaussian) and isinstance(b, Gaussian)]
    assert all((elbo.kl[name] >= 0).all() for name in closed if name not in model.noise)
    torch.testing.assert_close(elbo.per_cell, sum(elbo.log_lik.values()) - sum(elbo.kl.values()))


def test_double_precision_throughout(row):
    model, batch = in_double(row)
    with torch.no_grad():
        elbo = model(batch, seeding.generator(0))
    for values in (*elbo.log_lik.values(), *elbo.kl.values()):
        assert values.dtype == torch.float64 and torch.isfinite(values).all()


@torch.no_grad()
def test_a_cell_does_not_depend_on_its_minibatch(row):
    model, batch = in_double(row)
    q = model.guide(batch)
    noise = {
        name: torch.randn(d.loc.shape, generator=seeding.generator(1, i), dtype=torch.float64)
        for i, (name, d) in enumerate(zip(q._fields, q, strict=True))
        if isinstance(d, Gaussian)
    }
    whole = terms(model, batch, noise)
    order = list(reversed(range(batch.n_cells)))
    for part in ([0], order[:1], order[1:6], order[6:]):
        split = terms(model, rows_of(batch, part), {name: values[part] for name, values in noise.items()})
        assert split.keys() == whole.keys()
        for name, values in split.items():
            torch.testing.assert_close(values, whole[name][part], msg=name)


@torch.no_grad()
def test_elbo_is_its_terms(row):
    """The ELBO written once equals guide, prior and generate put together by hand."""
    model, batch = in_double(row)
    q = model.guide(batch)
    stream = seeding.generator(5)
    noise = {
        name: torch.randn(d.loc.shape, generator=stream, dtype=torch.float64)
        for name, d in zip(q._fields, q, strict=True)
        if isinstance(d, Gaussian)
    }
    expected = terms(model, batch, noise)
    elbo = model.elbo(batch, seeding.generator(5))
    actual = {f"log_lik {k}": v for k, v in elbo.log_lik.items()} | {f"kl {k}": v for k, v in elbo.kl.items()}
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, msg=name)


@torch.no_grad()
def test_a_samples_axis_is_a_loop(row):
    model, batch = in_double(row)
    q = model.guide(batch)
    draws = model.sample(q, seeding.generator(2), n_samples=4)
    together = model.generate(draws, batch.design)
    states = model.cell_state(draws)
    for s in range(4):
        one = type(q)(*(v if isinstance(d, Given) else v[s] for v, d in zip(draws, q, strict=True)))
        torch.testing.assert_close(states[s], model.cell_state(one))
        alone = model.generate(one, batch.design)
        for name, likelihood in alone.items():
            counts = batch.counts[name]
            torch.testing.assert_close(together[name].log_prob(counts)[s], likelihood.log_prob(counts))
            torch.testing.assert_close(together[name].mean[s], likelihood.mean)
            assert together[name].mean.shape == (4, batch.n_cells, counts.n_features)


@torch.no_grad()
def test_a_seed_is_a_model(row):
    first, batch = row.build(3)
    again, _ = row.build(3)
    other, _ = row.build(4)
    state, same, different = first.state_dict(), again.state_dict(), other.state_dict()
    assert state.keys() == same.keys() == different.keys()
    assert all(torch.equal(state[name], same[name]) for name in state)
    fixed = tuple(row.not_drawn)
    parameters = [n for n, parameter in first.named_parameters() if parameter.requires_grad]
    learned = {n for n in parameters if "norm" not in n and not (fixed and n.endswith(fixed))}
    assert not any(torch.equal(state[name], different[name]) for name in learned)
    a = first.eval().elbo(batch, seeding.generator(0)).per_cell
    assert torch.equal(a, again.eval().elbo(batch, seeding.generator(0)).per_cell)
    drawn = any(isinstance(latent, Gaussian) for latent in first.guide(batch))
    assert drawn != torch.equal(a, first.elbo(batch, seeding.generator(1)).per_cell)


@torch.no_grad()
def test_a_counterfactual_batch_is_a_new_design(row):
    model, batch = in_double(row)
    latents = model.sample(model.guide(batch), seeding.generator(0))
    before = batch.design.codes.clone()
    n_levels = int(before[:, 0].max()) + 1
    factual = model.generate(latents, batch.design)
    means = []
    for code in range(n_levels):
        design = batch.design.with_level(0, code)
        codes = before.clone()
        codes[:, 0] = code
        by_hand = dataclasses.replace(batch.design, codes=codes)
        generated = model.generate(latents, design)
        for name, likelihood in model.generate(latents, by_hand).items():
            torch.testing.assert_close(generated[name].mean, likelihood.mean, rtol=0, atol=0)
            mine = before[:, 0] == code
            torch.testing.assert_close(generated[name].mean[mine], factual[name].mean[mine])
        means.append(torch.cat([y.rate.scale for y in generated.values()], dim=-1))
    assert torch.equal(batch.design.codes, before)
    changed = any(not torch.allclose(means[0], mean) for mean in means[1:])
    assert changed == row.batch_matters
