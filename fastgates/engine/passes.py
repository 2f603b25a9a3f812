"""The passes over one direction of one layer: arrays in, arrays out, split over threads.

Everything here takes checked arrays: C-contiguous float32 data, states stacked as
(N, layers * directions, B, H), int64 lengths. :mod:`fastgates.layers` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .._simd import LANES
from .._threads import SMALL_WORK, get_num_threads, run
from ..cells import Cell
from .call import FIELD, address, aligned_empty, make_call, place_scratch
from .gradients import run_weight_gradients
from .pack import n_blocks_of, pack_forward, pack_transposed

__all__ = ["Batch", "Direction", "Saved"]

_WORKSPACE_FLOATS = 32 * 1024  # of projections a worker holds at a time: a part of the L2 cache
_MOST_ROWS = 32  # of the batch in one range


@dataclass(frozen=True)
class Batch:
    """The sequences of a call: how many steps each has, and where its state is reset.

    Attributes
    ----------
    size, time : int
        B and T of the padded arrays.
    rows, order : ndarray of int64, shape (B,)
        The rows of the batch, as they are and longest sequence first.
    lengths, sorted_lengths : ndarray of int64, shape (B,)
        Steps of each sequence, in the batch's own order and in that one.
    resets : ndarray of uint8, shape (B, T), or None
    steps : int
        The steps of all sequences together.
    """

    size: int
    time: int
    rows: np.ndarray
    order: np.ndarray
    lengths: np.ndarray
    sorted_lengths: np.ndarray
    resets: np.ndarray | None
    steps: int
    addresses: tuple[int, int, int, int]  # of rows, order, lengths, sorted_lengths

    @classmethod
    def of(
        cls, size: int, time: int, lengths: np.ndarray | None, resets: np.ndarray | None
    ) -> Batch:
        """Make the batch of checked `lengths` and `resets`."""
        if lengths is None and resets is None:
            return _full_batch(size, time)
        rows = np.arange(size)
        if lengths is None:
            lengths = np.full(size, time, np.int64)
        order = np.argsort(-lengths, kind="stable")
        ordered = lengths[order]
        addresses = (address(rows), address(order), address(lengths), address(ordered))
        steps = int(lengths.sum())
        return cls(size, time, rows, order, lengths, ordered, resets, steps, addresses)


@lru_cache(maxsize=64)
def _full_batch(size: int, time: int) -> Batch:
    """Return the batch of sequences that all have `time` steps."""
    rows, lengths = np.arange(size), np.full(size, time, np.int64)
    places = (address(rows), address(lengths))
    addresses = (places[0], places[0], places[1], places[1])
    return Batch(size, time, rows, rows, lengths, lengths, None, size * time, addresses)


@dataclass
class Saved:
    """What the forward pass of one direction of one layer keeps for back-propagation.

    Attributes
    ----------
    call : ndarray
        The call of the forward pass, which the others start from.
    slots : ndarray, size B * T * S * Hp
        Activated gates; back-propagation overwrites them with gradients.
    cells : ndarray, size B * T * (N - 1) * Hp
        The states other than the first, which is the output.
    sources : ndarray, size B * T * Hp, or empty
        What a second stage multiplied.
    panels : object
        Keeps the packed weights alive.
    """

    call: np.ndarray
    slots: np.ndarray
    cells: np.ndarray
    sources: np.ndarray
    panels: object


@dataclass(frozen=True)
class Prepared:
    """Packed weights of one direction, and a call with all fields that depend on them alone."""

    call: np.ndarray
    panels: object


class Direction:
    """One direction of one layer: its cell and sizes, and where its states and outputs are.

    Parameters
    ----------
    cell : Cell
    input_size, hidden_size : int
    reverse : bool
    index : int
        Of its states: layer * directions + direction.
    column : int
        Of its outputs in a row of the layer's output.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        *,
        reverse: bool,
        index: int,
        column: int,
    ) -> None:
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.reverse = reverse
        self.index = index
        self.column = column
        self.n_blocks = n_blocks_of(hidden_size)
        self._slots = np.array([cell.input_slots, cell.recurrent_slots], np.int64)
        self._spare: list[list[np.ndarray]] = []  # at most one set of buffers
        # Multiply-adds of one step of one sequence.
        self._work = len(cell.gates) * hidden_size * (input_size + hidden_size)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_spare": []}

    def prepare(
        self,
        weight_ih: np.ndarray,
        weight_hh: np.ndarray,
        bias_ih: np.ndarray | None,
        bias_hh: np.ndarray | None,
        unit_constant: np.ndarray | None,
    ) -> Prepared:
        """Pack the parameters (PyTorch's shapes) for the forward pass."""
        cell = self.cell
        panels = pack_forward(cell, weight_ih, weight_hh, bias_ih, bias_hh, unit_constant)
        stages = [count for _, count in cell.stages]
        call = make_call(
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            n_units=self.hidden_size,
            n_blocks=self.n_blocks,
            n_slots=len(cell.slots),
            first_input=cell.first_input_slot,
            n_inputs=len(cell.gates),
            n_stage=stages[0],
            n_stage_2=sum(stages[1:]),
            reverse=int(self.reverse),
            input_slots=address(self._slots),
            recurrent_slots=address(self._slots[1]),
            bias=address(panels.bias),
            unit_constant=address(panels.unit_constant),
            input_panel=address(panels.input_panel),
            panel=address(panels.panel),
            panel_2=address(panels.panel_2),
        )
        return Prepared(call, panels)

    def prepare_backward(self, weight_ih: np.ndarray, weight_hh: np.ndarray) -> Prepared:
        """Pack the parameters (PyTorch's shapes) for back-propagation."""
        panels = pack_transposed(self.cell, weight_ih, weight_hh)
        call = make_call(
            input_panel_t=address(panels.input_panel_t),
            panel_t=address(panels.panel_t),
            panel_t_2=address(panels.panel_t_2),
        )
        return Prepared(call, panels)

    def forward(
        self,
        prepared: Prepared,
        batch: Batch,
        x: np.ndarray,
        initial: np.ndarray | None,
        output: np.ndarray,
        final: np.ndarray,
        keep: bool,
    ) -> Saved | None:
        """Run the forward pass; fill this direction's part of `output` and `final`.

        Parameters
        ----------
        x : ndarray, shape (B, T, I)
        initial, final : ndarray, shape (N, layers * directions, B, H)
            No initial state stands for zeros.
        output : ndarray, shape (B, T, directions * H)
        keep : bool
            Whether to return what back-propagation needs.
        """
        cell = self.cell
        width, n_slots, n_states = (
            self.n_blocks * LANES,
            len(cell.slots),
            len(cell.states),
        )
        call = prepared.call.copy()
        size, stride = self.hidden_size * batch.size, final[0].size
        start = 4 * self.index * size
        call[:_N_ARRAYS] = (
            address(x),
            address(output) + 4 * self.column,
            output.shape[2],
            0 if initial is None else address(initial) + start,
            address(final) + start,
            stride,
        )
        _, order, _, lengths = batch.addresses
        resets = address(batch.resets)
        call[_BATCH] = (batch.size, batch.time, order, lengths, resets)
        saved = None
        if keep:
            steps = batch.size * batch.time
            sizes = (
                steps * n_slots * width,
                steps * (n_states - 1) * width,
                steps * width if len(cell.stages) == 2 else 0,
            )
            slots, cells, sources = self._buffers(sizes)
            saved = Saved(call, slots, cells, sources, prepared.panels)
            call[_KEPT] = (
                address(saved.slots),
                address(saved.cells),
                address(saved.sources),
            )

        def scratch(call: np.ndarray, rows: int) -> None:
            chunk = max(rows, min(rows * batch.time, _WORKSPACE_FLOATS // (n_slots * width)))
            sizes = (
                ("where", 2 * chunk),
                ("workspace", chunk * n_slots * width),
                ("state", (n_states + 1) * rows * width),
                ("source", rows * width),
                ("start", n_states * rows * width),
            )
            call[FIELD["chunk_rows"]] = chunk
            place_scratch(call, sizes)

        _run_ranges(cell.forward, call, batch, scratch, batch.steps * self._work)
        return saved

    def backward(
        self,
        prepared: Prepared,
        batch: Batch,
        saved: Saved,
        d_output: np.ndarray | None,
        d_final: np.ndarray | None,
        d_initial: np.ndarray,
        d_input: np.ndarray | None,
    ) -> None:
        """Run back-propagation; fill `d_initial` and `d_input`, turn `saved.slots` into gradients.

        Shapes are those of the forward pass; `d_input` (B, T, I) must hold zeros past the
        sequences' ends. No `d_output` or `d_final` stands for zeros.
        """
        width, n_states = self.n_blocks * LANES, len(self.cell.states)
        call = saved.call + prepared.call
        start = 4 * self.index * d_initial[0, 0].size
        call[_GRADIENTS] = (
            0 if d_output is None else address(d_output) + 4 * self.column,
            0 if d_output is None else d_output.shape[2],
            0 if d_final is None else address(d_final) + start,
            address(d_initial) + start,
            address(d_input),
        )

        def scratch(call: np.ndarray, rows: int) -> None:
            chunk = max(rows, 64)
            sizes = (
                ("where", 2 * chunk),
                ("start", n_states * rows * width),
                ("d_state", n_states * rows * width),
                ("d_start", n_states * rows * width),
                ("d_slots", rows * len(self.cell.slots) * width),
            )
            call[FIELD["chunk_rows"]] = chunk
            place_scratch(call, sizes)

        _run_ranges(self.cell.backward, call, batch, scratch, batch.steps * self._work)

    def gradients(
        self,
        batch: Batch,
        saved: Saved,
        d_weight_ih: np.ndarray,
        d_weight_hh: np.ndarray,
        d_bias_ih: np.ndarray | None,
        d_bias_hh: np.ndarray | None,
    ) -> None:
        """Fill the gradients of the parameters, in PyTorch's shapes, after :meth:`backward`."""
        call = saved.call.copy()
        rows, _, lengths, _ = batch.addresses
        call[FIELD["order"]] = rows
        call[FIELD["lengths"]] = lengths
        call[_RESULTS] = (
            address(d_weight_ih),
            address(d_weight_hh),
            address(d_bias_ih),
            address(d_bias_hh),
        )
        run_weight_gradients(call, batch.steps)

    def _buffers(self, sizes: tuple[int, ...]) -> list[np.ndarray]:
        """Return uninitialised arrays, those of the last tape again where they fit.

        Fresh memory costs a page fault every 4 KiB, which for small networks is a good part of a
        training step.
        """
        try:
            spare = self._spare.pop()
        except IndexError:
            spare = []
        if [array.size for array in spare] == list(sizes):
            return spare
        return [aligned_empty(size) for size in sizes]

    def release(self, saved: Saved) -> None:
        """Give the buffers of a tape that is used up back for the next one."""
        self._spare[:] = [[saved.slots, saved.cells, saved.sources]]


def _fields(first: str, last: str) -> slice:
    return slice(FIELD[first], FIELD[last] + 1)


_N_ARRAYS = FIELD["state_stride"] + 1
_BATCH = _fields("batch", "resets")
_KEPT = _fields("saved", "sources")
_GRADIENTS = _fields("d_output", "d_input")
_RESULTS = _fields("d_weight_ih", "d_bias_hh")


def _run_ranges(
    kernel: Callable[..., None],
    call: np.ndarray,
    batch: Batch,
    scratch: Callable[[np.ndarray, int], None],
    work: int,
) -> None:
    """Run a kernel over ranges of the batch, each worker with scratch of its own."""
    threads = 1 if work < SMALL_WORK else min(get_num_threads(), batch.size)
    ranges = -(-batch.size // _MOST_ROWS)
    if threads > 1:
        ranges = -(-max(ranges, threads) // threads) * threads
    most_rows = -(-batch.size // ranges)

    def make_worker() -> Callable[[int], None]:
        mine = call.copy()
        scratch(mine, most_rows)

        def task(number: int) -> None:
            begin = batch.size * number // ranges
            kernel(mine, begin, batch.size * (number + 1) // ranges)

        return task

    run(make_worker, ranges, threads)
