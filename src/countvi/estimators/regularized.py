"""What both regularised models have in common: their training, their start, their set-up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from countvi import data as data_layer
from countvi.errors import DataWarning, OptionError, warn
from countvi.estimators import training
from countvi.estimators.build.regularized import ModalityStart, build_regularized
from countvi.estimators.signatures import passes_on_to
from countvi.estimators.state import Fitted, TrainingDefaults

if TYPE_CHECKING:
    from countvi.models.regularized import Regularized


# A short warm-up: while the divergence weighs little, an encoder of many sparse features overfits. A lower rate:
# networks of any size shall fit alike, and with more noise in the steps large ones end lower.
DEFAULTS = TrainingDefaults(batch_size=128, peak=0.02, plan={"weight_decay": 0.0, "kl_warmup_fraction": 0.05})
"""How the regularised models are trained where a user does not say."""
_OF_THE_BATCH = ("ambient_covariate_keys", "dispersion_key", "library_size_key")
"""Arguments that ``batch_key`` stands for."""


def set_up_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of a set-up against each other; ``encoder_covariate_keys=False`` becomes ``None``.

    Raises
    ------
    OptionError
        If ``batch_key`` is given together with a key that it stands for.
    """
    clash = [name for name in _OF_THE_BATCH if given[name] is not None]
    if given["batch_key"] is not None and clash:
        message = (
            f"batch_key={given['batch_key']!r} is given together with {' and '.join(clash)}, which it stands for. "
            "There are two ways: batch_key alone, which then serves as ambient, dispersion and library size key; "
            f"or {', '.join(_OF_THE_BATCH)} by themselves, without batch_key."
        )
        raise OptionError(message)
    encoder = given["encoder_covariate_keys"]
    return {**given, "encoder_covariate_keys": None if encoder is False else encoder}


def warn_of_encoder(registry: data_layer.Registry) -> None:
    """Warn where the encoders shall see covariates.

    Warns
    -----
    DataWarning
        If they shall.
    """
    if registry.covariates.encoder:
        message = (
            f"encoder_covariate_keys={registry.setup_args['encoder_covariate_keys']}: encoders that see technical "
            "covariates can carry them into the cell state. The default, False, lets them see counts only."
        )
        warn(message, DataWarning)


@passes_on_to(training.train)
def train(
    self: Fitted,
    max_epochs: int | None = None,
    *,
    batch_size: int | None = None,
    early_stopping_min_delta: float | None = None,
    early_stopping_min_delta_per_feature: float = 2e-4,
    plan_kwargs: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> None:
    """Fit the model.

    Parameters
    ----------
    max_epochs
        Passes over the training cells; by default fewer the more cells there are: 48 for 2,000, 5 for a million
        (:func:`countvi.train.default_max_epochs`); with peaks, whose networks overfit sooner, three quarters of
        that.
    batch_size
        Cells per step.
    early_stopping_min_delta
        Smallest improvement of the monitored metric that counts; by default the number of features, of all
        modalities, times ``early_stopping_min_delta_per_feature``.
    early_stopping_min_delta_per_feature
        The same per feature, in nats per cell.
    plan_kwargs
        As for :class:`countvi.SCVI`, but with a peak rate of 0.02, a KL warm-up over a twentieth of the run, and
        without weight decay unless ``{"weight_decay": ...}`` asks for it: it would be a second prior of background,
        factors and dispersions.
    arguments
        All other arguments of :meth:`countvi.SCVI.train`.
    """
    if early_stopping_min_delta is None:
        n_features = sum(m.n_features for m in self.registry.modalities)
        early_stopping_min_delta = n_features * early_stopping_min_delta_per_feature
    arguments |= {"batch_size": batch_size, "early_stopping_min_delta": early_stopping_min_delta}
    training.run(self, training.requested(self, max_epochs, plan_kwargs=plan_kwargs, **arguments))


def training_defaults(self: Fitted) -> TrainingDefaults:
    """Shorter runs where there are peaks, whose networks overfit sooner."""
    peaks = any(m.feature_type == data_layer.PEAKS for m in self.registry.modalities)
    return dataclasses.replace(DEFAULTS, relative_length=0.75 if peaks else 1.0)


def start(self: Fitted[Regularized], dataset: data_layer.Dataset, context: Any) -> dict[str, ModalityStart]:
    """What the data say of each modality before training, and sizes of networks that were left to the counts."""
    if self.options.n_hidden is None:  # a saved model knows its sizes
        self.options = self.options.sized(dataset)
    return {m.name: ModalityStart.of(dataset, m.name, self.options) for m in self.registry.modalities}


def build(self: Fitted[Regularized], start: dict[str, ModalityStart] | None) -> Regularized:
    """Assemble the model."""
    if start is None:
        start = dict.fromkeys((m.name for m in self.registry.modalities), ModalityStart.unknown(self.registry))
    return build_regularized(self.options, self.registry, start)
