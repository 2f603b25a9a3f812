"""The cells: each a file of equations, and the registry that all else goes through.

``docs/adding-a-cell.md`` shows how to add one.
"""

from ._cell import Cell, get, register, registered

__all__ = ["Cell", "get", "register", "registered"]

from . import gru, lstm, rnn, simplified_gru  # noqa: F401  (they register themselves)
