"""Read-outs of TOTALVI for RNA and protein together: distributions, draws, correlations and differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from countvi import query, seeding
from countvi.batch import PROTEIN, RNA
from countvi.errors import OptionError
from countvi.estimators.comparisons import AS_SCVI_TOOLS, ComparedFeatures
from countvi.estimators.comparisons import differential as compared
from countvi.estimators.names import Indices, resolve_batches
from countvi.estimators.options import NOT_NEGATIVE, POSITIVE, WHOLE
from countvi.estimators.readouts import differential
from countvi.estimators.readouts.features import chosen_features, one_counterfactual
from countvi.estimators.signatures import passes_on_to

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from scipy.sparse import csr_array

    from countvi.estimators.state import Fitted
    from countvi.models.totalvi import TOTALVI as TOTALVIModel


def get_likelihood_parameters(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    *,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the parameters of each count's distribution, from posterior draws.

    Parameters
    ----------
    adata, indices, batch_size
        Which cells; see :meth:`get_latent_representation`.
    n_samples
        Posterior draws per cell.
    give_mean
        Average over the draws, or keep them.
    seed
        Of the draws; those of RNA and protein are the same.

    Returns
    -------
    dict
        ``"rna"``: ``"mean"`` (before dropout), ``"dispersions"`` and, with zero inflation, ``"dropout"``.
        ``"protein"``: ``"mean"``, ``"background_mean"``, ``"foreground_mean"``, ``"background_probability"`` and
        ``"dispersions"``. Shape ``(cells, features)``, or ``(n_samples, cells, features)`` for several samples
        without ``give_mean``.
    """
    WHOLE("n_samples", n_samples)
    cells, draws = self.view(adata, indices, batch_size).cells, query.Draws(n_samples, give_mean, seed=seed)
    return {name: query.likelihood_parameters(self.module, cells, draws, modality=name) for name in (RNA, PROTEIN)}


def posterior_predictive_sample(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    n_samples: int = 1,
    batch_size: int | None = None,
    gene_list: Sequence[str] | None = None,
    protein_list: Sequence[str] | None = None,
    *,
    transform_batch: Any = None,
    seed: int = seeding.DEFAULT_SEED,
) -> dict[str, csr_array | np.ndarray | list[csr_array] | list[np.ndarray]]:
    """Draw new counts for each cell from the fitted model, of RNA and protein from the same cell state.

    Parameters
    ----------
    adata, indices, batch_size, gene_list, protein_list
        Which cells and features; see :meth:`get_normalized_expression`.
    n_samples
        Data sets to draw.
    transform_batch
        One batch to simulate every cell in; ``None`` for its own.
    seed
        Of the draws.

    Returns
    -------
    dict
        ``"rna"``: a ``csr_array`` of shape ``(cells, genes)``, ``"protein"``: an array of shape ``(cells,
        proteins)``; lists of ``n_samples`` of them for several samples. Where a protein was not measured, what
        would be expected there.
    """
    WHOLE("n_samples", n_samples)
    features = {
        RNA: chosen_features(self, RNA, gene_list).columns,
        PROTEIN: chosen_features(self, PROTEIN, protein_list, "protein").columns,
    }
    samples = query.posterior_predictive(
        self.module,
        self.view(adata, indices, batch_size).cells,
        features,
        counterfactual=one_counterfactual(transform_batch, self.registry),
        n_samples=n_samples,
        seed=seed,
    )
    samples[PROTEIN] = [sample.toarray() for sample in samples[PROTEIN]]
    return {name: drawn[0] if n_samples == 1 else drawn for name, drawn in samples.items()}


