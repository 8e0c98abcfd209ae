"""Denoised expression: ``get_normalized_expression`` of all models but TOTALVI."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators.comparisons import importance
from countvi.estimators.names import Indices, resolve_batches
from countvi.estimators.options import POSITIVE, WHOLE
from countvi.estimators.readouts.features import chosen_features, labelled, per_modality

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted, View

_LIBRARY_SIZE = dataclasses.replace(POSITIVE, words="a positive number or 'latent'")


def get_normalized_expression(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    transform_batch: Any = None,
    gene_list: Sequence[str] | None = None,
    library_size: float | Literal["latent"] = 1.0,
    n_samples: int = 1,
    n_samples_overall: int | None = None,
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    *,
    modality: str | None = None,
    include_background: bool = False,
    weights: Literal["uniform", "importance"] | None = None,
    importance_weighting_kwargs: Mapping[str, Any] | None = None,
    use_z_mean: bool = False,
    out: Any = None,
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    r"""Return denoised expression: the posterior mean of :math:`\rho`, in units of an average cell's counts.

    Without the background a row sums to about one minus the cell's ambient share, times ``library_size``.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    transform_batch
        Decode every cell as if it came from this batch, or had these covariates (``{"site": "s1"}``); a list
        averages, ``"average"`` does over all batches; ``None`` leaves each cell as it is, so the result then still
        carries technical effects.
    gene_list
        Features to return, in this order.
    library_size
        Multiplies the expression; ``"latent"`` for the expected counts of each cell at its own library size, with
        its feature factors.
    n_samples
        Posterior draws per cell.
    n_samples_overall
        Instead: draw so many cells with replacement, one posterior draw each.
    return_mean
        Average over draws, or keep them.
    return_numpy
        Return an array rather than a data frame; forced by ``return_mean=False`` with several samples.
    modality
        Which modality.
    include_background
        Add the ambient background.
    weights
        ``"importance"``: the posterior itself, by importance sampling with the guide as proposal. With several
        ``n_samples`` their weighted mean, otherwise draws that are drawn again by weight.
    importance_weighting_kwargs
        ``n_mc_samples`` (proposals per cell, 32; at least ``n_samples``) and ``truncation`` (cut the largest
        weights, ``False``).
    use_z_mean
        Decode the posterior mean of z instead of draws: fast, without noise, slightly biased.
    out
        An array-like of the right shape to write to (NumPy, zarr, h5py, memmap); it is returned.
    seed
        Of the draws.

    Returns
    -------
    DataFrame or numpy.ndarray
        ``(cells, features)``; ``(n_samples, cells, features)`` with ``return_mean=False`` and several samples;
        ``(n_samples_overall, features)`` with that argument. Of several modalities, a dictionary by name unless
        one is named.
    """
    if out is not None and modality is None and self.several_modalities and len(self.registry.modalities) > 1:
        message = "out holds one modality, and the model has several; name it with modality=."
        raise OptionError(message)
    if include_background and not self.has_background:
        message = "include_background=True adds an ambient background, which this model does not have; leave it out."
        raise OptionError(message)
    weighing = importance(weights, importance_weighting_kwargs)
    if use_z_mean and weighing is not None:
        message = "weights='importance' weighs draws of z, and use_z_mean=True draws none; choose one."
        raise OptionError(message)
    draws = query.Draws(n_samples, return_mean, use_z_mean, weighing, seed)
    cells, draws, index = cells_to_draw(self.view(adata, indices, batch_size), draws, n_samples_overall)
    counterfactuals, size = resolve_batches(transform_batch, self.registry), library_scale(library_size)

    def of(name: str) -> Any:
        genes = chosen_features(self, name, gene_list)
        expression = query.DecodedExpression(
            self.module, name, genes.columns, counterfactuals, size, include_background
        )
        values = query.expectation(expression, cells, draws, out=out)
        return labelled(values, index, genes.names, return_numpy or out is not None)

    return per_modality(self, modality, of)


def cells_to_draw(
    view: View, draws: query.Draws, n_samples_overall: int | None
) -> tuple[query.Cells, query.Draws, pd.Index | None]:
    """Return which cells are decoded, how, and what the rows are called, if it is not by chance which cells they are.

    Parameters
    ----------
    view
        The cells that are asked for.
    draws
        How to draw from each.
    n_samples_overall
        Instead: how many cells are drawn with replacement, to draw once from each.
    """
    WHOLE("n_samples", draws.n)
    if n_samples_overall is None:
        return view.cells, draws, view.names
    return *query.resampled(view.cells, WHOLE("n_samples_overall", n_samples_overall), draws), None


def library_scale(library_size: float | str) -> float | None:
    """Return what expression is multiplied by; ``None`` for each cell's own library size."""
    if isinstance(library_size, str) and library_size == "latent":
        return None
    return _LIBRARY_SIZE("library_size", library_size)
