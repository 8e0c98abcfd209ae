"""What ``predictive_check`` draws: a point for each gene, and the line of agreement."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from countvi.errors import OptionError
from countvi.plot import predictive_check


@pytest.fixture
def ax() -> Axes:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = ["mean", "mean_predicted", "cv", "cv_predicted", "zero_fraction", "zero_fraction_predicted"]
    frame = pd.DataFrame(rng.uniform(0.1, 0.9, (20, 6)), columns=names)
    frame.loc[3, ["cv", "cv_predicted"]] = np.nan  # a gene without counts
    return frame.assign(calibration_error=0.1)


@pytest.mark.parametrize("statistic", ["zero_fraction", "cv", "mean"])
def test_predicted_against_observed_with_the_line_of_agreement(ax, table, statistic) -> None:
    assert predictive_check(SimpleNamespace(genes=table), statistic, ax=ax) is ax
    points = np.ma.filled(ax.collections[0].get_offsets(), np.nan)
    expected = table[[statistic, f"{statistic}_predicted"]].to_numpy()
    np.testing.assert_array_equal(points[np.isfinite(points).all(1)], expected[np.isfinite(expected).all(1)])
    line = ax.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    assert ax.get_xlim() == ax.get_ylim()
    assert (ax.get_xscale() == "log") == (statistic != "zero_fraction")
    ax.figure.canvas.draw()


def test_calibration_against_the_mean(ax, table) -> None:
    predictive_check(table, "calibration_error", ax=ax)
    np.testing.assert_array_equal(ax.collections[0].get_offsets()[:, 0], table["mean"])
    assert ax.get_ylabel() == "Calibration error"


def test_clear_errors(ax, table) -> None:
    with pytest.raises(OptionError, match="statistic must be one of"):
        predictive_check(table, "zeros", ax=ax)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="get_predictive_checks"):
        predictive_check({"rna": table}, ax=ax)
