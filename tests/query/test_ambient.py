"""What is the cell's own, and what each modality says and uses: against formulas, loops and draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from tests.models import small
from tests.query import ask

from countvi import query, seeding
from countvi.batch import RNA, Batch, Factor
from countvi.models.regularized import Latents, Regularized

N, GENES, PEAKS = 40, 8, 5
WELL, LANE = Factor(0, 3), Factor(1, 2)
PLAN = small.Plan(ambient=[WELL, LANE], scaling=[LANE], n_continuous=1, conditioning=[LANE])


@dataclass
class Source:
    """Cells for read-outs, in double precision."""

    data: small.Cells

    @property
    def n_cells(self) -> int:
        return N

    def batch(self, rows: np.ndarray) -> Batch:
        return self.data.batch(rows, torch.float64)


@pytest.fixture(scope="module")
def data() -> small.Cells:
    rng = np.random.default_rng(0)
    counts = {RNA: rng.poisson(3.0, (N, GENES)).astype(float), "atac": rng.poisson(1.0, (N, PEAKS)).astype(float)}
    counts[RNA][7] = 0.0
    present = {"atac": rng.random(N) < 0.7}
    counts["atac"][~present["atac"]] = 0.0
    codes = np.stack([rng.integers(0, 3, N), rng.integers(0, 2, N)], axis=1)
    return small.Cells(counts, codes, rng.normal(size=(N, 1)), present)


def make(data: small.Cells, mode: str = "concatenated") -> Regularized:
    model = small.build(data, {RNA: PLAN, "atac": small.Plan(n_continuous=1)}, mode)
    with torch.no_grad(), seeding.forked(3):
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.double()


@pytest.fixture(scope="module")
def model(data) -> Regularized:
    return make(data)


def cells(data: small.Cells, chunk: int = 7, rows: np.ndarray | None = None) -> query.Cells:
    return query.Cells(Source(data), np.arange(N) if rows is None else rows, chunk)


def centre(model: Regularized, batch: Batch) -> Latents:
    """Posterior means, in evaluation mode."""
    with torch.no_grad():
        q = model.eval().guide(batch)
        return Latents(q.z.loc, q.log_library.loc + 0.5 * q.log_library.scale.square())


def own_share(model: Regularized, data: small.Cells) -> np.ndarray:
    """Return rho / (rho + B) at the posterior means, from the expected frequencies and the table of the background."""
    batch = data.batch(dtype=torch.float64)
    rate = model.generate(centre(model, batch), batch.design)[RNA].rate
    part = model.modalities[RNA]
    rho = rate.scale.detach().numpy() * np.exp(float(part.log_unit))
    beta = np.exp(part.background.beta.detach().numpy())
    return rho / (rho + beta[data.codes[:, 0]] + beta[3 + data.codes[:, 1]])


def test_background_profile(model):
    wells, lanes = query.background_profile(model)
    beta = model.modalities[RNA].background.beta.detach().exp().numpy()
    np.testing.assert_array_equal(wells, beta[:3])
    np.testing.assert_array_equal(lanes, beta[3:])
    assert query.background_profile(model, modality="atac") == []


def test_decontaminated_counts_and_fraction(model, data):
    raw, share = data.counts[RNA], own_share(model, data)
    kept = query.decontaminated_counts(model, cells(data))
    np.testing.assert_allclose(kept.toarray(), raw * share, rtol=1e-5)
    fraction = query.ambient_fraction(model, cells(data))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(fraction, (raw * (1 - share)).sum(1) / raw.sum(1), rtol=1e-5)
    assert np.isnan(fraction[7]) and np.isfinite(np.delete(fraction, 7)).all()


def test_without_a_background_everything_is_the_cells_own(model, data):
    atac = cells(data)
    kept = query.decontaminated_counts(model, atac, modality="atac").toarray()
    np.testing.assert_array_equal(kept, data.counts["atac"])
    fraction = query.ambient_fraction(model, atac, modality="atac")
    total = data.counts["atac"].sum(1)
    assert not fraction[total > 0].any() and np.isnan(fraction[total == 0]).all()


def test_whole_counts_are_draws_around_the_expectation(model, data):
    raw, share = data.counts[RNA], own_share(model, data)
    draws = [
        query.decontaminated_counts(model, cells(data), draws=query.Draws(at_mean=True, seed=s), integer=True).toarray()
        for s in range(200)
    ]
    mean, spread = np.mean(draws, axis=0), np.sqrt(raw * share * (1 - share) / 200)
    assert all((d == d.round()).all() and (d <= raw).all() and (d >= 0).all() for d in draws)
    assert (np.abs(mean - raw * share) <= 5 * spread + 1e-9).all()
    again = query.decontaminated_counts(model, cells(data), draws=query.Draws(at_mean=True, seed=0), integer=True)
    np.testing.assert_array_equal(again.toarray(), draws[0])


def test_averages_over_draws_do_not_depend_on_the_chunk(model, data):
    draws = query.Draws(6, seed=4)
    kept = [query.decontaminated_counts(model, cells(data, chunk=40), draws).toarray() for _ in range(2)]
    np.testing.assert_array_equal(*kept)
    passes = query.decontaminated_counts(model, cells(data, chunk=80), draws).toarray()
    np.testing.assert_allclose(passes, kept[0], rtol=1e-5)
    assert not np.allclose(kept[0], query.decontaminated_counts(model, cells(data)).toarray(), rtol=1e-5)
    assert (kept[0] <= data.counts[RNA]).all()


def test_own_counts_given_the_sum_are_binomial():
    """What the read-outs rest on: two counts that share their Gamma factor, split given their sum."""
    rng, n = np.random.default_rng(0), 400_000
    rho, background, theta = 2.0, 0.7, 0.8
    factor = rng.gamma(theta, 1 / theta, n)
    own, ambient = rng.poisson(rho * factor), rng.poisson(background * factor)
    of_four = own[own + ambient == 4]
    expected = stats.binom(4, rho / (rho + background)).pmf(np.arange(5)) * len(of_four)
    assert stats.chisquare(np.bincount(of_four, minlength=5), expected).pvalue > 1e-3


def test_expression_with_and_without_background(model, data):
    plain = ask.normalized_expression(model, cells(data), use_z_mean=True)
    both = ask.normalized_expression(model, cells(data), use_z_mean=True, background=True, library_size=1e4)
    np.testing.assert_allclose(plain / both * 1e4, own_share(model, data), rtol=1e-5)
    counts = ask.normalized_expression(model, cells(data), use_z_mean=True, library_size=None, background=True)
    batch = data.batch(dtype=torch.float64)
    mean = model.generate(centre(model, batch), batch.design)[RNA].mean
    np.testing.assert_allclose(counts, mean.detach(), rtol=1e-5)
    some = ask.sampled_expression(model, cells(data), n_samples_overall=5, background=True)
    assert some.shape == (5, GENES) and np.isfinite(some).all()


def test_library_sizes_of_several_modalities(model, data):
    sizes = query.library_size(model, cells(data))
    expected = centre(model, data.batch(dtype=torch.float64)).log_library.exp()
    np.testing.assert_allclose(sizes, expected, rtol=1e-6)
    assert sizes.shape == (N, 2)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("mode", ["concatenated", "single", "cell"])
def test_attribution_is_the_mean_absolute_slope(data, mode, relative):
    """Against reverse differentiation of everything from z to the mean."""
    model = make(data, mode)
    actual = query.modality_attribution(model, cells(data), relative=relative)
    batch = data.batch(dtype=torch.float64)
    latents = centre(model, batch)
    for name, values in actual.items():

        def mean(z: torch.Tensor, name: str = name) -> torch.Tensor:
            return model.generate(Latents(z, latents.log_library), batch.design)[name].mean

        slopes = torch.autograd.functional.jacobian(lambda z, mean=mean: mean(z).sum(0), latents.z)
        slopes = slopes.permute(1, 0, 2).abs()  # cells do not see each other, so the sum over them keeps them apart
        divisor = mean(latents.z).sum(-1, keepdim=True) if relative else slopes.shape[1]
        np.testing.assert_allclose(values, (slopes.sum(1) / divisor).detach(), rtol=1e-6)
        assert values.shape == (N, model.encode_z.n_latent)


def test_relative_attribution_does_not_depend_on_depth(data):
    model = make(data)
    before = query.modality_attribution(model, cells(data), relative=True)[RNA]
    raw = query.modality_attribution(model, cells(data))[RNA]
    with torch.no_grad():
        model.modalities[RNA].log_unit -= np.log(10.0)
    np.testing.assert_allclose(query.modality_attribution(model, cells(data), relative=True)[RNA], before, rtol=1e-6)
    np.testing.assert_allclose(query.modality_attribution(model, cells(data))[RNA], 10 * raw, rtol=1e-6)


def test_attribution_finds_the_dimensions_that_a_decoder_uses(data):
    model = make(data)
    with torch.no_grad():
        model.modalities["atac"].decode.layers[0].linear.weight[:, :3] = 0.0  # blind to the slice of the RNA
    attribution = query.modality_attribution(model, cells(data))
    assert not attribution["atac"][:, :3].any() and (attribution["atac"][:, 3:] > 0).all()
    assert (attribution[RNA] > 0).all()


def test_attribution_leaves_the_model_as_it_was(data):
    model = make(data).train()
    first = query.modality_attribution(model, cells(data))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    np.testing.assert_array_equal(first[RNA], query.modality_attribution(model, cells(data, chunk=7))[RNA])
    np.testing.assert_allclose(query.modality_attribution(model, cells(data, chunk=40))[RNA], first[RNA], rtol=1e-9)


def test_modality_latents(data):
    latents = query.modality_latents(make(data), cells(data))
    z, _ = query.latent_moments(make(data), cells(data))
    here = data.present["atac"]
    np.testing.assert_array_equal(latents[RNA], z[:, :3])
    np.testing.assert_array_equal(latents["atac"][here], z[here, 3:])
    assert np.isnan(latents["atac"][~here]).all()
    assert query.modality_latents(make(data, "single"), cells(data)) == {}


def test_evidence_of_cells_with_gaps(model, data):
    """The importance weights of what is missing are one."""
    batch = query.marginal_log_likelihood(model, cells(data), n_samples=50)
    assert np.isfinite(batch).all()
    bound = query.elbo(model, cells(data))
    assert batch.mean() > bound.mean()
    errors = query.reconstruction(model, cells(data))
    assert not errors["atac"][~data.present["atac"]].any() and (errors[RNA] > 0).all()
