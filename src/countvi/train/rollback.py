"""Rollback after a step that gave NaN or infinity, and the search for where these come from.

The loop keeps a snapshot of the last state known to be good. A bad step restores it and halves the learning rate; when
that was tried often enough, :func:`first_non_finite` looks for the quantity in which NaN or infinity appears first.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from countvi.batch import Batch, CountBlock
from countvi.likelihoods.base import CountLikelihood
from countvi.models.count_model import CountModel

MAX_ROLLBACKS = 8
"""Halvings of the learning rate before the run is given up: a factor of 256."""
SNAPSHOT_EVERY = 200
"""Steps between snapshots."""


class NonFiniteStep(Exception):
    """Raised by the loop when rollbacks are used up."""

    def __init__(self, at: NonFiniteAt, epoch: int, row: int | None) -> None:
        super().__init__(at, epoch, row)
        self.at = at
        self.epoch = epoch
        self.row = row


@dataclass(frozen=True)
class NonFiniteAt:
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
def first_non_finite(model: CountModel, batch: Batch, generator: torch.Generator) -> NonFiniteAt:
    """Walk through the model in sampling order and return the first quantity that is not finite."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return NonFiniteAt(quantity=f"the parameter {name}")
    for item in _quantities(model, batch, generator):
        bad = ~torch.isfinite(item.values)
        # An empty cell's observed log library is minus infinity by definition; it gives rate zero, not NaN.
        if item.name.startswith("log_library"):
            bad = torch.isnan(item.values) | torch.isposinf(item.values)
        if not bad.any():
            continue
        position = dict(zip(item.axes, bad.nonzero()[0].tolist(), strict=True))
        cell, gene = position.get("cell"), position.get("gene")
        if item.likelihood is not None and cell is not None and item.modality is not None:
            gene = _gene_beyond(item.likelihood, batch.counts[item.modality], cell)
        code = None
        if cell is not None and batch.design.codes.shape[1]:
            code = int(batch.design.codes[cell, 0])
        return NonFiniteAt(quantity=item.name, cell=cell, gene=gene, modality=item.modality, batch_code=code)
    return NonFiniteAt(quantity="the gradient of the loss")


class _Quantity(NamedTuple):
    """Something that must be finite. Its axes are named, for there may be as many cells as genes."""

    name: str
    axes: tuple[str, ...]
    values: Tensor
    modality: str | None = None
    likelihood: CountLikelihood | None = None


def _quantities(model: CountModel, batch: Batch, generator: torch.Generator) -> Iterator[_Quantity]:
    for modality, block in batch.counts.items():
        yield _Quantity("the counts", ("cell", "gene"), block.to_dense(), modality)
    yield _Quantity("the continuous covariates", ("cell", "covariate"), batch.design.continuous)
    q = model.guide(batch)
    latents = model.sample(q, generator)
    for letter, distribution in zip(q._fields, q, strict=True):
        for part in ("loc", "scale"):
            if hasattr(distribution, part):
                yield _of_cells(f"the posterior {part} of {letter}", getattr(distribution, part))
    for letter, value in zip(latents._fields, latents, strict=True):
        yield _of_cells(letter, value)
    for modality, likelihood in model.generate(latents, batch.design).items():
        for name, value in likelihood.decoded().items():
            yield _Quantity(name, ("cell", "gene")[-value.dim() :], value, modality)
        log_prob = likelihood.log_prob(batch.counts[modality])
        yield _Quantity("the log-likelihood", ("cell",), log_prob, modality, likelihood)


def _of_cells(name: str, values: Tensor) -> _Quantity:
    return _Quantity(name, ("cell", *["dimension"] * (values.dim() - 1)), values)


def _gene_beyond(likelihood: CountLikelihood, counts: CountBlock, cell: int) -> int | None:
    """The first gene whose count takes the log-likelihood of a cell out of range; ``None`` if it is out without any."""
    first, end = int(counts.offsets[cell]), int(counts.offsets[cell + 1])

    def in_range(n_kept: int) -> bool:
        values = counts.values.clone()
        values[first + n_kept : end] = 0.0
        return bool(torch.isfinite(likelihood.log_prob(dataclasses.replace(counts, values=values))[cell]))

    if not in_range(0):
        return None
    low, high = 0, end - first
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if in_range(middle) else (low, middle)
    return int(counts.columns[first + low])
