"""Differential expression of all models but DestVI and TOTALVI: ``differential_expression``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from countvi import query, seeding
from countvi.estimators.comparisons import ComparedFeatures, ComparisonOptions, Groups, differential
from countvi.estimators.names import Indices
from countvi.estimators.readouts.features import feature_names, per_modality

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted


def differential_expression(
    self: Fitted,
    adata: AnnData | MuData | None = None,
    groupby: str | None = None,
    group1: Any = None,
    group2: Any = None,
    idx1: Indices | str = None,
    idx2: Indices | str = None,
    mode: Literal["change", "vanilla"] = "change",
    delta: float | None = 0.25,
    batch_size: int | None = None,
    all_stats: bool = True,
    batch_correction: bool = False,
    batchid1: Any = None,
    batchid2: Any = None,
    fdr_target: float = 0.05,
    silent: bool = True,
    weights: Literal["uniform", "importance"] = "uniform",
    filter_outlier_cells: bool = False,
    importance_weighting_kwargs: Mapping[str, Any] | None = None,
    *,
    modality: str | None = None,
    sample_key: str | None = None,
    subset_idx: Indices | str = None,
    n_samples_overall: int = 5_000,
    test_mode: Literal["three", "two"] = "three",
    pseudocounts: float | None = None,
    threshold_counts: float = 0.01,
    change_fn: Literal["log-fold", "difference"] | Callable[[Any, Any, Any], Any] | None = None,
    m1_domain_fn: Callable[[Any], Any] | None = None,
    cred_interval_lvls: Sequence[float] | None = None,
    convention: Literal["definition", "scvi-tools"] = "definition",
    seed: int = seeding.DEFAULT_SEED,
) -> Any:
    r"""Compare the expression of populations of cells: each group with the rest, or two groups.

    A population is all of its cells: a draw from it takes a cell and a state from the posterior of the cell, and
    decodes to expected frequencies, without library size, dropout and ambient background. Draws of both populations
    are compared in pairs. ``docs/differential.md`` explains when to use what.

    Parameters
    ----------
    adata
        Cells; by default those of the model.
    groupby, group1, group2
        Column of ``obs``; the groups to compare (one or a list, by default each); what to compare them with (by
        default all other cells).
    idx1, idx2
        Instead: the cells of both populations, as a mask, row numbers, or a query of ``obs``
        (``"type == 'B' and age > 60"``). Without ``idx2``, all other cells.
    mode
        ``"change"``: is the change larger than ``delta``? ``"vanilla"``: is it up rather than down?
    delta
        Smallest change that counts, in log2 units; ``None`` estimates it from all features.
    batch_size
        Cells at a time.
    all_stats
        Add means of the observed counts.
    batch_correction
        Decode the draws under given batches, and pair them within a batch; otherwise each cell in its own.
    batchid1, batchid2
        Those of the first and of the second population, by default all. Entries are as in ``transform_batch``.
    fdr_target
        Share of false discoveries to aim at.
    silent
        Show no progress.
    weights
        ``"importance"``: draw from the posterior itself by importance sampling, not from the guide.
    filter_outlier_cells
        Leave out cells that lie far from their population in the latent space (robust Mahalanobis distance beyond
        the 97.5% point of a normal distribution).
    importance_weighting_kwargs
        ``n_mc_samples`` (proposals per cell, 32) and ``truncation`` (cut the largest weights, ``False``).
    modality
        Which modality of a model of several; by default all, each in its table.
    sample_key
        Column of ``obs`` with the donor or sample: adds effects per sample and their summary, which does not take
        cells for replicates.
    subset_idx
        Cells that take part at all, as ``idx1``.
    n_samples_overall
        Draws of each population.
    test_mode
        ``"three"``: ``proba_de`` is the larger of ``prob_up`` and ``prob_down``; ``"two"``: their sum.
    pseudocounts
        Added to frequencies before logarithms; ``None`` is a tenth of a count of a cell: 0.1 over the mean library
        size of the cells that are compared, which is the same for all features and whichever of them were kept.
    threshold_counts
        With ``convention="scvi-tools"``: features with a smaller mean count in a population, from which it estimates
        the pseudocount.
    change_fn
        ``"log-fold"`` (default), ``"difference"`` of frequencies, or a function of both frequencies (draws x
        features) and the pseudocounts.
    m1_domain_fn
        Instead of ``delta``: from effects to those that count (booleans, or one array for increases and one for
        decreases).
    cred_interval_lvls
        Levels of credible intervals, the narrowest that hold so much.
    convention
        ``"scvi-tools"`` does as it does: see the notes.
    seed
        Of the draws.

    Returns
    -------
    DataFrame
        A row for each feature and comparison, the most different first within a comparison. Of several modalities,
        a dictionary by name unless one is named. Columns:

        ``proba_de``, ``proba_not_de``
            Probability that the change counts (see ``test_mode``), and one minus that.
        ``prob_up``, ``prob_down``
            Probability of a log fold change of at least ``delta``, and of at most ``-delta``.
        ``proba_m1``, ``proba_m2``
            With ``"vanilla"``: probability that expression is larger in the first, or in the second population.
        ``bayes_factor``
            Natural log of the odds of ``proba_de``, or of ``proba_m1``.
        ``scale1``, ``scale2``
            Mean expected frequency in both populations.
        ``pseudocounts``, ``delta``
            What was used.
        ``lfc``
            The log2 fold change between the populations: of ``scale1 + pseudocounts`` over ``scale2 + pseudocounts``.
        ``lfc_mean``, ``lfc_median``, ``lfc_std``, ``lfc_min``, ``lfc_max``
            Of the changes of all pairs (log2 fold changes by default).
        ``lfc_confidence_interval_{level}_min``, ``..._max``
            Ends of the credible intervals.
        ``raw_mean1/2``, ``non_zeros_proportion1/2``, ``raw_normalized_mean1/2``
            Of observed counts: mean, share of cells with any, mean of counts per 10,000 of a cell.
        ``is_de_fdr_{fdr_target}``
            In the largest set of features whose expected share of false discoveries is at most ``fdr_target``.
        ``comparison``, ``group1``, ``group2``
            With ``groupby``: what is compared.
        ``replicate_lfc``, ``replicate_lfc_se``, ``replicate_lfc_min/max``, ``replicate_df``
            With ``sample_key``: mean log2 fold change over samples, its standard error, 95% interval, and degrees
            of freedom.
        ``replicate_pvalue``, ``replicate_qvalue``, ``is_de_replicates_fdr_{fdr_target}``
            Of no change; and Benjamini and Hochberg's false discovery rate.
        ``n_replicates1/2``, ``lfc_{sample}``
            Samples with cells in both populations, and the change in each. Where fewer than two samples have cells
            in both, the mean log2 expression ``log2_scale1_{sample}``, ``log2_scale2_{sample}`` instead.

    Raises
    ------
    OptionError
        If an argument is outside what it may be, or a population is empty.
    UnknownNameError
        If a column, group, batch or modality does not exist.

    Notes
    -----
    scvi-tools takes as pseudocount the 90% quantile, over features hardly seen, of the largest frequency drawn,
    divided by the number of features, and summarises (``lfc``, ``lfc_*``) with a thousandth of what it tests with.
    ``TOTALVI`` of scvi-tools takes 1e-5 for genes.

    References
    ----------
    Lopez et al., Nature Methods 15 (2018); Boyeau et al., bioRxiv 794289 (2019); Boyeau et al., PNAS 120 (2023);
    Squair et al., Nature Communications 12 (2021).
    """
    groups, options = _parsed(locals())
    data = self.container(adata)

    def of(name: str) -> pd.DataFrame:
        feature = ComparedFeatures(feature_names(self, name), query.DecodedExpression(self.module, name), [name])
        return differential(self, data, feature, groups, options, batch_size)

    return per_modality(self, modality, of)


def _parsed(given: Mapping[str, Any]) -> tuple[Groups, ComparisonOptions]:
    groups = Groups(**{name: given[name] for name in Groups.__dataclass_fields__})
    return groups, ComparisonOptions(**{name: given[name] for name in ComparisonOptions.__dataclass_fields__})


def asked(
    model: Fitted, arguments: Sequence[Any], named: Mapping[str, Any]
) -> tuple[dict[str, Any], Groups, ComparisonOptions]:
    """Arguments of :func:`differential_expression` with their defaults, and as what they mean."""
    bound = inspect.signature(differential_expression).bind(model, *arguments, **named)
    bound.apply_defaults()
    return bound.arguments, *_parsed(bound.arguments)
