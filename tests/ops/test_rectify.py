"""The rectifier with dropout: counts, means and slopes."""

from __future__ import annotations

import math

import pytest
import torch

from countvi import ops
from countvi.seeding import forked

CPU = torch.device("cpu")


def drawn(h: torch.Tensor, dropout: float, seed: int = 0) -> torch.Tensor:
    with forked(seed, CPU):
        return ops.rectify(h, dropout)


def test_without_dropout_it_is_the_rectifier() -> None:
    h = torch.tensor([[-1.0, 0.0, 2.5]], requires_grad=True)
    out = ops.rectify(h, 0.0)
    assert out.tolist() == [[0.0, 0.0, 2.5]]
    out.sum().backward()
    assert h.grad is not None
    assert h.grad.tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_the_share_that_is_kept_and_its_scale(dropout: float) -> None:
    out = drawn(torch.ones(1000, 301), dropout)
    kept = out > 0
    n = kept.numel()
    assert abs(kept.double().mean().item() - (1 - dropout)) < 5 * math.sqrt(dropout * (1 - dropout) / n)
    assert out[kept].unique().tolist() == pytest.approx([1 / (1 - dropout)], rel=1e-7)
    # Neighbours come from the same random number: whether one is kept says nothing of the next.
    both = (kept[:, 1:] & kept[:, :-1]).double().mean().item()
    assert abs(both - (1 - dropout) ** 2) < 0.005


def test_slopes_are_those_of_the_units_kept() -> None:
    h = torch.randn(40, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    out = drawn(h, 0.3)
    gradient = torch.randn(40, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out.backward(gradient)
    assert h.grad is not None
    torch.testing.assert_close(h.grad * h.detach(), gradient * out.detach())
    assert (out[h < 0] == 0).all()


def test_nan_is_seen() -> None:
    assert drawn(torch.full((4, 50), torch.nan), 0.2).isnan().any()


def test_the_seed_decides() -> None:
    h = torch.ones(30, 30)
    assert torch.equal(drawn(h, 0.4, 3), drawn(h, 0.4, 3))
    assert not torch.equal(drawn(h, 0.4, 3), drawn(h, 0.4, 4))


def test_everything_dropped() -> None:
    assert (drawn(torch.ones(5, 5), 1.0) == 0).all()


def normed_inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    h, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((31, 6), (6,), (6,)))
    return h.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def test_normalised_units_have_the_moments_of_the_batch_and_the_running_ones_follow() -> None:
    h, weight, bias = normed_inputs()
    mean, variance = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    out = ops.batch_norm_rectify(h, weight, bias, (mean, variance), 0.05, 1e-3, 0.0)
    x = h.detach()
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-3).sqrt() * weight + bias
    torch.testing.assert_close(out, expected.clamp(min=0))
    torch.testing.assert_close(mean, 0.05 * x.mean(0))
    torch.testing.assert_close(variance, 0.95 + 0.05 * x.var(0, correction=1))


def test_slopes_of_normalised_units() -> None:
    def fixed(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        running = (torch.zeros(6, dtype=h.dtype), torch.ones(6, dtype=h.dtype))
        with forked(7, CPU):
            return ops.batch_norm_rectify(h, weight, bias, running, 0.05, 1e-3, 0.25)

    assert torch.autograd.gradcheck(fixed, normed_inputs())


def test_normalised_units_are_dropped_as_others_are() -> None:
    h, weight, bias = normed_inputs(torch.float32)
    running = torch.zeros(6), torch.ones(6)
    with forked(5, CPU):
        out = ops.batch_norm_rectify(h, weight, bias, running, 0.05, 1e-3, 0.4)
    whole = ops.batch_norm_rectify(h, weight, bias, running, 0.05, 1e-3, 0.0)
    kept = out > 0
    assert 0.4 < kept[whole > 0].float().mean() < 0.8
    torch.testing.assert_close(out[kept], whole[kept] / 0.6)
