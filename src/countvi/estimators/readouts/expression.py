"""Denoised expression."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from countvi import query, seeding
from countvi.errors import OptionError
from countvi.estimators.comparisons import importance
from countvi.estimators.names import Indices, resolve_batches, resolve_genes
from countvi.estimators.options import POSITIVE, WHOLE
from countvi.estimators.readouts.features import feature_names, per_modality

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted

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
    WHOLE("n_samples", n_samples)
    if n_samples_overall is not None:
        WHOLE("n_samples_overall", n_samples_overall)
    weighing = importance(weights, importance_weighting_kwargs)
    if use_z_mean and weighing is not None:
        message = "weights='importance' weighs draws of z, and use_z_mean=True draws none; choose one."
        raise OptionError(message)
    view = self.view(adata, indices, batch_size)
    draws: dict[str, Any] = (
        {"n_samples": n_samples, "return_mean": return_mean, "use_z_mean": use_z_mean}
        if n_samples_overall is None
        else {"n_samples_overall": n_samples_overall}
    )
    compute = query.normalized_expression if n_samples_overall is None else query.sampled_expression

    def of(name: str) -> Any:
        names = feature_names(self, name)
        columns = resolve_genes(gene_list, names)
        values = compute(
            self.module,
            view.cells,
            modality=name,
            genes=columns,
            counterfactuals=resolve_batches(transform_batch, self.registry),
            library_size=_library_scale(library_size),
            background=include_background,
            importance=weighing,
            seed=seed,
            out=out,
            **draws,
        )
        if return_numpy or out is not None or values.ndim == 3:
            return values
        index = None if n_samples_overall is not None else view.names
        return pd.DataFrame(values, index=index, columns=names if columns is None else names[columns])

    return per_modality(self, modality, of)


def _library_scale(library_size: Any) -> float | None:
    if isinstance(library_size, str) and library_size == "latent":
        return None
    return _LIBRARY_SIZE("library_size", library_size)
