"""Options of the regularised models, of one modality and of several, and how their module is assembled from them."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, final

import torch
from torch import Tensor

from countvi.data import BATCH_COLUMN, GENES, PEAKS, Dataset, Registry, RolesOf
from countvi.errors import OptionError, UnknownNameError, did_you_mean, shorten
from countvi.estimators.build.shared import DECODER, ENCODER, WHERE
from countvi.estimators.options import EachPositive, EachRate, EachShare, EachWhole, Where, check
from countvi.models.regularized import ModalityModel, Regularized
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.joint import CellWeights, Concatenated, EqualWeights, JointEncoder, SingleEncoder, UniversalWeights
from countvi.nn.joint import WeightedMean as WeightedMeanEncoder
from countvi.nn.library import LibraryPrior, ResidualLibrary
from countvi.nn.linear import CovariateFeatures, Head
from countvi.nn.mlp import Mlp, MlpConfig
from countvi.nn.priors import DispersionPrior, GammaPrior
from countvi.nn.initial_values import start_from_counts
from countvi.nn.technical import Background, FeatureScaling, PosteriorDispersion

if TYPE_CHECKING:
    from typing import Self

ROLES: RolesOf = {
    "batch_key": ("batch", "ambient", "dispersion", "library"),
    "labels_key": ("labels",),
    "ambient_covariate_keys": ("ambient",),
    "nn_conditioning_covariate_keys": ("conditioning",),
    "feature_scaling_covariate_keys": ("scaling",),
    "dispersion_key": ("dispersion",),
    "library_size_key": ("library",),
    "encoder_covariate_keys": ("encoder",),
    "nn_continuous_covariate_keys": ("continuous",),
}
"""What the columns of a set-up are for."""
_UNITS, _FEWEST_UNITS = 128, 16
_COUNTS_PER_UNIT = 3.0
"""Counts of a peak for each of its weights: with fewer, the last layer learns the training cells by heart."""
_LIKELIHOODS = dict.fromkeys(("gamma_poisson", "nb", "negative_binomial"), "gamma_poisson")


@dataclass(frozen=True)
class RegularizedOptions(ABC):
    """What the arguments of both regularised models have in common, checked."""

    n_hidden: EachWhole | None = None
    n_latent: EachWhole = 10
    n_layers: EachWhole = 1
    dropout_rate: EachRate = 0.1
    dispersion: Literal["gene", "gene-batch"] = "gene-batch"
    gene_likelihood: Annotated[str, _LIKELIHOODS] = "gamma_poisson"
    use_batch_in_decoder: bool = False
    library_log_vars_weight: EachPositive = 0.5
    library_log_means_centering_sensitivity: EachPositive = 1.0
    library_n_hidden: EachWhole = 16
    regularise_background: bool = False
    additive_bg_prior_alpha: EachPositive = 1.0
    additive_bg_prior_beta: EachPositive = 100.0
    bg_init_gene_fraction: EachShare = 0.2
    feature_scaling_prior_alpha: EachPositive = 200.0
    feature_scaling_prior_beta: EachPositive = 200.0
    dispersion_hyper_prior_mean: EachPositive = 1 / 3
    dispersion_hyper_prior_alpha: EachPositive = 9.0
    deeply_inject_covariates: bool = True
    use_batch_norm: Where = "none"
    use_layer_norm: Where = "both"
    dropout_on_input: bool = True
    log_variational: bool = True

    def __post_init__(self) -> None:
        check(self)

    @property
    @abstractmethod
    def latent(self) -> tuple[str, str]:
        """How modalities make the cell state, and how they are weighed."""

    @abstractmethod
    def background(self, registry: Registry) -> frozenset[str]:
        """Return the modalities with an ambient background."""

    @abstractmethod
    def scaling(self, registry: Registry) -> frozenset[str]:
        """Return the modalities with feature factors."""

    def check_for(self, registry: Registry) -> None:
        """Refuse options that do not suit the modalities and the covariates of the set-up.

        Raises
        ------
        OptionError
            If one leaves out a modality, or would do nothing.
        UnknownNameError
            If one names a modality that does not exist.
        """
        names = [modality.name for modality in registry.modalities]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                _check_names(field.name, list(value), names)
                missing = [name for name in names if name not in value]
                if missing:
                    message = (
                        f"{field.name} leaves out {shorten(missing)}; give one number for all modalities, "
                        "or one for each."
                    )
                    raise OptionError(message)
        self.background(registry)
        self.scaling(registry)
        _check_covariates(self, registry)

    def sized(self, dataset: Dataset) -> Self:
        """Return the options with hidden layers that suit the data: few units where a peak has few counts."""
        modalities = dataset.registry.modalities
        units = {m.name: _units(dataset, m.name) if m.feature_type == PEAKS else _UNITS for m in modalities}
        return dataclasses.replace(self, n_hidden=units)

    def config(self, modality: str, side: int) -> MlpConfig:
        """Layers of a modality's encoder or decoder."""
        return MlpConfig(
            n_hidden=_UNITS if self.n_hidden is None else of(self.n_hidden, modality),
            n_layers=of(self.n_layers, modality),
            dropout=of(self.dropout_rate, modality) if side == ENCODER else 0.0,
            batch_norm=WHERE[self.use_batch_norm][side],
            layer_norm=WHERE[self.use_layer_norm][side],
            inject_all=self.deeply_inject_covariates,
            drop_input=self.dropout_on_input,
        )


