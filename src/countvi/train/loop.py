"""The training loop.

One loop for every model, on Lightning Fabric, which places tensors, wraps the step for mixed precision and several
processes, and is otherwise kept out of the way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from countvi import seeding
from countvi.batch import Batch
from countvi.errors import TrainingWarning, choose, warn
from countvi.models.count_model import CountModel
from countvi.models.objective import Objective
from countvi.train.callbacks import Callback, Progress
from countvi.train.checkpoint import RunState, read_checkpoint, signature, write_checkpoint
from countvi.train.config import LoopConfig
from countvi.train.cuda_graph import CudaGraphSteps, EpochSchedule, StepParts
from countvi.train.history import EpochSums, Row, row_of, sums_of
from countvi.train.layout import ContiguousParameters
from countvi.train.loader import BatchLoader
from countvi.train.loss import LossModule, StepInput
from countvi.train.rollback import MAX_ROLLBACKS, SNAPSHOT_EVERY, NonFiniteStep, Snapshot, all_finite, first_non_finite
from countvi.train.schedules import Plateau, Stopper
from countvi.train.update import FusedUpdate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
RESIDENT_SHARE = 0.5
"""Share of a GPU's free memory that the cells of a run may take."""
# Streams of the seed: noise of the latent variables and dropout in training, noise in validation.
_NOISE, _DROPOUT, _VALIDATION = 1, 2, 3


@dataclass(frozen=True)
class FitResult:
    """What a run leaves behind.

    Parameters
    ----------
    weights
        The model's state, on the CPU.
    rows
        The history of this run.
    stopped_early
        Whether it ended before ``max_epochs``.
    interrupted
        Whether it was stopped by Ctrl-C, after its last whole epoch.
    """

    weights: dict[str, Tensor]
    rows: list[Row]
    stopped_early: bool
    interrupted: bool = False


def fit(
    fabric: Fabric,
    model: CountModel,
    loader: BatchLoader,
    config: LoopConfig,
    callbacks: Sequence[Callback],
) -> FitResult:
    """Train a model.

    Parameters
    ----------
    fabric
        Launched; says where and in which precision.
    model
        Trained in place (and, in other processes, returned through the result).
    loader
        Minibatches.
    config
        Epochs, schedules, stopping, checkpoints.
    callbacks
        Called in the first process only.

    Raises
    ------
    NonFiniteStep
        If steps stay non-finite however small the learning rate.
    """
    return _Run(fabric, model, loader, config, callbacks if fabric.is_global_zero else ()).run()


