"""The passes over one direction of one layer: arrays in, arrays out, split over threads.

Everything here takes checked arrays: C-contiguous float32 data, states stacked as
(N, layers * directions, B, H), int64 lengths. :mod:`fastgates.layers` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .._simd import LANES
from .._threads import SMALL_WORK, get_num_threads, run
from ..cells import Cell
from .call import address, make_call
from .gradients import weight_gradient_panels
from .pack import ForwardPanels, TransposedPanels, n_blocks_of

__all__ = ["Batch", "Saved", "backward", "forward", "gradients"]

_WORKSPACE_FLOATS = 32 * 1024  # of projections a worker holds at a time: a part of the L2 cache
_MOST_ROWS = 64  # of the batch in one range


@dataclass(frozen=True)
class Batch:
    """The sequences of a call: how many steps each has, and where its state is reset.

    Attributes
    ----------
    size, time : int
        B and T of the padded arrays.
    rows, order : ndarray of int64, shape (B,)
        The rows of the batch, as they are and longest sequence first.
    sorted_lengths, lengths : ndarray of int64, shape (B,)
        Steps of each sequence, in that order and in the batch's own.
    resets : ndarray of uint8, shape (B, T), or None
    """

    size: int
    time: int
    rows: np.ndarray
    order: np.ndarray
    sorted_lengths: np.ndarray
    lengths: np.ndarray
    resets: np.ndarray | None

    @classmethod
    def of(
        cls, size: int, time: int, lengths: np.ndarray | None, resets: np.ndarray | None
    ) -> Batch:
        """Make the batch of checked `lengths` and `resets`."""
        rows = np.arange(size)
        if lengths is None:
            lengths = np.full(size, time, np.int64)
            return cls(size, time, rows, rows, lengths, lengths, resets)
        order = np.argsort(-lengths, kind="stable")
        return cls(size, time, rows, order, lengths[order], lengths, resets)

    @property
    def steps(self) -> int:
        """The steps of all sequences together."""
        return int(self.lengths.sum())


@dataclass
class Saved:
    """What the forward pass of one direction of one layer keeps for back-propagation.

    Attributes
    ----------
    slots : ndarray, shape (B * T, S * Hp)
        Activated gates; back-propagation overwrites them with gradients.
    cells : ndarray, shape (B * T, (N - 1) * Hp)
        The states other than the first, which is the output.
    sources : ndarray, shape (B * T, Hp) or (0, Hp)
        What a second stage multiplied.
    """

    slots: np.ndarray
    cells: np.ndarray
    sources: np.ndarray


@dataclass(frozen=True)
class Direction:
    """One direction of one layer: its cell and sizes, and where its states and outputs are."""

    cell: Cell
    input_size: int
    hidden_size: int
    reverse: bool
    index: int  # of its states: layer * directions + direction
    column: int  # of its outputs in a row of the layer's output
    n_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_blocks", n_blocks_of(self.hidden_size))

    def _fields(self, batch: Batch, x: np.ndarray, output: np.ndarray) -> dict[str, int]:
        return {
            "time": batch.time,
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "n_blocks": self.n_blocks,
            "reverse": int(self.reverse),
            "resets": address(batch.resets),
            "x": address(x),
            "output": address(output) + 4 * self.column,
            "output_stride": output.shape[2],
        }

    def _state_fields(self, **states: np.ndarray) -> dict[str, int]:
        """Return the addresses of this direction's part of stacked states, and their stride."""
        some = next(iter(states.values()))
        fields = {name: address(a) + 4 * self.index * a[0, 0].size for name, a in states.items()}
        return fields | {"state_stride": some[0].size}

    @property
    def work_per_step(self) -> int:
        """Multiply-adds of one step of one sequence."""
        return len(self.cell.gates) * self.hidden_size * (self.input_size + self.hidden_size)


