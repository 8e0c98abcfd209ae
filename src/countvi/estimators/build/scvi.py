"""Options of :class:`countvi.SCVI`, and how its module is assembled from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from countvi.batch import RNA, Factor
from countvi.data import Registry
from countvi.errors import OptionError
from countvi.estimators.build.shared import (
    DECODER,
    ENCODER,
    LIKELIHOODS,
    WHERE,
    LibraryMoments,
    library_of,
    observation_of,
    seen_by_networks,
)
from countvi.estimators.options import Rate, Where, Whole, check
from countvi.models.scvi import SCVI as SCVIModel
from countvi.nn import encoder, library, linear, mlp, observation
from countvi.ops import Link

_LIBRARY_LAYERS = 1


@dataclass(frozen=True)
class SCVIOptions:
    """The arguments of :class:`countvi.SCVI`, checked."""

    n_hidden: Whole = 128
    n_latent: Whole = 10
    n_layers: Whole = 1
    dropout_rate: Rate = 0.1
    dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene"
    gene_likelihood: Annotated[str, LIKELIHOODS] = "zinb"
    use_observed_lib_size: bool = True
    latent_distribution: Literal["normal", "ln"] = "normal"
    encode_covariates: bool = False
    deeply_inject_covariates: bool = True
    use_batch_norm: Where = "both"
    use_layer_norm: Where = "none"
    batch_representation: Literal["one-hot", "embedding"] = "one-hot"
    log_variational: bool = True

    def __post_init__(self) -> None:
        check(self)
        if self.gene_likelihood == "poisson" and self.dispersion != "gene":
            message = (
                f"A Poisson likelihood has no dispersion, so dispersion={self.dispersion!r} has no meaning. "
                "Leave it out."
            )
            raise OptionError(message)


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
    factors = seen_by_networks(registry)[embed:]
    sized = registry.size_factor_key is not None
    n_features = covariates.n_features
    encoder_of_library = None if options.use_observed_lib_size else partial(
        _encoder, options, n_genes, None, _LIBRARY_LAYERS, n_features, factors
    )
    return SCVIModel(
        n_latent=options.n_latent,
        covariates=covariates,
        encode_z=_encoder(options, n_genes, options.n_latent, options.n_layers, n_features, factors),
        encode_covariates=options.encode_covariates,
        library=library_of(registry, moments, encoder_of_library),
        to_state=encoder.Softmax() if options.latent_distribution == "ln" else nn.Identity(),
        decode=mlp.Mlp(options.n_latent, _config(options, DECODER), n_features, factors),
        rho=linear.Head(options.n_hidden, n_genes),
        link=Link.SOFTPLUS if sized else Link.SOFTMAX,
        observe=observation_of(options.gene_likelihood, options.dispersion, registry, options.n_hidden),
    )


def _config(options: SCVIOptions, side: int, n_layers: int | None = None) -> mlp.MlpConfig:
    return mlp.MlpConfig(
        n_hidden=options.n_hidden,
        n_layers=options.n_layers if n_layers is None else n_layers,
        dropout=options.dropout_rate if side == ENCODER else 0.0,
        batch_norm=WHERE[options.use_batch_norm][side],
        layer_norm=WHERE[options.use_layer_norm][side],
        inject_all=options.deeply_inject_covariates,
    )


def _encoder(
    options: SCVIOptions, n_genes: int, n_out: int | None, n_layers: int, n_features: int, factors: Sequence[Factor]
) -> encoder.GaussianEncoder:
    return encoder.GaussianEncoder(
        n_genes,
        n_out,
        _config(options, ENCODER, n_layers),
        log1p=options.log_variational,
        n_features=n_features if options.encode_covariates else 0,
        factors=factors if options.encode_covariates else (),
    )
