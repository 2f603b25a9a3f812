"""Recurrent layers: thin objects that check, own the parameters, and call the engine.

A layer is one or more stacked layers of one cell, in one or both directions, with PyTorch's names
and shapes of parameters and states. Batches come first: (batch, time, features).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import cells
from ._checks import (
    FLOAT32,
    is_ready,
    positive_integer,
    positive_number,
    probability,
    real_array,
)
from ._parameters import Gradients, Module, starts_of
from .cells._functions import FUNCTIONS, checked_functions, complete_function, settings_of
from .engine import passes
from .engine.call import address, aligned_empty

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "SimplifiedGRU", "Tape"]

_CPU_ONLY = "{} needs device='cpu', got 'cuda': call to('cpu') first"

#: What every layer takes by name.
COMMON_OPTIONS = ("bias", "dropout", "variational", "bidirectional", "seed", "reverse")

_CHUNK_FLOATS = 64 * 1024  # of one layer's outputs, where stacked layers take turns

_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")

NO_STATE_GRADIENTS = (
    'state_gradients must be False on the device {!r}: call to("cpu") before the forward pass'
)

State = (
    Any  # (layers * directions, batch, hidden), or a tuple of those: one for each state variable
)


@dataclass(slots=True)
class Tape:
    """What :meth:`Recurrent.forward` keeps for :meth:`Recurrent.backward`; good for one use."""

    owner: Recurrent
    version: int
    batch: passes.Batch
    initial: np.ndarray | None
    inputs: list[np.ndarray]  # of each stacked layer
    outputs: list[np.ndarray]
    masks: list[np.ndarray | None]  # of dropout, applied to each layer's input
    saved: list[passes.Saved | None]
    used: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the sequences' arrays that the tape keeps: inputs, outputs, gates, states.

        The copy of the input and the output of the layer are among them; packed weights, of which
        there is one set for all tapes, are not.
        """
        arrays: list[np.ndarray | None] = [*self.inputs, *self.outputs, *self.masks, self.initial]
        for saved in self.saved:
            if saved is not None:
                arrays += [*saved.kept, saved.carried, saved.checkpoints]
        # The output of a layer is the input of the next.
        return sum(array.nbytes for array in {id(a): a for a in arrays if a is not None}.values())

    def __reduce__(self) -> Any:
        # It holds addresses, which in a copy would point to the arrays of the original.
        raise TypeError("a tape cannot be copied or pickled: call forward again for another one")


class Recurrent(Module):
    """Stacked layers of a recurrent cell, in one or both directions.

    The named layers (:class:`RNN`, :class:`SimplifiedGRU`, :class:`GRU`, :class:`LSTM`) are this
    class with a cell; use it directly for a cell of your own.

    Parameters
    ----------
    cell : str or Cell
        A registered cell's name, or the cell.
    input_size, hidden_size, num_layers : int
        At least 1. The second and further layers take the output of the one below.
    bias : bool
        Whether there are biases (two for each gate, as in PyTorch).
    dropout : float
        Probability in [0, 1) of zeroing each output of a layer that feeds the next one, during
        ``forward(..., training=True)``; the others are scaled by ``1 / (1 - dropout)``.
    variational : bool
        Whether a unit is dropped at all steps of a sequence or at none (Gal and Ghahramani, "A
        theoretically grounded application of dropout in recurrent neural networks", 2016; here
        between layers), instead of at each step anew.
    bidirectional : bool
        Whether a second direction runs from the end of each sequence to its start.
    seed : int, Generator or None
        Of the initial parameters, uniform in ``+-1 / sqrt(hidden_size)``, and of dropout.
    unit_constant : array_like of shape (hidden_size,), optional
        A fixed number for each unit that the cell's equations receive.
    reverse : bool
        Whether the only direction runs from the end of each sequence to its start.
    activations : sequence, optional
        For cells with functions to choose (:attr:`Cell.functions`) a function for each: a name of
        :data:`fastgates.cells.FUNCTIONS`, or a sequence of a name and its numbers alpha and beta.
        Bidirectional layers may have twice as many, those of the reverse direction last.
    clip : float, optional
        For the same cells: arguments of f and g are clipped to ``-clip ... clip``.
    peepholes : bool
        For cells that can have them, whether units have weights on states of their own,
        ``weight_peephole_l0`` of shape (weights * hidden_size,), gate after gate.
    """

    def __init__(
        self,
        cell: str | cells.Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        variational: bool = False,
        bidirectional: bool = False,
        seed: int | np.random.Generator | None = None,
        unit_constant: Any = None,
        reverse: bool = False,
        activations: Any = None,
        clip: float | None = None,
        peepholes: bool = False,
    ) -> None:
        self.cell = cells.get(cell) if isinstance(cell, str) else cell
        self.input_size = positive_integer("input_size", input_size)
        self.hidden_size = positive_integer("hidden_size", hidden_size)
        self.num_layers = positive_integer("num_layers", num_layers)
        self.bias = bool(bias)
        self.dropout = probability("dropout", dropout)
        if self.dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout={self.dropout} is between stacked layers, with num_layers=1 it does "
                "nothing",
                UserWarning,
                stacklevel=3,
            )
        self.variational = bool(variational)
        self.bidirectional = bool(bidirectional)
        self.reverse = bool(reverse)
        if self.reverse and self.bidirectional:
            raise ValueError("reverse=True means the only direction: give bidirectional=False")
        self.num_directions = 2 if self.bidirectional else 1
        self.activations, self.clip, self.peepholes = activations, clip, bool(peepholes)
        settings = self._settings()
        self._unit_constant = None
        if unit_constant is not None:
            self._unit_constant = real_array(
                "unit_constant", unit_constant, (("hidden_size", self.hidden_size),)
            )
        self._directions = [
            passes.Direction(
                self.cell,
                self.input_size if layer == 0 else self.num_directions * self.hidden_size,
                self.hidden_size,
                reverse=direction == 1 or self.reverse,
                index=layer * self.num_directions + direction,
                column=direction * self.hidden_size,
                settings=settings[direction],
                has_unit_weights=self.peepholes,
            )
            for layer in range(self.num_layers)
            for direction in range(self.num_directions)
        ]
        # Those of each of the stacked layers.
        self._layers = [
            self._directions[first : first + self.num_directions]
            for first in range(0, len(self._directions), self.num_directions)
        ]
        shapes: dict[str, tuple[int, ...]] = {}
        rows = len(self.cell.gates) * self.hidden_size
        for direction in self._directions:
            suffix = self._suffix(direction)
            shapes[f"weight_ih_{suffix}"] = (rows, direction.input_size)
            shapes[f"weight_hh_{suffix}"] = (rows, self.hidden_size)
            if self.bias:
                shapes[f"bias_ih_{suffix}"] = (rows,)
                shapes[f"bias_hh_{suffix}"] = (rows,)
            if self.peepholes:
                weights = len(self.cell.unit_weights) * self.hidden_size
                shapes[f"weight_peephole_{suffix}"] = (weights,)
        super().__init__(shapes)
        # Bytes from the start of the vector to the parameters of each direction.
        starts = {name: 4 * start for name, start in zip(shapes, starts_of(shapes), strict=False)}
        self._offsets = [
            tuple(starts.get(f"{kind}_{self._suffix(direction)}", 0) for kind in _KINDS)
            for direction in self._directions
        ]
        self._packed: tuple[int, list[passes.Prepared]] | None = None
        random, self._dropout_random = np.random.default_rng(seed).spawn(2)
        bound = 1 / np.sqrt(self.hidden_size)
        self._vector[:] = random.uniform(-bound, bound, self._vector.size)

    def __repr__(self) -> str:
        options = [f"{self.input_size}, {self.hidden_size}"]
        options += [f"num_layers={self.num_layers}"] * (self.num_layers > 1)
        options += ["bias=False"] * (not self.bias)
        options += [f"dropout={self.dropout}"] * (self.dropout > 0)
        options += ["variational=True"] * self.variational
        options += ["bidirectional=True"] * self.bidirectional
        options += ["reverse=True"] * self.reverse
        nonlinearity, leak = getattr(self, "nonlinearity", "tanh"), getattr(self, "leak", None)
        options += [f"nonlinearity={nonlinearity!r}"] * (nonlinearity != "tanh")
        if leak is not None:
            options.append(f"leak={leak[0]:g}" if (leak == leak[0]).all() else "leak=array(...)")
        options += ["reset_after=True"] * getattr(self, "reset_after", False)
        options += ["coupled=True"] * getattr(self, "coupled", False)
        options += ["peepholes=True"] * self.peepholes
        options += [f"clip={self.clip}"] * (self.clip is not None)
        chosen = self.activations is not None and nonlinearity == "tanh"
        options += [f"activations={self.activations}"] * chosen
        return f"{type(self).__name__}({', '.join(options)})"

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights hold addresses: a copy packs its own.
        return super().__getstate__() | {"_packed": None}

    def _settings(self) -> Sequence[np.ndarray | None]:
        """Check the options of cells with functions to choose; return each direction's settings."""
        functions = self.cell.functions
        if self.peepholes and not self.cell.unit_weights:
            raise ValueError(f"peepholes must be False, since the cell {self.cell.name} has none")
        if not functions:
            if self.activations is not None or self.clip is not None:
                raise ValueError(
                    f"activations and clip must be None: the functions of the cell "
                    f"{self.cell.name} are fixed"
                )
            return [None] * self.num_directions
        if self.clip is not None:
            self.clip = positive_number("clip", self.clip)
        chosen: list[Any] = [functions]
        if self.activations is not None:
            self.activations = checked_functions(
                "activations", self.activations, len(functions), self.num_directions
            )
            parts = range(0, len(self.activations), len(functions))
            chosen = [self.activations[i : i + len(functions)] for i in parts]
        settings = [settings_of(self.clip, map(complete_function, part)) for part in chosen]
        return settings * (self.num_directions // len(settings))

    @property
    def output_size(self) -> int:
        """Features of the output: num_directions * hidden_size."""
        return self.num_directions * self.hidden_size

    def _suffix(self, direction: passes.Direction) -> str:
        layer, reverse = divmod(direction.index, self.num_directions)
        return f"l{layer}_reverse" if reverse else f"l{layer}"

    def _places(self, vector: np.ndarray, direction: passes.Direction) -> passes.Places:
        """Return where in a vector of parameters those of one direction are."""
        start = address(vector)
        ih, hh, bias_ih, bias_hh, peepholes = self._offsets[direction.index]
        return (
            start + ih,
            start + hh,
            start + bias_ih if self.bias else 0,
            start + bias_hh if self.bias else 0,
            start + peepholes if self.peepholes else 0,
        )

    def _peepholes(self, direction: passes.Direction) -> np.ndarray | None:
        """Return the weights of units on their own states of one direction."""
        if not self.peepholes:
            return None
        return self.parameters[f"weight_peephole_{self._suffix(direction)}"]

    def _prepared(self, transposed: bool = False) -> list[passes.Prepared]:
        """Return the packed weights of each direction, packed anew after a change.

        For back-propagation as well if they are `transposed`.
        """
        packed, version = self._packed, self._version
        if packed is None or packed[0] != version or (transposed and not packed[1][0].transposed):
            constant, prepared = self._unit_constant, []
            for direction in self._directions:
                places, weights = self._places(self._vector, direction), self._peepholes(direction)
                prepared.append(direction.prepare(places, constant, weights, transposed))
            packed = self._packed = (version, prepared)
        return packed[1]

    # -- Checks -----------------------------------------------------------------------------------

    def _states_in(self, name: str, state: State, batch_size: int) -> np.ndarray | None:
        """Return a state of the user's as one array (states, layers * directions, B, H)."""
        if state is None:
            return None
        shape = (
            ("num_layers * num_directions", len(self._directions)),
            ("batch_size", batch_size),
            ("hidden_size", self.hidden_size),
        )
        names = self.cell.states
        if len(names) == 1:
            return real_array(name, state, shape, copy=True)[None]
        if (
            isinstance(state, np.ndarray)
            or not isinstance(state, Sequence)
            or len(state) != len(names)
        ):
            raise ValueError(
                f"{name} must be a tuple ({', '.join(names)}) of arrays of shape "
                f"{tuple(size for _, size in shape)}, "
                f"got {type(state).__name__}"
            )
        parts = [real_array(f"{name}[{i}]", part, shape) for i, part in enumerate(state)]
        return np.stack(parts)

    def _states_out(self, stacked: np.ndarray) -> State:
        if len(stacked) == 1:
            return stacked[0]
        return tuple([stacked[n] for n in range(len(stacked))])  # quicker than to iterate over it

    def _input(self, x: Any, copy: bool = False) -> np.ndarray:
        """Return the input as a C-contiguous float32 array, or say what is wrong with it."""
        if is_ready(x) and x.ndim == 3 and x.shape[2] == self.input_size:
            return x.copy() if copy else x
        axes = ("batch_size", "time", ("input_size", self.input_size))
        return real_array("x", x, axes, copy=copy)

    def _checked_lengths_and_resets(
        self, size: int, time: int, lengths: Any, resets: Any
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return lengths as int64 and resets as uint8, None where they are."""
        if lengths is not None:
            lengths = np.asarray(lengths)
            if lengths.shape != (size,) or lengths.dtype.kind not in "iu":
                raise ValueError(
                    f"lengths must be integers of shape (batch_size={size},), got shape "
                    f"{lengths.shape} of dtype {lengths.dtype}"
                )
            lengths = lengths.astype(np.int64)
            if size and not (lengths.min() >= 1 and lengths.max() <= time):
                raise ValueError(
                    f"lengths must be from 1 to time={time}, got {lengths.min()} to {lengths.max()}"
                )
        if resets is not None:
            resets = np.asarray(resets)
            if resets.shape != (size, time) or resets.dtype != np.bool_:
                raise ValueError(
                    f"resets must be bool of shape (batch_size={size}, time={time}), got shape "
                    f"{resets.shape} of dtype {resets.dtype}"
                )
            resets = resets.astype(np.uint8, order="C")
        return lengths, resets

    def _batch(self, x: np.ndarray, lengths: Any, resets: Any) -> passes.Batch:
        size, time, _ = x.shape
        if lengths is None and resets is None:
            return passes.full_batch(size, time)
        lengths, resets = self._checked_lengths_and_resets(size, time, lengths, resets)
        return passes.Batch.of(size, time, lengths, resets)

    def _dropout_mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return factors for inputs of such a shape (B, T, features), or those of all steps."""
        size, time, features = shape
        shape = (size, 1 if self.variational else time, features)
        kept = self._dropout_random.random(shape, np.float32) >= self.dropout
        return kept * np.float32(1 / (1 - self.dropout))

    def _cuda(self) -> Any:
        """Return the passes on the GPU."""
        if self._on_device is None:
            from .cuda.recurrent import LayerPasses

            self._on_device = LayerPasses(self)
        return self._on_device

    # -- Passes -----------------------------------------------------------------------------------

    def __call__(
        self,
        x: Any,
        initial_state: State = None,
        lengths: Any = None,
        resets: Any = None,
        return_sequences: bool = True,
    ) -> tuple[np.ndarray, State]:
        """Run the layer over sequences, keeping nothing for back-propagation.

        Parameters
        ----------
        x : array_like, shape (batch, time, input_size)
            Any real dtype and strides; brought to contiguous float32.
        initial_state : array_like or tuple, optional
            Shape (num_layers * num_directions, batch, hidden_size), for LSTM a pair ``(h, c)`` of
            those; zeros by default.
        lengths : array_like of int, shape (batch,), optional
            Steps of each sequence, 1 to time. Outputs past the end are 0, the final state is that
            at the end, and the reverse direction starts there.
        resets : array_like of bool, shape (batch, time), optional
            True before which step a row's state goes back to its initial state.
        return_sequences : bool
            Whether the output of every step is wanted, or only the last one of each sequence. The
            latter takes no memory that grows with time, but for `x` itself (and a copy of it that
            is contiguous float32, where it is not) and, in stacked bidirectional layers, the
            outputs of the layers below the last: there, the first step of the next layer needs the
            last step of this one.

        Returns
        -------
        output : ndarray of float32, shape (batch, time, num_directions * hidden_size)
            Without `return_sequences` of shape (batch, num_directions * hidden_size): for each
            direction the output of the step that it processes last. That is the last step of a
            sequence, and the first one for the reverse direction.
        final_state : ndarray or tuple
            In the shape of `initial_state`.

        Raises
        ------
        ValueError, TypeError
            If an argument has the wrong shape, dtype or range.
        """
        if self._device != "cpu":
            return self._cuda().call(x, initial_state, lengths, resets, return_sequences)
        if return_sequences:
            output, final, _ = self._forward(x, initial_state, lengths, resets, keep=False)
            return output, final
        x = self._input(x)
        batch = self._batch(x, lengths, resets)
        final_states = self._last_states(
            x, batch, self._states_in("initial_state", initial_state, batch.size)
        )
        top = final_states[0, -self.num_directions :]  # (D, B, H)
        output = np.concatenate(list(top), axis=-1)
        return output, self._states_out(final_states)

    def forward(
        self,
        x: Any,
        initial_state: State = None,
        lengths: Any = None,
        resets: Any = None,
        training: bool = False,
        segment: int | None = None,
        copy: bool = True,
    ) -> tuple[np.ndarray, State, Tape]:
        """Run the layer over sequences, keeping what :meth:`backward` needs.

        Parameters
        ----------
        x, initial_state, lengths, resets
            As in a call of the layer.
        training : bool
            Whether dropout is applied between stacked layers.
        segment : int, optional
            Keep the states before every `segment` steps only; :meth:`backward` then computes the
            steps of a segment again, a segment at a time. All gradients are the same bits. Beyond
            inputs and outputs of the layers, the memory is that of ``time / segment`` states and of
            one segment, least for a segment of about the root of time; a training step takes about
            the time of one forward pass more. By default everything is kept.
        copy : bool
            Whether the tape keeps a copy of `x`. Without, contiguous float32 arrays must not change
            before :meth:`backward`.

        Returns
        -------
        output : ndarray of float32, shape (batch, time, num_directions * hidden_size)
            Read-only, since the tape needs it: copy it to change it.
        final_state : ndarray or tuple
        tape : Tape

        Raises
        ------
        ValueError, TypeError
            If an argument has the wrong shape, dtype or range.
        """
        if segment is not None:
            segment = positive_integer("segment", segment)
        if self._device != "cpu":
            return self._cuda().forward(x, initial_state, lengths, resets, training, segment)
        output, final, tape = self._forward(
            x, initial_state, lengths, resets, True, training, segment, None, copy
        )
        assert tape is not None
        return output, final, tape

    def _forward(
        self,
        x: Any,
        initial_state: State,
        lengths: Any,
        resets: Any,
        keep: bool,
        training: bool = False,
        segment: int | None = None,
        carried: list[np.ndarray] | None = None,
        copy: bool = True,
    ) -> tuple[np.ndarray, State, Tape | None]:
        # A tape must not change with the caller's arrays, so with one they are copied.
        current = self._input(x, copy=keep and copy)
        batch = self._batch(current, lengths, resets)
        initial = self._states_in("initial_state", initial_state, batch.size)
        tape = Tape(self, self._version, batch, initial, [], [], [], []) if keep else None
        final = self._new_states(batch, initial)
        prepared = self._prepared(keep)
        shape = (batch.size, batch.time, self.num_directions * self.hidden_size)
        for layer, directions in enumerate(self._layers):
            mask = None
            if layer > 0 and training and self.dropout > 0:
                mask = self._dropout_mask(current.shape)
                current = current * mask
            output = aligned_empty(shape)
            if batch.steps == 0:
                output[...] = 0
            for direction in directions:
                saved = None
                if batch.steps:
                    index = direction.index
                    saved = direction.forward(
                        prepared[index],
                        batch,
                        current,
                        initial,
                        output,
                        final,
                        keep,
                        segment,
                        None if carried is None else carried[index],
                    )
                if tape is not None:
                    tape.saved.append(saved)
            if tape is not None:
                output.flags.writeable = False
                tape.inputs.append(current)
                tape.outputs.append(output)
                tape.masks.append(mask)
            current = output
        return current, self._states_out(final), tape

    def _forward_carried(
        self,
        x: Any,
        initial_state: State,
        resets: Any,
        carried: list[np.ndarray] | None,
        training: bool,
    ) -> tuple[np.ndarray, State, Tape]:
        """Run :meth:`forward` from states that were carried in; resets go to `initial_state`."""
        if self._device != "cpu":
            return self._cuda().forward(x, initial_state, None, resets, training, None, carried)
        output, final, tape = self._forward(
            x, initial_state, None, resets, keep=True, training=training, carried=carried
        )
        assert tape is not None
        return output, final, tape

    def _states_after(self, tape: Tape, steps: int) -> list[np.ndarray] | None:
        """Return the states (states, B, Hp) of each layer after so many steps of a tape.

        The tape must be unused, of sequences of one length, without segments.
        """
        if self._device != "cpu":
            return self._cuda().states_after(tape, steps)
        states = []
        for direction, saved, output in zip(
            self._directions, tape.saved, tape.outputs, strict=True
        ):
            if saved is None:  # an empty batch
                return None
            states.append(direction.states_after(tape.batch, saved, output, steps))
        return states

    def _trajectories(
        self, tape: Tape
    ) -> list[tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]]:
        """Return slots and states over time of each direction of each layer, see there.

        The tape must be unused, without segments, of at least one step.
        """
        if self._device != "cpu":
            raise ValueError(_CPU_ONLY.format("what looks into a tape"))
        found = []
        for direction, saved in zip(self._directions, tape.saved, strict=True):
            assert saved is not None and saved.kept
            output = tape.outputs[direction.index // self.num_directions]
            found.append(direction.trajectory(tape.batch, saved, output))
        return found

    def _last_states(
        self,
        x: np.ndarray,
        batch: passes.Batch,
        initial: np.ndarray | None,
    ) -> np.ndarray:
        """Return the final states (states, layers * directions, B, H), and nothing on the way."""
        final = self._new_states(batch, initial)
        if batch.steps == 0:
            return final
        prepared = self._prepared()
        whole = self.num_layers == 1 or self.bidirectional or self.reverse
        if whole:
            for layer in range(self.num_layers):
                shape = (batch.size, batch.time, self.num_directions * self.hidden_size)
                output = None
                if layer < self.num_layers - 1:
                    output = aligned_empty(shape)
                for direction in self._layers[layer]:
                    weights = prepared[direction.index]
                    direction.forward(weights, batch, x, initial, output, final)
                if output is not None:
                    x = output
            return final
        # All layers run over a chunk of time, then over the next.
        width = max(self.input_size, self.hidden_size)
        steps = min(batch.longest, max(16, _CHUNK_FLOATS // (batch.size * width)))
        states = [direction.new_carried(batch) for direction in self._directions]
        outputs = [aligned_empty(batch.size * steps * self.hidden_size) for _ in range(2)]
        for first in range(0, batch.longest, steps):
            end = min(first + steps, batch.longest)
            chunk = batch.chunk(first, end)
            current = np.ascontiguousarray(x[:, first:end])
            for direction in self._directions:
                output = None
                if direction.index < self.num_layers - 1:
                    shape = (batch.size, end - first, self.hidden_size)
                    output = outputs[direction.index % 2][: math.prod(shape)].reshape(shape)
                direction.forward(
                    prepared[direction.index],
                    chunk,
                    current,
                    initial,
                    output,
                    final,
                    carried=states[direction.index] if first else None,
                    carried_on=states[direction.index],
                    first=first,
                )
                if output is not None:
                    current = output
        return final

    def _states_shape(self, batch: passes.Batch) -> tuple[int, int, int, int]:
        return len(self.cell.states), len(self._directions), batch.size, self.hidden_size

    def _new_states(self, batch: passes.Batch, initial: np.ndarray | None) -> np.ndarray:
        """Return states to be filled, which hold the initial ones where there are no steps."""
        final = np.empty(self._states_shape(batch), FLOAT32)
        if batch.steps == 0:
            final[...] = 0 if initial is None else initial
        return final

    def backward(
        self,
        tape: Tape,
        d_output: Any = None,
        d_final_state: State = None,
        input_gradient: bool = True,
        state_gradients: bool = False,
        initial_gradient: bool = True,
    ) -> Gradients:
        """Back-propagate through time.

        Parameters
        ----------
        tape : Tape
            From :meth:`forward` of this layer; used up.
        d_output : array_like, shape (batch, time, num_directions * hidden_size), optional
            Gradient of the loss with respect to the output; zero by default. What it holds past
            the end of a sequence does not matter.
        d_final_state : array_like or tuple, optional
            Gradient with respect to the final state, in its structure; zero by default.
        input_gradient : bool
            Whether the gradient with respect to `x` is wanted.
        state_gradients : bool
            Whether the gradients with respect to the states after every step are wanted, as
            ``states`` of the result: arrays (num_layers * num_directions, batch, time,
            hidden_size), 0 past the end of a sequence. Each is the whole gradient: of the output
            at that step, of the layers above, and of all later steps. The other results are the
            same bits as without; it takes longer, since time goes step by step.
        initial_gradient : bool
            Whether the gradient with respect to the initial state is wanted. It takes a product at
            the first step, which counts for sequences of a few steps.

        Returns
        -------
        Gradients

        Raises
        ------
        RuntimeError
            If the tape was used before, or the parameters have changed since.
        ValueError, TypeError
            If the tape is another layer's, or a gradient has the wrong shape or dtype.
        """
        if self._device != "cpu":
            if state_gradients:
                raise ValueError(NO_STATE_GRADIENTS.format(self._device))
            return self._cuda().backward(
                tape, d_output, d_final_state, input_gradient, initial_gradient
            )
        self._check_tape(tape, Tape)
        batch, outputs = tape.batch, tape.outputs
        d_current = None
        if d_output is not None:
            d_current = d_output
            if not (is_ready(d_output) and d_output.shape == outputs[-1].shape):
                d_current = real_array("d_output", d_output, _named(outputs[-1].shape))
        d_final = self._states_in("d_final_state", d_final_state, batch.size)
        tape.used = True
        vector = np.empty(self._vector.size, FLOAT32)
        d_initial = self._new_states(batch, d_final) if initial_gradient else None
        d_states = None
        if state_gradients:
            *states, hidden = self._states_shape(batch)
            d_states = np.zeros((*states, batch.time, hidden), FLOAT32)
        if batch.steps == 0:
            vector[:] = 0
            d_current = np.zeros_like(tape.inputs[0]) if input_gradient else None
        else:
            for layer in range(self.num_layers - 1, -1, -1):
                wanted = layer > 0 or input_gradient
                d_current = self._backward_layer(
                    tape, layer, d_current, d_final, d_initial, vector, d_states, wanted
                )
        start = None if d_initial is None else self._states_out(d_initial)
        every = None if d_states is None else self._states_out(d_states)
        return Gradients(d_current, start, vector, self._shapes, every)

    def _backward_layer(
        self,
        tape: Tape,
        layer: int,
        d_output: np.ndarray | None,
        d_final: np.ndarray | None,
        d_initial: np.ndarray | None,
        vector: np.ndarray,
        d_states: np.ndarray | None,
        input_gradient: bool,
    ) -> np.ndarray | None:
        """Back-propagate through one of the stacked layers; return its input's gradient."""
        batch, x, d_input = tape.batch, tape.inputs[layer], None
        for direction in self._layers[layer]:
            saved = tape.saved[direction.index]
            assert saved is not None
            part = None
            if input_gradient:
                part = aligned_empty(x.shape)
            d_weights = self._places(vector, direction)
            direction.backward(
                batch, saved, d_output, d_final, d_initial, part, d_weights, d_states
            )
            tape.saved[direction.index] = None
            d_input = part if d_input is None or part is None else d_input + part
        mask = tape.masks[layer]
        return d_input if mask is None or d_input is None else d_input * mask


class RNN(Recurrent):
    """The plain recurrent network, or its leaky form.

    ::

        g = tanh(W_hh h + b_hh + W_ih x + b_ih)          or relu
        h' = (1 - leak) g + leak h

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, dropout, variational, bidirectional, seed
        As in :class:`Recurrent`.
    reverse, clip
        As in :class:`Recurrent`.
    nonlinearity : str or sequence
        "tanh" or "relu"; or another function, as of the `activations` of :class:`Recurrent`.
    leak : float or array_like of shape (hidden_size,), optional
        Fixed numbers in [0, 1], for all units or one each: 0 (the default) is the plain network, 1
        is pure memory.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Any = "tanh",
        leak: Any = None,
        bias: bool = True,
        dropout: float = 0.0,
        variational: bool = False,
        bidirectional: bool = False,
        seed: int | np.random.Generator | None = None,
        reverse: bool = False,
        clip: float | None = None,
    ) -> None:
        if isinstance(nonlinearity, str) and nonlinearity not in FUNCTIONS:
            raise ValueError(
                f"nonlinearity must be 'tanh' or 'relu', or one of {', '.join(FUNCTIONS)}, "
                f"got {nonlinearity!r}"
            )
        functions: Any = None
        if clip is not None or nonlinearity not in ("tanh", "relu"):
            functions = _of_each_direction(nonlinearity)
        constant = None
        if leak is not None:
            hidden_size = positive_integer("hidden_size", hidden_size)
            values = np.asarray(leak)
            if values.ndim == 0:
                values = np.full(hidden_size, values)
            constant = real_array("leak", values, (("hidden_size", hidden_size),))
            if not ((constant >= 0) & (constant <= 1)).all():
                raise ValueError(f"leak must be in [0, 1], got {leak!r}")
        name = ("leaky_rnn" if leak is not None else "rnn") + "_relu" * (nonlinearity == "relu")
        if functions is not None:
            name = "rnn_general"
        self.nonlinearity = nonlinearity
        self.leak = None if constant is None else constant.copy()
        super().__init__(
            name,
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            dropout=dropout,
            variational=variational,
            bidirectional=bidirectional,
            seed=seed,
            unit_constant=constant,
            reverse=reverse,
            activations=functions,
            clip=clip,
        )


class SimplifiedGRU(Recurrent):
    """A gated network with a forget valve only: the least that keeps a memory.

    ::

        f = sigm(W_hf h + b_hf + W_if x + b_if)
        g = tanh(W_hg h + b_hg + W_ig x + b_ig)
        h' = f h + (1 - f) g

    Equation 10 of Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, dropout, variational, bidirectional, seed, reverse
        As in :class:`Recurrent`. Gates are in the order f, g.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, **options: Any
    ) -> None:
        _only_known_options(type(self), options)
        super().__init__("simplified_gru", input_size, hidden_size, num_layers, **options)


class GRU(Recurrent):
    """The gated recurrent unit of Cho et al. (2014), or PyTorch's and cuDNN's variant.

    ::

        r = sigm(W_hr h + b_hr + W_ir x + b_ir)
        z = sigm(W_hz h + b_hz + W_iz x + b_iz)
        n = tanh(W_hn (r h) + b_hn + W_in x + b_in)      reset_after=False
        n = tanh(r (W_hn h + b_hn) + W_in x + b_in)      reset_after=True
        h' = z h + (1 - z) n

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, dropout, variational, bidirectional, seed, reverse
        As in :class:`Recurrent`. Gates are in the order r, z, n.
    reset_after : bool
        Whether the reset gate acts after the product, as in ``torch.nn.GRU``.
    activations, clip
        As in :class:`Recurrent`: the functions in place of the sigmoid and of tanh.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = False,
        activations: Any = None,
        clip: float | None = None,
        **options: Any,
    ) -> None:
        _only_known_options(type(self), options)
        self.reset_after = bool(reset_after)
        name = "gru_reset_after" if reset_after else "gru"
        if activations is not None or clip is not None:
            name += "_general"
        super().__init__(
            name,
            input_size,
            hidden_size,
            num_layers,
            activations=activations,
            clip=clip,
            **options,
        )


class LSTM(Recurrent):
    """Long short-term memory with a forget gate.

    Hochreiter and Schmidhuber (1997), with the gate of Gers et al. (2000)::

        i = sigm(W_hi h + b_hi + W_ii x + b_ii)
        f = sigm(W_hf h + b_hf + W_if x + b_if)
        g = tanh(W_hg h + b_hg + W_ig x + b_ig)
        o = sigm(W_ho h + b_ho + W_io x + b_io)
        c' = f c + i g
        h' = o tanh(c')

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, dropout, variational, bidirectional, seed, reverse
        As in :class:`Recurrent`. Gates are in the order i, f, g, o; states are pairs ``(h, c)``.
    forget_bias : float
        Initial value of the forget gate's bias (``bias_ih``; that of ``bias_hh`` is 0).
    coupled : bool
        Whether ``f = 1 - i`` and there is no forget gate: gates are in the order i, g, o, and the
        bias of the input gate is ``-forget_bias`` to begin with. (CIFG of Greff et al., 2017.)
    peepholes : bool
        Whether gates see the memory: ``i`` and ``f`` that before the step, ``o`` the new one, each
        with a weight for each unit. (Gers and Schmidhuber, 2000.) They begin with 0.
    activations, clip
        As in :class:`Recurrent`: the functions in place of the sigmoid, of the tanh that makes g,
        and of the last one.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        forget_bias: float = 1.0,
        coupled: bool = False,
        peepholes: bool = False,
        activations: Any = None,
        clip: float | None = None,
        **options: Any,
    ) -> None:
        _only_known_options(type(self), options)
        self.coupled = bool(coupled)
        general = peepholes or activations is not None or clip is not None
        name = "lstm_coupled" if self.coupled else "lstm_general" if general else "lstm"
        super().__init__(
            name,
            input_size,
            hidden_size,
            num_layers,
            peepholes=peepholes,
            activations=activations,
            clip=clip,
            **options,
        )
        self.forget_bias = float(forget_bias)
        # Without a forget gate the input gate closes where that would be open.
        first, bias = (0, -self.forget_bias) if self.coupled else (1, self.forget_bias)
        gate = slice(first * self.hidden_size, (first + 1) * self.hidden_size)
        with self.edit_parameters() as parameters:
            for direction in self._directions:
                suffix = self._suffix(direction)
                if self.bias:
                    parameters[f"bias_ih_{suffix}"][gate] = bias
                    parameters[f"bias_hh_{suffix}"][gate] = 0
                if self.peepholes:
                    parameters[f"weight_peephole_{suffix}"][...] = 0


def _named(shape: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    names = ("batch_size", "time", "num_directions * hidden_size")
    return tuple(zip(names, shape, strict=True))


def _of_each_direction(nonlinearity: Any) -> list[Any]:
    """Return the function of an RNN, or those of its directions, as a list."""
    if isinstance(nonlinearity, str):
        return [nonlinearity]
    functions = list(nonlinearity)
    # A name and its numbers are one function.
    one = all(isinstance(part, int | float | np.number) for part in functions[1:])
    return [functions] if one and isinstance(functions[0], str) else functions


def _only_known_options(layer: type, options: dict[str, Any]) -> None:
    for name in options:
        if name not in COMMON_OPTIONS:
            known = ", ".join(COMMON_OPTIONS)
            raise TypeError(f"{layer.__name__} has no option {name!r}; it has {known}")