class _Run:
    """State of one call of :func:`fit`."""

    def __init__(
        self,
        fabric: Fabric,
        model: CountModel,
        loader: BatchLoader,
        config: LoopConfig,
        callbacks: Sequence[Callback],
    ) -> None:
        self.fabric, self.loader, self.config, self.callbacks = fabric, loader, config, callbacks
        self.adversary = config.adversary
        self.checkpoint_failed = False
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.dtype = torch.float64 if fabric._precision.precision == "64-true" else torch.float32
        self.model = model.to(device=fabric.device, dtype=self.dtype)
        self.plan = config.plan
        moving = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
        self.parameters = ContiguousParameters(moving, config.moving_rows)
        self.optimizer = _OPTIMIZERS[self.plan.optimizer](
            self.parameters.seen,
            lr=self.plan.peak_lr,
            eps=self.plan.eps,
            weight_decay=self.plan.weight_decay,
            fused=fabric.device.type in ("cpu", "cuda"),
            capturable=fabric.device.type == "cuda",
        )
        if self.adversary is not None:
            self.adversary.begin(fabric.device, self.dtype)
        objective = Objective(n_cells=loader.n_train, annealed=model.annealed)
        self.loss_module, self.update = self._wrap(LossModule(model, objective, self.adversary))
        self.n_steps = loader.n_steps(self.world)
        total = self.n_steps * config.max_epochs
        self.learning_rate = self.plan.learning_rate(total)
        self.kl_weight = self.plan.kl_weight(total, self.n_steps, restarted=config.first_epoch > 0)
        self.state = self._start()
        self.graph_steps = self._record()

    def _record(self) -> CudaGraphSteps | None:
        """Prepare steps on a GPU that nothing is read back from, where all cells fit there; else ``None``."""
        device = self.fabric.device
        if device.type != "cuda" or not isinstance(self.loss_module, LossModule) or self.adversary:
            return None
        resident = self.loader.resident(device, self.dtype, RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0])
        if resident is None:
            return None
        parts = StepParts(self.loss_module, self.parameters, self.optimizer, self.plan.gradient_clip_val)
        return CudaGraphSteps(parts, resident, device, record=True)

    def _wrap(self, module: LossModule) -> tuple[nn.Module, Callable[[], object]]:
        """Return what gives the loss, and what moves the parameters."""
        # On one device in full precision Fabric's wrapper does nothing but cost about 0.2 ms per step.
        if self.world == 1 and self.fabric._precision.precision in ("32-true", "64-true"):
            return module, FusedUpdate(self.optimizer) if self.fabric.device.type == "cpu" else self.optimizer.step
        wrapped, optimizer = self.fabric.setup(module, self.optimizer)
        self.optimizer = optimizer.optimizer
        return wrapped, optimizer.step

    def _start(self) -> RunState:
        fresh = RunState(
            plateau=Plateau(self.plan.lr_factor, self.plan.lr_patience, self.plan.lr_threshold)
            if self.plan.reduce_lr_on_plateau
            else None,
            stopper=Stopper(self.config.early_stopping.patience, self.config.early_stopping.min_delta)
            if self.config.early_stopping
            else None,
        )
        if self.config.checkpoint_dir is None or not self.config.resume:
            return fresh
        found = read_checkpoint(self.config.checkpoint_dir, self._identity(), self.model, self.optimizer)
        if found is not None and self.adversary is not None:
            self.adversary.resume(found.adversary)
        return found or fresh

    def _identity(self) -> dict[str, Any]:
        return {
            **self.config.identity(),
            "precision": self.fabric._precision.precision,
            "processes": self.world,
            "training cells": self.loader.n_train,
            "held-out cells": self.loader.n_validation,
            "model": signature(self.model),
        }

    @torch.enable_grad()  # training works inside a caller's no_grad too
    def run(self) -> FitResult:
        progress = Progress(model=self.model, max_epochs=self.config.max_epochs, epochs_done=self.state.epochs_done)
        self._warn_about_warmup()
        self._call("on_train_start", progress)
        stop = self.state.stopper is not None and self.state.stopper.exhausted
        self.before_epoch = (len(self.state.rows), Snapshot(self.model, self.optimizer))
        try:
            while self.state.epochs_done < self.config.max_epochs and not stop:
                progress.epoch = self.config.first_epoch + self.state.epochs_done
                row = self.epoch(progress.epoch)
                stop = self.record_epoch(row)
                progress.row, progress.epochs_done = row, self.state.epochs_done
                self._call("on_epoch_end", progress)
                self.fabric.log_dict(row, step=progress.epoch)
                stop = stop or bool(self.fabric.broadcast(progress.stop))
                self._write_checkpoint()
        except KeyboardInterrupt:
            # Several processes are interrupted one by one, and would wait for each other.
            if self.world > 1 or not self.state.rows:
                raise
            n_rows, snapshot = self.before_epoch
            if n_rows == len(self.state.rows):  # in the middle of an epoch
                snapshot.restore(self.model, self.optimizer)
            progress.interrupted = True
        finally:
            self._call("on_train_end", progress)
            self.model.eval()
        if self.state.best is not None:
            self.model.load_state_dict(self.state.best)
        weights = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        stopped_early = len(self.state.rows) < self.config.max_epochs
        return FitResult(weights, self.state.rows, stopped_early, progress.interrupted)

    def epoch(self, epoch: int) -> Row:
        """One pass over the training cells, and validation if due."""
        started = time.perf_counter()
        config, device = self.config, self.fabric.device
        noise = seeding.generator(config.seed, _NOISE, epoch, self.rank, device=device)
        dropout = seeding.generator(config.seed, _DROPOUT, epoch, self.rank).initial_seed()
        self.loss_module.train()
        # At every epoch, so that a resumed run goes back to where an uninterrupted one would.
        self.snapshot = Snapshot(self.model, self.optimizer)
        self.before_epoch = (len(self.state.rows), self.snapshot)
        sums = self.replay(epoch, noise, dropout)
        if sums is None:
            sums = EpochSums()
            with seeding.layers(dropout, device):
                for rows, batch in self.loader.train(epoch, self.rank, self.world):
                    self.step(batch.to(device, self.dtype), noise, sums, (epoch, rows))
        if not self._all_agree(all_finite(self.model)):
            self.roll_back()
        train = self._means(sums)
        self.state.epochs_done += 1
        due = (
            self.state.epochs_done % config.check_val_every_n_epoch == 0 or self.state.epochs_done == config.max_epochs
        )
        validation = self.validate() if due and self.loader.n_validation else None
        extra = {
            "kl_weight": self.kl_weight(self.state.steps_done - 1),
            "lr": self._rate(self.state.steps_done - 1),
            "n_rollbacks": float(self.state.n_rollbacks),
            "seconds": time.perf_counter() - started,
        }
        return row_of(train, validation, extra)

    def replay(self, epoch: int, noise: torch.Generator, dropout: int) -> EpochSums | None:
        """Take the steps of an epoch without looking at any; ``None`` if that is not done, or one was not finite.

        In which case all is as before, and from then on every step is looked at.
        """
        if self.graph_steps is None:
            return None
        rows = self.loader.order(epoch)
        steps = range(self.state.steps_done, self.state.steps_done + len(rows))
        rates, kl_weights = [self._rate(step) for step in steps], [self.kl_weight(step) for step in steps]
        with seeding.forked(dropout, self.fabric.device):
            sums = self.graph_steps.epoch(EpochSchedule(rows, rates, kl_weights, noise.initial_seed()))
        if math.isfinite(sums.loss):
            self.state.steps_done += len(rows)
            return sums
        self.graph_steps = None
        self.snapshot.restore(self.model, self.optimizer)
        return None

    def step(self, batch: Batch, noise: torch.Generator, sums: EpochSums, where: tuple[int, np.ndarray]) -> None:
        """Descend once, or roll back if the loss is not finite."""
        kl_weight = self.kl_weight(self.state.steps_done)
        loss, terms = self.loss_module(StepInput(batch, noise, kl_weight))
        value = float(loss.detach())
        self.parameters.clear_gradients()
        finite = self._all_agree(math.isfinite(value))
        if not finite:
            hopeless = self._is_last_step() and not self._has_stepped(sums)
            self.roll_back((batch, noise, *where), hopeless=hopeless)
        else:
            # A finite loss need not have seen every parameter: a batch may have no cells here.
            if self.state.steps_done % SNAPSHOT_EVERY == 0 and all_finite(self.model):
                self.snapshot = Snapshot(self.model, self.optimizer)
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(self.state.steps_done)
            if isinstance(self.loss_module, LossModule):
                loss.backward()
            else:
                self.fabric.backward(loss)
            self.parameters.share_gradients()
            if self.plan.gradient_clip_val is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters.seen, self.plan.gradient_clip_val)
            self.update()
            if self.adversary is not None:
                self.adversary.learn()
            sums.add(terms, batch.n_cells, value)
        self.state.steps_done += 1

    def roll_back(
        self, failed: tuple[Batch, torch.Generator, int, np.ndarray] | None = None, *, hopeless: bool = False
    ) -> None:
        """Go back to the last good state and halve the learning rate; give up after a number of times.

        Parameters
        ----------
        failed
            Minibatch, noise, epoch and rows of the step that failed; ``None`` if it is not known which did.
        hopeless
            Give up at once.
        """
        self.state.n_rollbacks += 1
        error = None
        if failed is not None and (hopeless or self.state.n_rollbacks > MAX_ROLLBACKS):
            batch, noise, epoch, rows = failed
            at = first_non_finite(self.model, batch, noise)
            error = NonFiniteStep(at, epoch, None if at.cell is None else int(rows[at.cell]))
        self.snapshot.restore(self.model, self.optimizer)
        if error is not None:
            raise error
        self.state.lr_scale *= 0.5

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean ELBO terms of the held-out cells, with the same noise every time."""
        self.model.eval()
        noise = seeding.generator(self.config.seed, _VALIDATION, self.rank, device=self.fabric.device)
        sums = EpochSums()
        for batch in self.loader.validation(self.rank, self.world):
            elbo = self.model.elbo(batch.to(self.fabric.device, self.dtype), noise)
            sums.add(sums_of(elbo), batch.n_cells)
        return self._means(sums)

    def record_epoch(self, row: Row) -> bool:
        """Record an epoch; return whether to stop early."""
        state = self.state
        self._check_names(row)
        state.rows.append(row)
        metric = row.get(self.plan.lr_scheduler_metric)
        if state.plateau is not None and metric is not None:
            state.plateau.update(metric)
        stopping = self.config.early_stopping
        if state.stopper is None or stopping is None or stopping.monitor not in row:
            return False
        warming_up = self.kl_weight(state.steps_done - 1) < self.plan.max_kl_weight
        if warming_up or state.epochs_done <= stopping.warmup_epochs:
            return False
        if state.stopper.improved(row[stopping.monitor]):
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        return state.stopper.exhausted

    def _is_last_step(self) -> bool:
        return self.state.steps_done == self.n_steps * self.config.max_epochs - 1

    def _has_stepped(self, sums: EpochSums) -> bool:
        return sums.n_cells > 0 or any(math.isfinite(row["train_loss"]) for row in self.state.rows)

    def _rate(self, step: int) -> float:
        rate = self.learning_rate(step) * self.state.lr_scale
        if self.state.plateau is not None:
            rate = max(rate * self.state.plateau.scale, self.plan.lr_min)
        return rate

    def _check_names(self, row: Row) -> None:
        """Refuse to watch a column that there is not; what is held out has columns only where validation was due."""
        watched = {"plan_kwargs['lr_scheduler_metric']": self.plan.lr_scheduler_metric if self.state.plateau else None}
        if self.config.early_stopping is not None:
            watched["early_stopping_monitor"] = self.config.early_stopping.monitor
        validated = self.loader.n_validation == 0 or "elbo_validation" in row
        for name, column in watched.items():
            if column is not None and column not in row and validated:
                choose(name, column, dict.fromkeys(row))

    def _means(self, sums: EpochSums) -> dict[str, float]:
        if self.world > 1:
            # A process may have had no minibatch at all, but all must reduce the same terms in the same order.
            sums.names = self.fabric.broadcast(sums.names)
            nothing = torch.zeros(len(sums.names), device=self.fabric.device, dtype=torch.float64)
            sums.totals = self._sum(nothing if sums.totals is None else sums.totals.double())
            cells_and_loss = self._sum(torch.tensor([sums.n_cells, sums.loss], dtype=torch.float64).to(nothing))
            sums.n_cells, sums.loss = int(cells_and_loss[0]), float(cells_and_loss[1])
        return sums.means(self.loader.n_train) if sums.n_cells else {"loss": math.nan, "elbo": math.nan}

    def _all_agree(self, finite: bool) -> bool:
        if self.world == 1:
            return finite
        return bool(self._sum(torch.tensor(float(finite), device=self.fabric.device)) == self.world)

    def _sum(self, value: Tensor) -> Tensor:
        # Reduced in place, so on a copy.
        return cast("Tensor", self.fabric.all_reduce(value.clone(), reduce_op="sum"))

    def _write_checkpoint(self) -> None:
        if self.config.checkpoint_dir is not None and self.fabric.is_global_zero:
            self.state.adversary = {} if self.adversary is None else self.adversary.state()
            folder = self.config.checkpoint_dir
            try:
                write_checkpoint(folder, self._identity(), self.state, self.model, self.optimizer)
            except (OSError, SafetensorError) as error:  # safetensors does not say OSError for a full disk
                self._warn_about_checkpoint(folder, error)

    def _warn_about_checkpoint(self, folder: Path, error: Exception) -> None:
        """Say once that this run could not be resumed; a full disk is no reason to lose it."""
        if self.checkpoint_failed:
            return
        self.checkpoint_failed = True
        message = (
            f"No checkpoint could be written to {folder} after epoch {self.state.epochs_done} ({error}). Training goes "
            "on, and tries again after every epoch; a run that is cut off resumes from the last one written, if any."
        )
        warn(message, TrainingWarning)

    def _call(self, hook: str, progress: Progress) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(progress)

    def _warn_about_warmup(self) -> None:
        total = self.n_steps * self.config.max_epochs
        if self.kl_weight.n_steps > total:
            message = (
                f"The KL warm-up of {self.kl_weight.n_steps:,} steps is longer than this run of {total:,}: the KL "
                f"weight ends at {self.kl_weight(total - 1):.2f}. Leave n_epochs_kl_warmup and n_steps_kl_warmup out "
                f"to warm up over the first {self.plan.kl_warmup_fraction:.0%} of the run."
            )
            warn(message, TrainingWarning)
