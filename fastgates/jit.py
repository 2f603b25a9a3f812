"""Models inside your own ``@njit`` code.

A handle is plain data: pass it to your compiled functions as an argument, with a state and arrays
for what goes in and out::

    handle, state = model.jit_handle(), fastgates.jit.new_state(model)

    @numba.njit(cache=True)
    def control(handle, state, measurements, actions):
        for t in range(len(measurements)):
            fastgates.jit.step(handle, measurements[t], state, actions[t])

``step`` and ``forward`` allocate nothing and need neither the GIL nor Python, so they may be called
under ``nogil`` and in ``prange`` (each thread with states of its own). What Numba compiles of them
is a call of fastgates' own kernels: your function compiles as fast as without, is cached on disk as
usual, and always runs the kernels of the fastgates that is installed.

A handle holds the parameters that the model had when it was made. As a global variable it would be
frozen into the compiled function, parameters and all; code of that kind that comes from the disk
cache, where the parameters may be old ones, raises an error instead of running.

Sizes are checked at every call, dtypes and layouts when your function is compiled. (Exceptions do
not leave a ``prange``: try your loop with ``range`` first.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload, register_jitable

from ._checks import positive_integer, real_array
from ._jit import INT0, STAMP
from ._parameters import Module
from ._simd import LANES
from .embedding.program import check_origin, program_of, rebound
from .engine import step as _engine
from .engine.call import address, aligned, aligned_empty
from .engine.step import (
    INPUTS,
    OUTPUTS,
    ROW,
    RUN_AT,
    TOKEN_AT,
    call_address,
    table_pointer,
)

__all__ = ["JitHandle", "forward", "handle_of", "new_state", "read_state", "step", "write_state"]

# An array of this type in a handle makes the types of another version's handles different ones, so
# that Numba compiles functions that take them again.
_VERSION = np.zeros(0, [(f"fastgates_{STAMP:x}", np.int8)])


class JitHandle(NamedTuple):
    """A model as plain data, made by ``model.jit_handle()``.

    Attributes
    ----------
    numbers : ndarray of int64
        Sizes and places.
    weights : ndarray of float32
        The packed parameters.
    kinds : ndarray of uint8
        The names of the modules, for pickles.
    version : ndarray
        Empty: its dtype says which fastgates made the handle.
    """

    numbers: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray
    version: np.ndarray

    @property
    def input_size(self) -> int:
        """Features of the input."""
        return int(self.numbers[INPUTS])

    @property
    def output_size(self) -> int:
        """Features of the output."""
        return int(self.numbers[OUTPUTS])

    @property
    def state_size(self) -> int:
        """Numbers of a state: what the layers remember, and room to work in."""
        return int(self.numbers[ROW])

    def __reduce__(self) -> Any:
        return _restore, (STAMP, LANES, self.numbers, self.weights, self.kinds)


def _restore(stamp: int, lanes: int, numbers: Any, weights: Any, kinds: Any) -> JitHandle:
    """Make a handle from a pickle: with the addresses of this process."""
    check_origin(stamp, lanes)
    weights = aligned(weights)
    weights.flags.writeable = False
    names = tuple(kinds.tobytes().decode().split("\n"))
    return JitHandle(rebound(numbers, names), weights, kinds, _VERSION)


def handle_of(model: Module) -> JitHandle:
    """Return the handle of a model, see ``model.jit_handle``."""
    program = program_of(model)
    kinds = np.frombuffer("\n".join(program.kinds).encode(), np.uint8)
    return JitHandle(program.numbers, program.weights, kinds, _VERSION)


# -- States ---------------------------------------------------------------------------------------


def _numbers_of(model: Module | JitHandle) -> np.ndarray:
    return model.numbers if isinstance(model, JitHandle) else program_of(model).numbers


def new_state(handle: JitHandle, batch_size: int | None = None) -> np.ndarray:
    """Return a state in which a sequence begins: zeros. Also for ``@njit`` code.

    A state is a plain array: copy it to remember it, write it back to return to it.

    Parameters
    ----------
    handle : JitHandle
        From Python, a model will do as well.
    batch_size : int, optional
        For so many sequences at once.

    Returns
    -------
    ndarray of float32, shape (state_size,) or (batch_size, state_size)
    """
    size = int(_numbers_of(handle)[ROW])
    if batch_size is None:
        state = aligned_empty(size)
    else:
        state = aligned_empty((positive_integer("batch_size", batch_size), size))
    state[...] = 0
    return state


@overload(new_state)
def _new_state(handle, batch_size=None):  # type: ignore[no-untyped-def]
    _check_handle(handle)
    if batch_size is None or isinstance(batch_size, types.Omitted | types.NoneType):
        return lambda handle, batch_size=None: np.zeros(handle.numbers[ROW], np.float32)
    return lambda handle, batch_size=None: np.zeros((batch_size, handle.numbers[ROW]), np.float32)


def _rows_of(model: Module, state: Any) -> tuple[Any, np.ndarray]:
    """Return the program of a model and a state as rows, checked."""
    program = program_of(model)
    _as_pointer("state", state, 2 if np.ndim(state) == 2 else 1, True)
    if state.shape[-1] != program.row:
        raise ValueError(
            f"state must have shape (state_size={program.row},) or (batch_size, "
            f"state_size={program.row}), got {state.shape}"
        )
    return program, state.reshape(-1, program.row)


def write_state(model: Module, value: Any, state: np.ndarray) -> None:
    """Put a state of the model's into a state for ``@njit`` code.

    Parameters
    ----------
    model : Module
        The one that the handle was made of.
    value : array_like, tuple or sequence
        As the model takes it; None for zeros.
    state : ndarray of float32, shape (state_size,) or (batch_size, state_size)
        Written to.

    Raises
    ------
    ValueError, TypeError
        If a structure, shape or dtype is wrong; then nothing is changed.
    """
    program, rows = _rows_of(model, state)
    program.write_state(value, rows)


def read_state(model: Module, state: np.ndarray) -> Any:
    """Return the state that an array of ``@njit`` code holds, as the model gives it.

    Parameters
    ----------
    model : Module
        The one that the handle was made of.
    state : ndarray of float32, shape (state_size,) or (batch_size, state_size)

    Returns
    -------
    ndarray, tuple or None
        Copies; of a single state for a batch of one.

    Raises
    ------
    ValueError, TypeError
        If the shape or dtype is wrong.
    """
    program, rows = _rows_of(model, state)
    return program.read_state(rows)


# -- Steps ----------------------------------------------------------------------------------------

_OTHER_PROCESS = (
    "the handle was made in another process: pass it to the compiled function as an argument "
    "(a global variable is frozen into code that is cached on disk)"
)


def _as_pointer(name: str, array: Any, ndim: int, written: bool) -> int:
    """Return the address of a C-contiguous float32 array, or raise."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} must be a float32 array, got {got}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}")
    if not array.flags.c_contiguous or (written and not array.flags.writeable):
        kind = "C-contiguous and writeable" if written else "C-contiguous"
        raise TypeError(f"{name} must be {kind}, got an array that is not")
    return address(array)


