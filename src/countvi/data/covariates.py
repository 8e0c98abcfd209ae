"""Covariate roles: which columns of ``obs`` serve which parts of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from countvi.errors import FileFormatError, shorten

Role = Literal[
    "batch", "labels", "categorical", "panel", "ambient", "conditioning", "scaling", "dispersion", "library", "encoder"
]
"""What a categorical covariate can be for; the fields of :class:`Covariates`."""
ROLES: frozenset[Role] = frozenset(get_args(Role))
"""All of them."""
RolesOf = Mapping[str, tuple[Role | Literal["continuous", "size_factor"], ...]]
"""The roles of the columns that each argument of a set-up names; an argument that ends in ``_keys`` names several."""

BATCH_COLUMN = 0
"""Column of the codes that holds the batch."""
LABELS_COLUMN = 1
"""Column of the codes that holds the labels."""
# What messages call a column; those that serve parts of a model otherwise are covariates.
_NAMED: tuple[Role, ...] = ("batch", "labels", "categorical", "panel")


@dataclass(frozen=True)
class Covariates:
    """Which columns of :attr:`countvi.batch.Design.codes` have which role; a column can have several.

    Roles of one column are ``None`` where nothing was given: the batch takes their place, see
    :meth:`countvi.data.Registry.factor`.

    Parameters
    ----------
    batch, labels
        Always the first two columns, with one level where nothing was given.
    categorical
        What all networks see that see the batch.
    panel
        Whose levels have an antibody panel of their own.
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

    batch: int = BATCH_COLUMN
    labels: int = LABELS_COLUMN
    categorical: tuple[int, ...] = ()
    panel: int | None = None
    ambient: tuple[int, ...] = ()
    conditioning: tuple[int, ...] = ()
    scaling: tuple[int, ...] = ()
    dispersion: int | None = None
    library: int | None = None
    encoder: tuple[int, ...] = ()

    @classmethod
    def serving(cls, served: Mapping[str, Sequence[int]]) -> Covariates:
        """Build from the columns that have each role."""
        many = {field.name for field in fields(cls) if isinstance(field.default, tuple)}
        given: dict[str, Any] = {r: tuple(columns) if r in many else columns[0] for r, columns in served.items()}
        return cls(**given)

    def of(self, column: int) -> tuple[Role, ...]:
        """Name the roles of a column."""
        return tuple(role for role in get_args(Role) if column in _as_tuple(getattr(self, role)))

    def columns(self, role: Role) -> tuple[int, ...]:
        """Return the columns that have a role."""
        return _as_tuple(getattr(self, role))

    def name(self, column: int) -> str:
        """Return what messages call a column."""
        roles = self.of(column)
        return next((role for role in _NAMED if role in roles), "covariate")

    def serves(self, column: int) -> str:
        """Return what a column is for: its roles besides being the batch or the labels, if it has any."""
        roles = self.of(column)
        return ", ".join([role for role in roles if role not in ("batch", "labels")] or roles)

    def to_json(self) -> dict[str, Any]:
        """Return them as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Covariates:
        """Build from what :meth:`to_json` returned; a role that was not known then has no columns.

        Raises
        ------
        FileFormatError
            If there are roles that are not known here.
        """
        unknown = sorted(values.keys() - ROLES)
        if unknown:
            message = (
                f"The model has covariates of a role not known here, {shorten(unknown)}: upgrade countvi to open it."
            )
            raise FileFormatError(message)
        read: dict[str, Any] = {role: tuple(use) if isinstance(use, list) else use for role, use in values.items()}
        return cls(**read)


def _as_tuple(use: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if use is None:
        return ()
    return (use,) if isinstance(use, int) else use
