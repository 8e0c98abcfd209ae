"""AnnData and MuData alike: their parts, the cells that each part has, columns of ``obs``.

A MuData is recognised without importing mudata: who has one has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeGuard

import numpy as np
import pandas as pd
from anndata import AnnData

from countvi.errors import DataError, DataWarning, UnknownNameError, did_you_mean, shorten, warn

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import NDArray

    from countvi.data.registry import CountMatrix

    Container = AnnData | MuData

MINIFIED_KEY = "_scvi_adata_minify_type"
"""Entry of ``uns`` that marks data with a posterior instead of counts, as in scvi-tools."""
MINIFIED_TYPE: Final = "latent_posterior_parameters"
"""What stands there."""
LATENT_MEAN = "_latent_{}_mean"
"""Where countvi keeps the mean of a latent variable in ``obsm``."""


def is_mudata(data: object) -> TypeGuard[MuData]:
    """Whether it is a MuData."""
    module = sys.modules.get("mudata")
    return module is not None and isinstance(data, module.MuData)


def checked(adata: object, name: str = "adata") -> AnnData:
    """Return what came if it is an AnnData with cells and genes in which a gene is known by its name.

    Parameters
    ----------
    adata
        What came.
    name
        How a user spells it, for messages.

    Raises
    ------
    DataError
        If it is something else, if there are none, or if names of genes are repeated.
    """
    if not isinstance(adata, AnnData):
        message = f"An AnnData is expected here; got {type(adata).__module__}.{type(adata).__name__}."
        raise DataError(message)
    _refuse_minified_elsewhere(adata, name)
    what = "The AnnData" if name == "adata" else name
    if adata.n_obs == 0 or adata.n_vars == 0:
        message = f"{what} is empty: {adata.n_obs} cells and {adata.n_vars} genes; at least one of each is needed."
        raise DataError(message)
    repeated = adata.var_names[adata.var_names.duplicated()].unique()
    if len(repeated):
        message = (
            f"{len(repeated):,} names occur more than once in {name}.var_names: {shorten(list(repeated))}; genes are "
            f"matched by name, so names must be distinct. Call `{name}.var_names_make_unique()` first."
        )
        raise DataError(message)
    return adata


def is_minified(data: Container) -> bool:
    """Whether data hold a posterior instead of counts, as ``minify_adata`` of countvi makes them."""
    return data.uns.get(MINIFIED_KEY) == MINIFIED_TYPE and any(map(_is_latent_mean, data.obsm))


def _is_latent_mean(key: object) -> bool:
    start, end = LATENT_MEAN.split("{}")
    return str(key).startswith(start) and str(key).endswith(end)


def _refuse_minified_elsewhere(data: Container, name: str) -> None:
    # What scvi-tools minified with the counts kept has another type, and its counts are read.
    if data.uns.get(MINIFIED_KEY) == MINIFIED_TYPE and not is_minified(data):
        message = (
            f"{name} was minified by scvi-tools: it holds the posterior of one of its models instead of counts, which "
            "countvi cannot read; give the data with their counts, as they were before minify_adata."
        )
        raise DataError(message)


def check_container(data: object, modalities: Sequence[CountMatrix]) -> None:
    """Check that data are of the kind that a model was set up with, and that their parts can be read.

    Raises
    ------
    DataError
        If they are not, or are empty, or a MuData has none of the modalities.

    Warns
    -----
    DataWarning
        If a MuData lacks some of the modalities.
    """
    parts = [m.part for m in modalities if m.part is not None]
    if not parts:
        checked(data)
        return
    mdata = as_mudata(data)
    known = [part for part in parts if part in mdata.mod]
    if not known:
        message = (
            f"The MuData has none of the model's modalities: it has {shorten(list(mdata.mod))}, the model "
            f"{shorten(parts)}.{did_you_mean(parts[0], mdata.mod)} Rename its modalities."
        )
        raise DataError(message)
    for part in parts:
        if part not in mdata.mod:
            message = (
                f"The MuData has no modality {part!r}, which the model has: its cells count as not measured in it."
                f"{did_you_mean(part, mdata.mod)}"
            )
            warn(message, DataWarning)
    for part in known:
        if mdata.mod[part].n_obs:
            checked(mdata.mod[part], part_text(part))


def as_mudata(data: object) -> MuData:
    """Return what came if it is a MuData whose modalities share their cells.

    Raises
    ------
    DataError
        If it is not, or if it has no cells.
    """
    if not is_mudata(data):
        message = (
            f"A MuData is expected here; got {type(data).__module__}.{type(data).__name__}. Several modalities of "
            "the same cells are given as `mudata.MuData({'rna': adata, ...})`."
        )
        raise DataError(message)
    _refuse_minified_elsewhere(data, "mdata")
    if data.axis == 1:
        message = "The modalities of this MuData share features (axis=1); modalities that share cells are expected."
        raise DataError(message)
    if data.n_obs == 0:
        message = "The MuData is empty: it has no cells; at least one is needed."
        raise DataError(message)
    return data


def part_of(data: Container, modality: CountMatrix) -> AnnData | None:
    """Return the AnnData that a modality lies in; ``None`` if a MuData does not have it."""
    if modality.part is None:
        assert isinstance(data, AnnData)
        return data
    assert is_mudata(data)
    adata = data.mod.get(modality.part)
    assert adata is None or isinstance(adata, AnnData)
    return adata


def part_text(part: str | None) -> str:
    """Spell the AnnData that a modality lies in the way a user would."""
    return "adata" if part is None else f"mdata[{part!r}]"


def rows_of(data: Container, part: str | None) -> NDArray[np.int64] | None:
    """Return the row of each cell in a modality, and -1 where it is not measured there.

    Parameters
    ----------
    data
        The data.
    part
        Which modality of a MuData; ``None`` for an AnnData.

    Returns
    -------
    numpy.ndarray or None
        Shape ``(cells,)``; ``None`` where every cell is there, in the same order.

    Raises
    ------
    DataError
        If the MuData was not brought up to date after one of its modalities changed.
    """
    if part is None:
        return None
    assert is_mudata(data)
    if part not in data.mod:
        return np.full(data.n_obs, -1, dtype=np.int64)
    rows = np.asarray(data.obsmap[part]).ravel().astype(np.int64) - 1
    n_rows = data.mod[part].n_obs
    if len(rows) != data.n_obs or (rows >= 0).sum() != n_rows or rows.max(initial=-1) >= n_rows:
        message = (
            f"mdata[{part!r}] has {n_rows:,} cells, and the MuData knows of {int((rows >= 0).sum()):,}: it was changed "
            "after the MuData was made. Call `mdata.update()`."
        )
        raise DataError(message)
    return None if np.array_equal(rows, np.arange(n_rows)) and n_rows == data.n_obs else rows


def obs_column(data: Container, key: str, argument: str) -> pd.Series:
    """Return one column of ``obs``.

    That of a MuData is looked for in ``mdata.obs`` first. If it is not there, those of the modalities are put together:
    each cell takes the value of a modality that has the cell, and they must agree. ``"rna:batch"`` is the column
    ``batch`` of the modality ``rna`` alone, where there is one; ``mdata.obs`` may have a copy under that name, which
    does not follow the modality.

    Parameters
    ----------
    data
        The data.
    key
        Name of the column.
    argument
        What the column was asked for as, for the message.

    Returns
    -------
    pandas.Series
        One value per cell; missing where no modality with the column has the cell.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    DataError
        If there are several, or modalities disagree.
    """
    name = "mdata" if is_mudata(data) else "adata"
    if is_mudata(data):
        part, _, column = key.partition(":")
        if part in data.mod and column in data.mod[part].obs.columns:
            return _merge(data, column, [part], argument)
    if key in data.obs.columns:
        column = data.obs[key]
        if isinstance(column, pd.DataFrame):
            message = f"{argument}: {name}.obs has {column.shape[1]} columns named {key!r}; names must be distinct."
            raise DataError(message)
        return column
    known = [str(name) for name in data.obs.columns]
    if is_mudata(data):
        having = [part for part, adata in data.mod.items() if key in adata.obs.columns]
        if having:
            return _merge(data, key, having, argument)
        known += sorted({str(name) for adata in data.mod.values() for name in adata.obs.columns} - set(known))
    has = f"it has {shorten(known, limit=10)}" if known else "it has no columns"
    message = f"{argument}: {name}.obs has no column {key!r}; {has}.{did_you_mean(key, known)}"
    raise UnknownNameError(message)


def _merge(mdata: MuData, key: str, parts: Sequence[str], argument: str) -> pd.Series:
    """Put the columns of several modalities together."""
    columns = [obs_column(mdata.mod[part], key, f"{argument} in mdata[{part!r}]") for part in parts]
    everything = _concatenate(columns)
    values, missing = everything.to_numpy(dtype=object), everything.isna().to_numpy()
    chosen = np.full(mdata.n_obs, -1, dtype=np.int64)
    start = 0
    for part, column in zip(parts, columns, strict=True):
        rows = rows_of(mdata, part)
        rows = np.arange(mdata.n_obs) if rows is None else rows
        candidate = np.where(rows >= 0, rows + start, -1)
        candidate[(candidate >= 0) & missing[candidate]] = -1
        both = np.flatnonzero((candidate >= 0) & (chosen >= 0))
        differ = both[values[candidate[both]] != values[chosen[both]]]
        if len(differ):
            first = differ[0]
            message = (
                f"{argument}: obs[{key!r}] differs between the modalities {shorten(parts)} in {len(differ):,} cells; "
                f"that of {str(mdata.obs_names[first])!r} is {values[chosen[first]]!r} and "
                f"{values[candidate[first]]!r}. Put the column to use into mdata.obs."
            )
            raise DataError(message)
        chosen = np.where(chosen >= 0, chosen, candidate)
        start += len(column)
    merged = everything.reindex(chosen)  # -1 is no row, and gives a missing value
    return merged.set_axis(mdata.obs_names).rename(key)


def _concatenate(columns: Sequence[pd.Series]) -> pd.Series:
    if len(columns) > 1 and all(isinstance(column.dtype, pd.CategoricalDtype) for column in columns):
        return pd.Series(pd.api.types.union_categoricals(columns))
    return pd.concat(columns, ignore_index=True)
