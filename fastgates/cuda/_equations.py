"""The equations of a cell, found in the two kernels that the CPU runs.

A cell's kernels are one line each, ``forward_pass(calls, begin, end, step, first_step, ...)``. That
line is run here, as Python, with a pass that notes what it is given: so a cell says once what its
equations are, and every backend finds them.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..cells import Cell, backward_pass, forward_pass

__all__ = ["Equations", "equations_of"]


@dataclass(frozen=True)
class Equations:
    """The helpers of a cell; those of a first stage are None where there is one stage."""

    step: Any
    first_step: Any
    step_backward: Any
    first_step_backward: Any


def _arguments(kernel: Any, pass_: Any) -> tuple[Any, ...]:
    """Return what a kernel gives to its pass."""
    noted: list[tuple[Any, ...]] = []
    function = kernel.py_func
    names = {
        name: (lambda *given: noted.append(given)) if value is pass_ else value
        for name, value in function.__globals__.items()
    }
    types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )(None, 0, 0)
    if len(noted) != 1:
        raise TypeError(f"{function.__qualname__} must call {pass_.__name__} once")
    return noted[0]


@cache
def equations_of(cell: Cell) -> Equations:
    """Return the equations of a cell."""
    forward = _arguments(cell.forward, forward_pass)
    backward = _arguments(cell.backward, backward_pass)
    return Equations(forward[3], forward[4], backward[3], backward[4])
