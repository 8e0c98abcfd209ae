"""Posterior read-outs: functions of a model and of cells that return arrays.

They know neither AnnData nor pandas: names have become codes and columns when they are called, and labels are put on
what they return afterwards.
"""

from __future__ import annotations

from countvi.query.aggregated import aggregated_log_density, aggregated_posterior
from countvi.query.ambient import ambient_fraction, background_profile, decontaminated_counts
from countvi.query.attribution import modality_attribution, modality_latents
from countvi.query.cells import BatchSource, Cells, OutputWriter, Writable, evaluation, stacked, to_csr
from countvi.query.comparison import Difference, compare_types
from countvi.query.correlation import DenoisedFeatures, feature_correlation
from countvi.query.criticism import Check, predictive_check
from countvi.query.differential import Comparison, ComparisonPlan, compare
from countvi.query.draws import Counterfactual
from countvi.query.effects import Change, Columns, Greater, Hypothesis, difference, expected_fdr, log_fold
from countvi.query.evidence import elbo, marginal_log_likelihood, reconstruction
from countvi.query.expression import DecodedExpression
from countvi.query.importance import Importance
from countvi.query.latent import latent_moments, latent_posteriors, latent_states
from countvi.query.neighbors import CellPositions, knn_vote
from countvi.query.outliers import inliers
from countvi.query.populations import PopulationSampler
from countvi.query.posterior import Draws, Quantity, expectation, resampled
from countvi.query.predictive import library_size, likelihood_parameters, posterior_predictive
from countvi.query.presence import Presence, ReferenceCells, presence_of_types
from countvi.query.protein import (
    DecodedProteins,
    Denoised,
    SideBySide,
    expected_background,
    foreground_probability,
    mixing_stream,
)
from countvi.query.raw import CountSums, sum_counts
from countvi.query.replicates import Replicates
from countvi.query.spots import abundances, type_counts, type_expression, type_states
from countvi.query.state_axes import StateAxes, axis_genes, spatial_axes
from countvi.query.thresholds import proportion_thresholds
from countvi.query.vamp import VampMixture, subclusters, vamp_mixture

__all__ = [
    "BatchSource",
    "CellPositions",
    "Cells",
    "Change",
    "Check",
    "Columns",
    "Comparison",
    "ComparisonPlan",
    "CountSums",
    "Counterfactual",
    "DecodedExpression",
    "DecodedProteins",
    "Denoised",
    "DenoisedFeatures",
    "Difference",
    "Draws",
    "Greater",
    "Hypothesis",
    "Importance",
    "OutputWriter",
    "PopulationSampler",
    "Presence",
    "Quantity",
    "ReferenceCells",
    "Replicates",
    "SideBySide",
    "StateAxes",
    "VampMixture",
    "Writable",
    "abundances",
    "aggregated_log_density",
    "aggregated_posterior",
    "ambient_fraction",
    "axis_genes",
    "background_profile",
    "compare",
    "compare_types",
    "decontaminated_counts",
    "difference",
    "elbo",
    "evaluation",
    "expectation",
    "expected_background",
    "expected_fdr",
    "feature_correlation",
    "foreground_probability",
    "inliers",
    "knn_vote",
    "latent_moments",
    "latent_posteriors",
    "latent_states",
    "library_size",
    "likelihood_parameters",
    "log_fold",
    "marginal_log_likelihood",
    "mixing_stream",
    "modality_attribution",
    "modality_latents",
    "posterior_predictive",
    "predictive_check",
    "presence_of_types",
    "proportion_thresholds",
    "reconstruction",
    "resampled",
    "spatial_axes",
    "stacked",
    "subclusters",
    "sum_counts",
    "to_csr",
    "type_counts",
    "type_expression",
    "type_states",
    "vamp_mixture",
]
