"""Observed counts beside counts drawn from a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from countvi.errors import OptionError, choose
from countvi.plot._figure import GREY, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WORDS = {
    "zero_fraction": "share of zeros",
    "cv": "coefficient of variation",
    "mean": "mean count",
    "calibration_error": "Calibration error",
}


def predictive_check(
    checks: Any,
    statistic: Literal["zero_fraction", "cv", "mean", "calibration_error"] = "zero_fraction",
    ax: Axes | None = None,
) -> Axes:
    """Draw a predictive check, a point for each gene or cell.

    Parameters
    ----------
    checks
        What ``get_predictive_checks`` returned of one modality, for its genes; or one of its two tables.
    statistic
        ``"zero_fraction"``, ``"cv"`` or ``"mean"``: predicted against observed, with the line where both are equal.
        ``"calibration_error"``: against the mean count.
    ax
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Axes of means and coefficients of variation are logarithmic.

    Raises
    ------
    OptionError
        If ``checks`` is neither, or the statistic does not exist.
    """
    table = getattr(checks, "genes", checks)
    if not {"mean", "cv_predicted", "calibration_error"} <= set(getattr(table, "columns", ())):
        message = (
            "predictive_check takes what get_predictive_checks returned of one modality, or one of its tables; got "
            f"{type(checks).__name__}."
        )
        raise OptionError(message)
    words = choose("statistic", statistic, _WORDS)
    ax = new_axes(4.2, 4.0) if ax is None else ax
    calibration = statistic == "calibration_error"
    x = np.asarray(table["mean" if calibration else statistic], dtype=float)
    y = np.asarray(table[statistic if calibration else f"{statistic}_predicted"], dtype=float)
    ax.scatter(x, y, s=8, color="#0072B2", alpha=0.5, linewidths=0, rasterized=len(x) > 5_000)
    if calibration:
        ax.set_xscale("log")
        ax.set_ylim(0, None)
        ax.set_xlabel("Mean count")
        ax.set_ylabel(words)
    else:
        _diagonal(ax, x, y, logarithmic=statistic != "zero_fraction")
        ax.set_xlabel(f"Observed {words}")
        ax.set_ylabel(f"Predicted {words}")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _diagonal(ax: Axes, x: np.ndarray, y: np.ndarray, *, logarithmic: bool) -> None:
    """Both axes alike, and the line on which prediction and observation agree."""
    values = np.concatenate([x, y])
    values = values[np.isfinite(values) & ((values > 0) | (not logarithmic))]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if logarithmic:
        ax.set_xscale("log")
        ax.set_yscale("log")
        low, high = (0.8 * low, 1.25 * high) if len(values) else (0.1, 1.0)
    else:
        low, high = -0.02, 1.02
    ax.plot([low, high], [low, high], color=GREY, linewidth=1, zorder=0)
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
