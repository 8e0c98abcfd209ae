"""From the words of a user to the parts of a model. Strings end here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from countvi.batch import RNA, Factor
from countvi.data import Registry
from countvi.errors import OptionError, choose
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.normal import Normal
from countvi.likelihoods.poisson import Poisson
from countvi.likelihoods.zero_inflated import ZeroInflatedNegativeBinomial
from countvi.models.scvi import SCVI as SCVIModel
from countvi.nn import encoder, library, linear, mlp, observation
from countvi.ops import Link

_LIKELIHOODS = {
    "zinb": "zinb",
    "nb": "nb",
    "poisson": "poisson",
    "normal": "normal",
    "negative_binomial": "nb",  # the spelling of the scVI documentation
    "zero_inflated_negative_binomial": "zinb",
}
# Which of the two networks a normalisation is used in.
_WHERE = {"encoder": (True, False), "decoder": (False, True), "none": (False, False), "both": (True, True)}
_LIBRARY_LAYERS = 1


@dataclass(frozen=True)
class SCVIOptions:
    """The arguments of :class:`countvi.SCVI`, checked."""

    n_hidden: int = 128
    n_latent: int = 10
    n_layers: int = 1
    dropout_rate: float = 0.1
    dispersion: str = "gene"
    gene_likelihood: str = "zinb"
    use_observed_lib_size: bool = True
    latent_distribution: str = "normal"
    encode_covariates: bool = False
    deeply_inject_covariates: bool = True
    use_batch_norm: str = "both"
    use_layer_norm: str = "none"
    batch_representation: str = "one-hot"
    log_variational: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "gene_likelihood", choose("gene_likelihood", self.gene_likelihood, _LIKELIHOODS))
        for name, options in {
            "dispersion": ("gene", "gene-batch", "gene-label", "gene-cell"),
            "latent_distribution": ("normal", "ln"),
            "use_batch_norm": tuple(_WHERE),
            "use_layer_norm": tuple(_WHERE),
            "batch_representation": ("one-hot", "embedding"),
        }.items():
            choose(name, getattr(self, name), dict.fromkeys(options))
        for name in ("n_hidden", "n_latent", "n_layers"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                message = f"{name} must be a whole number of at least 1; got {value!r}."
                raise OptionError(message)
            object.__setattr__(self, name, int(value))
        for name in ("use_observed_lib_size", "encode_covariates", "deeply_inject_covariates", "log_variational"):
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                message = f"{name} must be True or False; got {value!r}."
                raise OptionError(message)
            object.__setattr__(self, name, bool(value))
        if not isinstance(self.dropout_rate, (int, float, np.number)) or not 0.0 <= self.dropout_rate < 1.0:
            message = f"dropout_rate must be at least 0 and less than 1; got {self.dropout_rate!r}."
            raise OptionError(message)
        if self.gene_likelihood == "poisson" and self.dispersion != "gene":
            message = (
                f"A Poisson likelihood has no dispersion, so dispersion={self.dispersion!r} has no meaning. Leave "
                "it out."
            )
            raise OptionError(message)


@dataclass(frozen=True)
class LibraryMoments:
    """Mean and standard deviation of the log total per batch, shape ``(batches,)`` each."""

    loc: Tensor
    scale: Tensor

    @classmethod
    def unknown(cls, n_batches: int) -> LibraryMoments:
        """Values to be overwritten by saved ones."""
        return cls(torch.zeros(n_batches), torch.ones(n_batches))


def build_scvi(options: SCVIOptions, registry: Registry, moments: LibraryMoments) -> SCVIModel:
    """Assemble the model of :class:`countvi.SCVI`.

    Parameters
    ----------
    options
        What the user asked for.
    registry
        Genes and covariates.
    moments
        Prior of the library size; used when it is inferred.
    """
    n_genes = len(registry.modality(RNA).feature_names)
    embed = options.batch_representation == "embedding"
    covariates = linear.CovariateFeatures(len(registry.continuous_keys), registry.batch if embed else None)
    factors = (*(() if embed else (registry.batch,)), *registry.categorical)
    sized = registry.size_factor_key is not None
    decoder_config = _config(options, encoder=False)
    return SCVIModel(
        n_latent=options.n_latent,
        covariates=covariates,
        encode_z=_encoder(options, n_genes, options.n_latent, options.n_layers, covariates.n_features, factors),
        encode_covariates=options.encode_covariates,
        library=_library(options, registry, moments, n_genes, covariates.n_features, factors),
        to_state=encoder.Softmax() if options.latent_distribution == "ln" else nn.Identity(),
        decode=mlp.Mlp(options.n_latent, decoder_config, covariates.n_features, factors),
        rho=linear.Head(options.n_hidden, n_genes),
        link=Link.SOFTPLUS if sized else Link.SOFTMAX,
        observe=observation_of(options.gene_likelihood, options.dispersion, registry, options.n_hidden),
    )


def _config(options: SCVIOptions, *, encoder: bool, n_layers: int | None = None) -> mlp.MlpConfig:
    side = 0 if encoder else 1
    return mlp.MlpConfig(
        n_hidden=options.n_hidden,
        n_layers=options.n_layers if n_layers is None else n_layers,
        dropout=options.dropout_rate if encoder else 0.0,
        batch_norm=_WHERE[options.use_batch_norm][side],
        layer_norm=_WHERE[options.use_layer_norm][side],
        inject_all=options.deeply_inject_covariates,
    )


def _encoder(
    options: SCVIOptions, n_genes: int, n_out: int | None, n_layers: int, n_features: int, factors: Sequence[Factor]
) -> encoder.GaussianEncoder:
    return encoder.GaussianEncoder(
        n_genes,
        n_out,
        _config(options, encoder=True, n_layers=n_layers),
        log1p=options.log_variational,
        n_features=n_features if options.encode_covariates else 0,
        factors=factors if options.encode_covariates else (),
    )


def _library(
    options: SCVIOptions,
    registry: Registry,
    moments: LibraryMoments,
    n_genes: int,
    n_features: int,
    factors: Sequence[Factor],
) -> library.Library:
    if registry.size_factor_key is not None:
        return library.SizeFactorLibrary()
    if options.use_observed_lib_size:
        return library.ObservedLibrary()
    encode = _encoder(options, n_genes, None, _LIBRARY_LAYERS, n_features, factors)
    return library.LogNormalLibrary(encode, registry.batch, moments.loc.clone(), moments.scale.clone())


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
