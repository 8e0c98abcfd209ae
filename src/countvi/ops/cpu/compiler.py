"""How the kernels are compiled, and what numba lacks: bits, addresses and an atomic counter.

A kernel is a C function of one pointer, to a job: a record of int64 with sizes, flags and addresses
(:mod:`countvi.ops.cpu.launch` fills it, :mod:`countvi.ops.cpu.threads` runs it). Only kernels are cached on disk; the
functions that they are made of are compiled into them. numba looks at the date of the file that a kernel is in, not of
those that it imports, so each kernel carries the digest of all of them in a closure, which is part of numba's key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from countvi.ops._notice import noticed

# Not `nnan` and `ninf`: with them the compiler may assume that a result is finite, and drop the check that it is.
_RELAXED = frozenset({"contract", "reassoc", "arcp", "nsz"})
# Where rounding is put to use, or a product may overflow, the order must stay as it is written.
_STRICT = frozenset({"contract", "nsz"})
# Parts of kernels are never called from Python, and what would let them be takes long to compile.
_INSIDE = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def relaxed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a sum over a row; it may be reordered, so that it becomes vector instructions."""
    return njit(fastmath=set(_RELAXED), **_INSIDE)(function)


def strict(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a part of a kernel, in the order written."""
    return njit(fastmath=set(_STRICT), **_INSIDE)(function)


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function a piece of the one that calls it.

    Every function that is compiled by itself is compiled with all that it calls, once more for each level above it.
    What is called from one place, and calls much, is better a part of its caller.
    """
    return njit(inline="always", fastmath=set(_STRICT), **_INSIDE)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a C function of the job's address, kept on disk where that can be."""
    options = {"fastmath": set(_STRICT), "error_model": "numpy"}
    with noticed():
        try:
            return cfunc(types.void(types.voidptr), cache=True, **options)(function)
        except Exception:
            # No place to write to, or something there that cannot be read: whatever ails the cache, it can be done
            # without.
            return cfunc(types.void(types.voidptr), **options)(function)


def digest() -> int:
    """Return a number that changes with the text of any file of the kernels."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    return int.from_bytes(total.digest()[:7], "big")


def _cast(source: types.Type, target: types.Type) -> Any:
    @intrinsic
    def cast(typing_context, value):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return cast


bits32 = _cast(types.float32, types.int32)
"""The bits of a float32, as int32."""
from_bits32 = _cast(types.int32, types.float32)
"""The float32 of the bits."""
bits64 = _cast(types.float64, types.int64)
"""The bits of a float64, as int64."""
from_bits64 = _cast(types.int64, types.float64)
"""The float64 of the bits."""


@intrinsic
def pointer(typing_context, address):
    """Turn an address into a pointer, for ``numba.carray``."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def next_ticket(typing_context, job):
    """Return the ticket of a job, its first field, and add one to it, in one step that no thread can interrupt."""

    def generate(context, builder, signature, arguments):
        counter = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.voidptr), generate


@intrinsic
def apart(typing_context):
    """Keep the function that calls this from being inlined.

    A loop that has become a part of a large function may no longer be vectorised: its arrays are harder to tell apart.
    """

    def generate(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate
