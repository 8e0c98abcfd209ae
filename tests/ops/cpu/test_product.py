"""Products of matrices that oneDNN takes, and of those that it must not be given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from countvi.ops.cpu import product as module

HIDDEN, WEIGHT = torch.rand(128, 130), torch.rand(130, 900).t()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What oneDNN is given."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    given: list[torch.Tensor] = []
    plain = module._product

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        given.extend([x, weight])
        return plain(x, weight, bias)

    monkeypatch.setattr(module, "_product", noted)
    return given


@pytest.mark.parametrize(
    ("x", "weight", "whole"),
    [
        (HIDDEN, WEIGHT, True),
        (HIDDEN, WEIGHT.contiguous(), True),
        (HIDDEN.t().contiguous().t(), WEIGHT, True),
        (HIDDEN, WEIGHT[100:800], False),  # some genes of a weight that is stored by input
        (HIDDEN[:, 1:], WEIGHT[:, 1:].contiguous(), False),
        (HIDDEN[:1].expand(128, -1), WEIGHT, False),
    ],
)
def test_parts_of_larger_matrices_do_not_go_to_onednn(
    taken: list[torch.Tensor], x: torch.Tensor, weight: torch.Tensor, whole: bool
) -> None:
    # It has no fast way for them: a product that takes milliseconds takes seconds.
    got = module.product(x, weight, None)
    np.testing.assert_allclose(got.double(), x.double() @ weight.double().t(), rtol=1e-5)
    assert bool(taken) == whole


def test_slopes_of_a_part_do_not_go_to_onednn_either(taken: list[torch.Tensor]) -> None:
    x, weight = HIDDEN.clone().requires_grad_(), WEIGHT.detach().requires_grad_()
    out = module.linear(x, weight, torch.zeros(900))
    assert len(taken) == 2
    slope = torch.rand(128, 1_800)[:, ::2]
    got = torch.autograd.grad(out, [x, weight], slope)
    exact = slope.double() @ WEIGHT.double(), slope.double().t() @ HIDDEN.double()
    for ours, theirs in zip(got, exact, strict=True):
        np.testing.assert_allclose(ours.double(), theirs, rtol=1e-5)
    assert len(taken) == 2
