"""The regularised model against its equations, its limits, and what happens where a modality is missing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from tests.models import small
from tests.models.small import Cells, Plan, build

from countvi import seeding
from countvi.batch import RNA, Batch, Factor
from countvi.models.objective import Objective
from countvi.models.regularized import Latents, Regularized

BATCH, DONOR = Factor(0, 3), Factor(1, 2)
KEYS = {"none": [], "one": [BATCH], "two": [BATCH, DONOR]}
N, GENES, PEAKS = 60, 9, 6


def cells(gaps: bool = False, two: bool = False, seed: int = 0) -> Cells:
    rng = np.random.default_rng(seed)
    depth = rng.lognormal(0.0, 0.4, (N, 1))
    counts = {RNA: rng.poisson(depth * rng.gamma(0.5, 8.0, GENES)).astype(float)}
    present = {}
    if two:
        counts["atac"] = rng.poisson(depth * rng.gamma(1.0, 2.0, PEAKS)).astype(float)
    if gaps:
        present["atac"] = np.random.default_rng(9).random(N) < 0.6
        counts["atac"][~present["atac"]] = 0.0
    codes = np.stack([rng.integers(0, 3, N), rng.integers(0, 2, N)], axis=1)
    return Cells(counts, codes, rng.normal(size=(N, 2)), present)


def double(data: Cells) -> Batch:
    return data.batch(dtype=torch.float64)


def posterior_means(model: Regularized, batch: Batch) -> Latents:
    """Return z at its mean, and the library at the mean of its size."""
    q = model.guide(batch)
    return Latents(q.z.loc, q.log_library.loc + 0.5 * q.log_library.scale.square())


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def shake(model: Regularized) -> Regularized:
    """Move every parameter, so that nothing is right by its initial value."""
    with torch.no_grad(), seeding.forked(7):
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_generates_what_the_equations_say():
    data = cells()
    plan = Plan(ambient=[BATCH, DONOR], scaling=[DONOR, BATCH], dispersion=DONOR, group=BATCH, conditioning=[DONOR])
    model = shake(build(data, plan)).double().eval()
    batch, part = double(data), model.modalities[RNA]
    s, d = data.codes.T
    z, log_library = np.random.default_rng(1).normal(size=(N, 3)), np.log(data.counts[RNA].sum(1) + 1)
    likelihood = model.generate(Latents(torch.as_tensor(z), torch.as_tensor(log_library[:, None])), batch.design)[RNA]

    linear = part.decode.layers[0].linear
    h = z @ array(linear.weight).T + array(linear.bias) + array(linear.levels.weight)[d]
    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    rho = np.log1p(np.exp(np.maximum(h, 0) @ array(part.rho.weight).T + array(part.rho.bias)))
    beta, gamma = array(part.background.beta), array(part.scaling.gamma)
    background = np.exp(beta[s]) + np.exp(beta[3 + d])
    scaling = np.log1p(np.exp(gamma[d])) / 0.7 * np.log1p(np.exp(gamma[2 + s])) / 0.7
    mean = np.exp(log_library - float(part.log_unit))[:, None] * (rho + background) * scaling
    theta = np.exp(array(part.dispersion.loc))[d]
    np.testing.assert_allclose(likelihood.mean, mean, rtol=1e-9)
    expected = stats.nbinom.logpmf(data.counts[RNA], theta, theta / (theta + mean)).sum(1)
    np.testing.assert_allclose(likelihood.log_prob(batch.counts[RNA]), expected, rtol=1e-9)


@torch.no_grad()
def test_the_prior():
    data = cells()
    model = build(data, Plan(group=BATCH)).double()
    p = model.prior(double(data).design)
    assert not p.z.loc.any() and (p.z.scale == 1).all() and p.z.loc.shape == (N, 3)
    totals = data.counts[RNA].sum(1)
    for group in range(3):
        logs = np.log(totals[data.codes[:, 0] == group])
        mine = data.codes[:, 0] == group
        np.testing.assert_allclose(p.log_library.loc[mine, 0], logs.mean(), rtol=1e-6)
        np.testing.assert_allclose(p.log_library.scale[mine, 0], np.sqrt(0.5) * logs.std(), rtol=1e-5)


@pytest.mark.parametrize("ambient", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("scaling", [None, *KEYS.values()], ids=["without", *KEYS])
@pytest.mark.parametrize("sensitivity", [1.0, 0.2])
@torch.no_grad()
def test_before_training_expected_counts_are_observed_ones(ambient, scaling, sensitivity):
    data = cells(two=True, gaps=True)
    plan = Plan(ambient=ambient, scaling=scaling, sensitivity=sensitivity, n_hidden=128, library_hidden=16)
    model = build(data, plan).double().eval()
    batch = double(data)
    for name, likelihood in model.generate(posterior_means(model, batch), batch.design).items():
        here = data.present.get(name, np.ones(N, dtype=bool))
        observed, expected = data.counts[name][here].sum(0), array(likelihood.mean)[here].sum(0)
        assert abs(expected.sum() / observed.sum() - 1) < 0.03
        np.testing.assert_allclose(expected[observed > 20], observed[observed > 20], rtol=0.1)


@pytest.mark.parametrize("mode", ["concatenated", "single", "equal", "universal", "cell"])
@torch.no_grad()
def test_a_missing_modality_leaves_other_cells_as_they_are(mode):
    """The same model of complete cells and of cells with gaps: cells that have both agree in every term."""
    gaps = cells(two=True, gaps=True)
    here = gaps.present["atac"]
    complete = cells(two=True)
    model = shake(build(complete, Plan(ambient=[BATCH]), mode)).double().eval()
    with_gaps = model.elbo(double(gaps), seeding.generator(0))
    without = model.elbo(double(complete), seeding.generator(0))
    for kind in ("log_lik", "kl"):
        for name, values in getattr(with_gaps, kind).items():
            torch.testing.assert_close(values[here], getattr(without, kind)[name][here], msg=name)
    assert not with_gaps.log_lik["atac"][~here].any()
    assert (with_gaps.log_lik[RNA] < 0).all()
    # What is expected of the missing counts exists.
    mean = model.generate(posterior_means(model, double(gaps)), double(gaps).design)["atac"].mean
    assert torch.isfinite(mean).all()


@torch.no_grad()
def test_what_is_missing_costs_nothing():
    """Slice and library of a missing modality are at the prior: their divergence is that of the others alone."""
    data = cells(two=True, gaps=True)
    model = shake(build(data, Plan())).double().eval()
    batch, missing = double(data), ~data.present["atac"]
    q, p = model.guide(batch), model.prior(batch.design)
    assert torch.equal(q.z.loc[missing, 3:], p.z.loc[missing, 3:])
    assert torch.equal(q.z.scale[missing, 3:], p.z.scale[missing, 3:])
    for part in ("loc", "scale"):
        a, b = getattr(q.log_library, part), getattr(p.log_library, part)
        assert torch.equal(a[missing, 1], b[missing, 1]) and not torch.equal(a[~missing, 1], b[~missing, 1])


def test_missing_counts_teach_nothing():
    """No parameter of a modality hears of cells without it, whatever its library and slice would be."""
    data = cells(two=True, gaps=True)
    data.present["atac"][:] = False
    data.counts["atac"][:] = 0.0
    model = build(data, Plan(ambient=[BATCH])).double().eval()
    elbo = model.elbo(double(data), seeding.generator(0))
    elbo.per_cell.sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("parts.1.", "encode_z.encoders.1.")):
            assert parameter.grad is None or not parameter.grad.any(), name
    assert model.parts[0].rho.weight.grad.any()


def same_numbers(a: Regularized, b: Regularized, batch_a: Batch, batch_b: Batch) -> None:
    first, second = (m.double().eval().elbo(x, seeding.generator(3)) for m, x in ((a, batch_a), (b, batch_b)))
    torch.testing.assert_close(second.log_lik[RNA], first.log_lik[RNA])
    torch.testing.assert_close(second.kl["z"], first.kl["z"])


@pytest.mark.parametrize("mode", ["single", "equal", "universal"])
@torch.no_grad()
def test_with_one_modality_all_ways_to_encode_are_one_model(mode):
    data = cells()
    plan = Plan(ambient=[BATCH], scaling=[DONOR], n_continuous=2)
    plain, other = shake(build(data, plan)), build(data, plan, mode)
    names = {name.replace("encoders.0.", "encode.") if mode == "single" else name: name for name in plain.state_dict()}
    missing, unexpected = other.load_state_dict(
        {name: plain.state_dict()[old] for name, old in names.items()}, strict=False
    )
    assert not unexpected and set(missing) <= {"encode_z.weigh.logits"}
    same_numbers(plain, other, double(data), double(data))


@torch.no_grad()
def test_a_modality_that_no_cell_has_leaves_the_model_of_the_other():
    data = cells(two=True, gaps=True)
    data.present["atac"][:] = False
    data.counts["atac"][:] = 0.0
    alone = Cells({RNA: data.counts[RNA]}, data.codes, data.continuous)
    one = shake(build(alone, Plan(ambient=[BATCH]), "equal"))
    both = build(data, Plan(ambient=[BATCH]), "equal")
    both.load_state_dict(one.state_dict(), strict=False)
    a = one.double().eval().guide(double(alone))
    b = both.double().eval().guide(double(data))
    torch.testing.assert_close(b.z.loc, a.z.loc)
    torch.testing.assert_close(b.z.scale, a.z.scale)
    likelihoods = [
        m.generate(posterior_means(m, x), x.design)[RNA].log_prob(x.counts[RNA])
        for m, x in ((one, double(alone)), (both, double(data)))
    ]
    torch.testing.assert_close(*likelihoods)


def test_global_terms_are_those_of_the_parts_and_count_once():
    data = cells(two=True)
    on = Plan(ambient=[BATCH], scaling=[DONOR], background_prior=small.GammaPrior(1.0, 100.0), dispersion=BATCH)
    model = shake(build(data, {RNA: on, "atac": Plan()})).double()
    terms = model.log_prior()
    assert set(terms) == {"rna.theta", "rna.background", "rna.scaling", "atac.theta"}
    rna = model.modalities[RNA]
    torch.testing.assert_close(terms["rna.background"], rna.background.log_prior())
    torch.testing.assert_close(terms["rna.scaling"], rna.scaling.log_prior())
    objective = Objective(n_cells=1000, annealed=model.annealed)
    model.eval()
    whole, part = (
        model.elbo(data.batch(rows, torch.float64), seeding.generator(0)) for rows in (slice(None), slice(5))
    )
    for elbo in (whole, part):
        without = dataclasses.replace(elbo, log_prior={})
        difference = objective.loss(elbo, 1.0) - objective.loss(without, 1.0)
        torch.testing.assert_close(difference, -sum(terms.values()) / 1000)


def test_training_is_noisy_and_evaluation_is_not():
    data = cells()
    model = build(data, Plan(ambient=[BATCH]))
    batch = data.batch()
    with seeding.forked(0), torch.no_grad():
        noisy = [model.train().elbo(batch, seeding.generator(0)).log_lik[RNA] for _ in range(2)]
        quiet = [model.eval().elbo(batch, seeding.generator(0)).log_lik[RNA] for _ in range(2)]
    assert not torch.equal(*noisy) and torch.equal(*quiet)


def test_a_background_is_of_its_level_alone():
    data = cells()
    model = build(data, Plan(ambient=[BATCH])).double().eval()
    batch = data.batch(data.codes[:, 0] == 1, torch.float64)
    model.elbo(batch, seeding.generator(0)).per_cell.sum().backward()
    assert [row.any().item() for row in model.modalities[RNA].background.beta.grad] == [False, True, False]
