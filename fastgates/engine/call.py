"""The record that a kernel is called with: sizes and addresses of one pass over one layer.

A kernel takes an array of one such record, so every kernel has the same signature, a call from
Python costs little, and fields have names on both sides. Addresses are of C-contiguous arrays made
or checked by :mod:`fastgates.engine.passes`, which keeps the arrays alive for the call.

Size letters, in elements: B batch, T time, I input_size, H hidden_size; units are padded to
``Hp = n_blocks * LANES``; S slots a unit; N states. ``row = b * T + t`` numbers the steps of the
batch. A *slot row* is the S * Hp floats of one step, ``[block][slot][lane]``. Rows of the batch are
processed in the order ``order`` (longest sequence first), position i there being row ``order[i]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["CALL", "address", "make_call"]

_FIELDS = (
    # sizes and switches
    "time",  # T
    "input_size",  # I
    "hidden_size",  # H
    "n_blocks",  # ceil(H / LANES)
    "reverse",  # 1: time runs from the end of each sequence to its start
    "chunk_rows",  # rows of `workspace`
    # the batch
    "order",  # int64 (B): row of the batch at each position
    "lengths",  # int64 (B): steps at each position, descending
    "resets",  # uint8 (B * T), or 0: a reset before that step
    # arrays of steps
    "x",  # (B * T, I)
    "output",  # (B * T, output_stride), this direction's columns
    "output_stride",
    "initial",  # (N, ..., B, H), strided by state_stride from state to state
    "final",  # the same
    "state_stride",
    "saved",  # (B * T, S * Hp), or 0: what back-propagation needs
    "cells",  # (B * T, (N - 1) * Hp): the states other than the first
    "sources",  # (B * T, Hp): what a second stage multiplied
    # packed weights, see fastgates.engine.pack
    "bias",  # (S * Hp)
    "unit_constant",  # (Hp)
    "input_panel",  # [block][k of I][input slot][lane]
    "panel",  # [block][k of H][slot of stage 1][lane]
    "panel_2",  # the same for stage 2
    "input_panel_t",  # [block of I][slot row][lane of I]
    "panel_t",  # [block of H][part of slot row][lane]
    "panel_t_2",
    # gradients
    "d_output",  # as output, or 0
    "d_output_stride",
    "d_final",  # as final, or 0
    "d_initial",  # as initial
    "d_input",  # as x, or 0
    # scratch of one worker
    "where",  # int64 (chunk_rows): the row b * T + t of each row of the workspace
    "workspace",  # (chunk_rows, S * Hp)
    "state",  # [N + 1][rows][Hp]: the states, and the first one's next value
    "source",  # [rows][Hp]
    "start",  # [N][rows][Hp]: the initial states
    "d_state",  # [N][rows][Hp]
    "d_start",  # [N][rows][Hp]
)

CALL = np.dtype([(name, np.int64) for name in _FIELDS])


def make_call(**fields: int) -> np.ndarray:
    """Return a record array of one call; fields that are not given are 0."""
    unknown = fields.keys() - set(_FIELDS)
    if unknown:
        raise KeyError(f"no such fields of a call: {sorted(unknown)}")
    get = fields.get
    return np.array([get(name, 0) for name in _FIELDS], dtype=np.int64).view(CALL)


def address(array: Any) -> int:
    """Return the address of the first element of an array, 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]
