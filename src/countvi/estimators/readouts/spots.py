"""Read-outs of DestVI: proportions, states and expression of cell types in spots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from countvi import query
from countvi.batch import RNA
from countvi.errors import UnknownNameError, did_you_mean, shorten
from countvi.estimators.names import Indices
from countvi.estimators.readouts.features import chosen_features, feature_names

if TYPE_CHECKING:
    from anndata import AnnData

    from countvi.estimators.state import Fitted
    from countvi.models.destvi import DestVI

_NOISE = "noise_term"


def get_proportions(
    self: Fitted[DestVI],
    keep_noise: bool = False,
    normalize: bool = True,
    indices: Indices = None,
    batch_size: int | None = None,
    *,
    adata: AnnData | None = None,
) -> pd.DataFrame:
    """Return the proportion of each type in each spot.

    Parameters
    ----------
    keep_noise
        Keep the noise as a column ``"noise_term"``.
    normalize
        Let the columns that are returned sum to one; otherwise return abundances.
    indices, batch_size
        Which spots, and how many at a time.
    adata
        Other spots; with ``amortization="both"`` any, otherwise those trained on.

    Returns
    -------
    DataFrame
        Spots x types.
    """
    view = self.view(adata, indices, batch_size)
    values = query.abundances(self.module, view.cells)
    columns = [*cell_types(self), _NOISE]
    if not keep_noise:
        values, columns = values[:, :-1], columns[:-1]
    if normalize:
        values = values / values.sum(1, keepdims=True)
    return pd.DataFrame(values, index=view.names, columns=pd.Index(columns))


def get_gamma(
    self: Fitted[DestVI],
    indices: Indices = None,
    batch_size: int | None = None,
    return_numpy: bool = False,
    *,
    adata: AnnData | None = None,
) -> dict[str, pd.DataFrame] | np.ndarray:
    """Return the state of each type in each spot.

    A state of a type that a spot does not have says nothing: look at the proportions too.

    Parameters
    ----------
    indices, batch_size, adata
        Which spots; see :meth:`get_proportions`.
    return_numpy
        Return one array.

    Returns
    -------
    dict
        By type, a data frame of spots x dimensions; with ``return_numpy`` an array of shape ``(spots, n_latent,
        types)``.
    """
    view = self.view(adata, indices, batch_size)
    values = query.type_states(self.module, view.cells)
    if return_numpy:
        return values.transpose(0, 2, 1)
    return {name: pd.DataFrame(values[:, i], index=view.names) for i, name in enumerate(cell_types(self))}


def get_scale_for_ct(
    self: Fitted[DestVI],
    label: str,
    indices: Indices = None,
    batch_size: int | None = None,
    *,
    gene_list: Sequence[str] | None = None,
    adata: AnnData | None = None,
) -> pd.DataFrame:
    """Return what one type expresses in its state in each spot.

    Parameters
    ----------
    label
        The type.
    indices, batch_size, adata
        Which spots; see :meth:`get_proportions`.
    gene_list
        Genes to return, in this order.

    Returns
    -------
    DataFrame
        Spots x genes: expected counts of a pure spot of the type, per count of library.
    """
    genes, view = chosen_features(self, RNA, gene_list), self.view(adata, indices, batch_size)
    values = query.type_expression(self.module, view.cells, type_index(self, label), genes=genes.columns)
    return pd.DataFrame(cast("np.ndarray", values), index=view.names, columns=genes.names)


def get_expression_for_ct(
    self: Fitted[DestVI],
    label: str,
    indices: Indices = None,
    batch_size: int | None = None,
    return_sparse_array: bool = False,
    *,
    adata: AnnData | None = None,
) -> Any:
    """Return the share of one type in the counts observed.

    Parameters
    ----------
    label
        The type.
    indices, batch_size, adata
        Which spots; see :meth:`get_proportions`.
    return_sparse_array
        Return a SciPy CSR array, spots x genes.

    Returns
    -------
    DataFrame
        Spots x genes: expected counts of the type given the total; those of all types and of the noise sum to the
        counts.
    """
    view = self.view(adata, indices, batch_size)
    counts = query.type_counts(self.module, view.cells, type_index(self, label))
    if return_sparse_array:
        return counts
    names = feature_names(self, RNA)
    return pd.DataFrame(counts.toarray(), index=view.names, columns=names)


def type_index(model: Fitted[DestVI], label: str) -> int:
    """Return the column of a type.

    Raises
    ------
    UnknownNameError
        If there is no such type.
    """
    if label not in cell_types(model):
        message = f"There is no type {label!r}; the model has {shorten(cell_types(model))}."
        raise UnknownNameError(message + did_you_mean(label, cell_types(model)))
    return cell_types(model).index(label)


def cell_types(model: Fitted[DestVI]) -> list[str]:
    """Names of the types, in the order of the columns."""
    return list(model.options.cell_types)
