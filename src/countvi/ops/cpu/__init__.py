"""Kernels for CPUs, compiled by numba: float32, value and gradient in one pass."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from countvi.ops._notice import noticed
from countvi.ops.cpu.linear_autograd import sparse_linear
from countvi.ops.cpu.product import linear

__all__ = [
    "fold_changes",
    "gamma_poisson",
    "gamma_poisson_head",
    "linear",
    "mixed_types_negative_binomial",
    "negative_binomial",
    "negative_binomial_mixture",
    "poisson",
    "rate_shape_negative_binomial",
    "sparse_linear",
    "zero_inflated_negative_binomial",
]


# Only some models need each of the kernels below, and each takes its time to compile.


def negative_binomial(*arguments: Any) -> Tensor:
    """Log-likelihood per cell."""
    return _late("autograd", "negative_binomial")(*arguments)


def zero_inflated_negative_binomial(*arguments: Any) -> Tensor:
    """Log-likelihood per cell."""
    return _late("autograd", "zero_inflated_negative_binomial")(*arguments)


def poisson(*arguments: Any) -> Tensor:
    """Log-likelihood per cell."""
    return _late("autograd", "poisson")(*arguments)


def gamma_poisson(*arguments: Any) -> Tensor:
    """Log-likelihood per cell."""
    return _late("ambient_autograd", "gamma_poisson")(*arguments)


def gamma_poisson_head(*arguments: Any) -> Tensor:
    """Log-likelihood per cell."""
    return _late("ambient_head", "gamma_poisson_head")(*arguments)


def negative_binomial_mixture(*arguments: Any) -> Tensor:
    """Log-likelihood per cell."""
    return _late("mixture_autograd", "negative_binomial_mixture")(*arguments)


def rate_shape_negative_binomial(*arguments: Any) -> Tensor:
    """Log-likelihood per cell."""
    return _late("rate_shape_autograd", "rate_shape_negative_binomial")(*arguments)


def mixed_types_negative_binomial(*arguments: Any) -> Tensor:
    """Log-likelihood per spot."""
    return _late("mixed_types_autograd", "mixed_types_negative_binomial")(*arguments)


def fold_changes(*arguments: Any) -> Any:
    """What is known of the log2 fold changes of each column."""
    return _late("folds", "fold_changes")(*arguments)


@functools.cache
def _late(module: str, name: str) -> Callable[..., Any]:
    """Import a kernel, which compiles it."""
    with noticed():
        return getattr(importlib.import_module(f"countvi.ops.cpu.{module}"), name)
