"""RNA and protein: their expression, draws, parameters, correlations and differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from countvi import query, seeding
from countvi.batch import PROTEIN, RNA
from countvi.errors import OptionError
from countvi.estimators.comparisons import ComparedFeatures
from countvi.estimators.comparisons import differential as compared
from countvi.estimators.names import Indices, resolve_batches, resolve_genes, resolve_rows
from countvi.estimators.options import NOT_NEGATIVE, POSITIVE, WHOLE
from countvi.estimators.readouts import differential, expression
from countvi.estimators.readouts.features import feature_names, one_counterfactual
from countvi.estimators.signatures import passes_on_to

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from scipy.sparse import csr_array

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
        Divide proteins by their sum over all proteins of the cell.
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
    view = self.view(adata, indices, batch_size)
    common: dict[str, Any] = {
        "n_samples": n_samples,
        "n_samples_overall": n_samples_overall,
        "return_mean": return_mean,
        "use_z_mean": use_z_mean and n_samples_overall is None,
        "seed": seed,
    }
    rna = expression.get_normalized_expression(
        self,
        adata,
        indices,
        transform_batch,
        gene_list,
        library_size,
        n_samples,
        n_samples_overall,
        batch_size,
        return_mean,
        return_numpy,
        modality=RNA,
        use_z_mean=common["use_z_mean"],
        seed=seed,
    )
    columns, names = _proteins(self, protein_list)
    values = query.protein_expression(
        self.module,
        view.cells,
        proteins=columns,
        counterfactuals=resolve_batches(transform_batch, self.registry),
        background=include_protein_background,
        normalise=scale_protein,
        sample_mixing=sample_protein_mixing if sampling_protein_mixing is None else sampling_protein_mixing,
        **common,
    )
    index = None if n_samples_overall is not None else view.names
    return rna, _labelled(values, index, names, return_numpy)


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
    view = self.view(adata, indices, batch_size)
    WHOLE("n_samples", n_samples)
    columns, names = _proteins(self, protein_list)
    values = query.foreground_probability(
        self.module,
        view.cells,
        proteins=columns,
        counterfactuals=resolve_batches(transform_batch, self.registry),
        n_samples=n_samples,
        return_mean=return_mean,
        use_z_mean=use_z_mean,
        seed=seed,
    )
    return _labelled(values, view.names, names, return_numpy)


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
    return query.background_mean(
        self.module,
        cells,
        proteins=_proteins(self, protein_list)[0],
        counterfactuals=resolve_batches(transform_batch, self.registry),
        n_samples=n_samples,
        seed=seed,
    )


def get_latent_library_size(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    give_mean: bool = True,
    batch_size: int | None = None,
    *,
    seed: int = seeding.DEFAULT_SEED,
) -> np.ndarray:
    """Return library sizes of the RNA, ``(cells, 1)``: inferred (posterior mean, or a draw), observed, or given."""
    cells = self.view(adata, indices, batch_size).cells
    return query.library_size(self.module, cells, give_mean=give_mean, seed=seed)


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
    features = {RNA: _genes(self, gene_list)[0], PROTEIN: _proteins(self, protein_list)[0]}
    samples = query.joint_predictive(
        self.module,
        self.view(adata, indices, batch_size).cells,
        features,
        counterfactual=one_counterfactual(transform_batch, self.registry),
        n_samples=n_samples,
        seed=seed,
    )
    samples[PROTEIN] = [sample.toarray() for sample in samples[PROTEIN]]
    return {name: drawn[0] if n_samples == 1 else drawn for name, drawn in samples.items()}


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
    """Return the parameters of each count's distribution.

    Returns
    -------
    dict
        ``"rna"``: ``"mean"`` (before dropout), ``"dispersions"`` and, with zero inflation, ``"dropout"``.
        ``"protein"``: ``"mean"``, ``"background_mean"``, ``"foreground_mean"``, ``"background_probability"`` and
        ``"dispersions"``. Shape ``(cells, features)``, or ``(n_samples, cells, features)`` for several samples
        without ``give_mean``.
    """
    WHOLE("n_samples", n_samples)
    cells = self.view(adata, indices, batch_size).cells
    return {
        name: query.likelihood_parameters(
            self.module, cells, modality=name, n_samples=n_samples, give_mean=give_mean, seed=seed
        )
        for name in (RNA, PROTEIN)
    }


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
    """
    WHOLE("n_samples", n_samples)
    cells = self.view(adata, indices, batch_size).cells
    (genes, gene_names), (proteins, protein_names) = _genes(self, gene_list), _proteins(self, protein_list)
    names = np.concatenate([gene_names, protein_names])
    if not len(cells) or not len(names):
        message = "Correlations need at least one cell and one feature; indices, or both lists, select none."
        raise OptionError(message)
    matrix = query.joint_correlation(
        self.module,
        cells,
        {RNA: genes, PROTEIN: proteins},
        rna_size_factor=POSITIVE("rna_size_factor", rna_size_factor),
        counterfactuals=resolve_batches(transform_batch, self.registry),
        n_samples=n_samples,
        correlation=correlation_type,
        log_transform=log_transform,
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
    pseudocounts: float | None = 1e-5,
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
        Added to the frequencies of genes before logarithms; ``None`` estimates it.

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
        genes = np.nan if pseudocounts is None else NOT_NEGATIVE("pseudocounts", pseudocounts)
        added += [prior if name == PROTEIN else genes] * len(features)
    feature = ComparedFeatures(
        np.array(names, dtype=object), expression, counts, np.array(added), [name == RNA for name in counts]
    )
    data = self.container(given["adata"])
    return compared(self, data, feature, groups, options, given["batch_size"])


def get_raw_proteins(
    self: Fitted[TOTALVIModel],
    adata: AnnData | MuData | None = None,
    indices: Indices = None,
    protein_list: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return protein counts as the model sees them, ``(cells, proteins)``; NaN where one was not measured.

    Parameters
    ----------
    adata, indices, protein_list
        Which cells and proteins; see :meth:`get_normalized_expression`.
    """
    dataset = self.dataset_of(adata)
    rows = resolve_rows(indices, dataset.obs_names)
    batch = dataset.batch(rows)
    counts, measured = batch.counts[PROTEIN].to_dense().numpy(), batch.design.measured_entries(PROTEIN)
    values = counts if measured is None else np.where(measured.numpy(), counts, np.nan)
    columns, names = _proteins(self, protein_list)
    values = values if columns is None else values[:, columns]
    return pd.DataFrame(values, index=dataset.obs_names[rows], columns=names)


def _genes(model: Fitted[TOTALVIModel], gene_list: Sequence[str] | None) -> tuple[np.ndarray | None, np.ndarray]:
    names = feature_names(model, RNA)
    columns = resolve_genes(gene_list, names)
    return columns, names if columns is None else names[columns]


def _proteins(model: Fitted[TOTALVIModel], protein_list: Sequence[str] | None) -> tuple[np.ndarray | None, np.ndarray]:
    names = feature_names(model, PROTEIN)
    columns = resolve_genes(protein_list, names, "protein")
    return columns, names if columns is None else names[columns]


def _labelled(values: np.ndarray, index: pd.Index | None, names: np.ndarray, return_numpy: bool | None) -> Any:
    return values if return_numpy or values.ndim == 3 else pd.DataFrame(values, index=index, columns=names)
