"""Streams: a model that is fed one step of time after the other, and keeps its state."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import positive_integer, real_array
from .._jit import STAMP
from .._threads import Tasks, is_small, threads_for
from ..engine import step
from ..engine.call import address
from .program import Program

__all__ = ["Stream"]

_FLOAT32 = np.dtype(np.float32)


class Stream:
    """A model that is fed one step after the other; made by ``model.stream()``.

    The outputs are bit for bit those of a call of the model with whole sequences. For a model with
    ``return_sequences=False`` an output is what the model gives for the sequence up to this step.

    A stream has its own state; any number of them share one copy of the packed parameters, which
    are those that the model had when the stream was made. Different streams may run in different
    threads at once, one stream must not. Copies and pickles go on from the same state.

    Parameters
    ----------
    program : Program
        See :mod:`fastgates.embedding.program`.
    batch_size : int
        Sequences that advance together.

    Attributes
    ----------
    batch_size, input_size, output_size : int

    Examples
    --------
    >>> import numpy as np
    >>> import fastgates as fg
    >>> model = fg.GRU(2, 8, seed=0)
    >>> stream = model.stream()
    >>> x = np.ones((1, 3, 2), np.float32)
    >>> outputs = [stream.step(x_t) for x_t in x[0]]
    >>> bool((outputs == model(x)[0][0]).all())
    True
    """

    def __init__(self, program: Program, batch_size: int = 1) -> None:
        size = positive_integer("batch_size", batch_size)
        self._set(program, program.new_rows(size))

    def _set(self, program: Program, rows: np.ndarray) -> None:
        self._program, self._rows = program, rows
        self.batch_size = len(rows)
        self.input_size, self.output_size = program.input_size, program.output_size
        one = self.batch_size == 1
        self._x_shape = (self.input_size,) if one else (self.batch_size, self.input_size)
        self._y_shape = (self.output_size,) if one else (self.batch_size, self.output_size)
        # What is not contiguous float32 goes through these two.
        self._x = np.zeros(self._x_shape, np.float32)
        self._y = np.zeros(self._y_shape, np.float32)
        self._call = self._new_call(self._x, self._y, 1)
        self._at = address(self._call)
        self._run = step.quick_call()
        self._step = step.quick_step() if one else None
        self._small = is_small(program.work * self.batch_size)

    def __reduce__(self) -> Any:
        return _restore, (type(self), self._program, self._rows.copy())

    def __repr__(self) -> str:
        return (
            f"Stream(batch_size={self.batch_size}, input_size={self.input_size}, "
            f"output_size={self.output_size})"
        )

    def _new_call(self, x: np.ndarray, y: np.ndarray, n_steps: int) -> np.ndarray:
        """Return the arguments for steps from arrays (B, steps, I) to (B, steps, O)."""
        program = self._program
        fields = {
            "version": STAMP,
            "token": step.TOKEN,
            "program": address(program.numbers),
            "weights": address(program.weights),
            "inputs": address(x),
            "input_size": self.input_size,
            "input_row": n_steps * self.input_size,
            "input_step": self.input_size,
            "states": address(self._rows),
            "row": program.row,
            "output": address(y),
            "output_size": self.output_size,
            "output_row": n_steps * self.output_size,
            "output_step": self.output_size,
            "n_rows": self.batch_size,
            "n_steps": n_steps,
        }
        return np.array([fields[name] for name in step.ARGUMENTS], np.int64)

    # -- State ------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """The state, as the model takes and gives it: a copy. None for a model without states."""
        return self._program.read_state(self._rows)

    @state.setter
    def state(self, state: Any) -> None:
        self._program.write_state(state, self._rows)

    def reset(self, state: Any = None) -> None:
        """Begin a new sequence.

        Parameters
        ----------
        state : array_like, tuple or sequence, optional
            The initial state, as the model takes it; zeros by default.

        Raises
        ------
        ValueError, TypeError
            If it has the wrong structure, shape or dtype; then nothing is changed.
        """
        self._program.write_state(state, self._rows)

    # -- Steps ------------------------------------------------------------------------------------

    def step(self, x: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Advance by one step.

        Parameters
        ----------
        x : array_like, shape (input_size,), or (batch_size, input_size) for more than one sequence
            Any real dtype and strides; float32 is fastest.
        out : ndarray of float32, optional
            Where the output goes; then nothing is allocated.

        Returns
        -------
        ndarray of float32, shape (output_size,) or (batch_size, output_size)
            `out` itself where it was given.

        Raises
        ------
        ValueError, TypeError
            If `x` or `out` has the wrong shape or dtype; the state is as it was.
        """
        if x.__class__ is not np.ndarray or x.dtype is not _FLOAT32 or x.shape != self._x_shape:
            x = self._checked_x(x)
        if out is None:
            out = np.empty(self._y_shape, np.float32)
        elif (
            out.__class__ is not np.ndarray
            or out.dtype is not _FLOAT32
            or out.shape != self._y_shape
            or not out.flags.writeable
        ):
            self._check_out(out, self._y_shape)
        if self._step is not None and self._step(self._at, x, out, None) == 0:
            return out
        self._x[...] = x
        if self._small:
            self._run(self._at, None)
        else:
            self._share(self._call, 1)
        out[...] = self._y
        return out

    def run(self, x: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Advance by the steps of a piece of the sequences.

        Parameters
        ----------
        x : array_like, shape (time, input_size), or (batch_size, time, input_size)
        out : ndarray of float32, optional
            C-contiguous; where the outputs go.

        Returns
        -------
        ndarray of float32, shape (time, output_size) or (batch_size, time, output_size)

        Raises
        ------
        ValueError, TypeError
            If `x` or `out` has the wrong shape or dtype; the state is as it was.
        """
        x = real_array("x", x, (*self._batch_axis(), "time", ("input_size", self.input_size)))
        time = x.shape[-2]
        shape = (*self._y_shape[:-1], time, self.output_size)
        if out is None:
            out = np.empty(shape, np.float32)
        else:
            self._check_out(out, shape)
            if not out.flags.c_contiguous:
                raise ValueError("out must be C-contiguous")
        call = self._new_call(x, out, time)
        self._share(call, time)
        return out

    def _batch_axis(self) -> tuple[tuple[str, int], ...]:
        return () if self.batch_size == 1 else (("batch_size", self.batch_size),)

    def _checked_x(self, x: Any) -> np.ndarray:
        return real_array("x", x, (*self._batch_axis(), ("input_size", self.input_size)))

    def _check_out(self, out: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
        if out.dtype != np.float32:
            raise TypeError(f"out must be of dtype float32, got {out.dtype}")
        if out.shape != shape:
            raise ValueError(f"out must have shape {shape}, got {out.shape}")
        if not out.flags.writeable:
            raise ValueError("out must be writeable, got a read-only array")

    def _share(self, call: np.ndarray, n_steps: int) -> None:
        """Run a call, on several threads if it is large, each with some of the rows at a time."""
        threads = threads_for(self._program.work * self.batch_size * n_steps)
        if threads == 1:
            self._run(address(call), None)
            return
        size = max(step.BLOCK_ROWS, -(-self.batch_size // (4 * threads)))
        bounds = [*range(0, self.batch_size, size), self.batch_size]
        Tasks(step.run_rows, bounds, threads).run(call)


def _restore(kind: type[Stream], program: Program, rows: np.ndarray) -> Stream:
    stream = kind.__new__(kind)
    aligned = program.new_rows(len(rows))
    aligned[...] = rows
    stream._set(program, aligned)
    return stream
