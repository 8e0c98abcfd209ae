"""Which implementation the functions of :mod:`countvi.ops` run on.

A backend is a module that has a function of the same name and signature for each operation with a kernel. ``reference``
is the specification, and every other backend is tested against it. The kernels are imported when they are first
needed: that compiles them, or reads from disk what was compiled before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from countvi.errors import OptionError, choose
from countvi.ops import reference

_NAMES = ("auto", "cpu", "reference")

_active: ContextVar[str] = ContextVar("countvi_ops_backend", default="auto")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the operations inside the ``with`` block on one backend.

    The choice holds for the current thread or task, and blocks nest.

    Parameters
    ----------
    name
        ``"reference"``: readable torch, on every device, in float32 and float64. ``"cpu"``: compiled kernels, for
        float32 on the CPU. ``"auto"``: the best that there is for the tensors at hand (the default outside any block):
        the kernels where they apply and numba is installed, else the reference.

    Raises
    ------
    OptionError
        If there is no backend of that name, or, for ``"cpu"``, numba is not installed.

    Examples
    --------
    >>> from countvi import ops
    >>> with ops.backend("reference"):
    ...     ops.active_backend()
    'reference'
    """
    choose("backend", name, dict.fromkeys(_NAMES))
    if name == "cpu" and _kernels() is None:
        message = "The backend 'cpu' needs numba, which is not installed; `pip install numba`, or use 'auto'."
        raise OptionError(message)
    token = _active.set(name)
    try:
        yield
    finally:
        _active.reset(token)


def active_backend() -> str:
    """Return the name of the backend in force: ``"auto"`` unless a :func:`backend` block says otherwise."""
    return _active.get()


def implementation(*tensors: Tensor) -> ModuleType:
    """Return the module that an operation on these tensors runs on.

    Raises
    ------
    OptionError
        If the backend in force is ``"cpu"`` and the tensors are not float32 on the CPU.
    """
    name = _active.get()
    if name == "reference":
        return reference
    fits = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    if fits:
        return _kernels() or reference
    if name == "cpu":
        found = ", ".join(sorted({f"{tensor.dtype} on {tensor.device}" for tensor in tensors}))
        message = f"The backend 'cpu' computes with torch.float32 on the CPU; got {found}. Use 'auto' or 'reference'."
        raise OptionError(message)
    return reference


def full(tensor: Tensor) -> Tensor:
    """Widen what mixed precision has narrowed: a likelihood over thousands of genes is no place for 8 bits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


@functools.cache
def _kernels() -> ModuleType | None:
    """Return the compiled kernels, or ``None`` without numba. The first call of all compiles them."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module("countvi.ops.cpu")
    except ImportError:  # a numba that does not fit this Python or numpy
        return None
