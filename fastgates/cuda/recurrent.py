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
from ._arrays import Caller, Memory, caller_of
from ._device import SIMULATED, cuda
from ._elementwise import add, gather, mask_past_end, multiply
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

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.memory = Memory()
        self.products = products(self.memory)
        self._processors = 1 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT
        self._plans: dict[Any, Plan] = {}
        self._maps: dict[Any, Any] = {}
        self._packed: dict[Any, tuple[int, list[_Weights]]] = {}
        self._source: tuple[int, Any] | None = None
        self._stream: Any = None  # on which the weights were laid out
        size, hidden = layer._vector.size, layer.hidden_size
        constant = layer._unit_constant
        self._constants = -1 if constant is None else size
        self._host = np.zeros(size + (0 if constant is None else hidden), np.float32)
        if constant is not None:
            self._host[size:] = constant
        starts, at = {}, 0
        for name, value in layer.parameters.items():
            starts[name] = at
            at += value.size
        self._packings = []
        for direction in layer._directions:
            suffix = layer._suffix(direction)
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            sources = Sources(*(starts.get(f"{kind}_{suffix}", -1) for kind in kinds))
            self._packings.append(
                Packing(layer.cell, direction.input_size, layer.hidden_size, sources)
            )

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
                processors=self._processors,
                one_block=SIMULATED,
            )
        return plan

    def _grid(self, plan: Plan, batch: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield for each launch its first row, rows, blocks, and tiles of a block."""
        if plan.slices == 1:
            yield 0, batch, -(-batch // plan.rows), 1
            return
        groups = max(1, self._processors // plan.slices)
        most = groups * plan.rows * plan.most_tiles
        for first in range(0, batch, most):
            rows = min(most, batch - first)
            used = min(groups, -(-rows // plan.rows))
            tiles = -(-rows // (used * plan.rows))
            used = -(-rows // (tiles * plan.rows))
            yield first, rows, used * plan.slices, tiles

    def _weights(self, transposed: bool, plan: Plan, stream: Any) -> list[_Weights]:
        """Return the weights of each direction in the layout of a plan, of this moment."""
        version = self.layer._version
        if self._stream is not None and stream != self._stream:
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
                maps.append(packing.recurrent(plan, transposed, self._constants))
                inputs = packing.inputs()
                maps.append((inputs, np.full(inputs.size, -1)))
            places = np.stack([np.concatenate([m[n] for m in maps]) for n in range(2)])
            places_there = cuda.to_device(places.astype(np.int32), stream=stream)
            whole = cuda.device_array(places.shape[1], np.float32, stream=stream)
            self._maps[key] = places_there, whole
            weights, at = [], 0
            for number, direction in enumerate(self.layer._directions):
                recurrent, inputs = maps[2 * number][0].size, maps[2 * number + 1][0].size
                view = whole[at : at + recurrent]
                # (G * H, I), as it is on the way forward, transposed on the way back.
                strides = (1, direction.input_size) if transposed else (direction.input_size, 1)
                weights.append(_Weights(view, Weights(whole, at + recurrent, *strides)))
                at += recurrent + inputs
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
            _copy(part, whole[n], caller.stream)
        return whole

    def _states_out(self, caller: Caller, states: Any) -> Any:
        """Return a device array (N, L, B, H) in the structure of a state."""
        if not caller.on_device:
            whole = caller.give(states)
            return whole[0] if len(whole) == 1 else tuple(whole)
        parts = tuple(caller.give(states[n]) for n in range(states.shape[0]))
        return parts[0] if len(parts) == 1 else parts

    # -- Forward ----------------------------------------------------------------------------------

    def call(
        self, x: Any, initial_state: Any, lengths: Any, resets: Any, return_sequences: bool
    ) -> tuple[Any, Any]:
        """Run the layer, keeping nothing; see ``Recurrent.__call__``."""
        caller = caller_of(x)
        output, final, _ = self._run(
            caller, x, initial_state, lengths, resets, keep=False, sequences=return_sequences
        )
        state = self._states_out(caller, final)
        if return_sequences:
            return caller.give(output), state
        return self.last_outputs(caller, final), state

    def last_outputs(self, caller: Caller, final: Any) -> Any:
        """Return the last outputs (B, D * H) of the top layer, from the final states."""
        layer = self.layer
        top = final[0, -layer.num_directions + final.shape[1] :]
        result = caller.empty((final.shape[2], layer.output_size))
        for number in range(layer.num_directions):
            column = number * layer.hidden_size
            _copy(top[number], result[:, column : column + layer.hidden_size], caller.stream)
        return caller.give(result)
