"""Comparing a type between groups: known errors under the null, known differences, and other people's formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from countvi.query.comparison import compare_types, moderated_t_test


def test_with_few_genes_it_is_the_t_test_with_equal_variances() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 2)), rng.normal(size=(3, 2))
    expected = stats.ttest_ind(first, second, axis=0, equal_var=True).pvalue
    np.testing.assert_allclose(moderated_t_test(first, second), expected, rtol=1e-10)


def test_p_values_are_uniform_where_nothing_differs_and_variances_do() -> None:
    rng = np.random.default_rng(1)
    spread = np.sqrt(1.0 / rng.gamma(2.0, 0.5, 20_000))  # variances of an inverse gamma, as the test supposes
    values = rng.normal(size=(5, 20_000)) * spread
    p_value = moderated_t_test(values[:3], values[3:])
    assert stats.kstest(p_value, "uniform").statistic < 0.015
    assert (p_value < 0.01).mean() == pytest.approx(0.01, abs=0.003)


def test_moderation_finds_more_than_the_plain_test() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(2.0, 1.0, (3, 5_000)), rng.normal(0.0, 1.0, (3, 5_000))
    plain = stats.ttest_ind(first, second, axis=0).pvalue
    assert (moderated_t_test(first, second) < 0.01).mean() > 1.3 * (plain < 0.01).mean()


def test_ranks_of_spots() -> None:
    rng = np.random.default_rng(3)
    values = rng.lognormal(0.0, 0.3, (80, 400))
    first = np.arange(80) < 30
    values[:30, :20] *= 2.0
    found = compare_types(lambda columns: values[:, columns], 400, first, np.ones(80))
    np.testing.assert_allclose(
        found.p_value[7], stats.mannwhitneyu(values[first, 7], values[~first, 7], method="asymptotic").pvalue
    )
    assert (found.fdr[:20] < 0.01).all()
    assert (found.fdr[20:] < 0.05).mean() < 0.02
    np.testing.assert_allclose(found.log2_change[:20].mean(), 1.0, atol=0.05)
    np.testing.assert_allclose(found.mean_first, values[first].mean(0))


def test_samples_are_the_unit_where_they_are_known() -> None:
    rng = np.random.default_rng(4)
    sample = np.repeat(np.arange(6), 50)
    first = sample < 3
    # Samples differ, by nothing that has to do with the groups: spots as units would find everything.
    effect = rng.normal(0.0, 0.5, (6, 500))
    values = np.exp2(effect[sample] + rng.normal(0.0, 0.1, (300, 500)))
    by_spot = compare_types(lambda columns: values[:, columns], 500, first, np.ones(300))
    by_sample = compare_types(lambda columns: values[:, columns], 500, first, np.ones(300), sample)
    assert (by_spot.fdr < 0.05).mean() > 0.5
    assert (by_sample.fdr < 0.05).mean() < 0.02
    assert stats.kstest(by_sample.p_value, "uniform").pvalue > 1e-3


def test_expression_that_does_not_vary_is_no_difference() -> None:
    found = compare_types(lambda columns: np.ones((10, len(columns))), 3, np.arange(10) < 5, np.ones(10))
    np.testing.assert_array_equal(found.p_value, 1.0)
    np.testing.assert_array_equal(found.log2_change, 0.0)
