"""The record that a kernel is called with: sizes and addresses of one pass over one layer.

A kernel takes an int64 array, so every kernel has the same signature and a call from Python costs
little; :func:`record` gives its entries names inside kernels, :data:`FIELD` outside. Addresses are
of C-contiguous arrays made or checked by :mod:`fastgates.engine.passes`, which keeps them alive.

Size letters, in elements: B batch, T time, I input_size, H hidden_size; units are padded to
``Hp = n_blocks * LANES``; S slots a unit; N states. A *slot row* is the S * Hp floats of one step,
``[slot][block][lane]``. Rows of the batch are processed in the order ``order`` (longest sequence
first), position p there being row ``order[p]``.

Steps are numbered as they are processed, for the reverse direction from the end of each sequence. A
call covers the *piece* ``first_step ... end_step`` of them. The user's arrays number the steps of
the batch as rows ``b * T + t``; what is kept for back-propagation has the *kept rows*
``(step - kept_step) * B + p``, so that the rows of a step lie side by side, and a piece's as well.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, lower_getattr_generic, models, register_model

__all__ = [
    "FIELD",
    "N_ALIKE",
    "N_FIELDS",
    "ONE_AT",
    "Calls",
    "Scratch",
    "address",
    "aligned",
    "aligned_empty",
    "make_call",
    "nothing",
    "packer",
    "record",
    "scratch_start",
    "slot_row_of",
]

_NAMES = (
    # arrays of steps
    "x",  # (B * T, I)
    "output",  # (B * T, output_stride), this direction's columns
    "output_stride",
    "initial",  # (N, ..., B, H), strided by state_stride from state to state; 0: zeros
    "final",  # the same; 0: not wanted
    "state_stride",
    # the batch
    "batch",  # B
    "time",  # T
    "order",  # int64 (B): row of the batch at each position
    "lengths",  # int64 (B): steps at each position, descending
    "resets",  # uint8 (B * T), or 0: a reset before that step
    # what is kept
    "saved",  # (kept rows, S * Hp), or 0: what back-propagation needs, then gradients of the slots
    "cells",  # (kept rows, (N - 1) * Hp): the states other than the first
    # the piece
    "first_step",
    "end_step",
    "kept_step",  # the step of the first kept row: that of this piece or of an earlier one
    "origin",  # the step that the first rows of x, output and resets hold (forward direction only)
    "carried",  # (N, B, Hp) by position: the states before kept_step, or 0 where sequences start
    "carried_on",  # the same after end_step, of the sequences that go on; 0: not wanted
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
    "d_carried",  # (2 * N, B, Hp): d_state and d_start between the pieces of a backward pass, or 0
    "sources",  # (kept rows, Hp): what a second stage multiplied, written by the backward pass
    "d_output",  # as output, or 0
    "d_output_stride",
    "d_final",  # as final, or 0
    "d_initial",  # as initial, or 0: not wanted
    "d_input",  # as x, or 0
    "d_weight_ih",  # results in PyTorch's layout, (gates * n_units, I)
    "d_weight_hh",  # (gates * n_units, H)
    "d_bias_ih",  # (gates * n_units), or 0
    "d_bias_hh",
    "d_unit_weights",  # (n_unit_weights * n_units), or 0
    # the layer
    "input_size",  # I
    "hidden_size",  # H
    "n_blocks",  # ceil(H / LANES)
    "n_slots",  # S
    "slot_row",  # floats from one slot row to the next, at least S * Hp
    "first_input",  # the first slot that takes a product with the input
    "n_inputs",  # how many do
    "n_stage",  # slots of the first stage
    "n_stage_2",  # and of the second
    "reverse",  # 1: time runs from the end of each sequence to its start
    "multiply",  # address of the kernel that makes all products
    "nothing",  # zeros, as many as a state has
    "settings",  # float32: numbers that the equations take, see fastgates.cells.general; or 0
    "n_others",  # N - 1
    "n_unit_weights",  # weights of each unit on a state of its own
    "unit_weights",  # int64 (n_unit_weights, 3): its slot, its state, 1 if that after the step
    # scratch of one worker
    "chunk_rows",  # rows of `where`, `kept` and `workspace`
    "where",  # int64 (chunk_rows): the row b * T + t of each row of the workspace
    "kept",  # int64 (chunk_rows): the number of its slot row
    "workspace",  # (chunk_rows, S * Hp)
    "state",  # [N][rows][Hp]
    "source",  # [rows][Hp]
    "start",  # [N][rows][Hp]: the initial states
    "d_state",  # [N][rows][Hp]
    "d_start",  # [N][rows][Hp]
    "d_hidden",  # [rows][Hp]: the part of d_state[0] that comes through the product
    "d_source",  # [rows][Hp]
    "d_rows",  # (chunk_rows, Ip): the gradient of the input, padded
    "discarded",  # [Hp]: an output that is not wanted
    # weight gradients
    "chunk",  # steps a chunk
    "sums",  # how the piece before left the results
    "a",  # scratch (chunk, a_stride): inputs, states before the step, sources
    "a_stride",
    "b",  # scratch (chunk, b_stride): gradients of the slots, [slot][owned block][lane]
    "b_stride",
    "one",  # address of a 1
    # results of one worker: [group][k][vector of group][lane], the vectors [slot][owned block]
    "d_input_panel",
    "d_panel",
    "d_panel_2",
    "d_bias",  # [slot][owned block][lane]
    "n_units",  # H, or the outputs of an affine map
    "input_slots",  # int64 (gates): the slot of each gate's product with the input
    "recurrent_slots",  # and with the state
)

FIELD = {name: place for place, name in enumerate(_NAMES)}
N_FIELDS = len(_NAMES)


def packer(first: str, last: str) -> tuple[Callable[..., None], int]:
    """Return ``pack`` and ``place``: ``pack(call, place, *values)`` sets the fields first ... last.

    It takes a tenth of what NumPy takes to set them one by one.
    """
    numbers = struct.Struct(f"{FIELD[last] + 1 - FIELD[first]}q")
    return numbers.pack_into, 8 * FIELD[first]


class _Record(types.Type):  # type: ignore[misc]
    """The Numba type of a call inside kernels: a pointer whose entries have names.

    A structured dtype would do, but its type is compared and written out field by field for every
    function that it is passed to, which takes time to compile.
    """

    def __init__(self) -> None:
        super().__init__(name="call")


_RECORD = _Record()


@register_model(_Record)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, ir.IntType(64).as_pointer())


@infer_getattr
class _RecordAttributes(AttributeTemplate):
    key = _Record

    def generic_resolve(self, record: Any, name: str) -> Any:
        return types.int64 if name in FIELD else None


@lower_getattr_generic(_Record)
def _lower_field(context: Any, builder: Any, typ: Any, value: Any, name: str) -> Any:
    place = ir.Constant(ir.IntType(64), FIELD[name])
    return builder.load(builder.gep(value, [place]))


@intrinsic
def record(typingctx, call):  # type: ignore[no-untyped-def]
    """Return the int64 array `call` as a record with named fields (for kernels)."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return _RECORD(types.Array(types.int64, 1, "C")), codegen


