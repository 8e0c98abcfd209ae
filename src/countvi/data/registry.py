"""The registry: feature names, columns of ``obs``, their categories and roles, as a model was set up with them.

A :class:`Registry` is written once by ``setup_anndata`` or ``setup_mudata``, travels with the model through JSON, and
is all that is needed to read other data the same way (:func:`countvi.data.dataset.bind`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from countvi.batch import Factor
from countvi.data.covariates import LABELS_COLUMN, ROLES, Covariates, Role
from countvi.data.features import GENES, PEAKS, PROTEINS
from countvi.errors import FileFormatError, UnknownNameError, did_you_mean, shorten

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
        Where a matrix of booleans lies, true for what was measured, as in :attr:`CountMatrix.location`; or ``None``.
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
class CountMatrix:
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
    key
        Column of ``obs``; ``None`` for a covariate that was not given, which has one level, ``0``.
    categories
        Value of each code, as str, int, float or bool.
    """

    key: str | None
    categories: tuple[Category, ...]

    def codes(self) -> dict[tuple[bool, object], int]:
        """Return the code of each :func:`category_key`."""
        return {category_key(category): code for code, category in enumerate(self.categories)}


class Moments(NamedTuple):
    """What a continuous covariate is standardised by, in the units of its column of ``obs``."""

    mean: float = 0.0
    """Mean over the cells of the set-up; zero for values that are used as they are."""
    sd: float = 1.0
    """Standard deviation over the same cells; one for a constant column, and for values that are used as they are."""


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
    covariates
        Which columns serve which parts of the model.
    continuous_keys
        Columns of ``obs`` with continuous covariates.
    continuous_moments
        What each of them is standardised by; empty in models made before there were any, and in those of scvi-tools,
        which use the values as they are.
    size_factor_key
        Column of ``obs`` with size factors, or ``None``.
    """

    method: str
    setup_args: Mapping[str, Any]
    modalities: tuple[CountMatrix, ...]
    columns: tuple[Column, ...]
    covariates: Covariates = field(default_factory=Covariates)
    continuous_keys: tuple[str, ...] = ()
    continuous_moments: tuple[Moments, ...] = ()
    size_factor_key: str | None = None

    def modality(self, name: str) -> CountMatrix:
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
        return self.factor(self.covariates.batch)

    @property
    def labels(self) -> Factor:
        """The labels."""
        return self.factor(self.covariates.labels)

    def factor(self, column: int | None) -> Factor:
        """One column as a model names it; ``None``, a role that no column was given for, is that of the batch."""
        column = self.covariates.batch if column is None else column
        return Factor(column, len(self.columns[column].categories))

    def factors(self, columns: Sequence[int]) -> tuple[Factor, ...]:
        """Several columns as a model names them, in the order given."""
        return tuple(self.factor(column) for column in columns)

    @property
    def continuous(self) -> dict[str, Moments]:
        """The continuous covariates by column, with what each is standardised by."""
        moments = self.continuous_moments or (Moments(),) * len(self.continuous_keys)
        return dict(zip(self.continuous_keys, moments, strict=True))

    def columns_of(self, roles: Collection[Role]) -> list[int]:
        """Return the columns that were given and have one of some roles."""
        given = (i for i, column in enumerate(self.columns) if column.key is not None)
        return [i for i in given if not set(roles).isdisjoint(self.covariates.of(i))]

    def code_of(self, column_index: int, value: object) -> int:
        """Return the code of a category, looked up by value.

        Raises
        ------
        UnknownNameError
            If the covariate has no such category.
        """
        column, name = self.columns[column_index], self.covariates.name(column_index)
        codes = column.codes()
        if isinstance(value, Hashable) and category_key(value) in codes:
            return codes[category_key(value)]
        if column.key is None:
            message = f"{value!r} was asked for, but the model was set up without a {name} key."
        else:
            message = (
                f"{plain(value)!r} is not a category of obs[{column.key!r}] ({name}); the model knows "
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
            "columns": [{"key": c.key, "categories": list(c.categories)} for c in self.columns],
            "covariates": self.covariates.to_json(),
            "continuous_keys": list(self.continuous_keys),
            "continuous_moments": [list(moments) for moments in self.continuous_moments],
            "size_factor_key": self.size_factor_key,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Registry:
        """Build from what :meth:`to_json` returned.

        Raises
        ------
        FileFormatError
            If it is not whole: an entry is missing or of another type, a role has no column, or a name is there twice.
        """
        try:
            registry = cls(
                method=values["method"],
                setup_args=dict(values["setup_args"]),
                modalities=tuple(
                    CountMatrix(
                        m["name"],
                        m["location"],
                        tuple(m["feature_names"]),
                        part=m["part"],
                        feature_type=m["feature_type"],
                        names_key=m["names_key"],
                        gaps=None if m["gaps"] is None else Gaps.from_json(m["gaps"]),
                    )
                    for m in values["modalities"]
                ),
                columns=tuple(Column(c["key"], tuple(c["categories"])) for c in values["columns"]),
                covariates=Covariates.from_json(values["covariates"]),
                continuous_keys=tuple(values["continuous_keys"]),
                continuous_moments=tuple(Moments(*moments) for moments in values.get("continuous_moments", ())),
                size_factor_key=values["size_factor_key"],
            )
            registry.check()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            if isinstance(error, FileFormatError):
                raise
            message = f"The registry of the model is not whole ({type(error).__name__}: {str(error)[:_SHOWN]})."
            raise FileFormatError(message) from error
        return registry

    def check(self) -> None:
        """Check what was read from a file.

        Raises
        ------
        FileFormatError
            If it cannot be that of a model.
        """
        texts = [self.method, *self.continuous_keys, *(m.location for m in self.modalities)]
        texts += [name for m in self.modalities for name in (m.name, *m.feature_names)]
        keys = [self.size_factor_key, *(c.key for c in self.columns)]
        keys += [key for m in self.modalities for key in (m.part, m.feature_type, m.names_key)]
        wrong = [text for text in texts if not isinstance(text, str)]
        wrong += [key for key in keys if not isinstance(key, str | None)]
        wrong += [value for c in self.columns for value in c.categories if not isinstance(value, Category)]
        _require(not wrong, f"{str(wrong[:1])[:_SHOWN]} stands where a name should be")
        _require(len(self.columns) > LABELS_COLUMN and len(self.modalities) > 0, "it has no batch, or no counts")
        names = [m.name for m in self.modalities]
        _require(len(set(names)) == len(names), f"it has several modalities of one name, {shorten(names)}")
        for modality in self.modalities:
            seen: set[str] = set()
            again = [name for name in modality.feature_names if name in seen or seen.add(name)]
            _require(not again, f"{modality.name} names the {modality.noun} {shorten(again)} more than once")
            _require(modality.n_features > 0, f"{modality.name} has no {modality.noun}")
        for column in self.columns:
            _require(0 < len(column.codes()) == len(column.categories), f"{column.key!r} has a category twice, or none")
        used = [self.covariates.batch, self.covariates.labels]
        used += [column for role in ROLES for column in self.covariates.columns(role)]
        used += [m.gaps.column for m in self.modalities if m.gaps is not None]
        levels = range(len(self.columns))
        _require(all(type(i) is int and i in levels for i in used), "a covariate has a column that is not there")
        for modality in self.modalities:
            _check_gaps(modality, self.columns)


_SHOWN = 100  # characters of a value in a message


def _require(fine: bool, otherwise: str) -> None:
    if not fine:
        message = f"The registry of the model is damaged: {otherwise}."
        raise FileFormatError(message)


def _check_gaps(modality: CountMatrix, columns: Sequence[Column]) -> None:
    gaps = modality.gaps
    if gaps is None:
        return
    _require(isinstance(gaps.mask, str | None), "a mask has no name")
    n_levels = len(columns[gaps.column].categories)
    _require(len(gaps.unmeasured) in (0, n_levels), "the features that were not measured are of other batches")
    positions = [i for level in gaps.unmeasured for i in level]
    inside = all(type(i) is int and 0 <= i < modality.n_features for i in positions)
    _require(inside, "a feature that was not measured is not there")
