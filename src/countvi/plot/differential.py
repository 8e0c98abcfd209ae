"""Changes of expression and how sure they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from countvi.errors import OptionError, UnknownNameError, shorten
from countvi.plot._figure import GREY, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_UP, _DOWN = "#D55E00", "#0072B2"
_LEAST_P = 1e-300


def volcano(
    table: pd.DataFrame,
    comparison: str | None = None,
    *,
    replicates: bool = False,
    n_labels: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Draw the change of each feature against the evidence that there is one.

    Parameters
    ----------
    table
        What ``differential_expression`` returned, with ``mode="change"``.
    comparison
        Which comparison of a table of several.
    replicates
        Draw what samples agree on (``sample_key``): the mean change over samples against its p-value.
    n_labels
        How many of the features that were found are named, the largest changes first.
    ax
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        x: log2 fold change; y: probability of a change, or minus the decimal logarithm of the p-value. Features that
        were found at the false discovery rate of the table are coloured.

    Raises
    ------
    OptionError
        If the table does not have the columns, or holds several comparisons and none is named.
    UnknownNameError
        If there is no such comparison.
    """
    part, title = _one_comparison(table, comparison)
    x_name, y_name, prefix = (
        ("replicate_lfc", "replicate_pvalue", "is_de_replicates_fdr_")
        if replicates
        else ("lfc_median", "proba_de", "is_de_fdr_")
    )
    found_name = next((name for name in part.columns if str(name).startswith(prefix)), None)
    if found_name is None or x_name not in part or y_name not in part:
        wanted = "sample_key=" if replicates else "mode='change'"
        message = f"volcano draws the columns {x_name!r} and {y_name!r} of differential_expression({wanted}...)."
        raise OptionError(message)
    x, y = part[x_name].to_numpy(dtype=float), part[y_name].to_numpy(dtype=float)
    if replicates:
        y = -np.log10(np.maximum(y, _LEAST_P))
    found = part[found_name].to_numpy(dtype=bool)
    ax = new_axes(5.2, 4.4) if ax is None else ax
    for mask, colour, label in (
        (~found, GREY, None),
        (found & (x > 0), _UP, "up"),
        (found & (x <= 0), _DOWN, "down"),
    ):
        text = None if label is None else f"{int(mask.sum()):,} {label}"
        ax.scatter(x[mask], y[mask], s=8, color=colour, linewidth=0, label=text, rasterized=len(x) > 5_000)
    for i in np.flatnonzero(found)[np.argsort(-np.abs(x[found]))[:n_labels]]:
        ax.annotate(
            str(part.index[i]),
            (x[i], y[i]),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize="x-small",
            clip_on=True,
        )
    ax.set_xlabel("Log2 fold change")
    ax.set_ylabel("-log10 p of no change over samples" if replicates else "Probability of a change")
    ax.set_title(title, loc="left", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(title=str(found_name).removeprefix("is_de_").replace("_", " "), frameon=False, markerscale=2)
    return ax


def _one_comparison(table: pd.DataFrame, comparison: str | None) -> tuple[pd.DataFrame, str]:
    if "comparison" not in table:
        if comparison is not None:
            message = "comparison= picks one of several, and this table has one without a name."
            raise OptionError(message)
        return table, ""
    known = list(dict.fromkeys(table["comparison"]))
    if comparison is None and len(known) != 1:
        message = f"The table has {len(known)} comparisons; name one by comparison=: {shorten(known)}."
        raise OptionError(message)
    if comparison is not None and comparison not in known:
        message = f"The table has no comparison {comparison!r}; it has {shorten(known)}."
        raise UnknownNameError(message)
    name = known[0] if comparison is None else comparison
    return table.loc[table["comparison"] == name], str(name)
