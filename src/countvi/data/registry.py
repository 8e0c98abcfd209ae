"""What a model remembers of the data it was set up with: feature names, keys and categories, no numbers.

A :class:`Registry` is written once by ``setup_anndata`` or ``setup_mudata``, travels with the model through JSON, and
is all that is needed to read other data the same way (:func:`countvi.data.dataset.bind`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from countvi.batch import Factor
from countvi.data.features import GENES, PEAKS, PROTEINS
from countvi.errors import UnknownNameError, did_you_mean, shorten

BATCH_COLUMN = 0
"""Column of the codes that holds the batch."""
LABELS_COLUMN = 1
"""Column of the codes that holds the labels."""

_NOUNS = {None: "gene", GENES: "gene", PEAKS: "peak", PROTEINS: "protein"}

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
class Gaps:
    """Which entries of a matrix were not measured, so that a zero can be told from nothing.

    NaN always stands for what was not measured, and so does a feature that the data have no column for.

    Parameters
    ----------
    column
        Column of the codes with the panel (or batch) of each cell.
    mask
        Where a matrix of booleans lies, true for what was measured, as in :attr:`Modality.location`; or ``None``.
    unmeasured
        For each level of the column, positions of the features that were not measured in its cells; empty for none.
    """

    column: int
    mask: str | None = None
    unmeasured: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Gaps:
        """Build from the dictionary of its fields."""
        return cls(values["column"], values["mask"], tuple(tuple(level) for level in values["unmeasured"]))


@dataclass(frozen=True)
class Modality:
    """One count matrix.

    Parameters
    ----------
    name
        Key of :attr:`countvi.batch.Batch.counts`.
    location
        Where the matrix lies in its AnnData: ``"X"``, ``"layers/<key>"`` or ``"obsm/<key>"``.
    feature_names
        Names of its features (genes, proteins, peaks), in the model's order.
    part
        Which modality of a MuData that AnnData is; ``None`` where the data are an AnnData.
    feature_type
        What its features are, in the words of :mod:`countvi.data.features`; ``None`` if nothing tells.
    names_key
        Entry of ``uns`` with the names of the columns of an array in ``obsm``, or ``None``.
    gaps
        Which entries were not measured, where that can be; ``None`` where all must be there.
    """

    name: str
    location: str
    feature_names: tuple[str, ...]
    part: str | None = None
    feature_type: str | None = None
    names_key: str | None = None
    gaps: Gaps | None = None

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.feature_names)

    @property
    def noun(self) -> str:
        """What a feature is called in messages."""
        return _NOUNS.get(self.feature_type, "feature")


@dataclass(frozen=True)
class Column:
    """One column of :attr:`countvi.batch.Design.codes`.

    Parameters
    ----------
    role
        What the covariate is for: ``"batch"``, ``"labels"``, ``"categorical"``, ``"panel"``, or ``"covariate"`` where
        :class:`Purposes` says it.
    key
        Column of ``obs``; ``None`` for a covariate that was not given, which has one level, ``0``.
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
class Purposes:
    """Which columns of :attr:`countvi.batch.Design.codes` serve which part of a model; one can serve several.

    Parameters
    ----------
    ambient
        Whose levels have a background of their own; backgrounds are summed over columns.
    conditioning
        What the decoder sees.
    scaling
        Whose levels have feature factors of their own, multiplied over columns; empty for one set of factors.
    dispersion
        Whose levels have a dispersion of their own.
    library
        Whose levels have a library size prior of their own.
    encoder
        What the encoders see.
    """

    ambient: tuple[int, ...] = (BATCH_COLUMN,)
    conditioning: tuple[int, ...] = ()
    scaling: tuple[int, ...] = ()
    dispersion: int = BATCH_COLUMN
    library: int = BATCH_COLUMN
    encoder: tuple[int, ...] = ()

    def of(self, column: int) -> tuple[str, ...]:
        """Name the purposes that a column serves."""
        served = ((f.name, getattr(self, f.name)) for f in fields(self))
        return tuple(name for name, use in served if column == use or (isinstance(use, tuple) and column in use))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Purposes:
        """Build from the dictionary of its fields."""
        read: dict[str, Any] = {name: tuple(use) if isinstance(use, list) else use for name, use in values.items()}
        return cls(**read)


@dataclass(frozen=True)
class Registry:
    """What a model remembers of the data it was set up with.

    Parameters
    ----------
    method
        Name of the method that made it (``"setup_anndata"``, ``"setup_mudata"``).
    setup_args
        Arguments of that method, as JSON values.
    modalities
        The count matrices.
    columns
        The categorical covariates: batch first, labels second, then the others in the order they were given.
    continuous_keys
        Columns of ``obs`` with continuous covariates.
    size_factor_key
        Column of ``obs`` with size factors, or ``None``.
    purposes
        Which columns serve what, for models whose parts have covariates of their own; otherwise ``None``.
    """

    method: str
    setup_args: Mapping[str, Any]
    modalities: tuple[Modality, ...]
    columns: tuple[Column, ...]
    continuous_keys: tuple[str, ...] = ()
    size_factor_key: str | None = None
    purposes: Purposes | None = None

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
        return self.factor(BATCH_COLUMN)

    @property
    def labels(self) -> Factor:
        """The labels."""
        return self.factor(LABELS_COLUMN)

    @property
    def categorical(self) -> tuple[Factor, ...]:
        """The other categorical covariates."""
        return self.factors([i for i, column in enumerate(self.columns) if column.role == "categorical"])

    @property
    def panel(self) -> Factor:
        """Whose levels have a protein panel of their own: the panel if there is one, else the batch."""
        columns = [i for i, column in enumerate(self.columns) if column.role == "panel"]
        return self.factor(columns[0] if columns else BATCH_COLUMN)

    def factor(self, column: int) -> Factor:
        """One column as a model names it."""
        return Factor(column, len(self.columns[column].categories))

    def factors(self, columns: Sequence[int]) -> tuple[Factor, ...]:
        """Several columns as a model names them, in the order given."""
        return tuple(self.factor(column) for column in columns)

    def reads(self, column: int, optional: Collection[str] = ()) -> bool:
        """Whether a column is looked at, if those of some roles are not read for their role's sake."""
        wanted = self.columns[column].role not in optional
        return wanted or (self.purposes is not None and bool(self.purposes.of(column)))

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
            "modalities": [{**asdict(m), "feature_names": list(m.feature_names)} for m in self.modalities],
            "columns": [{"role": c.role, "key": c.key, "categories": list(c.categories)} for c in self.columns],
            "continuous_keys": list(self.continuous_keys),
            "size_factor_key": self.size_factor_key,
            "purposes": None if self.purposes is None else asdict(self.purposes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Registry:
        """Build from what :meth:`to_json` returned, by this or an earlier version."""
        purposes = values.get("purposes")
        return cls(
            method=values["method"],
            setup_args=dict(values["setup_args"]),
            modalities=tuple(
                Modality(
                    m["name"],
                    m["location"],
                    tuple(m["feature_names"]),
                    part=m.get("part"),
                    feature_type=m.get("feature_type"),
                    names_key=m.get("names_key"),
                    gaps=None if m.get("gaps") is None else Gaps.from_json(m["gaps"]),
                )
                for m in values["modalities"]
            ),
            columns=tuple(Column(c["role"], c["key"], tuple(c["categories"])) for c in values["columns"]),
            continuous_keys=tuple(values["continuous_keys"]),
            size_factor_key=values["size_factor_key"],
            purposes=None if purposes is None else Purposes.from_json(purposes),
        )
