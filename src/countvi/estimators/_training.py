"""Behind ``train``: the split, the device, and errors in the user's words."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from countvi.data import Dataset, Split, make_split, split_from_indices
from countvi.errors import NonFiniteError, OptionError, shorten
from countvi.estimators._feed import DatasetFeed
from countvi.estimators._indices import resolve_rows
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
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class SplitRequest:
    """Which cells a user wants held out.

    Parameters
    ----------
    train_size, validation_size
        Shares of the cells; ``None`` for 0.9 and for what is left.
    shuffle
        Draw the split at random rather than by position.
    external_indexing
        Rows of the training, validation and test cells, instead of shares.
    """

    train_size: float | None = None
    validation_size: float | None = None
    shuffle: bool = True
    external_indexing: Sequence[np.ndarray] | None = None

    @classmethod
    def from_arguments(
        cls,
        train_size: float | None,
        validation_size: float | None,
        shuffle: bool,
        external_indexing: Sequence[np.ndarray] | None,
        datasplitter_kwargs: Mapping[str, Any] | None,
    ) -> SplitRequest:
        """Build from the arguments of ``train``.

        Raises
        ------
        OptionError
            If ``datasplitter_kwargs`` holds anything but ``external_indexing``.
        """
        extra = dict(datasplitter_kwargs or {})
        external_indexing = extra.pop("external_indexing", external_indexing)
        if extra:
            message = f"datasplitter_kwargs takes 'external_indexing' only; got {shorten(list(extra))}."
            raise OptionError(message)
        return cls(train_size, validation_size, shuffle, external_indexing)

    @property
    def unspecific(self) -> bool:
        """Whether any split would do."""
        return self == SplitRequest()

    def make(self, n_cells: int, seed: int) -> Split:
        """Draw the split."""
        if self.external_indexing is not None:
            n_parts = len(self.external_indexing)
            if n_parts not in (1, 2, 3):
                message = (
                    "external_indexing takes [train], [train, validation] or [train, validation, test]; got "
                    f"{n_parts} parts."
                )
                raise OptionError(message)
            parts = [resolve_rows(part, pd.RangeIndex(n_cells)) for part in self.external_indexing]
            empty = np.empty(0, dtype=np.int64)
            train, validation, test = (*parts, empty, empty)[:3]
            return split_from_indices(n_cells, train, validation, test)
        return make_split(
            n_cells,
            train_size=0.9 if self.train_size is None else self.train_size,
            validation_size=self.validation_size,
            shuffle=self.shuffle,
            seed=seed,
        )


def same_split(a: Split, b: Split) -> bool:
    """Whether two splits hold the same cells."""
    pairs = ((a.train, b.train), (a.validation, b.validation), (a.test, b.test))
    return all(np.array_equal(x, y) for x, y in pairs)


def settle_split(current: Split | None, request: SplitRequest, n_cells: int, seed: int) -> Split:
    """The split of this run: drawn on the first, kept ever after.

    Raises
    ------
    OptionError
        If another split is asked for than the model was trained on: its held-out cells would leak into training.
    """
    if current is None:
        return request.make(n_cells, seed)
    if request.unspecific or same_split(current, request.make(n_cells, seed)):
        return current
    message = (
        f"This model was trained on {len(current.train):,} cells with {len(current.validation):,} held out, and "
        "the split asked for now "
        "is another one: cells held out before would be trained on. Leave train_size, validation_size and "
        "external_indexing out, or "
        "start from a new model."
    )
    raise OptionError(message)


def holds_out(train_size: float | None, arguments: Mapping[str, Any]) -> bool:
    """Whether arguments of ``train`` ask for a split, in models that by default train on everything."""
    asking = ("validation_size", "external_indexing", "datasplitter_kwargs", "early_stopping")
    return (train_size is not None and train_size < 1) or any(arguments.get(name) for name in asking)


@dataclass(frozen=True)
class TrainRequest:
    """What a user asked ``train`` for: its arguments, what is trained beside the model, and the default's length."""

    max_epochs: int | None
    batch_size: int
    split: SplitRequest
    early_stopping: EarlyStopping | None
    check_val_every_n_epoch: int
    seed: int
    plan: TrainingPlan
    checkpoint_dir: Path | None
    resume: bool
    adversary: BatchAdversary | None = None
    moving_rows: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)
    relative_length: float = 1.0
    """Epochs of a run that names none, as a multiple of those that the number of cells asks for."""


