"""Reading the pickle inside a torch archive without letting it run anything.

A pickle is a small program that may call any function it names. Here a name resolves only if it stands in a short
list, and what it resolves to is one of ours: it records what it is given and imports, looks up or evaluates nothing.
Tensors are rebuilt from the archive's storages, numpy arrays from their bytes or lists, pandas frames as plain
dictionaries of columns. Every other name is refused, with its name, before anything is called.

Objects of the pickle are made anew for each file: a pickle can set attributes on what it names, and must not reach
anything that outlives the reading.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countvi.errors import FileFormatError

ReadStorage = Callable[[str, torch.dtype, int], Tensor]
"""Takes the key, element type and length of a storage; returns its elements, shape ``(length,)``."""

_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MOST_ELEMENTS = 10**7  # of all lists and dictionaries, counted where they are reached
_DEEPEST = 50
_MOST_COPIES = 8  # of the bytes of the file, that its tensors may take
_SPARE_BYTES = 2**26
_MOST_LONG_INTEGERS = 1_000  # many of one hash would make a dictionary slow
_POINTER = 8  # bytes
_MEMO_WRITES = ("PUT", "BINPUT", "LONG_BINPUT")
_DTYPE = re.compile(r"[<>=|]?(\?|b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5})|[|]?O[48]?")


def restricted_load(payload: bytes, read_storage: ReadStorage, where: str) -> Any:
    """Read a pickle as plain values.

    Parameters
    ----------
    payload
        The pickle.
    read_storage
        Gives the elements of a tensor storage.
    where
        The file, for messages.

    Returns
    -------
    Any
        ``None``, numbers, text, bytes, lists, tuples, sets, dictionaries (plain ones, whatever they were), tensors
        and numpy arrays. A pandas frame is a dictionary of its columns and its index, or ``None`` if it has a layout
        that is not known; other pandas objects are an array or ``None``.

    Raises
    ------
    FileFormatError
        If the pickle names anything outside the list, or is damaged.
    """
    try:
        _check_sizes(payload)
        budget = _Budget(len(payload))
        return _Resolver(budget).plain(_Unpickler(payload, read_storage, where, budget).load())
    except FileFormatError:
        raise
    except Exception as error:  # a damaged pickle can fail in any operation of the machine that reads it
        message = f"{where} is damaged: its contents cannot be decoded ({type(error).__name__}: {error})."
        raise FileFormatError(message) from error


def _check_sizes(payload: bytes) -> None:
    """Refuse a pickle that announces more than it holds, for which the unpickler would set memory aside."""
    n_long = 0
    for operation, argument, _ in pickletools.genops(payload):
        if operation.name in _MEMO_WRITES and (not isinstance(argument, int) or argument > len(payload)):
            message = f"entry {argument} of a memo of at most {len(payload)} entries"
            raise ValueError(message)
        n_long += isinstance(argument, int) and argument.bit_length() > 64
        if n_long > _MOST_LONG_INTEGERS:
            message = f"more than {_MOST_LONG_INTEGERS} integers of more than 64 bits"
            raise ValueError(message)


def check_extent(value: Any) -> None:
    """Refuse values that are short in the file and long when they are gone through.

    A list that holds another one ten times, which holds another one ten times, has a length of its own at each level,
    and ten to the number of levels elements to whoever prints it.

    Parameters
    ----------
    value
        What :func:`restricted_load` returned.

    Raises
    ------
    ValueError
        If it has more than ten million elements, or none that is the last.
    """
    extent: dict[int, int] = {}  # elements below each container, as often as they are reached

    def visit(item: Any, depth: int) -> int:
        if isinstance(item, Mapping):
            inner = [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            inner = list(item)
        elif isinstance(item, np.ndarray) and item.dtype.hasobject:
            inner = list(item.flat)
        else:
            return 1
        if id(item) in extent:
            return extent[id(item)]
        if depth > _DEEPEST:
            message = f"values that are nested more than {_DEEPEST} deep"
            raise ValueError(message)
        extent[id(item)] = _MOST_ELEMENTS  # if it is met again below itself, it has no end
        total = 1 + sum(visit(element, depth + 1) for element in inner)
        if total > _MOST_ELEMENTS:
            message = f"values of more than {_MOST_ELEMENTS:,} elements"
            raise ValueError(message)
        extent[id(item)] = total
        return total

    visit(value, 0)


class _Budget:
    """Memory that the values of a file may take: a pickle of a few bytes can ask for any number of copies."""

    def __init__(self, n_bytes: int) -> None:
        self._read, self._made = n_bytes, 0

    def holds(self, n_bytes: int) -> None:
        """Add what the file holds."""
        self._read += n_bytes

    def makes(self, n_bytes: int) -> None:
        """Count what is made of it."""
        self._made += n_bytes
        if self._made > _MOST_COPIES * self._read + _SPARE_BYTES:
            message = "values that are many times as large as the file"
            raise ValueError(message)

    def making(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that copies its arguments, which are counted."""

        def counted(*args: Any) -> Any:
            self.makes(sum(_POINTER * len(arg) for arg in args if isinstance(arg, Sized)))
            return function(*args)

        return counted


