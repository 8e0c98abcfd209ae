"""What is in a spot: abundances of types, their states, and their expression."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from countvi.batch import RNA, Batch
from countvi.models.destvi import DestVI
from countvi.query.cells import Cells, OutputWriter, Writable, evaluation, map_cells


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
    columns = None if genes is None else torch.as_tensor(np.asarray(genes), dtype=torch.int64, device=cells.device)
    writer = OutputWriter((len(cells), model.f.out_features if columns is None else len(columns)), out)
    with evaluation(model):
        for block, batch in cells:
            values = model.expression(model.guide(batch).gamma.value, type_index)
            writer.write(values if columns is None else values.index_select(-1, columns), block)
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
    blocks: list[sp.csr_array] = []
    with evaluation(model):
        for _, batch in cells:
            values = _shares(model, batch, type_index)
            counts = batch.counts[RNA]
            parts = (values.cpu().numpy(), counts.columns.cpu().numpy(), counts.offsets.cpu().numpy())
            blocks.append(sp.csr_array(parts, shape=(batch.n_cells, counts.n_features)))
    return sp.csr_array(sp.vstack(blocks, format="csr"))


def _shares(model: DestVI, batch: Batch, type_index: int) -> Tensor:
    """Counts of one type at the stored entries."""
    counts, latents = batch.counts[RNA], model.sample(model.guide(batch))
    rate = model.rate(latents)
    own = latents.beta[:, type_index, None] * rate.of_type(type_index)
    own, total = (values.flatten().index_select(0, counts.flat_index) for values in (own, rate.per_library))
    return torch.where(total > 0, counts.values * own / total, 0.0)
