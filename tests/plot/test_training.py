"""What ``training_curves`` draws: the numbers of the history, and no others."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from countvi.errors import NotTrainedError, OptionError
from countvi.plot import training_curves


@pytest.fixture
def ax() -> Axes:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def history(n_epochs: int = 40, **columns: object) -> pd.DataFrame:
    epochs = np.arange(n_epochs)
    table = {
        "elbo_train": 300.0 + 900.0 * np.exp(-epochs / 2) - 0.1 * epochs,
        "elbo_validation": 310.0 + 900.0 * np.exp(-epochs / 2) - 0.05 * epochs,
        "kl_weight": np.minimum(1.0, (epochs + 1) / 10),
        "n_rollbacks": np.zeros(n_epochs),
        **columns,
    }
    return pd.DataFrame(table).rename_axis("epoch")


def line(ax: Axes, label: str) -> np.ndarray:
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(found.get_xydata())


def legend_texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_the_lines_are_the_negated_history(ax: Axes) -> None:
    table = history()
    assert training_curves(table, ax) is ax
    for label, column in (("Training cells", "elbo_train"), ("Held-out cells", "elbo_validation")):
        drawn = line(ax, label)
        np.testing.assert_array_equal(drawn[:, 0], np.arange(40))
        np.testing.assert_array_equal(drawn[:, 1], -table[column].to_numpy())
    assert ax.get_ylabel() == "ELBO per cell (nats), higher is better"
    assert ax.get_xlabel() == "Epoch"


def test_a_model_and_a_csv_are_drawn_as_their_history(ax: Axes) -> None:
    table = history()
    other = Figure().subplots(1, 2)
    training_curves(table, ax)
    training_curves(SimpleNamespace(history=table), other[0])
    training_curves(pd.read_csv(StringIO(table.to_csv()), float_precision="round_trip"), other[1])
    for panel in other:
        np.testing.assert_array_equal(line(panel, "Training cells"), line(ax, "Training cells"))


def test_epochs_without_validation_do_not_break_the_line(ax: Axes) -> None:
    table = history()
    table.loc[table.index % 5 != 4, "elbo_validation"] = np.nan
    training_curves(table, ax)
    drawn = line(ax, "Held-out cells")
    np.testing.assert_array_equal(drawn[:, 0], np.arange(4, 40, 5))
    assert np.isfinite(drawn).all()


def test_a_run_without_held_out_cells_has_one_line(ax: Axes) -> None:
    training_curves(history().drop(columns="elbo_validation"), ax)
    assert legend_texts(ax) == ["Training cells", "KL warm-up, until epoch 9"]


def warmup_spans(ax: Axes) -> list[tuple[float, float]]:
    boxes = [patch.get_window_extent() for patch in ax.patches]
    inverse = ax.transData.inverted()
    return [(inverse.transform((box.x0, 0))[0], inverse.transform((box.x1, 0))[0]) for box in boxes]


def test_the_warmup_is_shaded_until_the_first_epoch_at_full_weight(ax: Axes) -> None:
    table = history()
    assert table["kl_weight"].tolist().index(1.0) == 9
    training_curves(table, ax)
    assert "KL warm-up, until epoch 9" in legend_texts(ax)
    assert warmup_spans(ax) == [pytest.approx((0, 9))]


def test_a_warmup_that_outlasts_the_run_is_named_so(ax: Axes) -> None:
    training_curves(history(kl_weight=np.arange(40) / 400), ax)
    assert "KL warm-up, longer than the run" in legend_texts(ax)
    assert warmup_spans(ax) == [pytest.approx((0, 39))]


def test_a_second_warmup_is_shaded_too(ax: Axes) -> None:
    weight = np.concatenate([np.linspace(0.1, 1, 10), np.ones(10)] * 2)
    training_curves(history(kl_weight=weight), ax)
    assert warmup_spans(ax) == [pytest.approx((0, 9)), pytest.approx((20, 29))]


def test_a_run_without_warmup_is_not_shaded(ax: Axes) -> None:
    training_curves(history(kl_weight=np.full(40, 0.5)), ax)
    assert not ax.patches
    assert legend_texts(ax) == ["Training cells", "Held-out cells"]


def test_undone_steps_are_marked_where_they_happened(ax: Axes) -> None:
    # Cumulative within a run; a second call of train counts from zero.
    so_far = np.repeat([0, 2, 3, 1], 10)
    training_curves(history(n_rollbacks=so_far), ax)
    label = "4 steps undone (not finite)"
    assert label in legend_texts(ax)
    np.testing.assert_array_equal(line(ax, label)[:, 0], [10, 20, 30])


def test_a_run_without_undone_steps_has_no_marks(ax: Axes) -> None:
    training_curves(history(), ax)
    assert not any("undone" in text for text in legend_texts(ax))


def test_the_first_epochs_do_not_flatten_the_rest(ax: Axes) -> None:
    table = history()
    training_curves(table, ax)
    low, high = ax.get_ylim()
    late = -table.loc[10:, ["elbo_train", "elbo_validation"]].to_numpy()
    assert low < late.min() and late.max() < high
    assert (late.max() - late.min()) / (high - low) > 0.5
    assert -table["elbo_train"].iloc[0] < low


def test_one_bad_epoch_does_not_flatten_the_rest(ax: Axes) -> None:
    table = history(200)
    table.loc[100, "elbo_train"] = 1e9
    training_curves(table, ax)
    assert ax.get_ylim()[0] > -400


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_survived(ax: Axes, bad: float) -> None:
    table = history()
    table.loc[3, "elbo_train"] = bad
    training_curves(table, ax)
    assert np.isfinite(ax.get_ylim()).all()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("n_epochs", [1, 2, 3])
def test_short_runs_can_be_seen(ax: Axes, n_epochs: int) -> None:
    training_curves(history(n_epochs), ax)
    assert ax.lines[0].get_marker() == "o"
    low, high = ax.get_ylim()
    assert all(low < y < high for _, y in line(ax, "Training cells"))
    ax.figure.canvas.draw()


def test_a_constant_history_can_be_drawn(ax: Axes) -> None:
    training_curves(history(elbo_train=np.ones(40), elbo_validation=np.ones(40)), ax)
    low, high = ax.get_ylim()
    assert low < -1 < high


def test_without_axes_a_figure_is_made_and_settings_stay() -> None:
    import matplotlib.pyplot as plt

    before, open_before = dict(plt.rcParams), plt.get_fignums()
    ax = training_curves(history())
    try:
        assert ax.figure.number not in open_before
        assert dict(plt.rcParams) == before
    finally:
        plt.close(ax.figure)


def test_given_axes_open_no_figure(ax: Axes) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    training_curves(history(), ax)
    assert plt.get_fignums() == before


def test_an_untrained_model_is_refused() -> None:
    with pytest.raises(NotTrainedError, match=r"Call model\.train\(\)"):
        training_curves(SimpleNamespace(history=pd.DataFrame().rename_axis("epoch")))


def test_something_else_is_refused() -> None:
    with pytest.raises(OptionError, match="takes a trained model or its history"):
        training_curves([1, 2, 3])
    with pytest.raises(OptionError, match="has 'loss'"):
        training_curves(pd.DataFrame({"loss": [1.0]}))
