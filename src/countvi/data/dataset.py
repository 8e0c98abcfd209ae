"""An AnnData or a MuData read the way a model was set up: genes by name, categories by value."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor

from countvi.batch import Batch, CountBlock, Design
from countvi.data.columns import codes_of, continuous_of, size_factor_of
from countvi.data.container import check_container, obs_column, part_of, part_text, rows_of
from countvi.data.features import feature_names
from countvi.data.registry import Modality, Registry
from countvi.data.rows import ColumnMap
from countvi.data.source import CountSource, InMemorySource, UnpairedSource, location_text, open_source
from countvi.data.validate import CountSummary, summarize
from countvi.errors import DataError, DataWarning, MismatchError, did_you_mean, shorten

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import NDArray

    from countvi.data.container import Container

_ENOUGH_SHARED = 0.8
"""Share of the model's genes below which padding with zeros is worth a warning."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """An AnnData or a MuData bound to a registry; made by :func:`bind`.

    Parameters
    ----------
    registry
        How the data are read.
    sources
        The count matrices by modality, features in the model's order.
    codes
        Codes of the categorical covariates, shape ``(cells, columns)``, int64.
    continuous
        Continuous covariates, shape ``(cells, n_continuous)``, float32.
    size_factor
        Size factors, shape ``(cells,)``, float32, or ``None``.
    obs_names
        Names of the cells.
    present
        Which cells a modality was measured in, shape ``(cells,)``, bool, by modality; those measured in all cells are
        left out.
    position
        Row of each cell in a model's tables of single cells, shape ``(cells,)``, int64; ``placed`` sets it.
    """

    registry: Registry
    sources: Mapping[str, CountSource]
    codes: Tensor
    continuous: Tensor
    size_factor: Tensor | None
    obs_names: pd.Index
    present: Mapping[str, Tensor] = field(default_factory=dict)
    position: Tensor | None = None
    _summaries: dict[str, CountSummary] = field(default_factory=dict, repr=False)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.codes.shape[0]

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Read some cells.

        Parameters
        ----------
        rows
            Row numbers, shape ``(cells,)``, in any order, repeats allowed.
        """
        index = torch.from_numpy(np.array(rows, dtype=np.int64))
        return Batch(
            counts={name: source.take(rows) for name, source in self.sources.items()},
            design=Design(
                codes=self.codes[index],
                continuous=self.continuous[index],
                size_factor=None if self.size_factor is None else self.size_factor[index],
                present={name: cells[index] for name, cells in self.present.items()} or None,
                position=None if self.position is None else self.position[index],
            ),
        )

    @property
    def in_memory(self) -> bool:
        """Whether all counts are in memory."""
        return all(source.in_memory for source in self.sources.values())

    def load(self, rows: NDArray[np.int64]) -> Dataset:
        """Read some cells into memory, as a data set of their own.

        Parameters
        ----------
        rows
            Row numbers, shape ``(cells,)``; increasing order reads a file fastest.
        """
        index = torch.from_numpy(np.array(rows, dtype=np.int64))
        return Dataset(
            registry=self.registry,
            sources={name: InMemorySource.from_block(source.take(rows)) for name, source in self.sources.items()},
            codes=self.codes[index],
            continuous=self.continuous[index],
            size_factor=None if self.size_factor is None else self.size_factor[index],
            obs_names=self.obs_names[rows],
            present={name: cells[index] for name, cells in self.present.items()},
            position=None if self.position is None else self.position[index],
        )

    def summary(self, modality: str) -> CountSummary:
        """Return what one pass over the counts of a modality found; read once, then remembered.

        Raises
        ------
        UnknownNameError
            If there is no such modality.
        """
        name = self.registry.modality(modality).name
        if name not in self._summaries:
            cells = self.present.get(name)
            self._summaries[name] = summarize(self.sources[name], present=None if cells is None else cells.numpy())
        return self._summaries[name]

    def level_sums(self, modality: str, columns: Sequence[int]) -> list[Tensor]:
        """Sum the counts of each feature over the cells of each level of some covariates, in one pass.

        Parameters
        ----------
        modality
            Which counts.
        columns
            Columns of :attr:`codes`.

        Returns
        -------
        list of Tensor
            Shape ``(levels, features)`` for each column, float64.
        """
        n_features = self.sources[modality].n_features
        factors = self.registry.factors(columns)
        sums = [torch.zeros(factor.n_levels * n_features, dtype=torch.float64) for factor in factors]
        start = 0
        for block in self.sources[modality].blocks():
            codes, values = self.codes[start : start + block.n_cells], block.values.double()
            for total, factor in zip(sums, factors, strict=True):
                total.index_add_(0, codes[block.rows, factor.column] * n_features + block.columns, values)
            start += block.n_cells
        return [total.view(factor.n_levels, n_features) for total, factor in zip(sums, factors, strict=True)]

    def fingerprint(self) -> str:
        """Return a hash of the shape, the feature names and every count, 32 hexadecimal digits.

        It is that of the data as the model sees them: how the matrix is stored (sparse, dense, in a file), its
        dtype, explicit zeros and the order of the genes make no difference; the order of the cells does, and so does
        whether a cell without counts was measured.
        """
        digest = hashlib.blake2b(digest_size=16)
        for modality in self.registry.modalities:
            header = [modality.name, str(self.n_cells), str(modality.n_features), *modality.feature_names]
            digest.update("\0".join(header).encode())
            for block in self.sources[modality.name].blocks():
                digest.update(_hash_rows(block).astype("<u8").tobytes())
            if modality.name in self.present:
                digest.update(np.packbits(self.present[modality.name].numpy()).tobytes())
        return digest.hexdigest()


