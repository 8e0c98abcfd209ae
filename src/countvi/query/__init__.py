"""Posterior read-outs: functions of a model and of cells that return arrays.

They know neither AnnData nor pandas: names have become codes and columns when they are called, and labels are put on
what they return afterwards.
"""

from __future__ import annotations

from countvi.query.ambient import ambient_fraction, background_profile, decontaminated_counts
from countvi.query.attribution import modality_attribution, modality_latents
from countvi.query.cells import BatchSource, Cells, Sink, Writable, evaluation
from countvi.query.correlation import feature_correlation
from countvi.query.draws import Counterfactual
from countvi.query.evidence import elbo, marginal_log_likelihood, reconstruction
from countvi.query.expression import normalized_expression, sampled_expression
from countvi.query.latent import latent_moments, latent_states
from countvi.query.predictive import library_size, likelihood_parameters, posterior_predictive
from countvi.query.spots import abundances, type_counts, type_expression, type_states
from countvi.query.vamp import VampMixture, subclusters, vamp_mixture

__all__ = [
    "BatchSource",
    "Cells",
    "Counterfactual",
    "Sink",
    "VampMixture",
    "Writable",
    "abundances",
    "ambient_fraction",
    "background_profile",
    "decontaminated_counts",
    "elbo",
    "evaluation",
    "feature_correlation",
    "latent_moments",
    "latent_states",
    "library_size",
    "likelihood_parameters",
    "marginal_log_likelihood",
    "modality_attribution",
    "modality_latents",
    "normalized_expression",
    "posterior_predictive",
    "reconstruction",
    "sampled_expression",
    "subclusters",
    "type_counts",
    "type_expression",
    "type_states",
    "vamp_mixture",
]
