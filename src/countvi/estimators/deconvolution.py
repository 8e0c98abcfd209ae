"""From a reference of single cells and a slide to what is in its spots, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import scipy.sparse as sp

from countvi import seeding
from countvi.errors import MismatchError, UnknownNameError, did_you_mean, shorten
from countvi.estimators.condscvi import CondSCVI
from countvi.estimators.destvi import DestVI
from countvi.estimators.options import WHOLE
from countvi.estimators.readouts.spot_analysis import PresenceCalls

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

# A gene seen in fewer cells of the reference says nothing of types.
_FEWEST_CELLS = 3


@final
@dataclass(frozen=True, eq=False)
class Deconvolution:
    """What is in the spots of a slide.

    Parameters
    ----------
    reference
        Trained model of the single cells.
    model
        Trained model of the slide.
    proportions
        Proportion of each type in the counts of each spot: spots x types.
    thresholds
        Proportion of each type from which on its states are worth looking at.
    presence
        Which types are in which spots.
    """

    reference: CondSCVI
    model: DestVI
    proportions: pd.DataFrame
    thresholds: pd.Series
    presence: PresenceCalls


def deconvolve(
    reference: AnnData,
    slide: AnnData,
    *,
    labels_key: str,
    layer: str | None = None,
    spatial_layer: str | None = None,
    batch_key: str | None = None,
    n_genes: int | None = 2_000,
    cells_per_spot: float = 6,
    max_epochs: int | None = None,
    spatial_max_epochs: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
    enable_progress_bar: bool = True,
) -> Deconvolution:
    """Find the cell types of spots: train :class:`CondSCVI` and :class:`DestVI` with their defaults, and read them.

    Neither AnnData is modified.

    Parameters
    ----------
    reference
        Single cells x genes, raw counts.
    slide
        Spots x genes, raw counts.
    labels_key
        Column of the reference's ``obs``: cell types.
    layer, spatial_layer
        Layers with the counts; by default ``X``.
    batch_key
        Column of the reference's ``obs``: batches.
    n_genes
        How many of the genes that both have are used, those that vary most in the reference; ``None`` for all.
    cells_per_spot
        Cells that a spot holds on average, for the presence calls.
    max_epochs, spatial_max_epochs
        Epochs of the two models; by default their own.
    seed
        Of everything that is random.
    enable_progress_bar
        Whether to show progress.

    Returns
    -------
    Deconvolution
        Both models and what they say; ``model`` has the rest: states, expression, axes, comparisons.

    Raises
    ------
    MismatchError
        If reference and slide share no genes.

    Examples
    --------
    >>> import countvi
    >>> found = countvi.deconvolve(cells, slide, labels_key="cell_type")  # doctest: +SKIP
    >>> slide.obsm["proportions"] = found.proportions  # doctest: +SKIP
    """
    cells = _with_informative_genes(reference, slide, layer, n_genes)
    CondSCVI.setup_anndata(cells, labels_key=labels_key, layer=layer, batch_key=batch_key)
    sc_model = CondSCVI(cells, seed=seed)
    sc_model.train(max_epochs, enable_progress_bar=enable_progress_bar)
    DestVI.setup_anndata(slide, layer=spatial_layer)
    model = DestVI.from_rna_model(slide, sc_model, seed=seed)
    model.train(spatial_max_epochs, enable_progress_bar=enable_progress_bar)
    return Deconvolution(
        sc_model,
        model,
        model.get_proportions(),
        model.get_proportion_thresholds(),
        model.get_presence(sc_model, cells_per_spot=cells_per_spot, seed=seed),
    )


def _with_informative_genes(reference: AnnData, slide: AnnData, layer: str | None, n_genes: int | None) -> AnnData:
    """Return the reference with the genes that the slide has too, those whose variance is most above a Poisson's."""
    shared = reference.var_names.isin(slide.var_names)
    if not shared.any():
        message = (
            f"Reference and slide share no genes. The reference has {shorten(list(reference.var_names), 3)}, the slide "
            f"{shorten(list(slide.var_names), 3)}; are these different kinds of names (symbols and Ensembl ids)?"
        )
        raise MismatchError(message)
    if layer is not None and layer not in reference.layers:
        message = f"layer: the reference has no layer {layer!r}.{did_you_mean(layer, reference.layers)}"
        raise UnknownNameError(message)
    columns = np.flatnonzero(shared)
    if n_genes is None:
        return reference[:, columns].copy()
    WHOLE("n_genes", n_genes)
    stored: Any = reference.X if layer is None else reference.layers[layer]
    counts = sp.csr_matrix(stored[:, columns], dtype=np.float64)
    seen = counts.getnnz(axis=0) >= _FEWEST_CELLS
    score = np.where(seen, _excess_of_variance(counts), -np.inf)
    best = np.sort(np.argsort(-score, kind="stable")[: min(n_genes, int(seen.sum()))])
    return reference[:, columns[best]].copy()


def _excess_of_variance(counts: sp.csr_matrix) -> np.ndarray:
    """Variance over mean of counts scaled to one depth, less one, times the logarithm of one and the mean."""
    totals = np.asarray(counts.sum(1)).ravel()
    scaled: Any = sp.diags(np.median(totals) / np.maximum(totals, 1.0)) @ counts
    mean = np.asarray(scaled.mean(0)).ravel()
    square = np.asarray(scaled.multiply(scaled).mean(0)).ravel()
    return ((square - mean**2) / np.maximum(mean, 1e-12) - 1.0) * np.log1p(mean)
