"""What a model remembers of the data it was set up with: feature names, keys and categories, no numbers.

A :class:`Registry` is written once by ``setup_anndata``, travels with the model through JSON, and is all that is
needed to read another AnnData the same way (:func:`countvi.data.dataset.bind`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from countvi.batch import Factor
from countvi.errors import UnknownNameError, did_you_mean, shorten

BATCH_COLUMN = 0
"""Column of the codes that holds the batch."""
LABELS_COLUMN = 1
"""Column of the codes that holds the labels."""

Category = str | int | float | bool
"""What a category can be: the types that JSON tells apart."""


def plain(value: object) -> object:
    """Return a numpy scalar as the Python value it stands for, anything else unchanged."""
    if isinstance(value, str):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def category_key(value: object) -> tuple[bool, object]:
    """Return what two equal categories share: 1 and 1.0 are one category, 1 and True are two."""
    value = plain(value)
    return isinstance(value, bool), value


@dataclass(frozen=True)
class Modality:
    """One count matrix.

    Parameters
    ----------
    name
        Key of :attr:`countvi.batch.Batch.counts`.
    location
        Where the matrix lies in the AnnData: ``"X"`` or ``"layers/<key>"``.
    feature_names
        Names of its features (genes, proteins, peaks), in the model's order.
    """

    name: str
    location: str
    feature_names: tuple[str, ...]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.feature_names)


@dataclass(frozen=True)
class Column:
    """One column of :attr:`countvi.batch.Design.codes`.

    Parameters
    ----------
    role
        What the covariate is for: ``"batch"``, ``"labels"`` or ``"categorical"``.
    key
        Column of ``adata.obs``; ``None`` for a covariate that was not given, which has one level, ``0``.
    categories
        Value of each code, as str, int, float or bool.
    """

    role: str
    key: str | None
    categories: tuple[Category, ...]

    def codes(self) -> dict[tuple[bool, object], int]:
        """Return the code of each :func:`category_key`."""
        return {category_key(category): code for code, category in enumerate(self.categories)}


@dataclass(frozen=True)
class Registry:
    """What a model remembers of the data it was set up with.

    Parameters
    ----------
    method
        Name of the method that made it (``"setup_anndata"``).
    setup_args
        Arguments of that method, as JSON values.
    modalities
        The count matrices.
    columns
        The categorical covariates: batch first, labels second, then the others in the order they were given.
    continuous_keys
        Columns of ``adata.obs`` with continuous covariates.
    size_factor_key
        Column of ``adata.obs`` with size factors, or ``None``.
    """

    method: str
    setup_args: Mapping[str, Any]
    modalities: tuple[Modality, ...]
    columns: tuple[Column, ...]
    continuous_keys: tuple[str, ...] = ()
    size_factor_key: str | None = None

    def modality(self, name: str) -> Modality:
        """Return one count matrix by name.

        Raises
        ------
        UnknownNameError
            If the model has no such modality.
        """
        for modality in self.modalities:
            if modality.name == name:
                return modality
        known = [modality.name for modality in self.modalities]
        message = f"There is no modality {name!r}; the model has {shorten(known)}.{did_you_mean(name, known)}"
        raise UnknownNameError(message)

    @property
    def batch(self) -> Factor:
        """The batch."""
        return self._factor(BATCH_COLUMN)

    @property
    def labels(self) -> Factor:
        """The labels."""
        return self._factor(LABELS_COLUMN)

    @property
    def categorical(self) -> tuple[Factor, ...]:
        """The other categorical covariates."""
        return tuple(self._factor(i) for i, column in enumerate(self.columns) if column.role == "categorical")

    def _factor(self, index: int) -> Factor:
        return Factor(index, len(self.columns[index].categories))

    def code_of(self, column_index: int, value: object) -> int:
        """Return the code of a category, looked up by value.

        Raises
        ------
        UnknownNameError
            If the covariate has no such category.
        """
        column = self.columns[column_index]
        codes = column.codes()
        if isinstance(value, Hashable) and category_key(value) in codes:
            return codes[category_key(value)]
        if column.key is None:
            message = f"{value!r} was asked for, but the model was set up without a {column.role} key."
        else:
            message = (
                f"{plain(value)!r} is not a category of obs[{column.key!r}] ({column.role}); the model knows "
                f"{', '.join(map(repr, column.categories[:10]))}"
                f"{f' and {len(column.categories) - 10:,} more' if len(column.categories) > 10 else ''}."
                f"{did_you_mean(value, column.categories)}"
            )
        raise UnknownNameError(message)

    def to_json(self) -> dict[str, Any]:
        """Return the registry as JSON values."""
        return {
            "method": self.method,
            "setup_args": dict(self.setup_args),
            "modalities": [
                {"name": m.name, "location": m.location, "feature_names": list(m.feature_names)}
                for m in self.modalities
            ],
            "columns": [{"role": c.role, "key": c.key, "categories": list(c.categories)} for c in self.columns],
            "continuous_keys": list(self.continuous_keys),
            "size_factor_key": self.size_factor_key,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Registry:
        """Build from what :meth:`to_json` returned."""
        return cls(
            method=values["method"],
            setup_args=dict(values["setup_args"]),
            modalities=tuple(
                Modality(m["name"], m["location"], tuple(m["feature_names"])) for m in values["modalities"]
            ),
            columns=tuple(Column(c["role"], c["key"], tuple(c["categories"])) for c in values["columns"]),
            continuous_keys=tuple(values["continuous_keys"]),
            size_factor_key=values["size_factor_key"],
        )
