"""From tensors to the numbers that a kernel takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops.cpu import team


def readable(counts: CountBlock) -> CountBlock:
    """Counts as the kernels read them: float32 and int64, each array in one piece."""
    assert counts.offsets.numel() > 0, "a block of counts has one offset more than cells"
    return CountBlock(
        values=counts.values.to(torch.float32).contiguous(),
        columns=counts.columns.to(torch.int64).contiguous(),
        offsets=counts.offsets.to(torch.int64).contiguous(),
        n_features=counts.n_features,
    )


def run(compiled: Any, slots: tuple[str, ...], work: int, **numbers: Tensor | int | None) -> None:
    """Run a kernel on sizes, flags and tensors named as its slots; what is not named is zero.

    The tensors are arguments so that they live until the kernel, which knows their addresses only, is done.
    """
    job = np.zeros(len(slots), np.int64)
    for i, name in enumerate(slots):
        value = numbers.get(name)
        if value is not None:
            job[i] = value.data_ptr() if isinstance(value, Tensor) else value
    team.run(compiled.address, job, work)


def guess(n_rows: int) -> np.float32:
    """What the gradient of a row will be multiplied by if the loss is the negative mean over rows."""
    return np.float32(-1.0) / np.float32(max(n_rows, 1))
