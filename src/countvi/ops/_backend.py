"""Which implementation the functions of :mod:`countvi.ops` run on.

A backend is a module that has a function of the same name and signature for each of them. ``reference`` is the
specification, and every other backend is tested against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from countvi.errors import choose
from countvi.ops import reference

_BACKENDS: Mapping[str, ModuleType] = {"auto": reference, "reference": reference}

_active: ContextVar[str] = ContextVar("countvi_ops_backend", default="auto")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the operations inside the ``with`` block on one backend.

    The choice holds for the current thread or task, and blocks nest.

    Parameters
    ----------
    name
        ``"reference"``: readable torch, on every device, in float32 and float64. ``"auto"``: the best that there
        is for the tensors at hand (the default outside any block).

    Raises
    ------
    OptionError
        If there is no backend of that name.

    Examples
    --------
    >>> from countvi import ops
    >>> with ops.backend("reference"):
    ...     ops.active_backend()
    'reference'
    """
    choose("backend", name, _BACKENDS)
    token = _active.set(name)
    try:
        yield
    finally:
        _active.reset(token)


def active_backend() -> str:
    """Return the name of the backend in force: ``"auto"`` unless a :func:`backend` block says otherwise."""
    return _active.get()


def implementation() -> ModuleType:
    """Return the module that the operations run on."""
    return _BACKENDS[_active.get()]
