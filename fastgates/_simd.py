"""A SIMD value for Numba: one register of float32, used in ``@njit`` code like a number.

A value of type :data:`float32v` holds :data:`LANES` floats. It has ``+ - * /`` and unary ``-``
(with another vector or a float32) and the functions below. Kernels written with it are plain loops
that compile to the instructions that they name: nothing is left to the auto-vectoriser.

============================  ===================================================================
``load(p, i)``                the lanes at ``p[i], p[i + 1], ...`` (`p` a pointer to float32)
``load_first(p, i, n)``       the same, but only the first `n` lanes; the others are 0
``prefetch(p, i)``            asks for the cache line of ``p[i]``; any address is allowed
                              (``prefetch_to_write`` likewise)
``store(p, i, v)``            the reverse of ``load``
``store_first(p, i, n, v)``   stores the first `n` lanes only
``splat(x)``                  a float32 in all lanes
``fma(a, b, c)``              ``a * b + c`` rounded once; works on float32 numbers too
``where_less(a, b, x, y)``    ``x if a < b else y``, lane by lane; works on float32 numbers too
``absolute(x)``               ``|x|``; works on float32 numbers too
``square_root(x)``            correctly rounded; works on float32 numbers too
``with_sign_of(x, y)``        ``x >= 0`` with the sign of ``y``; works on float32 numbers too
``power_of_two(x)``           ``2**k`` of the number ``x = k + ROUNDER``; float32 numbers too
``float_pointer(address)``    a pointer to float32 from an integer address (``double_pointer``,
                              ``int_pointer`` and ``byte_pointer`` likewise)
============================  ===================================================================

The width is that of the code that Numba makes, for this CPU or for what ``NUMBA_CPU_NAME`` and
``NUMBA_CPU_FEATURES`` ask for: 16 lanes with AVX-512, 8 with AVX, else 4;
``FASTGATES_LANES`` (4, 8 or 16) overrides it. Any width is correct on any CPU, since LLVM splits
what is too wide. On a CPU without fused multiply-add, ``fma`` is a product and a sum.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import numba
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import get_host_cpu_features
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

__all__ = [
    "HAS_FMA",
    "LANES",
    "REGISTERS",
    "ROUNDER",
    "absolute",
    "byte_pointer",
    "double_pointer",
    "float32v",
    "float_pointer",
    "fma",
    "int_pointer",
    "load",
    "load_first",
    "power_of_two",
    "prefetch",
    "prefetch_to_write",
    "splat",
    "square_root",
    "store",
    "store_first",
    "where_less",
    "with_sign_of",
]


def _target_features() -> dict[str, bool]:
    """Return which of avx, avx512f, fma and neon there are in the code that Numba will make."""
    llvm.initialize_native_target()
    config: Any = numba.config
    # Numba takes the features of this CPU unless they are given, also beside the name of another.
    features = config.CPU_FEATURES
    if features is None:
        features = get_host_cpu_features()
        if config.CPU_NAME is None:
            names = set(features.split(","))
            return {name: f"+{name}" in names for name in ("avx", "avx512f", "fma", "neon")}
    # A name implies features, and features imply others or take them away: see what LLVM makes of
    # a wide multiply-add.
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=config.CPU_NAME or llvm.get_host_cpu_name(), features=features, opt=2
    )
    module = llvm.parse_assembly(
        "declare <16 x float> @llvm.fmuladd.v16f32(<16 x float>, <16 x float>, <16 x float>)\n"
        "define <16 x float> @probe(<16 x float> %a, <16 x float> %b, <16 x float> %c) {\n"
        "  %r = call <16 x float> @llvm.fmuladd.v16f32(<16 x float> %a, <16 x float> %b,"
        " <16 x float> %c)\n  ret <16 x float> %r\n}\n"
    )
    assembly = machine.emit_assembly(module)
    return {
        "avx": "ymm" in assembly or "zmm" in assembly,
        "avx512f": "zmm" in assembly,
        "fma": "fmadd" in assembly or "fmla" in assembly,
        "neon": "fmla" in assembly,
    }


def _lanes(features: dict[str, bool]) -> int:
    """Return the number of float32 lanes to use."""
    asked = os.environ.get("FASTGATES_LANES")
    if asked:
        if asked not in ("4", "8", "16"):
            raise ImportError(f"FASTGATES_LANES must be 4, 8 or 16, got {asked!r}")
        return int(asked)
    return 16 if features["avx512f"] else 8 if features["avx"] else 4


_features = _target_features()
LANES = _lanes(_features)
HAS_FMA = _features["fma"] or _features["neon"]
REGISTERS = 32 if _features["avx512f"] or _features["neon"] else 16

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_POINTER = _VECTOR.as_pointer()
_ALIGNMENT = 4  # rows of any width are addressed, so no more than that of a float32 is promised


class Float32Vector(types.Type):
    """The Numba type of one register of float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


