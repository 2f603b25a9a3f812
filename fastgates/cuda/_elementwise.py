"""Small kernels over whole arrays: layouts, masks, activations, scaling.

Each walks its array with a stride of the whole grid, so that one shape of launch serves any size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .. import _vecmath
from ._device import SIMULATED, cuda, device_function, launch, on_device

__all__ = [
    "ACTIVATIONS",
    "SCALE",
    "SCALE_GRADIENT",
    "UNSCALE",
    "UNSCALE_GRADIENT",
    "activate",
    "activate_backward",
    "add_to_top",
    "clear",
    "gather",
    "mask_past_end",
    "scale",
    "softmax",
    "softmax_backward",
    "take_states",
    "take_top",
    "weigh",
]

ZERO, ONE = np.float32(0), np.float32(1)

_THREADS = 4 if SIMULATED else 256  # the simulator starts a Python thread for each
_MOST_BLOCKS = 1 if SIMULATED else 2048


def _launch(kernel: Any, count: int, stream: Any, *arguments: Any) -> None:
    if count:
        blocks = min(_MOST_BLOCKS, -(-count // _THREADS))
        launch(kernel, blocks, _THREADS, stream, *arguments)


@lru_cache(maxsize=1)
def gather_kernel() -> Any:
    """Return the kernel that fills an array by two maps, -1 standing for zero."""

    def gather_places(source, places, target):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), target.size, cuda.gridsize(1)):
            value = ZERO
            if places[0, i] >= 0:
                value = source[places[0, i]]
            if places[1, i] >= 0:
                value += source[places[1, i]]
            target[i] = value

    return cuda.jit(gather_places)


def gather(source: Any, places: Any, target: Any, stream: Any) -> None:
    """Fill `target` with the sums of two numbers of `source`, at ``places`` (2, n)."""
    _launch(gather_kernel(), target.size, stream, source, places, target)


@lru_cache(maxsize=1)
def clear_kernel() -> Any:
    """Return the kernel that sets a flat array to 0."""

    def clear_array(target):  # type: ignore[no-untyped-def]
        for i in range(cuda.grid(1), target.size, cuda.gridsize(1)):
            target[i] = ZERO

    return cuda.jit(clear_array)


def clear(target: Any, stream: Any) -> None:
    """Set an array to 0."""
    _launch(clear_kernel(), target.size, stream, target.reshape(target.size))


@lru_cache(maxsize=1)
def mask_kernel() -> Any:
    """Return the kernel that copies rows (B, T, W) and sets those past an end to 0."""

    def mask_rows(source, lengths, target):  # type: ignore[no-untyped-def]
        time, width = source.shape[1], source.shape[2]
        for i in range(cuda.grid(1), source.size, cuda.gridsize(1)):
            row = i // width
            k = i - row * width
            b = row // time
            t = row - b * time
            value = ZERO
            if t < lengths[b]:
                value = source[b, t, k]
            target[b, t, k] = value

    return cuda.jit(mask_rows)


def mask_past_end(source: Any, lengths: Any, target: Any, stream: Any) -> None:
    """Copy (B, T, W) to `target`, with 0 in the steps past the end of a sequence."""
    _launch(mask_kernel(), source.size, stream, source, lengths, target)


@lru_cache(maxsize=1)
def weigh_kernel() -> Any:
    """Return the kernel that multiplies rows (B, T, W) with a mask (B, T or 1, W)."""

    def weigh_rows(source, mask, target):  # type: ignore[no-untyped-def]
        time, width = source.shape[1], source.shape[2]
        for i in range(cuda.grid(1), source.size, cuda.gridsize(1)):
            row = i // width
            k = i - row * width
            b = row // time
            t = row - b * time
            target[b, t, k] = source[b, t, k] * mask[b, min(t, mask.shape[1] - 1), k]

    return cuda.jit(weigh_rows)


def weigh(source: Any, mask: Any, target: Any, stream: Any) -> None:
    """Multiply (B, T, W) with a mask (B, T, W) or, the same at all steps, (B, 1, W)."""
    _launch(weigh_kernel(), source.size, stream, source, mask, target)


@lru_cache(maxsize=2)
def top_kernel(add: bool) -> Any:
    """Return the kernel between last outputs (B, D * H) and hidden states of the top layer."""

    def top(states, outputs, first):  # type: ignore[no-untyped-def]
        batch, hidden = states.shape[2], states.shape[3]
        width = outputs.shape[1]
        for i in range(cuda.grid(1), batch * width, cuda.gridsize(1)):
            b = i // width
            k = i - b * width
            direction = k // hidden
            if add:
                states[0, first + direction, b, k - direction * hidden] += outputs[b, k]
            else:
                outputs[b, k] = states[0, first + direction, b, k - direction * hidden]

    return cuda.jit(top)


def take_top(states: Any, outputs: Any, first: int, stream: Any) -> None:
    """Copy the hidden states (N, L, B, H) from number `first` on to last outputs (B, D * H)."""
    _launch(top_kernel(False), outputs.size, stream, states, outputs, first)


def add_to_top(states: Any, outputs: Any, first: int, stream: Any) -> None:
    """Add the gradient of last outputs (B, D * H) to that of the hidden states (N, L, B, H)."""
    _launch(top_kernel(True), outputs.size, stream, states, outputs, first)


# -- Activations of the read-out ------------------------------------------------------------------


@device_function
def _identity(z):  # type: ignore[no-untyped-def]
    return z


@device_function
def _identity_slope(y):  # type: ignore[no-untyped-def]
    return ONE


@device_function
def _tanh_slope(y):  # type: ignore[no-untyped-def]
    return ONE - y * y


@device_function
def _sigmoid_slope(y):  # type: ignore[no-untyped-def]
    return y * (ONE - y)


@device_function
def _relu_slope(y):  # type: ignore[no-untyped-def]
    return ONE if y > ZERO else ZERO


ACTIVATIONS = {
    "identity": (_identity, _identity_slope),
    "tanh": (on_device(_vecmath.tanh), _tanh_slope),
    "sigmoid": (on_device(_vecmath.sigmoid), _sigmoid_slope),
    "relu": (on_device(_vecmath.relu), _relu_slope),
    "softmax": (_identity, _identity_slope),  # rows of it have kernels of their own
}
"""Each activation, and its slope where its value is given."""


@lru_cache(maxsize=8)
def activate_kernel(name: str) -> Any:
    """Return the kernel of bias and activation, over rows (1, rows, W) in place."""
    function = ACTIVATIONS[name][0]

    def activate_rows(z, weights, bias, has_bias):  # type: ignore[no-untyped-def]
        width = z.shape[2]
        for i in range(cuda.grid(1), z.size, cuda.gridsize(1)):
            row = i // width
            k = i - row * width
            value = z[0, row, k]
            if has_bias:
                value += weights[bias + k]
            z[0, row, k] = function(value)

    return cuda.jit(activate_rows)


def activate(name: str, z: Any, weights: Any, bias: int, stream: Any) -> None:
    """Add a bias, which begins at ``weights[bias]`` or is absent (-1), and apply an activation."""
    _launch(activate_kernel(name), z.size, stream, z, weights, max(bias, 0), int(bias >= 0))
    if name == "softmax":
        softmax(z, stream)


@lru_cache(maxsize=8)
def activate_backward_kernel(name: str) -> Any:
    """Return the kernel of the gradient of an activation's argument."""
    slope = ACTIVATIONS[name][1]

    def activate_rows_backward(d_y, y, d_z):  # type: ignore[no-untyped-def]
        width = y.shape[2]
        for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
            row = i // width
            k = i - row * width
            d_z[0, row, k] = d_y[0, row, k] * slope(y[0, row, k])

    return cuda.jit(activate_rows_backward)


