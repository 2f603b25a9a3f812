"""C functions that run programs: what C code is given a pointer to.

Each takes a *block* of int64 as its user data: the arguments of :func:`fastgates.engine.step.run`
that do not change, and for some functions arrays to work in.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .._jit import INT0, c_function, helper
from .._simd import float_pointer, int_pointer
from .step import OTHER_PROCESS, call_kernel

__all__ = ["BLOCK", "filter_line", "integrand", "step"]

BLOCK = (
    "run",  # address of the interpreter
    "version",
    "token",  # 0 where the block was closed
    "program",
    "weights",
    "input_size",
    "row",
    "output_size",
    # for functions that keep no state of the caller's
    "initial",  # a row, the state that a line begins with
    "state",  # a row to work in
    "x",
    "y",
    "output",  # which number of y is the result
)
(_RUN, _VERSION, _TOKEN, _PROGRAM, _WEIGHTS, _INPUTS, _ROW, _OUTPUTS) = range(8)
_INITIAL, _STATE, _X, _Y, _OUTPUT = range(8, len(BLOCK))

_double_p = types.CPointer(types.float64)
_NAN32, _NAN64 = np.float32(np.nan), np.float64(np.nan)


@intrinsic
def _double_pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """Return a pointer to float64 from an integer address."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], ir.DoubleType().as_pointer())

    return _double_p(types.int64), codegen


@helper
def _run(block, x, state, y):
    """Run one step and return its status."""
    n = int_pointer(block)
    if n[_TOKEN] == 0:  # what the addresses point to is gone
        return INT0 + OTHER_PROCESS
    inputs, outputs = n[_INPUTS], n[_OUTPUTS]
    first = (n[_VERSION], n[_TOKEN], n[_PROGRAM], n[_WEIGHTS], x, inputs, inputs, inputs)
    second = (state, n[_ROW], y, outputs, outputs, outputs)
    return call_kernel(n[_RUN], (*first, *second, INT0 + 1, INT0 + 1))


@helper
def _begin(block):
    """Put the initial state into the state to work in."""
    n = int_pointer(block)
    source, target = float_pointer(n[_INITIAL]), float_pointer(n[_STATE])
    for k in range(n[_ROW]):
        target[k] = source[k]


# On all platforms of Numba, pointers are passed as integers of their size.


@c_function(types.void(types.intp, types.intp, types.intp, types.intp))
def step(x, state, y, block):
    """Advance by one step: ``void step(const float *x, float *state, float *y, void *model)``.

    Where the block was closed the output is NaN.
    """
    if _run(block, x, state, y) != 0:
        for k in range(int_pointer(block)[_OUTPUTS]):
            float_pointer(y)[k] = _NAN32


@c_function(types.intc(types.intp, types.intp, types.intp, types.intp, types.intp))
def filter_line(source, source_size, target, target_size, block):
    """Run over a line, for ``scipy.ndimage.generic_filter1d``.

    What goes into the model at a place of the line are the numbers around it, as many as it has
    inputs; what comes out is one of its outputs.
    """
    n = int_pointer(block)
    numbers, results = _double_pointer(source), _double_pointer(target)
    x, y = float_pointer(n[_X]), float_pointer(n[_Y])
    if source_size - target_size + 1 != n[_INPUTS]:
        return 0
    _begin(block)
    for i in range(target_size):
        for k in range(n[_INPUTS]):
            x[k] = np.float32(numbers[i + k])
        if _run(block, n[_X], n[_STATE], n[_Y]) != 0:
            return 0
        results[i] = np.float64(y[n[_OUTPUT]])
    return 1


@c_function(types.float64(types.intc, types.intp, types.intp))
def integrand(count, arguments, block):
    """Give an output of a step from a fixed state, for ``scipy.integrate``; NaN where it cannot."""
    n = int_pointer(block)
    numbers, x = _double_pointer(arguments), float_pointer(n[_X])
    if count != n[_INPUTS]:
        return _NAN64
    for k in range(n[_INPUTS]):
        x[k] = np.float32(numbers[k])
    _begin(block)
    if _run(block, n[_X], n[_STATE], n[_Y]) != 0:
        return _NAN64
    return np.float64(float_pointer(n[_Y])[n[_OUTPUT]])