def _run_from_python(handle: JitHandle, x: Any, state: Any, out: Any, over_time: bool) -> None:
    """Check what Numba checks otherwise, and the sizes; then run."""
    if not isinstance(handle, JitHandle):
        raise TypeError(f"handle must come from model.jit_handle(), got {type(handle).__name__}")
    ndim = 2 if over_time or np.ndim(x) == 2 else 1
    addresses = [
        _as_pointer("x", x, ndim, False),
        _as_pointer("state", state, 1 if over_time else ndim, True),
        _as_pointer("out", out, ndim, True),
    ]
    for name, array, size in (
        ("x", x, ("input_size", handle.input_size)),
        ("state", state, ("state_size", handle.state_size)),
        ("out", out, ("output_size", handle.output_size)),
    ):
        before = () if array.ndim == 1 else (("time" if over_time else "batch_size", len(x)),)
        real_array(name, array, (*before, size))
    rows, steps = (1, len(x)) if over_time else (len(x) if ndim == 2 else 1, 1)
    n, m = x.shape[-1], out.shape[-1]
    model = STAMP, _engine.TOKEN, address(handle.numbers), address(handle.weights)
    arrays = addresses[0], n, n, n, addresses[1], state.shape[-1], addresses[2], m, m, m
    status = _engine.run((*model, *arrays, rows, steps))
    if status != 0:
        raise RuntimeError(_OTHER_PROCESS)


def step(handle: JitHandle, x: np.ndarray, state: np.ndarray, out: np.ndarray) -> None:
    """Advance by one step of time. For ``@njit`` code; from Python, streams are faster.

    Parameters
    ----------
    handle : JitHandle
    x : ndarray of float32, shape (input_size,) or (batch_size, input_size)
    state : ndarray of float32, shape (state_size,) or (batch_size, state_size)
        Overwritten by the new state.
    out : ndarray of float32, shape (output_size,) or (batch_size, output_size)
        Filled with the output.

    Raises
    ------
    ValueError
        If a size is wrong; nothing is changed.
    TypeError
        If something is not a C-contiguous float32 array. (In ``@njit`` code it does not compile.)
    RuntimeError
        If the handle is another process's, see the module.
    """
    _run_from_python(handle, x, state, out, over_time=False)


