"""Spots under DestVI: abundances of types, their states, and their expression."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from countvi.batch import RNA, Batch
from countvi.models.destvi import DestVI
from countvi.query.cells import Cells, OutputWriter, Writable, evaluation, map_cells, select, stacked, to_csr


def abundances(model: DestVI, cells: Cells) -> np.ndarray:
    """Abundance beta of each type, the noise last: shape ``(spots, types + 1)``."""
    return map_cells(model, cells, lambda batch: (model.guide(batch).beta.value,))[0]


def type_states(model: DestVI, cells: Cells) -> np.ndarray:
    """State gamma of each type in each spot, shape ``(spots, types, latent)``."""
    return map_cells(model, cells, lambda batch: (model.guide(batch).gamma.value,))[0]


def type_expression(
    model: DestVI, cells: Cells, type_index: int, *, genes: np.ndarray | None = None, out: Writable | None = None
) -> Writable:
    """Expected expression of one type in its state in each spot.

    Parameters
    ----------
    model
        The model.
    cells
        Spots.
    type_index
        Which type.
    genes
        Columns to return, in this order; ``None`` for all.
    out
        Array to write into.

    Returns
    -------
    array
        ``out``, or a float32 ndarray ``(spots, genes)``: counts of a pure spot of the type, per count of library.
    """
    writer = OutputWriter((len(cells), model.f.out_features if genes is None else len(genes)), out)
    with evaluation(model):
        for block, batch in cells:
            values = model.expression(model.guide(batch).gamma.value, type_index)
            writer.write(select(values, genes), block)
    return writer.out


def type_counts(model: DestVI, cells: Cells, type_index: int) -> sp.csr_array:
    """Expected share of one type in the counts observed.

    Given the total, the counts of the parts of a sum of negative binomials with one p have expectations in proportion
    to their shapes.

    Returns
    -------
    scipy.sparse.csr_array
        Shape ``(spots, genes)``, float32.
    """
    with evaluation(model):
        return stacked(to_csr(batch.counts[RNA], _shares(model, batch, type_index)) for _, batch in cells)


def _shares(model: DestVI, batch: Batch, type_index: int) -> Tensor:
    """Counts of one type at the stored entries."""
    counts, latents = batch.counts[RNA], model.sample(model.guide(batch))
    rate = model.rate(latents)
    own = latents.beta[:, type_index, None] * rate.of_type(type_index)
    own, total = (values.flatten().index_select(0, counts.flat_index) for values in (own, rate.per_library))
    return torch.where(total > 0, counts.values * own / total, 0.0)
