"""The optimiser's step in one call, beside torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from countvi.train.update import FusedUpdate

SHAPES = ((3, 5), (4,), (), (2, 2))


def pair(kind: type[torch.optim.Adam]) -> tuple[torch.optim.Adam, torch.optim.Adam]:
    values = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(SHAPES)]
    options = {"lr": 0.1, "eps": 0.01, "weight_decay": 1e-3, "fused": True}
    return tuple(kind([nn.Parameter(v.clone()) for v in values], **options) for _ in range(2))  # type: ignore[return-value]


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return optimizer.param_groups[0]["params"]


def gradients(*, without: int | None = None, seeds: range = range(3)) -> Iterator[list[torch.Tensor | None]]:
    for seed in seeds:
        generator = torch.Generator().manual_seed(100 + seed)
        yield [None if i == without else torch.randn(shape, generator=generator) for i, shape in enumerate(SHAPES)]


def descend(optimizers: tuple[torch.optim.Adam, torch.optim.Adam], update: FusedUpdate, **what: object) -> None:
    ours, theirs = optimizers
    for step, values in enumerate(gradients(**what)):  # type: ignore[arg-type]
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            for parameter, value in zip(parameters(optimizer), values, strict=True):
                parameter.grad = None if value is None else value.clone()
        update()
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters(ours), parameters(theirs), strict=True))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_it_is_the_step_of_torch(kind: type[torch.optim.Adam]) -> None:
    optimizers = pair(kind)
    update = FusedUpdate(optimizers[0])
    start = parameters(optimizers[0])[0].detach().clone()
    descend(optimizers, update)
    assert not torch.equal(start, parameters(optimizers[0])[0])


@pytest.mark.parametrize("first", [0, 3])
def test_a_parameter_without_gradient_stays_where_it_is_and_is_not_counted(first: int) -> None:
    optimizers = pair(torch.optim.Adam)
    update = FusedUpdate(optimizers[0])
    descend(optimizers, update, seeds=range(first))
    descend(optimizers, update, without=1, seeds=range(2))
    descend(optimizers, update, seeds=range(2, 4))


def test_it_follows_a_state_that_was_loaded() -> None:
    optimizers = pair(torch.optim.Adam)
    update = FusedUpdate(optimizers[0])
    descend(optimizers, update)
    fresh = pair(torch.optim.Adam)
    for old, new in zip(optimizers, fresh, strict=True):
        new.load_state_dict(old.state_dict())
        for a, b in zip(parameters(new), parameters(old), strict=True):
            a.data.copy_(b)
    descend(fresh, FusedUpdate(fresh[0]))
    saved = fresh[0].state_dict()
    fresh[0].load_state_dict(saved)
    descend(fresh, FusedUpdate(fresh[0]), seeds=range(5, 7))
