"""Differential expression: draws, hypotheses and summaries against NumPy, SciPy and numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.query.ask import normalized_expression

from countvi.batch import RNA
from countvi.query import (
    Change,
    Comparison,
    ComparisonPlan,
    DecodedExpression,
    Greater,
    Importance,
    PopulationSampler,
    compare,
    difference,
    expected_fdr,
    inliers,
    sum_counts,
    temporary,
)
from countvi.query.effects import Pair, benjamini_hochberg, estimated_delta
from countvi.query.populations import PopulationDraws, at_levels
from countvi.query.replicates import Replicates, mean_and_error

N_GENES = 6


def as_draws(values, rows=None):
    """Draws from an array ``(draws, features)``; more features than lie together make several chunks."""
    n, n_features = values.shape
    n_chunks, width = -(-n_features // 256), min(256, n_features)
    held = np.full((n_chunks, n, width), np.nan, np.float32)
    for i in range(n_chunks):
        part = values[:, i * 256 : (i + 1) * 256]
        held[i, :, : part.shape[1]] = part
    return PopulationDraws(np.arange(n) if rows is None else rows, held, n_features)


def pair_of(a, b, low=None, counts=None):
    nothing = np.zeros(a.shape[1], dtype=bool)
    return Pair(as_draws(a), as_draws(b), low or (nothing, nothing), np.ones(a.shape[1]) if counts is None else counts)


@pytest.fixture(scope="module")
def two():
    """Draws of two populations, 300 features."""
    rng = np.random.default_rng(0)
    a = rng.gamma(2.0, 0.001, (400, 300)) * rng.lognormal(0, 1, 300)
    return a.astype(np.float32), (rng.gamma(2.0, 0.001, (400, 300))).astype(np.float32)


# ---------------------------------------------------------------- drawing


def drawing(tiny, model, source, n_samples=600, chunk=8, **options):
    return PopulationSampler(
        model, tiny.cells(source, chunk), DecodedExpression(model, RNA), N_GENES, n_samples, 0, **options
    )


def fill(draw, rows, levels=(None,), number=1):
    with draw.room(draw.n_samples) as values:
        found = draw.fill(values, rows, levels, number)
        return found, torch.cat(list(found), dim=1).numpy().copy()


def test_every_cell_is_taken_equally_often(tiny):
    model, source = tiny.model(), tiny.source(20, N_GENES)
    rows = np.array([3, 4, 7, 11, 12, 13, 19])
    draws, values = fill(drawing(tiny, model, source), rows)
    times = np.bincount(draws.rows, minlength=20)
    assert values.shape == (600, N_GENES)
    assert times.sum() == 600
    assert set(times[rows]) == {85, 86}
    few, _ = fill(drawing(tiny, model, source, n_samples=4), rows)
    assert len(set(few.rows)) == 4
    assert model.training


def test_draws_have_the_distribution_of_the_decoded_posterior(tiny, witness):
    model, source = tiny.model(), tiny.source(20, N_GENES)
    rows = np.array([2, 5])
    draws, values = fill(drawing(tiny, model, source, n_samples=6000, chunk=50), rows)
    loc, variance = witness.posterior(model, source)
    noise = np.random.default_rng(1).standard_normal((20_000, *loc.shape))
    expected = witness.frequencies(model, loc + np.sqrt(variance) * noise, source.codes[:, 0])
    for cell in rows:
        of_cell = values[draws.rows == cell]
        for gene in range(N_GENES):
            assert stats.ks_2samp(of_cell[:, gene], expected[:, cell, gene]).pvalue > 1e-4


def test_draws_are_decoded_under_the_levels_in_turn(tiny, witness):
    model, source = tiny.model(), tiny.source(20, N_GENES)
    rows, levels = np.arange(20), [(0, 0), None, {0: 2}]
    with torch.no_grad():
        model.encode_z.log_variance.bias.fill_(-40.0)
        model.encode_z.log_variance.weight.zero_()
    draws, values = fill(drawing(tiny, model, source, n_samples=60), rows, levels)
    loc, _ = witness.posterior(model, source)
    own = source.codes[:, 0]
    for i, batch in enumerate((np.zeros(20, int), own, np.full(20, 2))):
        expected = witness.frequencies(model, loc, batch)[draws.rows[i::3]]
        np.testing.assert_allclose(values[i::3], expected, rtol=0.2)
        assert np.median(np.abs(values[i::3] / expected - 1)) < 0.02


def test_levels_of_some_cells():
    from countvi.batch import Design

    design = Design(codes=torch.tensor([[5, 6], [5, 6], [5, 6]]), continuous=torch.zeros(3, 0))
    found = at_levels(design, [(0, 1), None, {0: 2, 1: 3}], np.array([0, 1, 2]))
    assert found.codes.tolist() == [[1, 6], [5, 6], [2, 3]]
    assert design.codes.unique().tolist() == [5, 6]


def test_room_on_disk_changes_nothing(tiny, monkeypatch):
    model, source = tiny.model(), tiny.source(20, N_GENES)
    _, memory = fill(drawing(tiny, model, source), np.arange(9))
    monkeypatch.setattr(temporary, "_IN_MEMORY_BYTES", 0)
    _, disk = fill(drawing(tiny, model, source), np.arange(9))
    np.testing.assert_array_equal(memory, disk)


# ---------------------------------------------------------------- importance sampling


def posterior_by_integration(tiny, witness, model, source):
    """Posterior mean of the frequencies of each cell with a one-dimensional state, on a grid."""
    z = np.linspace(-8, 8, 4001)
    x, batch = source.x, source.codes[:, 0]
    rho = witness.frequencies(model, np.broadcast_to(z[:, None, None], (len(z), len(x), 1)), batch)
    log = witness.log_nb(x, rho * x.sum(1, keepdims=True), witness.theta(model)).sum(-1)
    log += stats.norm.logpdf(z)[:, None]
    weight = np.exp(log - log.max(0))
    return (weight[..., None] * rho).sum(0) / weight.sum(0)[:, None]


def test_importance_sampling_finds_the_posterior(tiny, witness):
    model, source = tiny.model(N_GENES, 1), tiny.source(12, N_GENES)
    with torch.no_grad():
        model.encode_z.log_variance.bias.fill_(0.5)  # wide enough to cover the posterior
        model.encode_z.log_variance.weight.zero_()
    truth = posterior_by_integration(tiny, witness, model, source)
    options = {"n_samples": 600, "chunk": 600}
    rows = np.arange(12)
    draw = drawing(tiny, model, source, n_samples=12 * 800, chunk=5000, importance=Importance(4000))
    draws, values = fill(draw, rows)
    means = np.stack([values[draws.rows == cell].mean(0) for cell in rows])
    errors = np.stack([values[draws.rows == cell].std(0) for cell in rows]) / np.sqrt(800)
    assert np.abs((means - truth) / errors).max() < 5
    plain, guide = fill(drawing(tiny, model, source, **{**options, "n_samples": 12 * 800}), rows)
    wrong = np.stack([guide[plain.rows == cell].mean(0) for cell in rows])
    assert np.abs((wrong - truth) / errors).max() > 20, "the guide is not exact, so the test can fail"


def test_weighted_expression_is_the_posterior_mean(tiny, witness):
    model, source = tiny.model(N_GENES, 1), tiny.source(12, N_GENES)
    with torch.no_grad():
        model.encode_z.log_variance.bias.fill_(0.5)
        model.encode_z.log_variance.weight.zero_()
    truth = posterior_by_integration(tiny, witness, model, source)
    values = normalized_expression(model, tiny.cells(source, 600), n_samples=6000, importance=Importance())
    np.testing.assert_allclose(values, truth, rtol=0.06)
    plain = normalized_expression(model, tiny.cells(source, 600), n_samples=6000)
    assert np.abs(plain / truth - 1).max() > 0.15
    samples = normalized_expression(
        model, tiny.cells(source, 600), n_samples=3000, importance=Importance(), return_mean=False
    )
    np.testing.assert_allclose(samples.mean(0), truth, rtol=0.12)


def test_truncated_weights_are_cut_from_above():
    log_weights = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    plain, cut = (Importance(4, truncated).weights(log_weights)[:, 0].numpy() for truncated in (False, True))
    np.testing.assert_allclose(plain, np.exp([0, 0, 0, 5]) / (3 + np.exp(5)), rtol=1e-6)
    assert cut.sum() == pytest.approx(1)
    assert cut[3] < plain[3]
    assert cut[0] > plain[0]


# ---------------------------------------------------------------- hypotheses


def test_change_in_numpy(two):
    a, b = (x.astype(float) for x in two)
    found = Change(delta=0.3, pseudocounts=1e-4, levels=[0.9])(pair_of(*two))
    effect = np.log2(a + 1e-4) - np.log2(b + 1e-4)
    up, down = (effect >= 0.3).mean(0), (effect <= -0.3).mean(0)
    close = {"rtol": 1e-4, "atol": 2e-5}
    np.testing.assert_allclose(found["prob_up"], up, atol=0.003)
    np.testing.assert_allclose(found["prob_down"], down, atol=0.003)
    np.testing.assert_allclose(found["proba_de"], np.maximum(up, down), atol=0.003)
    np.testing.assert_allclose(found["proba_de"] + found["proba_not_de"], 1)
    np.testing.assert_allclose(found["scale1"], a.mean(0), **close)
    np.testing.assert_allclose(found["scale2"], b.mean(0), **close)
    for name, value in {
        "mean": effect.mean(0),
        "median": np.median(effect, 0),
        "std": effect.std(0),
        "min": effect.min(0),
        "max": effect.max(0),
    }.items():
        np.testing.assert_allclose(found[f"lfc_{name}"], value, **close)
    low, high = found["lfc_confidence_interval_0.9_min"], found["lfc_confidence_interval_0.9_max"]
    inside = ((effect >= low - 1e-5) & (effect <= high + 1e-5)).mean(0)
    np.testing.assert_allclose(inside, 0.9, atol=0.005)
    ordered = np.sort(effect, axis=0)
    assert (high - low <= ordered[380] - ordered[20] + 1e-5).all()
    odds = np.log(found["proba_de"] + 1e-8) - np.log(1 - found["proba_de"] + 1e-8)
    np.testing.assert_allclose(found["bayes_factor"], odds)


def test_two_sided_adds_both(two):
    one, both = (Change(pseudocounts=1e-4, two_sided=t)(pair_of(*two)) for t in (False, True))
    np.testing.assert_allclose(both["proba_de"], one["prob_up"] + one["prob_down"])


def test_pseudocounts_are_a_tenth_of_a_count(two):
    """What a count is worth is the ratio of all expression to all counts, whatever the unit of expression."""
    a, b = two
    counts = np.random.default_rng(1).gamma(1.0, 2.0, 300)
    expected = 0.1 * 0.5 * float((a.astype(float).mean(0) + b.astype(float).mean(0)).sum()) / counts.sum()
    found = Change()(pair_of(a, b, counts=counts))
    np.testing.assert_allclose(found["pseudocounts"], expected, rtol=1e-5)
    large = Change()(pair_of(1000 * a, 1000 * b, counts=counts))
    np.testing.assert_allclose(large["pseudocounts"], 1000 * expected, rtol=1e-5)
    np.testing.assert_allclose(large["lfc_median"], found["lfc_median"], atol=1e-4)
    given = np.where(np.arange(300) < 100, 0.5, np.nan)  # as for proteins beside genes
    some = Change(pseudocounts=given)(pair_of(a, b, counts=counts))
    ours = 0.1 * 0.5 * float((a[:, 100:].astype(float).mean(0) + b[:, 100:].mean(0)).sum()) / counts[100:].sum()
    np.testing.assert_allclose(some["pseudocounts"], np.where(np.arange(300) < 100, 0.5, ours), rtol=1e-5)


def test_changes_do_not_depend_on_which_features_were_kept():
    """Shares of the features kept are larger; so is the share that a count is, and their ratio stays."""
    rng = np.random.default_rng(0)
    rates = rng.lognormal(-3, 2, 600)
    a, b = (rates * rng.lognormal(shift, 0.3, (400, 600)) for shift in (0.0, rng.normal(0, 1, 600)))
    a, b = (x / x.sum(1, keepdims=True) for x in (a, b))
    kept = np.flatnonzero(rates > np.median(rates))[:50]
    depth = 1500.0
    counts = depth * (a.mean(0) + b.mean(0)) / 2
    whole = Change()(pair_of(a.astype(np.float32), b.astype(np.float32), counts=counts))
    # Shares of what is kept, of populations that keep equally much.
    share = 0.5 * (a[:, kept].sum(1).mean() + b[:, kept].sum(1).mean())
    part = Change()(
        pair_of((a[:, kept] / share).astype(np.float32), (b[:, kept] / share).astype(np.float32), counts=counts[kept])
    )
    assert part["pseudocounts"][0] > 1.5 * whole["pseudocounts"][0]
    for name in ("lfc", "lfc_mean", "lfc_median", "proba_de"):
        np.testing.assert_allclose(part[name], whole[name][kept], atol=0.002)


def test_a_population_without_observations_has_a_usual_depth(two):
    for counts in (np.zeros(300), np.full(300, np.nan)):
        found = Change()(pair_of(*two, counts=counts))
        total = 0.5 * float((two[0].mean(0) + two[1].mean(0)).sum())
        np.testing.assert_allclose(found["pseudocounts"], 1e-5 * total, rtol=1e-5)


def test_the_change_between_populations_is_that_of_the_columns(two):
    found = Change(pseudocounts=1e-4)(pair_of(*two))
    a, b = (x.astype(float).mean(0) for x in two)
    np.testing.assert_allclose(found["lfc"], np.log2((a + 1e-4) / (b + 1e-4)), atol=1e-5)
    nothing = np.zeros((5, 3), np.float32)
    np.testing.assert_array_equal(Change(pseudocounts=0.0)(pair_of(nothing, nothing))["lfc"], 0)


def test_pseudocounts_of_features_hardly_seen(two):
    a, b = two
    low = (np.arange(300) % 3 == 0, np.arange(300) % 5 == 0)
    expected = max(np.quantile(x.max(0)[mask], 0.9) for x, mask in zip((a, b), low, strict=True))
    there = Change(of_low=True, shrink=1e-3)(pair_of(a, b, low))
    np.testing.assert_allclose(there["pseudocounts"], expected / 300, rtol=1e-6)
    c = expected / 300 * 1e-3
    lfc = (np.log2(a.astype(float) + c) - np.log2(b.astype(float) + c)).mean(0)
    np.testing.assert_allclose(there["lfc_mean"], lfc, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(there["lfc"], np.log2((a.mean(0) + c) / (b.mean(0) + c)), atol=1e-4)
    nothing = Change(of_low=True)(pair_of(a, b))
    np.testing.assert_allclose(nothing["pseudocounts"], 1e-10)


def test_effects_and_regions_of_the_user(two):
    a, b = two
    found = Change(effect=difference, delta=0.001)(pair_of(a, b))
    np.testing.assert_allclose(found["lfc_mean"], (a - b).mean(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found["prob_up"], (a - b >= 0.001).mean(0), atol=0.003)
    own = Change(effect=lambda x, y, c: x - y + 0 * c, region=lambda e: np.abs(e) > 0.001)(pair_of(a, b))
    np.testing.assert_allclose(own["prob_up"] + own["prob_down"], (np.abs(a - b) > 0.001).mean(0), atol=0.003)
    sides = Change(effect=difference, region=lambda e: (e > 0.002, e < -0.001))(pair_of(a, b))
    np.testing.assert_allclose(sides["prob_down"], (a - b < -0.001).mean(0), atol=0.003)


def test_greater_gives_ties_to_both():
    a = np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]], np.float32)
    b = np.array([[2.0, 2.0, 1.0], [2.0, 1.0, 1.0]], np.float32)
    found = Greater()(pair_of(a, b))
    np.testing.assert_allclose(found["proba_m1"], [0.5, 0.75, 0.0])
    np.testing.assert_allclose(found["proba_m2"], [0.5, 0.25, 1.0])
    np.testing.assert_allclose(Greater(strict=True)(pair_of(a, b))["proba_m1"], [0.5, 0.5, 0.0])


def test_expected_fdr_is_the_largest_set():
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 0.3, 60)
    for target in (0.02, 0.1, 0.4):
        picked = expected_fdr(p, target)
        assert (1 - p[picked]).mean() <= target
        assert p[picked].min() >= p[~picked].max()
        wider = np.sort(1 - p)[: picked.sum() + 1]
        assert wider.mean() > target
    assert not expected_fdr(np.zeros(4), 0.5).any()


def test_delta_from_a_mixture():
    rng = np.random.default_rng(0)
    effects = np.concatenate([rng.normal(0, 0.1, 3000), rng.normal(2, 0.2, 400), rng.normal(-1, 0.2, 400)])
    assert estimated_delta(effects) == pytest.approx(0.6 * 1.5, rel=0.05)
    assert estimated_delta(rng.normal(0, 1e-3, 500)) == 0.1
    assert estimated_delta(np.zeros(10)) == 0.1


# ---------------------------------------------------------------- comparisons


def test_rest_is_all_other_cells(tiny):
    model, source = tiny.model(), tiny.source(40, N_GENES)
    counts = sum_counts(tiny.cells(source), [np.arange(40)], RNA)[0]
    draw = drawing(tiny, model, source, n_samples=4000, chunk=100)
    large, small = np.arange(30), np.arange(30, 40)
    plan = ComparisonPlan(Change(pseudocounts=1e-3))
    means = normalized_expression(model, tiny.cells(source, 500), n_samples=500)
    sums = [(counts, counts)] * 2
    found = list(compare(draw, [Comparison(large), Comparison(small)], sums, plan))
    for result, (first, second) in zip(found, ((large, small), (small, large)), strict=True):
        np.testing.assert_allclose(result["scale1"], means[first].mean(0), rtol=0.05)
        np.testing.assert_allclose(result["scale2"], means[second].mean(0), rtol=0.05)
    np.testing.assert_allclose(found[0]["lfc_mean"], -found[1]["lfc_mean"], atol=0.08)


def test_pairs_are_of_one_batch(tiny):
    """With no noise but that of batches, a population differs from itself unless draws are paired within batches."""
    model, source = tiny.model(), tiny.source(10, N_GENES)
    source.x[:] = source.x[0]
    with torch.no_grad():
        model.encode_z.log_variance.bias.fill_(-40.0)
        model.encode_z.log_variance.weight.zero_()
    counts = sum_counts(tiny.cells(source), [np.arange(10)], RNA)[0]
    levels = [(0, 0), (0, 1), (0, 2)]
    for second in (np.arange(5, 10), None):
        spread = {}
        for name, pair in {"same": (levels, levels), "other": (levels, levels[::-1])}.items():
            plan = ComparisonPlan(Change(pseudocounts=1e-6), pair)
            (found,) = compare(
                drawing(tiny, model, source, n_samples=90),
                [Comparison(np.arange(5), second)],
                [(counts, counts)],
                plan,
            )
            spread[name] = found["lfc_std"].max()
        assert spread["other"] > 0.3
        assert spread["same"] < 0.3 * spread["other"]  # what is left is the noise of z, which is never zero


def test_raw_statistics_in_numpy(tiny):
    source = tiny.source(20, N_GENES, depth=1.0)
    source.x[4] = 0
    rows = np.array([1, 3, 4, 9])
    measured = np.ones(20, dtype=bool)
    measured[3] = False
    for mask, used in ((None, rows), (measured, np.array([1, 4, 9]))):
        part, everyone = sum_counts(tiny.cells(source), [rows, np.arange(20)], RNA, mask)
        x = source.x[used]
        np.testing.assert_allclose(part.mean, x.mean(0))
        np.testing.assert_allclose(part.nonzero, (x > 0).mean(0))
        filled = x[x.sum(1) > 0]
        np.testing.assert_allclose(part.normalized, (1e4 * filled / filled.sum(1, keepdims=True)).mean(0))
        rest = np.setdiff1d(np.arange(20) if mask is None else np.flatnonzero(mask), rows)
        np.testing.assert_allclose((everyone - part).mean, source.x[rest].mean(0))


# ---------------------------------------------------------------- replicates


def test_mean_and_error_is_the_t_test():
    values = np.random.default_rng(0).normal(0.3, 1.0, (5, 40))
    mean, error, df = mean_and_error(values)
    np.testing.assert_allclose(mean / error, stats.ttest_1samp(values, 0.0, axis=0).statistic, rtol=1e-8)
    np.testing.assert_allclose(df, 4)
    assert np.isnan(mean_and_error(values[:1])[1]).all()


def test_features_that_are_not_tested_count_for_nothing():
    p = np.random.default_rng(0).beta(0.5, 1.0, 50)
    expected = stats.false_discovery_control(p)
    np.testing.assert_allclose(benjamini_hochberg(p), expected)
    with_gap = benjamini_hochberg(np.insert(p, 3, np.nan))
    assert np.isnan(with_gap[3])
    np.testing.assert_allclose(np.delete(with_gap, 3), expected)


def replicate_draws(rng, level, n=40):
    """Log2 expression of donors around their levels ``(donors, features)``."""
    codes = np.repeat(np.arange(len(level)), n)
    return codes, 2.0 ** (level[codes] + rng.normal(0, 0.05, (len(codes), level.shape[1])))


def test_donors_of_one_population_each_are_compared_by_welch():
    rng = np.random.default_rng(0)
    level = rng.normal(-10, 1.0, (7, 30))
    codes, values = replicate_draws(rng, level)
    first, second = np.flatnonzero(codes < 3), np.flatnonzero(codes >= 3)
    n = len(second)
    take = np.resize(first, n)
    pair = Pair(as_draws(values[take], take), as_draws(values[second], second), (None, None), np.ones(30))
    names = np.array([f"d{i}" for i in range(7)], dtype=object)
    found = Replicates(codes, names).summarize(pair, np.zeros(30))
    expected = stats.ttest_ind(level[:3], level[3:], equal_var=False)
    np.testing.assert_allclose(found["replicate_lfc"], level[:3].mean(0) - level[3:].mean(0), atol=0.05)
    np.testing.assert_allclose(found["replicate_pvalue"], expected.pvalue, rtol=0.2, atol=0.02)
    assert set(found) >= {"log2_scale1_d0", "log2_scale2_d6"}
    assert (found["n_replicates1"][0], found["n_replicates2"][0]) == (3, 4)


def test_donors_of_both_populations_are_paired():
    rng = np.random.default_rng(0)
    level = rng.normal(-10, 3.0, (5, 30))
    change = rng.normal(0.5, 0.4, (5, 30))
    codes, a = replicate_draws(rng, level + change)
    _, b = replicate_draws(rng, level)
    rows = np.arange(len(codes))
    pair = Pair(as_draws(a, rows), as_draws(b, rows), (None, None), np.ones(30))
    names = np.array(list("abcde"), dtype=object)
    found = Replicates(codes, names).summarize(pair, np.zeros(30))
    expected = stats.ttest_1samp(change, 0.0)
    np.testing.assert_allclose(found["replicate_lfc"], change.mean(0), atol=0.05)
    np.testing.assert_allclose(found["replicate_pvalue"], expected.pvalue, rtol=0.25, atol=0.02)
    np.testing.assert_allclose(found["lfc_c"], change[2], atol=0.05)
    interval = stats.t.interval(0.95, 4, found["replicate_lfc"], found["replicate_lfc_se"])
    np.testing.assert_allclose([found["replicate_lfc_min"], found["replicate_lfc_max"]], interval)


# ---------------------------------------------------------------- outliers


def test_inliers_are_the_bulk():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(4, 4))
    bulk, far = rng.normal(size=(1000, 4)) @ mix, 30 + rng.normal(size=(60, 4))
    kept = inliers(np.concatenate([bulk, far]), rng)
    assert not kept[1000:].any()
    assert 0.95 < kept[:1000].mean() < 0.995
    assert inliers(far[:5], rng).all()


def test_inliers_agree_with_scikit_learn():
    from sklearn import covariance

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(300, 3)) * [1, 5, 0.2], rng.normal(8, 1, (30, 3))])
    robust = covariance.MinCovDet(random_state=0).fit(x)
    theirs = robust.mahalanobis(x) <= stats.chi2.ppf(0.975, 3)
    assert (inliers(x, rng) == theirs).mean() > 0.97
