"""What the optimiser sees of parameters that are stored as a transpose."""

from __future__ import annotations

import torch
from torch import nn

from countvi.train.layout import InOnePiece


def test_a_step_on_the_transpose_is_a_step_on_the_parameter() -> None:
    torch_generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(3, 5, generator=torch_generator), torch.randn(3, 5, generator=torch_generator)
    plain = nn.Parameter(start.clone())
    stored = nn.Parameter(start.t().contiguous().t())
    seen = InOnePiece([stored])
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
    seen = InOnePiece([own, turned])
    assert seen.seen[0] is own
    turned.grad = torch.ones(3, 2)
    seen.share_gradients()
    assert seen.seen[1].grad is not None
    turned.grad = None
    seen.share_gradients()
    assert seen.seen[1].grad is None
