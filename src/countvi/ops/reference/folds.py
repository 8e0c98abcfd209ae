"""Log fold changes between pairs of numbers, and what is said of them by column."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class FoldChanges(NamedTuple):
    """What is known of the log2 fold changes of each column; shape ``(columns,)`` each but the first."""

    effects: Tensor
    """The changes, ``(columns, pairs)``."""
    up: Tensor
    """Share of pairs that change by at least delta."""
    down: Tensor
    """Share of pairs that change by at most -delta."""
    mean_first: Tensor
    """Mean of the first numbers."""
    mean_second: Tensor
    """Mean of the second numbers."""
    mean: Tensor
    """Mean change."""
    deviation: Tensor
    """Standard deviation of the changes."""


def fold_changes(first: Tensor, second: Tensor, pseudocounts: Tensor, delta: float) -> FoldChanges:
    """Summarise log2 fold changes."""
    effect = torch.log2((first + pseudocounts) / (second + pseudocounts))
    # In the precision of the effects: what is equal to delta counts, however delta is written.
    bound = float(np.float32(delta)) if effect.dtype == torch.float32 else delta
    deviation, mean = torch.std_mean(effect.double(), 0, correction=0)
    return FoldChanges(
        effects=effect.t().contiguous(),
        up=(effect >= bound).double().mean(0),
        down=(effect <= -bound).double().mean(0),
        mean_first=first.mean(0, dtype=torch.float64),
        mean_second=second.mean(0, dtype=torch.float64),
        mean=mean,
        deviation=deviation,
    )