class _Call:
    """A function that a pickle may name."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _StorageType:
    """Stands for ``torch.FloatStorage`` and its kind."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Storage:
    """Elements of a storage, shape ``(length,)``."""

    __slots__ = ("elements",)

    def __init__(self, elements: Tensor) -> None:
        self.elements = elements


class _Value:
    """A finished tensor or numpy scalar. Boxed, because a pickle can call ``__setstate__`` of what it has made."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Dtype:
    """Stands for ``numpy.dtype``. Only the byte order of its pickled state is used, never the flags."""

    __slots__ = ("dtype",)

    def __init__(self, spec: str) -> None:
        if not isinstance(spec, str) or _DTYPE.fullmatch(spec) is None:
            message = f"numpy arrays of type {spec!r} are not read"
            raise ValueError(message)
        self.dtype = np.dtype(spec)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray``; filled by its pickled state (version, shape, dtype, column-major, data)."""

    __slots__ = ("column_major", "data", "dtype", "shape")

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    column_major: bool
    data: Any

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, self.column_major, self.data = state
        self.dtype = dtype.dtype

    def build(self, plain: Callable[[Any], Any]) -> np.ndarray[Any, Any]:
        """The array; ``plain`` resolves the elements of an object array."""
        size = math.prod(self.shape)
        if self.dtype.hasobject:
            flat = np.empty(len(self.data), dtype=object)
            for i, element in enumerate(self.data):
                flat[i] = plain(element)
            order = "C"  # numpy lists objects row by row whatever their layout
        else:
            order = "F" if self.column_major else "C"
            flat = np.frombuffer(self.data, dtype=self.dtype).astype(self.dtype.newbyteorder("="))
        if flat.size != size or min(self.shape, default=0) < 0:
            message = f"a numpy array of shape {self.shape} has {flat.size} elements"
            raise ValueError(message)
        return flat.reshape(self.shape, order=order)


class _Pandas:
    """Stands for anything of pandas: an inert record of how it was to be made."""

    name = ""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> _Pandas:  # a pickle may make an object without calling __init__
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows a fixed list of names."""

    def __init__(self, payload: bytes, read_storage: ReadStorage, where: str, budget: _Budget) -> None:
        super().__init__(io.BytesIO(payload))
        self._read_storage = read_storage
        self._where = where
        self._storages: dict[tuple[str, torch.dtype, int], _Storage] = {}
        self._budget = budget
        self._names = _allowed_names(budget)

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Resolve a name, or refuse it."""
        key = (module_name, global_name)
        if key in self._names:
            return self._names[key]
        if module_name.split(".")[0] == "pandas":
            stub = type("PandasStub", (_Pandas,), {"name": global_name})
            return self._names.setdefault(key, stub)
        message = (
            f"{self._where} asks to run '{module_name}.{global_name}'; refused. An scvi-tools model needs no such "
            "thing, and nothing in the file was run. If the file is not your own, do not trust it; if it is, save the "
            "model again without that object."
        )
        raise FileFormatError(message)

    def persistent_load(self, pid: Any, /) -> _Storage:
        """Read a storage of the archive: ``("storage", type, key, device, length)``."""
        kind, storage_type, key, _, length = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            message = f"unknown persistent object {kind!r}"
            raise ValueError(message)
        wanted = (key, storage_type.dtype, length)
        if wanted not in self._storages:
            elements = self._read_storage(key, storage_type.dtype, length)
            self._storages[wanted] = _Storage(elements)
            self._budget.holds(elements.numel() * elements.element_size())
            self._budget.makes(elements.numel() * elements.element_size())
        return self._storages[wanted]


