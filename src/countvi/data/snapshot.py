"""What data looked like when a model was bound to them: cheap to take, and to compare with what they are now.

A model reads counts where they lie, in the memory of the user's matrix, and keeps the covariates that it read. Both can
change behind it: cells are filtered in place, renamed or sorted, a column of ``obs`` is written again, the matrix is
normalised.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from countvi.data.container import is_mudata

if TYPE_CHECKING:
    from countvi.data.container import Container
    from countvi.data.dataset import Dataset
    from countvi.data.registry import Registry

_SAMPLED = 1_024
"""Stored counts that are looked at: enough to see that a whole matrix was transformed, too few to take time."""


@dataclass(frozen=True, eq=False)
class DataSnapshot:
    """Names, covariates and counts of data at one time.

    Parameters
    ----------
    names
        Names of the cells, of a MuData those of each modality, too.
    covariates
        Checksum of each column of ``obs`` that the model reads, by name.
    counts
        Some stored counts of each modality that is in memory.
    """

    names: tuple[pd.Index, ...]
    covariates: dict[str, int]
    counts: dict[str, np.ndarray]

    @classmethod
    def of(cls, data: Container, dataset: Dataset) -> DataSnapshot:
        """Look at data that a model is bound to.

        Parameters
        ----------
        data
            What the user has.
        dataset
            What the model reads of it.
        """
        counts = {name: source.sampled(_SAMPLED) for name, source in dataset.sources.items() if source.in_memory}
        return cls(_names(data), _covariates(data, dataset.registry), counts)

    def same_cells(self, now: DataSnapshot) -> bool:
        """Whether the cells are the same, in the same order and by the same names."""
        return len(self.names) == len(now.names) and all(
            before is after or before.equals(after) for before, after in zip(self.names, now.names, strict=True)
        )

    def changed_covariates(self, now: DataSnapshot) -> list[str]:
        """Return the columns of ``obs`` that hold other values, or are gone."""
        return [key for key, value in self.covariates.items() if now.covariates.get(key) != value]

    def changed_counts(self, now: DataSnapshot) -> list[str]:
        """Return the modalities whose counts were written over."""
        return [name for name, values in self.counts.items() if not _equal(values, now.counts.get(name))]

    @property
    def whole(self) -> bool:
        """Whether the counts looked at are whole numbers."""
        return all(np.array_equal(values, np.floor(values)) for values in self.counts.values())


def _equal(before: np.ndarray, after: np.ndarray | None) -> bool:
    return after is not None and np.array_equal(before, after, equal_nan=True)


def _names(data: Container) -> tuple[pd.Index, ...]:
    parts = [adata.obs_names for adata in data.mod.values()] if is_mudata(data) else []
    return (data.obs_names, *parts)


def _covariates(data: Container, registry: Registry) -> dict[str, int]:
    keys = [column.key for column in registry.columns if column.key is not None]
    keys += [*registry.continuous_keys, *([] if registry.size_factor_key is None else [registry.size_factor_key])]
    owners = [data, *data.mod.values()] if is_mudata(data) else [data]
    found = {}
    for key in keys:
        # Those of the modalities, too, of which a column may be put together.
        names = dict.fromkeys((key, key.partition(":")[2]))
        columns: list[Any] = [owner.obs[name] for owner in owners for name in names if name in owner.obs]
        found[key] = zlib.crc32(b"".join(map(_bytes, columns)))
    return found


def _bytes(values: pd.Series | pd.DataFrame) -> bytes:
    """What changes whenever a value does: of Python objects their addresses, as what they hold takes long to read."""
    if isinstance(values, pd.DataFrame):  # two columns of one name
        return b""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return repr(list(values.cat.categories)).encode() + values.cat.codes.to_numpy().tobytes()
    if isinstance(values.dtype, np.dtype):
        return values.to_numpy().tobytes()
    return np.ascontiguousarray(pd.Categorical(values).codes).tobytes() + repr(list(values.unique())).encode()
