"""The mean, from logits and library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference import twins

from countvi import ops
from countvi.ops import Link

LOGITS = (
    -1e30,
    -1e4,
    -200.0,
    -104.0,
    -88.0,
    -41.0,
    -40.0,
    -39.0,
    -20.0,
    -5.0,
    -0.1,
    0.0,
    0.6,
    3.0,
    19.0,
    79.0,
    81.0,
    1e4,
    1e30,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_against_mpmath(dtype: torch.dtype) -> None:
    logits = torch.tensor(LOGITS, dtype=dtype)
    # mpmath's exponentials of 1e30 are out of reach; there the limits are x and log x.
    expected = np.array(
        [x if x < -1e6 else math.log(x) if x > 1e6 else twins.evaluate(twins.log_softplus, x) for x in logits.tolist()]
    )
    actual = ops.log_scale(logits, Link.SOFTPLUS).double().numpy()
    bound = 2e-7 if dtype == torch.float32 else 1e-15
    assert (np.abs(actual - expected) <= bound * np.maximum(1, np.abs(expected))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_of_softplus_against_mpmath(dtype: torch.dtype) -> None:
    logits = torch.tensor([x for x in LOGITS if abs(x) < 1e6], dtype=dtype, requires_grad=True)
    expected = [twins.slope(twins.log_softplus, x, by=0) for x in logits.tolist()]
    (actual,) = torch.autograd.grad(ops.log_scale(logits, Link.SOFTPLUS).sum(), [logits])
    np.testing.assert_allclose(actual.double(), expected, rtol=4e-7 if dtype == torch.float32 else 1e-15)


def test_softmax_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    actual = ops.log_rate(logits, torch.tensor([math.log(100.0)], dtype=torch.float64), Link.SOFTMAX)
    np.testing.assert_allclose(actual.exp(), [[25.0, 75.0]], rtol=1e-14)


@pytest.mark.parametrize("link", list(Link))
def test_rate_is_scale_times_library(link: Link) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    for shape in ((3,), (2, 3)):
        library = torch.rand(*shape, generator=generator, dtype=torch.float64) + 1
        actual = ops.log_rate(logits, library.log(), link).exp()
        torch.testing.assert_close(actual, library[..., None] * ops.log_scale(logits, link).exp())


@pytest.mark.parametrize("link", list(Link))
def test_gradients(link: Link) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) * 5
    library = torch.randn(3, generator=generator, dtype=torch.float64)
    inputs = [logits.requires_grad_(), library.requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: ops.log_rate(a, b, link), inputs)
