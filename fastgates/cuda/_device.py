"""Device functions: the way to numba-cuda, float32 primitives, and the cells' equations on a GPU.

A cell's equations are compiled as they stand. Each :func:`~fastgates._jit.helper` keeps its Python
function; :func:`on_device` makes a copy of that function whose globals are the device's: helpers
become device functions in the same way, and the few SIMD primitives that they all end in (``fma``,
``where_less``, ...) become those of this file, for one float32. So a new cell runs on a GPU without
a line of its own.

With ``NUMBA_ENABLE_CUDASIM=1`` the same kernels run in Numba's simulator, a Python thread for each
CUDA thread. It knows no types, no alignment and no intrinsics: the primitives are NumPy then.
"""

from __future__ import annotations

import types as python_types
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, cuda

from .. import _simd
from .._jit import _Helper

__all__ = [
    "SIMULATED",
    "cuda",
    "default_stream",
    "device_function",
    "fma",
    "launch",
    "load4",
    "load_acquire",
    "loader",
    "on_device",
    "store_release",
    "storer",
]

SIMULATED = bool(config.ENABLE_CUDASIM)

_f = np.float32


def device_function(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call; its code becomes part of theirs."""
    if SIMULATED:
        return function
    return cuda.jit(device=True, forceinline=True)(function)


if not SIMULATED:
    from numba.cuda import dispatcher as _dispatcher


def launch(kernel: Any, grid: Any, threads: int, stream: Any, *arguments: Any) -> None:
    """Run a kernel on a stream."""
    if SIMULATED:
        kernel[grid, threads, stream](*arguments)
        return
    # Numba warns of small grids, which here are what there is to do: one block for each sequence.
    config = _dispatcher.config
    before, config.CUDA_LOW_OCCUPANCY_WARNINGS = config.CUDA_LOW_OCCUPANCY_WARNINGS, 0
    try:
        configured = kernel[grid, threads, stream]
    finally:
        config.CUDA_LOW_OCCUPANCY_WARNINGS = before
    configured(*arguments)


def default_stream() -> Any:
    """Return the default stream."""
    # Numba's own simulator, where numba-cuda is not installed, does not know that name.
    return cuda.stream() if SIMULATED else cuda.default_stream()


# -- Primitives -----------------------------------------------------------------------------------

if SIMULATED:

    def fma(a: Any, b: Any, c: Any) -> Any:
        """Return ``a * b + c`` rounded once (but for a rare double rounding)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return _f(np.float64(a) * np.float64(b) + np.float64(c))

    def load4(array: Any, index: int) -> Any:
        """Return the four numbers from ``array[index]`` on; `index` is a multiple of 4."""
        return array[index], array[index + 1], array[index + 2], array[index + 3]

    def load_acquire(array: Any, index: int) -> Any:
        """Return ``array[index]``, and see all that its writer had seen."""
        return array[index]

    def store_release(array: Any, index: int, value: Any) -> None:
        """Set ``array[index]``, which tells a reader all that this block has written."""
        array[index] = value

    def _absolute(x: Any) -> Any:
        return np.abs(x)

    def _with_sign_of(x: Any, y: Any) -> Any:
        return np.copysign(x, y)

    def _power_of_two(x: Any) -> Any:
        bits = int(_f(x).view(np.uint32)) << 23
        return np.uint32(bits & 0xFFFFFFFF).view(np.float32)

else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    @device_function
    def fma(a, b, c):  # type: ignore[no-untyped-def]
        """Return ``a * b + c`` rounded once."""
        return cuda.fma(a, b, c)

    def _address(context, builder, numba_type, array, index):  # type: ignore[no-untyped-def]
        data = context.make_array(numba_type)(context, builder, array).data
        return builder.gep(data, [index])

    @intrinsic
    def load4(typingctx, array, index):  # type: ignore[no-untyped-def]
        """Return the four numbers from ``array[index]`` on, by one load of 16 bytes."""

        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            vector = ir.VectorType(ir.FloatType(), 4)
            address = _address(context, builder, sig.args[0], *args)
            value = builder.load(builder.bitcast(address, vector.as_pointer()), align=16)
            lanes = [
                builder.extract_element(value, ir.Constant(ir.IntType(32), lane))
                for lane in range(4)
            ]
            return context.make_tuple(builder, sig.return_type, lanes)

        return types.UniTuple(types.float32, 4)(array, types.int64), codegen

    def _assembly(builder, result, text, constraints, arguments):  # type: ignore[no-untyped-def]
        """Emit an instruction that is neither moved nor left out."""
        function_type = ir.FunctionType(result, [argument.type for argument in arguments])
        code = ir.InlineAsm(function_type, text, constraints + ",~{memory}", side_effect=True)
        return builder.call(code, arguments)

    @intrinsic
    def load_acquire(typingctx, array, index):  # type: ignore[no-untyped-def]
        """Return ``array[index]`` of int32, and see all that its writer had seen."""

        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            address = _address(context, builder, sig.args[0], *args)
            text = "ld.acquire.gpu.global.b32 $0, [$1];"
            return _assembly(builder, ir.IntType(32), text, "=r,l", [address])

        return types.int32(array, types.int64), codegen

    @intrinsic
    def store_release(typingctx, array, index, value):  # type: ignore[no-untyped-def]
        """Set ``array[index]`` of int32, which tells a reader all that this block has written."""

        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            address = _address(context, builder, sig.args[0], *args[:2])
            text = "st.release.gpu.global.b32 [$0], $1;"
            _assembly(builder, ir.VoidType(), text, "l,r", [address, args[2]])
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int32), codegen

    @device_function
    def _absolute(x):  # type: ignore[no-untyped-def]
        return cuda.libdevice.fabsf(x)

    @device_function
    def _with_sign_of(x, y):  # type: ignore[no-untyped-def]
        return cuda.libdevice.copysignf(x, y)

    @device_function
    def _power_of_two(x):  # type: ignore[no-untyped-def]
        return cuda.libdevice.int_as_float(cuda.libdevice.float_as_int(x) << np.int32(23))


