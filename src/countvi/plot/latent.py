"""The latent space as a map of cells."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from countvi.errors import DataError, OptionError
from countvi.plot._figure import GREY, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers; black and their pale yellow left out. With more
# categories than colours, the shape of the points changes too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F5A3C")
_SHAPES = ("o", "^", "s", "D", "v", "P", "X", "*")
_MOST_CATEGORIES = 40
_ROWS_OF_LEGEND = 20
_LONGEST_LABEL = 40
_MANY_CELLS = 10_000


def latent(z: Any, labels: Any = None, ax: Axes | None = None) -> Axes:
    """Draw cells by their first two principal components, coloured by label.

    Parameters
    ----------
    z
        Cell states, ``(cells, dimensions)``, as ``get_latent_representation`` returns them; or a trained model, for
        the cells it was trained on. Two dimensions are drawn as they are.
    labels
        One per cell, in the same order, such as a column of ``obs``. Numbers get a colour bar (its ends are the 1st
        and 99th percentile); anything else is a category. Pass ``labels.astype(str)`` where numbers name clusters.
        Missing labels are grey. Of more than 40 categories, the rarest are drawn together.
    ax
        Where to draw; by default in a new figure. The legend stands to the right of the axes: save such a figure with
        ``bbox_inches="tight"`` if it has no layout engine.

    Returns
    -------
    matplotlib.axes.Axes
        Both axes have one scale.

    Raises
    ------
    OptionError
        If ``z`` is not a matrix with at least two columns, or ``labels`` has another length.
    DataError
        If ``z`` is not finite.
    """
    # By what it can do: pictures do not know the estimators.
    states = z.get_latent_representation() if hasattr(z, "get_latent_representation") else z
    points, names = _project(_check_states(states))
    series = _check_labels(labels, len(points))
    groups = None if series is None or _is_number(series) else _groups(series)
    if ax is None:
        ax = new_axes(4.6 + _legend_width(groups), 4.4)
    style = {"s": float(np.clip(16_000 / max(len(points), 1), 2, 22)), "linewidths": 0}
    style["rasterized"] = len(points) > _MANY_CELLS
    if series is None:
        ax.scatter(*points.T, color=_COLOURS[0], **style)
    elif groups is None:
        _draw_numbers(ax, points, series, style)
    else:
        _draw_groups(ax, points, groups, series.name, style)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _check_states(z: Any) -> np.ndarray:
    states = np.asarray(z, dtype=float)
    if states.ndim != 2 or states.shape[1] < 2 or not len(states):
        message = f"z must have a row per cell and at least two columns; got shape {states.shape}."
        raise OptionError(message)
    n_bad = int((~np.isfinite(states)).any(axis=1).sum())
    if n_bad:
        message = f"z must be finite; {n_bad:,} of {len(states):,} cells have NaN or infinity. Leave these cells out."
        raise DataError(message)
    return states


def _check_labels(labels: Any, n_cells: int) -> pd.Series | None:
    if labels is None:
        return None
    series = labels if isinstance(labels, pd.Series) else pd.Series(labels)
    if len(series) != n_cells:
        message = f"labels must have one entry per cell: z has {n_cells:,} rows; got {len(series):,} labels."
        raise OptionError(message)
    return series.reset_index(drop=True).infer_objects()


def _is_number(series: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)


def _project(states: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Coordinates ``(cells, 2)`` and what to call them."""
    if states.shape[1] == 2:
        return states, ("Latent dimension 1", "Latent dimension 2")
    _, singular, axes = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)
    # The sign of an axis is arbitrary. Its largest loading is made positive, so that a picture comes out the same.
    axes = axes[:2] * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:2, None]
    points = np.zeros((len(states), 2))
    points[:, : len(axes)] = (states - states.mean(axis=0)) @ axes.T
    share = singular**2 / max(float((singular**2).sum()), np.finfo(float).tiny)
    share = np.append(share, 0.0)  # a single cell has one axis
    return points, (f"Latent PC 1 ({share[0]:.0%} of variance)", f"Latent PC 2 ({share[1]:.0%} of variance)")


