"""Every error that a user can meet, and the tree they hang on.

::

    CountviError
    ├── DataError (ValueError)          the counts or annotations are not what a model can use
    │   ├── UnknownNameError (KeyError) a key, gene, category or option that does not exist
    │   └── MismatchError               data that do not fit the data the model was set up with
    ├── OptionError (ValueError)        an argument outside what it may be
    │   └── UnknownArgumentError (TypeError) an argument that does not exist
    ├── NotTrainedError (RuntimeError)  a read-out was asked of a model without a fit
    ├── NotSetUpError (RuntimeError)    ``setup_anndata`` was not called on this object
    ├── NonFiniteError (RuntimeError)   training or a read-out met NaN or infinity
    └── FileFormatError (ValueError)    a model folder or file that cannot be read

    DataWarning (UserWarning)           something in the data that a user should look at
    TrainingWarning (UserWarning)       something in a fit that a user should look at

A message says what was expected, what came, and what to do, in one sentence each, with names, shapes
and counts. Errors are raised where data or arguments enter (``data``, ``estimators``, ``files``,
``cli``); ``assert`` guards only our own invariants.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
# Files of countvi, and what calls its functions for it: decorators of torch and of the standard library.
_OURS = str(Path(__file__).parent)
_BETWEEN = ("torch", "lightning", "lightning_fabric", "contextlib", "functools")


class CountviError(Exception):
    """Root of every error raised by countvi."""


class DataError(CountviError, ValueError):
    """The counts or annotations are not what a model can use."""


class UnknownNameError(DataError, KeyError):
    """A key, gene, category or option that does not exist."""

    def __str__(self) -> str:  # KeyError shows the repr of its message, quotes and escapes included
        return str(self.args[0]) if self.args else ""


class MismatchError(DataError):
    """Data that do not fit the data the model was set up with."""


class OptionError(CountviError, ValueError):
    """An argument outside what it may be."""


class UnknownArgumentError(OptionError, TypeError):
    """An argument that does not exist."""


class NotTrainedError(CountviError, RuntimeError):
    """A read-out was asked of a model without a fit."""


class NotSetUpError(CountviError, RuntimeError):
    """``setup_anndata`` was not called on this object."""


class NonFiniteError(CountviError, RuntimeError):
    """Training met NaN or infinity again and again."""


class FileFormatError(CountviError, ValueError):
    """A model folder or file that cannot be read."""


class DataWarning(UserWarning):
    """Something in the data that a user should look at."""


class TrainingWarning(UserWarning):
    """Something in a fit that a user should look at."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user: the innermost one that is neither countvi's nor of what calls it for countvi."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename, frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_inside(filename: str, module: str) -> bool:
    return filename.startswith(_OURS) or module.partition(".")[0] in _BETWEEN


def did_you_mean(name: object, candidates: Iterable[object], limit: int = 3) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest candidates, or ``""``.

    Parameters
    ----------
    name
        What was given.
    candidates
        What exists. Compared as text, ignoring case.
    limit
        How many candidates to name at most.
    """
    spelled = {str(c).casefold(): str(c) for c in candidates}
    close = difflib.get_close_matches(str(name).casefold(), list(spelled), n=limit, cutoff=0.6)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(spelled[c]) for c in close)}?"


def shorten(names: Sequence[object], limit: int = 5) -> str:
    """Join names for a message: the first few, then how many more; "nothing" where there are none."""
    if not len(names):
        return "nothing"
    shown = ", ".join(repr(str(n)) for n in names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def choose(what: str, value: object, options: Mapping[str, T]) -> T:
    """Look an option up by name, or raise with what exists.

    Parameters
    ----------
    what
        The argument's name, for the message.
    value
        What the user passed.
    options
        What may be passed, and what each stands for.

    Raises
    ------
    OptionError
        If ``value`` is not among ``options``.
    """
    if isinstance(value, str) and value in options:
        return options[value]
    message = f"{what} must be one of {', '.join(map(repr, options))}; got {value!r}.{did_you_mean(value, options)}"
    raise OptionError(message)
