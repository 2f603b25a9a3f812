"""C function pointers to a model, and ready callbacks for SciPy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .._jit import STAMP
from ..engine import callbacks, step
from ..engine.call import address, aligned_empty
from .program import Program

__all__ = ["CFunction"]

_PROTOTYPE = ctypes.CFUNCTYPE(
    None,
    ctypes.POINTER(ctypes.c_float),
    ctypes.POINTER(ctypes.c_float),
    ctypes.POINTER(ctypes.c_float),
    ctypes.c_void_p,
)
_FILTER = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_double),
    ctypes.c_ssize_t,
    ctypes.POINTER(ctypes.c_double),
    ctypes.c_ssize_t,
    ctypes.c_void_p,
)
_INTEGRAND = ctypes.CFUNCTYPE(
    ctypes.c_double, ctypes.c_int, ctypes.POINTER(ctypes.c_double), ctypes.c_void_p
)


class _Block:
    """User data of a C function: numbers, and the arrays that they point to."""

    def __init__(self, program: Program, **more: Any) -> None:
        step.prepare()
        fields = {
            "run": step.run_address(),
            "version": STAMP,
            "token": step.TOKEN,
            "program": address(program.numbers),
            "weights": address(program.weights),
            "input_size": program.input_size,
            "row": program.row,
            "output_size": program.output_size,
        }
        self._kept: tuple[Any, ...] = (program, more)
        for name, value in more.items():
            fields[name] = address(value) if isinstance(value, np.ndarray) else value
        self.numbers = np.array([fields.get(name, 0) for name in callbacks.BLOCK], np.int64)

    def pointer(self) -> ctypes.c_void_p:
        """Return a pointer that keeps the block alive."""
        pointer = ctypes.c_void_p(address(self.numbers))
        pointer.block = self  # type: ignore[attr-defined]
        return pointer

    def close(self) -> None:
        """Let go of the arrays; the function knows by the token."""
        self.numbers[callbacks.BLOCK.index("token")] = 0
        self._kept = ()


class CFunction:
    """A model as a C function with its user data, made by ``model.cfunc()``::

        void step(const float *x, float *state, float *y, void *model);

    It reads `input_size` numbers, updates `state_size` numbers, and writes `output_size` numbers.
    It allocates nothing, needs neither Python nor the GIL, and may be called from any thread, each
    with a state of its own. A state begins with zeros.

    The user data holds the parameters that the model had when this was made. It lives as long as
    this object, or a pointer from :attr:`user_data`, or a callback made from it; C code must not
    outlive all of them. :meth:`close` frees it at once: calls that still come give NaN, as long as
    this object lives.

    Attributes
    ----------
    address : int
        Of the C function, the same for all models.
    function : ctypes function
        The same, with its prototype, to be called from Python.
    input_size, output_size, state_size : int
        How many float32 numbers `x`, `y` and `state` have.
    """  # noqa: D400

    prototype = _PROTOTYPE

    def __init__(self, program: Program) -> None:
        self._program: Program | None = program
        self._block = _Block(program)
        self.address: int = callbacks.step.address
        self.function = _PROTOTYPE(self.address)
        self.input_size, self.output_size = program.input_size, program.output_size
        self.state_size = program.row

    def __reduce__(self) -> Any:
        raise TypeError("a C function cannot be copied or pickled: make it from the model")

    def __enter__(self) -> CFunction:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _open(self) -> Program:
        if self._program is None:
            raise ValueError("this C function was closed: make another one with model.cfunc()")
        return self._program

    @property
    def user_data(self) -> ctypes.c_void_p:
        """The last argument; as a number in its ``value``. It keeps the parameters alive."""
        self._open()
        return self._block.pointer()

    def new_state(self) -> np.ndarray:
        """Return a state in which a sequence begins: zeros, float32 of shape (state_size,)."""
        return self._open().new_rows(1)[0]

    def close(self) -> None:
        """Free the parameters, if nothing else needs them; calls that still come give NaN."""
        self._program = None
        self._block.close()

    def filter1d(self, state: Any = None, output: int = 0) -> Any:
        """Return a callback for ``scipy.ndimage.generic_filter1d``.

        The model runs along each line, from the same initial state. At a place of the line it takes
        the numbers around it as its inputs: `filter_size` must be `input_size`. The callback has
        room for one line at a time: make one for each thread.

        Parameters
        ----------
        state : array_like, tuple or sequence, optional
            The initial state of a batch of one, as the model takes it; zeros by default.
        output : int
            Which of the model's outputs is the result.

        Returns
        -------
        scipy.LowLevelCallable

        Raises
        ------
        ValueError, TypeError
            If the state or the output is not one of the model's.
        """
        return self._callable(_FILTER, callbacks.filter_line.address, state, output)

    def integrand(self, state: Any = None, output: int = 0) -> Any:
        """Return a callback for ``scipy.integrate.quad`` and ``nquad``.

        It gives one output of a step from the given state as a function of the inputs: the first
        one is the variable of the integral, the others are its ``args``. The callback has room for
        one call at a time: make one for each thread.

        Parameters
        ----------
        state, output
            As for :meth:`filter1d`.

        Returns
        -------
        scipy.LowLevelCallable

        Raises
        ------
        ValueError, TypeError
            If the state or the output is not one of the model's.
        """
        return self._callable(_INTEGRAND, callbacks.integrand.address, state, output)

    def _callable(self, prototype: Any, place: int, state: Any, output: int) -> Any:
        from scipy import LowLevelCallable

        program = self._open()
        if (
            not isinstance(output, int | np.integer)
            or isinstance(output, bool)
            or not 0 <= output < program.output_size
        ):
            raise ValueError(
                f"output must be from 0 to {program.output_size - 1} "
                f"(output_size={program.output_size}), got {output!r}"
            )
        initial = program.new_rows(1)
        program.write_state(state, initial)
        block = _Block(
            program,
            initial=initial,
            state=program.new_rows(1),
            x=aligned_empty(program.input_size),
            y=aligned_empty(program.output_size),
            output=output,
        )
        return LowLevelCallable(prototype(place), block.pointer())
