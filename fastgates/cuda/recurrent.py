"""A recurrent layer's passes on a GPU: what runs in which order, on which arrays.

The parameters stay in the layer's flat vector on the host, where optimisers, files and
``state_dict`` find them. The first pass after a change uploads the vector, and one small kernel
lays it out for the passes; the gradients of the parameters come back the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._parameters import Gradients
from ._arrays import Caller, Memory, stream_number
from ._device import SIMULATED, cuda, launch
from ._elementwise import clear, gather, mask_past_end, take_states, take_top, weigh
from ._equations import equations_of
from ._kernels import (
    CONTINUES,
    GRADIENT,
    INITIAL,
    RESETS,
    REVERSE,
    STARTS,
    backward_kernel,
    forward_kernel,
)
from ._packing import Packing, Sources
from ._plans import Plan, plan_pass
from ._products import Rows, Weights, products

__all__ = ["CudaTape", "LayerPasses"]

_WORKSPACE_FLOATS = 64 * 1024 * 1024  # of pre-activations held at a time without a tape
_FEWEST_STEPS = 16  # of a piece of time


@dataclass
class CudaTape:
    """What ``forward`` keeps on the device for ``backward``; good for one use."""

    owner: Any
    version: int
    data: _Batch
    initial: Any  # (N, L, B, H) on the device, or None
    inputs: list[Any]  # of each stacked layer
    outputs: list[Any]
    masks: list[Any]  # of dropout, applied to each layer's input
    saved: list[list[_Piece]]  # of each direction, in the order of processing
    caller: Caller
    carried: bool = False  # whether states were carried in: sequences do not start at time 0
    used: bool = False
    nbytes: int = field(default=0)

    def __reduce__(self) -> Any:
        raise TypeError("a tape cannot be copied or pickled: call forward again for another one")


@dataclass(frozen=True)
class _Batch:
    """The sequences of a call, with their lengths and resets on the device."""

    size: int
    time: int
    lengths: Any
    resets: Any
    flags: int
    padded: bool


@dataclass
class _Piece:
    """Steps of one direction that are kept, or computed again from the states before them."""

    begin: int
    steps: int
    carried: Any  # (N, L, B, H), of which this direction's states are meant; None: none
    slots: Any = None  # (B, steps, S * H), None where the steps are computed again
    cells: Any = None


@dataclass
class _Weights:
    """One direction's weights on the device."""

    recurrent: Any
    inputs: Weights


