"""Counts drawn from the regularised process: training finds what they were drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.models.small import Cells, Plan, build

from countvi import query, seeding
from countvi.batch import RNA, Batch, Factor
from countvi.models.objective import Objective
from countvi.models.regularized import Regularized

N_CELLS, N_GENES, N_TYPES = 900, 80, 4
WELL, DONOR = Factor(0, 3), Factor(1, 2)
PLAN = Plan(n_latent=5, n_hidden=32, library_hidden=16, ambient=[WELL], group=WELL, scaling=[DONOR])
AMBIENT = np.array([0.03, 0.12, 0.3])
"""Expected share of ambient counts in each well."""


@dataclass
class Truth:
    """What the counts were drawn from.

    Parameters
    ----------
    cells
        The counts, with codes of well and donor.
    background
        Expected ambient counts as a share of the library, ``(wells, genes)``.
    ambient
        Counts that are ambient, ``(cells, genes)``.
    theta
        Inverse dispersion, ``(genes,)``.
    scaling
        Factor of each donor, ``(donors, genes)``.
    log_library
        ``(cells,)``.
    """

    cells: Cells
    background: np.ndarray
    ambient: np.ndarray
    theta: np.ndarray
    scaling: np.ndarray
    log_library: np.ndarray


@pytest.fixture(scope="module")
def truth() -> Truth:
    """Four types, of which each expresses some genes hardly; three wells with soups of their own; two donors."""
    rng = np.random.default_rng(0)
    kind, well, donor = (rng.integers(0, n, N_CELLS) for n in (N_TYPES, 3, 2))
    profile = rng.gamma(0.6, 1.0, (N_TYPES, N_GENES)) * np.exp(rng.normal(0, 0.5, N_GENES))
    profile[rng.random((N_TYPES, N_GENES)) < 0.35] *= 0.01
    profile /= profile.sum(1, keepdims=True)
    soup = rng.dirichlet(np.full(N_TYPES, 3.0), 3) @ profile * np.exp(rng.normal(0, 0.5, (3, N_GENES)))
    soup *= AMBIENT[:, None] / soup.sum(1, keepdims=True)
    scaling = np.exp(rng.normal(0, 0.15, (2, N_GENES)))
    theta = np.exp(rng.uniform(np.log(0.5), np.log(20.0), N_GENES))
    log_library = rng.normal(np.log(1000.0), 0.3, N_CELLS)
    factor = np.exp(log_library)[:, None] * scaling[donor] * rng.gamma(theta, 1 / theta, (N_CELLS, N_GENES))
    own = rng.poisson(factor * (1 - AMBIENT[well])[:, None] * profile[kind])
    ambient = rng.poisson(factor * soup[well])
    cells = Cells({RNA: (own + ambient).astype(float)}, np.stack([well, donor], axis=1))
    return Truth(cells, soup, ambient, theta, scaling, log_library)


def train(model: Regularized, cells: Cells, epochs: int, seed: int = 0, warmup: float = 0.3) -> Regularized:
    """One cycle of the learning rate, a warm-up of the divergence of z."""
    per_epoch, rng, noise = -(-N_CELLS // 128), np.random.default_rng(seed), seeding.generator(seed)
    optimizer = torch.optim.Adam(model.parameters(), eps=0.01)
    n_steps = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=n_steps, pct_start=0.2)
    objective = Objective(N_CELLS, model.annealed)
    model.train()
    with seeding.forked(seed):
        for step in range(n_steps):
            if step % per_epoch == 0:
                batches = [cells.batch(rows) for rows in np.array_split(rng.permutation(N_CELLS), per_epoch)]
            weight = min(1.0, step / (warmup * n_steps)) if warmup else 1.0
            loss = objective.loss(model.elbo(batches[step % per_epoch], noise), weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def model(truth) -> Regularized:
    return train(build(truth.cells, PLAN), truth.cells, 80)


@dataclass
class Source:
    """Cells for read-outs."""

    data: Cells

    @property
    def n_cells(self) -> int:
        return N_CELLS

    def batch(self, rows: np.ndarray) -> Batch:
        return self.data.batch(rows)


@pytest.fixture
def cells(truth) -> query.Cells:
    return query.Cells(Source(truth.cells), np.arange(N_CELLS), 300)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_background(truth, model):
    (profile,) = query.background_profile(model)
    estimate = profile / np.exp(float(model.modalities[RNA].log_unit))
    assert correlation(estimate, truth.background) > 0.95
    assert correlation(np.log(estimate), np.log(truth.background)) > 0.93
    np.testing.assert_allclose(estimate.sum(1), AMBIENT, rtol=0.25, atol=0.03)


def test_ambient_fraction(truth, model, cells):
    fraction = query.ambient_fraction(model, cells)
    true = truth.ambient.sum(1) / truth.cells.counts[RNA].sum(1)
    assert correlation(fraction, true) > 0.97
    assert abs(fraction.mean() - true.mean()) < 0.03


def test_decontaminated_counts(truth, model, cells):
    raw = truth.cells.counts[RNA]
    kept = query.decontaminated_counts(model, cells).toarray()
    own = raw - truth.ambient
    assert (kept <= raw).all()
    # Most of what is ambient goes, and little of what is not: the error is far below that of doing nothing.
    assert np.abs(kept - own).sum() < 0.5 * np.abs(raw - own).sum()
    assert abs(kept.sum() / own.sum() - 1) < 0.03


def test_inverse_dispersion(truth, model):
    theta = model.modalities[RNA].dispersion.loc.exp().detach().numpy()[0]
    assert spearmanr(theta, truth.theta).statistic > 0.9
    assert abs(np.median(np.log(theta / truth.theta))) < 0.3


def test_more_epochs_do_not_make_it_poisson(truth, model):
    """With a missing Jacobian, theta grows for as long as training goes on."""
    longer = build(truth.cells, PLAN)
    longer.load_state_dict(model.state_dict())
    medians = []
    for run in range(3):
        log_theta = train(longer, truth.cells, 60, seed=run, warmup=0.0).modalities[RNA].dispersion.loc.detach()
        medians.append(float(log_theta.median()))
    assert abs(medians[2] - medians[0]) < 0.05
    assert abs(medians[2] - np.median(np.log(truth.theta))) < 0.2


def test_scaling(truth, model):
    """Of the donors to each other; what they share is the decoder's."""
    (factors,) = model.modalities[RNA].scaling.per_level()
    estimate = (factors[1] / factors[0]).log().detach().numpy()
    true = np.log(truth.scaling[1] / truth.scaling[0])
    assert correlation(estimate, true) > 0.9
    # Shrunk, as a prior with a standard deviation of 0.07 has it.
    assert 0.45 < (estimate @ true) / (true @ true) < 1.1


