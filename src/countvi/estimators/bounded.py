"""Making a model of a file that may be damaged or hostile: in bounded memory, and in one sentence if it fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from countvi.errors import CountviError, FileFormatError

_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye}
# A model is made of what the file holds, and of little besides: buffers, and values that a weight starts from.
_SPARE_ELEMENTS, _SHARE_ELEMENTS = 10**7, 4
_SPARE_TENSORS, _SHARE_TENSORS = 1_000, 20
_LARGEST_COUNT = 10**9  # of an option
_SHOWN = 200  # characters of a foreign message


class _Budget(TorchFunctionMode):
    """Refuses to make more tensors than a model of this size can need."""

    def __init__(self, where: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._where = where
        self._elements = _SHARE_ELEMENTS * sum(tensor.numel() for tensor in weights.values()) + _SPARE_ELEMENTS
        self._tensors = _SHARE_TENSORS * len(weights) + _SPARE_TENSORS

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _MAKERS:
            self._elements -= _asked_for(args, kwargs or {})
            self._tensors -= 1
            if self._elements < 0 or self._tensors < 0:
                message = f"{self._where} describes a model that is larger than the weights beside it: it is damaged."
                raise FileFormatError(message)
        return func(*args, **(kwargs or {}))


def _asked_for(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Elements of the tensor that a call makes."""
    size = kwargs.get("size", args[0] if args and isinstance(args[0], Sequence) else args)
    return math.prod(n for n in size if isinstance(n, int)) if isinstance(size, Sequence) else 0


@contextmanager
def whole(where: str | Path, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Make a model of a file within this.

    What fails for any reason of Python's or torch's own is an error of the file, and no more memory is asked for than
    a model with these weights needs: four times their elements, and ten million.

    Parameters
    ----------
    where
        The file, for messages.
    weights
        What it holds.

    Raises
    ------
    FileFormatError
        If the file is not whole.
    """
    try:
        with _Budget(str(where), weights):
            yield
    except CountviError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError) as error:
        raise _damaged(where, error) from error
    except (ValueError, RuntimeError) as error:
        raise _damaged(where, error) from error


def check_depth(where: str | Path, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse options of a model with more layers than the file has weights.

    Raises
    ------
    FileFormatError
        If there are.
    """
    for name, value in options.items():
        largest = len(weights) if name.startswith("n_layers") else _LARGEST_COUNT
        for number in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(number, int | float) and not abs(number) <= largest:
                message = f"{where} describes a model with {name}={number!r}, which the weights in it are not of."
                raise FileFormatError(message)


def first_line(error: BaseException) -> str:
    """Return what a foreign error says, in one short line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:_SHOWN]}" if lines and lines[0] else type(error).__name__


def shortly(value: object) -> str:
    """Return a value of a file for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _damaged(where: str | Path, error: BaseException) -> FileFormatError:
    message = f"{where} is damaged, or was edited by hand: no model can be made of it ({first_line(error)})."
    return FileFormatError(message)