float32v = Float32Vector()
float_p = types.CPointer(types.float32)
int_p = types.CPointer(types.int64)
byte_p = types.CPointer(types.uint8)
double_p = types.CPointer(types.float64)


@register_model(Float32Vector)
class _Float32VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def splat_value(builder: Any, value: Any) -> Any:
    """Emit a vector with the scalar `value` in all lanes."""
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _int32(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), mask)


def fma_value(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Emit ``a * b + c``, fused where the CPU can, for vectors or scalars."""
    name = "llvm.fma" if HAS_FMA else "llvm.fmuladd"
    suffix = f"v{LANES}f32" if isinstance(a.type, ir.VectorType) else "f32"
    function_type = ir.FunctionType(a.type, [a.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, function_type, f"{name}.{suffix}")
    return builder.call(function, [a, b, c])


def _int32(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


def vector_address(builder: Any, pointer: Any, index: Any) -> Any:
    """Emit the address of the vector that starts at float32 number `index` after `pointer`."""
    return builder.bitcast(builder.gep(pointer, [index]), _POINTER)


def load_value(builder: Any, pointer: Any, index: Any) -> Any:
    """Emit the load of a vector."""
    return builder.load(vector_address(builder, pointer, index), align=_ALIGNMENT)


def as_vector(builder: Any, numba_type: Any, value: Any) -> Any:
    """Emit a vector from a vector or a float32."""
    return value if numba_type == float32v else splat_value(builder, value)


# -- Operators ----------------------------------------------------------------------------------


def _declare_binary(op: Any, inplace: Any, emit: str) -> None:
    """Give vectors one arithmetic operator, with a vector or a float32 on either side."""

    class Template(AbstractTemplate):
        key = op

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and float32v in args and set(args) <= {float32v, types.float32}:
                return signature(float32v, *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (as_vector(builder, t, v) for t, v in zip(sig.args, args, strict=True))
        return getattr(builder, emit)(a, b)

    for name in (op, inplace):
        infer_global(name)(type("Template", (Template,), {"key": name}))
        for pair in ((float32v, float32v), (float32v, types.float32), (types.float32, float32v)):
            lower_builtin(name, *pair)(lower)


_declare_binary(operator.add, operator.iadd, "fadd")
_declare_binary(operator.sub, operator.isub, "fsub")
_declare_binary(operator.mul, operator.imul, "fmul")
_declare_binary(operator.truediv, operator.itruediv, "fdiv")


@infer_global(operator.neg)
class _Negative(AbstractTemplate):
    key = operator.neg

    def generic(self, args: Any, kws: Any) -> Any:
        return signature(float32v, float32v) if args == (float32v,) else None


@lower_builtin(operator.neg, float32v)
def _lower_negative(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


# -- Memory -------------------------------------------------------------------------------------


def _emit_pointer(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.inttoptr(args[0], context.get_value_type(sig.return_type))


@intrinsic
def float_pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """Return a pointer to float32 from an integer address."""
    return float_p(types.int64), _emit_pointer


@intrinsic
def int_pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """Return a pointer to int64 from an integer address."""
    return int_p(types.int64), _emit_pointer


@intrinsic
def double_pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """Return a pointer to float64 from an integer address."""
    return double_p(types.int64), _emit_pointer


@intrinsic
def byte_pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """Return a pointer to uint8 from an integer address."""
    return byte_p(types.int64), _emit_pointer


@intrinsic
def load(typingctx, pointer, index):  # type: ignore[no-untyped-def]
    """Return the vector at ``pointer[index]``."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return load_value(builder, args[0], args[1])

    return float32v(float_p, types.int64), codegen


@intrinsic
def store(typingctx, pointer, index, vector):  # type: ignore[no-untyped-def]
    """Store `vector` at ``pointer[index]``."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        address = vector_address(builder, args[0], args[1])
        builder.store(args[2], address, align=_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(float_p, types.int64, float32v), codegen


def _emit_prefetch(write: int) -> Any:
    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        address = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(8).as_pointer())
        function_type = ir.FunctionType(ir.VoidType(), [address.type] + [_int32(0).type] * 3)
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, [address, _int32(write), _int32(2), _int32(1)])
        return context.get_dummy_value()

    return codegen


@intrinsic
def prefetch(typingctx, pointer, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of ``pointer[index]`` to come to the second-level cache."""
    return types.void(float_p, types.int64), _emit_prefetch(0)


@intrinsic
def prefetch_to_write(typingctx, pointer, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of ``pointer[index]``, to be written to."""
    return types.void(float_p, types.int64), _emit_prefetch(1)


def _first_lanes(builder: Any, count: Any) -> Any:
    """Emit the mask that is true in the first `count` lanes."""
    integers = ir.VectorType(ir.IntType(32), LANES)
    count = builder.trunc(count, ir.IntType(32))
    one = builder.insert_element(ir.Constant(integers, ir.Undefined), count, _int32(0))
    counts = builder.shuffle_vector(
        one, ir.Constant(integers, ir.Undefined), ir.Constant(integers, [0] * LANES)
    )
    return builder.icmp_signed("<", ir.Constant(integers, list(range(LANES))), counts)


@intrinsic
def load_first(typingctx, pointer, index, count):  # type: ignore[no-untyped-def]
    """Return the vector at ``pointer[index]`` with all but the first `count` lanes 0."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        pointer, index, count = args
        address = vector_address(builder, pointer, index)
        mask = _first_lanes(builder, count)
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        function_type = ir.FunctionType(_VECTOR, [_POINTER, _int32(0).type, mask.type, _VECTOR])
        function = cgutils.get_or_insert_function(
            builder.module, function_type, f"llvm.masked.load.v{LANES}f32.p0"
        )
        return builder.call(function, [address, _int32(_ALIGNMENT), mask, zero])

    return float32v(float_p, types.int64, types.int64), codegen


@intrinsic
def store_first(typingctx, pointer, index, count, vector):  # type: ignore[no-untyped-def]
    """Store the first `count` lanes of `vector` at ``pointer[index]``."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        pointer, index, count, vector = args
        address = vector_address(builder, pointer, index)
        mask = _first_lanes(builder, count)
        function_type = ir.FunctionType(
            ir.VoidType(), [_VECTOR, _POINTER, _int32(0).type, mask.type]
        )
        function = cgutils.get_or_insert_function(
            builder.module, function_type, f"llvm.masked.store.v{LANES}f32.p0"
        )
        builder.call(function, [vector, address, _int32(_ALIGNMENT), mask])
        return context.get_dummy_value()

    return types.void(float_p, types.int64, types.int64, float32v), codegen


# -- Arithmetic ---------------------------------------------------------------------------------


@intrinsic
def splat(typingctx, value):  # type: ignore[no-untyped-def]
    """Return a vector with the float32 `value` in all lanes."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return splat_value(builder, args[0])

    return float32v(types.float32), codegen


def _common(*numba_types: Any) -> Any:
    """Return float32v where any argument is a vector, else float32."""
    return float32v if float32v in numba_types else types.float32


@intrinsic
def fma(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """Return ``a * b + c``, rounded once where the CPU has the instruction."""
    result = _common(a, b, c)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        if result == float32v:
            args = [as_vector(builder, t, v) for t, v in zip(sig.args, args, strict=True)]
        return fma_value(builder, *args)

    arguments = [float32v if t == float32v else types.float32 for t in (a, b, c)]
    return result(*arguments), codegen


@intrinsic
def where_less(typingctx, a, b, x, y):  # type: ignore[no-untyped-def]
    """Return ``x`` where ``a < b``, else ``y`` (so also where `a` or `b` is NaN)."""
    result = _common(a, b, x, y)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        if result == float32v:
            args = [as_vector(builder, t, v) for t, v in zip(sig.args, args, strict=True)]
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    arguments = [float32v if t == float32v else types.float32 for t in (a, b, x, y)]
    return result(*arguments), codegen


def _emit_llvm_function(name: str) -> Any:
    """Return a code generator that calls an LLVM intrinsic with all types that of `args[0]`."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        args = [_as_common(builder, sig, t, v) for t, v in zip(sig.args, args, strict=True)]
        suffix = f"v{LANES}f32" if sig.return_type == float32v else "f32"
        function_type = ir.FunctionType(args[0].type, [args[0].type] * len(args))
        function = cgutils.get_or_insert_function(
            builder.module, function_type, f"llvm.{name}.{suffix}"
        )
        return builder.call(function, args)

    return codegen


def _as_common(builder: Any, sig: Any, numba_type: Any, value: Any) -> Any:
    return as_vector(builder, numba_type, value) if sig.return_type == float32v else value


def _integers(floats: Any) -> tuple[Any, Any]:
    """Return the integer type as wide as `floats`, and a function that emits its constants."""
    if not isinstance(floats, ir.VectorType):
        integer = ir.IntType(32)
        return integer, lambda value: ir.Constant(integer, value)
    integers = ir.VectorType(ir.IntType(32), LANES)
    return integers, lambda value: ir.Constant(integers, [value] * LANES)


@intrinsic
def absolute(typingctx, x):  # type: ignore[no-untyped-def]
    """Return ``|x|``."""
    result = _common(x)
    return result(result), _emit_llvm_function("fabs")


@intrinsic
def square_root(typingctx, x):  # type: ignore[no-untyped-def]
    """Return the square root of `x`, correctly rounded."""
    result = _common(x)
    return result(result), _emit_llvm_function("sqrt")


@intrinsic
def with_sign_of(typingctx, x, y):  # type: ignore[no-untyped-def]
    """Return `x`, which must not be negative or -0, with the sign of `y`, also that of a zero."""
    result = _common(x, y)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        x, y = (_as_common(builder, sig, t, v) for t, v in zip(sig.args, args, strict=True))
        integer, constant = _integers(x.type)
        sign = builder.and_(builder.bitcast(y, integer), constant(-(2**31)))
        return builder.bitcast(builder.or_(builder.bitcast(x, integer), sign), x.type)

    arguments = [float32v if t == float32v else types.float32 for t in (x, y)]
    return result(*arguments), codegen


# A float32 from 2**23 to 2**24 has no fraction, so ``x + ROUNDER`` rounds a small `x` to an
# integer, which then stands in the low bits, here plus 127: as the exponent of a float32 is stored.
ROUNDER = np.float32(1.5 * 2**23 + 127)


@intrinsic
def power_of_two(typingctx, x):  # type: ignore[no-untyped-def]
    """Return ``2**k`` for ``x = k + ROUNDER``; 0 for ``k = -127``, infinity for ``k = 128``.

    Beyond these `k` the result is any number.
    """
    result = _common(x)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        integer, constant = _integers(args[0].type)
        # The exponent field of a float32 starts at bit 23.
        shifted = builder.shl(builder.bitcast(args[0], integer), constant(23))
        return builder.bitcast(shifted, args[0].type)

    return result(result), codegen
