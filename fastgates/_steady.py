"""Training steps of a network over batches of one shape: arrays and calls that are made once.

A layer's ``forward`` and ``backward`` check their arguments, make arrays, and describe each pass to
a kernel in a call. In a training loop all of that is the same at each step but for the numbers in
the arrays. So here it is made once for a batch size, and a step runs the calls again: the same
kernels on the same arrays in the same order, so the same bits. Where sequences differ in length,
each minibatch has calls of its own, on the same arrays.

The arrays belong to the loop. What a step returns is good until the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ._checks import FLOAT32
from .dense import ACTIVATIONS, Dense
from .engine.call import address, aligned_empty
from .engine.linear import (
    AffineGradients,
    AffineMap,
    small_affine,
    small_affine_gradients,
)
from .engine.pack import pack_affine
from .engine.passes import Batch, Direction, Given, Made, Prepared, Saved, full_batch
from .layers import Recurrent, State
from .sequential import Sequential

__all__ = ["SteadyNetwork"]


class SteadyNetwork:
    """Forward and back-propagation of a network over batches of one shape.

    Parameters
    ----------
    network : Sequential
        Of recurrent layers and read-outs, on the CPU.
    x : ndarray of float32, shape (B, T, input_size)
        What each step reads.
    vector : ndarray of float32
        Where the gradients of the parameters go.
    with_states : bool
        Whether there are initial states, and gradients with respect to them.

    Attributes
    ----------
    output, d_output : ndarray of float32
        What :meth:`forward` fills, and what :meth:`backward` reads.
    nbytes : int
        Of the arrays of sequences.
    """

    def __init__(
        self, network: Sequential, x: np.ndarray, vector: np.ndarray, with_states: bool
    ) -> None:
        self._parts: list[_SteadyLayer | _SteadyDense] = []
        self._batch, start = full_batch(*x.shape[:2]), 0
        part: _SteadyLayer | _SteadyDense
        for place, module in enumerate(network.modules):
            end = start + module.parameter_vector.size
            d_x = self._parts[-1].d_output if self._parts else None
            if isinstance(module, Recurrent):
                whole = network.return_sequences or place != network._last_recurrent
                part = _SteadyLayer(module, x, d_x, vector[start:end], whole, with_states)
            else:
                part = _SteadyDense(module, x, d_x, vector[start:end])
            self._parts.append(part)
            x, start = part.output, end
        self._layers = [part for part in self._parts if isinstance(part, _SteadyLayer)]
        self._backward = self._parts[::-1]
        self.output, self.d_output = part.output, part.d_output
        self.nbytes = sum(part.nbytes for part in self._parts)

    def forward(self, states: Sequence[State] | None, lengths: np.ndarray | None) -> np.ndarray:
        """Return the output for what `x` holds now, with dropout.

        Parameters
        ----------
        states : sequence or None
            The initial state of each recurrent layer.
        lengths : ndarray of int, shape (B,), or None
            Outputs past the end of a sequence may be anything; their gradients must be 0.
        """
        batch = self._batch
        if lengths is not None:
            batch = Batch.of(batch.size, batch.time, lengths.astype(np.int64), None)
        if states is not None:
            for layer, state in zip(self._layers, states, strict=True):
                layer.start_from(state)
        for part in self._parts:
            part.forward(batch)
        return self.output

    def backward(self) -> None:
        """Fill the gradients of the parameters from what `d_output` holds now."""
        for part in self._backward:
            part.backward()

    def initial_gradients(self) -> tuple[State, ...]:
        """Return the gradients with respect to the initial states."""
        return tuple(layer.initial_gradient() for layer in self._layers)


class _SteadyLayer:
    """A recurrent layer over batches of one shape.

    Parameters
    ----------
    layer : Recurrent
    x : ndarray, shape (B, T, I)
    d_x : ndarray or None
        Where the gradient of `x` goes, if it is wanted.
    vector : ndarray
        Where the gradients of the parameters go.
    whole : bool
        Whether the output is that of all steps, or the last ones.
    with_states : bool
    """

    def __init__(
        self,
        layer: Recurrent,
        x: np.ndarray,
        d_x: np.ndarray | None,
        vector: np.ndarray,
        whole: bool,
        with_states: bool,
    ) -> None:
        self._layer, self._d_x, self._vector = layer, d_x, vector
        self._size, time = size, _ = x.shape[:2]
        shape = (size, time, layer.output_size)
        states = (len(layer.cell.states), len(layer._directions), size, layer.hidden_size)
        # Of each stacked layer: what it reads, with dropout, and gives.
        self._outputs = [aligned_empty(shape) for _ in range(layer.num_layers)]
        self._inputs = [x, *self._outputs[:-1]]
        self._masks: list[np.ndarray | None] = [None] * layer.num_layers
        if layer.dropout > 0:
            self._inputs[1:] = [aligned_empty(shape) for _ in self._inputs[1:]]
        self._initial = np.zeros(states, FLOAT32) if with_states else None
        self._d_initial = np.zeros(states, FLOAT32) if with_states else None
        self._final = np.empty(states, FLOAT32)
        self._prepared: list[Prepared] = []
        self._packings: list[Callable[[], None]] = []
        self._packed_from: np.ndarray | None = None
        self._kept = [direction.buffers(size * time) for direction in layer._directions]
        self._batch: Batch | None = None  # whose calls the next two hold
        self._saved: list[Saved] = []
        self._made: list[tuple[Given, Made]] = []
        # The gradient of each stacked layer's output, below that of the one above.
        below = [aligned_empty(shape) for _ in range(layer.num_layers - 1)]
        arrays = [*self._outputs, *below, *(array for kept in self._kept for array in kept)]
        self.nbytes = sum(array.nbytes for array in arrays)
        self._d_final: np.ndarray | None = None
        self._joined = False
        if whole:
            self.output, self.d_output = self._outputs[-1], aligned_empty(shape)
            self._d_outputs: list[np.ndarray | None] = [*below, self.d_output]
            return
        self._d_outputs = [*below, None]
        self._d_final = np.zeros(states, FLOAT32)
        top = slice(-layer.num_directions, None)
        self._last, self._d_last = self._final[0, top], self._d_final[0, top]  # (D, B, H)
        self._joined = layer.bidirectional
        if self._joined:
            self.output = np.empty((size, layer.output_size), FLOAT32)
            self.d_output = np.empty((size, layer.output_size), FLOAT32)
        else:
            self.output, self.d_output = self._last[0], self._d_last[0]

    def start_from(self, state: State) -> None:
        """Take an initial state."""
        stacked = self._layer._states_in("initial_state", state, self._size)
        assert self._initial is not None
        self._initial[...] = 0 if stacked is None else stacked

    def forward(self, batch: Batch) -> None:
        layer, prepared = self._layer, self._prepared
        self._pack()
        if batch is not self._batch:
            self._batch, self._saved, self._made = batch, [], []
        saved = self._saved
        for level in range(layer.num_layers):
            x, output = self._inputs[level], self._outputs[level]
            if level > 0 and layer.dropout > 0:
                self._masks[level] = mask = layer._dropout_mask(x.shape)
                np.multiply(self._outputs[level - 1], mask, out=x)
            for direction in layer._layers[level]:
                index = direction.index
                if index < len(saved):
                    direction.forward_again(batch, saved[index])
                    continue
                made = direction.forward(
                    prepared[index],
                    batch,
                    *(x, self._initial, output, self._final),
                    keep=True,
                    kept=self._kept[index],
                )
                assert made is not None
                saved.append(made)
        if self._joined:
            np.concatenate(list(self._last), axis=-1, out=self.output)

    def _pack(self) -> None:
        """Pack the parameters as they are now."""
        layer = self._layer
        if self._packed_from is not layer._vector:
            self._find_parameters()
        for pack in self._packings:
            pack()

    def _find_parameters(self) -> None:
        layer = self._layer
        self._packed_from, self._packings = layer._vector, []
        for direction in layer._directions:
            places = layer._places(layer._vector, direction)
            constants = (layer._unit_constant, layer._peepholes(direction))
            if direction.index == len(self._prepared):
                self._prepared.append(direction.prepare(places, *constants, transposed=True))
            prepared = self._prepared[direction.index]
            self._packings += direction.packings(prepared, places, *constants)

    def backward(self) -> None:
        layer, batch = self._layer, self._batch
        assert batch is not None
        if self._joined:
            parts = self.d_output.reshape(batch.size, 2, layer.hidden_size)
            self._d_last[...] = parts.swapaxes(0, 1)
        if not self._made:
            self._made = [self._for_backward(batch, direction) for direction in layer._directions]
        for level in reversed(range(layer.num_layers)):
            target = self._d_x if level == 0 else self._d_outputs[level - 1]
            for number, direction in enumerate(layer._layers[level]):
                given, made = self._made[direction.index]
                part = given[3]
                direction.run_backward(batch, self._saved[direction.index], given, made)
                if number > 0 and target is not None and part is not None:
                    np.add(target, part, out=target)
            mask = self._masks[level]
            if mask is not None and target is not None:
                np.multiply(target, mask, out=target)

    def _for_backward(self, batch: Batch, direction: Direction) -> tuple[Given, Made]:
        layer = self._layer
        level, number = divmod(direction.index, layer.num_directions)
        target = self._d_x if level == 0 else self._d_outputs[level - 1]
        if number > 0 and target is not None:  # it is added to that of the other direction
            target = aligned_empty(target.shape)
        given = (self._d_outputs[level], self._d_final, self._d_initial, target, None)
        saved = self._saved[direction.index]
        places = layer._places(self._vector, direction)
        return given, direction.arrays_of_backward(batch, saved, given, places)

    def initial_gradient(self) -> State:
        assert self._d_initial is not None
        return self._layer._states_out(self._d_initial)


class _SteadyDense:
    """A read-out over so many rows.

    Parameters
    ----------
    dense : Dense
    x : ndarray, shape (..., input_size)
    d_x : ndarray
        Where the gradient of `x` goes.
    vector : ndarray
        Where the gradients of the parameters go.
    """

    def __init__(
        self, dense: Dense, x: np.ndarray, d_x: np.ndarray | None, vector: np.ndarray
    ) -> None:
        self._dense = dense
        shape = (*x.shape[:-1], dense.output_size)
        self.output, self.d_output = np.empty(shape, FLOAT32), np.empty(shape, FLOAT32)
        self.nbytes = self.output.nbytes + self.d_output.nbytes
        self._activation, self._derivative = ACTIVATIONS[dense.activation]
        # Before the activation, which may be none.
        self._z, self._d_z = self.output, self.d_output
        if dense.activation != "identity":
            self._z, self._d_z = np.empty(shape, FLOAT32), np.empty(shape, FLOAT32)
        rows, d_rows = _rows(x), None if d_x is None else _rows(d_x)
        z, d_z = _rows(self._z), _rows(self._d_z)
        self._arrays = (rows, d_rows, z, d_z, vector)  # kept alive
        d_weight = address(vector)
        d_bias = d_weight + 4 * dense.output_size * dense.input_size if dense.bias else 0
        self._small = dense._is_small(len(rows))
        if self._small:
            sizes = (len(rows), dense.input_size, dense.output_size)
            self._x, self._results = address(rows), (address(z), *sizes)
            self._d_first = (address(rows), address(d_z))
            self._d_results = (d_weight, d_bias, address(d_rows), *sizes)
            return
        self._panel = pack_affine(*self._weights())
        self._map = AffineMap(rows, z, *self._panel)
        self._gradients = AffineGradients(rows, d_z, d_weight, d_bias)
        self._back = None
        if d_rows is not None:
            self._panel_t = pack_affine(self._weights()[0].T, None)
            self._back = AffineMap(d_z, d_rows, *self._panel_t)

    def _weights(self) -> tuple[np.ndarray, np.ndarray | None]:
        dense = self._dense
        size = dense.output_size * dense.input_size
        weight = dense._vector[:size].reshape(dense.output_size, dense.input_size)
        return weight, dense._vector[size:] if dense.bias else None

    def forward(self, batch: Batch) -> None:
        dense = self._dense
        if self._small:
            weight = address(dense._vector)
            bias = weight + 4 * dense.output_size * dense.input_size if dense.bias else 0
            small_affine.dispatcher(self._x, weight, bias, *self._results)
        else:
            pack_affine(*self._weights(), self._panel)
            self._map.run()
        if self._z is not self.output:
            _rows(self.output)[...] = self._activation(_rows(self._z))

    def backward(self) -> None:
        if self._d_z is not self.d_output:
            self._d_z[...] = self._derivative(self.d_output, self.output)
        if self._small:
            weight = address(self._dense._vector)
            small_affine_gradients.dispatcher(*self._d_first, weight, *self._d_results)
            return
        self._gradients.run()
        if self._back is not None:
            pack_affine(self._weights()[0].T, None, self._panel_t)
            self._back.run()


def _rows(array: np.ndarray) -> np.ndarray:
    """Return a view with all axes but the last as one."""
    return array.reshape(-1, array.shape[-1])