def _allowed_names(budget: _Budget) -> dict[tuple[str, str], Any]:
    """What pickles of scvi-tools models name. The types are immutable ones; the rest is made anew for each file."""
    names: dict[tuple[str, str], Any] = {
        ("_codecs", "encode"): _Call(budget.making(_encode)),
        ("collections", "OrderedDict"): _Call(budget.making(OrderedDict)),
        ("collections", "defaultdict"): _Call(budget.making(defaultdict)),
        ("numpy", "dtype"): _Call(lambda spec, *_: _Dtype(spec)),
        ("numpy", "ndarray"): _Call(_not_callable),
        ("torch._utils", "_rebuild_tensor_v2"): _Call(partial(_rebuild_tensor, budget)),
        ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *_: data),
    }
    for module in ("builtins", "__builtin__"):
        names |= {(module, t.__name__): _Call(budget.making(t)) for t in (dict, list, tuple, set, frozenset)}
        names[module, "slice"] = slice
        names[module, "bytes"] = _Call(_empty_bytes)
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        names[module, "_reconstruct"] = _Call(lambda *_: _Array())
        names[module, "scalar"] = _Call(budget.making(_scalar))
    names |= {("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()}
    return names


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 spells bytes. Other encodings would import a codec by name."""
    if encoding not in ("latin1", "latin-1"):
        message = f"bytes in encoding {encoding!r} are not read"
        raise ValueError(message)
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    """How protocol 2 spells empty bytes. With an argument, ``bytes`` could be asked for any amount of memory."""
    return b""


def _not_callable(*_: Any) -> None:
    message = "a numpy array is made in an unknown way"
    raise ValueError(message)


def _scalar(dtype: _Dtype, data: bytes) -> _Value:
    """A numpy scalar from its bytes."""
    if dtype.dtype.hasobject:
        message = "numpy scalars of type object are not read"
        raise ValueError(message)
    (value,) = np.frombuffer(data, dtype=dtype.dtype).astype(dtype.dtype.newbyteorder("="))
    return _Value(value)


def _rebuild_tensor(
    budget: _Budget, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> _Value:
    """A tensor of its own from a piece of a storage; a piece outside of the storage is an error."""
    n_elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    valid = min((*size, *stride, offset), default=0) >= 0
    if not valid or (n_elements and last >= storage.elements.numel()) or n_elements > storage.elements.numel():
        message = f"a tensor of shape {tuple(size)} does not fit its storage of {storage.elements.numel()} elements"
        raise ValueError(message)
    if not n_elements:
        return _Value(storage.elements.new_empty(size))
    budget.makes(n_elements * storage.elements.element_size())
    return _Value(storage.elements.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format))


class _Resolver:
    """Turns what the unpickler made into plain values, each object once."""

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget
        self._done: dict[int, Any] = {}

    def plain(self, value: Any) -> Any:
        """The plain value of anything that the unpickler can make."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | Tensor | np.generic):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, dict):
            result: dict[Any, Any] = {}
            self._done[id(value)] = result
            result.update((self.plain(k), self.plain(v)) for k, v in value.items())
            return result
        if isinstance(value, list):
            items: list[Any] = []
            self._done[id(value)] = items
            items.extend(map(self.plain, value))
            return items
        resolved = self._immutable(value)
        self._done[id(value)] = resolved
        return resolved

    def _immutable(self, value: Any) -> Any:
        if isinstance(value, tuple | set | frozenset):
            return type(value)(map(self.plain, value))
        if isinstance(value, _Array):
            self._budget.makes(len(value.data) * (_POINTER if value.dtype.hasobject else 1))
            return value.build(self.plain)
        if isinstance(value, _Pandas):
            return self._pandas(value)
        if isinstance(value, _Value):
            return self.plain(value.value)
        if isinstance(value, _Dtype):
            return value.dtype
        if isinstance(value, slice):
            return slice(self.plain(value.start), self.plain(value.stop), self.plain(value.step))
        message = f"a {type(value).__name__.strip('_').lower()} stands where a value should be"
        raise ValueError(message)

    def _pandas(self, value: _Pandas) -> Any:
        """A frame as a dictionary of columns, an index as an array; ``None`` for what has another layout."""
        try:
            if value.name == "DataFrame":
                return self._frame(value)
            if value.name == "_new_Index":
                return self._index(value)[1]
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            # a layout of another pandas: nothing of ours depends on frames, so the rest of the file is still good
            return None
        return None

    def _frame(self, frame: _Pandas) -> dict[str, Any]:
        """Columns of a frame, and its index under its name or ``"index"``."""
        blocks, (columns, rows) = frame.state["_mgr"].args
        _, names = self._index(columns)
        index_name, index = self._index(rows)
        table = {str(index_name if index_name is not None else "index"): index}
        found: dict[int, Any] = {}
        for block in blocks:
            values, placement, _ = block.args
            if isinstance(placement, slice):
                positions = list(range(len(names))[placement])
            else:
                positions = self.plain(placement).tolist()
            found.update(zip(positions, self.plain(values), strict=True))
        return table | {str(name): found[i] for i, name in enumerate(names)}

    def _index(self, index: _Pandas) -> tuple[Any, np.ndarray[Any, Any]]:
        """Name and values of an index."""
        kind, parts = index.args
        if not isinstance(parts, Mapping):
            message = "unknown index"
            raise TypeError(message)
        if kind.name == "RangeIndex":
            steps = range(parts["start"], parts["stop"], parts["step"])
            self._budget.makes(_POINTER * len(steps))
            return parts["name"], np.asarray(steps)
        values = self.plain(parts["data"])
        if not isinstance(values, np.ndarray):
            message = "unknown index"
            raise TypeError(message)
        return parts["name"], values
