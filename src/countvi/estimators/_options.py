"""Checks of single arguments that several estimators take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from countvi.errors import FileFormatError, OptionError, shorten


def number(name: str, value: Any, *, least: float = 0.0, below: float = math.inf) -> float:
    """Return a number of at least ``least`` and less than ``below``.

    Raises
    ------
    OptionError
        If it is none.
    """
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not least <= value < below:
        limit = "" if below == math.inf else f" and less than {below:g}"
        message = f"{name} must be a number of at least {least:g}{limit}; got {value!r}."
        raise OptionError(message)
    return float(value)


def known_options(init_args: Mapping[str, Any], options: type) -> dict[str, Any]:
    """Return the arguments of a saved model.

    Raises
    ------
    FileFormatError
        If one is not a field of the data class ``options``.
    """
    unknown = sorted(init_args.keys() - options.__dataclass_fields__.keys())  # type: ignore[attr-defined]
    if unknown:
        message = (
            f"The saved model has options that this version of countvi does not know: {shorten(unknown)}. It was "
            "changed by hand or written by a newer version; update countvi."
        )
        raise FileFormatError(message)
    return dict(init_args)
