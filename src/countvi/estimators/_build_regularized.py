"""From the words of a user to the parts of the regularised models, of one modality and of several. Strings end here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi.data import BATCH_COLUMN, GENES, PEAKS, Dataset, Purposes, Registry
from countvi.errors import OptionError, UnknownNameError, choose, did_you_mean, shorten
from countvi.models.regularized import ModalityModel, Regularized
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.initial_values import start_from_counts
from countvi.nn.joint import CellWeights, Concatenated, EqualWeights, JointEncoder, SingleEncoder, UniversalWeights
from countvi.nn.joint import WeightedMean as WeightedMeanEncoder
from countvi.nn.library import LibraryPrior, ResidualLibrary
from countvi.nn.linear import CovariateFeatures, Head
from countvi.nn.mlp import Mlp, MlpConfig
from countvi.nn.priors import DispersionPrior, GammaPrior
from countvi.nn.technical import Background, FeatureScaling, PosteriorDispersion

_WHERE = {"encoder": (True, False), "decoder": (False, True), "none": (False, False), "both": (True, True)}
_LIKELIHOODS: dict[str, None] = dict.fromkeys(("gamma_poisson", "nb", "negative_binomial"))

_COUNT = (int, lambda value: value >= 1, "a whole number of at least 1")
_POSITIVE = (float, lambda value: value > 0, "a positive number")
_RATE = (float, lambda value: 0 <= value < 1, "at least 0 and less than 1")
_SHARE = (float, lambda value: 0 < value < 1, "between 0 and 1")
_NUMBERS: dict[str, tuple[type, Callable[[float], bool], str]] = {
    "n_hidden": _COUNT,
    "n_latent": _COUNT,
    "n_layers": _COUNT,
    "dropout_rate": _RATE,
    "library_n_hidden": _COUNT,
    "library_log_vars_weight": _POSITIVE,
    "library_log_means_centering_sensitivity": _POSITIVE,
    "additive_bg_prior_alpha": _POSITIVE,
    "additive_bg_prior_beta": _POSITIVE,
    "bg_init_gene_fraction": _SHARE,
    "feature_scaling_prior_alpha": _POSITIVE,
    "feature_scaling_prior_beta": _POSITIVE,
    "dispersion_hyper_prior_mean": _POSITIVE,
    "dispersion_hyper_prior_alpha": _POSITIVE,
}
"""What may be given once for all modalities, or for each."""
_UNITS, _FEWEST_UNITS = 128, 16
_COUNTS_PER_UNIT = 3.0
"""Counts of a peak for each of its weights: with fewer, the last layer learns the training cells by heart."""
_FLAGS = (
    "use_batch_in_decoder",
    "regularise_background",
    "deeply_inject_covariates",
    "dropout_on_input",
    "log_variational",
)
_LATENT_MODES: dict[str, None] = dict.fromkeys(("concatenation", "weighted_mean", "single_encoder"))
_WEIGHTS: dict[str, None] = dict.fromkeys(("equal", "universal", "cell"))


@dataclass(frozen=True)
class RegularizedOptions:
    """The arguments of the regularised models, checked.

    Parameters
    ----------
    values
        By name. Numbers that can differ between modalities are dictionaries by modality.
    background, scaling
        Modalities with a background, and with feature factors.
    """

    values: Mapping[str, Any]
    background: frozenset[str]
    scaling: frozenset[str]

    @classmethod
    def checked(cls, arguments: Mapping[str, Any], registry: Registry) -> RegularizedOptions:
        """Check the arguments of a constructor.

        Raises
        ------
        OptionError
            If one is outside what it may be, or leaves out a modality.
        UnknownNameError
            If one names a modality that does not exist.
        """
        values = dict(arguments)
        names = [modality.name for modality in registry.modalities]
        if values["n_hidden"] is None:  # see sized()
            values["n_hidden"] = dict.fromkeys(names, _UNITS)
        for name, rule in _NUMBERS.items():
            values[name] = _by_modality(name, values[name], names, rule)
        for name in _FLAGS:
            values[name] = check_flag(name, values[name])
        choose("gene_likelihood", values["gene_likelihood"], _LIKELIHOODS)
        choose("dispersion", values["dispersion"], {"gene": None, "gene-batch": None})
        for name in ("use_batch_norm", "use_layer_norm"):
            choose(name, values[name], _WHERE)
        choose("latent_mode", values["latent_mode"], _LATENT_MODES)
        choose("modality_weights", values["modality_weights"], _WEIGHTS)
        _check_latent(arguments, values)
        _check_covariates(values, registry)
        return cls(
            values,
            background=_chosen("additive_background_modalities", arguments, registry, GENES),
            scaling=_chosen("feature_scaling_modalities", arguments, registry, PEAKS),
        )

    def sized(self, dataset: Dataset) -> RegularizedOptions:
        """Return the options with hidden layers that suit the data: few units where a peak has few counts."""
        units = {
            m.name: _units(dataset, m.name) if m.feature_type == PEAKS else _UNITS for m in dataset.registry.modalities
        }
        return dataclasses.replace(self, values={**self.values, "n_hidden": units})

    def of(self, name: str, modality: str) -> Any:
        """Return what holds for one modality."""
        return self.values[name][modality]

    def config(self, modality: str, *, encoder: bool) -> MlpConfig:
        """Layers of a modality's encoder or decoder."""
        side = 0 if encoder else 1
        return MlpConfig(
            n_hidden=self.of("n_hidden", modality),
            n_layers=self.of("n_layers", modality),
            dropout=self.of("dropout_rate", modality) if encoder else 0.0,
            batch_norm=_WHERE[self.values["use_batch_norm"]][side],
            layer_norm=_WHERE[self.values["use_layer_norm"]][side],
            inject_all=self.values["deeply_inject_covariates"],
            drop_input=self.values["dropout_on_input"],
        )


