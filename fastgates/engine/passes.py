"""The passes over one direction of one layer: arrays in, arrays out, split over threads.

Time is cut into *pieces* of steps where that saves memory; states and their gradients are carried
from one to the next. A *segment* is what is kept for back-propagation at a time: all steps, or
those that are computed again, from the state that they begin with.

Everything here takes checked arrays: C-contiguous float32 data, states stacked as
(N, layers * directions, B, H), int64 lengths. :mod:`fastgates.layers` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .._simd import LANES
from .._threads import Tasks, is_small, threads_for
from ..cells import Cell
from .call import (
    FIELD,
    N_ALIKE,
    N_FIELDS,
    Calls,
    Scratch,
    address,
    aligned_empty,
    make_call,
    nothing,
    packer,
    slot_row_of,
)
from .gradients import GradientPlan, WeightGradients
from .multiply import multiply_address
from .pack import LayerPacking, n_blocks_of

__all__ = ["Batch", "Direction", "Given", "Made", "Places", "Prepared", "Saved", "full_batch"]

_WORKSPACE_FLOATS = 32 * 1024  # of projections a worker holds at a time: a part of the L2 cache
_MOST_PLANS = 64  # remembered
_MOST_ROWS = 32  # of the batch in one range, four times as many where it takes so many weights:
_WEIGHTS_FLOATS = 384 * 1024  # that leave the L2 cache at each step
_FEWEST_ROWS = 16  # that a range of several for each thread should have, half as many where
_FEW_WEIGHTS_FLOATS = 16 * 1024  # weights are so few that any number of rows takes them from near
_GATHER_WORK = 4  # multiply-adds that take as long as to gather a number for the weight gradients
_RANGES = 4  # for each of several threads, where there are rows enough
_MOST_PIECES = 8  # of a backward pass, where sources are made again
_SOURCES_FLOATS = 256 * 1024  # of what second stages multiplied, held at a time on the way back


# Addresses of weight_ih, weight_hh, bias_ih, bias_hh in PyTorch's shapes and of the weights of
# units on their own states, or of their gradients; 0 for what there is not.
Places = tuple[int, int, int, int, int]

# What back-propagation is given and what is made for it, see Direction.arrays_of_backward.
Given = tuple[np.ndarray | None, ...]
Made = tuple[int, tuple[np.ndarray, ...], np.ndarray | None, np.ndarray | None, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """The sequences of a call: how many steps each has, and where its state is reset.

    Attributes
    ----------
    size, time : int
        B and T of the padded arrays.
    order : ndarray of int64, shape (B,)
        The rows of the batch, longest sequence first.
    sorted_lengths : ndarray of int64, shape (B,)
        Steps of each sequence, in that order.
    resets : ndarray of uint8, shape (B, T), or None
    steps, longest : int
        The steps of all sequences together, and of the longest one.
    """

    size: int
    time: int
    order: np.ndarray
    sorted_lengths: np.ndarray
    resets: np.ndarray | None
    steps: int
    longest: int
    addresses: tuple[int, int]  # of order and sorted_lengths

    @classmethod
    def of(
        cls, size: int, time: int, lengths: np.ndarray | None, resets: np.ndarray | None
    ) -> Batch:
        """Make the batch of checked `lengths` and `resets`."""
        if lengths is None and resets is None:
            return full_batch(size, time)
        if lengths is None:
            lengths = np.full(size, time, np.int64)
        order = np.argsort(-lengths, kind="stable")
        ordered = lengths[order]
        addresses = (address(order), address(ordered))
        steps, longest = int(ordered.sum()), int(ordered[0]) if size else 0
        return cls(size, time, order, ordered, resets, steps, longest, addresses)

    def chunk(self, first: int, end: int) -> Batch:
        """Return the same sequences with arrays that hold the steps first ... end only."""
        resets = self.resets
        if resets is not None:
            resets = np.ascontiguousarray(resets[:, first:end])
        return replace(self, time=end - first, resets=resets)


@lru_cache(maxsize=64)
def full_batch(size: int, time: int) -> Batch:
    """Return the batch of sequences that all have `time` steps."""
    rows, lengths = np.arange(size, dtype=np.int64), np.full(size, time, np.int64)
    addresses = (address(rows), address(lengths))
    return Batch(size, time, rows, lengths, None, size * time, time, addresses)


@dataclass(slots=True)
class Saved:
    """What the forward pass of one direction of one layer keeps for back-propagation.

    Attributes
    ----------
    call : ndarray
        The call of the forward pass, which the others start from.
    kept : tuple of ndarray
        Of all steps, the activated slots (size B * T * S * Hp), which back-propagation overwrites
        with gradients, and the states other than the first, which is the output (size
        B * T * (N - 1) * Hp). Empty where segments are computed again.
    segment : int
        Steps of a segment: all of them, or less.
    carried : ndarray, shape (N, B, Hp), or None
        The states that were carried in before the first step; None where sequences start.
    checkpoints : ndarray, shape (segments - 1, N, B, Hp), or None
        The states before each further segment.
    prepared : Prepared
        Keeps the packed weights alive.
    """

    call: np.ndarray
    kept: tuple[np.ndarray, ...]
    segment: int
    carried: np.ndarray | None
    checkpoints: np.ndarray | None
    prepared: Prepared


@dataclass(slots=True)
class Prepared:
    """Packed weights of one direction.

    Attributes
    ----------
    arrays : tuple of ndarray
        They hold what the addresses point to.
    addresses : tuple of int
        The fields ``bias`` ... ``panel_t_2`` of a call.
    transposed : bool
        Whether those of back-propagation are among them.
    """

    arrays: tuple[np.ndarray, ...]
    addresses: tuple[int, ...]
    transposed: bool


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
    settings : ndarray of float32, optional
        The numbers that the equations of a cell with functions to choose take.
    has_unit_weights : bool
        Whether units have weights on states of their own.
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
        settings: np.ndarray | None = None,
        has_unit_weights: bool = False,
    ) -> None:
        self.cell = cell
        self.settings = settings
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.reverse = reverse
        self.index = index
        self.column = column
        self.n_blocks = n_blocks_of(hidden_size)
        self._packing = LayerPacking(cell, input_size, hidden_size)
        self._has_unit_weights = has_unit_weights
        self._template: np.ndarray | None = None
        self._slot_row = slot_row_of(len(cell.slots), self.n_blocks * LANES)
        self._n_states = len(cell.states)
        self._two_stages = len(cell.stages) == 2
        self._state_place = 4 * index * hidden_size  # bytes, for each row of the batch
        self._unit_weights = np.array(cell.unit_weights, np.int64)
        self._plans: dict[tuple[object, ...], _Plan] = {}
        self._last_forward: tuple[Any, ...] = (None,)
        self._last_backward: tuple[Any, ...] = (None,)
        # What a tape kept, for the next one; at most one set.
        self._spare: list[tuple[int, tuple[np.ndarray, ...]]] = []
        weights = len(cell.gates) * hidden_size * hidden_size
        self._most_rows = 4 * _MOST_ROWS if weights > _WEIGHTS_FLOATS else _MOST_ROWS
        few = weights <= _FEW_WEIGHTS_FLOATS
        self._fewest_rows = _FEWEST_ROWS // 2 if few else _FEWEST_ROWS
        # Multiply-adds of one step of one sequence.
        self._work = len(cell.gates) * hidden_size * (input_size + hidden_size)

    def __getstate__(self) -> dict[str, object]:
        # What holds addresses is made again.
        fresh: dict[str, object] = {
            "_template": None,
            "_spare": [],
            "_plans": {},
            "_last_forward": (None,),
            "_last_backward": (None,),
        }
        return self.__dict__ | fresh

    def prepare(
        self,
        places: Places,
        unit_constant: np.ndarray | None,
        unit_weights: np.ndarray | None,
        transposed: bool,
    ) -> Prepared:
        """Pack the parameters (PyTorch's shapes), maybe for back-propagation as well."""
        packed, addresses = self._packing.pack(places, address(unit_constant), transposed)
        if not self.cell.unit_weights:
            return Prepared((packed,), addresses, transposed)
        # In a place of their own, as there are several.
        padded = aligned_empty((len(self.cell.unit_weights), self.n_blocks * LANES))
        padded[...] = 0
        if unit_weights is not None:
            padded[:, : self.hidden_size] = unit_weights.reshape(len(padded), -1)
        addresses = (addresses[0], address(padded), *addresses[2:])
        return Prepared((packed, padded), addresses, transposed)

    def packings(
        self,
        prepared: Prepared,
        places: Places,
        unit_constant: np.ndarray | None,
        unit_weights: np.ndarray | None,
    ) -> list[Callable[[], None]]:
        """Return what packs changed parameters anew, for both ways, where `prepared` has them."""
        packed, *padded = prepared.arrays
        packings = [self._packing.again(places, address(unit_constant), packed)]
        if unit_weights is not None:
            rows = len(self.cell.unit_weights)
            target, source = padded[0][:, : self.hidden_size], unit_weights.reshape(rows, -1)
            packings.append(lambda: np.copyto(target, source))
        return packings

    @property
    def forward_floats(self) -> int:
        """How many floats of the packed weights the forward pass needs, the first ones."""
        return self._packing.forward_floats

    def _call(self) -> np.ndarray:
        """Return a call with the fields that depend on the layer alone; not to be changed."""
        if self._template is not None:
            return self._template
        cell = self.cell
        stages = [count for _, count in cell.stages]
        self._template = make_call(
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            n_units=self.hidden_size,
            n_blocks=self.n_blocks,
            n_slots=len(cell.slots),
            slot_row=self._slot_row,
            first_input=cell.first_input_slot,
            n_inputs=len(cell.gates),
            n_stage=stages[0],
            n_stage_2=sum(stages[1:]),
            reverse=int(self.reverse),
            input_slots=self._packing.places[0],
            recurrent_slots=self._packing.places[1],
            multiply=multiply_address(),
            nothing=nothing(self.n_blocks * LANES),
            settings=address(self.settings),
            n_others=self._n_states - 1,
            n_unit_weights=len(cell.unit_weights) if self._has_unit_weights else 0,
            unit_weights=address(self._unit_weights),
        )
        return self._template

    def forward(
        self,
        prepared: Prepared,
        batch: Batch,
        x: np.ndarray,
        initial: np.ndarray | None,
        output: np.ndarray | None,
        final: np.ndarray,
        keep: bool = False,
        segment: int | None = None,
        carried: np.ndarray | None = None,
        kept: tuple[np.ndarray, ...] | None = None,
        carried_on: np.ndarray | None = None,
        first: int = 0,
    ) -> Saved | None:
        """Run the forward pass; fill this direction's part of `output` and `final`.

        Past the ends of sequences the output is 0.

        Parameters
        ----------
        x : ndarray, shape (B, T, I)
        initial, final : ndarray, shape (N, layers * directions, B, H)
            No initial state stands for zeros.
        output : ndarray, shape (B, T, directions * H), or None
            None where it is not wanted.
        keep : bool
            Whether to return what back-propagation needs.
        segment : int, optional
            Keep the states before every so many steps only.
        carried : ndarray, shape (N, B, Hp), optional
            The states before the first step, by position; resets still go back to `initial`.
        kept : tuple of ndarray, optional
            From :meth:`buffers`, for as many rows or more: where to keep that of all steps.
        carried_on : ndarray, shape (N, B, Hp), optional
            Filled with the states after the last step, where nothing is kept. It may be `carried`.
        first : int
            The first step, where nothing is kept: `x`, `output` and the resets of `batch` hold the
            steps from there on, T of them. Forward direction only.
        """
        size = batch.size
        start = self._state_place * size
        order, lengths = batch.addresses
        arrays = (
            address(x),
            0 if output is None else address(output) + 4 * self.column,
            0 if output is None else output.shape[2],
            0 if initial is None else address(initial) + start,
            address(final) + start,
            final.size // self._n_states,
            size,
            batch.time,
            order,
            lengths,
            address(batch.resets),
        )
        place = address(carried)
        weights = prepared.addresses
        if not keep:
            plan = self._forward_plan(batch, batch.time, False)
            end, after = first + batch.time, address(carried_on)
            call = plan.calls.new()
            _pack_head(call, 0, *arrays, 0, 0, first, end, first, first, place, after, *weights)
            plan.run(call)
            return None
        longest = batch.longest
        if segment is None or segment >= longest:
            plan = self._forward_plan(batch, longest, True)
            kept = self.buffers(size * longest) if kept is None else kept
            saved, cells = address(kept[0]), address(kept[1])
            call = plan.calls.new()
            _pack_head(call, 0, *arrays, saved, cells, 0, longest, 0, 0, place, 0, *weights)
            plan.run(call)
            return Saved(call, kept, longest, carried, None, prepared)
        shape = (-(-longest // segment) - 1, *self._carried_shape(batch))
        checkpoints = aligned_empty(shape)
        plan = self._forward_plan(batch, segment, False)
        call = plan.calls.new()
        for number, begin in enumerate(range(0, longest, segment)):
            after = address(checkpoints[number]) if number < shape[0] else 0
            end = min(longest, begin + segment)
            _pack_head(call, 0, *arrays, 0, 0, begin, end, begin, 0, place, after, *weights)
            plan.run(call)
            place = after
        return Saved(call, (), segment, carried, checkpoints, prepared)

    def forward_again(self, batch: Batch, saved: Saved) -> None:
        """Run a forward pass that kept all steps once more, on what its arrays hold by now."""
        plan = self._forward_plan(batch, saved.segment, True)
        call = plan.calls.new()
        call[:_N_SHARED] = saved.call[:_N_SHARED]
        plan.run(call)

    def backward(
        self,
        batch: Batch,
        saved: Saved,
        d_output: np.ndarray | None,
        d_final: np.ndarray | None,
        d_initial: np.ndarray | None,
        d_input: np.ndarray | None,
        d_weights: Places,
        d_states: np.ndarray | None = None,
    ) -> None:
        """Run back-propagation; fill `d_initial`, `d_input` and `d_weights`. Uses `saved` up.

        Parameters
        ----------
        d_output, d_final, d_initial, d_input : ndarray or None
            In the shapes of the forward pass, `d_input` (B, T, I). No `d_output` or `d_final`
            stands for zeros; what else there is none of is not wanted.
        d_weights : tuple of int
            Where the gradients of the parameters go.
        d_states : ndarray, shape (N, layers * directions, B, T, H), optional
            Of zeros; this direction's part is filled with the gradients of the states after each
            step. All results are the same bits, but the kernel is called for each step.
        """
        given = (d_output, d_final, d_initial, d_input, d_states)
        made = self.arrays_of_backward(batch, saved, given, d_weights)
        self.run_backward(batch, saved, given, made)
        self._spare[:] = [(batch.size * saved.segment, made[1])]

    def arrays_of_backward(
        self, batch: Batch, saved: Saved, given: Given, d_weights: Places
    ) -> Made:
        """Return what back-propagation needs besides: for :meth:`run_backward`, once or repeatedly.

        Parameters
        ----------
        given : tuple
            d_output, d_final, d_initial, d_input and d_states of :meth:`backward`.

        Returns
        -------
        piece : int
            The steps of a piece.
        kept : tuple of ndarray
            As in :class:`Saved`; where segments are computed again, room for one.
        d_carried, sources : ndarray or None
        fields : tuple of int
            The fields ``d_carried`` ... ``d_unit_weights`` of a call.
        """
        d_output, d_final, d_initial, d_input, d_states = given
        width = self.n_blocks * LANES
        piece, row = saved.segment, batch.size * width
        if d_states is not None:
            piece = 1
        d_carried = sources = None
        if self._two_stages:
            # What the second stage multiplied is not kept, but made again for so many steps.
            if piece * row > _SOURCES_FLOATS:
                piece = min(piece, max(1, _SOURCES_FLOATS // row, batch.longest // _MOST_PIECES))
            sources = aligned_empty(piece * row)
        if piece < batch.longest:
            d_carried = aligned_empty((2 * self._n_states, batch.size, width))
        kept = saved.kept or self.buffers(batch.size * saved.segment)
        start = self._state_place * batch.size
        fields = (
            address(d_carried),
            address(sources),
            0 if d_output is None else address(d_output) + 4 * self.column,
            0 if d_output is None else d_output.shape[2],
            0 if d_final is None else address(d_final) + start,
            0 if d_initial is None else address(d_initial) + start,
            address(d_input),
            *d_weights,
        )
        return piece, kept, d_carried, sources, fields

    def run_backward(self, batch: Batch, saved: Saved, given: Given, made: Made) -> None:
        """Run back-propagation with what :meth:`arrays_of_backward` made."""
        piece, _, d_carried, _, fields = made
        d_output, d_final, _, d_input, d_states = given
        if d_states is not None:
            self._fill_last_states(d_states[:, self.index], batch, d_output, d_final)
        plan = self._backward_plan(batch, piece, d_input is not None)
        call = plan.calls.new()
        call[:_N_SHARED] = saved.call[:_N_SHARED]
        _pack_gradients(call, _GRADIENTS_AT, *fields)
        if d_carried is not None:
            self._run_pieces(plan, call, batch, saved, made, d_states)
            return
        plan.run(call)
        assert plan.gradients is not None
        plan.gradients.sum(call)

    def _run_pieces(
        self,
        plan: _Plan,
        call: np.ndarray,
        batch: Batch,
        saved: Saved,
        made: Made,
        d_states: np.ndarray | None,
    ) -> None:
        """Go through segments and their pieces, from the last to the first."""
        piece, kept, d_carried, sources, _ = made
        call[_KEPT] = (address(kept[0]), address(kept[1]))
        sources_at, row = address(sources), batch.size * self.n_blocks * LANES
        assert plan.gradients is not None and d_carried is not None
        weights = WeightGradients(plan.gradients, call)
        longest, segment = batch.longest, saved.segment
        for begin in range((longest - 1) // segment * segment, -1, -segment):
            end = min(longest, begin + segment)
            carried = address(saved.carried)
            if saved.checkpoints is not None:
                if begin:
                    carried = address(saved.checkpoints[begin // segment - 1])
                again = self._forward_plan(batch, end - begin, True)
                once_more = again.calls.new()
                once_more[:_N_SHARED] = call[:_N_SHARED]
                _pack_piece(once_more, _PIECE_AT, begin, end, begin, 0, carried, 0)
                once_more[_RETURNED] = 0  # the user's by now, and known
                again.run(once_more)
            for first in range(begin + (end - begin - 1) // piece * piece, begin - 1, -piece):
                last = min(end, first + piece)
                _pack_piece(call, _PIECE_AT, first, last, begin, 0, carried, 0)
                if sources_at:
                    call[_SOURCES] = sources_at - 4 * (first - begin) * row
                plan.calls.place(call)
                plan.run(call)
                weights.add(call)
                if d_states is not None and first > 0:
                    self._add_carried(d_states[:, self.index], batch, d_carried, first - 1)

    def _fill_last_states(
        self,
        d_states: np.ndarray,
        batch: Batch,
        d_output: np.ndarray | None,
        d_final: np.ndarray | None,
    ) -> None:
        """Fill the gradients of the states (N, B, T, H) with what comes from outside."""
        if d_output is not None:
            columns = slice(self.column, self.column + self.hidden_size)
            for row, length in zip(batch.order, batch.sorted_lengths, strict=True):
                d_states[0, row, :length] = d_output[row, :length, columns]
        if d_final is not None:
            rows = batch.order[batch.sorted_lengths == batch.longest]
            last = 0 if self.reverse else batch.longest - 1
            d_states[:, rows, last] += d_final[:, self.index, rows]

    def _add_carried(
        self, d_states: np.ndarray, batch: Batch, d_carried: np.ndarray, step: int
    ) -> None:
        """Add what the steps after `step` give to the gradients of the states after it.

        At the last step of a sequence shorter than others that is its final state's gradient, which
        waits in its row.
        """
        rows, times = self._rows_of_step(batch, step)
        d_states[:, rows, times] += d_carried[: self._n_states, : rows.size, : self.hidden_size]

    def _rows_of_step(self, batch: Batch, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the batch that still run at a step, in the order of positions.

        Also the time of that step in each row.
        """
        lengths = batch.sorted_lengths
        active = int(np.searchsorted(-lengths, -step, side="left"))
        times = lengths[:active] - 1 - step if self.reverse else np.full(active, step)
        return batch.order[:active], times

    def _forward_scratch(self, rows: int, steps: int, keep: bool) -> Scratch:
        width, n_states = self.n_blocks * LANES, self._n_states
        chunk = max(rows, min(rows * steps, _WORKSPACE_FLOATS // self._slot_row))
        sizes = {
            "where": 2 * chunk,
            "kept": 2 * chunk,
            "workspace": 0 if keep else chunk * self._slot_row,
            "state": n_states * rows * width,
            "source": rows * width,
            "start": n_states * rows * width,
            "discarded": width,
        }
        return Scratch(sizes, chunk_rows=chunk)

    def _backward_scratch(self, rows: int, wants_input: bool) -> Scratch:
        width, n_states = self.n_blocks * LANES, self._n_states
        chunk = max(rows, 64)
        n_inputs = n_blocks_of(self.input_size) * LANES if wants_input else 0
        sizes = {
            "where": 2 * chunk,
            "kept": 2 * chunk,
            "start": n_states * rows * width,
            "d_state": n_states * rows * width,
            "d_start": n_states * rows * width,
            "d_hidden": rows * width,
            "d_source": rows * width,
            "d_rows": chunk * n_inputs,
        }
        return Scratch(sizes, chunk_rows=chunk)

    def _forward_plan(self, batch: Batch, steps: int, keep: bool) -> _Plan:
        """Return how a forward pass over so many steps of a batch is run."""
        last = self._last_forward
        if last[0] is not batch or last[1:3] != (steps, keep):
            last = (batch, steps, keep, self._work_of(batch, steps), 0, None)
        threads = threads_for(last[3])
        if threads == last[4]:
            return last[5]
        key = ("forward", batch.size, steps, keep, threads)
        plan = self._plans.get(key)
        if plan is None:
            bounds, rows = self._ranges(batch.size, threads)
            scratch = self._forward_scratch(rows, steps, keep)
            calls = Calls(self._call(), threads, scratch)
            plan = self._remember(key, _Plan(self.cell.forward, bounds, threads, calls, None))
        self._last_forward = (*last[:4], threads, plan)
        return plan

    def _backward_plan(self, batch: Batch, piece: int, wants_input: bool) -> _Plan:
        """Return how back-propagation through pieces of so many steps is run."""
        last = self._last_backward
        if last[0] is not batch or last[1:3] != (piece, wants_input):
            last = (batch, piece, wants_input, self._work_of(batch, batch.longest), 0, None)
        allowed = threads_for(last[3])
        if allowed == last[4]:
            return last[5]
        threads = 1 if is_small(self._work_of(batch, piece)) else allowed
        # Every part of the weight gradients gathers all columns of inputs and states for itself.
        gathered = _GATHER_WORK * (self.input_size + self.hidden_size)
        shared = 1 if is_small(self._work_of(batch, batch.longest, gathered)) else allowed
        key = ("backward", batch.size, wants_input, threads, shared)
        plan = self._plans.get(key)
        if plan is None:
            bounds, rows = self._ranges(batch.size, threads)
            scratch, call = self._backward_scratch(rows, wants_input), self._call()
            gradients = GradientPlan(call, shared)
            calls = Calls(call, max(threads, gradients.threads), scratch, gradients.scratch)
            kernel = self.cell.backward
            plan = self._remember(key, _Plan(kernel, bounds, threads, calls, gradients))
        self._last_backward = (*last[:4], allowed, plan)
        return plan

    def _ranges(self, size: int, threads: int) -> tuple[list[int], int]:
        """Return the bounds of the ranges that a batch is cut into, and the rows of the largest."""
        threads = min(threads, size)
        ranges = -(-size // self._most_rows)
        if threads > 1:
            # Several for each thread, since a worker wakes late, a core may be shared with others,
            # and sequences differ in length.
            ranges = max(ranges, threads, min(_RANGES * threads, size // self._fewest_rows))
            ranges = min(-(-ranges // threads) * threads, size)
        # Whole tiles of rows where there are enough of them.
        unit = 8 if size >= 16 * ranges else 4 if size >= 8 * ranges else 1
        units = -(-size // unit)
        bounds = [min(size, unit * (units * i // ranges)) for i in range(ranges + 1)]
        return bounds, unit * -(-units // ranges)

    def _remember(self, key: tuple[object, ...], plan: _Plan) -> _Plan:
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        self._plans[key] = plan
        return plan

    def _work_of(self, batch: Batch, steps: int, unshared: int = 0) -> int:
        """Return the multiply-adds that threads may share, all but so many of each step's."""
        return min(batch.steps, batch.size * steps) * (self._work - unshared)

    def states_after(
        self, batch: Batch, saved: Saved, output: np.ndarray, steps: int
    ) -> np.ndarray:
        """Return the states (N, B, Hp) after so many steps of what a forward pass kept.

        For sequences of one length, without segments, before :meth:`backward`.
        """
        carried = self.new_carried(batch)
        columns = slice(self.column, self.column + self.hidden_size)
        carried[0, :, : self.hidden_size] = output[:, steps - 1, columns]
        if self._n_states > 1:
            _, size, width = carried.shape
            cells = saved.kept[1].reshape(-1, size, self._n_states - 1, width)
            carried[1:] = cells[steps - 1].transpose(1, 0, 2)
        return carried

    def trajectory(
        self, batch: Batch, saved: Saved, output: np.ndarray
    ) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """Return copies of what a forward pass kept, in the order of time.

        Without segments, before :meth:`backward`.

        Returns
        -------
        slots : dict of ndarray, shape (B, T, H)
            What the cell's equations left in each slot, by its name: activated gates.
        states : tuple of ndarray, shape (B, T, H)
            Each state variable after each step. All are 0 past the end of a sequence.
        """
        width, hidden, size = self.n_blocks * LANES, self.hidden_size, batch.size
        names, others = self.cell.slots, self._n_states - 1
        kept = saved.kept[0].reshape(batch.longest, size, self._slot_row)
        cells = saved.kept[1].reshape(batch.longest, size, others, width)
        shape = (size, batch.time, hidden)
        slots = {name: np.zeros(shape, np.float32) for name in names}
        states = tuple(np.zeros(shape, np.float32) for _ in range(others))
        for step in range(batch.longest):
            rows, times = self._rows_of_step(batch, step)
            for place, name in enumerate(names):
                units = slice(place * width, place * width + hidden)
                slots[name][rows, times] = kept[step, : rows.size, units]
            for place, state in enumerate(states):
                state[rows, times] = cells[step, : rows.size, place, :hidden]
        return slots, (output[..., self.column : self.column + hidden], *states)

    def new_carried(self, batch: Batch) -> np.ndarray:
        """Return an array for states that are carried between pieces, (N, B, Hp), of zeros."""
        carried = aligned_empty(self._carried_shape(batch))
        carried[...] = 0
        return carried

    def _carried_shape(self, batch: Batch) -> tuple[int, int, int]:
        return self._n_states, batch.size, self.n_blocks * LANES

    def buffers(self, rows: int) -> tuple[np.ndarray, ...]:
        """Return uninitialised arrays for so many kept rows, those of the last tape if they fit.

        Fresh memory costs a page fault every 4 KiB, which for small networks is a good part of a
        training step.
        """
        try:
            size, spare = self._spare.pop()
        except IndexError:
            size = -1
        if size == rows:
            return spare
        others = (self._n_states - 1) * self.n_blocks * LANES
        return aligned_empty(rows * self._slot_row), aligned_empty(rows * others)


def _fields(first: str, last: str) -> slice:
    return slice(FIELD[first], FIELD[last] + 1)


_RETURNED = [FIELD["output"], FIELD["output_stride"], FIELD["final"]]
_KEPT = _fields("saved", "cells")
_SOURCES = FIELD["sources"]
_N_SHARED = FIELD["panel_t_2"] + 1  # what a backward pass takes over from the forward pass
_pack_head, _ = packer("x", "panel_t_2")
_pack_piece, _PIECE_AT = packer("first_step", "carried_on")
_pack_gradients, _GRADIENTS_AT = packer("d_carried", "d_unit_weights")


class _Plan:
    """How a pass over a batch of some size is cut into ranges, and the calls for it.

    Parameters
    ----------
    kernel : kernel
    bounds : list of int
        Of the ranges.
    threads : int
    calls : Calls
        Of as many threads, or of those of the weight gradients if they are more.
    gradients : GradientPlan or None
        Of a backward pass: how the weight gradients follow.
    """

    __slots__ = ("calls", "gradients", "run")

    def __init__(
        self,
        kernel: Any,
        bounds: list[int],
        threads: int,
        calls: Calls,
        gradients: GradientPlan | None,
    ) -> None:
        #: Run the kernel over the ranges with these calls, of which the first one is filled.
        self.run = Tasks(kernel, bounds, threads, N_FIELDS, n_alike=N_ALIKE).run
        self.calls = calls
        self.gradients = gradients
