"""Kernels for CPUs, compiled by numba: float32, value and gradient in one pass."""

from typing import Any

from torch import Tensor

from countvi.ops.cpu.autograd import negative_binomial, poisson, sparse_linear, zero_inflated_negative_binomial
from countvi.ops.cpu.product import linear
from countvi.ops.reference import (
    mixed_types_negative_binomial,
    negative_binomial_mixture,
    rate_shape_negative_binomial,
)

__all__ = [
    "gamma_poisson",
    "linear",
    "mixed_types_negative_binomial",
    "negative_binomial",
    "negative_binomial_mixture",
    "poisson",
    "rate_shape_negative_binomial",
    "sparse_linear",
    "zero_inflated_negative_binomial",
]


def gamma_poisson(*arguments: Any) -> Tensor:
    """Log-likelihood per cell."""
    # Only some models need this kernel, and it takes its time to compile.
    from countvi.ops.cpu.ambient_autograd import gamma_poisson

    return gamma_poisson(*arguments)