@dataclass(frozen=True)
class Start:
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
    def of(cls, dataset: Dataset, modality: str, options: RegularizedOptions) -> Start:
        """Read the counts of a modality once."""
        purposes = purposes_of(dataset.registry)
        totals = torch.from_numpy(dataset.summary(modality).cell_totals)
        group = dataset.registry.factor(purposes.library)
        level, present = dataset.codes[:, group.column], dataset.present.get(modality)
        if present is not None:
            totals, level = totals[present], level[present]
        weight = options.of("library_log_vars_weight", modality)
        columns = purposes.ambient if modality in options.background else (BATCH_COLUMN,)
        return cls(
            LibraryPrior.constrained(totals, level, group.n_levels, weight), dataset.level_sums(modality, columns)
        )

    @classmethod
    def unknown(cls, registry: Registry) -> Start:
        """Values to be overwritten by saved ones."""
        return cls(LibraryPrior.unknown(registry.factor(purposes_of(registry).library).n_levels))


def build_regularized(options: RegularizedOptions, registry: Registry, starts: Mapping[str, Start]) -> Regularized:
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


def purposes_of(registry: Registry) -> Purposes:
    """Which columns serve what."""
    assert registry.purposes is not None, "a regularised model is set up with covariates by purpose"
    return registry.purposes


def check_flag(name: str, value: Any) -> bool:
    """Return what is true or false.

    Raises
    ------
    OptionError
        If it is neither.
    """
    if not isinstance(value, (bool, np.bool_)):
        message = f"{name} must be True or False; got {value!r}."
        raise OptionError(message)
    return bool(value)


def _joint(options: RegularizedOptions, registry: Registry) -> JointEncoder:
    n_features = {m.name: m.n_features for m in registry.modalities}
    latent = options.values["n_latent"]
    if options.values["latent_mode"] == "single_encoder":
        widest = max(n_features, key=lambda name: options.of("n_hidden", name))
        config = options.config(widest, encoder=True)
        n_latent = next(iter(latent.values()))
        return SingleEncoder(tuple(n_features), _encoder(options, registry, sum(n_features.values()), n_latent, config))
    encoders = {
        name: _encoder(options, registry, n, latent[name], options.config(name, encoder=True))
        for name, n in n_features.items()
    }
    if options.values["latent_mode"] == "concatenation":
        return Concatenated(encoders)
    n_latent = next(iter(latent.values()))
    weigh = {
        "equal": EqualWeights,
        "universal": lambda: UniversalWeights(len(encoders)),
        "cell": lambda: CellWeights(len(encoders), n_latent),
    }[options.values["modality_weights"]]
    return WeightedMeanEncoder(encoders, weigh())


def _encoder(
    options: RegularizedOptions, registry: Registry, n_features: int, n_out: int | None, config: MlpConfig
) -> GaussianEncoder:
    return GaussianEncoder(
        n_features,
        n_out,
        config,
        log1p=options.values["log_variational"],
        n_features=len(registry.continuous_keys),
        factors=registry.factors(purposes_of(registry).encoder),
    )


def _modality(options: RegularizedOptions, registry: Registry, name: str, n_state: int, start: Start) -> ModalityModel:
    purposes, n_features = purposes_of(registry), registry.modality(name).n_features
    conditioning = purposes.conditioning
    if options.values["use_batch_in_decoder"] and BATCH_COLUMN not in conditioning:
        conditioning = (BATCH_COLUMN, *conditioning)
    decoder = options.config(name, encoder=False)
    rho = Head(decoder.n_hidden, n_features)
    background = _background(options, registry, name) if name in options.background else None
    log_unit = start.library.centre - math.log(options.of("library_log_means_centering_sensitivity", name))
    if start.sums is not None:
        start_from_counts(rho, background, start.sums, log_unit, options.of("bg_init_gene_fraction", name))
    scaling = None
    if name in options.scaling:
        prior = GammaPrior(*(options.of(f"feature_scaling_prior_{end}", name) for end in ("alpha", "beta")))
        scaling = FeatureScaling(registry.factors(purposes.scaling), n_features, prior)
    alpha = options.of("dispersion_hyper_prior_alpha", name)
    grouped = options.values["dispersion"] == "gene-batch"
    return ModalityModel(
        library=_library(options, registry, name, start),
        decode=Mlp(n_state, decoder, len(registry.continuous_keys), registry.factors(conditioning)),
        rho=rho,
        dispersion=PosteriorDispersion(
            n_features,
            registry.factor(purposes.dispersion) if grouped else None,
            DispersionPrior(alpha, alpha * options.of("dispersion_hyper_prior_mean", name)),
        ),
        log_unit=log_unit,
        background=background,
        scaling=scaling,
    )


