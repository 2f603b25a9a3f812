"""What a cell is: its equations, where its products go, and the registry of all cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["Cell", "get", "register", "registered"]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: names, places and the two kernels made of its equations.

    For each hidden unit a step works on a row of *slots*, one vector of units each. Before the
    step a slot holds a pre-activation, after it what back-propagation needs (usually the activated
    gate), and on the way back the gradient of the pre-activation. For most cells the slots simply
    are the gates.

    Parameters
    ----------
    name : str
        The name in the registry and in files.
    gates : tuple of str
        The gates in the order of the rows of ``weight_ih`` and ``weight_hh``.
    slots : tuple of str
        The slots in the order in which the equations take them.
    input_slots, recurrent_slots : tuple of int
        For each gate, the slot that its product with the input, with the state, is added to.
        The input's slots must be neighbours, and so must those of each stage.
    stages : tuple of (int, int)
        First slot and number of slots of each product with the state. The first stage multiplies
        the hidden state. A second one multiplies what the equations make of it in between (for
        GRU the state that the reset gate lets through).
    states : tuple of str
        The state variables; the first is the output, which the products take.
    forward, backward : kernel
        The compiled passes (:mod:`fastgates.engine.forward` and ``backward`` make them).
    equations, first_equations : helper
        The equations of a step that `forward` is made of, and those between two stages: for what
        else is made of them, such as single steps and C.
    functions : tuple of str
        The activation function that stands where one can be chosen, for cells whose equations take
        settings (see :mod:`fastgates.cells.general`).
    unit_weights : tuple of (int, int, int)
        Of each weight of a unit on a state of its own (a peephole): the slot that the product is
        added to, the state, not the first, and 1 if it is the state after the step. The equations
        add the product themselves; the engine sums the weights' gradients.
    """

    name: str
    gates: tuple[str, ...]
    slots: tuple[str, ...]
    input_slots: tuple[int, ...]
    recurrent_slots: tuple[int, ...]
    stages: tuple[tuple[int, int], ...]
    states: tuple[str, ...]
    forward: Any
    backward: Any
    equations: Any
    first_equations: Any = None
    functions: tuple[str, ...] = ()
    unit_weights: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if (self.first_equations is None) != (len(self.stages) == 1):
            raise ValueError(
                f"first_equations must be there for two stages and only then, got {self.stages}"
            )
        for what, places in (
            ("input_slots", self.input_slots),
            ("recurrent_slots", self.recurrent_slots),
        ):
            if len(places) != len(self.gates):
                raise ValueError(f"{what} must name a slot for each of {self.gates}, got {places}")
        first = min(self.input_slots)
        if sorted(self.input_slots) != list(range(first, first + len(self.gates))):
            raise ValueError(f"input_slots must be neighbours, got {self.input_slots}")
        staged = [slot for start, count in self.stages for slot in range(start, start + count)]
        if sorted(staged) != sorted(self.recurrent_slots) or len(self.stages) not in (1, 2):
            raise ValueError(
                f"one or two stages must cover recurrent_slots={self.recurrent_slots} once, "
                f"got {self.stages}"
            )

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # Copies and pickles go by the name: Numba would copy kernels without their disk cache.
        return get, (self.name,)

    @property
    def first_input_slot(self) -> int:
        """The first slot that takes a product with the input."""
        return min(self.input_slots)


_registry: dict[str, Cell] = {}


def register(cell: Cell) -> Cell:
    """Add `cell` to the registry and return it.

    Raises
    ------
    ValueError
        If a cell of its name is there already.
    """
    if cell.name in _registry:
        raise ValueError(f"a cell named {cell.name!r} is registered already")
    _registry[cell.name] = cell
    return cell


def registered() -> Mapping[str, Cell]:
    """Return all cells by name, read-only."""
    return MappingProxyType(_registry)


def get(name: str) -> Cell:
    """Return the cell called `name`.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        return _registry[name]
    except KeyError:
        raise ValueError(f"cell must be one of {sorted(_registry)}, got {name!r}") from None
