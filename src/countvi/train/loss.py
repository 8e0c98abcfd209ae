"""The loss of a minibatch as a torch module, and its arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from countvi.batch import Batch
from countvi.models.count_model import CountModel
from countvi.models.objective import Objective
from countvi.train.adversary import BatchAdversary
from countvi.train.history import sums_of


class StepInput:
    """Arguments of a step. Fabric takes collections apart to look for tensors; this object it passes on untouched."""

    def __init__(self, batch: Batch, noise: torch.Generator, kl_weight: float | Tensor) -> None:
        self.batch, self.noise, self.kl_weight = batch, noise, kl_weight


class LossModule(nn.Module):
    """The loss of a minibatch: what Fabric wraps for mixed precision and several processes."""

    def __init__(self, model: CountModel, objective: Objective, adversary: BatchAdversary | None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.adversary = adversary

    def forward(self, step: StepInput) -> tuple[Tensor, tuple[tuple[str, ...], Tensor]]:
        """Return the loss, and sums over cells for the history."""
        elbo = self.model.elbo(step.batch, step.noise)
        loss = self.objective.loss(elbo, step.kl_weight)
        if self.adversary is not None:
            assert isinstance(step.kl_weight, float), "steps with an adversary are not recorded"
            loss = loss + self.adversary.penalty(elbo, step.batch, step.kl_weight)
        return loss, sums_of(elbo)
