"""What the builders of several models have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from countvi.batch import RNA, Factor
from countvi.data import Dataset, Registry, RolesOf
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.normal import Normal
from countvi.likelihoods.poisson import Poisson
from countvi.likelihoods.zero_inflated import ZeroInflatedNegativeBinomial
from countvi.nn import library, linear, observation
from countvi.nn.encoder import GaussianEncoder

ENCODER, DECODER = 0, 1
"""Places in the values of :data:`WHERE`."""
WHERE = {"encoder": (True, False), "decoder": (False, True), "none": (False, False), "both": (True, True)}
"""Whether a normalisation is used in the encoders, and in the decoder."""
LIKELIHOODS = {
    "zinb": "zinb",
    "nb": "nb",
    "poisson": "poisson",
    "normal": "normal",
    "negative_binomial": "nb",  # the spelling of the scVI documentation
    "zero_inflated_negative_binomial": "zinb",
}
"""Likelihoods of RNA by the names that users may give."""

BESIDE_BATCH: RolesOf = {
    "batch_key": ("batch",),
    "labels_key": ("labels",),
    "categorical_covariate_keys": ("categorical",),
    "continuous_covariate_keys": ("continuous",),
    "size_factor_key": ("size_factor",),
}
"""What the columns of a set-up are for in models whose networks see the batch and all covariates."""


def seen_by_networks(registry: Registry) -> tuple[Factor, ...]:
    """Return the batch and the other covariates that all networks see."""
    return registry.factors((registry.covariates.batch, *registry.covariates.categorical))


@dataclass(frozen=True)
class LibraryMoments:
    """Mean and standard deviation of the log total per batch, shape ``(batches,)`` each."""

    loc: Tensor
    scale: Tensor

    @classmethod
    def unknown(cls, n_batches: int) -> LibraryMoments:
        """Values to be overwritten by saved ones."""
        return cls(torch.zeros(n_batches), torch.ones(n_batches))

    @classmethod
    def of(cls, dataset: Dataset) -> LibraryMoments:
        """Measure them."""
        totals, batch = torch.from_numpy(dataset.summary(RNA).cell_totals), dataset.registry.batch
        return cls(*library.library_moments(totals, dataset.codes[:, batch.column], batch.n_levels))


def library_of(
    registry: Registry, moments: LibraryMoments, encoder: Callable[[], GaussianEncoder] | None
) -> library.Library:
    """Return the library size of RNA: a size factor where there is one, else observed, or inferred by an encoder.

    Parameters
    ----------
    registry
        Covariates.
    moments
        Prior of an inferred library size.
    encoder
        Makes the network that infers it; ``None`` to take the total count.
    """
    if registry.size_factor_key is not None:
        return library.SizeFactorLibrary()
    if encoder is None:
        return library.ObservedLibrary()
    return library.LogNormalLibrary(encoder(), registry.batch, moments.loc.clone(), moments.scale.clone())


def observation_of(
    gene_likelihood: str, dispersion: str, registry: Registry, n_hidden: int, factors: Sequence[Factor] = ()
) -> observation.Observation:
    """Return the observation model of RNA counts.

    Parameters
    ----------
    gene_likelihood, dispersion
        As the arguments of :class:`countvi.SCVI`.
    registry
        Genes and covariates.
    n_hidden
        Units that decoded parameters are made of.
    factors
        Covariates whose one-hot levels follow those units.
    """
    n_genes = registry.modality(RNA).n_features
    if gene_likelihood == "poisson":
        return observation.Observation(Poisson)
    spread: observation.Dispersion
    if dispersion == "gene":
        spread = observation.PerGene(n_genes)
    elif dispersion == "gene-cell":
        spread = observation.PerGeneCell(n_hidden, n_genes, factors)
    else:
        spread = observation.PerGeneLevel(n_genes, registry.batch if dispersion == "gene-batch" else registry.labels)
    if gene_likelihood == "normal":
        return observation.Observation(Normal, log_scale=spread)
    if gene_likelihood == "nb":
        return observation.Observation(NegativeBinomial, log_theta=spread)
    pi_logits = linear.head(n_hidden, n_genes, factors)
    return observation.Observation(ZeroInflatedNegativeBinomial, log_theta=spread, pi_logits=pi_logits)
