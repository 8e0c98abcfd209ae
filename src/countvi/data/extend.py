"""What a model remembers of its data, with the categories of further data added."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

from countvi.data.columns import categories_of
from countvi.data.container import obs_column
from countvi.data.registry import Column, Registry, category_key

if TYPE_CHECKING:
    from countvi.data.container import Container


def extend(registry: Registry, data: Container, optional: Collection[str] = ()) -> Registry:
    """Add the categories of a query that the registry of a reference does not have.

    Parameters
    ----------
    registry
        What the reference was set up with.
    data
        The query; it is only read.
    optional
        Roles of columns that the model does not read. They keep their categories.

    Returns
    -------
    Registry
        The same, with new categories behind the known ones, so that known codes stay what they are.

    Raises
    ------
    UnknownNameError
        If a column is missing.
    DataError
        If a column cannot be used as a covariate.
    """
    columns = [
        _extended(column, data) if column.key is not None and registry.reads(i, optional) else column
        for i, column in enumerate(registry.columns)
    ]
    return dataclasses.replace(registry, columns=tuple(columns))


def _extended(column: Column, data: Container) -> Column:
    assert column.key is not None
    found = categories_of(obs_column(data, column.key, f"The model's {column.role} key"), column.key)
    known = column.codes()
    new = tuple(category for category in found if category_key(category) not in known)
    return dataclasses.replace(column, categories=(*column.categories, *new))
