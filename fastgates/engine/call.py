"""The record that a kernel is called with: sizes and addresses of one pass over one layer.

A kernel takes an int64 array, so every kernel has the same signature and a call from Python costs
little; :func:`record` gives its entries names inside kernels, :data:`FIELD` outside. Addresses are
of C-contiguous arrays made or checked by :mod:`fastgates.engine.passes`, which keeps them alive.

Size letters, in elements: B batch, T time, I input_size, H hidden_size; units are padded to
``Hp = n_blocks * LANES``; S slots a unit; N states. ``row = b * T + t`` numbers the steps of the
batch. A *slot row* is the S * Hp floats of one step, ``[block][slot][lane]``. Rows of the batch are
processed in the order ``order`` (longest sequence first), position i there being row ``order[i]``.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

__all__ = [
    "FIELD",
    "N_FIELDS",
    "address",
    "aligned",
    "aligned_empty",
    "make_call",
    "place_scratch",
    "record",
]

_NAMES = (
    # arrays of steps
    "x",  # (B * T, I)
    "output",  # (B * T, output_stride), this direction's columns
    "output_stride",
    "initial",  # (N, ..., B, H), strided by state_stride from state to state; 0: zeros
    "final",  # the same
    "state_stride",
    "saved",  # (B * T, S * Hp), or 0: what back-propagation needs, then gradients of the slots
    "cells",  # (B * T, (N - 1) * Hp): the states other than the first
    "sources",  # (B * T, Hp): what a second stage multiplied
    # the batch
    "batch",  # B
    "time",  # T
    "order",  # int64 (B): row of the batch at each position
    "lengths",  # int64 (B): steps at each position, descending
    "resets",  # uint8 (B * T), or 0: a reset before that step
    # the layer
    "input_size",  # I
    "hidden_size",  # H
    "n_blocks",  # ceil(H / LANES)
    "n_slots",  # S
    "first_input",  # the first slot that takes a product with the input
    "n_inputs",  # how many do
    "n_stage",  # slots of the first stage
    "n_stage_2",  # and of the second
    "reverse",  # 1: time runs from the end of each sequence to its start
    # packed weights, see fastgates.engine.pack
    "bias",  # (S * Hp)
    "unit_constant",  # (Hp)
    "input_panel",
    "panel",
    "panel_2",
    "input_panel_t",
    "panel_t",
    "panel_t_2",
    # gradients
    "d_output",  # as output, or 0
    "d_output_stride",
    "d_final",  # as final, or 0
    "d_initial",  # as initial
    "d_input",  # as x, or 0
    # scratch of one worker
    "chunk_rows",  # rows of `where` and `workspace`
    "where",  # int64 (chunk_rows): the row b * T + t of each row of the workspace
    "workspace",  # (chunk_rows, S * Hp)
    "state",  # [N + 1][rows][Hp]: the states, and the first one's next value
    "source",  # [rows][Hp]
    "start",  # [N][rows][Hp]: the initial states
    "d_state",  # [N][rows][Hp]
    "d_start",  # [N][rows][Hp]
    "d_slots",  # (rows, S * Hp): the gradients of the slots at this step
    # weight gradients
    "chunk",  # steps a chunk
    "a",  # scratch (chunk, a_stride): inputs, states before the step, sources
    "a_stride",
    "b",  # scratch (chunk, b_stride): gradients of the slots, [slot][owned block][lane]
    "b_stride",
    "d_input_panel",  # [slot][block][k][lane] for the slots that each has
    "d_panel",
    "d_panel_2",
    "d_bias",  # [slot][block][lane]
    "n_units",  # H, or the outputs of an affine map
    "input_slots",  # int64 (gates): the slot of each gate's product with the input
    "recurrent_slots",  # and with the state
    "d_weight_ih",  # results in PyTorch's layout, (gates * n_units, I)
    "d_weight_hh",  # (gates * n_units, H)
    "d_bias_ih",  # (gates * n_units), or 0
    "d_bias_hh",
)

FIELD = {name: place for place, name in enumerate(_NAMES)}
N_FIELDS = len(_NAMES)

_RECORD = from_dtype(np.dtype([(name, np.int64) for name in _NAMES]))


@intrinsic
def record(typingctx, call):  # type: ignore[no-untyped-def]
    """Return the int64 array `call` as a record with named fields (for kernels)."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, context.get_value_type(_RECORD))

    return _RECORD(types.Array(types.int64, 1, "C")), codegen


def make_call(**fields: int) -> np.ndarray:
    """Return the int64 array of a call; fields that are not given are 0."""
    call = np.zeros(N_FIELDS, np.int64)
    for name, value in fields.items():
        call[FIELD[name]] = value
    return call


def _address_by_interface(array: Any) -> int:
    return 0 if array is None else array.__array_interface__["data"][0]


# NumPy's public ways to an address take microseconds, as long as a whole step of a small network.
# An array object starts with Python's header and then this pointer (``PyArrayObject_fields``).
_POINTER_PLACE = object.__basicsize__
_pointer_at = ctypes.c_size_t.from_address


def _address_by_layout(array: Any) -> int:
    return 0 if array is None else _pointer_at(id(array) + _POINTER_PLACE).value


def _layout_is_known() -> bool:
    """Tell whether array objects look as expected, on two arrays."""
    if sys.implementation.name != "cpython":
        return False
    samples = (np.zeros(3), np.zeros((2, 2), np.float32)[1:])
    return all(_address_by_layout(a) == _address_by_interface(a) for a in samples)


#: Return the address of the first element of an array, 0 for None.
address = _address_by_layout if _layout_is_known() else _address_by_interface


_LINE = 64  # bytes of a cache line, and of the widest register


def aligned_empty(shape: int | tuple[int, ...]) -> np.ndarray:
    """Return an uninitialised float32 array that starts at a cache line.

    A vector as wide as a line that does not start at one touches two of them at every load.
    """
    count = math.prod(shape) if isinstance(shape, tuple) else shape
    raw = np.empty(4 * count + _LINE, np.uint8)
    start = -address(raw) % _LINE
    return raw[start : start + 4 * count].view(np.float32).reshape(shape)


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a float32 array's values, contiguous and starting at a cache line."""
    result = aligned_empty(array.shape)
    result[...] = array
    return result


_scratch = threading.local()


def place_scratch(call: np.ndarray, sizes: Sequence[tuple[str, int]]) -> None:
    """Give fields of a call places in the scratch of the calling thread, of so many floats each.

    Each place starts at a cache line. The scratch is kept from call to call and grows to what was
    needed most.
    """
    rounded = [(name, -(-size // 16) * 16) for name, size in sizes]
    needed = 16 + sum(size for _, size in rounded)
    arena = getattr(_scratch, "arena", None)
    if arena is None or arena.size < needed:
        arena = _scratch.arena = np.empty(needed, np.float32)
    place = -(-address(arena) // 64) * 64
    for name, size in rounded:
        call[FIELD[name]] = place
        place += 4 * size
