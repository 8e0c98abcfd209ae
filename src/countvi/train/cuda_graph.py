"""Training steps as CUDA graphs: recorded once, and replayed by the GPU alone.

A step of a small network is hundreds of small pieces of work, and a GPU does each faster than Python can ask for it.
Recorded, a step is asked for once: which cells it takes, its learning rate and its KL weight lie on the device for a
whole epoch, and nothing is read back before the epoch's end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi.errors import TrainingWarning, warn
from countvi.train.history import EpochSums
from countvi.train.layout import ContiguousParameters
from countvi.train.loss import LossModule, StepInput
from countvi.train.resident import Resident

_WARM_UP = 3
"""Steps taken before recording, in which libraries set up what they cannot while it goes on."""


@dataclass(frozen=True)
class StepParts:
    """What a step works on.

    Parameters
    ----------
    loss_module
        The loss.
    parameters
        What it moves.
    optimizer
        What moves them.
    max_norm
        Longest gradient, ``None`` for any.
    """

    loss_module: LossModule
    parameters: ContiguousParameters
    optimizer: torch.optim.Optimizer
    max_norm: float | None


@dataclass(frozen=True)
class EpochSchedule:
    """The steps of an epoch.

    Parameters
    ----------
    rows
        Cells of each minibatch.
    rates, kl_weights
        Learning rate and KL weight of each step.
    noise
        Seed of the draws of the latent variables.
    """

    rows: Sequence[np.ndarray]
    rates: Sequence[float]
    kl_weights: Sequence[float]
    noise: int


class CudaGraphSteps:
    """Epochs of steps of which nothing is read back.

    Parameters
    ----------
    parts
        What a step works on.
    resident
        The cells, on the device.
    device
        Where.
    record
        Replay the steps from CUDA graphs, one for each size of a minibatch; else take them one by one.
    """

    def __init__(self, parts: StepParts, resident: Resident, device: torch.device, *, record: bool) -> None:
        self._parts, self._resident, self._device, self._record = parts, resident, device, record
        self._noise = torch.Generator(device=device)
        self._taken: Counter[int] = Counter()
        self._replay: dict[int, Callable[[], None]] = {}
        self._pool: Any = None
        self._order: Tensor | None = None

    def epoch(self, schedule: EpochSchedule) -> EpochSums:
        """Take the steps of an epoch; a loss in the sums that is not finite means that one of them was not."""
        self._load(schedule)
        group = self._parts.optimizer.param_groups[0]
        group["lr"] = self._rate
        for rows in schedule.rows:
            self._take(len(rows))
        group["lr"] = float(schedule.rates[-1])
        return EpochSums(
            names=self._names, totals=self._sums.clone(), n_cells=sum(map(len, schedule.rows)), loss=float(self._loss)
        )

    def _load(self, schedule: EpochSchedule) -> None:
        """Bring an epoch to where the recorded steps look for it."""
        order = torch.from_numpy(np.concatenate(schedule.rows).astype(np.int64))
        plan = torch.tensor([schedule.rates, schedule.kl_weights], dtype=torch.float32)
        if self._order is None:
            self._order, self._plan = order.to(self._device), plan.to(self._device)
            self._position, self._step = (torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(2))
            self._rate = torch.zeros((), device=self._device)
            self._loss = torch.zeros((), dtype=torch.float64, device=self._device)
            self._sums = torch.zeros(0, device=self._device)
        self._order.copy_(order)
        self._plan.copy_(plan)
        for counter in (self._position, self._step, self._loss, self._sums):
            counter.zero_()
        self._noise.manual_seed(schedule.noise)

    def _take(self, size: int) -> None:
        if size in self._replay:
            self._replay[size]()
            return
        self._taken[size] += 1
        if self._record and self._taken[size] > _WARM_UP:
            self._replay[size] = self._recorded(size)
            self._replay[size]()
        elif self._record:
            self._aside(size)
        else:
            self._work(size)

    def _aside(self, size: int) -> None:
        """Take a step on a stream of its own, as is done before recording."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._work(size)
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def _recorded(self, size: int) -> Callable[[], None]:
        """Record a step without taking it."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._noise)
        streams = [self._noise, torch.cuda.default_generators[torch.cuda.current_device()]]
        before = [stream.clone_state() for stream in streams]
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._work(size)
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            for stream, state in zip(streams, before, strict=True):  # which a failure leaves as if recording went on
                stream.graphsafe_set_state(state)
            self._record = False
            reason = str(error).strip().splitlines()[0]
            message = f"Steps are taken one by one, as they cannot be recorded as a CUDA graph here: {reason}"
            warn(message, TrainingWarning)
            return lambda: self._work(size)
        self._pool = graph.pool()
        return graph.replay

    def _work(self, size: int) -> None:
        """A step, from the numbers of its cells to the new weights: what is recorded."""
        assert self._order is not None, "an epoch is loaded before its steps"
        parts = self._parts
        at = self._position + torch.arange(size, device=self._device)
        batch = self._resident.batch(self._order.index_select(0, at))
        rate, kl_weight = self._plan.index_select(1, self._step).squeeze(1).unbind()
        step = StepInput(batch, self._noise, kl_weight.to(batch.design.continuous.dtype))
        loss, (names, sums) = parts.loss_module(step)
        parts.parameters.clear_gradients()
        loss.backward()
        parts.parameters.share_gradients()
        if parts.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parts.parameters.seen, parts.max_norm)
        self._rate.copy_(rate)
        parts.optimizer.step()
        if not self._sums.numel():  # the first step of all, which is not recorded
            self._names, self._sums = names, torch.zeros_like(sums, dtype=torch.float64)
        self._sums.add_(sums)
        self._loss.add_(loss.detach(), alpha=size)
        self._position.add_(size)
        self._step.add_(1)
