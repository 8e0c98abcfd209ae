"""Arguments that a method passes on to another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])
_COLLECTED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def passes_on_to(target: Callable[..., Any], without: Collection[str] = ()) -> Callable[[_Method], _Method]:
    """Show the arguments of another method in the signature of one that passes on what it does not know.

    Notebooks complete the names of arguments from signatures, and ``**arguments`` tells them nothing.

    Parameters
    ----------
    target
        Where they go to.
    without
        Which of its arguments this method does not take.
    """

    def show(method: _Method) -> _Method:
        own = [p for p in inspect.signature(method).parameters.values() if p.kind not in _COLLECTED]
        hidden = {*without, *(p.name for p in own)}
        more = [p for p in inspect.signature(target).parameters.values() if p.name not in hidden]
        both = sorted([*own, *(p for p in more if p.kind not in _COLLECTED)], key=lambda p: p.kind)
        method.__signature__ = inspect.signature(method).replace(parameters=both)  # type: ignore[attr-defined]
        return method

    return show
