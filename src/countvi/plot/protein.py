"""Protein counts, and what of them is background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from countvi.errors import OptionError
from countvi.plot._figure import GREY, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RAW, _BACKGROUND, _DENOISED = GREY, "#E69F00", "#0072B2"
_BINS = 60


def protein_background(
    model: Any,
    protein: str,
    indices: Any = None,
    ax: Axes | None = None,
    *,
    transform_batch: Any = None,
    n_samples: int = 10,
    seed: int = 0,
) -> Axes:
    """Draw histograms of a protein's raw counts, of its denoised expression and of its background.

    Parameters
    ----------
    model
        A trained model with proteins.
    protein
        Its name.
    indices
        Cells; by default all. Raw counts are those of cells in which the protein was measured.
    ax
        Where to draw; by default in a new figure.
    transform_batch
        The batch to decode in; by default each cell's own.
    n_samples
        Posterior draws per cell.
    seed
        Of the draws.

    Returns
    -------
    matplotlib.axes.Axes
        x: log(1 + counts); y: density over cells. Denoised expression is (1 - pi) beta alpha, the background beta.

    Raises
    ------
    OptionError
        If the model has no proteins, or no cells are selected.
    UnknownNameError
        If it does not have this one.
    """
    # By what it can do: pictures do not know the estimators.
    if not hasattr(model, "get_protein_background_mean"):
        message = f"protein_background takes a trained model with proteins; got {type(model).__name__}."
        raise OptionError(message)
    arguments = {"indices": indices, "protein_list": [protein], "transform_batch": transform_batch, "seed": seed}
    background = model.get_protein_background_mean(n_samples=n_samples, **arguments).ravel()
    denoised = model.get_normalized_expression(gene_list=[], n_samples=n_samples, return_numpy=True, **arguments)[1]
    raw = model.get_raw_proteins(indices=indices, protein_list=[protein]).to_numpy().ravel()
    if not len(background):
        message = "protein_background needs at least one cell; indices selects none."
        raise OptionError(message)
    ax = new_axes(4.8, 3.2) if ax is None else ax
    parts = {
        "raw counts": (raw[np.isfinite(raw)], _RAW),
        "background": (background, _BACKGROUND),
        "denoised": (denoised.ravel(), _DENOISED),
    }
    highest = max(float(np.log1p(values).max(initial=0.0)) for values, _ in parts.values())
    edges = np.linspace(0.0, highest or 1.0, _BINS + 1).tolist()
    for name, (values, colour) in parts.items():
        if len(values):
            ax.hist(
                np.log1p(values), bins=edges, density=True, histtype="stepfilled", alpha=0.4, color=colour, label=name
            )
            ax.hist(np.log1p(values), bins=edges, density=True, histtype="step", color=colour)
    ax.set_xlabel(f"log(1 + {protein})")
    ax.set_ylabel("Density of cells")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="best", framealpha=0.9, edgecolor="none")
    return ax
