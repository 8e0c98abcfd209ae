"""Options of the models: an argument's type, default and check stand in one annotated field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from countvi.errors import FileFormatError, OptionError, choose, shorten

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")

NOT_OPTIONS = ("self", "adata", "mdata", "seed", "__class__")
"""Local variables of a constructor that are no options."""


@dataclass(frozen=True)
class Rule:
    """What a number must be.

    Parameters
    ----------
    kind
        ``int`` or ``float``.
    fits
        Whether a number may be used.
    words
        What it must be, in words.
    """

    kind: type
    fits: Callable[[float], bool]
    words: str

    def __call__(self, name: str, value: Any) -> Any:
        """Return the value of an argument as a Python number.

        Raises
        ------
        OptionError
            If it is not what it must be.
        """
        accepted = (int, np.integer) if self.kind is int else (int, float, np.integer, np.floating)
        real = isinstance(value, accepted) and not isinstance(value, bool)
        if not real or not math.isfinite(value) or not self.fits(float(value)):
            guess = self.kind is int and isinstance(value, (float, np.floating)) and math.isfinite(value)
            fix = f" Did you mean {round(value)}?" if guess and self.fits(round(value)) else ""
            message = f"{name} must be {self.words}; got {value!r}.{fix}"
            raise OptionError(message)
        return self.kind(value)


WHOLE = Rule(int, lambda value: value >= 1, "a whole number of at least 1")
POSITIVE = Rule(float, lambda value: value > 0, "a positive number")
NOT_NEGATIVE = Rule(float, lambda value: value >= 0, "a number of at least 0")
RATE = Rule(float, lambda value: 0 <= value < 1, "at least 0 and less than 1")
SHARE = Rule(float, lambda value: 0 < value < 1, "between 0 and 1")
PROBABILITY = Rule(float, lambda value: 0 <= value <= 1, "between 0 and 1")


@dataclass(frozen=True)
class Each:
    """A rule for a number that is given once for all modalities, or for each by name.

    Parameters
    ----------
    rule
        What each of them must be.
    """

    rule: Rule

    def __call__(self, name: str, value: Any) -> Any:
        """Return the number, or a dictionary of numbers.

        Raises
        ------
        OptionError
            If one is not what it must be.
        """
        if not isinstance(value, Mapping):
            return self.rule(name, value)
        return {key: self.rule(f"{name}[{key!r}]", number) for key, number in value.items()}


Whole = Annotated[int, WHOLE]
Positive = Annotated[float, POSITIVE]
Weight = Annotated[float, NOT_NEGATIVE]
Rate = Annotated[float, RATE]
Share = Annotated[float, SHARE]
EachWhole = Annotated[int | Mapping[str, int], Each(WHOLE)]
EachPositive = Annotated[float | Mapping[str, float], Each(POSITIVE)]
EachRate = Annotated[float | Mapping[str, float], Each(RATE)]
EachShare = Annotated[float | Mapping[str, float], Each(SHARE)]
Where = Literal["encoder", "decoder", "none", "both"]


def check(options: DataclassInstance) -> None:
    """Check each field of a data class of options by its annotation; its ``__post_init__`` calls this.

    An annotation is a type of this file (``Whole``, ``Rate``, ...), ``bool``, a ``Literal``, ``Annotated[str, {...}]``
    from what a user may write to what is meant, or any other type, which is not checked; ``| None`` allows ``None``.

    Raises
    ------
    OptionError
        If one is outside what it may be.
    """
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if value is not None or NoneType not in kinds:
            object.__setattr__(options, name, _checked(name, value, kinds[0]))


def among(options: type[Options], given: Mapping[str, Any]) -> Options:
    """Take options from the local variables at the start of a constructor, or from a saved model.

    Raises
    ------
    OptionError
        If one is outside what it may be.
    FileFormatError
        If there is one that the data class does not have.
    """
    known = {field.name for field in dataclasses.fields(options)}
    found = {name: value for name, value in given.items() if name not in NOT_OPTIONS}
    if unknown := sorted(found.keys() - known):
        message = (
            f"The saved model has options that this version of countvi does not know: {shorten(unknown)}. It was "
            "changed by hand or written by a newer version; update countvi."
        )
        raise FileFormatError(message)
    return options(**found)


def _checked(name: str, value: Any, kind: Any) -> Any:
    if kind is bool:
        return check_flag(name, value)
    if get_origin(kind) is Literal:
        return choose(name, value, {option: option for option in get_args(kind)})
    if get_origin(kind) is Annotated:
        rule = kind.__metadata__[0]
        return choose(name, value, rule) if isinstance(rule, Mapping) else rule(name, value)
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return what is true or false.

    Raises
    ------
    OptionError
        If it is neither.
    """
    if not isinstance(value, (bool, np.bool_)):
        message = f"{name} must be True or False; got {value!r}."
        raise OptionError(message)
    return bool(value)
