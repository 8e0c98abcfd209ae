"""Training: the arguments of ``train``, the split into training and held-out cells, and the run itself."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from countvi import ops, query, seeding
from countvi.data import Dataset, Split
from countvi.errors import NonFiniteError, OptionError, TrainingWarning, warn
from countvi.estimators.loader import DatasetLoader
from countvi.estimators.options import WHOLE
from countvi.estimators.splits import SplitRequest, settle_split
from countvi.models.count_model import CountModel
from countvi.nn import levels
from countvi.train import (
    BatchAdversary,
    BatchLoader,
    Callback,
    EarlyStopping,
    FitResult,
    LoopConfig,
    NonFiniteStep,
    Row,
    TrainingPlan,
    default_max_epochs,
    fit,
    progress_callback,
)
from countvi.train.checkpoint import hashed
from countvi.train.config import plan_entries, with_peak

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from countvi.estimators.state import Fitted


_WORSE = 1.0
"""Share of the bound by which it is worse after a run that diverged; one of few steps may lose some."""
_LONG = 200
"""Characters of an option's value beyond which a checkpoint keeps a digest of it."""
_PROBED = 256
"""Training cells that are looked at before and after a run, to see whether it made the model better."""


def train(
    self: Fitted,
    max_epochs: int | None = None,
    *,
    lr: float | None = None,
    batch_size: int | None = None,
    train_size: float | None = None,
    validation_size: float | None = None,
    shuffle_set_split: bool = True,
    external_indexing: Sequence[np.ndarray] | None = None,
    datasplitter_kwargs: Mapping[str, Any] | None = None,
    early_stopping: bool = False,
    early_stopping_monitor: str = "elbo_validation",
    early_stopping_patience: int = 45,
    early_stopping_min_delta: float = 0.0,
    early_stopping_warmup_epochs: int = 0,
    check_val_every_n_epoch: int = 1,
    accelerator: str = "auto",
    devices: Any = "auto",
    strategy: str = "auto",
    precision: str = "32-true",
    seed: int | None = None,
    gradient_clip_val: float | None = None,
    plan_kwargs: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Any = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    enable_progress_bar: bool = True,
) -> None:
    """Fit the model.

    Parameters
    ----------
    max_epochs
        Passes over the training cells; by default fewer the more cells there are: 38 for 2,000, 5 for a million
        (:func:`countvi.train.default_max_epochs`).
    lr
        Peak learning rate; the same as ``plan_kwargs={"lr": ...}``, and goes before it.
    batch_size
        Cells per step; by default 64, of :class:`countvi.TOTALVI` 256, of :class:`countvi.DestVI` and the regularised
        models 128.
    train_size, validation_size
        Shares of the cells to train on (0.9) and to hold out (the rest). What is left is the test set.
    shuffle_set_split
        Draw the split at random rather than by position.
    external_indexing
        Rows ``[train, validation, test]`` instead of shares.
    datasplitter_kwargs
        The same as ``{"external_indexing": [...]}``, as in scvi-tools.
    early_stopping
        Stop when the held-out metric stops improving, and keep the best weights.
    early_stopping_monitor, early_stopping_patience, early_stopping_min_delta, early_stopping_warmup_epochs
        Which column of the history, and how patient; see :class:`countvi.train.EarlyStopping`.
    check_val_every_n_epoch
        Epochs between validations.
    accelerator, devices, strategy, precision
        As in Lightning Fabric. ``"auto"`` takes one NVIDIA GPU if there is one, else the CPU; ``"32-true"``,
        ``"64-true"``, ``"bf16-mixed"``.
    seed
        Of this run: split, order of cells, noise. Default: the model's.
    gradient_clip_val
        Largest gradient norm; ``None`` does not clip.
    plan_kwargs
        Optimiser, learning rate, KL warm-up: the fields of :class:`countvi.train.TrainingPlan`.
        ``countvi.train.scvi_tools_plan()`` gives the schedule of scvi-tools.
    callbacks
        :class:`countvi.train.Callback` objects.
    logger
        A Lightning Fabric logger, or several.
    checkpoint_dir
        Folder for a checkpoint after every epoch. If one cannot be written (a full disk), a warning says so, and
        training goes on.
    resume
        Continue from the checkpoint in ``checkpoint_dir`` if there is one; the result is what an uninterrupted run
        gives. The run must have the same data, covariates, options and arguments; a checkpoint of another is refused.
    enable_progress_bar
        Show progress: a bar in a terminal or notebook, else about ten lines.

    Notes
    -----
    The split is drawn once per model and kept: training again never trains on cells held out before. Training again
    continues from the present weights, without a second KL warm-up.

    Raises
    ------
    OptionError
        If an argument is outside what it may be.
    NonFiniteError
        If training cannot be kept finite; names the first offending quantity, gene, cell and batch.
    """
    arguments = locals()
    with ops.quietly(not enable_progress_bar):
        run(arguments.pop("self"), requested(self, **arguments))


