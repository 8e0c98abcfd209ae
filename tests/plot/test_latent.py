"""What ``latent`` draws: every cell once, where and in the colour that it should be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from countvi.errors import DataError, OptionError
from countvi.plot import latent


@pytest.fixture
def ax() -> Axes:
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


@pytest.fixture
def z() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(90, 5)) * [3.0, 2.0, 0.5, 0.4, 0.3] + 7.0


def by_label(ax: Axes) -> dict[str, np.ndarray]:
    return {str(c.get_label()): np.asarray(c.get_offsets()) for c in ax.collections}


def legend_texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def drawn_points(ax: Axes) -> np.ndarray:
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])


def test_the_points_are_the_principal_components(ax: Axes, z: np.ndarray) -> None:
    assert latent(z, None, ax) is ax
    points = drawn_points(ax)
    # Witness: eigenvectors of the covariance matrix, which know neither order of work nor sign.
    values, vectors = np.linalg.eigh(np.cov(z.T))
    for column, place in ((0, -1), (1, -2)):
        expected = (z - z.mean(axis=0)) @ vectors[:, place]
        assert abs(np.corrcoef(points[:, column], expected)[0, 1]) == pytest.approx(1)
        assert points[:, column].var(ddof=1) == pytest.approx(values[place])
        assert f"{values[place] / values.sum():.0%}" in (ax.get_xlabel(), ax.get_ylabel())[column]


def test_two_dimensions_are_drawn_as_they_are(ax: Axes, z: np.ndarray) -> None:
    latent(z[:, :2], None, ax)
    np.testing.assert_array_equal(drawn_points(ax), z[:, :2])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Latent dimension 1", "Latent dimension 2")


def test_each_category_has_its_cells_and_its_legend_entry(ax: Axes, z: np.ndarray) -> None:
    labels = np.array(["B", "T", "NK"])[np.arange(90) % 3]
    latent(z[:, :2], pd.Series(labels, name="cell type"), ax)
    assert legend_texts(ax) == ["B", "NK", "T"]
    assert ax.get_legend().get_title().get_text() == "cell type"
    for name, points in by_label(ax).items():
        np.testing.assert_array_equal(points, z[labels == name, :2])
    assert len({to_hex(c.get_facecolor()[0]) for c in ax.collections}) == 3


def test_the_legend_has_the_colours_of_the_points(ax: Axes, z: np.ndarray) -> None:
    latent(z, [f"type {i % 9}" for i in range(90)], ax)
    colours = {str(c.get_label()): to_hex(c.get_facecolor()[0]) for c in ax.collections}
    legend = ax.get_legend()
    shown = {h.get_label(): to_hex(h.get_color()) for h in legend.legend_handles}
    assert shown == colours


def test_categories_keep_their_order_and_unused_ones_are_left_out(ax: Axes, z: np.ndarray) -> None:
    labels = pd.Categorical(["late", "early", "late"] * 30, categories=["late", "middle", "early"], ordered=True)
    latent(z, labels, ax)
    assert legend_texts(ax) == ["late", "early"]


def test_numbers_in_names_are_ordered_as_numbers(ax: Axes, z: np.ndarray) -> None:
    latent(z, (np.arange(90) % 12).astype(str), ax)
    assert legend_texts(ax) == [str(i) for i in range(12)]


def test_missing_labels_are_named_last_and_lie_below(ax: Axes, z: np.ndarray) -> None:
    labels = pd.Series(["a", None, np.nan] * 30, dtype=object)
    latent(z[:, :2], labels, ax)
    assert legend_texts(ax) == ["a", "missing"]
    np.testing.assert_array_equal(by_label(ax)["missing"], z[labels.isna().to_numpy(), :2])
    depth = {str(c.get_label()): c.get_zorder() for c in ax.collections}
    assert depth["missing"] < depth["a"]


@pytest.mark.parametrize("n_categories", [8, 21, 33, 40])
def test_many_categories_can_be_told_apart(ax: Axes, n_categories: int) -> None:
    z = np.random.default_rng(0).normal(size=(4 * n_categories, 2))
    latent(z, [f"cluster {i % n_categories}" for i in range(len(z))], ax)
    legend = ax.get_legend()
    looks = {(to_hex(h.get_color()), h.get_marker()) for h in legend.legend_handles}
    assert len(looks) == len(legend_texts(ax)) == n_categories
    assert len(drawn_points(ax)) == len(z)


def test_the_rarest_of_very_many_categories_are_drawn_together(ax: Axes) -> None:
    labels = [f"c{i:03}" for i in range(60) for _ in range(100 - i)]
    z = np.random.default_rng(0).normal(size=(len(labels), 2))
    latent(z, labels, ax)
    assert legend_texts(ax) == [f"c{i:03}" for i in range(39)] + ["21 rarer ones"]
    assert len(by_label(ax)["21 rarer ones"]) == sum(100 - i for i in range(39, 60))
    assert len(drawn_points(ax)) == len(labels)


@pytest.mark.parametrize("n_categories", [3, 30])
def test_the_legend_overlaps_neither_cells_nor_border(z: np.ndarray, n_categories: int) -> None:
    import matplotlib.pyplot as plt

    ax = latent(z, [f"a rather long name {i % n_categories}" for i in range(90)])
    try:
        ax.figure.canvas.draw()
        legend, axes, figure = ax.get_legend().get_window_extent(), ax.get_window_extent(), ax.figure.bbox
        assert legend.x0 >= axes.x1
        assert legend.x1 <= figure.x1 + 1 and legend.y0 >= figure.y0 - 1
        assert axes.width > 0.3 * figure.width
    finally:
        plt.close(ax.figure)


def test_truth_values_are_categories(ax: Axes, z: np.ndarray) -> None:
    latent(z, np.arange(90) % 2 == 0, ax)
    assert legend_texts(ax) == ["False", "True"]


def test_numbers_get_a_colour_bar(ax: Axes, z: np.ndarray) -> None:
    numbers = np.random.default_rng(1).permutation(90).astype(float)
    values = pd.Series(numbers, name="n_counts", index=[f"c{i}" for i in range(90)])
    latent(z[:, :2], values, ax)
    assert ax.get_legend() is None
    (drawn,) = ax.collections
    order = np.argsort(values.to_numpy())
    np.testing.assert_array_equal(drawn.get_array(), values.to_numpy()[order])
    np.testing.assert_array_equal(drawn.get_offsets(), z[order, :2])
    assert drawn.get_clim() == pytest.approx((0.89, 88.11))
    bar = drawn.colorbar
    assert bar is not None and bar.ax.get_ylabel() == "n_counts"


@pytest.mark.parametrize("dtype", ["float64", "Float64", "Int64"])
def test_cells_without_a_number_are_grey(ax: Axes, z: np.ndarray, dtype: str) -> None:
    values = pd.Series([1.0, np.nan, 3.0] * 30).astype(dtype)
    latent(z, values, ax)
    assert legend_texts(ax) == ["missing"]
    assert len(by_label(ax)["missing"]) == 30
    assert len(drawn_points(ax)) == 90


@pytest.mark.parametrize("labels", [np.full(90, np.nan), np.full(90, None)])
def test_labels_that_are_all_missing(ax: Axes, z: np.ndarray, labels: np.ndarray) -> None:
    latent(z, labels, ax)
    assert legend_texts(ax) == ["missing"]
    assert len(drawn_points(ax)) == 90


def test_without_labels_there_is_no_legend(ax: Axes, z: np.ndarray) -> None:
    latent(z, ax=ax)
    assert ax.get_legend() is None
    assert len(drawn_points(ax)) == 90


def test_arguments_are_left_alone(ax: Axes, z: np.ndarray) -> None:
    labels = pd.Series(["a", None, "b"] * 30, index=range(90, 0, -1))
    z_before, labels_before = z.copy(), labels.copy()
    latent(z, labels, ax)
    np.testing.assert_array_equal(z, z_before)
    pd.testing.assert_series_equal(labels, labels_before)


def test_a_model_is_drawn_as_its_latent_space(ax: Axes, z: np.ndarray) -> None:
    class Model:
        def get_latent_representation(self) -> np.ndarray:
            return z

    other = Figure().subplots()
    latent(Model(), ax=ax)
    latent(z, ax=other)
    np.testing.assert_array_equal(drawn_points(ax), drawn_points(other))


@pytest.mark.parametrize("n_cells", [1, 2])
def test_few_cells(ax: Axes, n_cells: int) -> None:
    latent(np.arange(3.0 * n_cells).reshape(n_cells, 3), ["a"] * n_cells, ax)
    assert np.isfinite(drawn_points(ax)).all()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("shape", [(5,), (5, 1), (0, 3)])
def test_what_is_not_a_matrix_of_states_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="at least two columns"):
        latent(np.zeros(shape))


def test_states_that_are_not_finite_are_refused(z: np.ndarray) -> None:
    z[4, 2] = np.nan
    with pytest.raises(DataError, match="1 of 90 cells"):
        latent(z)


def test_labels_of_other_cells_are_refused(z: np.ndarray) -> None:
    with pytest.raises(OptionError, match="90 rows; got 4 labels"):
        latent(z, list("abcd"))
