"""From tensors to the record that a kernel takes, and its launch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops.cpu import threads

COUNTS = "cells genes nonzeros values columns offsets"
"""Fields of a job that :func:`launch` sets from a block of counts."""


def job_type(fields: str) -> np.dtype[np.void]:
    """Return the type of a kernel's record: its fields, all int64, after the ``ticket`` that threads count up.

    A field is a size, a flag, or the address of an array, which is zero for one that is absent.
    """
    return np.dtype([(name, np.int64) for name in ("ticket", *fields.split())])


def readable(counts: CountBlock) -> CountBlock:
    """Counts as the kernels read them: float32 and int64, each array in one piece."""
    assert counts.offsets.numel() > 0, "a block of counts has one offset more than cells"
    return CountBlock(
        values=counts.values.to(torch.float32).contiguous(),
        columns=counts.columns.to(torch.int64).contiguous(),
        offsets=counts.offsets.to(torch.int64).contiguous(),
        n_features=counts.n_features,
    )


def launch(
    kernel: Any, job: np.dtype[np.void], work: int, counts: CountBlock | None = None, /, **fields: Tensor | int | None
) -> None:
    """Run a kernel on sizes, flags and tensors named as the fields of its job; what is not named is zero.

    ``work`` is in entries of a dense matrix. The tensors are arguments so that they live until the kernel, which knows
    their addresses only, is done.
    """
    record = np.zeros((), job)
    if counts is not None:
        fields |= {"cells": counts.n_cells, "genes": counts.n_features, "nonzeros": counts.values.shape[0]}
        fields |= {"values": counts.values, "columns": counts.columns, "offsets": counts.offsets}
    for name, value in fields.items():
        if value is not None:
            record[name] = value.data_ptr() if isinstance(value, Tensor) else value
    threads.run(kernel.address, record, work)
