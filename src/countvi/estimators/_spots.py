"""What is in a spot, for users: data frames with names."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from countvi import query
from countvi.batch import RNA
from countvi.errors import UnknownNameError, did_you_mean, shorten
from countvi.estimators import _modality
from countvi.estimators._indices import Indices, resolve_genes, resolve_rows
from countvi.estimators._scored import ScoredEstimator

if TYPE_CHECKING:
    from anndata import AnnData

    from countvi.models.destvi import DestVI as DestVIModel

_NOISE = "noise_term"


class SpotEstimator(ScoredEstimator, ABC):
    """Base of the spatial model: what its spots consist of."""

    module: DestVIModel
    cell_types: list[str]

    def get_proportions(
        self,
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
        values = query.abundances(self.module, self._cells(adata, indices, batch_size))
        columns = [*self.cell_types, _NOISE]
        if not keep_noise:
            values, columns = values[:, :-1], columns[:-1]
        if normalize:
            values = values / values.sum(1, keepdims=True)
        return pd.DataFrame(values, index=self._names(adata, indices), columns=pd.Index(columns))

    def get_gamma(
        self,
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
        values = query.type_states(self.module, self._cells(adata, indices, batch_size))
        if return_numpy:
            return values.transpose(0, 2, 1)
        names = self._names(adata, indices)
        return {name: pd.DataFrame(values[:, i], index=names) for i, name in enumerate(self.cell_types)}

    def get_scale_for_ct(
        self,
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
        genes = _modality.feature_names(self, RNA)
        columns = resolve_genes(gene_list, genes)
        cells = self._cells(adata, indices, batch_size)
        values = query.type_expression(self.module, cells, self._type(label), genes=columns)
        names = genes if columns is None else genes[columns]
        return pd.DataFrame(cast("np.ndarray", values), index=self._names(adata, indices), columns=names)

    def get_expression_for_ct(
        self,
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
        cells = self._cells(adata, indices, batch_size)
        counts = query.type_counts(self.module, cells, self._type(label))
        if return_sparse_array:
            return counts
        names = _modality.feature_names(self, RNA)
        return pd.DataFrame(counts.toarray(), index=self._names(adata, indices), columns=names)

    def _type(self, label: str) -> int:
        if label not in self.cell_types:
            message = f"There is no type {label!r}; the model has {shorten(self.cell_types)}."
            raise UnknownNameError(message + did_you_mean(label, self.cell_types))
        return self.cell_types.index(label)

    def _names(self, adata: AnnData | None, indices: Indices) -> pd.Index:
        names = self._obs_names(adata)
        return names[resolve_rows(indices, names)]
