"""The mean of the counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from countvi.likelihoods.rate import Rate
from countvi.ops import Link

LOGITS = np.array([[[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]])
LIBRARY = np.array([10.0, 1000.0])


def rate(link: Link) -> Rate:
    return Rate(torch.tensor(LOGITS), torch.tensor(LIBRARY).log(), link)


@pytest.mark.parametrize("link", list(Link))
def test_scale_and_mean(link: Link) -> None:
    e = np.exp(LOGITS)
    rho = e / e.sum(-1, keepdims=True) if link is Link.SOFTMAX else np.log1p(e)
    np.testing.assert_allclose(rate(link).scale, rho, rtol=1e-14)
    np.testing.assert_allclose(rate(link).log_scale, np.log(rho), rtol=1e-13)
    np.testing.assert_allclose(rate(link).mean, LIBRARY[:, None] * rho, rtol=1e-13)
    np.testing.assert_allclose(rate(link).log_mean, np.log(LIBRARY[:, None] * rho), rtol=1e-13)


def test_shapes() -> None:
    assert rate(Link.SOFTMAX).batch_shape == (1, 2)
    assert rate(Link.SOFTMAX).n_genes == 3
    several = dataclasses.replace(rate(Link.SOFTMAX), log_library=torch.zeros(5, 2))
    assert several.batch_shape == (5, 2)
    assert several.mean.shape == (5, 2, 3)


def test_another_library_is_another_object() -> None:
    first = rate(Link.SOFTPLUS)
    second = dataclasses.replace(first, log_library=torch.zeros(2))
    torch.testing.assert_close(second.mean, first.scale)
    np.testing.assert_allclose(first.log_library.exp(), LIBRARY)
    assert second.link is Link.SOFTPLUS
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.link = Link.SOFTMAX  # type: ignore[misc]


def test_empty_cell_has_mean_zero() -> None:
    empty = dataclasses.replace(rate(Link.SOFTMAX), log_library=torch.full((2,), -torch.inf))
    assert not empty.mean.any()
    assert empty.scale.isfinite().all()


@pytest.mark.parametrize("background", [False, True])
def test_expression_is_the_mean_or_the_frequencies(background: bool) -> None:
    r = rate(Link.SOFTMAX)
    assert torch.equal(r.expression(library=True, background=background), r.mean)
    assert torch.equal(r.expression(library=False, background=background), r.scale)