@final
@dataclass(frozen=True)
class AmbientOptions(RegularizedOptions):
    """The arguments of :class:`countvi.AmbientRegularizedSCVI`, checked."""

    n_hidden: EachWhole | None = 128
    use_additive_background: bool = True
    use_feature_scaling: bool = True

    @property
    def latent(self) -> tuple[str, str]:
        """There is one modality."""
        return "concatenation", "equal"

    def background(self, registry: Registry) -> frozenset[str]:
        """Return the modality, if it has a background."""
        return frozenset(m.name for m in registry.modalities if self.use_additive_background)

    def scaling(self, registry: Registry) -> frozenset[str]:
        """Return the modality, if it has feature factors."""
        return frozenset(m.name for m in registry.modalities if self.use_feature_scaling)


@final
@dataclass(frozen=True)
class MultimodalOptions(RegularizedOptions):
    """The arguments of :class:`countvi.RegularizedMultimodalVI`, checked."""

    latent_mode: Literal["concatenation", "weighted_mean", "single_encoder"] = "concatenation"
    modality_weights: Literal["equal", "universal", "cell"] = "equal"
    additive_background_modalities: Sequence[str] | None = None
    feature_scaling_modalities: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        mode = self.latent_mode
        if mode != "weighted_mean" and self.modality_weights != "equal":
            message = (
                f"modality_weights={self.modality_weights!r} has no meaning with latent_mode={mode!r}, which has no "
                "weights. Leave it out, or pass latent_mode='weighted_mean'."
            )
            raise OptionError(message)
        sizes = self.n_latent if isinstance(self.n_latent, Mapping) else None
        if mode == "weighted_mean" and sizes is not None and len(set(sizes.values())) > 1:
            message = (
                f"n_latent must be the same for all modalities with latent_mode='weighted_mean'; got {dict(sizes)}."
            )
            raise OptionError(message)
        if mode == "single_encoder" and sizes is not None:
            message = (
                "n_latent must be one number with latent_mode='single_encoder': modalities have no parts of their own."
            )
            raise OptionError(message)

    @property
    def latent(self) -> tuple[str, str]:
        """How modalities make the cell state, and how they are weighed."""
        return self.latent_mode, self.modality_weights

    def background(self, registry: Registry) -> frozenset[str]:
        """Return the modalities named, by default those of genes."""
        return _chosen("additive_background_modalities", self.additive_background_modalities, registry, GENES)

    def scaling(self, registry: Registry) -> frozenset[str]:
        """Return the modalities named, by default those of peaks."""
        return _chosen("feature_scaling_modalities", self.feature_scaling_modalities, registry, PEAKS)


