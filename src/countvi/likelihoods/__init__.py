"""Distributions of the counts of a cell: one torch Distribution per file.

Each keeps the decoder's unnormalised output, and makes cells x genes tensors only when asked for ``mean``, ``variance``
or ``sample``; ``log_prob`` takes sparse counts straight to :mod:`countvi.ops`.
"""

from countvi.likelihoods.ambient_rate import AmbientRate
from countvi.likelihoods.base import CountLikelihood, CountRate
from countvi.likelihoods.gamma_poisson import GammaPoisson
from countvi.likelihoods.mixed_rate import MixedRate
from countvi.likelihoods.mixture_rate import MixtureRate
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.negative_binomial_mixture import NegativeBinomialMixture
from countvi.likelihoods.normal import Normal
from countvi.likelihoods.poisson import Poisson
from countvi.likelihoods.rate import Rate
from countvi.likelihoods.rate_shape import RateShapeNegativeBinomial
from countvi.likelihoods.shape_rate import ShapeRate
from countvi.likelihoods.zero_inflated import ZeroInflatedNegativeBinomial

__all__ = [
    "AmbientRate",
    "CountLikelihood",
    "CountRate",
    "GammaPoisson",
    "MixedRate",
    "MixtureRate",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Normal",
    "Poisson",
    "Rate",
    "RateShapeNegativeBinomial",
    "ShapeRate",
    "ZeroInflatedNegativeBinomial",
]