def train(
    fabric: Fabric,
    model: CountModel,
    dataset: Dataset,
    request: TrainRequest,
    callbacks: Sequence[Callback],
    *,
    split: Split | None,
    first_epoch: int,
) -> tuple[Split, FitResult]:
    """Check a request and run it.

    Parameters
    ----------
    split
        The split of earlier runs, if there were any.
    first_epoch
        How many epochs the model was trained for before.

    Raises
    ------
    OptionError
        If something asked for cannot be.
    """
    check_learns(model)
    check_size("batch_size", request.batch_size)
    check_size("check_val_every_n_epoch", request.check_val_every_n_epoch)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            message = (
                f"callbacks must be countvi.train.Callback objects; got {callback!r}. Callbacks of Lightning do not "
                "fit."
            )
            raise OptionError(message)
    if request.resume and request.checkpoint_dir is None:
        message = "resume=True needs checkpoint_dir, the folder of the run to continue."
        raise OptionError(message)
    split = settle_split(split, request.split, dataset.n_cells, request.seed)
    if request.early_stopping and not len(split.validation):
        message = "early_stopping needs held-out cells, and this split has none. Lower train_size."
        raise OptionError(message)
    feed = DatasetFeed(dataset, split, request.batch_size, request.seed)
    max_epochs = request.max_epochs
    if max_epochs is None:
        max_epochs = default_max_epochs(dataset.n_cells, feed.n_steps(fabric.world_size), request.plan)
        if request.plan.schedule == "one-cycle":
            max_epochs = math.ceil(request.relative_length * max_epochs)
    check_size("max_epochs", max_epochs)
    if request.checkpoint_dir is not None:
        _make_folder(request.checkpoint_dir)
    config = LoopConfig(
        max_epochs=int(max_epochs),
        seed=request.seed,
        plan=request.plan,
        first_epoch=first_epoch,
        early_stopping=request.early_stopping,
        check_val_every_n_epoch=int(request.check_val_every_n_epoch),
        checkpoint_dir=request.checkpoint_dir,
        resume=request.resume,
        data=_cut(dataset, split, request.batch_size) if request.checkpoint_dir else "",
        adversary=request.adversary,
        moving_rows=request.moving_rows,
    )
    return split, run(fabric, model, feed, config, callbacks, dataset)


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


def _cut(dataset: Dataset, split: Split, batch_size: int) -> str:
    """What identifies the data of a run, which of them it trains on, and how they are cut into minibatches."""
    rows = hashlib.sha256()
    for part in (split.train, split.validation):
        rows.update(np.ascontiguousarray(part, dtype="<i8").tobytes() + b";")
    return f"{dataset.fingerprint()}, batches of {batch_size}, split {rows.hexdigest()[:8]}"


def make_fabric(accelerator: str, devices: Any, strategy: str, precision: str, logger: Any) -> Fabric:
    """Choose where to run.

    ``"auto"`` takes an NVIDIA GPU if there is one, else the CPU: one device, in this process.
    """
    from lightning_fabric import Fabric

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
    try:
        return Fabric(
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


def run(
    fabric: Fabric,
    model: CountModel,
    feed: BatchLoader,
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
            return fit(fabric, model, feed, config, callbacks)
        # A partial, because Fabric would take arguments apart to look for modules.
        work = partial(_fit_in_process, model=model, feed=feed, config=config, callbacks=callbacks)
        weights, rows, stopped_early = fabric.launch(work)
        return FitResult({name: torch.as_tensor(array) for name, array in weights.items()}, rows, stopped_early)
    except NonFiniteStep as error:
        raise NonFiniteError(_explain(error, data)) from None


def _fit_in_process(
    fabric: Fabric, model: CountModel, feed: BatchLoader, config: LoopConfig, callbacks: Sequence[Callback]
) -> tuple[dict[str, np.ndarray], list[Row], bool]:
    # A model sent to a process lies in memory that all of them share; each needs weights of its own to step on.
    result = fit(fabric, copy.deepcopy(model), feed, config, callbacks)
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
        f"Training stopped in epoch {error.epoch}: {at.quantity} is not finite{place}, and halving the "
        "learning rate "
        "repeatedly did not help. Look at the counts there; if they are right, train with a lower "
        f"plan_kwargs={{'lr': ...}} or with "
        "plan_kwargs={'gradient_clip_val': 10}."
    )


def place(module: nn.Module, device: str | torch.device) -> None:
    """Move a module; behind :meth:`countvi.SCVI.to_device`."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        module.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        message = f"The model cannot be moved to device {str(device)!r}: {str(error).splitlines()[0]}"
        raise OptionError(message) from error


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


def check_size(name: str, value: Any, *, minimum: int = 1) -> None:
    """Refuse what is not a whole number of at least ``minimum``.

    Raises
    ------
    OptionError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        fix = f" Did you mean {round(value)}?" if isinstance(value, float) and math.isfinite(value) else ""
        message = f"{name} must be a whole number of at least {minimum}; got {value!r}.{fix}"
        raise OptionError(message)