@dataclass(frozen=True)
class TrainRequest:
    """What a user asked :func:`train` for, with the defaults of the model where he did not say."""

    max_epochs: int | None
    batch_size: int
    split: SplitRequest
    early_stopping: EarlyStopping | None
    check_val_every_n_epoch: int
    seed: int
    plan: TrainingPlan
    checkpoint_dir: Path | None
    resume: bool
    fabric: Fabric
    callbacks: Sequence[Callback]
    relative_length: float
    """Epochs of a run that names none, as a multiple of those that the number of cells asks for."""
    adversary: BatchAdversary | None = None
    """What is trained against the model."""


def requested(model: Fitted, *arguments: Any, **named: Any) -> TrainRequest:
    """Check the arguments of :func:`train`, and fill in the defaults of a model.

    Raises
    ------
    OptionError
        If one is outside what it may be.
    """
    bound = inspect.signature(train).bind(model, *arguments, **named)
    bound.apply_defaults()
    given, usual = SimpleNamespace(**bound.arguments), model.training_defaults
    split = SplitRequest.from_arguments(
        given.train_size,
        given.validation_size,
        given.shuffle_set_split,
        given.external_indexing,
        given.datasplitter_kwargs,
    )
    asked = given.train_size is not None or split.holds_out or given.early_stopping
    if not usual.hold_out and not asked and model.split is None:
        split = dataclasses.replace(split, train_size=1.0)
    plan = {**usual.plan, **plan_entries(given.plan_kwargs, lr=given.lr)}
    stopping = EarlyStopping(
        given.early_stopping_monitor,
        given.early_stopping_patience,
        given.early_stopping_min_delta,
        given.early_stopping_warmup_epochs,
    )
    for callback in given.callbacks:
        if not isinstance(callback, Callback):
            message = (
                f"callbacks must be countvi.train.Callback objects; got {callback!r}. Callbacks of Lightning do not "
                "fit."
            )
            raise OptionError(message)
    if given.resume and given.checkpoint_dir is None:
        message = "resume=True needs checkpoint_dir, the folder of the run to continue."
        raise OptionError(message)
    max_epochs = usual.max_epochs if given.max_epochs is None else given.max_epochs
    return TrainRequest(
        max_epochs=None if max_epochs is None else WHOLE("max_epochs", max_epochs),
        batch_size=WHOLE("batch_size", usual.batch_size if given.batch_size is None else given.batch_size),
        split=split,
        early_stopping=stopping if given.early_stopping else None,
        check_val_every_n_epoch=WHOLE("check_val_every_n_epoch", given.check_val_every_n_epoch),
        seed=model.seed if given.seed is None else seeding.checked(given.seed),
        plan=TrainingPlan.from_kwargs(
            plan if usual.peak is None else with_peak(plan, usual.peak), gradient_clip_val=given.gradient_clip_val
        ),
        checkpoint_dir=None if given.checkpoint_dir is None else Path(given.checkpoint_dir),
        resume=given.resume,
        fabric=make_fabric(given.accelerator, given.devices, given.strategy, given.precision, given.logger),
        callbacks=[*progress_callback(given.enable_progress_bar), *given.callbacks],
        relative_length=usual.relative_length,
    )


