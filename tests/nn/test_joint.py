"""Posteriors of several modalities, and what happens where one is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from countvi import seeding
from countvi.batch import Batch, CountBlock, Design, Factor
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.joint import CellWeights, Concatenated, EqualWeights, SingleEncoder, UniversalWeights, WeightedMean
from countvi.nn.mlp import MlpConfig

N, GENES = 8, {"rna": 6, "atac": 4}
FACTOR = Factor(0, 3)
CONFIG = MlpConfig(n_hidden=5, batch_norm=False, layer_norm=True)
GAPS = {
    "rna": torch.tensor([True] * 6 + [False, False]),
    "atac": torch.tensor([True, False, True, True, False, True, True, False]),
}


def batch(present: dict[str, torch.Tensor] | None = None, seed: int = 0) -> Batch:
    g = seeding.generator(seed)
    counts = {}
    for name, n in GENES.items():
        x = torch.poisson(torch.full((N, n), 1.5, dtype=torch.float64), generator=g)
        if present is not None:
            x[~present[name]] = 0.0
        counts[name] = CountBlock.from_dense(x)
    codes = torch.arange(N).remainder(3).unsqueeze(1)
    return Batch(counts, Design(codes, torch.randn(N, 2, generator=g, dtype=torch.float64), present=present))


def encoder(n_genes: int, n_out: int) -> GaussianEncoder:
    return GaussianEncoder(n_genes, n_out, CONFIG, n_features=2, factors=[FACTOR])


def encoders(**n_out: int) -> dict[str, GaussianEncoder]:
    with seeding.forked(0):
        return {name: encoder(GENES[name], n).double() for name, n in n_out.items()}


def weighted(weigh: torch.nn.Module) -> WeightedMean:
    return WeightedMean(encoders(rna=3, atac=3), weigh).double()


def make(mode: str):
    with seeding.forked(1):
        return {
            "concatenated": lambda: Concatenated(encoders(rna=3, atac=2)),
            "single": lambda: SingleEncoder(("rna", "atac"), encoder(10, 3)).double(),
            "equal": lambda: weighted(EqualWeights()),
            "universal": lambda: weighted(UniversalWeights(2)),
            "cell": lambda: weighted(CellWeights(2, 3)),
        }[mode]()


every = pytest.mark.parametrize("mode", ["concatenated", "single", "equal", "universal", "cell"])


def q_of(model, b: Batch):
    return model(b, b.design.continuous)


def test_concatenation_is_each_modality_alone():
    model, b = make("concatenated"), batch()
    q = q_of(model, b)
    assert q.loc.shape == (N, 5) == (N, model.n_latent)
    for name, piece in {"rna": slice(0, 3), "atac": slice(3, 5)}.items():
        alone = encoders(rna=3, atac=2)[name](b.counts[name], b.design.continuous, b.design)
        torch.testing.assert_close(q.loc[:, piece], alone.loc)
        torch.testing.assert_close(q.scale[:, piece], alone.scale)
        assert model.slices()[name] == piece
        torch.testing.assert_close(model.of_modalities(b, b.design.continuous)[name].loc, alone.loc)


def test_one_encoder_sees_the_counts_side_by_side():
    model, b = make("single"), batch()
    joined = torch.cat([b.counts["rna"].to_dense(), b.counts["atac"].to_dense()], dim=1)
    expected = model.encode(CountBlock.from_dense(joined), b.design.continuous, b.design)
    q = q_of(model, b)
    torch.testing.assert_close(q.loc, expected.loc)
    torch.testing.assert_close(q.scale, expected.scale)
    assert model.of_modalities(b, b.design.continuous) == {}


@pytest.mark.parametrize("present", [None, GAPS], ids=["complete", "gaps"])
@pytest.mark.parametrize("kind", ["equal", "universal", "cell"])
def test_a_weighted_mean_by_hand(kind, present):
    weigh = {"equal": EqualWeights(), "universal": UniversalWeights(2), "cell": CellWeights(2, 3)}[kind]
    model, b = weighted(weigh), batch(present)
    if kind == "universal":
        with torch.no_grad():
            weigh.logits.copy_(torch.tensor([0.7, -0.4]))
    q = q_of(model, b)
    parts = model.of_modalities(b, b.design.continuous)
    weights = model.weights(b, torch.stack([part.loc for part in parts.values()], dim=1))
    torch.testing.assert_close(weights.sum(1), torch.ones(N, 1, dtype=torch.float64))
    for i in range(N):
        known = [name for name in GENES if present is None or present[name][i]]
        if not known:
            assert not q.loc[i].any() and (q.scale[i] == 1).all()
            continue
        loc = torch.stack([parts[name].loc[i] for name in GENES])
        logits = {
            "equal": lambda: torch.zeros(2, dtype=torch.float64),
            "universal": lambda: weigh.logits,
            "cell": lambda loc=loc: weigh.logits.weight @ loc.flatten() + weigh.logits.bias,
        }[kind]()
        e = [logits[list(GENES).index(name)].exp() for name in known]
        a = [value / sum(e) for value in e]
        torch.testing.assert_close(q.loc[i], sum(w * parts[n].loc[i] for w, n in zip(a, known, strict=True)))
        variance = sum((w * parts[n].scale[i]) ** 2 for w, n in zip(a, known, strict=True))
        torch.testing.assert_close(q.scale[i].square(), variance)


def test_a_weighted_mean_is_the_distribution_of_the_mean_of_draws():
    model, b = make("cell"), batch()
    q = q_of(model, b)
    parts = model.of_modalities(b, b.design.continuous)
    weight = model.weights(b, torch.stack([p.loc for p in parts.values()], dim=1))
    torch.testing.assert_close(weight.sum(1), torch.ones(N, 1, dtype=torch.float64))
    draws = sum(weight[:, i] * part.rsample(seeding.generator(i), 20_000) for i, part in enumerate(parts.values()))
    assert ((draws.mean(0) - q.loc).abs() < 5 * q.scale / 20_000**0.5).all()
    np.testing.assert_allclose((draws.std(0) / q.scale).detach(), 1.0, atol=5 / 40_000**0.5)


@every
def test_a_missing_modality_leaves_other_cells_as_they_are(mode):
    model = make(mode)
    complete, gaps = q_of(model, batch()), q_of(model, batch(GAPS))
    both = GAPS["rna"] & GAPS["atac"]
    assert torch.equal(gaps.loc[both], complete.loc[both])
    assert torch.equal(gaps.scale[both], complete.scale[both])
    neither = ~(GAPS["rna"] | GAPS["atac"])
    assert neither.any() and not gaps.loc[neither].any() and (gaps.scale[neither] == 1).all()


def test_the_slice_of_a_missing_modality_is_the_prior():
    q = q_of(make("concatenated"), batch(GAPS))
    assert not q.loc[~GAPS["atac"], 3:].any() and (q.scale[~GAPS["atac"], 3:] == 1).all()
    assert q.loc[GAPS["atac"], 3:].any(1).all()


@every
def test_gradients_are_finite_with_gaps(mode):
    model, b = make(mode), batch(GAPS)
    q = q_of(model, b)
    (q.loc.square().sum() + q.scale.log().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_with_one_modality_all_ways_are_the_same():
    b = batch()
    q = Concatenated(encoders(rna=3))(b, b.design.continuous)
    for other in (
        SingleEncoder(("rna",), encoders(rna=3)["rna"]),
        WeightedMean(encoders(rna=3), EqualWeights()),
        WeightedMean(encoders(rna=3), UniversalWeights(1)),
        WeightedMean(encoders(rna=3), CellWeights(1, 3)).double(),
    ):
        p = other(b, b.design.continuous)
        torch.testing.assert_close(p.loc, q.loc)
        torch.testing.assert_close(p.scale, q.scale)
