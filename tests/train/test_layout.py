"""What the optimiser sees of parameters that are stored as a transpose."""

from __future__ import annotations

import torch
from torch import nn

from countvi.train.layout import ContiguousParameters


def test_a_step_on_the_transpose_is_a_step_on_the_parameter() -> None:
    torch_generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(3, 5, generator=torch_generator), torch.randn(3, 5, generator=torch_generator)
    plain = nn.Parameter(start.clone())
    stored = nn.Parameter(start.t().contiguous().t())
    seen = ContiguousParameters([("stored", stored)])
    assert seen.seen[0].is_contiguous()
    optimizers = [torch.optim.Adam(p, lr=0.1, fused=True) for p in ([plain], seen.seen)]
    for scale in (1.0, -2.0, 0.5):
        plain.grad, stored.grad = gradient * scale, (gradient * scale).t().contiguous().t()
        seen.share_gradients()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, stored)
    assert not torch.equal(stored, start)


def test_contiguous_parameters_are_themselves_and_absent_gradients_stay_absent() -> None:
    own, turned = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3).t())
    seen = ContiguousParameters([("own", own), ("turned", turned)])
    assert seen.seen[0] is own
    turned.grad = torch.ones(3, 2)
    seen.share_gradients()
    assert seen.seen[1].grad is not None
    turned.grad = None
    seen.share_gradients()
    assert seen.seen[1].grad is None


def test_rows_that_may_not_move_are_not_seen() -> None:
    """Two runs of rows with weight decay and momentum, beside a plain optimiser of a copy of those rows."""
    torch_generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 3, generator=torch_generator)
    table, copy = nn.Parameter(start.clone()), nn.Parameter(start[[1, 2, 5]].clone())
    seen = ContiguousParameters([("table", table)], {"table": (slice(1, 3), slice(5, 6))})
    options = {"lr": 0.1, "weight_decay": 0.1, "fused": True}
    optimizers = [torch.optim.Adam(p, **options) for p in (seen.seen, [copy])]
    for scale in (1.0, 0.0, -2.0):
        seen.clear_gradients()
        table.grad = scale * torch.randn(7, 3, generator=torch_generator)
        copy.grad = table.grad[[1, 2, 5]].clone()
        seen.share_gradients()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(table[[0, 3, 4, 6]], start[[0, 3, 4, 6]])
    assert torch.equal(table[[1, 2, 5]], copy)
