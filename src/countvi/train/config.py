"""How a model is trained, as plain values.

:class:`TrainingPlan` is what ``plan_kwargs`` of ``train`` fills in: the optimiser, the learning-rate schedule and the
KL warm-up. :class:`LoopConfig` adds what belongs to one call: epochs, seed, stopping, checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from countvi.errors import OptionError, choose, did_you_mean
from countvi.train.adversary import BatchAdversary
from countvi.train.schedules import Constant, KlWarmup, OneCycle, Schedule

_SCHEDULES: dict[str, type[Schedule]] = {"one-cycle": OneCycle, "constant": Constant}
_DEFAULT_LR = {"one-cycle": 4e-2, "constant": 1e-3}

# More cells are worth more steps, but fewer passes over each; docs/training.md says how this was found.
_TARGET_STEPS, _TARGET_CELLS, _TARGET_POWER = 720, 2_000, 0.6
_MIN_EPOCHS = 3
_MAX_EPOCHS = 100


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


def _share(value: float) -> bool:
    return 0 <= value <= 1


# The numbers of a plan: whole or not, the range they may be in, and that range in words.
_NUMBERS: dict[str, tuple[type, Callable[[float], bool], str]] = {
    **dict.fromkeys(("lr", "eps", "gradient_clip_val"), (float, _positive, "a positive number")),
    **dict.fromkeys(
        ("weight_decay", "min_kl_weight", "max_kl_weight", "lr_threshold", "lr_min"),
        (float, _not_negative, "a number of at least 0"),
    ),
    **dict.fromkeys(
        ("n_epochs_kl_warmup", "n_steps_kl_warmup", "lr_patience"), (int, _not_negative, "a whole number of at least 0")
    ),
    "kl_warmup_fraction": (float, _share, "a number between 0 and 1"),
    "lr_factor": (float, lambda value: 0 < value < 1, "a number between 0 and 1"),
}
_OPTIONAL = frozenset({"lr", "gradient_clip_val", "n_epochs_kl_warmup", "n_steps_kl_warmup"})


def _number(name: str, value: Any, kind: type, fits: Callable[[float], bool], words: str) -> Any:
    """Return a user's number as a plain Python one, which checkpoints can hold.

    Raises
    ------
    OptionError
        If it is not a number, or not one of the range.
    """
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not fits(float(value)) or kind(value) != value:
        message = f"{name} must be {words}; got {value!r}."
        raise OptionError(message)
    return kind(value)


def plan_entries(plan_kwargs: Any, **given: Any) -> dict[str, Any]:
    """Return the entries of a user's ``plan_kwargs``; those ``given`` otherwise, if not ``None``, go before them.

    Raises
    ------
    OptionError
        If it is neither a dictionary nor ``None``.
    """
    if plan_kwargs is not None and not isinstance(plan_kwargs, Mapping):
        message = f"plan_kwargs must be a dictionary, such as {{'lr': 0.01}}; got {type(plan_kwargs).__name__}."
        raise OptionError(message)
    return {**(plan_kwargs or {}), **{name: value for name, value in given.items() if value is not None}}


def with_peak(entries: Mapping[str, Any], lr: float) -> dict[str, Any]:
    """Return entries of a plan with another peak rate of one cycle, unless they name a rate or another schedule."""
    return {**({"lr": lr} if entries.get("schedule", "one-cycle") == "one-cycle" else {}), **entries}


@dataclass(frozen=True)
class TrainingPlan:
    """Optimiser, learning rate and KL warm-up.

    Parameters
    ----------
    schedule
        ``"one-cycle"``: the learning rate rises to ``lr`` and falls to zero within the run. ``"constant"``: as
        scvi-tools.
    lr
        Peak learning rate; default 0.04 for one-cycle (of some models 0.02 or 0.05), 0.001 for constant.
    optimizer
        ``"Adam"`` (weight decay as an L2 penalty, as scvi-tools) or ``"AdamW"``.
    weight_decay, eps
        Of the optimiser.
    kl_warmup_fraction
        The KL weight rises linearly from ``min_kl_weight`` to ``max_kl_weight`` over this share of the run's steps, so
        it always ends within the run.
    n_epochs_kl_warmup, n_steps_kl_warmup
        Length of the warm-up in epochs or in steps instead (as scvi-tools, whose default is 400 epochs). A warm-up
        longer than the run is honoured, with a warning.
    min_kl_weight, max_kl_weight
        Ends of the warm-up.
    reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_min, lr_scheduler_metric
        Multiply the learning rate by ``lr_factor`` once the metric has not improved by ``lr_threshold`` for
        ``lr_patience`` epochs.
    gradient_clip_val
        Largest gradient norm; ``None`` does not clip.
    """

    schedule: str = "one-cycle"
    lr: float | None = None
    optimizer: str = "Adam"
    weight_decay: float = 1e-6
    eps: float = 0.01
    kl_warmup_fraction: float = 0.3
    n_epochs_kl_warmup: int | None = None
    n_steps_kl_warmup: int | None = None
    min_kl_weight: float = 0.0
    max_kl_weight: float = 1.0
    reduce_lr_on_plateau: bool = False
    lr_factor: float = 0.6
    lr_patience: int = 30
    lr_threshold: float = 0.0
    lr_min: float = 0.0
    lr_scheduler_metric: str = "elbo_validation"
    gradient_clip_val: float | None = None

    def __post_init__(self) -> None:
        choose("plan_kwargs['schedule']", self.schedule, _SCHEDULES)
        choose("plan_kwargs['optimizer']", self.optimizer, {"Adam": None, "AdamW": None})
        for name, (kind, fits, words) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            value = _number(f"plan_kwargs[{name!r}]", value, kind, fits, words)
            object.__setattr__(self, name, value)
        if self.min_kl_weight > self.max_kl_weight:
            message = (
                f"plan_kwargs['min_kl_weight'] ({self.min_kl_weight}) is above plan_kwargs['max_kl_weight'] "
                f"({self.max_kl_weight}); the warm-up rises from the one to the other."
            )
            raise OptionError(message)

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any] | None, **defaults: Any) -> TrainingPlan:
        """Build from a user's ``plan_kwargs``, with ``defaults`` for what they leave out.

        Raises
        ------
        OptionError
            If a name is unknown, with the closest that exist.
        """
        kwargs = plan_entries(kwargs)
        known = [field.name for field in dataclasses.fields(cls)]
        for name in kwargs:
            if name not in known:
                message = f"plan_kwargs has no entry {name!r}.{did_you_mean(name, known)} It takes: {', '.join(known)}."
                raise OptionError(message)
        return cls(**{**defaults, **kwargs})

    @property
    def peak_lr(self) -> float:
        """Learning rate at its highest."""
        return _DEFAULT_LR[self.schedule] if self.lr is None else self.lr

    def learning_rate(self, n_steps: int) -> Schedule:
        """Schedule of the learning rate over a run of ``n_steps``."""
        return _SCHEDULES[self.schedule](self.peak_lr, n_steps)

    def kl_weight(self, n_steps: int, n_steps_per_epoch: int, restarted: bool) -> KlWarmup:
        """Schedule of the KL weight.

        Parameters
        ----------
        n_steps, n_steps_per_epoch
            Length of the run and of an epoch in optimiser steps.
        restarted
            The model was trained before; its warm-up is over unless a length is asked for.
        """
        low, high = self.min_kl_weight, self.max_kl_weight
        if self.n_epochs_kl_warmup is not None:
            # scvi-tools evaluates the weight once per epoch.
            return KlWarmup(low, high, self.n_epochs_kl_warmup * n_steps_per_epoch, every=n_steps_per_epoch)
        if self.n_steps_kl_warmup is not None:
            return KlWarmup(low, high, self.n_steps_kl_warmup)
        return KlWarmup(low, high, 0 if restarted else math.ceil(self.kl_warmup_fraction * n_steps))


def scvi_tools_plan() -> dict[str, Any]:
    """``plan_kwargs`` that reproduce the schedule of scvi-tools: constant rate 0.001, KL warm-up over 400 epochs.

    Together with ``max_epochs=min(round(20_000 / n_cells * 400), 400)``, which ``train`` picks by itself for this
    schedule.
    """
    return {"schedule": "constant", "lr": 1e-3, "n_epochs_kl_warmup": 400}


def default_max_epochs(n_cells: int, n_steps_per_epoch: int, plan: TrainingPlan) -> int:
    """Epochs when the user names none.

    With the one-cycle schedule, what takes about ``720 * (n_cells / 2_000) ** 0.6`` steps, within 3 to 100 epochs. In
    minibatches of 128 these are 48 epochs of 2,000 cells, 15 of 50,000, 5 of a million; models multiply it. With a
    constant rate, the rule of scvi-tools: ``min(round(20_000 / n_cells * 400), 400)``.
    """
    if plan.schedule == "constant":
        return max(1, min(round(20_000 / n_cells * 400), 400))
    n_steps = _TARGET_STEPS * (n_cells / _TARGET_CELLS) ** _TARGET_POWER
    return min(_MAX_EPOCHS, max(_MIN_EPOCHS, math.ceil(n_steps / n_steps_per_epoch)))


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a held-out metric stops improving, and go back to the best weights.

    Parameters
    ----------
    monitor
        Column of the history, lower is better.
    patience
        Validations without improvement that are tolerated.
    min_delta
        Smallest change that counts as improvement, in nats per cell.
    warmup_epochs
        Epochs before counting starts. Counting never starts before the KL warm-up has ended: until then the objective
        moves.
    """

    monitor: str = "elbo_validation"
    patience: int = 45
    min_delta: float = 0.0
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        for name, (kind, fits, words) in {
            "patience": (int, _not_negative, "a whole number of at least 0"),
            "min_delta": (float, _not_negative, "a number of at least 0"),
            "warmup_epochs": (int, _not_negative, "a whole number of at least 0"),
        }.items():
            value = _number(f"early_stopping_{name}", getattr(self, name), kind, fits, words)
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class LoopConfig:
    """One call of ``train``.

    Parameters
    ----------
    max_epochs
        Passes over the training cells.
    seed
        Seed of everything that is random in this run.
    plan
        Optimiser and schedules.
    first_epoch
        Number of the first epoch: how many the model was trained for before.
    early_stopping
        When to stop early, or ``None``.
    check_val_every_n_epoch
        Epochs between validations.
    checkpoint_dir
        Where to keep a checkpoint after every epoch, or ``None``.
    resume
        Continue from the checkpoint if there is one.
    origin
        What identifies the model and the data, and how these are cut into minibatches, by what messages call it; a run
        is only resumed with the same.
    adversary
        The classifier to train against the model, or ``None``.
    moving_rows
        Rows that training may change, for parameters of which it may change some only; by name of the parameter.
    """

    max_epochs: int
    seed: int
    plan: TrainingPlan
    first_epoch: int = 0
    early_stopping: EarlyStopping | None = None
    check_val_every_n_epoch: int = 1
    checkpoint_dir: Path | None = None
    resume: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)
    adversary: BatchAdversary | None = None
    moving_rows: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued, as JSON values."""
        return {
            "max_epochs": self.max_epochs,
            "seed": self.seed,
            "first_epoch": self.first_epoch,
            **self.origin,
            "check_val_every_n_epoch": self.check_val_every_n_epoch,
            "early_stopping": dataclasses.asdict(self.early_stopping) if self.early_stopping else None,
            **{f"plan_kwargs[{name!r}]": value for name, value in dataclasses.asdict(self.plan).items()},
            **({"companions": [type(self.adversary).__name__]} if self.adversary else {}),
        }