# --- categories


@dataclass(frozen=True)
class _Group:
    """Cells drawn alike."""

    label: str
    rows: np.ndarray
    colour: str
    shape: str = "o"


def _groups(series: pd.Series) -> list[_Group]:
    """Categories in their order, then the rarest of many together, then the missing."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        codes, categories = series.cat.codes.to_numpy(), list(series.cat.categories)
    else:
        text = series.astype(str).where(series.notna())
        categories = sorted(text.dropna().unique(), key=_natural)
        codes = pd.Categorical(text, categories=categories).codes
    counts = np.bincount(codes[codes >= 0], minlength=len(categories))
    present = np.flatnonzero(counts)
    kept = present
    if len(present) > _MOST_CATEGORIES:
        # Of equally rare categories the earlier stay.
        kept = np.sort(present[np.argsort(-counts[present], kind="stable")[: _MOST_CATEGORIES - 1]])
    groups = [
        _Group(
            _shorten(str(categories[code])),
            np.flatnonzero(codes == code),
            _COLOURS[place % len(_COLOURS)],
            _SHAPES[place // len(_COLOURS) % len(_SHAPES)],
        )
        for place, code in enumerate(kept)
    ]
    rest = np.flatnonzero((codes >= 0) & ~np.isin(codes, kept))
    if len(rest):
        groups.append(_Group(f"{len(present) - len(kept):,} rarer ones", rest, "0.45", "."))
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        groups.append(_Group("missing", missing, GREY))
    return groups


def _natural(label: str) -> list[tuple[int, str]]:
    """Sort key that puts "10" behind "9"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", label) if part]


def _shorten(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"


def _columns(groups: list[_Group]) -> int:
    return max(1, math.ceil(len(groups) / _ROWS_OF_LEGEND))


def _legend_width(groups: list[_Group] | None) -> float:
    """About how wide the legend is, in inches."""
    if groups is None:
        return 0.9
    return _columns(groups) * (0.45 + 0.075 * max(len(group.label) for group in groups))


def _draw_groups(ax: Axes, points: np.ndarray, groups: list[_Group], title: Any, style: dict[str, Any]) -> None:
    # Rare categories last, or frequent ones would cover them; what has no name below all.
    order = sorted(groups, key=lambda group: (group.colour in _COLOURS, -len(group.rows)))
    for depth, group in enumerate(order):
        ax.scatter(
            *points[group.rows].T, color=group.colour, marker=group.shape, label=group.label, zorder=2 + depth, **style
        )
    handles = [
        Line2D([], [], linestyle="none", marker=group.shape, color=group.colour, markersize=6, label=group.label)
        for group in groups
    ]
    legend = ax.legend(
        handles=handles,
        title=None if title is None else str(title),
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0.0,
        ncols=_columns(groups),
        fontsize="small",
        title_fontsize="small",
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.0,
        alignment="left",
    )
    legend.set_zorder(2 + len(order))


# --- numbers


def _draw_numbers(ax: Axes, points: np.ndarray, series: pd.Series, style: dict[str, Any]) -> None:
    values = series.to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(values)
    if not known.all():
        ax.scatter(*points[~known].T, color=GREY, label="missing", zorder=2, **style)
        ax.legend(loc="lower right", fontsize="small", frameon=False, handletextpad=0.2)
    if not known.any():
        return
    low, high = np.percentile(values[known], [1, 99])
    below, above = bool((values[known] < low).any()), bool((values[known] > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    # Cells with high values last: they are often the ones looked for.
    order = np.flatnonzero(known)[np.argsort(values[known], kind="stable")]
    drawn = ax.scatter(*points[order].T, c=values[order], cmap="viridis", vmin=low, vmax=high, zorder=3, **style)
    ax.figure.colorbar(
        drawn, ax=ax, label="" if series.name is None else str(series.name), extend=extend[below, above], shrink=0.8
    )
