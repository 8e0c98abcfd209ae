"""Kernels for CPUs, compiled by numba: float32, value and gradient in one pass."""

import importlib
from typing import Any

from countvi.ops.cpu.first_layer import sparse_linear
from countvi.ops.cpu.product import linear

# Only some models need each of these kernels, and each takes its time to compile: importing its module does.
_MODULES = {
    "fold_changes": "folds",
    "gamma_poisson": "ambient",
    "gamma_poisson_head": "ambient_head",
    "mixed_types_negative_binomial": "mixed_types",
    "negative_binomial": "likelihood",
    "negative_binomial_mixture": "mixture",
    "poisson": "likelihood",
    "rate_shape_negative_binomial": "rate_shape",
    "zero_inflated_negative_binomial": "likelihood",
}
__all__ = ["linear", "sparse_linear", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import an operation when it is first needed."""
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    operation = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = operation
    return operation
