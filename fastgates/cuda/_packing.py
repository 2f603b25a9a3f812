"""How a layer's weights lie on the device: maps from places there to places in the flat vector.

A map is an array of places in the source, -1 for zero, and filling an array by one is a kernel of
one line. So what changes with every step of an optimiser, the packed weights, costs one launch, and
so do the gradients on their way back to the layout of the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._plans import Plan

__all__ = ["Packing", "Sources"]


@dataclass(frozen=True)
class Sources:
    """Where the parameters of one direction begin in the flat vector; -1 for absent ones."""

    weight_ih: int
    weight_hh: int
    bias_ih: int
    bias_hh: int
    unit_weights: int = -1


class Packing:
    """The maps of one direction of a layer.

    Parameters
    ----------
    cell : Cell
    input_size, hidden : int
    sources : Sources
    given : ndarray of int
        Where the source has what the equations are given besides, -1 for zeros: numbers of each
        unit, all units of the first number first, and the layer's settings.
    unit_weights : int
        Weights of each unit on states of its own, at ``sources.unit_weights``.
    """

    def __init__(
        self,
        cell: Any,
        input_size: int,
        hidden: int,
        sources: Sources,
        given: np.ndarray,
        unit_weights: int = 0,
    ) -> None:
        self.cell, self.input_size, self.hidden, self.sources = cell, input_size, hidden, sources
        self.given, self.unit_weights = given, unit_weights
        self.gate_of_slot = {slot: gate for gate, slot in enumerate(cell.recurrent_slots)}
        self.gate_of_input_slot = {slot: gate for gate, slot in enumerate(cell.input_slots)}

    @staticmethod
    def offsets(plan: Plan, hidden: int, slots: int) -> tuple[int, int, int]:
        """Return where the second product's weights, biases and what else is given begin."""
        second = plan.slices * plan.stages[0].block_weights
        if len(plan.stages) == 1:
            biases = second
        else:
            biases = second + plan.slices * plan.stages[1].block_weights
        return second, biases, biases + slots * hidden

    def _weights(self, plan: Plan, number: int, transposed: bool) -> np.ndarray:
        """Return the map of one product's weights, (slices, quads, 4, columns, parts, lanes)."""
        stage, hidden = plan.stages[number], self.hidden
        order = list(reversed(self.cell.stages)) if transposed else list(self.cell.stages)
        first, _ = order[number]
        piece = np.arange(plan.slices).reshape(-1, 1, 1, 1, 1, 1)
        quad = np.arange(stage.quads).reshape(1, -1, 1, 1, 1, 1)
        within = np.arange(4).reshape(1, 1, -1, 1, 1, 1)
        column = np.arange(stage.columns).reshape(1, 1, 1, -1, 1, 1)
        part = np.arange(stage.parts).reshape(1, 1, 1, 1, -1, 1)
        lane = np.arange(stage.lanes).reshape(1, 1, 1, 1, 1, -1)
        inner = (quad * stage.parts + part) * 4 + within
        gates = np.array([self.gate_of_slot.get(slot, 0) for slot in range(len(self.cell.slots))])
        if transposed:
            local = column * stage.lanes + lane
            k = piece * plan.units + local  # the unit that the gradient goes to
            slot, unit = first + np.minimum(inner, stage.inner - 1) // hidden, inner % hidden
            valid = (inner < stage.inner) & (local < plan.units) & (k < hidden)
        else:
            slot, unit = first + column, piece * plan.units + lane
            k = inner
            valid = (inner < hidden) & (unit < hidden)
        place = self.sources.weight_hh + (gates[slot] * hidden + unit) * hidden + k
        return np.where(valid, place, -1)

    def recurrent(self, plan: Plan, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the two maps whose sum is what a recurrent kernel takes as ``packed``."""
        weights = [
            self._weights(plan, number, transposed).ravel() for number in range(len(plan.stages))
        ]
        slots, hidden = len(self.cell.slots), self.hidden
        biases = np.full((2, slots, hidden), -1)
        for which, (start, gates) in enumerate(
            (
                (self.sources.bias_ih, self.gate_of_input_slot),
                (self.sources.bias_hh, self.gate_of_slot),
            )
        ):
            for slot, gate in gates.items():
                if start >= 0:
                    biases[which, slot] = start + gate * hidden + np.arange(hidden)
        one = np.concatenate([*weights, biases[0].ravel(), self.given])
        other = np.full(one.size, -1)
        end = one.size - self.given.size
        other[end - biases[1].size : end] = biases[1].ravel()
        return one, other

    def inputs(self) -> np.ndarray:
        """Return the map of ``weight_ih`` with its rows in the order of the slots, (G * H, I)."""
        hidden, size = self.hidden, self.input_size
        first = self.cell.first_input_slot
        gates = [self.gate_of_input_slot[first + n] for n in range(len(self.cell.gates))]
        rows = (np.array(gates)[:, None] * hidden + np.arange(hidden)).ravel()
        return (self.sources.weight_ih + rows[:, None] * size + np.arange(size)).ravel()

    # -- The way back: all gradients in one array, by slot --------------------------------------

    @property
    def gradient_sizes(self) -> tuple[int, int, int, int]:
        """Sizes of the gradients: of the input's weights, the state's, biases, units' weights."""
        slots, gates, hidden = len(self.cell.slots), len(self.cell.gates), self.hidden
        return (
            gates * hidden * self.input_size,
            gates * hidden * hidden,
            slots * hidden,
            self.unit_weights * hidden,
        )

    def gradients(self, begin: int, target: np.ndarray) -> None:
        """Fill the map of the flat gradient vector with places in the gradients by slot.

        Parameters
        ----------
        begin : int
            Where this direction's gradients by slot begin.
        target : ndarray of int
            The map, as long as the flat vector.
        """
        cell, hidden, size, gates = self.cell, self.hidden, self.input_size, len(self.cell.gates)
        inputs, states, biases, units = self.gradient_sizes
        recurrent_at, biases_at = begin + inputs, begin + inputs + states
        order = [slot for first, count in cell.stages for slot in range(first, first + count)]
        unit = np.arange(hidden)
        if units:
            start = self.sources.unit_weights
            target[start : start + units] = biases_at + biases + np.arange(units)
        for gate in range(gates):
            row = cell.input_slots[gate] - cell.first_input_slot
            self._place(target, self.sources.weight_ih, gate, size, begin, row)
            row = order.index(cell.recurrent_slots[gate])
            self._place(target, self.sources.weight_hh, gate, hidden, recurrent_at, row)
            for start, slots in (
                (self.sources.bias_ih, cell.input_slots),
                (self.sources.bias_hh, cell.recurrent_slots),
            ):
                if start >= 0:
                    target[start + gate * hidden + unit] = biases_at + slots[gate] * hidden + unit

    def _place(
        self, target: np.ndarray, start: int, gate: int, width: int, begin: int, row: int
    ) -> None:
        count = self.hidden * width
        places = begin + row * count + np.arange(count)
        target[start + gate * count : start + (gate + 1) * count] = places