def forward(handle: JitHandle, x: np.ndarray, state: np.ndarray, out: np.ndarray) -> None:
    """Advance by the steps of a piece of one sequence. For ``@njit`` code.

    Parameters
    ----------
    handle : JitHandle
    x : ndarray of float32, shape (time, input_size)
    state : ndarray of float32, shape (state_size,)
        Overwritten by the state after the last step.
    out : ndarray of float32, shape (time, output_size)
        Filled with the outputs of all steps.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        See :func:`step`.
    """
    _run_from_python(handle, x, state, out, over_time=True)


@intrinsic
def _call_run(typingctx, handle, x, state, out, n_rows, n_steps):  # type: ignore[no-untyped-def]
    """Call the interpreter of programs and return its status.

    It takes the arrays whole, and so does not the code around it, which would count references to
    what it takes apart or passes on.
    """

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        integer = ir.IntType(64)

        def place(numba_type: Any, value: Any) -> tuple[Any, Any]:
            """Emit the address of an array, and the size of its last axis."""
            array = context.make_array(numba_type)(context, builder, value)
            size = builder.extract_value(array.shape, numba_type.ndim - 1)
            return builder.ptrtoint(array.data, integer), size

        model = [
            place(sig.args[0].types[i], builder.extract_value(args[0], i))[0] for i in range(2)
        ]
        (x, n), (state, row), (out, m) = map(place, sig.args[1:4], args[1:4])
        entries = table_pointer(builder)
        token, at = (
            builder.load(builder.gep(entries, [integer(entry)])) for entry in (TOKEN_AT, RUN_AT)
        )
        arguments = [integer(STAMP), token, *model, x, n, n, n, state, row, out, m, m, m, *args[4:]]
        return call_address(builder, at, arguments)

    return types.int64(handle, x, state, out, types.int64, types.int64), codegen


_call: Any = _call_run  # as the type checker does not know what is compiled


@register_jitable
def _fail(status):  # type: ignore[no-untyped-def]
    if status == 1:
        raise RuntimeError(
            "this function was compiled for another version of fastgates: delete its cache files"
        )
    if status == 2:
        raise RuntimeError(_OTHER_PROCESS)
    if status == 3:
        raise ValueError("the last axis of x must have input_size numbers")
    if status == 4:
        raise ValueError("state must come from fastgates.jit.new_state(handle)")
    if status == 5:
        raise ValueError("the last axis of out must have output_size numbers")


def _step_one(handle, x, state, out):  # type: ignore[no-untyped-def]
    status = _call(handle, x, state, out, INT0 + 1, INT0 + 1)
    if status != 0:
        _fail(status)


def _step_batch(handle, x, state, out):  # type: ignore[no-untyped-def]
    if len(state) != len(x) or len(out) != len(x):
        raise ValueError("x, state and out must have the same batch_size")
    status = _call(handle, x, state, out, len(x), INT0 + 1)
    if status != 0:
        _fail(status)


def _forward(handle, x, state, out):  # type: ignore[no-untyped-def]
    if len(out) != len(x):
        raise ValueError("x and out must have the same time")
    status = _call(handle, x, state, out, INT0 + 1, len(x))
    if status != 0:
        _fail(status)


def _check_handle(handle: Any) -> None:
    if getattr(handle, "instance_class", None) is not JitHandle:
        raise TypingError(f"handle must come from model.jit_handle(), got {handle}")


def _check_types(name: str, handle: Any, x: Any, state: Any, out: Any, ndims: Any) -> None:
    """Raise what Numba shows to the user where types do not fit."""
    _check_handle(handle)
    ndim = x.ndim if isinstance(x, types.Array) and x.ndim in ndims else ndims[-1]
    state_ndim = ndim if name == "step" else 1
    for label, array, wanted in (("x", x, ndim), ("state", state, state_ndim), ("out", out, ndim)):
        if (
            not isinstance(array, types.Array)
            or array.dtype != types.float32
            or array.layout != "C"
            or array.ndim != wanted
            or not (label == "x" or array.mutable)
        ):
            raise TypingError(
                f"{label} of fastgates.jit.{name} must be a C-contiguous float32 array of {wanted} "
                f"axes{'' if label == 'x' else ' that can be written'}, got {array}"
            )


@overload(step, jit_options={"forceinline": True})
def _overload_step(handle, x, state, out):  # type: ignore[no-untyped-def]
    _check_types("step", handle, x, state, out, (1, 2))
    return _step_one if x.ndim == 1 else _step_batch


@overload(forward, jit_options={"forceinline": True})
def _overload_forward(handle, x, state, out):  # type: ignore[no-untyped-def]
    _check_types("forward", handle, x, state, out, (2,))
    return _forward
