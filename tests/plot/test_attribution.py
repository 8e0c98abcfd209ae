"""What ``attribution`` draws: the means over cells, and where the parts of the cell state end."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from countvi.errors import OptionError
from countvi.plot import attribution


@pytest.fixture
def ax() -> Axes:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def found(n_latent: int = 5) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {name: {"attribution": rng.gamma(2.0, size=(30, n_latent))} for name in ("rna", "atac", "prot")}


def test_bars_are_means_over_cells(ax: Axes) -> None:
    values = found()
    assert attribution(values, ax=ax) is ax
    assert len(ax.containers) == 3
    for bars, (name, both) in zip(ax.containers, values.items(), strict=True):
        assert bars.get_label() == name
        heights: Any = [bar.get_height() for bar in bars]
        np.testing.assert_allclose(heights, both["attribution"].mean(0))
        middles: Any = [bar.get_x() + bar.get_width() / 2 for bar in bars]
        np.testing.assert_array_equal(np.rint(middles), np.arange(5))
    every = sorted((bar.get_x(), bar.get_width()) for bars in ax.containers for bar in bars)
    assert all(a + width <= b + 1e-9 for (a, width), (b, _) in pairwise(every))  # none hides another
    assert ax.get_ylabel() == "Mean attribution"
    ax.figure.canvas.draw()


def test_a_model_is_drawn_free_of_scale_with_its_slices(ax: Axes) -> None:
    asked: list[bool] = []

    def get_modality_attribution(relative: bool) -> dict[str, dict[str, np.ndarray]]:
        asked.append(relative)
        return found()

    slices = {"rna": slice(0, 3), "atac": slice(3, 5)}
    attribution(SimpleNamespace(get_modality_attribution=get_modality_attribution, modality_slices=slices), ax=ax)
    assert asked == [True]
    assert ax.get_ylabel() == "Share of counts moved by one unit of z"
    assert [text.get_text() for text in ax.texts] == ["rna", "atac"]
    assert [text.get_position()[0] for text in ax.texts] == [1.0, 3.5]
    assert [np.asarray(line.get_xdata()).tolist() for line in ax.lines] == [[2.5, 2.5]]


def test_one_dimension_and_one_cell(ax: Axes) -> None:
    attribution({"rna": {"attribution": np.ones((1, 1))}}, ax=ax)
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "got NoneType"),
        ({}, "got dict"),
        ({"rna": np.ones((3, 2))}, "got dict"),
        ({"rna": {"attribution": np.ones((0, 2))}}, r"at least one cell; got shapes \[\(0, 2\)\]"),
    ],
)
def test_what_cannot_be_drawn(source: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        attribution(source)
