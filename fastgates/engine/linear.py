"""Affine maps of rows, ``y = x A^T + b``, on the same tile as everything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._jit import STAMP, helper, kernel
from .._simd import LANES, float_pointer
from .._threads import SMALL_WORK, get_num_threads, run
from .call import address
from .forward import store_row
from .gradients import weight_gradient_panels
from .pack import n_blocks_of
from .tile import for_each, load_tile, product, scaled, walk

__all__ = ["affine", "affine_gradients", "pack_affine"]

_FIELDS = ("x", "y", "panel", "bias", "n_inputs", "n_outputs")
_CALL = np.dtype([(name, np.int64) for name in _FIELDS])
_ROWS = 256  # a range


@helper
def _store_outputs(vectors, row, block, a):
    call, begin = a
    size = call.n_outputs
    store_row(float_pointer(call.y), (begin + row) * size, block, size, vectors[0])


@helper
def _affine_tile(rows, blocks, a):
    call, begin = a
    size = call.n_inputs
    x = float_pointer(call.x + 4 * begin * size)
    tile = load_tile(float_pointer(call.bias), scaled(rows, 0), scaled(blocks, LANES), (0,))
    panel = float_pointer(call.panel)
    tile = product(tile, x, scaled(rows, size), 1, panel, scaled(blocks, size * LANES), LANES, size)
    for_each(_store_outputs, tile, rows, blocks, a)


@kernel
def affine_rows(calls, begin, end, stamp=STAMP):
    """Map the rows begin ... end."""
    call = calls[0]
    n_blocks = (call.n_outputs + LANES - 1) // LANES
    walk(end - begin, n_blocks, (0,), _affine_tile, (call, begin))


def pack_affine(weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Pack a weight matrix (outputs, inputs) as ``[block][input][lane]``, and its bias.

    Returns
    -------
    panel, bias : ndarray
        Padded with zeros.
    """
    n_outputs, n_inputs = weight.shape
    n_blocks = n_blocks_of(n_outputs)
    padded = np.zeros((n_blocks * LANES, n_inputs), np.float32)
    padded[:n_outputs] = weight
    packed_bias = np.zeros(n_blocks * LANES, np.float32)
    if bias is not None:
        packed_bias[:n_outputs] = bias
    panel = padded.reshape(n_blocks, LANES, n_inputs).transpose(0, 2, 1)
    return np.ascontiguousarray(panel), packed_bias


def affine(
    x: np.ndarray, panel: np.ndarray, bias: np.ndarray, n_inputs: int, n_outputs: int
) -> np.ndarray:
    """Return the map of rows (N, inputs), float32 of shape (N, outputs)."""
    n_rows = len(x)
    y = np.empty((n_rows, n_outputs), np.float32)
    fields = (address(x), address(y), address(panel), address(bias), n_inputs, n_outputs)
    call = np.array(fields, np.int64).view(_CALL)
    threads = 1 if n_rows * n_inputs * n_outputs < SMALL_WORK else get_num_threads()

    def make_worker() -> Callable[[int], None]:
        return lambda i: affine_rows(call, i * _ROWS, min(n_rows, (i + 1) * _ROWS))

    run(make_worker, -(-n_rows // _ROWS), threads)
    return y


def affine_gradients(x: np.ndarray, d_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of the weight (outputs, inputs) and of the bias (outputs,)."""
    (n_rows, n_inputs), n_outputs = x.shape, d_y.shape[1]
    if n_rows == 0:
        return np.zeros((n_outputs, n_inputs), np.float32), np.zeros(n_outputs, np.float32)
    n_blocks = n_blocks_of(n_outputs)
    padded = np.zeros((n_rows, n_blocks * LANES), np.float32)
    padded[:, :n_outputs] = d_y
    order, lengths = np.zeros(1, np.int64), np.full(1, n_rows)
    fields = {
        "time": n_rows,
        "batch": 1,
        "input_size": n_inputs,
        "hidden_size": 0,
        "n_blocks": n_blocks,
        "n_slots": 1,
        "reverse": 0,
        "order": address(order),
        "lengths": address(lengths),
        "resets": 0,
        "x": address(x),
        "output": 0,
        "output_stride": 0,
        "initial": 0,
        "saved": address(padded),
        "sources": 0,
        "first_input": 0,
        "n_inputs": 1,
        "n_stage": 0,
        "n_stage_2": 0,
    }
    d_weight, _, _, d_bias = weight_gradient_panels(fields, n_rows * n_inputs * n_outputs)
    return d_weight[0, :n_outputs], d_bias[0, :n_outputs]
