"""Where to draw when the user does not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "0.72"
"""Of what is there but has no name: missing labels, the rest of many categories."""


def new_axes(width: float, height: float) -> Axes:
    """Make a figure of its own, in inches, which a notebook shows and which makes room for a legend outside."""
    # pyplot picks a window system when it is imported, which only those who want a figure should set off.
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax
