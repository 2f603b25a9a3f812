"""Affine maps of rows, ``y = x A^T + b``, on the same tile as everything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._jit import STAMP, helper, kernel
from .._simd import LANES, float_pointer
from .._threads import SMALL_WORK, get_num_threads, run
from .call import address, make_call, record
from .forward import store_row
from .gradients import run_weight_gradients
from .pack import grouped, n_blocks_of
from .tile import for_each, load_tile, product, scaled, walk

__all__ = ["affine", "affine_gradients", "pack_affine"]

_ROWS = 256  # a range


@helper
def _store_outputs(vectors, row, block, a):
    call, begin = a
    size = call.n_units
    store_row(float_pointer(call.output), (begin + row) * size, block, size, vectors[0])


@helper
def _affine_tile(rows, groups, units, a):
    call, begin = a
    size = call.input_size
    x = float_pointer(call.x + 4 * begin * size)
    bias = float_pointer(call.bias)
    tile = load_tile(bias, scaled(rows, 0), scaled(groups, LANES), units, LANES, (0,))
    starts = scaled(groups, size * LANES)
    step = len(units) * LANES
    tile = product(tile, x, scaled(rows, size), 1, float_pointer(call.panel), starts, step, size)
    for_each(_store_outputs, tile, rows, groups, units, a)


@kernel
def affine_rows(calls, begin, end, stamp=STAMP):
    """Map the rows begin ... end."""
    call = record(calls)
    n_blocks = (call.n_units + LANES - 1) // LANES
    walk(end - begin, n_blocks, (0,), _affine_tile, (call, begin))


def pack_affine(weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Pack a weight matrix (outputs, inputs) as a panel of one vector a block, and its bias.

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
    return grouped(
        padded.reshape(n_blocks, LANES, n_inputs).transpose(0, 2, 1)[:, :, None]
    ), packed_bias


def affine(
    x: np.ndarray, panel: np.ndarray, bias: np.ndarray, n_inputs: int, n_outputs: int
) -> np.ndarray:
    """Return the map of rows (N, inputs), float32 of shape (N, outputs)."""
    n_rows = len(x)
    y = np.empty((n_rows, n_outputs), np.float32)
    call = make_call(
        x=address(x),
        output=address(y),
        panel=address(panel),
        bias=address(bias),
        input_size=n_inputs,
        n_units=n_outputs,
    )
    threads = 1 if n_rows * n_inputs * n_outputs < SMALL_WORK else get_num_threads()

    def make_worker() -> Callable[[int], None]:
        return lambda i: affine_rows(call, i * _ROWS, min(n_rows, (i + 1) * _ROWS))

    run(make_worker, -(-n_rows // _ROWS), threads)
    return y


def affine_gradients(
    x: np.ndarray, d_y: np.ndarray, d_weight: np.ndarray, d_bias: np.ndarray | None
) -> None:
    """Fill the gradients of the weight (outputs, inputs) and of the bias (outputs,)."""
    (n_rows, n_inputs), n_outputs = x.shape, d_y.shape[1]
    n_blocks = n_blocks_of(n_outputs)
    padded = np.zeros((n_rows, n_blocks * LANES), np.float32)
    padded[:, :n_outputs] = d_y
    order, lengths = np.zeros(1, np.int64), np.full(1, n_rows)
    call = make_call(
        time=n_rows,
        batch=1 if n_rows else 0,
        input_size=n_inputs,
        n_units=n_outputs,
        n_blocks=n_blocks,
        n_slots=1,
        n_inputs=1,
        order=address(order),
        lengths=address(lengths),
        input_slots=address(order),
        x=address(x),
        saved=address(padded),
        d_weight_ih=address(d_weight),
        d_bias_ih=address(d_bias),
    )
    run_weight_gradients(call, n_rows)
