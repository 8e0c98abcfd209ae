"""Read-outs of TOTALVI: denoised expression, and what is foreground and background of proteins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from countvi import query, seeding
from countvi.batch import PROTEIN, RNA
from countvi.estimators.names import Indices, resolve_batches, resolve_rows
from countvi.estimators.options import WHOLE
from countvi.estimators.readouts.expression import cells_to_draw, library_scale
from countvi.estimators.readouts.features import ChosenFeatures, chosen_features, labelled

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted
    from countvi.models.totalvi import TOTALVI as TOTALVIModel


def get_normalized_expression(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    n_samples_overall: int | None = None,
    transform_batch: Any = None,
    gene_list: Sequence[str] | None = None,
    protein_list: Sequence[str] | None = None,
    library_size: float | Literal["latent"] = 1.0,
    n_samples: int = 1,
    sample_protein_mixing: bool = False,
    scale_protein: bool = False,
    include_protein_background: bool = False,
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    *,
    sampling_protein_mixing: bool | None = None,
    use_z_mean: bool = False,
    seed: int = seeding.DEFAULT_SEED,
) -> tuple[Any, Any]:
    r"""Return denoised expression of RNA, :math:`\ell' \rho`, and of protein, :math:`(1 - \pi) \beta \alpha`.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    n_samples_overall
        Draw so many cells with replacement, one posterior draw each.
    transform_batch
        Decode every cell as if it came from this batch, or had these covariates (``{"donor": "d1"}``); a list
        averages over batches, ``"average"`` over all of them; ``None`` leaves each in its own, so the result then
        still carries batch effects.
    gene_list, protein_list
        Genes and proteins to return, in this order.
    library_size
        Total that the RNA of a cell is scaled to, or ``"latent"`` for the cell's own.
    n_samples
        Posterior draws per cell.
    sample_protein_mixing
        Draw whether each count is background, rather than weight by the probability.
    scale_protein
        Divide proteins by their sum over all proteins of the cell. The mean over draws is that of the quotient, by
        quadrature over the background: about 5 microseconds per protein, batch and draw of a cell on one core.
    include_protein_background
        Add the background, :math:`\pi \beta`.
    return_mean
        Average over draws, or keep them. The mean of proteins is exact over the background given z.
    return_numpy
        Return arrays rather than data frames; forced by ``return_mean=False`` with several samples.
    sampling_protein_mixing
        Another name of ``sample_protein_mixing``.
    use_z_mean
        Decode the posterior mean of z instead of draws: fast, without noise, slightly biased.
    seed
        Of the draws; genes and proteins come from the same ones.

    Returns
    -------
    tuple
        Of RNA and of protein: data frames or arrays ``(cells, features)``; ``(n_samples, cells, features)`` with
        ``return_mean=False`` and several samples; ``(n_samples_overall, features)`` with that argument.
    """
    draws = query.Draws(n_samples, return_mean, use_z_mean, seed=seed)
    drawn = n_samples_overall is not None or not (return_mean or n_samples == 1)
    cells, draws, index = cells_to_draw(self.view(adata, indices, batch_size), draws, n_samples_overall)
    by_chance = sample_protein_mixing if sampling_protein_mixing is None else sampling_protein_mixing
    mixing = query.mixing_stream(seed, cells.device) if by_chance else None
    denoised = query.Denoised(include_protein_background, scale_protein, mixing, exact=not drawn)
    genes, proteins = chosen_features(self, RNA, gene_list), _proteins(self, protein_list)
    counterfactuals, size = resolve_batches(transform_batch, self.registry), library_scale(library_size)
    rna = query.expectation(
        query.DecodedExpression(self.module, RNA, genes.columns, counterfactuals, size), cells, draws
    )
    protein = query.expectation(
        query.DecodedProteins(self.module, denoised, proteins.columns, counterfactuals), cells, draws
    )
    return labelled(rna, index, genes.names, return_numpy), labelled(protein, index, proteins.names, return_numpy)


def get_protein_foreground_probability(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    transform_batch: Any = None,
    protein_list: Sequence[str] | None = None,
    n_samples: int = 1,
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    *,
    use_z_mean: bool = False,
    seed: int = seeding.DEFAULT_SEED,
) -> pd.DataFrame | np.ndarray:
    r"""Return the probability that the counts of a protein are foreground, :math:`1 - \pi`.

    Parameters
    ----------
    adata, indices, transform_batch, protein_list, n_samples, batch_size
        See :meth:`get_normalized_expression`.
    return_mean, return_numpy, use_z_mean, seed
        See :meth:`get_normalized_expression`.

    Returns
    -------
    DataFrame or numpy.ndarray
        ``(cells, proteins)``; ``(n_samples, cells, proteins)`` with ``return_mean=False`` and several samples.
    """
    view, draws = self.view(adata, indices, batch_size), query.Draws(n_samples, return_mean, use_z_mean, seed=seed)
    WHOLE("n_samples", n_samples)
    proteins, counterfactuals = _proteins(self, protein_list), resolve_batches(transform_batch, self.registry)
    foreground = query.DecodedProteins(self.module, query.foreground_probability, proteins.columns, counterfactuals)
    return labelled(query.expectation(foreground, view.cells, draws), view.names, proteins.names, return_numpy)


def get_protein_background_mean(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    batch_size: int | None = None,
    *,
    transform_batch: Any = None,
    protein_list: Sequence[str] | None = None,
    n_samples: int = 1,
    seed: int = seeding.DEFAULT_SEED,
) -> np.ndarray:
    r"""Return the expected background of each protein in counts, the posterior mean of :math:`\beta`.

    Parameters
    ----------
    adata, indices, batch_size, transform_batch, protein_list, n_samples, seed
        See :meth:`get_normalized_expression`.

    Returns
    -------
    numpy.ndarray
        ``(cells, proteins)``.
    """
    cells = self.view(adata, indices, batch_size).cells
    WHOLE("n_samples", n_samples)
    proteins, counterfactuals = _proteins(self, protein_list), resolve_batches(transform_batch, self.registry)
    background = query.DecodedProteins(self.module, query.expected_background, proteins.columns, counterfactuals)
    return query.expectation(background, cells, query.Draws(n_samples, seed=seed))


def get_raw_proteins(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    protein_list: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return protein counts as the model sees them.

    Parameters
    ----------
    adata, indices, protein_list
        Which cells and proteins; see :meth:`get_normalized_expression`.

    Returns
    -------
    DataFrame
        ``(cells, proteins)``; NaN where one was not measured.
    """
    dataset = self.dataset_of(adata)
    rows = resolve_rows(indices, dataset.obs_names)
    batch = dataset.batch(rows)
    counts, measured = batch.counts[PROTEIN].to_dense().numpy(), batch.design.measured_entries(PROTEIN)
    values = counts if measured is None else np.where(measured.numpy(), counts, np.nan)
    proteins = _proteins(self, protein_list)
    values = values if proteins.columns is None else values[:, proteins.columns]
    return pd.DataFrame(values, index=dataset.obs_names[rows], columns=proteins.names)


def _proteins(model: Fitted[TOTALVIModel], protein_list: Sequence[str] | None) -> ChosenFeatures:
    return chosen_features(model, PROTEIN, protein_list, "protein")
