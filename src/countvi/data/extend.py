"""Adding the categories of further data to a registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

from countvi.data.columns import categories_of, model_column, warn_of_look_alikes
from countvi.data.covariates import ROLES, Role
from countvi.data.registry import Registry, category_key

if TYPE_CHECKING:
    from countvi.data.container import Container


def extend(registry: Registry, data: Container, roles: Collection[Role] = ROLES) -> Registry:
    """Add the categories of a query that the registry of a reference does not have.

    Parameters
    ----------
    registry
        What the reference was set up with.
    data
        The query; it is only read.
    roles
        Roles of the covariates that the model reads. Columns that have none of them keep their categories.

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
    columns = list(registry.columns)
    for i in registry.columns_of(roles):
        key, known = columns[i].key, columns[i].codes()
        assert key is not None
        found = categories_of(model_column(data, registry, i), key)
        new = tuple(category for category in found if category_key(category) not in known)
        columns[i] = dataclasses.replace(columns[i], categories=(*columns[i].categories, *new))
        if new:
            warn_of_look_alikes(columns[i].categories, key)
    return dataclasses.replace(registry, columns=tuple(columns))
