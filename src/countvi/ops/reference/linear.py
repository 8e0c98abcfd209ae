"""The first layer of an encoder, and the last of a decoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from countvi.batch import CountBlock
from countvi.typing import CellsHidden, PerCell


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x`` times the transposed weight, plus the bias."""
    return functional.linear(x, weight, bias)


def sparse_linear(
    counts: CountBlock, weight: Tensor, bias: Tensor | None, log1p: bool, divisor: PerCell | None = None
) -> CellsHidden:
    """Counts, or their log1p, times the transposed weight, plus the bias."""
    if divisor is not None:
        counts = counts.divide_rows(divisor)
    entries = counts.map(torch.log1p) if log1p else counts
    # One dense product is faster than torch's sparse ones at the densities of count matrices.
    return functional.linear(entries.to_dense().to(weight.dtype), weight, bias)