def run(model: Fitted, request: TrainRequest) -> None:
    """Train a model as requested; its weights, split and history are those of the run.

    Raises
    ------
    OptionError
        If something asked for cannot be.
    NonFiniteError
        If training cannot be kept finite.
    """
    module, dataset, first_epoch = model.module, model.dataset, len(model.epochs)
    check_learns(module)
    split = settle_split(model.split, request.split, dataset.n_cells, request.seed)
    if request.early_stopping and not len(split.validation):
        message = "early_stopping needs held-out cells, and this split has none. Lower train_size."
        raise OptionError(message)
    loader = DatasetLoader(dataset, split, request.batch_size, request.seed)
    max_epochs = request.max_epochs
    if max_epochs is None:
        max_epochs = default_max_epochs(dataset.n_cells, loader.n_steps(request.fabric.world_size), request.plan)
        if request.plan.schedule == "one-cycle":
            max_epochs = math.ceil(request.relative_length * max_epochs)
    if request.checkpoint_dir is not None:
        _make_folder(request.checkpoint_dir)
    config = LoopConfig(
        max_epochs=max_epochs,
        seed=request.seed,
        plan=request.plan,
        first_epoch=first_epoch,
        early_stopping=request.early_stopping,
        check_val_every_n_epoch=request.check_val_every_n_epoch,
        checkpoint_dir=request.checkpoint_dir,
        resume=request.resume,
        origin=_origin(model, dataset, split, request.batch_size) if request.checkpoint_dir else {},
        adversary=request.adversary,
        moving_rows={} if model.mapped is None else model.mapped.hold(module),
    )
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    probe = split.train[:: max(1, len(split.train) // _PROBED)]
    bound_before = _bound(module, dataset, probe)
    try:
        result = launch(request.fabric, module, loader, config, request.callbacks, dataset)
        module.load_state_dict(result.weights)
        _check_convergence(bound_before, _bound(module, dataset, probe), request.plan.peak_lr)
    except BaseException:
        # The weights and the history of a model belong together, whatever ended the run.
        module.float().load_state_dict(before)
        module.eval()
        raise
    if not model.restored and model.mapped is None:  # else other cells may have had what these lack
        fill_levels_without_data(module, dataset, split.train)
    module.float().eval()
    model.split = split
    model.epochs.extend(result.rows)
    model.fingerprint = None  # of the data trained on; computed when it is needed, as it reads them all
    model.is_trained = True
    if result.interrupted:
        message = (
            f"Training was interrupted after {len(result.rows)} of {max_epochs} epochs. The model keeps what it "
            "learned in them, and train() goes on from there. A run with checkpoint_dir=... can be resumed instead, to "
            "the end that it would have had."
        )
        warn(message, TrainingWarning)


def _bound(module: CountModel, dataset: Dataset, rows: np.ndarray) -> float:
    """Mean evidence lower bound of some cells in nats."""
    module.float().eval()
    cells = query.Cells(dataset, rows, len(rows), next(module.parameters()).device)
    return float(query.elbo(module, cells, seed=seeding.DEFAULT_SEED).mean())


def _check_convergence(before: float, after: float, rate: float) -> None:
    """Raise or warn where training has made a model worse.

    Raises
    ------
    NonFiniteError
        If it gives no finite bound any more.
    """
    advice = (
        f"The learning rate is too high: train a new model with a lower one, plan_kwargs={{'lr': {rate / 10:.1g}}}."
    )
    if not math.isfinite(after):
        message = f"Training diverged: the evidence lower bound of the cells is {after}. {advice}"
        raise NonFiniteError(message)
    if after < before - _WORSE * abs(before):
        message = (
            f"Training diverged: the evidence lower bound is {after:,.1f} nats per cell, and was {before:,.1f} before. "
            f"{advice}"
        )
        warn(message, TrainingWarning)


def fill_levels_without_data(model: CountModel, dataset: Dataset, rows: np.ndarray) -> None:
    """Where no cell of a batch was measured, take what the batch does from the mean of the other batches.

    So with every covariate, modality and feature. It would be as random as before training, and what is predicted there
    with it.

    Parameters
    ----------
    model
        Just trained from scratch.
    dataset, rows
        The cells that it was trained on.
    """
    registry = dataset.registry
    for name in (*dataset.patterns, *dataset.present):
        tables = model.level_tables(name)
        for factor in registry.factors(range(len(registry.columns))) if tables else ():
            lacking = dataset.lacking(name, factor, rows)
            for table in tables:
                levels.fill_levels_without_data(table, factor, lacking.to(next(table.part.parameters()).device))


def _origin(model: Fitted, dataset: Dataset, split: Split, batch_size: int) -> dict[str, Any]:
    """What identifies a model and the data of a run, and how these are cut into minibatches, in words of messages."""
    parts = [np.ascontiguousarray(part, dtype="<i8").tobytes() for part in (split.train, split.validation)]
    size_factor = b"" if dataset.size_factor is None else _bytes(dataset.size_factor, "<f8")
    roles = json.dumps(dataset.registry.covariates.to_json(), sort_keys=True).encode()
    covariates = (_bytes(dataset.codes, "<i8"), _bytes(dataset.continuous, "<f8"), size_factor, roles)
    mapped = {} if model.mapped is None else {"what is held of the reference": model.mapped.to_json()}
    return {
        "the counts": hashed(dataset.fingerprint().encode()),
        "the covariates": hashed(*covariates),
        "the split into training and held-out cells": hashed(*parts),
        "batches of": batch_size,
        "the seed of the model": model.seed,
        **mapped,
        **{f"the option {name}": _comparable(value) for name, value in model.arguments.items()},
    }


def _bytes(values: torch.Tensor, dtype: str) -> bytes:
    return np.ascontiguousarray(values.numpy(), dtype=dtype).tobytes()


def _comparable(value: Any) -> Any:
    """The value of an option as JSON, or what stands for it if it is long."""
    text = json.dumps(value, sort_keys=True, default=lambda array: np.asarray(array).tolist())
    return json.loads(text) if len(text) <= _LONG else hashed(text.encode())


def make_fabric(accelerator: str, devices: Any, strategy: str, precision: str, logger: Any) -> Fabric:
    """Choose where to run.

    ``"auto"`` takes an NVIDIA GPU if there is one, else the CPU: one device, in this process.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cpu" and strategy in ("ddp_fork", "ddp_notebook"):
        message = (
            f"strategy={strategy!r} forks this process, which hangs once PyTorch's CPU threads have started. "
            "Use one device, or strategy='ddp_spawn' in a script guarded by if __name__ == '__main__'."
        )
        raise OptionError(message)
    loggers: list[Any] = [] if logger is None else list(logger) if isinstance(logger, (list, tuple)) else [logger]
    for item in loggers:
        if not hasattr(item, "log_metrics"):
            message = f"logger must be a Lightning Fabric logger (CSVLogger, say), or several; got {item!r}."
            raise OptionError(message)
    alone = devices in ("auto", 1) and strategy == "auto"
    try:
        return Fabric(
            # One device is one process, whatever a cluster's variables say of the job that it runs in.
            plugins=[LightningEnvironment()] if alone else None,
            accelerator=accelerator,
            devices=1 if devices == "auto" else devices,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
            loggers=loggers,
        )
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        message = (
            f"There is no running with accelerator={accelerator!r}, devices={devices!r}, strategy={strategy!r}, "
            f"precision={precision!r} here: {error}"
        )
        raise OptionError(message) from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"checkpoint_dir must be a folder; {path} cannot be made one ({error.strerror})."
        raise OptionError(message) from error


def launch(
    fabric: Fabric,
    model: CountModel,
    loader: BatchLoader,
    config: LoopConfig,
    callbacks: Sequence[Callback],
    data: Dataset,
) -> FitResult:
    """Launch the loop, and name what went wrong.

    Raises
    ------
    NonFiniteError
        If training cannot be kept finite.
    """
    try:
        if fabric.strategy.launcher is None:
            return fit(fabric, model, loader, config, callbacks)
        # A partial, because Fabric would take arguments apart to look for modules.
        work = partial(_fit_in_process, model=model, loader=loader, config=config, callbacks=callbacks)
        weights, rows, stopped_early = fabric.launch(work)
        return FitResult({name: torch.as_tensor(array) for name, array in weights.items()}, rows, stopped_early)
    except NonFiniteStep as error:
        raise NonFiniteError(_explain(error, data)) from None


def _fit_in_process(
    fabric: Fabric, model: CountModel, loader: BatchLoader, config: LoopConfig, callbacks: Sequence[Callback]
) -> tuple[dict[str, np.ndarray], list[Row], bool]:
    # A model sent to a process lies in memory that all of them share; each needs weights of its own to step on.
    result = fit(fabric, copy.deepcopy(model), loader, config, callbacks)
    # Tensors sent back would live in shared memory that goes with the process; arrays are copied.
    return {name: tensor.numpy() for name, tensor in result.weights.items()}, result.rows, result.stopped_early


def _explain(error: NonFiniteStep, data: Dataset) -> str:
    at = error.at
    where = []
    if at.gene is not None and at.modality is not None:
        where.append(f"gene {data.registry.modality(at.modality).feature_names[at.gene]!r}")
    if error.row is not None:
        where.append(f"cell {str(data.obs_names[error.row])!r}")
    if at.batch_code is not None and data.registry.columns[0].key is not None:
        where.append(f"batch {data.registry.columns[0].categories[at.batch_code]!r}")
    place = f" ({', '.join(where)})" if where else ""
    return (
        f"Training stopped in epoch {error.epoch}: {at.quantity} is not finite{place}, and halving the learning rate "
        "repeatedly did not help. Look at the counts there; if they are right, train with a lower plan_kwargs={'lr': "
        "...} or with plan_kwargs={'gradient_clip_val': 10}."
    )


def check_learns(model: CountModel) -> None:
    """Refuse to train a model of which everything is held.

    Raises
    ------
    OptionError
        If no parameter may move.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        message = (
            "There is nothing to train: the reference knows every category of these cells, and all else is held. The "
            "read-outs can be used as they are; to adapt more, pass freeze_...=False to load_query_data."
        )
        raise OptionError(message)
