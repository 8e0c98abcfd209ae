"""Which dimensions of the cell state the decoder of each modality uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from countvi.errors import OptionError
from countvi.plot._figure import GREY, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F5A3C")


def attribution(source: Any, slices: Mapping[str, slice] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the mean attribution of each dimension of the cell state to each modality.

    Parameters
    ----------
    source
        A trained model of several modalities, for the scale-free attribution of all cells of its data; or what its
        ``get_modality_attribution`` returned.
    slices
        Dimensions that belong to each modality, ``model.modality_slices``; their ends are marked. A model brings its
        own.
    ax
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        x: dimension of the cell state, from 0; y: mean over cells.

    Raises
    ------
    OptionError
        If ``source`` is neither, or holds no cells.
    """
    # By what it can do: pictures do not know the estimators.
    if hasattr(source, "get_modality_attribution"):
        slices = source.modality_slices if slices is None else slices
        source, label = source.get_modality_attribution(relative=True), "Share of counts moved by one unit of z"
    else:
        label = "Mean attribution"
    means = _means(source)
    n_latent = len(next(iter(means.values())))
    if ax is None:
        ax = new_axes(min(12.0, 3.0 + 0.25 * n_latent), 3.6)
    width = 0.84 / len(means)
    for i, (name, values) in enumerate(means.items()):
        at = np.arange(n_latent) - 0.42 + (i + 0.5) * width
        ax.bar(at, values, width, color=_COLOURS[i % len(_COLOURS)], label=name, linewidth=0)
    _mark_slices(ax, slices or {})
    ax.set_xlim(-0.7, n_latent - 0.3)
    ax.set_ylim(0, 1.2 * max(float(values.max()) for values in means.values()) or 1.0)  # room for the legend
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20, min_n_ticks=1))
    ax.set_xlabel("Dimension of the cell state")
    ax.set_ylabel(label)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(title="Decoder of", loc="best", framealpha=0.9, edgecolor="none")
    return ax


def _means(source: Any) -> dict[str, NDArray[np.float64]]:
    """Mean over cells, ``(latent,)`` for each modality."""
    if not isinstance(source, Mapping) or not source or not all(_is_attribution(value) for value in source.values()):
        message = (
            "attribution takes a trained model of several modalities, or what its get_modality_attribution returned; "
            f"got {type(source).__name__}."
        )
        raise OptionError(message)
    arrays = {str(name): np.asarray(value["attribution"], dtype=float) for name, value in source.items()}
    if any(array.ndim != 2 or not len(array) for array in arrays.values()):
        message = f"attribution needs at least one cell; got shapes {[array.shape for array in arrays.values()]}."
        raise OptionError(message)
    return {name: array.mean(0) for name, array in arrays.items()}


def _is_attribution(value: Any) -> bool:
    return isinstance(value, Mapping) and "attribution" in value


def _mark_slices(ax: Axes, slices: Mapping[str, slice]) -> None:
    """Separate the parts of the cell state, and name them above."""
    for name, part in slices.items():
        if part.start > 0:
            ax.axvline(part.start - 0.5, color=GREY, linewidth=1, zorder=0)
        middle = (part.start + part.stop - 1) / 2
        ax.text(middle, 1.01, name, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize="small")