class LayerPasses:
    """The passes of one layer on the current device.

    Parameters
    ----------
    layer : Recurrent
    """

    one_block = SIMULATED  # whether a block must do without others
    processors = 1  # of the device

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.memory = Memory()
        self.products = products(self.memory)
        if not SIMULATED:
            self.processors = cuda.get_current_device().MULTIPROCESSOR_COUNT
        self._plans: dict[Any, Plan] = {}
        self._maps: dict[Any, Any] = {}
        self._packed: dict[Any, tuple[int, list[_Weights]]] = {}
        self._source: tuple[int, Any] | None = None
        self._stream: Any = None  # on which the weights were laid out
        size, hidden = layer._vector.size, layer.hidden_size
        constant = layer._unit_constant
        # What the device gets beside the parameters: numbers of the units, settings of functions.
        more = [np.zeros(0, np.float32)] if constant is None else [constant]
        settings = [d.settings for d in layer._directions if d.settings is not None]
        self._host = np.concatenate([layer._vector, *more, *settings])
        numbers = equations_of(layer.cell).numbers
        self._unit_weights = len(layer.cell.unit_weights) if layer.peepholes else 0
        starts, at = {}, 0
        for name, value in layer.parameters.items():
            starts[name] = at
            at += value.size
        self._packings = []
        settings_at = size + more[0].size
        for direction in layer._directions:
            suffix = layer._suffix(direction)
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
            sources = Sources(*(starts.get(f"{kind}_{suffix}", -1) for kind in kinds))
            given = np.full((1 if numbers is None else numbers) * hidden, -1)
            if self._unit_weights:
                given[:] = sources.unit_weights + np.arange(given.size)
            elif constant is not None:
                given[:hidden] = size + np.arange(hidden)
            if direction.settings is not None:
                given = np.append(given, settings_at + np.arange(direction.settings.size))
                settings_at += direction.settings.size
            sizes = layer.cell, direction.input_size, hidden
            self._packings.append(Packing(*sizes, sources, given, self._unit_weights))

    # -- Plans and weights ------------------------------------------------------------------------

    def _plan(self, transposed: bool, batch: int) -> Plan:
        layer = self.layer
        key = transposed, batch
        plan = self._plans.get(key)
        if plan is None:
            counts = tuple(count for _, count in layer.cell.stages)
            plan = self._plans[key] = plan_pass(
                layer.hidden_size,
                counts,
                len(layer.cell.states),
                transposed=transposed,
                batch=batch,
                processors=self.processors,
                one_block=self.one_block,
                unit_weights=self._unit_weights,
            )
        return plan

    def _launches(
        self, plan: Plan, batch: int, stream: Any
    ) -> Iterator[tuple[int, int, int, int, Any]]:
        """Yield for each launch its first row and its end, blocks, tiles of a block, counters."""
        if not plan.together:
            with self.memory.scratch((1,), stream, np.int32) as counters:
                yield 0, batch, -(-batch // plan.rows), 1, counters
            return
        groups = max(1, self.processors // plan.slices)
        most = groups * plan.rows * plan.most_tiles
        with self.memory.scratch((groups * plan.slices,), stream, np.int32) as counters:
            for first in range(0, batch, most):
                rows = min(most, batch - first)
                tiles = -(-rows // (min(groups, -(-rows // plan.rows)) * plan.rows))
                blocks = -(-rows // (tiles * plan.rows)) * plan.slices
                clear(counters, stream)
                yield first, first + rows, blocks, tiles, counters

    def _weights(self, transposed: bool, plan: Plan, stream: Any) -> list[_Weights]:
        """Return the weights of each direction in the layout of a plan, of this moment."""
        version = self.layer._version
        if self._stream is not None and stream_number(stream) != stream_number(self._stream):
            self._stream.synchronize()
        key = transposed, plan
        packed = self._packed.get(key)
        if packed is not None and packed[0] == version:
            return packed[1]
        self._stream = stream
        if self._source is None or self._source[0] != version:
            size = self.layer._vector.size
            # A copy of its own, since the upload may still run when the parameters change again.
            self._host = self._host.copy()
            self._host[:size] = self.layer._vector
            self._source = version, cuda.to_device(self._host, stream=stream)
        if packed is None:
            maps: list[tuple[np.ndarray, np.ndarray]] = []
            for packing in self._packings:
                maps.append(packing.recurrent(plan, transposed))
                of_inputs = packing.inputs()
                maps.append((of_inputs, np.full(of_inputs.size, -1)))
            places = np.stack([np.concatenate([m[n] for m in maps]) for n in range(2)])
            places_there = cuda.to_device(places.astype(np.int32), stream=stream)
            whole = cuda.device_array(places.shape[1], np.float32, stream=stream)
            self._maps[key] = places_there, whole
            weights, at = [], 0
            for number, direction in enumerate(self.layer._directions):
                end = at + maps[2 * number][0].size
                # (G * H, I), as it is on the way forward, transposed on the way back.
                strides = (1, direction.input_size) if transposed else (direction.input_size, 1)
                weights.append(_Weights(whole[at:end], Weights(whole, end, *strides)))
                at = end + maps[2 * number + 1][0].size
        else:
            weights = packed[1]
        places_there, whole = self._maps[key]
        gather(self._source[1], places_there, whole, stream)
        self._packed[key] = version, weights
        return weights

    # -- Checks -----------------------------------------------------------------------------------

    def _batch(self, caller: Caller, size: int, time: int, lengths: Any, resets: Any) -> _Batch:
        """Bring lengths and resets to the device, checked as for the CPU."""
        checked, marks = self.layer._checked_lengths_and_resets(size, time, lengths, resets)
        flags = 0
        if checked is None:
            checked = np.full(size, time, np.int64)
        if marks is not None:
            flags |= RESETS
        else:
            marks = np.zeros((1, 1), np.uint8)
        return _Batch(
            size,
            time,
            caller.upload(checked.astype(np.int32)),
            caller.upload(marks),
            flags,
            lengths is not None,
        )

    def _states_in(self, caller: Caller, name: str, state: Any, size: int) -> Any:
        """Return a state of the user's as one device array (N, L, B, H), or None."""
        layer = self.layer
        if state is None:
            return None
        names = layer.cell.states
        parts: Sequence[Any] = (state,)
        if len(names) > 1:
            if not isinstance(state, list | tuple) or len(state) != len(names):
                raise ValueError(
                    f"{name} must be a tuple ({', '.join(names)}) of arrays, "
                    f"got {type(state).__name__}"
                )
            parts = state
        shape = (
            ("num_layers * num_directions", len(layer._directions)),
            ("batch_size", size),
            ("hidden_size", layer.hidden_size),
        )
        taken = [
            caller.take(name if len(names) == 1 else f"{name}[{n}]", part, shape)
            for n, part in enumerate(parts)
        ]
        whole = caller.empty((len(names), *taken[0].shape))
        for n, part in enumerate(taken):
            whole[n].copy_to_device(part, stream=caller.stream)
        return whole

    def states_out(self, caller: Caller, states: Any) -> Any:
        """Return a device array (N, L, B, H) in the structure of a state."""
        if not caller.on_device:
            whole = caller.give(states)
            return whole[0] if len(whole) == 1 else tuple(whole)
        parts = tuple(caller.give(states[n]) for n in range(states.shape[0]))
        return parts[0] if len(parts) == 1 else parts

    # -- Passes of one direction over one piece of time --------------------------------------------

    def _project(
        self, weights: _Weights, number: int, x: Any, x_begin: int, piece: _Piece, stream: Any
    ) -> None:
        """Write the inputs' share of the pre-activations to the piece's slots."""
        cell, hidden = self.layer.cell, self.layer.hidden_size
        source = Rows(x, x_begin, piece.steps, 0, self.layer._directions[number].input_size)
        column, width = cell.first_input_slot * hidden, len(cell.gates) * hidden
        target = Rows(piece.slots, 0, piece.steps, column, width)
        if width < piece.slots.shape[2]:
            clear(piece.slots, stream)  # slots that take nothing from the input
        self.products.map_rows(source, weights.inputs, target, stream)

    def _forward_piece(
        self,
        number: int,
        batch: _Batch,
        piece: _Piece,
        x: Any,
        x_begin: int,
        output: Any,
        output_begin: int,
        initial: Any,
        final: Any,
        flags: int,
        keep: bool,
        stream: Any,
    ) -> None:
        """Run one direction over a piece; `final` carries the states in and out."""
        layer = self.layer
        plan = self._plan(False, batch.size)
        weights = self._weights(False, plan, stream)[number]
        direction = layer._directions[number]
        self._project(weights, number, x, x_begin, piece, stream)
        kernel = forward_kernel(layer.cell, layer.hidden_size, plan, keep)
        flags |= batch.flags | (INITIAL if initial is not None else 0)
        flags |= REVERSE if direction.reverse else 0
        with self.memory.scratch((batch.size, 1, layer.hidden_size), stream) as sources:
            for first, end, blocks, tiles, counters in self._launches(plan, batch.size, stream):
                launch(
                    kernel,
                    blocks,
                    plan.threads,
                    stream,
                    piece.slots,
                    piece.slots if piece.cells is None else piece.cells,
                    output,
                    sources,
                    weights.recurrent,
                    final if initial is None else initial,
                    final,
                    batch.lengths,
                    batch.resets,
                    number,
                    direction.column,
                    piece.begin,
                    piece.steps,
                    output_begin,
                    first,
                    end,
                    tiles,
                    flags,
                    counters,
                )

    def _backward_piece(
        self,
        number: int,
        tape: CudaTape,
        piece: _Piece,
        x: Any,
        output: Any,
        d_output: Any,
        d_states: Any,
        d_initial: Any,
        d_x: Any,
        gradients: Any,
        at: int,
        add: tuple[bool, bool],
    ) -> None:
        """Run back-propagation of one direction over a piece, with all gradients.

        Parameters
        ----------
        d_x : device array or None
            Gradient of the input.
        gradients, at : device array, int
            The gradients by slot, and where this direction's begin.
        add : (bool, bool)
            Whether what `d_x` and `gradients` hold is added to.
        """
        layer, batch, stream = self.layer, tape.data, tape.caller.stream
        cell, hidden, size = layer.cell, layer.hidden_size, tape.data.size
        plan = self._plan(True, size)
        weights = self._weights(True, plan, stream)[number]
        direction = layer._directions[number]
        kernel = backward_kernel(cell, hidden, plan, self._unit_weights)
        flags = batch.flags | (INITIAL if tape.initial is not None else 0)
        flags |= REVERSE if direction.reverse else 0
        flags |= 0 if tape.carried else STARTS
        flags |= GRADIENT if d_output is not None else 0
        own = piece.carried is not None and piece.carried.shape[1] == 1
        shape = (size, piece.steps, hidden)
        two = len(cell.stages) == 2
        hiddens = self.memory.take(shape, stream)
        sources = self.memory.take(shape, stream) if two else hiddens
        units = max(1, self._unit_weights) * hidden
        d_units = self.memory.take((size, 1, units), stream)
        for first, end, blocks, tiles, counters in self._launches(plan, size, stream):
            launch(
                kernel,
                blocks,
                plan.threads,
                stream,
                piece.slots,
                piece.slots if piece.cells is None else piece.cells,
                output,
                hiddens,
                sources,
                weights.recurrent,
                d_states if tape.initial is None else tape.initial,
                d_states if piece.carried is None else piece.carried,
                output if d_output is None else d_output,
                d_states,
                d_initial,
                d_units,
                batch.lengths,
                batch.resets,
                number,
                direction.column,
                piece.begin,
                piece.steps,
                0 if own else number,
                first,
                end,
                tiles,
                flags,
                counters,
            )
        # What multiplied what, for the gradients of the weights.
        d_x_add, more = add
        whole = Rows(piece.slots, 0, piece.steps, 0, len(cell.slots) * hidden)
        inputs = whole._replace(
            column=cell.first_input_slot * hidden, width=len(cell.gates) * hidden
        )
        source = Rows(x, piece.begin, piece.steps, 0, direction.input_size)
        self.products.sum_rows(inputs, source, gradients, at, stream, more)
        at += inputs.width * direction.input_size
        for (first_slot, count), taken in zip(cell.stages, (hiddens, sources), strict=False):
            left = whole._replace(column=first_slot * hidden, width=count * hidden)
            right = Rows(taken, 0, piece.steps, 0, hidden)
            self.products.sum_rows(left, right, gradients, at, stream, more)
            at += left.width * hidden
        if layer.bias:
            self.products.sum_rows(whole, None, gradients, at, stream, more)
        at += whole.width
        if self._unit_weights:
            self.products.sum_rows(Rows(d_units, 0, 1, 0, units), None, gradients, at, stream, more)
        if d_x is not None:
            target = Rows(d_x, piece.begin, piece.steps, 0, direction.input_size)
            self.products.map_rows(inputs, weights.inputs, target, stream, d_x_add)
        self.memory.give_back(hiddens, stream)
        self.memory.give_back(d_units, stream)
        if two:
            self.memory.give_back(sources, stream)

    # -- Forward ----------------------------------------------------------------------------------

    def call(
        self, x: Any, initial_state: Any, lengths: Any, resets: Any, return_sequences: bool
    ) -> tuple[Any, Any]:
        """Run the layer, keeping nothing; see ``Recurrent.__call__``."""
        caller = Caller(x)
        x = self._take_x(caller, x)
        output, final = self.infer(caller, x, initial_state, lengths, resets, return_sequences)
        return caller.give(output), self.states_out(caller, final)

    def _take_x(self, caller: Caller, x: Any) -> Any:
        x = caller.take("x", x, ("batch_size", "time", ("input_size", self.layer.input_size)))
        if 0 in x.shape:
            raise ValueError(f"x must not be empty on device='cuda', got shape {tuple(x.shape)}")
        return x

    def infer(
        self,
        caller: Caller,
        x: Any,
        initial_state: Any,
        lengths: Any,
        resets: Any,
        return_sequences: bool,
    ) -> tuple[Any, Any]:
        """Run the layer over a device array; return the output and final states there."""
        layer, stream = self.layer, caller.stream
        size, time = x.shape[:2]
        batch = self._batch(caller, size, time, lengths, resets)
        initial = self._states_in(caller, "initial_state", initial_state, size)
        final = caller.empty(
            (len(layer.cell.states), len(layer._directions), size, layer.hidden_size)
        )
        n_slots, hidden = len(layer.cell.slots), layer.hidden_size
        most = max(_FEWEST_STEPS, _WORKSPACE_FLOATS // max(1, size * n_slots * hidden))
        pieces = _pieces(time, most)
        top = layer.num_layers - 1
        output: Any = None

        def run(number: int, piece: tuple[int, int], x: Any, x_at: int, out: Any, at: int) -> None:
            begin, steps = piece
            first = begin == 0 if not layer._directions[number].reverse else begin + steps == time
            with self.memory.scratch((size, steps, n_slots * hidden), stream) as slots:
                self._forward_piece(
                    number,
                    batch,
                    _Piece(begin, steps, None, slots),
                    x,
                    x_at,
                    out,
                    at,
                    initial,
                    final,
                    STARTS | (0 if first else CONTINUES),
                    False,
                    stream,
                )

        if layer.bidirectional:
            for level in range(layer.num_layers):
                whole = return_sequences or level < top
                output = None
                if whole:
                    output = caller.empty((size, time, layer.output_size))
                for direction in layer._layers[level]:
                    ordered = pieces[::-1] if direction.reverse else pieces
                    for piece in ordered:
                        if whole:
                            run(direction.index, piece, x, piece[0], output, 0)
                        else:
                            shape = (size, piece[1], layer.output_size)
                            with self.memory.scratch(shape, stream) as some:
                                run(direction.index, piece, x, piece[0], some, piece[0])
                x = output
        else:
            # All layers run over a piece of time, then over the next: nothing grows with time.
            if return_sequences:
                output = caller.empty((size, time, hidden))
            for piece in pieces[::-1] if layer.reverse else pieces:
                current, at = x, piece[0]
                for level in range(layer.num_layers):
                    if level == top and return_sequences:
                        run(level, piece, current, at, output, 0)
                    else:
                        some = self.memory.take((size, piece[1], hidden), stream)
                        run(level, piece, current, at, some, piece[0])
                    if level > 0:
                        self.memory.give_back(current, stream)
                    if level < top or not return_sequences:
                        current, at = some, 0
                if not return_sequences:
                    self.memory.give_back(current, stream)
        if not return_sequences:
            output = self.last_outputs(caller, final)
        return output, final

    def last_outputs(self, caller: Caller, final: Any) -> Any:
        """Return the last outputs (B, D * H) of the top layer, from the final states."""
        result = caller.empty((final.shape[2], self.layer.output_size))
        first = final.shape[1] - self.layer.num_directions
        take_top(final, result, first, caller.stream)
        return result

    def forward(
        self,
        x: Any,
        initial_state: Any,
        lengths: Any,
        resets: Any,
        training: bool,
        segment: int | None,
        carried: Any = None,
    ) -> tuple[Any, Any, CudaTape]:
        """Run the layer, keeping a tape; see ``Recurrent.forward``."""
        caller = Caller(x)
        x = self._take_x(caller, x)
        output, final, tape = self.record(
            caller, x, initial_state, lengths, resets, training, segment, carried
        )
        result = caller.give(output)
        if not caller.on_device:
            result.flags.writeable = False
        return result, self.states_out(caller, final), tape

    def record(
        self,
        caller: Caller,
        x: Any,
        initial_state: Any,
        lengths: Any,
        resets: Any,
        training: bool,
        segment: int | None,
        carried: Any = None,
    ) -> tuple[Any, Any, CudaTape]:
        """Run the layer over a device array; return output and final states there, and a tape."""
        layer, stream = self.layer, caller.stream
        size, time = x.shape[:2]
        batch = self._batch(caller, size, time, lengths, resets)
        initial = self._states_in(caller, "initial_state", initial_state, size)
        n_states, hidden = len(layer.cell.states), layer.hidden_size
        final = caller.empty((n_states, len(layer._directions), size, hidden))
        if batch.padded:
            # What lies past an end, also what is no number, must not reach the weights' gradients.
            masked = caller.empty(x.shape)
            mask_past_end(x, batch.lengths, masked, stream)
            x = masked
        tape = CudaTape(
            layer, layer._version, batch, initial, [], [], [], [], caller, carried is not None
        )
        if carried is not None:
            final.copy_to_device(carried, stream=stream)
        pieces = _pieces(time, segment or time)
        for level in range(layer.num_layers):
            mask = None
            if level > 0 and training and layer.dropout > 0:
                mask = caller.upload(layer._dropout_mask(x.shape))
                weighed = caller.empty(x.shape)
                weigh(x, mask, weighed, stream)
                x = weighed
            output = caller.empty((size, time, layer.output_size))
            for direction in layer._layers[level]:
                ordered = pieces[::-1] if direction.reverse else pieces
                kept = []
                for place, (begin, steps) in enumerate(ordered):
                    flags = 0 if carried is not None else STARTS
                    before: Any = None
                    if place > 0:
                        before = caller.empty((n_states, 1, size, hidden))
                        _copy_states(final, direction.index, before, 0, stream)
                    elif carried is not None:
                        before = carried
                    flags |= 0 if before is None else CONTINUES
                    piece = self._new_piece(begin, steps, before, size, stream)
                    self._forward_piece(
                        direction.index,
                        batch,
                        piece,
                        x,
                        begin,
                        output,
                        0,
                        initial,
                        final,
                        flags,
                        True,
                        stream,
                    )
                    if len(pieces) > 1:
                        self._let_go(piece, stream)
                    kept.append(piece)
                tape.saved.append(kept)
            tape.inputs.append(x)
            tape.outputs.append(output)
            tape.masks.append(mask)
            x = output
        tape.nbytes = _nbytes(tape)
        return x, final, tape

    def _new_piece(self, begin: int, steps: int, carried: Any, size: int, stream: Any) -> _Piece:
        cell, hidden = self.layer.cell, self.layer.hidden_size
        slots = self.memory.take((size, steps, len(cell.slots) * hidden), stream)
        others, cells = len(cell.states) - 1, None
        if others:
            cells = self.memory.take((size, steps, others * hidden), stream)
        return _Piece(begin, steps, carried, slots, cells)

    def _let_go(self, piece: _Piece, stream: Any) -> None:
        """Give the arrays of a piece back; its steps can be computed again."""
        self.memory.give_back(piece.slots, stream)
        if piece.cells is not None:
            self.memory.give_back(piece.cells, stream)
        piece.slots = piece.cells = None

    # -- Backward ---------------------------------------------------------------------------------

    def backward(
        self,
        tape: Any,
        d_output: Any,
        d_final_state: Any,
        input_gradient: bool,
        initial_gradient: bool,
    ) -> Gradients:
        """Back-propagate; see ``Recurrent.backward``."""
        layer = self.layer
        self.check(tape)
        caller = tape.caller
        d_x = None
        if d_output is not None:
            shape = tape.outputs[-1].shape
            names = ("batch_size", "time", "num_directions * hidden_size")
            d_x = caller.take("d_output", d_output, tuple(zip(names, shape, strict=True)))
        d_final = self._states_in(caller, "d_final_state", d_final_state, tape.data.size)
        d_x, d_initial, by_slot = self.differentiate(tape, d_x, d_final, input_gradient)
        vector = self.download(by_slot, caller.stream)
        d_input = None if d_x is None else caller.give(d_x)
        d_start = self.states_out(caller, d_initial) if initial_gradient else None
        return Gradients(d_input, d_start, vector, layer._shapes)

    def check(self, tape: Any) -> None:
        """Check that a tape is this layer's and can be used, as on the CPU."""
        layer = self.layer
        layer._check_tape(tape, CudaTape)

    def differentiate(
        self, tape: CudaTape, d_output: Any, d_final: Any, input_gradient: bool
    ) -> tuple[Any, Any, Any]:
        """Use a tape up; return the gradients of input and initial states, and those by slot."""
        layer, caller, stream = self.layer, tape.caller, tape.caller.stream
        tape.used = True
        d_states = self.zero_states(tape) if d_final is None else d_final
        d_initial = self.zero_states(tape)
        starts = np.cumsum([0, *(sum(p.gradient_sizes) for p in self._packings)])
        by_slot = self.memory.take((int(starts[-1]),), stream)
        for level in reversed(range(layer.num_layers)):
            x, output = tape.inputs[level], tape.outputs[level]
            d_x: Any = None
            if level > 0 or input_gradient:
                d_x = caller.empty(x.shape)
            started = False
            for direction in layer._layers[level]:
                pieces = tape.saved[direction.index]
                for place, piece in enumerate(reversed(pieces)):
                    again = piece.slots is None
                    if again:
                        self._compute_again(direction.index, tape, piece, x, output)
                    self._backward_piece(
                        direction.index,
                        tape,
                        piece,
                        x,
                        output,
                        d_output,
                        d_states,
                        d_initial,
                        d_x,
                        by_slot,
                        int(starts[direction.index]),
                        (started, place > 0),
                    )
                    self._let_go(piece, stream)
                started = True
            mask = tape.masks[level]
            if mask is not None and d_x is not None:
                weigh(d_x, mask, d_x, stream)
            d_output = d_x
        return d_output, d_initial, by_slot

    def zero_states(self, tape: CudaTape) -> Any:
        """Return states (N, L, B, H) of 0 for the sequences of a tape."""
        layer, caller = self.layer, tape.caller
        shape = (len(layer.cell.states), len(layer._directions), tape.data.size, layer.hidden_size)
        states = caller.empty(shape)
        clear(states, caller.stream)
        return states

    def _compute_again(
        self, number: int, tape: CudaTape, piece: _Piece, x: Any, output: Any
    ) -> None:
        """Fill a piece of a tape again, from the states before it."""
        layer, stream, size = self.layer, tape.caller.stream, tape.data.size
        fresh = self._new_piece(piece.begin, piece.steps, piece.carried, size, stream)
        piece.slots, piece.cells = fresh.slots, fresh.cells
        shape = (len(layer.cell.states), len(layer._directions), size, layer.hidden_size)
        flags = 0 if tape.carried else STARTS
        with self.memory.scratch(shape, stream) as states:
            if piece.carried is not None:
                flags |= CONTINUES
                own = 0 if piece.carried.shape[1] == 1 else number
                _copy_states(piece.carried, own, states, number, stream)
            self._forward_piece(
                number,
                tape.data,
                piece,
                x,
                piece.begin,
                output,
                0,
                tape.initial,
                states,
                flags,
                True,
                stream,
            )

    def download(self, by_slot: Any, stream: Any) -> np.ndarray:
        """Return the gradients by slot as one vector like the parameters'."""
        places = self._maps.get("gradients")
        size = self.layer._vector.size
        if places is None:
            places = np.full((2, size), -1, np.int32)
            at = 0
            for packing in self._packings:
                packing.gradients(at, places[0])
                at += sum(packing.gradient_sizes)
            places = self._maps["gradients"] = cuda.to_device(places, stream=stream)
        with self.memory.scratch((size,), stream) as flat:
            gather(by_slot, places, flat, stream)
            self.memory.give_back(by_slot, stream)
            vector: np.ndarray = flat.copy_to_host(stream=stream)
            stream.synchronize()
        return vector

    # -- Windows over a series --------------------------------------------------------------------

    def states_after(self, tape: CudaTape, steps: int) -> Any:
        """Return the states (N, L, B, H) after so many steps of an unused tape."""
        layer, stream = self.layer, tape.caller.stream
        shape = (len(layer.cell.states), len(layer._directions), tape.data.size, layer.hidden_size)
        states = tape.caller.empty(shape)
        for direction in layer._directions:
            (piece,) = tape.saved[direction.index]
            cells = piece.slots if piece.cells is None else piece.cells
            output = tape.outputs[direction.index]
            take_states(output, 0, cells, steps - 1, states, direction.index, stream)
        return states


def _pieces(time: int, most: int) -> list[tuple[int, int]]:
    """Return begin and steps of pieces of time."""
    return [(begin, min(most, time - begin)) for begin in range(0, time, most)]


def _copy_states(source: Any, number: int, target: Any, place: int, stream: Any) -> None:
    """Copy the states of one direction, ``source[:, number]`` to ``target[:, place]``."""
    for state in range(source.shape[0]):
        target[state, place].copy_to_device(source[state, number], stream=stream)


def _nbytes(tape: CudaTape) -> int:
    arrays = [*tape.inputs, *tape.outputs, *tape.masks, tape.initial]
    for pieces in tape.saved:
        for piece in pieces:
            arrays += [piece.slots, piece.cells, piece.carried]
    return sum(
        4 * int(np.prod(a.shape)) for a in {id(a): a for a in arrays if a is not None}.values()
    )