N = TypeVar("N", int, float)


def of(value: N | Mapping[str, N], modality: str) -> N:
    """Return what holds for one modality, of a number for all or for each."""
    return value[modality] if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class ModalityStart:
    """What the data say about a modality before training.

    Parameters
    ----------
    library
        Prior of library sizes.
    sums
        Sums of counts by level of the ambient covariates, ``(levels, features)`` each; ``None`` if saved weights
        follow.
    """

    library: LibraryPrior
    sums: Sequence[Tensor] | None = None

    @classmethod
    def of(cls, dataset: Dataset, modality: str, options: RegularizedOptions) -> ModalityStart:
        """Read the counts of a modality once."""
        covariates = dataset.registry.covariates
        totals = torch.from_numpy(dataset.summary(modality).cell_totals)
        group = dataset.registry.factor(covariates.library)
        level, present = dataset.codes[:, group.column], dataset.present.get(modality)
        if present is not None:
            totals, level = totals[present], level[present]
        weight = of(options.library_log_vars_weight, modality)
        columns = covariates.ambient if modality in options.background(dataset.registry) else (BATCH_COLUMN,)
        return cls(
            LibraryPrior.constrained(totals, level, group.n_levels, weight), dataset.level_sums(modality, columns)
        )

    @classmethod
    def unknown(cls, registry: Registry) -> ModalityStart:
        """Values to be overwritten by saved ones."""
        return cls(LibraryPrior.unknown(registry.factor(registry.covariates.library).n_levels))


def build_regularized(options: RegularizedOptions, registry: Registry, starts: Mapping[str, ModalityStart]) -> Regularized:
    """Assemble the model of :class:`countvi.AmbientRegularizedSCVI` and :class:`countvi.RegularizedMultimodalVI`.

    Parameters
    ----------
    options
        What the user asked for.
    registry
        Modalities and covariates.
    starts
        What the data say, by modality.
    """
    encode_z = _joint(options, registry)
    return Regularized(
        modalities={
            m.name: _modality(options, registry, m.name, encode_z.n_latent, starts[m.name]) for m in registry.modalities
        },
        encode_z=encode_z,
        covariates=CovariateFeatures(len(registry.continuous_keys)),
    )


def _units(dataset: Dataset, modality: str) -> int:
    counts = float(dataset.summary(modality).feature_totals.mean())
    return min(_UNITS, max(_FEWEST_UNITS, round(counts / _COUNTS_PER_UNIT)))


def _joint(options: RegularizedOptions, registry: Registry) -> JointEncoder:
    n_features = {m.name: m.n_features for m in registry.modalities}
    mode, weights = options.latent
    first = of(options.n_latent, next(iter(n_features)))
    if mode == "single_encoder":
        configs = [options.config(name, ENCODER) for name in n_features]
        widest = max(configs, key=lambda config: config.n_hidden)
        return SingleEncoder(tuple(n_features), _encoder(options, registry, sum(n_features.values()), first, widest))
    encoders = {
        name: _encoder(options, registry, n, of(options.n_latent, name), options.config(name, ENCODER))
        for name, n in n_features.items()
    }
    if mode == "concatenation":
        return Concatenated(encoders)
    weigh = {
        "equal": EqualWeights,
        "universal": lambda: UniversalWeights(len(encoders)),
        "cell": lambda: CellWeights(len(encoders), first),
    }[weights]
    return WeightedMeanEncoder(encoders, weigh())


def _encoder(
    options: RegularizedOptions, registry: Registry, n_features: int, n_out: int | None, config: MlpConfig
) -> GaussianEncoder:
    return GaussianEncoder(
        n_features,
        n_out,
        config,
        log1p=options.log_variational,
        n_features=len(registry.continuous_keys),
        factors=registry.factors(registry.covariates.encoder),
    )


