"""Read and write the stored entries of a sparse block in dense tensors."""

from __future__ import annotations

from torch import Tensor

from countvi.batch import CountBlock
from countvi.typing import CellsGenes


def at_stored(parameter: CellsGenes, counts: CountBlock) -> Tensor:
    """Return a parameter at the stored entries, in float64: they are few, and so is what this costs.

    Parameters
    ----------
    parameter
        Shape ``(*samples, cells, genes)``.
    counts
        Shape ``(cells, genes)``.

    Returns
    -------
    Tensor
        Shape ``(*samples, nonzeros)``.
    """
    return parameter.flatten(-2).index_select(-1, counts.flat_index).double()


def put_stored(dense: CellsGenes, entries: Tensor, counts: CountBlock) -> CellsGenes:
    """Return a dense tensor in which the stored entries have new values, rounded to its precision.

    Parameters
    ----------
    dense
        Shape ``(*samples, cells, genes)``; may be overwritten unless autograd follows it.
    entries
        Shape ``(*samples, nonzeros)``.
    counts
        Shape ``(cells, genes)``.
    """
    flat, index = dense.flatten(-2), counts.flat_index.expand(entries.shape)
    entries = entries.to(dense.dtype)
    flat = flat.scatter(-1, index, entries) if flat.requires_grad else flat.scatter_(-1, index, entries)
    return flat.view(dense.shape)
