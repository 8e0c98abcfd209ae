"""Predictive checks, against NumPy, and on data that the model made itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.query.ask import posterior_predictive

from countvi.batch import RNA
from countvi.query import predictive_check


@pytest.mark.parametrize("chunk", [5, 1000])
def test_observed_moments_are_those_of_numpy(tiny, chunk) -> None:
    source = tiny.source(23, 6)
    source.x[:, 2] = 0.0
    by_gene, by_cell = predictive_check(tiny.model(), tiny.cells(source, chunk), n_samples=2)
    for check, axis in ((by_gene, 0), (by_cell, 1)):
        mean = source.x.mean(axis)
        np.testing.assert_allclose(check.mean, mean)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(check.cv, source.x.std(axis) / mean)
        np.testing.assert_allclose(check.zero_fraction, (source.x == 0).mean(axis))


def test_predicted_moments_are_those_of_drawn_counts(tiny) -> None:
    """Another read-out draws counts, with other noise."""
    source, model = tiny.source(400, 6), tiny.model()
    by_gene, by_cell = predictive_check(model, tiny.cells(source, 64), n_samples=40)
    drawn = np.stack([counts.toarray() for counts in posterior_predictive(model, tiny.cells(source, 64), n_samples=40)])
    for predicted, witness in (
        (by_gene.mean_predicted, drawn.mean(1)),
        (by_gene.cv_predicted, drawn.std(1) / drawn.mean(1)),
        (by_gene.zero_fraction_predicted, (drawn == 0).mean(1)),
        (by_cell.mean_predicted, drawn.mean(2)),
    ):
        # Both are means of forty draws.
        error = witness.std(0, ddof=1) * np.sqrt(2 / 40)
        assert (np.abs(predicted - witness.mean(0)) < 5 * error + 1e-9).all()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_counts_that_the_model_drew_are_calibrated_and_others_are_not(tiny, likelihood) -> None:
    source, model = tiny.source(3000, 6, size_factor=True), tiny.model(likelihood=likelihood, library="given")
    model.encode_z.loc.weight.data.zero_()  # a posterior that does not hang on the counts, so that draws can be data
    model.encode_z.log_variance.weight.data.zero_()
    drawn = posterior_predictive(model, tiny.cells(source, 512), seed=7)[0].toarray()
    same = dataclasses.replace(source, x=drawn)
    by_gene, _ = predictive_check(model, tiny.cells(same, 512), n_samples=9)
    # The largest distance of 3,000 ranks from the uniform distribution is below 1.36 / sqrt(3000) = 0.025 in 95 %.
    assert by_gene.calibration_error.max() < 0.03
    by_gene, _ = predictive_check(model, tiny.cells(dataclasses.replace(source, x=2.0 * drawn + 1.0), 512), n_samples=9)
    assert by_gene.calibration_error.min() > 0.1


def test_all_counts_below_all_draws_is_the_largest_error(tiny) -> None:
    """Ranks are all 0: the distance from k / (S + 1) is 1 - k / (S + 1), 0.5 on average."""
    source, model = tiny.source(8, 6, size_factor=True), tiny.model(likelihood="poisson", library="given")
    source.x[:] = 0.0
    source.size_factor[:] = 1e6
    model.rho.bias.data.fill_(1.0)
    model.rho.weight.data.zero_()
    by_gene, by_cell = predictive_check(model, tiny.cells(source), n_samples=4, modality=RNA)
    np.testing.assert_allclose(by_gene.calibration_error, 0.5)
    np.testing.assert_allclose(by_cell.calibration_error, 0.5)
