"""Options of :class:`countvi.TOTALVI`, and how its module is assembled from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from countvi.batch import PROTEIN, RNA
from countvi.data import Dataset, Registry, RolesOf
from countvi.errors import OptionError
from countvi.estimators.build.shared import (
    BESIDE_BATCH,
    DECODER,
    ENCODER,
    LIKELIHOODS,
    WHERE,
    LibraryMoments,
    library_of,
    observation_of,
    seen_by_networks,
)
from countvi.estimators.build.proteins_start import ProteinStart
from countvi.estimators.options import NOT_NEGATIVE, Rate, Where, Whole, check
from countvi.models.totalvi import N_TRUNKS
from countvi.models.totalvi import TOTALVI as TOTALVIModel
from countvi.nn import encoder, linear, mlp, observation
from countvi.nn.protein import WITHOUT_DATA, BackgroundPrior, Efficiency
from countvi.nn.trunks import Trunks
from countvi.ops import Link

ROLES: RolesOf = {**BESIDE_BATCH, "panel_key": ("panel",)}
"""What the columns of a set-up are for."""
_LIBRARY_LAYERS = 1
_CLASSIFIER_WEIGHT = dataclasses.replace(NOT_NEGATIVE, words="True, False or a number of at least 0")
_LIKELIHOODS = {name: meant for name, meant in LIKELIHOODS.items() if meant in ("nb", "zinb")}


@dataclass(frozen=True)
class TOTALVIOptions:
    """The arguments of :class:`countvi.TOTALVI`, checked."""

    n_latent: Whole = 20
    gene_dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene"
    protein_dispersion: Literal["protein", "protein-batch", "protein-label"] = "protein"
    gene_likelihood: Annotated[str, _LIKELIHOODS] = "nb"
    latent_distribution: Literal["normal", "ln"] = "normal"
    empirical_protein_background_prior: bool | None = None
    override_missing_proteins: bool = False
    n_hidden: Whole = 256
    n_layers_encoder: Whole = 2
    n_layers_decoder: Whole = 1
    dropout_rate_encoder: Rate = 0.2
    dropout_rate_decoder: Rate = 0.2
    use_observed_lib_size: bool = True
    encode_covariates: bool = True
    use_batch_norm: Where = "both"
    use_layer_norm: Where = "none"
    log_variational: bool = True
    normalize_encoder_input: bool = True
    protein_batch_efficiency: bool = False
    activation_function_bg: Literal["softplus", "exp"] = "softplus"

    def __post_init__(self) -> None:
        check(self)

    def config(self, side: int, n_layers: int | None = None) -> mlp.MlpConfig:
        """Layers of the encoders or of the decoder."""
        usual = (self.n_layers_encoder, self.n_layers_decoder)[side]
        return mlp.MlpConfig(
            n_hidden=self.n_hidden,
            n_layers=usual if n_layers is None else n_layers,
            dropout=(self.dropout_rate_encoder, self.dropout_rate_decoder)[side],
            batch_norm=WHERE[self.use_batch_norm][side],
            layer_norm=WHERE[self.use_layer_norm][side],
        )


@dataclass(frozen=True)
class TOTALVIStart:
    """What the data say before training.

    Parameters
    ----------
    library
        Prior of the library size; used when it is inferred.
    loc, scale
        Prior of the log background to start from, shape ``(panels, proteins)`` each.
    proteins
        Where the decoder of the proteins starts; ``None`` for the prior of the background, and at random.
    """

    library: LibraryMoments
    loc: Tensor
    scale: Tensor
    proteins: ProteinStart | None = None

    @classmethod
    def unknown(cls, registry: Registry) -> TOTALVIStart:
        """Without the data: constants, or values to be overwritten by saved ones."""
        shape = (registry.factor(registry.covariates.panel).n_levels, registry.modality(PROTEIN).n_features)
        loc, scale = (torch.full(shape, value) for value in WITHOUT_DATA)
        return cls(LibraryMoments.unknown(registry.batch.n_levels), loc, scale)

    @classmethod
    def of(cls, dataset: Dataset, options: TOTALVIOptions, seed: int) -> TOTALVIStart:
        """Look at the data, as far as the options ask for it."""
        registry = dataset.registry
        start = cls.unknown(registry)
        moments, loc, scale = start.library, start.loc, start.scale
        if not options.use_observed_lib_size and registry.size_factor_key is None:
            moments = LibraryMoments.of(dataset)
        panels = ProteinStart.of_panels(dataset, seed)
        if options.empirical_protein_background_prior is not False:
            loc, scale = panels.log_background, panels.scale
        return cls(moments, loc, scale, panels.averaged())


def build_totalvi(options: TOTALVIOptions, registry: Registry, start: TOTALVIStart) -> TOTALVIModel:
    """Assemble the model of :class:`countvi.TOTALVI`.

    Parameters
    ----------
    options
        What the user asked for.
    registry
        Genes, proteins and covariates.
    start
        What the data say.
    """
    n_genes = registry.modality(RNA).n_features
    covariates = linear.CovariateFeatures(len(registry.continuous_keys))
    factors = seen_by_networks(registry)
    # The last layers see the trunk, the cell state and the covariates.
    n_wide = options.n_hidden + options.n_latent + covariates.n_features
    observed = options.use_observed_lib_size
    encoder_of_library = None if observed else partial(_encoder, options, registry, None, _LIBRARY_LAYERS)
    return TOTALVIModel(
        n_latent=options.n_latent,
        covariates=covariates,
        encode_z=_encoder(options, registry, options.n_latent, options.n_layers_encoder),
        encode_covariates=options.encode_covariates,
        library=library_of(registry, start.library, encoder_of_library),
        to_state=encoder.Softmax() if options.latent_distribution == "ln" else nn.Identity(),
        decode=Trunks(N_TRUNKS, options.n_latent, options.config(DECODER), covariates.n_features, factors),
        appended=linear.Appended(factors),
        rho=linear.head(n_wide, n_genes, factors),
        link=Link.SOFTMAX if registry.size_factor_key is None else Link.SOFTPLUS,
        observe=observation_of(options.gene_likelihood, options.gene_dispersion, registry, n_wide, factors),
        protein=_protein(options, registry, start, n_wide),
    )


def _protein(
    options: TOTALVIOptions, registry: Registry, start: TOTALVIStart, n_wide: int
) -> observation.ProteinDecoder:
    n_proteins, factors = registry.modality(PROTEIN).n_features, seen_by_networks(registry)
    log_phi: observation.Dispersion
    if options.protein_dispersion == "protein":
        log_phi = observation.PerGene(n_proteins)
    else:
        factor = registry.batch if options.protein_dispersion == "protein-batch" else registry.labels
        log_phi = observation.PerGeneLevel(n_proteins, factor)
    with torch.no_grad():
        log_phi.value.uniform_(0.0, 2.0)
    heads = {name: linear.head(n_wide, n_proteins, factors) for name in ("loc", "scale", "alpha", "pi")}
    begin = ProteinStart(start.loc.mean(0), start.scale.mean(0)) if start.proteins is None else start.proteins
    with torch.no_grad():
        # Far from the counts, finding their size would be all that the first epochs do.
        heads["loc"].bias.copy_(begin.log_background)
        exponential = options.activation_function_bg == "exp"
        heads["scale"].bias.copy_(begin.scale.log() if exponential else begin.scale.expm1().log())
        if begin.alpha is not None and begin.pi_logits is not None:
            heads["alpha"].bias.copy_(begin.alpha - 1.0)
            heads["pi"].bias.copy_(begin.pi_logits)
    return observation.ProteinDecoder(
        **heads,
        log_phi=log_phi,
        prior=BackgroundPrior(registry.factor(registry.covariates.panel), start.loc, start.scale),
        exponential=exponential,
        efficiency=Efficiency(registry.batch, n_proteins) if options.protein_batch_efficiency else None,
    )


def _encoder(options: TOTALVIOptions, registry: Registry, n_out: int | None, n_layers: int) -> encoder.GaussianEncoder:
    covariates = options.encode_covariates
    return encoder.GaussianEncoder(
        registry.modality(RNA).n_features,
        n_out,
        options.config(ENCODER, n_layers),
        log1p=options.log_variational,
        n_features=len(registry.continuous_keys) if covariates else 0,
        factors=seen_by_networks(registry) if covariates else (),
        others=[registry.modality(PROTEIN).n_features],
        divide=options.normalize_encoder_input,
    )


def adversary_scale(asked: Any, n_batches: int, *, missing: bool) -> float | None:
    """Weight of the classifier of the batch: zero for no classifier, ``None`` for one that fades with the warm-up.

    Parameters
    ----------
    asked
        The argument ``adversarial_classifier`` of ``train``.
    n_batches
        How many batches there are.
    missing
        Whether proteins are missing.

    Raises
    ------
    OptionError
        If there are not several batches to tell apart, or the argument is outside what it may be.
    """
    if asked is None:
        return None if n_batches > 1 and missing else 0.0
    flag = isinstance(asked, (bool, np.bool_))
    weight = float(asked) if flag else _CLASSIFIER_WEIGHT("adversarial_classifier", asked)
    if asked and n_batches < 2:
        message = "adversarial_classifier needs several batches to tell apart; the data have one. Leave it out."
        raise OptionError(message)
    return None if flag and asked else weight