def activate_backward(name: str, d_y: Any, y: Any, d_z: Any, stream: Any) -> None:
    """Write the gradient of an activation's argument to `d_z`; all (1, rows, W)."""
    if name == "softmax":
        softmax_backward(d_y, y, d_z, stream)
    else:
        _launch(activate_backward_kernel(name), y.size, stream, d_y, y, d_z)


@lru_cache(maxsize=1)
def softmax_kernel() -> Any:
    """Return the kernel of the softmax of rows (1, rows, W), in place, a thread for each row."""
    exp_of_minus = device_function(_exp_of_minus)

    def softmax_rows(z):  # type: ignore[no-untyped-def]
        for row in range(cuda.grid(1), z.shape[1], cuda.gridsize(1)):
            largest = z[0, row, 0]
            for k in range(1, z.shape[2]):
                largest = max(largest, z[0, row, k])
            total = ZERO
            for k in range(z.shape[2]):
                value = exp_of_minus(largest - z[0, row, k])
                z[0, row, k] = value
                total += value
            for k in range(z.shape[2]):
                z[0, row, k] = z[0, row, k] / total

    return cuda.jit(softmax_rows)


_exp_parts = on_device(_vecmath._exp_parts)
_HIGH = _vecmath._HIGH


def _exp_of_minus(t):  # type: ignore[no-untyped-def]
    """Return ``exp(-t)`` for ``t >= 0``, by the parts that tanh and sigmoid are made of."""
    power, q = _exp_parts(min(t, _HIGH))
    return power * (ONE - q)


