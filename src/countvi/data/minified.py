"""Minified data: AnnData and MuData with the posterior of the latent variables instead of counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from countvi.batch import AbsentCounts, CountBlock
from countvi.data.container import LATENT_MEAN, MINIFIED_KEY, MINIFIED_TYPE, is_mudata
from countvi.data.measured import Patterns
from countvi.data.registry import Registry
from countvi.data.source import CountSource

if TYPE_CHECKING:
    from countvi.data.container import Container

_VARIANCE, _MEASURED = "_latent_{}_variance", "_countvi_{}_measured"

Stored = Mapping[str, tuple[Tensor, Tensor | None]]
"""Mean and standard deviation by latent variable; ``None`` for one that is given."""


class AbsentSource(CountSource):
    """Counts that were not kept.

    Parameters
    ----------
    n_cells, n_features
        How many there were.
    """

    def __init__(self, n_cells: int, n_features: int) -> None:
        self._shape = (n_cells, n_features)

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return self._shape[0]

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self._shape[1]

    @property
    def in_memory(self) -> bool:
        """Yes: there is nothing to read."""
        return True

    def take(self, rows: NDArray[np.integer]) -> CountBlock:
        """Raise, as there are none."""
        return AbsentCounts({})[""]


def minified(
    data: Container,
    registry: Registry,
    posterior: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    patterns: Mapping[str, Patterns],
) -> Any:
    """Make data without counts that a model reads as those with counts.

    Parameters
    ----------
    data
        The cells; they are only read.
    registry
        What the model was set up with.
    posterior
        Mean and standard deviation of each latent variable, ``(cells, ...)``.
    patterns
        Which features were measured in which cells, by modality; those measured whole are left out.

    Returns
    -------
    AnnData or MuData
        ``obs``, the names of the features, and in ``obsm`` the posterior and what was measured.
    """
    obsm = {_MEASURED.format(name): p.of(torch.arange(len(p.code))).numpy() for name, p in patterns.items()}
    for name, (loc, scale) in posterior.items():
        obsm[LATENT_MEAN.format(name)] = _as_matrix(loc)
        if scale is not None:
            obsm[_VARIANCE.format(name)] = _as_matrix(np.square(scale))
    if not is_mudata(data):
        assert isinstance(data, AnnData)
        small: Any = _bare(data, registry.modalities[0].feature_names)
    else:
        from mudata import MuData, set_options

        names = {m.part: m.feature_names for m in registry.modalities}
        parts = {part: _bare(cast("AnnData", data.mod[part]), names[part]) for part in data.mod if part in names}
        with set_options(pull_on_update=False):
            small = MuData(parts)
        small.obs = pd.DataFrame(data.obs).loc[small.obs_names].copy()
        rows = data.obs_names.get_indexer(small.obs_names)
        obsm = {key: values[rows] for key, values in obsm.items()}
    for key, values in obsm.items():
        small.obsm[key] = values
    small.uns[MINIFIED_KEY] = MINIFIED_TYPE
    return small


def stored_of(data: Container) -> Stored:
    """Read the posterior of all cells."""
    start, end = LATENT_MEAN.split("{}")
    stored: dict[str, tuple[Tensor, Tensor | None]] = {}
    for key in data.obsm:
        if not (key.startswith(start) and key.endswith(end)):
            continue
        name = key[len(start) : -len(end)]
        variance = data.obsm.get(_VARIANCE.format(name))
        scale = None if variance is None else _as_tensor(variance).sqrt()
        stored[name] = (_as_tensor(data.obsm[key]), scale)
    return stored


def measured_of(data: Container, modality: str) -> Patterns | None:
    """Read which features of a modality were measured in which cells; ``None`` if all in all."""
    measured = data.obsm.get(_MEASURED.format(modality))
    return None if measured is None else Patterns.from_mask(np.asarray(measured, dtype=bool))


def _bare(adata: AnnData, names: tuple[str, ...]) -> AnnData:
    return AnnData(obs=pd.DataFrame(adata.obs).copy(), var=pd.DataFrame(index=pd.Index(names, dtype=object)))


def _as_matrix(values: np.ndarray) -> np.ndarray:
    # One number per cell is one column, and is told from a vector of length one by the latent variable's prior.
    return np.asarray(values, dtype=np.float32).reshape(len(values), -1)


def _as_tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))
