"""Words of memory that several threads write, for kernels: all other code sees whole changes.

Each operation also keeps the compiler and the processor from moving others across it.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .._simd import int_p

__all__ = ["atomic_add", "atomic_replace", "atomic_swap", "look_again"]

_ORDER = "seq_cst"


def _place(builder, args):  # type: ignore[no-untyped-def]
    return builder.gep(args[0], [args[1]])


@intrinsic
def atomic_add(typingctx, pointer, index, value):  # type: ignore[no-untyped-def]
    """Add to ``pointer[index]``, an int64; return what it was."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("add", _place(builder, args), args[2], _ORDER)

    return types.int64(int_p, types.int64, types.int64), codegen


@intrinsic
def atomic_swap(typingctx, pointer, index, value):  # type: ignore[no-untyped-def]
    """Set ``pointer[index]``, an int64; return what it was."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("xchg", _place(builder, args), args[2], _ORDER)

    return types.int64(int_p, types.int64, types.int64), codegen


@intrinsic
def atomic_replace(typingctx, pointer, index, old, new):  # type: ignore[no-untyped-def]
    """Set ``pointer[index]``, an int64, to `new` if it is `old`; return whether it was, 1 or 0."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        place = _place(builder, args)
        result = builder.cmpxchg(place, args[2], args[3], _ORDER, _ORDER)
        return builder.zext(builder.extract_value(result, 1), args[2].type)

    return types.int64(int_p, types.int64, types.int64, types.int64), codegen


@intrinsic
def look_again(typingctx):  # type: ignore[no-untyped-def]
    """Wait a moment, and read from memory what is read from here on, for loops that look out.

    Where the processor knows how, another thread on the same core gets its units meanwhile.
    """

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        void, number = ir.VoidType(), ir.IntType(32)
        if platform.machine() in ("x86_64", "AMD64"):
            pause = ir.FunctionType(void, [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, pause, name), [])
        elif platform.machine() in ("aarch64", "arm64"):
            hint = ir.FunctionType(void, [number])
            function = cgutils.get_or_insert_function(builder.module, hint, "llvm.aarch64.hint")
            builder.call(function, [ir.Constant(number, 1)])  # yield
        builder.fence(_ORDER)
        return context.get_dummy_value()

    return types.void(), codegen
