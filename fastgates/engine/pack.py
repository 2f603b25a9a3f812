"""Weights as the kernels want them, from PyTorch's layout; and gradients back to it.

A *panel* holds, for each group of blocks of units, the rows that a tile streams through:
``[group][k][block][slot][lane]``, so that a tile ends with all slots of its units in registers.
Units beyond the hidden size have weights of 0. Transposed panels, with the slot rows as k and one
vector of outputs a block, carry gradients the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._simd import LANES
from ..cells import Cell
from .call import aligned, aligned_empty
from .tile import units_of_group

__all__ = [
    "ForwardPanels",
    "TransposedPanels",
    "grouped",
    "n_blocks_of",
    "pack_forward",
    "pack_transposed",
]


def n_blocks_of(size: int) -> int:
    """Return how many vectors `size` numbers fill."""
    return -(-size // LANES)


def _slot_order(places: Sequence[int], first: int, count: int) -> list[int]:
    """Return the gates whose places are the slots first ... first + count."""
    return [places.index(slot) for slot in range(first, first + count)]


def _by_slot(weight: np.ndarray, gates: Sequence[int], hidden_size: int) -> np.ndarray:
    """Return weights (G * H, K) as ``[slot][block][lane][k]``, padded with zeros."""
    n_blocks = n_blocks_of(hidden_size)
    columns = weight.shape[1]
    padded = np.zeros((len(gates), n_blocks * LANES, columns), np.float32)
    padded[:, :hidden_size] = weight.reshape(-1, hidden_size, columns)[gates]
    return padded.reshape(len(gates), n_blocks, LANES, columns)


def grouped(panel: np.ndarray) -> np.ndarray:
    """Return a panel ``[block][k][vector][lane]`` with the blocks of each group side by side.

    That is ``[group][k][block of group][vector][lane]``, then the blocks left over, flat.
    """
    n_blocks, rows, vectors, lanes = panel.shape
    units = units_of_group(vectors)
    whole = n_blocks // units * units
    groups = panel[:whole].reshape(-1, units, rows, vectors, lanes).transpose(0, 2, 1, 3, 4)
    result = aligned_empty(panel.size)
    split = groups.size
    result[:split].reshape(groups.shape)[...] = groups
    result[split:].reshape(panel[whole:].shape)[...] = panel[whole:]
    return result


def _panel(weight: np.ndarray, gates: Sequence[int], hidden_size: int) -> np.ndarray:
    return grouped(_by_slot(weight, gates, hidden_size).transpose(1, 3, 0, 2))


def _transposed_panel(weight: np.ndarray, gates: Sequence[int], hidden_size: int) -> np.ndarray:
    columns = weight.shape[1]
    n_outputs = n_blocks_of(columns)
    by_slot = _by_slot(weight, gates, hidden_size)
    padded = np.zeros((*by_slot.shape[:3], n_outputs * LANES), np.float32)
    padded[..., :columns] = by_slot
    padded = padded.reshape(*by_slot.shape[:3], n_outputs, LANES)
    rows = padded.transpose(3, 1, 0, 2, 4).reshape(n_outputs, -1, 1, LANES)
    return grouped(rows)


@dataclass(frozen=True)
class ForwardPanels:
    """What the forward pass of one direction of one layer multiplies with."""

    input_panel: np.ndarray
    panel: np.ndarray
    panel_2: np.ndarray | None
    bias: np.ndarray
    unit_constant: np.ndarray


@dataclass(frozen=True)
class TransposedPanels:
    """What back-propagation of one direction of one layer multiplies with."""

    input_panel_t: np.ndarray
    panel_t: np.ndarray
    panel_t_2: np.ndarray | None


def pack_forward(
    cell: Cell,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias_ih: np.ndarray | None,
    bias_hh: np.ndarray | None,
    unit_constant: np.ndarray | None,
) -> ForwardPanels:
    """Pack the parameters of one direction of one layer for the forward pass."""
    hidden_size = weight_hh.shape[1]
    n_blocks = n_blocks_of(hidden_size)
    n_slots = len(cell.slots)
    inputs = _slot_order(cell.input_slots, cell.first_input_slot, len(cell.gates))
    stages = [_slot_order(cell.recurrent_slots, *stage) for stage in cell.stages]
    bias = np.zeros((n_slots, n_blocks * LANES), np.float32)
    for places, values in (
        (cell.input_slots, bias_ih),
        (cell.recurrent_slots, bias_hh),
    ):
        if values is not None:
            for place, part in zip(places, values.reshape(-1, hidden_size), strict=True):
                bias[place, :hidden_size] += part
    constant = np.zeros(n_blocks * LANES, np.float32)
    if unit_constant is not None:
        constant[:hidden_size] = unit_constant
    return ForwardPanels(
        input_panel=_panel(weight_ih, inputs, hidden_size),
        panel=_panel(weight_hh, stages[0], hidden_size),
        panel_2=_panel(weight_hh, stages[1], hidden_size) if len(stages) == 2 else None,
        bias=aligned(bias.reshape(n_slots, n_blocks, LANES).transpose(1, 0, 2)),
        unit_constant=aligned(constant),
    )


def pack_transposed(cell: Cell, weight_ih: np.ndarray, weight_hh: np.ndarray) -> TransposedPanels:
    """Pack the parameters of one direction of one layer for back-propagation."""
    hidden_size = weight_hh.shape[1]
    inputs = _slot_order(cell.input_slots, cell.first_input_slot, len(cell.gates))
    stages = [_slot_order(cell.recurrent_slots, *stage) for stage in cell.stages]
    return TransposedPanels(
        input_panel_t=_transposed_panel(weight_ih, inputs, hidden_size),
        panel_t=_transposed_panel(weight_hh, stages[0], hidden_size),
        panel_t_2=_transposed_panel(weight_hh, stages[1], hidden_size)
        if len(stages) == 2
        else None,
    )