def bind(data: Container, registry: Registry, optional: Collection[str] = ()) -> Dataset:
    """Read an AnnData or a MuData the way a model was set up.

    Genes are matched by name: another order is put right while reading, genes that the model does not have are
    ignored. Categories are matched by value, whatever their dtype or order. A MuData may lack modalities of the model,
    and its modalities cells: they count as not measured.

    Parameters
    ----------
    data
        In memory or backed, a view or not; it is only read. CSR counts are used where they lie, except that
        AnnData itself copies those of a view in memory.
    registry
        What the model was set up with.
    optional
        Roles of columns that the model does not read. They need not be there, and may hold other categories.

    Raises
    ------
    UnknownNameError
        If a layer or a column of ``obs`` is missing.
    MismatchError
        If genes of the model are missing, or there are categories that it does not know.
    DataError
        If the data are empty, name genes twice, are a MuData with none of the modalities, or a column cannot be used as
        what it is for.
    """
    check_container(data, registry.modalities)
    sources, present = {}, {}
    for modality in registry.modalities:
        rows = rows_of(data, modality.part)
        sources[modality.name] = _open(data, modality, rows)
        if rows is not None and (rows < 0).any():
            present[modality.name] = torch.from_numpy(rows >= 0)
    continuous = np.zeros((data.n_obs, len(registry.continuous_keys)), dtype=np.float32)
    for i, key in enumerate(registry.continuous_keys):
        continuous[:, i] = continuous_of(obs_column(data, key, "The model's continuous covariate key"), key)
    size_factor = None
    if registry.size_factor_key is not None:
        key = registry.size_factor_key
        size_factor = torch.from_numpy(size_factor_of(obs_column(data, key, "The model's size factor key"), key))
    return Dataset(
        registry=registry,
        sources=sources,
        codes=torch.from_numpy(covariate_codes(data, registry, optional)),
        continuous=torch.from_numpy(continuous),
        size_factor=size_factor,
        obs_names=data.obs_names.copy(),
        present=present,
    )


def covariate_codes(data: Container, registry: Registry, optional: Collection[str] = ()) -> NDArray[np.int64]:
    """Read the categorical covariates of data as a model codes them; see :func:`bind`.

    Returns
    -------
    numpy.ndarray
        Shape ``(cells, columns)``; zero in columns that are not given, or not read.
    """
    codes = np.zeros((data.n_obs, len(registry.columns)), dtype=np.int64)
    for i, column in enumerate(registry.columns):
        if column.key is not None and registry.reads(i, optional):
            codes[:, i] = codes_of(obs_column(data, column.key, f"The model's {column.role} key"), column)
    return codes


def prepare_query(adata: AnnData, registry: Registry) -> AnnData:
    """Make an AnnData with a model's genes in the model's order, missing ones padded with zeros.

    Parameters
    ----------
    adata
        The query, cells x genes; it is only read.
    registry
        What the model was set up with.

    Returns
    -------
    AnnData
        In memory: the counts where the model looks for them (CSR, float32), ``obs`` and ``obsm``. Nothing else of
        the query is carried over.

    Raises
    ------
    DataError
        If the query is empty, names genes twice, or has none of the model's genes.

    Warns
    -----
    DataWarning
        If it has fewer than 80 % of the model's genes.
    """
    check_container(adata, registry.modalities)
    return _padded(adata, registry.modalities)