def _run_ranges(
    kernel: Callable[..., None],
    fields: dict[str, int],
    batch: Batch,
    scratch: Callable[[int], dict[str, np.ndarray]],
    work: int,
) -> None:
    """Run a kernel over ranges of the batch, each worker with scratch of its own."""
    threads = 1 if work < SMALL_WORK else min(get_num_threads(), batch.size)
    ranges = -(-batch.size // _MOST_ROWS)
    if threads > 1:
        ranges = -(-max(ranges, threads) // threads) * threads
    bounds = [batch.size * i // ranges for i in range(ranges + 1)]
    most_rows = -(-batch.size // ranges)

    def make_worker() -> Callable[[int], None]:
        arrays = scratch(most_rows)  # kept alive by the closure below
        addresses = {name: address(array) for name, array in arrays.items()}
        call = make_call(**fields, **addresses, chunk_rows=len(arrays["where"]))

        def task(number: int, _keep: object = arrays) -> None:
            kernel(call, bounds[number], bounds[number + 1])

        return task

    run(make_worker, ranges, threads)


def forward(
    direction: Direction,
    panels: ForwardPanels,
    batch: Batch,
    x: np.ndarray,
    initial: np.ndarray,
    output: np.ndarray,
    final: np.ndarray,
    keep: bool,
) -> Saved | None:
    """Run the forward pass; fill this direction's part of `output` and `final`.

    Parameters
    ----------
    x : ndarray, shape (B, T, I)
    initial, final : ndarray, shape (N, layers * directions, B, H)
    output : ndarray, shape (B, T, directions * H)
    keep : bool
        Whether to return what back-propagation needs.
    """
    cell, n_blocks = direction.cell, direction.n_blocks
    width, n_slots, n_states = n_blocks * LANES, len(cell.slots), len(cell.states)
    fields = direction._fields(batch, x, output)
    fields |= direction._state_fields(initial=initial, final=final)
    fields |= {
        "order": address(batch.order),
        "lengths": address(batch.sorted_lengths),
        "input_panel": address(panels.input_panel),
        "panel": address(panels.panel),
        "panel_2": address(panels.panel_2),
        "bias": address(panels.bias),
        "unit_constant": address(panels.unit_constant),
    }
    saved = None
    if keep:
        steps = batch.size * batch.time
        saved = Saved(
            np.empty((steps, n_slots * width), np.float32),
            np.empty((steps, (n_states - 1) * width), np.float32),
            np.empty((steps if len(cell.stages) == 2 else 0, width), np.float32),
        )
        fields |= {
            "saved": address(saved.slots),
            "cells": address(saved.cells),
            "sources": address(saved.sources),
        }

    def scratch(rows: int) -> dict[str, np.ndarray]:
        chunk = max(rows, min(rows * batch.time, _WORKSPACE_FLOATS // (n_slots * width)))
        return {
            "where": np.empty(chunk, np.int64),
            "workspace": np.empty((chunk, n_slots * width), np.float32),
            "state": np.empty((n_states + 1, rows, width), np.float32),
            "source": np.empty((rows, width), np.float32),
            "start": np.empty((n_states, rows, width), np.float32),
        }

    _run_ranges(cell.forward, fields, batch, scratch, batch.steps * direction.work_per_step)
    return saved


def backward(
    direction: Direction,
    panels: TransposedPanels,
    unit_constant: np.ndarray,
    batch: Batch,
    saved: Saved,
    output: np.ndarray,
    initial: np.ndarray,
    d_output: np.ndarray | None,
    d_final: np.ndarray,
    d_initial: np.ndarray,
    d_input: np.ndarray | None,
) -> None:
    """Run back-propagation; fill `d_initial` and `d_input`, and turn `saved.slots` into gradients.

    Shapes are those of the forward pass; `d_input` (B, T, I) must hold zeros past the sequences'
    ends.
    """
    cell, n_blocks = direction.cell, direction.n_blocks
    width, n_states = n_blocks * LANES, len(cell.states)
    fields = direction._fields(batch, output, output)
    fields |= direction._state_fields(initial=initial, d_final=d_final, d_initial=d_initial)
    fields |= {
        "order": address(batch.order),
        "lengths": address(batch.sorted_lengths),
        "saved": address(saved.slots),
        "cells": address(saved.cells),
        "unit_constant": address(unit_constant),
        "input_panel_t": address(panels.input_panel_t),
        "panel_t": address(panels.panel_t),
        "panel_t_2": address(panels.panel_t_2),
        "d_input": address(d_input),
    }
    if d_output is not None:
        fields |= {
            "d_output": address(d_output) + 4 * direction.column,
            "d_output_stride": d_output.shape[2],
        }

    def scratch(rows: int) -> dict[str, np.ndarray]:
        return {
            "where": np.empty(max(rows, 64), np.int64),
            "state": np.empty((n_states, rows, width), np.float32),
            "start": np.empty((n_states, rows, width), np.float32),
            "d_state": np.empty((n_states, rows, width), np.float32),
            "d_start": np.empty((n_states, rows, width), np.float32),
        }

    _run_ranges(cell.backward, fields, batch, scratch, batch.steps * direction.work_per_step)


def gradients(
    direction: Direction,
    batch: Batch,
    saved: Saved,
    x: np.ndarray,
    output: np.ndarray,
    initial: np.ndarray,
    d_weight_ih: np.ndarray,
    d_weight_hh: np.ndarray,
    d_bias_ih: np.ndarray | None,
    d_bias_hh: np.ndarray | None,
) -> None:
    """Fill the gradients of the parameters, in PyTorch's shapes, after :func:`backward`."""
    cell, n_blocks = direction.cell, direction.n_blocks
    n_slots, hidden_size = len(cell.slots), direction.hidden_size
    (_, n_stage), n_stage_2 = cell.stages[0], sum(count for _, count in cell.stages[1:])
    fields = direction._fields(batch, x, output)
    fields |= direction._state_fields(initial=initial)
    del fields["state_stride"]
    fields |= {
        "batch": batch.size,
        "n_slots": n_slots,
        "order": address(batch.rows),
        "lengths": address(batch.lengths),
        "saved": address(saved.slots),
        "sources": address(saved.sources),
        "first_input": cell.first_input_slot,
        "n_inputs": len(cell.gates),
        "n_stage": n_stage,
        "n_stage_2": n_stage_2,
    }
    panels = weight_gradient_panels(fields, batch.steps * direction.work_per_step)
    d_inputs, d_stage, d_stage_2, d_bias = panels
    for weight, bias, places, part in (
        (d_weight_ih, d_bias_ih, cell.input_slots, {cell.first_input_slot: d_inputs}),
        (d_weight_hh, d_bias_hh, cell.recurrent_slots, {0: d_stage, n_stage: d_stage_2}),
    ):
        by_gate = weight.reshape(len(places), hidden_size, -1)
        for gate, slot in enumerate(places):
            first = max(start for start in part if start <= slot)
            by_gate[gate] = part[first][slot - first, :hidden_size]
            if bias is not None:
                bias.reshape(len(places), hidden_size)[gate] = d_bias[slot, :hidden_size]
