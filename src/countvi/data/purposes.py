"""Covariates by purpose: which columns of ``obs`` serve which part of a model, as a user says it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from countvi.data.columns import continuous_of, read_column
from countvi.data.container import obs_column
from countvi.data.registry import BATCH_COLUMN, LABELS_COLUMN, Column, Purposes
from countvi.errors import DataError, DataWarning, OptionError, shorten

if TYPE_CHECKING:
    from countvi.data.container import Container

_OF_THE_BATCH = ("ambient_covariate_keys", "dispersion_key", "library_size_key")
_ONE = ("batch_key", "labels_key", "dispersion_key", "library_size_key")
_MANY = (
    "ambient_covariate_keys",
    "nn_conditioning_covariate_keys",
    "feature_scaling_covariate_keys",
    "encoder_covariate_keys",
    "nn_continuous_covariate_keys",
)


@dataclass(frozen=True)
class CovariateKeys:
    """Columns of ``obs`` by purpose, checked.

    Parameters
    ----------
    batch_key
        Serves as ambient, dispersion and library size key at once; not together with one of these three.
    labels_key
        Labels of cells, such as cell types. Models do not read them: covariates are compared with them.
    ambient_covariate_keys
        Whose levels have a background of their own; by default one background serves all cells.
    nn_conditioning_covariate_keys
        What the decoder sees.
    nn_continuous_covariate_keys
        Continuous covariates, which encoders and decoder see.
    feature_scaling_covariate_keys
        Whose levels have feature factors of their own.
    dispersion_key
        Whose levels have dispersions of their own; by default one set of dispersions serves all cells.
    library_size_key
        Whose levels have a library size prior of their own; by default one serves all cells.
    encoder_covariate_keys
        What the encoders see besides counts; ``False`` for nothing.

    Raises
    ------
    OptionError
        If a name stands where a list is expected or the other way round, or if ``batch_key`` is given together with a
        key that it stands for.
    DataError
        If a column is named twice for one purpose, or both as categorical and continuous.

    Warns
    -----
    DataWarning
        If the encoders shall see covariates.
    """

    batch_key: str | None = None
    labels_key: str | None = None
    ambient_covariate_keys: Sequence[str] | None = None
    nn_conditioning_covariate_keys: Sequence[str] | None = None
    nn_continuous_covariate_keys: Sequence[str] | None = None
    feature_scaling_covariate_keys: Sequence[str] | None = None
    dispersion_key: str | None = None
    library_size_key: str | None = None
    encoder_covariate_keys: Sequence[str] | Literal[False] | None = False

    def __post_init__(self) -> None:
        for name in _MANY:
            given = getattr(self, name)
            if given is not False or name != "encoder_covariate_keys":
                object.__setattr__(self, name, None if given is None else as_keys(given, name))
        for name in _ONE:
            given = getattr(self, name)
            if given is not None and not isinstance(given, str):
                message = f"{name} must be the name of one column of obs; got {given!r}."
                raise OptionError(message)
        clash = [name for name in _OF_THE_BATCH if getattr(self, name) is not None]
        if self.batch_key is not None and clash:
            message = (
                f"batch_key={self.batch_key!r} is given together with {' and '.join(clash)}, which it stands for. "
                "There are two ways: batch_key alone, which then serves as ambient, dispersion and library size key; "
                f"or {', '.join(_OF_THE_BATCH)} by themselves, without batch_key."
            )
            raise OptionError(message)
        self._check_distinct()
        if self.encoder_covariate_keys:
            message = (
                f"encoder_covariate_keys={list(self.encoder_covariate_keys)}: encoders that see technical covariates "
                "can carry them into the cell state. The default, False, lets them see counts only."
            )
            warnings.warn(message, DataWarning, stacklevel=4)

    def to_json(self) -> dict[str, Any]:
        """Return what was given, as JSON values."""
        return asdict(self)

    def _check_distinct(self) -> None:
        for name in _MANY:
            repeated = [key for key, times in Counter(getattr(self, name) or ()).items() if times > 1]
            if repeated:
                message = f"{name} names {shorten(repeated)} more than once; name each column once."
                raise DataError(message)
        categorical = {getattr(self, name) for name in _ONE}
        for name in _MANY[:-1]:
            categorical |= set(getattr(self, name) or ())
        both = [key for key in self.nn_continuous_covariate_keys or () if key in categorical]
        if both:
            message = (
                f"{shorten(both)} is named in nn_continuous_covariate_keys and also as a categorical covariate; "
                "choose one."
            )
            raise DataError(message)


def as_keys(keys: Any, argument: str) -> list[str]:
    """Return names of columns as a list.

    Raises
    ------
    OptionError
        If they are a single string, or no names.
    """
    if isinstance(keys, str):
        message = f"{argument} must be a list of column names; got the string {keys!r}. Write [{keys!r}]."
        raise OptionError(message)
    names = None if isinstance(keys, bool) else [] if keys is None else list(keys)
    if names is None or not all(isinstance(name, str) for name in names):
        message = f"{argument} must be a list of column names; got {keys!r}."
        raise OptionError(message)
    return names


def read_columns(
    data: Container, keys: CovariateKeys, *, scale_by_conditioning: bool = False
) -> tuple[tuple[Column, ...], Purposes]:
    """Read the categories of every column named, each once however many purposes it serves.

    Parameters
    ----------
    data
        The data.
    keys
        What the user chose.
    scale_by_conditioning
        Without feature scaling keys, let the conditioning keys scale features.

    Returns
    -------
    tuple
        The columns, batch first and labels second, and which of them serve what.

    Raises
    ------
    UnknownNameError
        If a column does not exist.
    DataError
        If a column cannot be used as what it was given for.
    """
    columns = [
        read_column(data, "batch", keys.batch_key, "batch_key"),
        read_column(data, "labels", keys.labels_key, "labels_key"),
    ]
    at = {key: i for i, key in ((LABELS_COLUMN, keys.labels_key), (BATCH_COLUMN, keys.batch_key)) if key is not None}

    def index(key: str, argument: str) -> int:
        if key not in at:
            at[key] = len(columns)
            columns.append(read_column(data, "covariate", key, argument))
        return at[key]

    def indices(argument: str) -> tuple[int, ...]:
        return tuple(index(key, argument) for key in getattr(keys, argument) or ())

    by_conditioning = scale_by_conditioning and keys.feature_scaling_covariate_keys is None
    purposes = Purposes(
        ambient=indices("ambient_covariate_keys") or (BATCH_COLUMN,),
        conditioning=indices("nn_conditioning_covariate_keys"),
        scaling=indices("nn_conditioning_covariate_keys" if by_conditioning else "feature_scaling_covariate_keys"),
        dispersion=BATCH_COLUMN if keys.dispersion_key is None else index(keys.dispersion_key, "dispersion_key"),
        library=BATCH_COLUMN if keys.library_size_key is None else index(keys.library_size_key, "library_size_key"),
        encoder=indices("encoder_covariate_keys"),
    )
    for key in keys.nn_continuous_covariate_keys or ():
        continuous_of(obs_column(data, key, "nn_continuous_covariate_keys"), key)
    return tuple(columns), purposes
