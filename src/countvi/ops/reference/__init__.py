"""The specification of every operation, in readable torch: any device, float32 and float64.

Zeros are most of a count matrix and need no special function beyond a softplus; entries that are stored are few
and are evaluated in float64. Each likelihood is a dense matrix of the terms at zero, in which the stored entries
are put in place, summed over the genes.
"""

from countvi.ops.reference.folds import FoldChanges, fold_changes
from countvi.ops.reference.gamma_poisson import gamma_poisson, gamma_poisson_head
from countvi.ops.reference.gaussian import standard_deviation, standard_divergence
from countvi.ops.reference.least_squares import non_negative_least_squares
from countvi.ops.reference.linear import linear, sparse_linear
from countvi.ops.reference.mixture import negative_binomial_mixture
from countvi.ops.reference.negative_binomial import negative_binomial
from countvi.ops.reference.normal import normal
from countvi.ops.reference.poisson import poisson
from countvi.ops.reference.rate import log_rate, log_scale, scale
from countvi.ops.reference.rate_shape import mixed_types_negative_binomial, rate_shape_negative_binomial
from countvi.ops.reference.rectifier import batch_norm_rectify, drop, rectify
from countvi.ops.reference.zero_inflated import zero_inflated_negative_binomial

__all__ = [
    "FoldChanges",
    "batch_norm_rectify",
    "drop",
    "fold_changes",
    "gamma_poisson",
    "gamma_poisson_head",
    "linear",
    "log_rate",
    "log_scale",
    "mixed_types_negative_binomial",
    "negative_binomial",
    "negative_binomial_mixture",
    "non_negative_least_squares",
    "normal",
    "poisson",
    "rate_shape_negative_binomial",
    "rectify",
    "scale",
    "sparse_linear",
    "standard_deviation",
    "standard_divergence",
    "zero_inflated_negative_binomial",
]
