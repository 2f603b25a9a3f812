"""The cells: each a file of equations, and the registry that all else goes through.

Everything that a cell is made of can be imported from here, also for cells outside the package:
the vector maths for its equations, the passes that its kernels consist of, and :class:`Cell` and
:func:`register`. ``docs/adding-a-cell.md`` shows how to add one.
"""

from .._jit import STAMP, helper, kernel
from .._simd import fma, where_less
from .._vecmath import ONE, ZERO, relu, sigmoid, tanh
from ..engine.backward import backward_pass
from ..engine.forward import forward_pass
from ._cell import Cell, get, register, registered

__all__ = [
    "ONE",
    "STAMP",
    "ZERO",
    "Cell",
    "backward_pass",
    "fma",
    "forward_pass",
    "get",
    "helper",
    "kernel",
    "register",
    "registered",
    "relu",
    "sigmoid",
    "tanh",
    "where_less",
]

from . import general, gru, lstm, rnn, simplified_gru  # noqa: F401  (they register themselves)
