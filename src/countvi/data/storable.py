"""Data as HDF5 can hold them: text with missing values becomes categories, in copies of the tables alone."""

from __future__ import annotations

from typing import Any

import pandas as pd
from anndata import AnnData


def storable(adata: Any) -> AnnData:
    """Return data with the same arrays whose columns of text can be written.

    Parameters
    ----------
    adata
        An AnnData in memory or backed; unchanged. It is returned itself where nothing has to change.
    """
    obs, var = storable_table(adata.obs), storable_table(adata.var)
    if obs is None and var is None:
        return adata
    tables: Any = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "varp")}
    raw: Any = None if adata.raw is None else {"X": adata.raw.X, "var": adata.raw.var, "varm": dict(adata.raw.varm)}
    return AnnData(
        X=adata.X,
        obs=adata.obs if obs is None else obs,
        var=adata.var if var is None else var,
        uns=dict(adata.uns),
        layers=dict(adata.layers),
        raw=raw,
        **tables,
    )


def storable_table(frame: pd.DataFrame) -> pd.DataFrame | None:
    """Return a copy whose text with missing values is categories; ``None`` where the table can be written as it is."""
    changed: dict[Any, Any] = {}
    for name, column in frame.items():
        if isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_string_dtype(column.dtype):
            continue
        if column.isna().any():
            changed[name] = pd.Categorical(column.astype(object))
        elif column.dtype != object:  # pandas' own type of text
            changed[name] = column.astype(object)
    return pd.DataFrame(frame).assign(**changed) if changed else None