def _modality(
    options: RegularizedOptions, registry: Registry, name: str, n_state: int, start: ModalityStart
) -> ModalityModel:
    covariates, n_features = registry.covariates, registry.modality(name).n_features
    conditioning = covariates.conditioning
    if options.use_batch_in_decoder and BATCH_COLUMN not in conditioning:
        conditioning = (BATCH_COLUMN, *conditioning)
    decoder = options.config(name, DECODER)
    rho = Head(decoder.n_hidden, n_features)
    background = _background(options, registry, name) if name in options.background(registry) else None
    log_unit = start.library.centre - math.log(of(options.library_log_means_centering_sensitivity, name))
    if start.sums is not None:
        start_from_counts(rho, background, start.sums, log_unit, of(options.bg_init_gene_fraction, name))
    scaling = None
    if name in options.scaling(registry):
        prior = GammaPrior(
            of(options.feature_scaling_prior_alpha, name), of(options.feature_scaling_prior_beta, name)
        )
        scaling = FeatureScaling(registry.factors(covariates.scaling), n_features, prior)
    alpha = of(options.dispersion_hyper_prior_alpha, name)
    grouped = options.dispersion == "gene-batch"
    return ModalityModel(
        library=_library(options, registry, name, start),
        decode=Mlp(n_state, decoder, len(registry.continuous_keys), registry.factors(conditioning)),
        rho=rho,
        dispersion=PosteriorDispersion(
            n_features,
            registry.factor(covariates.dispersion) if grouped else None,
            DispersionPrior(alpha, alpha * of(options.dispersion_hyper_prior_mean, name)),
        ),
        log_unit=log_unit,
        background=background,
        scaling=scaling,
    )


def _background(options: RegularizedOptions, registry: Registry, name: str) -> Background:
    prior = GammaPrior(of(options.additive_bg_prior_alpha, name), of(options.additive_bg_prior_beta, name))
    return Background(
        registry.factors(registry.covariates.ambient),
        registry.modality(name).n_features,
        prior if options.regularise_background else None,
    )


def _library(options: RegularizedOptions, registry: Registry, name: str, start: ModalityStart) -> ResidualLibrary:
    config = options.config(name, ENCODER)
    small = MlpConfig(
        n_hidden=of(options.library_n_hidden, name),
        n_layers=1,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
        layer_norm=config.layer_norm,
        inject_all=config.inject_all,
        drop_input=config.drop_input,
    )
    encode = _encoder(options, registry, registry.modality(name).n_features, None, small)
    return ResidualLibrary(encode, registry.factor(registry.covariates.library), start.library)


def _check_names(argument: str, given: Sequence[str], modalities: Sequence[str]) -> None:
    unknown = [name for name in given if name not in modalities]
    if unknown:
        message = f"{argument}: there is no modality {unknown[0]!r}; the model has {shorten(modalities)}."
        raise UnknownNameError(message + did_you_mean(unknown[0], modalities))


def _chosen(argument: str, given: Sequence[str] | None, registry: Registry, usual: str) -> frozenset[str]:
    """Modalities named, or by default those with one type of features."""
    if given is None:
        return frozenset(m.name for m in registry.modalities if m.feature_type == usual)
    if isinstance(given, str):
        message = f"{argument} must be a list of modalities; got the string {given!r}. Write [{given!r}]."
        raise OptionError(message)
    _check_names(argument, list(given), [m.name for m in registry.modalities])
    return frozenset(given)


def _check_covariates(options: RegularizedOptions, registry: Registry) -> None:
    """Refuse options that would do nothing with the covariates of the set-up."""
    if options.use_batch_in_decoder and registry.columns[BATCH_COLUMN].key is None:
        message = (
            "use_batch_in_decoder=True needs a batch, and the data were set up without batch_key. Name the covariates "
            "that the decoder is to see in nn_conditioning_covariate_keys instead."
        )
        raise OptionError(message)
    dispersion = registry.factor(registry.covariates.dispersion).column
    if options.dispersion == "gene" and dispersion != BATCH_COLUMN:
        message = (
            f"dispersion='gene' has no use for the dispersion key {registry.columns[dispersion].key!r} of the set-up. "
            "Pass dispersion='gene-batch', or set the data up without dispersion_key."
        )
        raise OptionError(message)
