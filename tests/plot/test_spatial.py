"""Maps of spots: where they are, what colours say, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from countvi import pl
from countvi.errors import DataError, OptionError


@pytest.fixture
def ax():
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


PLACES = np.stack(np.divmod(np.arange(30), 6), 1).astype(float)


def test_numbers(ax) -> None:
    values = pd.Series(np.linspace(0.0, 1.0, 30), name="B cells")
    assert pl.spatial(values, PLACES, ax) is ax
    drawn = ax.collections[0]
    np.testing.assert_array_equal(drawn.get_offsets(), PLACES)
    np.testing.assert_allclose(drawn.get_array(), values)
    assert drawn.get_clim() == pytest.approx((0.0, np.percentile(values, 99)))
    assert ax.get_title() == "B cells"
    assert ax.yaxis_inverted()
    assert len(ax.figure.axes) == 2  # with a colour bar


def test_truth_values_have_two_colours(ax) -> None:
    values = np.arange(30) < 4
    pl.spatial(values, PLACES, ax)
    colours = ax.collections[0].get_facecolors()
    assert len(np.unique(colours[:4], axis=0)) == len(np.unique(colours[4:], axis=0)) == 1
    assert not np.allclose(colours[0], colours[-1])
    assert len(ax.figure.axes) == 1


def test_a_constant_and_missing_numbers(ax) -> None:
    pl.spatial(np.full(30, np.nan), PLACES, ax)
    low, high = ax.collections[0].get_clim()
    assert low < high
    ax.figure.canvas.draw()


def test_spots_nearly_touch(ax) -> None:
    pl.spatial(np.ones(30), PLACES, ax)
    coarse = ax.collections[0].get_sizes()[0]
    fine = np.stack(np.divmod(np.arange(120), 12), 1).astype(float)
    pl.spatial(np.ones(120), fine, ax)
    assert coarse / ax.collections[1].get_sizes()[0] == pytest.approx((12 / 6) ** 2, rel=0.3)


def test_what_is_refused(ax) -> None:
    with pytest.raises(OptionError, match="two coordinates"):
        pl.spatial(np.ones(3), PLACES, ax)
    with pytest.raises(DataError, match="finite"):
        pl.spatial(np.ones(30), np.where(PLACES == 0, np.nan, PLACES), ax)