def slot_row_of(n_slots: int, width: int) -> int:
    """Return how far slot rows are apart: at multiples of 1 KiB they share sets of the cache."""
    size = n_slots * width
    return size + 16 if size % 256 == 0 else size


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


_FLOAT32 = np.dtype(np.float32)
_SMALL = 256  # floats
_LINE = 64  # bytes of a cache line, and of the widest register


def aligned_empty(shape: int | tuple[int, ...]) -> np.ndarray:
    """Return an uninitialised float32 array that starts at a cache line, unless it is small.

    A vector as wide as a line that does not start at one touches two of them at every load. To find
    such a place takes longer than to fill a small array.
    """
    count = math.prod(shape) if shape.__class__ is tuple else shape
    if count < _SMALL:
        return np.empty(shape, _FLOAT32)
    raw = np.empty(count + _LINE // 4, _FLOAT32)
    start = -address(raw) % _LINE // 4
    array = raw[start : start + count]
    return array.reshape(shape) if shape.__class__ is tuple else array


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a float32 array's values, contiguous and starting at a cache line."""
    result = aligned_empty(array.shape)
    result[...] = array
    return result


_one = aligned(np.ones(1, np.float32))
ONE_AT = address(_one)
_zeros = aligned(np.zeros(1024, np.float32))


def nothing(size: int) -> int:
    """Return the address of at least `size` zeros, which last as long as the process."""
    global _zeros
    if _zeros.size < size:
        _forever.append(_zeros)
        _zeros = aligned(np.zeros(2 * size, np.float32))
    return address(_zeros)


_forever: list[np.ndarray] = []  # earlier ones, to which addresses may still point
_scratch = threading.local()


def scratch_start(floats: int) -> int:
    """Return the address of scratch of the calling thread, at a cache line.

    It is kept from call to call and grows to what was needed most.
    """
    try:
        size, start, _ = _scratch.arena
    except AttributeError:
        size = -1
    if size < floats:
        array = aligned_empty(floats)
        start = address(array)
        _scratch.arena = (floats, start, array)
    return int(start)


class Scratch:
    """Where the scratch of one worker lies: some fields of a call, of so many floats each.

    Each place starts at a cache line.

    Parameters
    ----------
    sizes : dict of str to int
        Fields that lie side by side in the record, in its order.
    numbers : dict of str to int
        Fields between them that hold plain numbers.

    Attributes
    ----------
    floats : int
        How many there are in all.
    """

    def __init__(self, sizes: dict[str, int], **numbers: int) -> None:
        places = [FIELD[name] for name in (*sizes, *numbers)]
        self._fields = slice(min(places), max(places) + 1)
        self._values = np.zeros(max(places) + 1 - min(places), np.int64)
        self._is_place = np.zeros_like(self._values)
        self._placed = (0, self._values)  # the last start, and the values there
        self.floats = 0
        for name, size in sizes.items():
            self._values[FIELD[name] - min(places)] = 4 * self.floats
            self._is_place[FIELD[name] - min(places)] = 1
            self.floats += -(-size // 16) * 16
        for name, number in numbers.items():
            self._values[FIELD[name] - min(places)] = number

    def place(self, call: np.ndarray, start: int) -> None:
        """Give the fields of a call places from `start` on."""
        placed = self._placed
        if placed[0] != start:
            placed = self._placed = (start, self._is_place * start + self._values)
        call[self._fields] = placed[1]


#: How many fields the calls of all threads have in common, the first ones.
N_ALIKE = FIELD["chunk_rows"]


class Calls:
    """The calls of some threads, side by side: alike, but each with scratch of its own.

    Parameters
    ----------
    call : ndarray
        With all that does not change; it is not changed.
    threads : int
    scratches : sequence of Scratch
        Used one after the other, so they may lie in the same place.
    """

    def __init__(self, call: np.ndarray, threads: int, *scratches: Scratch) -> None:
        self._call, self._threads, self._scratches = call, threads, scratches
        self._floats = max(scratch.floats for scratch in scratches)
        self._ready = (-1, call)

    def new(self) -> np.ndarray:
        """Return calls of which the first one is to be filled; a kernel may be given them as one.

        They are good until the calling thread's scratch is used for something else.
        """
        start, ready = scratch_start(self._threads * self._floats), self._ready
        if ready[0] != start:
            calls = np.tile(self._call, self._threads)
            self.place(calls)
            ready = self._ready = (start, calls)
        return ready[1].copy()

    def place(self, calls: np.ndarray) -> None:
        """Give calls their scratch once more, which may have moved since."""
        start = scratch_start(self._threads * self._floats)
        for thread, call in enumerate(calls.reshape(self._threads, -1)):
            for scratch in self._scratches:
                scratch.place(call, start + 4 * thread * self._floats)
