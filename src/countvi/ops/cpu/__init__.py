"""Kernels for CPUs, compiled by numba: float32, value and gradient in one pass."""

from countvi.ops.cpu.autograd import negative_binomial, poisson, sparse_linear, zero_inflated_negative_binomial
from countvi.ops.cpu.product import linear

__all__ = ["linear", "negative_binomial", "poisson", "sparse_linear", "zero_inflated_negative_binomial"]