@device_function
def _where_less(a, b, x, y):  # type: ignore[no-untyped-def]
    return x if a < b else y


@device_function
def _splat(value):  # type: ignore[no-untyped-def]
    return value


_PRIMITIVES = {
    _simd.absolute: _absolute,
    _simd.fma: fma,
    _simd.power_of_two: _power_of_two,
    _simd.splat: _splat,
    _simd.where_less: _where_less,
    _simd.with_sign_of: _with_sign_of,
}


# -- The cells' equations -------------------------------------------------------------------------

_converted: dict[Any, Any] = {}


def on_device(helper: Any) -> Any:
    """Return a helper of the CPU, such as a cell's equations, as a device function of float32."""
    found = _converted.get(helper)
    if found is None:
        source = helper.py_func
        used = [name for name in source.__code__.co_names if name in source.__globals__]
        names = {name: _converted_value(source.__globals__[name]) for name in used}
        copy = python_types.FunctionType(
            source.__code__, names, source.__name__, source.__defaults__, source.__closure__
        )
        copy.__module__ = source.__module__
        copy.__qualname__ = source.__qualname__
        found = _converted[helper] = device_function(copy)
    return found


def _converted_value(value: Any) -> Any:
    try:
        primitive = _PRIMITIVES.get(value)
    except TypeError:  # cannot be hashed, so is none
        return value
    if primitive is not None:
        return primitive
    return on_device(value) if isinstance(value, _Helper) else value


# -- Tuples ---------------------------------------------------------------------------------------


def loader(count: int) -> Any:
    """Return a device function ``(array, index, step)`` that loads a tuple of so many numbers."""
    if count == 0:
        return device_function(lambda array, index, step: ())
    before, place = loader(count - 1), count - 1

    def load(array, index, step):  # type: ignore[no-untyped-def]
        return before(array, index, step) + (array[index + place * step],)

    return device_function(load)


def storer(count: int) -> Any:
    """Return a device function ``(values, array, index, step)`` that stores a tuple's numbers."""
    if count == 1:

        def store_one(values, array, index, step):  # type: ignore[no-untyped-def]
            array[index] = values[0]

        return device_function(store_one)
    before, place = storer(count - 1), count - 1

    def store(values, array, index, step):  # type: ignore[no-untyped-def]
        before(values, array, index, step)
        array[index + place * step] = values[place]

    return device_function(store)
