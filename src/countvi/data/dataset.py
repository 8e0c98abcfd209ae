"""``bind``: an AnnData or a MuData as a ``Dataset``, read the way a model was set up."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor

from countvi.batch import AbsentCounts, Batch, CountBlock, Design, Factor
from countvi.data.columns import codes_of, continuous_of, model_column, size_factor_of
from countvi.data.compressed_rows import ColumnMap
from countvi.data.container import check_container, is_minified, obs_column, part_of, part_text, rows_of
from countvi.data.covariates import ROLES, Role
from countvi.data.features import feature_names
from countvi.data.measured import MaskedSource, Patterns, patterns_of
from countvi.data.minified import AbsentSource, Stored, measured_of, stored_of
from countvi.data.registry import CountMatrix, Registry
from countvi.data.source import CountSource, InMemorySource, UnpairedSource, location_text, open_source
from countvi.data.validate import CountSummary, summarize
from countvi.errors import DataWarning, MismatchError, did_you_mean, shorten, warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from countvi.data.container import Container


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
        Continuous covariates, standardised, shape ``(cells, n_continuous)``, float32.
    size_factor
        Size factors, shape ``(cells,)``, float32, or ``None``.
    obs_names
        Names of the cells.
    present
        Which cells a modality was measured in, shape ``(cells,)``, bool, by modality; those measured in all cells are
        left out.
    position
        Row of each cell in a model's tables of single cells, shape ``(cells,)``, int64; ``with_positions`` sets it.
    patterns
        Which features of a modality were measured in which cells, by modality; those measured whole are left out.
    stored
        The posterior of the cells, which is kept instead of their counts; ``None`` where there are counts.
    """

    registry: Registry
    sources: Mapping[str, CountSource]
    codes: Tensor
    continuous: Tensor
    size_factor: Tensor | None
    obs_names: pd.Index
    present: Mapping[str, Tensor] = field(default_factory=dict)
    position: Tensor | None = None
    patterns: Mapping[str, Patterns] = field(default_factory=dict)
    stored: Stored | None = None
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
        stored, counts = None, None
        if self.stored is not None:
            stored = {n: (loc[index], None if s is None else s[index]) for n, (loc, s) in self.stored.items()}
            counts = AbsentCounts({name: source.n_features for name, source in self.sources.items()})
        return Batch(
            counts={name: source.take(rows) for name, source in self.sources.items()} if counts is None else counts,
            stored=stored,
            design=Design(
                codes=self.codes[index],
                continuous=self.continuous[index],
                size_factor=None if self.size_factor is None else self.size_factor[index],
                present={name: cells[index] for name, cells in self.present.items()} or None,
                position=None if self.position is None else self.position[index],
                entries={name: patterns.of(index) for name, patterns in self.patterns.items()} or None,
            ),
        )

    def same_covariates(self, other: Dataset) -> bool:
        """Whether the cells of two data sets have the same covariates, one by one."""
        pairs = [(self.codes, other.codes), (self.continuous, other.continuous)]
        if self.size_factor is not None and other.size_factor is not None:
            pairs.append((self.size_factor, other.size_factor))
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)

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
            patterns={name: patterns.cells(index) for name, patterns in self.patterns.items()},
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
            cells = self.patterns[name].some() if name in self.patterns else self.present.get(name)
            self._summaries[name] = summarize(self.sources[name], present=None if cells is None else cells.numpy())
        return self._summaries[name]

    def lacking(self, modality: str, factor: Factor, rows: NDArray[np.int64]) -> Tensor:
        """Return which features were measured in no cell of a level; a level without cells lacks all.

        Parameters
        ----------
        modality
            Which features.
        factor
            The covariate.
        rows
            Row numbers of the cells that count.

        Returns
        -------
        Tensor
            Shape ``(levels, features)``, bool; ``(levels, 1)`` where all features are measured in the same cells.
        """
        index = torch.from_numpy(np.array(rows, dtype=np.int64))
        levels = self.codes[index, factor.column]
        if modality in self.patterns:
            return self.patterns[modality].cells(index).lacking(levels, factor.n_levels)
        seen = levels[self.present[modality][index]] if modality in self.present else levels
        return (seen.bincount(minlength=factor.n_levels) == 0).unsqueeze(1)

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
        whether a cell without counts, or an entry of zero, was measured.
        """
        digest = hashlib.blake2b(digest_size=16)
        for modality in self.registry.modalities:
            header = [modality.name, str(self.n_cells), str(modality.n_features), *modality.feature_names]
            digest.update("\0".join(header).encode())
            for block in self.sources[modality.name].blocks():
                digest.update(_hash_rows(block).astype("<u8").tobytes())
            if modality.name in self.present:
                digest.update(np.packbits(self.present[modality.name].numpy()).tobytes())
            if modality.name in self.patterns:
                self.patterns[modality.name].hash_into(digest)
        return digest.hexdigest()


def bind(data: Container, registry: Registry, roles: Collection[Role] = ROLES) -> Dataset:
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
    roles
        Roles of the covariates that the model reads. Columns that have none of them need not be there, and may hold
        other categories.

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
    codes = covariate_codes(data, registry, roles)
    sources: dict[str, CountSource] = {}
    present, patterns = {}, {}
    for modality in registry.modalities:
        name, rows = modality.name, rows_of(data, modality.part)
        if is_minified(data):
            sources[name] = AbsentSource(data.n_obs, modality.n_features)
            if (found := measured_of(data, name)) is not None:
                patterns[name] = found
        else:
            sources[name] = _open(data, modality, rows)
        if rows is not None and (rows < 0).any():
            present[name] = torch.from_numpy(rows >= 0)
        if modality.gaps is not None and not is_minified(data):
            found = patterns_of(data, modality, sources[name], codes[:, modality.gaps.column], rows)
            if found is not None:
                patterns[name], sources[name] = found, MaskedSource(sources[name], found)
    continuous = np.zeros((data.n_obs, len(registry.continuous_keys)), dtype=np.float32)
    for i, (key, moments) in enumerate(registry.continuous.items()):
        column = obs_column(data, key, "The model's continuous covariate key")
        continuous[:, i] = continuous_of(column, key, moments)
    size_factor = None
    if registry.size_factor_key is not None:
        key = registry.size_factor_key
        size_factor = torch.from_numpy(size_factor_of(obs_column(data, key, "The model's size factor key"), key))
    return Dataset(
        registry=registry,
        sources=sources,
        codes=torch.from_numpy(codes),
        continuous=torch.from_numpy(continuous),
        size_factor=size_factor,
        obs_names=data.obs_names.copy(),
        present=present,
        patterns=patterns,
        stored=stored_of(data) if is_minified(data) else None,
    )


def covariate_codes(data: Container, registry: Registry, roles: Collection[Role] = ROLES) -> NDArray[np.int64]:
    """Read the categorical covariates of data as a model codes them; see :func:`bind`.

    Returns
    -------
    numpy.ndarray
        Shape ``(cells, columns)``; zero in columns that are not given, or not read.
    """
    codes = np.zeros((data.n_obs, len(registry.columns)), dtype=np.int64)
    for i in registry.columns_of(roles):
        codes[:, i] = codes_of(model_column(data, registry, i), registry.columns[i], registry.covariates.name(i))
    return codes


def _open(data: Container, modality: CountMatrix, rows: NDArray[np.int64] | None) -> CountSource:
    """Open the counts of a modality, one row for each cell of the data."""
    adata = part_of(data, modality)
    if adata is None or not adata.n_obs:
        nothing = InMemorySource(sp.csr_matrix((0, modality.n_features), dtype=np.float32))
        return UnpairedSource(nothing, np.full(data.n_obs, -1, dtype=np.int64))
    owner = part_text(modality.part)
    source = open_source(adata, modality.location, _align(adata, modality), owner)
    return source if rows is None else UnpairedSource(source, rows)


def missing_features(adata: AnnData, modality: CountMatrix) -> list[str]:
    """Features of a modality that data have no column for."""
    present = set(feature_names(adata, modality.location, modality.names_key))
    return [name for name in modality.feature_names if name not in present]


def _align(adata: AnnData, modality: CountMatrix) -> ColumnMap | None:
    owner, names = part_text(modality.part), feature_names(adata, modality.location, modality.names_key)
    missing = missing_features(adata, modality)
    if missing and modality.gaps is not None and len(missing) < modality.n_features:
        message = (
            f"{len(missing):,} of the model's {modality.n_features:,} {modality.noun}s have no column in "
            f"{location_text(modality.location, owner)}: {shorten(missing)}; they count as not measured."
        )
        warn(message, DataWarning)
    elif missing:
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
