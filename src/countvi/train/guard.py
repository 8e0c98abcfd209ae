"""What happens when a step produces NaN or infinity.

The loop keeps a snapshot of the last state known to be good. A bad step restores it and halves the learning rate; when
that has been tried often enough, :func:`first_offender` looks for the quantity in which NaN or infinity appears first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from countvi.batch import Batch
from countvi.models._base import CountModel

MAX_ROLLBACKS = 8
"""Halvings of the learning rate before the run is given up: a factor of 256."""
SNAPSHOT_EVERY = 200
"""Steps between snapshots."""


class NonFiniteStep(Exception):
    """Raised by the loop when rollbacks are used up."""

    def __init__(self, offender: Offender, epoch: int, row: int | None) -> None:
        super().__init__(offender, epoch, row)
        self.offender = offender
        self.epoch = epoch
        self.row = row


@dataclass(frozen=True)
class Offender:
    """Where NaN or infinity appears first.

    Parameters
    ----------
    quantity
        Its name, as in the model.
    cell
        Position in the minibatch, if it belongs to a cell.
    gene
        Column of the modality, if it belongs to a gene.
    modality
        Name of the modality of the gene.
    batch_code
        Batch of the cell.
    """

    quantity: str
    cell: int | None = None
    gene: int | None = None
    modality: str | None = None
    batch_code: int | None = None


class Snapshot:
    """A copy of a model and its optimiser, to go back to."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._optimizer = copy.deepcopy(optimizer.state_dict())

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Go back."""
        model.load_state_dict(self._model)
        optimizer.load_state_dict(copy.deepcopy(self._optimizer))


def all_finite(model: nn.Module) -> bool:
    """Whether every parameter and buffer is finite."""
    floating = (tensor for tensor in model.state_dict().values() if tensor.is_floating_point())
    return all(bool(torch.isfinite(tensor).all()) for tensor in floating)


@torch.no_grad()
def first_offender(model: CountModel, batch: Batch, generator: torch.Generator) -> Offender:
    """Walk through the model in sampling order and return the first quantity that is not finite."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return Offender(quantity=f"the parameter {name}")
    for quantity, modality, values in _quantities(model, batch, generator):
        bad = ~torch.isfinite(values)
        # An empty cell's observed log library is minus infinity by definition; it gives rate zero, not NaN.
        if quantity.startswith("log_library"):
            bad = torch.isnan(values) | torch.isposinf(values)
        if not bad.any():
            continue
        position = bad.nonzero()[0].tolist()
        cell = position[0] if values.dim() >= 1 and values.shape[0] == batch.n_cells else None
        gene = position[-1] if modality is not None and values.shape[-1] == batch.counts[modality].n_features else None
        code = None
        if cell is not None and batch.design.codes.shape[1]:
            code = int(batch.design.codes[cell, 0])
        return Offender(quantity=quantity, cell=cell, gene=gene, modality=modality, batch_code=code)
    return Offender(quantity="the gradient of the loss")


def _quantities(
    model: CountModel, batch: Batch, generator: torch.Generator
) -> Iterator[tuple[str, str | None, Tensor]]:
    for modality, block in batch.counts.items():
        yield "the counts", modality, block.to_dense()
    yield "the continuous covariates", None, batch.design.continuous
    q = model.guide(batch)
    latents = model.sample(q, generator)
    for letter, distribution in zip(q._fields, q, strict=True):
        for part in ("loc", "scale"):
            if hasattr(distribution, part):
                yield f"the posterior {part} of {letter}", None, getattr(distribution, part)
    for letter, value in zip(latents._fields, latents, strict=True):
        yield letter, None, value
    for modality, likelihood in model.generate(latents, batch.design).items():
        yield "the decoder's output (logits of rho)", modality, likelihood.rate.logits
        parameters: list[tuple[str, Any]] = [("theta", likelihood.theta), ("pi", likelihood.dropout_probability)]
        for letter, value in parameters:
            if value is not None:
                yield letter, modality, value
        yield "the log-likelihood", modality, likelihood.log_prob(batch.counts[modality])