def softmax(z: Any, stream: Any) -> None:
    """Apply the softmax to the rows of (1, rows, W), in place."""
    _launch(softmax_kernel(), z.shape[1], stream, z)


@lru_cache(maxsize=1)
def softmax_backward_kernel() -> Any:
    """Return the kernel of the gradient of the softmax's argument, a thread for each row."""

    def softmax_rows_backward(d_y, y, d_z):  # type: ignore[no-untyped-def]
        for row in range(cuda.grid(1), y.shape[1], cuda.gridsize(1)):
            total = ZERO
            for k in range(y.shape[2]):
                total += d_y[0, row, k] * y[0, row, k]
            for k in range(y.shape[2]):
                d_z[0, row, k] = y[0, row, k] * (d_y[0, row, k] - total)

    return cuda.jit(softmax_rows_backward)


def softmax_backward(d_y: Any, y: Any, d_z: Any, stream: Any) -> None:
    """Write the gradient of the softmax's argument to `d_z`; all (1, rows, W)."""
    _launch(softmax_backward_kernel(), y.shape[1], stream, d_y, y, d_z)


# -- Scaling --------------------------------------------------------------------------------------

SCALE, UNSCALE, SCALE_GRADIENT, UNSCALE_GRADIENT = range(4)


@lru_cache(maxsize=1)
def scale_kernel() -> Any:
    """Return the kernel of ``Scaling`` and its gradient over rows (1, rows, W)."""

    def scale_rows(source, numbers, target, kind):  # type: ignore[no-untyped-def]
        width = source.shape[2]
        for i in range(cuda.grid(1), source.size, cuda.gridsize(1)):
            row = i // width
            k = i - row * width
            value, mean, by = source[0, row, k], numbers[k], numbers[width + k]
            if kind == SCALE:
                value = (value - mean) / by
            elif kind == UNSCALE:
                value = value * by + mean
            elif kind == SCALE_GRADIENT:
                value = value / by
            else:
                value = value * by
            target[0, row, k] = value

    return cuda.jit(scale_rows)


def scale(source: Any, numbers: Any, target: Any, kind: int, stream: Any) -> None:
    """Scale rows (1, rows, W); `numbers` holds W means and then W scales."""
    _launch(scale_kernel(), source.size, stream, source, numbers, target, kind)


@lru_cache(maxsize=1)
def states_kernel() -> Any:
    """Return the kernel that collects the states after a step from what a tape keeps."""

    def states_after(output, column, cells, t, states, direction):  # type: ignore[no-untyped-def]
        batch, hidden = states.shape[2], states.shape[3]
        size = batch * hidden
        for i in range(cuda.grid(1), states.shape[0] * size, cuda.gridsize(1)):
            state = i // size
            b = (i - state * size) // hidden
            k = i - state * size - b * hidden
            if state == 0:
                states[0, direction, b, k] = output[b, t, column + k]
            else:
                states[state, direction, b, k] = cells[b, t, (state - 1) * hidden + k]

    return cuda.jit(states_after)


def take_states(
    output: Any, column: int, cells: Any, t: int, states: Any, direction: int, stream: Any
) -> None:
    """Copy the states after step `t` to ``states[:, direction]``, (N, L, B, H)."""
    count = states.shape[0] * states.shape[2] * states.shape[3]
    _launch(states_kernel(), count, stream, output, column, cells, t, states, direction)
