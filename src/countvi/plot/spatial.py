"""Spots of a slide, coloured by a number each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from countvi.errors import DataError, OptionError
from countvi.plot._figure import GREY, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#0072B2"
_MANY_SPOTS = 10_000
# Of the distance between neighbours: spots nearly touch.
_FILLED = 0.92
_POINTS_PER_INCH = 72.0


def spatial(
    values: Any, locations: Any, ax: Axes | None = None, *, title: str | None = None, cmap: str = "viridis"
) -> Axes:
    """Draw the spots of a slide where they lie.

    Parameters
    ----------
    values
        One per spot: numbers (proportions, expression) get a colour bar whose ends are zero, or the smallest if that is
        negative, and the 99th percentile; truth values (presence) are drawn in blue or grey.
    locations
        Shape ``(spots, 2)``, such as ``obsm["spatial"]``. The second axis points down, as in a picture.
    ax
        Where to draw; by default in a new figure.
    title
        Above the axes; by default the name of ``values``, if it has one.
    cmap
        Colours of numbers.

    Returns
    -------
    matplotlib.axes.Axes
        Both axes have one scale.

    Raises
    ------
    OptionError
        If the lengths differ, or ``locations`` has not two columns.
    DataError
        If a location is not finite.
    """
    title = str(getattr(values, "name", None) or "") if title is None else title
    places, values = np.asarray(locations, dtype=float), np.asarray(values)
    if places.ndim != 2 or places.shape[1] != 2 or values.shape != places.shape[:1] or not len(values):
        message = f"spatial takes a value and two coordinates per spot; got shapes {values.shape} and {places.shape}."
        raise OptionError(message)
    if not np.isfinite(places).all():
        message = "locations must be finite; some spots have NaN or infinity. Leave these spots out."
        raise DataError(message)
    if ax is None:
        ax = new_axes(4.6, 4.0)
    style = {"linewidths": 0, "s": _size(places, ax), "rasterized": len(values) > _MANY_SPOTS}
    if values.dtype == bool:
        ax.scatter(*places.T, c=np.where(values, _INK, GREY), **style)
    else:
        numbers = values.astype(float)
        known = numbers[np.isfinite(numbers)]
        low, high = (min(0.0, known.min()), np.percentile(known, 99)) if len(known) else (0.0, 1.0)
        ends = {"vmin": low, "vmax": high if high > low else low + 1.0}
        drawn = ax.scatter(*places.T, c=numbers, cmap=cmap, plotnonfinite=False, **ends, **style)
        ax.figure.colorbar(drawn, ax=ax, shrink=0.7)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize="medium")
    return ax


def _size(places: np.ndarray, ax: Axes) -> float:
    """Area of a spot in square points, such that neighbours nearly touch."""
    from scipy.spatial import KDTree  # slow to import, and only needed here

    distinct = np.unique(places, axis=0)
    extent = max(float(np.ptp(distinct, axis=0).max()), 1e-12)
    if len(distinct) < 2:
        return 100.0
    gap = float(np.median(KDTree(distinct).query(distinct, k=2)[0][:, 1]))
    box = ax.get_window_extent()
    inches = min(box.width, box.height) / ax.figure.dpi  # pyright: ignore[reportAttributeAccessIssue]
    diameter = _FILLED * gap / (extent + gap) * inches * _POINTS_PER_INCH
    return max(diameter, 0.5) ** 2