def test_library_size(truth, model, cells):
    library = np.log(query.library_size(model, cells)[:, 0])
    observed = np.log(truth.cells.counts[RNA].sum(1))
    assert correlation(library, truth.log_library) > correlation(observed, truth.log_library)
    assert correlation(library, truth.log_library) > 0.85
    assert abs((library - truth.log_library).mean()) < 0.25


def pick_profiles(groups: list[int], n_features: int, seed: int) -> np.ndarray:
    """Expected frequencies of each type, of which some share a profile."""
    profile = np.random.default_rng(seed).gamma(0.5, 1.0, (2, n_features))
    return (profile / profile.sum(1, keepdims=True))[groups]


@pytest.mark.parametrize("mode", ["concatenated", "cell"])
def test_two_modalities_with_gaps(mode):
    """The RNA tells one of three types from the others, the peaks another; each is missing in some cells."""
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 3, N_CELLS)
    rna, atac = pick_profiles([0, 1, 1], 60, 1)[kind], pick_profiles([0, 0, 1], 50, 2)[kind]
    depth = rng.lognormal(0, 0.3, (N_CELLS, 2))
    x = rng.poisson(depth[:, :1] * 600 * rna * rng.gamma(5.0, 0.2, rna.shape)).astype(float)
    y = rng.poisson(depth[:, 1:] * 250 * atac).astype(float)
    has_rna = rng.random(N_CELLS) > 0.2
    has_atac = (rng.random(N_CELLS) > 0.3) | ~has_rna
    x[~has_rna], y[~has_atac] = 0.0, 0.0
    data = Cells({RNA: x, "atac": y}, np.zeros((N_CELLS, 1)), None, {RNA: has_rna, "atac": has_atac})
    plan = Plan(n_latent=4, n_hidden=24)
    model = train(build(data, plan, mode), data, 40)
    cells = query.Cells(Source(data), np.arange(N_CELLS), 300)

    # Only both together tell the types apart.
    z, both = query.latent_moments(model, cells)[0], has_rna & has_atac
    distance = ((z[both][:, None] - z[both][None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    nearest = kind[both][np.argsort(distance, axis=1)[:, :10]]
    assert (nearest == kind[both][:, None]).mean() > 0.95

    # The first type's peaks follow from its RNA, the last one's RNA from its peaks.
    for name, cut, truth in (("atac", ~has_atac & (kind == 0), atac), (RNA, ~has_rna & (kind == 2), rna)):
        imputed = query.expectation(query.DecodedExpression(model, name), cells, query.Draws(at_mean=True))[cut]
        other = truth[kind == (2 if name == "atac" else 0)][0]
        assert cut.sum() > 20
        assert correlation(imputed, truth[cut]) > 0.98
        assert correlation(imputed, np.broadcast_to(other, imputed.shape)) < 0.6
