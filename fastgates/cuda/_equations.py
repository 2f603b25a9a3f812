"""The equations of a cell, as what its two kernels are made of.

The equations of a step are the cell's own field. Those of the way back stand in the one line of its
backward kernel, ``backward_pass(calls, begin, end, step_backward, ...)``. That line is run here, as
Python, with a pass that notes what it is given: so a cell says once what its equations are, and
every backend finds them.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..cells import Cell, backward_pass

__all__ = ["Equations", "equations_of"]


@dataclass(frozen=True)
class Equations:
    """The helpers of a cell; those of a first stage are None where there is one stage.

    `numbers` is how many fixed numbers or weights of a unit the equations are given in a tuple,
    beside the layer's settings; None for cells without settings, which are given one as it is.
    """

    step: Any
    first_step: Any
    step_backward: Any
    first_step_backward: Any
    numbers: int | None


@cache
def equations_of(cell: Cell) -> Equations:
    """Return the equations of a cell."""
    noted: list[tuple[Any, ...]] = []
    function = cell.backward.py_func
    names = {
        name: (lambda *given: noted.append(given)) if value is backward_pass else value
        for name, value in function.__globals__.items()
    }
    types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )(None, 0, 0)
    if len(noted) != 1:
        raise TypeError(f"{function.__qualname__} must call backward_pass once")
    _, _, _, step_backward, first_step_backward, _, _, *numbers = noted[0]
    count = len(numbers[0]) if numbers and numbers[0] is not None else None
    return Equations(
        cell.equations, cell.first_equations, step_backward, first_step_backward, count
    )