def _background(options: RegularizedOptions, registry: Registry, name: str) -> Background:
    prior = GammaPrior(*(options.of(f"additive_bg_prior_{end}", name) for end in ("alpha", "beta")))
    return Background(
        registry.factors(purposes_of(registry).ambient),
        registry.modality(name).n_features,
        prior if options.values["regularise_background"] else None,
    )


def _library(options: RegularizedOptions, registry: Registry, name: str, start: Start) -> ResidualLibrary:
    config = options.config(name, encoder=True)
    small = MlpConfig(
        n_hidden=options.of("library_n_hidden", name),
        n_layers=1,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
        layer_norm=config.layer_norm,
        inject_all=config.inject_all,
        drop_input=config.drop_input,
    )
    encode = _encoder(options, registry, registry.modality(name).n_features, None, small)
    return ResidualLibrary(encode, registry.factor(purposes_of(registry).library), start.library)


def _by_modality(
    name: str, value: Any, modalities: Sequence[str], rule: tuple[type, Callable[[float], bool], str]
) -> dict[str, Any]:
    """One number for each modality, from a number for all or a dictionary."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(modalities, _number(name, value, rule))
    _check_names(name, list(value), modalities)
    missing = [modality for modality in modalities if modality not in value]
    if missing:
        message = f"{name} leaves out {shorten(missing)}; give one number for all modalities, or one for each."
        raise OptionError(message)
    return {modality: _number(f"{name}[{modality!r}]", value[modality], rule) for modality in modalities}


def _number(name: str, value: Any, rule: tuple[type, Callable[[float], bool], str]) -> Any:
    kind, fits, words = rule
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or kind(value) != value or not fits(float(value)):
        message = f"{name} must be {words}; got {value!r}."
        raise OptionError(message)
    return kind(value)


def _check_names(argument: str, given: Sequence[Any], modalities: Sequence[str]) -> None:
    unknown = [name for name in given if name not in modalities]
    if unknown:
        message = f"{argument}: there is no modality {unknown[0]!r}; the model has {shorten(modalities)}."
        raise UnknownNameError(message + did_you_mean(unknown[0], modalities))


def _chosen(argument: str, arguments: Mapping[str, Any], registry: Registry, usual: str) -> frozenset[str]:
    """Modalities named, or by default those with one type of features."""
    given = arguments[argument]
    if given is None:
        return frozenset(m.name for m in registry.modalities if m.feature_type == usual)
    if isinstance(given, str):
        message = f"{argument} must be a list of modalities; got the string {given!r}. Write [{given!r}]."
        raise OptionError(message)
    _check_names(argument, list(given), [m.name for m in registry.modalities])
    return frozenset(given)


def _check_covariates(values: Mapping[str, Any], registry: Registry) -> None:
    """Refuse options that would do nothing with the covariates of the set-up."""
    if values["use_batch_in_decoder"] and registry.columns[BATCH_COLUMN].key is None:
        message = (
            "use_batch_in_decoder=True needs a batch, and the data were set up without batch_key. Name the covariates "
            "that the decoder is to see in nn_conditioning_covariate_keys instead."
        )
        raise OptionError(message)
    dispersion = purposes_of(registry).dispersion
    if values["dispersion"] == "gene" and dispersion != BATCH_COLUMN:
        message = (
            f"dispersion='gene' has no use for the dispersion key {registry.columns[dispersion].key!r} of the set-up. "
            "Pass dispersion='gene-batch', or set the data up without dispersion_key."
        )
        raise OptionError(message)


def _check_latent(arguments: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    mode, sizes = values["latent_mode"], values["n_latent"]
    if mode != "weighted_mean" and values["modality_weights"] != "equal":
        message = (
            f"modality_weights={values['modality_weights']!r} has no meaning with latent_mode={mode!r}, which has no "
            "weights. Leave it out, or pass latent_mode='weighted_mean'."
        )
        raise OptionError(message)
    if mode == "weighted_mean" and len(set(sizes.values())) > 1:
        message = f"n_latent must be the same for all modalities with latent_mode='weighted_mean'; got {dict(sizes)}."
        raise OptionError(message)
    if mode == "single_encoder" and isinstance(arguments["n_latent"], Mapping):
        message = (
            "n_latent must be one number with latent_mode='single_encoder': modalities have no parts of their own."
        )
        raise OptionError(message)
