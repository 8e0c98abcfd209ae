"""What is said of spots by a fitted model of a small slide whose composition and states are known."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import mannwhitneyu

import countvi
from countvi.errors import DataError, MismatchError, OptionError, UnknownNameError
from countvi.estimators.readouts import spot_analysis

TYPES = ("a", "b", "c")


@pytest.fixture(scope="module")
def fitted():
    """Return reference, model, which spots have which type, the states of type a, and the genes that follow them."""
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.4, 1.0, (3, 40))
    profiles /= profiles.sum(1, keepdims=True)
    up = np.flatnonzero(profiles[0] > np.median(profiles[0]))[:6]
    labels, state = rng.integers(3, size=240), rng.normal(size=240)

    def cell_rates(kinds, states):
        rates = profiles[kinds].copy()
        rates[:, up] *= np.exp(0.8 * np.where(kinds == 0, states, 0.0))[:, None]
        return 400.0 * rates / rates.sum(1, keepdims=True)

    genes = pd.DataFrame(index=[f"g{i}" for i in range(40)])
    cells = anndata.AnnData(sp.csr_matrix(rng.poisson(cell_rates(labels, state)).astype(np.float32)), var=genes)
    cells.obs["cell_type"] = np.array(TYPES)[labels]
    side = 10
    places = np.stack(np.divmod(np.arange(side * side), side), 1).astype(float)
    present = rng.random((side * side, 3)) < np.array([0.8, 0.5, 0.4])
    present[:, 0] |= ~present.any(1)
    field = (places[:, 1] - places[:, 1].mean()) / places[:, 1].std()
    rates = sum(present[:, c, None] * 3 * cell_rates(np.full(len(places), c), field) for c in range(3))
    slide = anndata.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), var=genes.copy())
    slide.obsm["spatial"] = places
    slide.obs["side"] = np.where(places[:, 1] < side / 2, "left", "right")
    slide.obs["slice"] = np.char.add(slide.obs["side"].to_numpy(str), (places[:, 0] // 4).astype(int).astype(str))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", countvi.errors.DataWarning)
        countvi.CondSCVI.setup_anndata(cells, labels_key="cell_type")
        reference = countvi.CondSCVI(cells, n_latent=2, n_hidden=32)
        reference.train(40, enable_progress_bar=False, plan_kwargs={"lr": 1e-2}, batch_size=32)
        countvi.DestVI.setup_anndata(slide)
        model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=4)
        model.train(60, enable_progress_bar=False)
    return reference, model, present, field, [f"g{i}" for i in up]


def test_thresholds_tell_spots_with_a_type_from_spots_without(fitted) -> None:
    _, model, present, _, _ = fitted
    proportions, cuts = model.get_proportions(), model.get_proportion_thresholds()
    assert list(cuts.index) == list(TYPES)
    above = (proportions >= cuts).to_numpy()
    assert (above == present).mean() > 0.9


def test_presence(fitted) -> None:
    reference, model, present, _, _ = fitted
    calls = model.get_presence(reference, cells_per_spot=6, n_states=2)
    assert list(calls.probability.columns) == list(TYPES)
    assert ((calls.probability >= 0) & (calls.probability <= 1)).all(axis=None)
    assert (calls.called(0.05).to_numpy() == present).mean() > 0.9
    again = model.get_presence(reference, cells_per_spot=6, n_states=2)
    pd.testing.assert_frame_equal(calls.probability, again.probability)


def test_axis_of_the_type_that_varies_over_the_slide(fitted) -> None:
    _, model, present, field, _ = fitted
    axes = model.get_state_axes("a")
    some = present[:, 0]
    assert abs(np.corrcoef(axes.scores.loc[some, 0], field[some])[0, 1]) > 0.7
    assert axes.summary.loc[0, "moran"] > 0.4
    first = axes.genes[axes.genes["axis"] == 0]
    assert len(first) == 40
    assert (first["correlation"].abs().diff().dropna() <= 1e-12).all()
    # Against what the read-outs of the model say.
    weight = model.get_proportions()["a"].to_numpy(dtype=float)
    log = np.log2(model.get_scale_for_ct("a", gene_list=["g3"]).to_numpy(dtype=float)[:, 0])
    score = axes.scores[0].to_numpy()
    centred = log - np.average(log, weights=weight)
    covariance = np.average(centred * score, weights=weight)
    spread = np.sqrt(np.average(score**2, weights=weight))
    row = first.set_index("gene").loc["g3"]
    assert row["log2_change"] == pytest.approx(covariance / spread, rel=1e-3, abs=1e-5)
    expected = covariance / spread / np.sqrt(np.average(centred**2, weights=weight))
    assert row["correlation"] == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_differences_between_sides(fitted) -> None:
    _, model, _, _, _ = fitted
    by_spot = model.differential_expression("a", "side", "right", "left", min_proportion=0.3)
    pd.testing.assert_frame_equal(
        by_spot, model.differential_expression("a", "side", "right", "left", min_proportion=0.3)
    )
    assert (by_spot["p_value"].diff().dropna() >= 0).all()
    weight = model.get_proportions()["a"]
    values = model.get_scale_for_ct("a")["g5"]
    right = (model.adata.obs["side"] == "right") & (weight >= 0.3)
    left = (model.adata.obs["side"] == "left") & (weight >= 0.3)
    assert by_spot.loc["g5", "mean1"] == pytest.approx(np.average(values[right], weights=weight[right]), rel=1e-4)
    assert by_spot.loc["g5", "p_value"] == pytest.approx(
        mannwhitneyu(np.log2(values[right]).round(6), np.log2(values[left]).round(6), method="asymptotic").pvalue,
        rel=1e-2,
    )
    by_slice = model.differential_expression("a", "side", "right", sample_key="slice", min_proportion=0.3)
    assert ((by_slice["p_value"] > 0) & (by_slice["p_value"] <= 1)).all()
    assert (by_slice["p_value"] > by_spot["p_value"].reindex(by_slice.index)).mean() > 0.5


def test_requests_that_cannot_be_met_say_why(fitted) -> None:
    reference, model, _, _, _ = fitted
    with pytest.raises(UnknownNameError, match="spatial_key"):
        model.get_state_axes("a", spatial_key="spatia")
    with pytest.raises(UnknownNameError, match="it has 'left', 'right'"):
        model.differential_expression("a", "side", "top")
    with pytest.raises(OptionError, match="Lower min_proportion"):
        model.differential_expression("a", "side", "left", min_proportion=1.001)
    for wrong in (0.5, float("inf"), float("nan"), "six"):
        with pytest.raises(OptionError, match="cells_per_spot must be a number of at least 1; got"):
            model.get_presence(reference, cells_per_spot=wrong)
    with pytest.raises(OptionError, match="in both"):
        model.adata.obs["all"] = "one"
        model.differential_expression("a", "side", "left", sample_key="all")
    other = reference.adata.copy()
    other.obs["cell_type"] = other.obs["cell_type"].replace({"a": "z"})
    countvi.CondSCVI.setup_anndata(other, labels_key="cell_type")
    with pytest.raises(MismatchError, match="other cell types"):
        model.get_presence(countvi.CondSCVI(other))


def test_a_type_that_no_spot_has_is_named(fitted, monkeypatch) -> None:
    _, model, _, _, _ = fitted
    proportions = model.get_proportions().assign(a=0.0)
    monkeypatch.setattr(spot_analysis, "get_proportions", lambda model: proportions)
    with pytest.raises(DataError, match="No spot has any 'a'"):
        model.get_state_axes("a")
