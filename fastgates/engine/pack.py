"""Weights as the product wants them, from PyTorch's layout.

A *panel* holds vectors of weights in groups as wide as a tile, in each group row after row of what
the product runs over: ``[group][k][vector][lane]``. Forward, the vectors are ``[slot][block]`` and
k counts inputs or hidden units; units beyond the hidden size have weights of 0. Transposed, k
counts the units of all slots, and the vectors are blocks of inputs or hidden units: they carry
gradients the other way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .._jit import INT0, STAMP, helper, kernel
from .._simd import LANES, float_pointer, int_pointer, load, splat, store
from .._vecmath import ZERO
from ..cells import Cell
from .call import address, aligned_empty
from .forward import load_row
from .multiply import GROUP

__all__ = ["LayerPacking", "n_blocks_of", "pack_affine"]


def n_blocks_of(size: int) -> int:
    """Return how many vectors `size` numbers fill."""
    return -(-size // LANES)


@helper
def _place_of_vector(vector, n_vectors, count):
    """Return where a vector of the panel starts, and how far apart its rows are."""
    first = vector // GROUP * GROUP
    width = min(n_vectors - first, GROUP)
    return first * count * LANES + (vector - first) * LANES, width * LANES


@helper
def _pack(weights, gates, n_slots, hidden, columns, panel):
    """Pack some gates, in the order of their slots, of weights (gates * hidden, columns)."""
    source, target = float_pointer(weights), float_pointer(panel)
    n_blocks = (hidden + LANES - 1) // LANES
    for vector in range(n_slots * n_blocks):
        gate, block = int_pointer(gates)[vector // n_blocks], vector % n_blocks
        place, step = _place_of_vector(vector, n_slots * n_blocks, columns)
        n_units = min(hidden - block * LANES, LANES)
        if n_units < LANES:
            for k in range(columns):
                store(target, place + k * step, splat(ZERO))
        # A few columns at a time, so that what is written stays in the cache.
        for first in range(0, columns, LANES):
            end = min(first + LANES, columns)
            for lane in range(n_units):
                row = (gate * hidden + block * LANES + lane) * columns
                for k in range(first, end):
                    target[place + k * step + lane] = source[row + k]


@helper
def _pack_transposed(weights, gates, n_slots, hidden, columns, panel):
    """Pack the same for products that carry gradients the other way."""
    source, target = float_pointer(weights), float_pointer(panel)
    n_vectors = (columns + LANES - 1) // LANES
    for vector in range(n_vectors):
        place, step = _place_of_vector(vector, n_vectors, n_slots * hidden)
        for slot in range(n_slots):
            first = int_pointer(gates)[slot] * hidden
            for unit in range(hidden):
                row = (first + unit) * columns
                store(target, place, load_row(source, row, vector * LANES, columns))
                place += step


@helper
def _add_bias(bias, slots, n_gates, hidden, total):
    """Add the bias of each gate to the padded biases of its slot."""
    if bias == 0:
        return
    source, target = float_pointer(bias), float_pointer(total)
    width = (hidden + LANES - 1) // LANES * LANES
    for gate in range(n_gates):
        start = int_pointer(slots)[gate] * width
        for k in range(0, width, LANES):
            vector = load_row(source, gate * hidden, k, hidden)
            store(target, start + k, load(target, start + k) + vector)


@helper
def _pack_layer_transposed(layer, weight_ih, weight_hh, target):
    """Pack the weights of a layer for products that carry gradients the other way."""
    numbers = int_pointer(layer)
    n_gates, n_stage, n_stage_2, hidden, columns = (
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[4],
        numbers[5],
    )
    matrix, gates, count, size = weight_ih, layer + 8 * 6, n_gates, columns
    for part in range(3):
        if count > 0:
            _pack_transposed(matrix, gates, count, hidden, size, target)
            target += 4 * count * hidden * ((size + LANES - 1) // LANES * LANES)
        gates += 8 * count
        matrix, size = weight_hh, hidden
        if part == 0:
            count = n_stage
        else:
            count = n_stage_2


@kernel
def _pack_layer(
    layer, weight_ih, weight_hh, bias_ih, bias_hh, constant, target, transposed, stamp=STAMP
):
    """Pack the parameters of a layer, one after the other at the address `target`.

    And the transposed weights at the address `transposed`, unless it is 0. `layer` is the address
    of what :class:`LayerPacking` says of it, the others are of parameters.
    """
    numbers = int_pointer(layer)
    n_gates, n_stage, n_stage_2, n_slots, hidden, columns = (
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[3],
        numbers[4],
        numbers[5],
    )
    width = (hidden + LANES - 1) // LANES * LANES
    inputs = layer + 8 * 6
    stages = inputs + 8 * n_gates
    input_places = stages + 8 * n_gates
    recurrent_places = input_places + 8 * n_gates
    padded = float_pointer(target)
    for k in range(0, n_slots * width, LANES):
        store(padded, k, splat(ZERO))
    _add_bias(bias_ih, input_places, n_gates, hidden, target)
    _add_bias(bias_hh, recurrent_places, n_gates, hidden, target)
    target += 4 * n_slots * width
    for k in range(0, width, LANES):
        vector = splat(ZERO)
        if constant != 0:
            vector = load_row(float_pointer(constant), INT0, k, hidden)
        store(float_pointer(target), INT0, vector)
        target += 4 * LANES
    matrix, gates, count, size = weight_ih, inputs, n_gates, columns
    for part in range(3):
        if count > 0:
            _pack(matrix, gates, count, hidden, size, target)
            target += 4 * count * width * size
        if part == 0:
            matrix, gates, count, size = weight_hh, stages, n_stage, hidden
        else:
            gates += 8 * n_stage
            count = n_stage_2
    if transposed != 0:
        _pack_layer_transposed(layer, weight_ih, weight_hh, transposed)


@kernel
def _pack_matrix(weights, gates, rows, columns, panel, stamp=STAMP):
    """Pack a matrix (rows, columns)."""
    _pack(weights, gates, INT0 + 1, rows, columns, panel)


class LayerPacking:
    """How the parameters of one direction of one layer are packed.

    Parameters
    ----------
    cell : Cell
    input_size, hidden_size : int
    """

    def __init__(self, cell: Cell, input_size: int, hidden_size: int) -> None:
        n_gates, n_slots = len(cell.gates), len(cell.slots)
        stages = [count for _, count in cell.stages] + [0]
        inputs = range(cell.first_input_slot, cell.first_input_slot + n_gates)
        recurrent = [slot for first, count in cell.stages for slot in range(first, first + count)]
        self._layer = np.array(
            [n_gates, stages[0], stages[1], n_slots, hidden_size, input_size]
            + [cell.input_slots.index(slot) for slot in inputs]
            + [cell.recurrent_slots.index(slot) for slot in recurrent]
            + [*cell.input_slots, *cell.recurrent_slots],
            np.int64,
        )
        self._n_gates = n_gates
        width = n_blocks_of(hidden_size) * LANES
        inputs_width = n_blocks_of(input_size) * LANES
        forward = [n_slots * width, width, n_gates * width * input_size]
        forward += [count * width * hidden_size for count in stages[:2]]
        backward = [n_gates * hidden_size * inputs_width]
        backward += [count * hidden_size * width for count in stages[:2]]
        sizes = forward + backward
        starts = [4 * start for start in itertools.accumulate(sizes, initial=0)]
        there = [start if size else None for start, size in zip(starts, sizes, strict=False)]
        # Floats and starts in bytes of all arrays, without the transposed ones and with them.
        self._transposed_at = starts[len(forward)]
        self.forward_floats = self._transposed_at // 4
        self._without = (
            starts[len(forward)] // 4,
            [*there[: len(forward)], *[None] * len(backward)],
        )
        self._all = (starts[-1] // 4, there)

    @property
    def places(self) -> tuple[int, int]:
        """Addresses of the slots of each gate's product with the input, and with the state."""
        first = address(self._layer) + 8 * (6 + 2 * self._n_gates)
        return first, first + 8 * self._n_gates

    def pack(
        self, places: Sequence[int], unit_constant: int, transposed: bool
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Pack parameters (PyTorch's shapes).

        Parameters
        ----------
        places : tuple of int
            Addresses of weight_ih, weight_hh, bias_ih, bias_hh, and maybe more.
        unit_constant : int
            Address of a fixed number for each unit, or 0.
        transposed : bool
            Whether for back-propagation as well.

        Returns
        -------
        packed : ndarray
            What must stay alive.
        addresses : tuple of int
            The addresses in it of the fields ``bias`` ... ``panel_t_2``, 0 for what there is not.
        """
        floats, starts = self._all if transposed else self._without
        packed = aligned_empty(floats)
        at = address(packed)
        transposed_at = at + self._transposed_at if transposed else 0
        _pack_layer.dispatcher(address(self._layer), *places[:4], unit_constant, at, transposed_at)
        return packed, tuple([0 if start is None else at + start for start in starts])

    def again(
        self, places: Sequence[int], unit_constant: int, packed: np.ndarray
    ) -> Callable[[], None]:
        """Return what fills anew the array that :meth:`pack` made for both ways."""
        at = address(packed)
        return partial(
            _pack_layer.dispatcher,
            *(address(self._layer), *places[:4], unit_constant, at, at + self._transposed_at),
        )


_ONE_SLOT = np.zeros(1, np.int64)


def pack_affine(
    weight: np.ndarray,
    bias: np.ndarray | None,
    packed: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pack a weight matrix (outputs, inputs), and its bias padded with zeros.

    `packed` is what an earlier call returned, to be filled anew.
    """
    (rows, columns), weight = weight.shape, np.ascontiguousarray(weight)
    if packed is None:
        width = n_blocks_of(rows) * LANES
        packed = aligned_empty(width * columns), aligned_empty(width)
        packed[1][:] = 0
    panel, packed_bias = packed
    if bias is not None:
        packed_bias[:rows] = bias
    _pack_matrix.dispatcher(address(weight), address(_ONE_SLOT), rows, columns, address(panel))
    return packed
