"""How a fit went: the ELBO of training and held-out cells over the epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from countvi.errors import NotTrainedError, OptionError
from countvi.plot._figure import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVES = {"elbo_train": ("Training cells", "#0072B2", "-"), "elbo_validation": ("Held-out cells", "#D55E00", "--")}
_FEW_EPOCHS = 20

# The first quarter of a run climbs by far more than what one wants to see of the rest.
_EARLY = 0.25


def training_curves(model_or_history: Any, ax: Axes | None = None) -> Axes:
    """Draw the ELBO of training and held-out cells over the epochs.

    The epochs of the KL warm-up, in which the model does not yet descend the ELBO itself, are shaded. Epochs with
    steps that were undone because they were not finite are marked. The y axis fits the later part of the run; steep
    first epochs may start below it.

    Parameters
    ----------
    model_or_history
        A trained model, its ``history``, or the ``history.csv`` of the command line read by pandas.
    ax
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        x: epoch as the history counts them; y: ELBO per cell in nats, that is minus the columns ``elbo_train`` and
        ``elbo_validation``.

    Raises
    ------
    NotTrainedError
        If the history has no epochs.
    OptionError
        If it is neither a model nor a history.
    """
    history = _history_of(model_or_history)
    if ax is None:
        ax = new_axes(6.4, 4.0)
    drawn = [_draw_curve(ax, history, column) for column in _CURVES if column in history]
    _shade_warmup(ax, history)
    _mark_rollbacks(ax, history)
    limits = _robust_limits(drawn)
    if limits is not None:
        ax.set_ylim(limits)
    first, last = history.index[0], history.index[-1]
    margin = max(0.02 * (last - first), 0.5 if first == last else 0.0)
    ax.set_xlim(first - margin, last + margin)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel("Epoch")
    ax.set_ylabel("ELBO per cell (nats), higher is better")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="best", framealpha=0.9, edgecolor="none")
    return ax


def _history_of(source: Any) -> pd.DataFrame:
    history = source if isinstance(source, pd.DataFrame) else getattr(source, "history", None)
    if not isinstance(history, pd.DataFrame):
        message = f"training_curves takes a trained model or its history, a DataFrame; got {type(source).__name__}."
        raise OptionError(message)
    if not len(history):
        message = "The history has no epochs yet. Call model.train() first."
        raise NotTrainedError(message)
    if not any(column in history for column in _CURVES):
        message = (
            f"training_curves needs the column 'elbo_train' or 'elbo_validation'; this history has "
            f"{', '.join(map(repr, history.columns))}. Pass the history of a model as it is."
        )
        raise OptionError(message)
    return history.set_index("epoch") if "epoch" in history else history


def _draw_curve(ax: Axes, history: pd.DataFrame, column: str) -> np.ndarray:
    label, colour, style = _CURVES[column]
    elbo = -history[column].to_numpy(dtype=float)
    seen = ~np.isnan(elbo)  # epochs without validation are missing values; the line goes on across them
    epochs, elbo = history.index.to_numpy()[seen], elbo[seen]
    marker = "o" if len(elbo) <= _FEW_EPOCHS else ""
    ax.plot(epochs, elbo, style, color=colour, label=label, marker=marker, markersize=3.5, zorder=3)
    return elbo


def _robust_limits(curves: list[np.ndarray]) -> tuple[float, float] | None:
    """Limits of the y axis that fit the later part of the run; ``None`` leaves them to matplotlib."""
    finite = [curve[np.isfinite(curve)] for curve in curves]
    every = np.concatenate(finite)
    if not len(every):
        return None
    late = np.concatenate([curve[int(_EARLY * len(curve)) :] for curve in finite])
    # A quantile, because a step that was undone may leave one very low epoch.
    low, high = float(np.quantile(late, 0.02)), float(every.max())
    span = high - low
    if span <= 0:
        return None
    return max(low - 0.3 * span, float(every.min()) - 0.06 * span), high + 0.06 * span


def _shade_warmup(ax: Axes, history: pd.DataFrame) -> None:
    if "kl_weight" not in history:
        return
    epochs = history.index.to_numpy(dtype=float)
    weight = history["kl_weight"].to_numpy(dtype=float)
    full = np.nanmax(weight, initial=0.0)
    warming = weight < full
    # Still rising at the end and below one: this warm-up did not end within the run.
    if len(weight) > 1 and weight[-2] < weight[-1] < 1.0:
        warming[-1] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], warming, [False]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        ended = stop < len(weight)
        end = float(epochs[stop if ended else stop - 1])
        label = f"KL warm-up, until epoch {end:.0f}" if ended else "KL warm-up, longer than the run"
        ax.axvspan(float(epochs[start]), end, color="0.5", alpha=0.14, linewidth=0, label=label, zorder=0)


def _mark_rollbacks(ax: Axes, history: pd.DataFrame) -> None:
    if "n_rollbacks" not in history:
        return
    so_far = np.nan_to_num(history["n_rollbacks"].to_numpy(dtype=float))
    new = np.diff(so_far, prepend=0.0)
    new = np.where(new < 0, so_far, new)  # another call of train counts from zero
    epochs = history.index.to_numpy()[new > 0]
    if len(epochs):
        # On the x axis, because the ELBO of such an epoch may lie far outside the picture.
        ax.plot(
            epochs,
            np.full(len(epochs), 0.02),
            transform=ax.get_xaxis_transform(),
            linestyle="none",
            marker="^",
            color="black",
            markersize=6,
            label=f"{int(new.sum()):,} steps undone (not finite)" if new.sum() > 1 else "1 step undone (not finite)",
            zorder=4,
        )