def get_feature_correlation_matrix(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    n_samples: int = 10,
    batch_size: int | None = None,
    rna_size_factor: float = 1_000.0,
    transform_batch: Any = None,
    correlation_type: Literal["spearman", "pearson"] = "spearman",
    log_transform: bool = False,
    *,
    gene_list: Sequence[str] | None = None,
    protein_list: Sequence[str] | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> pd.DataFrame:
    """Return correlations between genes and proteins of denoised expression, without protein background.

    Of gamma draws, that is with the biological overdispersion but without counting noise.

    Parameters
    ----------
    adata, indices, batch_size, gene_list, protein_list
        Which cells and features; see :meth:`get_normalized_expression`. The matrix has a row for each: with all
        genes it is large.
    n_samples
        Draws per cell.
    rna_size_factor
        Total that RNA is scaled to before the gamma draws.
    transform_batch
        As in :meth:`get_normalized_expression`; a list averages the matrices.
    correlation_type
        ``"spearman"`` or ``"pearson"``.
    log_transform
        Correlate log(1 + x).
    seed
        Of the draws.

    Returns
    -------
    DataFrame
        Genes and then proteins, in rows and columns.

    Raises
    ------
    OptionError
        If there is no cell or no feature.
    """
    WHOLE("n_samples", n_samples)
    cells = self.view(adata, indices, batch_size).cells
    genes = chosen_features(self, RNA, gene_list)
    proteins = chosen_features(self, PROTEIN, protein_list, "protein")
    names, columns = np.concatenate([genes.names, proteins.names]), {RNA: genes.columns, PROTEIN: proteins.columns}
    if not len(cells) or not len(names):
        message = "Correlations need at least one cell and one feature; indices, or both lists, select none."
        raise OptionError(message)
    size = POSITIVE("rna_size_factor", rna_size_factor)
    matrix = query.feature_correlation(
        query.DenoisedFeatures(self.module, columns, size, log_transform),
        cells,
        counterfactuals=resolve_batches(transform_batch, self.registry),
        n_samples=n_samples,
        correlation=correlation_type,
        seed=seed,
    )
    return pd.DataFrame(matrix, index=names, columns=names)


@passes_on_to(differential.differential_expression, without=("model", "modality"))
def differential_expression(
    self: Fitted[TOTALVIModel],
    *arguments: Any,
    protein_prior_count: float = 0.1,
    scale_protein: bool = False,
    sample_protein_mixing: bool = False,
    include_protein_background: bool = False,
    use_field: Sequence[Literal["rna", "protein"]] | None = None,
    pseudocounts: float | None = None,
    **named: Any,
) -> pd.DataFrame:
    """Compare genes and proteins of populations of cells, side by side.

    Parameters
    ----------
    arguments, named
        All other arguments of :meth:`countvi.SCVI.differential_expression`; without ``modality``.
    protein_prior_count
        Added to the expression of proteins before logarithms.
    scale_protein, sample_protein_mixing, include_protein_background
        See :meth:`get_normalized_expression`. With ``scale_protein``, the added count is a share of the proteins.
    use_field
        ``"rna"`` or ``"protein"`` alone; by default both.
    pseudocounts
        Added to the frequencies of genes before logarithms; ``None`` is a tenth of a count of a cell, and 1e-5 with
        ``convention="scvi-tools"``.

    Returns
    -------
    DataFrame
        As of :meth:`countvi.SCVI.differential_expression`; the rows of proteins are named ``{protein}_protein``.
        ``scale1`` and ``scale2`` of a protein are in counts (shares with ``scale_protein``), and it has no counts
        per 10,000. Observed means of proteins are over the cells that they were measured in; the model's part is
        over all cells.
    """
    given, groups, options = differential.asked(self, arguments, named)
    fields = ("rna", "protein")
    wanted = fields if use_field is None else (use_field,) if isinstance(use_field, str) else tuple(use_field)
    if not wanted or set(wanted) - set(fields) or given["modality"] is not None:
        message = f"use_field takes 'rna' and 'protein' (and takes the place of modality); got {wanted!r}."
        raise OptionError(message)
    mixing = query.mixing_stream(options.seed, self.device) if sample_protein_mixing else None
    denoised = query.Denoised(include_protein_background, scale_protein, mixing, exact=False)
    expression = query.SideBySide(self.module, "rna" in wanted, denoised if "protein" in wanted else None)
    counts = [name for name, field in ((RNA, "rna"), (PROTEIN, "protein")) if field in wanted]
    names, added = [], []
    for name in counts:
        features = self.registry.modality(name).feature_names
        names += [f"{feature}_protein" for feature in features] if name == PROTEIN else features
        prior = NOT_NEGATIVE("protein_prior_count", protein_prior_count)
        usual = 1e-5 if options.convention == AS_SCVI_TOOLS else np.nan
        genes = usual if pseudocounts is None else NOT_NEGATIVE("pseudocounts", pseudocounts)
        added += [prior if name == PROTEIN else genes] * len(features)
    feature = ComparedFeatures(
        np.array(names, dtype=object), expression, counts, np.array(added), [name == RNA for name in counts]
    )
    data = self.container(given["adata"])
    return compared(self, data, feature, groups, options, given["batch_size"])