def prepare_query_mudata(mdata: MuData, registry: Registry) -> MuData:
    """Make a MuData with a model's features in the model's order; as :func:`prepare_query` does for an AnnData.

    Modalities that the query lacks stay missing.
    """
    from mudata import MuData, set_options

    check_container(mdata, registry.modalities)
    padded = {}
    for modality in registry.modalities:
        adata = part_of(mdata, modality)
        if modality.part is not None and adata is not None and adata.n_obs:
            padded[modality.part] = _padded(adata, [modality])
    with set_options(pull_on_update=False):
        prepared = MuData(padded)
    prepared.obs = pd.DataFrame(mdata.obs).loc[prepared.obs_names].copy()
    return prepared


def _padded(adata: AnnData, modalities: Sequence[Modality]) -> AnnData:
    """Copy an AnnData with the features of modalities that lie in it."""
    matrices = {}
    for modality in modalities:
        if modality.location.startswith("obsm/"):  # carried over as it is
            continue
        names, noun = modality.feature_names, modality.noun
        n_shared = len(names) - len(_missing(adata, modality))
        if n_shared == 0:
            message = (
                f"The query has none of the model's {len(names):,} {noun}s. The model knows "
                f"{shorten(names, limit=3)}, the query {shorten(list(adata.var_names), limit=3)}; are these "
                "different kinds of names (symbols and Ensembl ids)?"
            )
            raise DataError(message)
        if n_shared < _ENOUGH_SHARED * len(names):
            message = (
                f"The query has only {n_shared:,} of the model's {len(names):,} {noun}s ({n_shared / len(names):.0%}); "
                "the others are filled with zeros, which the model takes for measurements. Expect poor results; "
                f"better train a model on the {noun}s that both have."
            )
            warnings.warn(message, DataWarning, stacklevel=3)
        columns = ColumnMap.from_names(list(adata.var_names), names)
        block = open_source(adata, modality.location, columns).take(np.arange(adata.n_obs))
        matrix = sp.csr_matrix(
            (block.values.numpy(), block.columns.numpy(), block.offsets.numpy()), shape=(adata.n_obs, len(names))
        )
        matrix.sort_indices()
        matrices[modality.location] = matrix
    obsm: dict[str, Any] = {key: value.copy() for key, value in adata.obsm.items()}
    return anndata.AnnData(
        X=matrices.pop("X", None),
        obs=pd.DataFrame(adata.obs).copy(),
        var=pd.DataFrame(index=pd.Index(modalities[0].feature_names, dtype=object)),
        obsm=obsm,
        layers={location.removeprefix("layers/"): matrix for location, matrix in matrices.items()},
    )


def _open(data: Container, modality: Modality, rows: NDArray[np.int64] | None) -> CountSource:
    """Open the counts of a modality, one row for each cell of the data."""
    adata = part_of(data, modality)
    if adata is None or not adata.n_obs:
        nothing = InMemorySource(sp.csr_matrix((0, modality.n_features), dtype=np.float32))
        return UnpairedSource(nothing, np.full(data.n_obs, -1, dtype=np.int64))
    owner = part_text(modality.part)
    source = open_source(adata, modality.location, _align(adata, modality), owner)
    return source if rows is None else UnpairedSource(source, rows)


def _missing(adata: AnnData, modality: Modality) -> list[str]:
    present = set(feature_names(adata, modality.location, modality.names_key))
    return [name for name in modality.feature_names if name not in present]


def _align(adata: AnnData, modality: Modality) -> ColumnMap | None:
    owner, names = part_text(modality.part), feature_names(adata, modality.location, modality.names_key)
    missing = _missing(adata, modality)
    if missing:
        hint = did_you_mean(missing[0], names) if len(missing) == 1 else ""
        where = f"{owner}.var_names"
        advice = ""
        if modality.location.startswith("obsm/"):
            where = location_text(modality.location, owner)
        else:
            maker = "prepare_query_anndata" if modality.part is None else "prepare_query_mudata"
            advice = (
                f" `{maker}` makes data with the model's {modality.noun}s, those that are missing filled with zeros."
            )
        message = (
            f"{len(missing):,} of the model's {modality.n_features:,} {modality.noun}s are missing from {where}: "
            f"{shorten(missing)}.{hint}{advice}"
        )
        raise MismatchError(message)
    return ColumnMap.from_names(names, modality.feature_names)


def _hash_rows(block: CountBlock) -> NDArray[np.uint64]:
    """Hash each row by the sum of the hashes of its entries, which does not depend on their order."""
    values = block.values.numpy()
    key = (block.columns.numpy().astype(np.uint64) << np.uint64(32)) | values.view(np.uint32)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    key = (key ^ (key >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)
    key[values == 0] = 0
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(key, dtype=np.uint64)])
    offsets = block.offsets.numpy()
    return before[offsets[1:]] - before[offsets[:-1]]
