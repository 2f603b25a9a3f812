"""Weight gradients: sums over all steps of the batch, each output owned by one worker.

The gradient of a weight matrix is a product over all ``b * T + t``: what the matrix multiplied,
transposed, times the gradients of the slots. A worker owns some blocks of units and walks all steps
in the order of rows b and time t, in chunks whose size depends on the layer alone. So there are no
partial buffers to add up, no atomics, and the bits are the same for any number of threads.

Each chunk is first copied to compact scratch (``a``: inputs, states before the step, ones; ``b``:
gradients of the slots), which settles lengths, resets and directions once. Sums run over one chunk
from zero before they join the total, which keeps their rounding error small for long series.

One kernel serves every cell and :class:`fastgates.Dense`, since equations play no part in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._jit import INT0, STAMP, helper, kernel
from .._simd import LANES, float_pointer, int_pointer, load, splat, store
from .._threads import SMALL_WORK, get_num_threads, run
from .._vecmath import ZERO
from .call import address
from .forward import restarts_at, row_of_step
from .tile import for_each, product, scaled, walk, zero_tile

__all__ = ["weight_gradient_panels", "weight_gradients"]

_CHUNK_FLOATS = 64 * 1024  # of scratch, about half an L2 cache

_FIELDS = (
    "time",
    "batch",
    "input_size",
    "hidden_size",
    "n_blocks",
    "n_slots",
    "reverse",
    "order",  # int64 (B): rows of the batch in their own order, 0 ... B - 1
    "lengths",  # int64 (B): their lengths
    "resets",
    "x",
    "output",
    "output_stride",
    "initial",  # (B, H): the first state
    "saved",  # (B * T, S * Hp): now the gradients of the slots
    "sources",  # (B * T, Hp), or 0
    "first_input",  # slots of the products with x, with the state and with the sources
    "n_inputs",
    "n_stage",
    "n_stage_2",
    "chunk",  # steps a chunk
    "a",  # scratch (chunk, I + 2 H)
    "b",  # scratch [slot][block][chunk][lane]
    # results, [slot][block][k][lane] for the slots that each has
    "d_input_panel",
    "d_panel",
    "d_panel_2",
    "d_bias",  # [slot][block][lane]
)

_CALL = np.dtype([(name, np.int64) for name in _FIELDS])


def _make_call(**fields: int) -> np.ndarray:
    """Return a record array of one call; all fields must be given."""
    return np.array([fields[name] for name in _FIELDS], dtype=np.int64).view(_CALL)


@helper
def _copy(source, start, target, place, count):
    for k in range(count):
        target[place + k] = source[start + k]


@helper
def _gather_step(call, row, batch_row, step, count, first_block, n_owned):
    """Copy one step to row `count` of the chunk."""
    a, b = float_pointer(call.a), float_pointer(call.b)
    size, hidden = call.input_size, call.hidden_size
    start = count * (size + 2 * hidden)
    _copy(float_pointer(call.x), row * size, a, start, size)
    if call.n_stage > 0:
        if restarts_at(call, row, step):
            _copy(float_pointer(call.initial), batch_row * hidden, a, start + size, hidden)
        else:
            earlier = row + 1 if call.reverse else row - 1
            place = earlier * call.output_stride
            _copy(float_pointer(call.output), place, a, start + size, hidden)
    if call.n_stage_2 > 0:
        place = row * call.n_blocks * LANES
        _copy(float_pointer(call.sources), place, a, start + size + hidden, hidden)
    saved = float_pointer(call.saved)
    for block in range(n_owned):
        place = (row * call.n_blocks + first_block + block) * call.n_slots * LANES
        for slot in range(call.n_slots):
            target = ((slot * n_owned + block) * call.chunk + count) * LANES
            store(b, target, load(saved, place + slot * LANES))


@helper
def _add_to_result(vectors, k, vector, a):
    result, count = a[0], a[1]
    place = (vector * count + k) * LANES
    store(result, place, load(result, place) + vectors[0])


@helper
def _gradient_tile(rows, blocks, a):
    """Add the sums of a chunk for some columns of ``a`` and some vectors of ``b``."""
    result, n_columns, steps, columns, width, vectors, chunk = a
    tile = zero_tile(rows, blocks, (0,))
    starts = scaled(blocks, chunk * LANES)
    tile = product(tile, columns, rows, width, vectors, starts, LANES, steps)
    for_each(_add_to_result, tile, rows, blocks, (result, n_columns))


@helper
def _add_biases(call, n_vectors, steps, result):
    b = float_pointer(call.b)
    for vector in range(n_vectors):
        total = splat(ZERO)
        for step in range(steps):
            total = total + load(b, (vector * call.chunk + step) * LANES)
        store(result, vector * LANES, load(result, vector * LANES) + total)


@kernel
def weight_gradients(calls, first_block, end_block, stamp=STAMP):
    """Add up the gradients of the weights of the blocks of units first_block ... end_block.

    Results of a range of n blocks are laid out ``[slot][n][k][lane]`` from ``first_block`` times
    their size a block on.
    """
    call = calls[0]
    n_owned = end_block - first_block
    size, hidden = call.input_size, call.hidden_size
    width = size + 2 * hidden
    bias = float_pointer(call.d_bias + 4 * first_block * call.n_slots * LANES)
    lengths = int_pointer(call.lengths)
    batch_row, step = INT0, INT0
    while batch_row < call.batch:
        steps = INT0
        while batch_row < call.batch and steps < call.chunk:
            # Time runs forward here for both directions.
            length = lengths[batch_row]
            at = length - 1 - step if call.reverse else step
            row = row_of_step(call, batch_row, at)
            _gather_step(call, row, batch_row, at, steps, first_block, n_owned)
            steps += 1
            step += 1
            if step == length:
                batch_row += 1
                step = INT0
        _add_biases(call, call.n_slots * n_owned, steps, bias)
        for part in range(3):
            if part == 0:
                first, count, columns, offset = call.first_input, call.n_inputs, size, INT0
                result = call.d_input_panel
            elif part == 1:
                first, count, columns, offset = INT0, call.n_stage, hidden, size
                result = call.d_panel
            else:
                first, count, columns = call.n_stage, call.n_stage_2, hidden
                offset = size + hidden
                result = call.d_panel_2
            if count > 0:
                result += 4 * first_block * count * columns * LANES
                a = float_pointer(call.a + 4 * offset)
                b = float_pointer(call.b + 4 * first * n_owned * call.chunk * LANES)
                walk(
                    columns,
                    count * n_owned,
                    (0,),
                    _gradient_tile,
                    (float_pointer(result), columns, steps, a, width, b, call.chunk),
                )


def weight_gradient_panels(fields: dict[str, int], work: int) -> tuple[np.ndarray, ...]:
    """Run the kernel of weight gradients over ranges of the units' blocks.

    Returns
    -------
    d_inputs, d_stage, d_stage_2 : ndarray, shape (slots, Hp, columns)
    d_bias : ndarray, shape (S, Hp)
    """
    n_blocks, n_slots = fields["n_blocks"], fields["n_slots"]
    size, hidden = fields["input_size"], fields["hidden_size"]
    width = size + 2 * hidden
    chunk = 32
    while chunk < 256 and 2 * chunk * (width + n_slots * n_blocks * LANES) <= _CHUNK_FLOATS:
        chunk *= 2
    threads = 1 if work < SMALL_WORK else min(get_num_threads(), n_blocks)
    bounds = [n_blocks * i // threads for i in range(threads + 1)]
    shapes = (
        (fields["n_inputs"], size),
        (fields["n_stage"], hidden),
        (fields["n_stage_2"], hidden),
    )
    flat = [np.zeros(n_blocks * count * columns * LANES, np.float32) for count, columns in shapes]
    flat_bias = np.zeros(n_blocks * n_slots * LANES, np.float32)

    def make_worker() -> Callable[[int], None]:
        most = -(-n_blocks // threads)
        a = np.empty((chunk, width), np.float32)
        b = np.empty((n_slots * most, chunk, LANES), np.float32)
        names = ("d_input_panel", "d_panel", "d_panel_2")
        results = {name: address(array) for name, array in zip(names, flat, strict=True)}
        call = _make_call(
            **fields, **results, d_bias=address(flat_bias), chunk=chunk, a=address(a), b=address(b)
        )

        def task(number: int, _keep: object = (a, b)) -> None:
            weight_gradients(call, bounds[number], bounds[number + 1])

        return task

    run(make_worker, threads, threads)
    results = []
    for array, (count, columns) in zip((*flat, flat_bias), (*shapes, (n_slots, 1)), strict=True):
        whole = np.empty((count, n_blocks * LANES, columns), np.float32)
        for first, end in zip(bounds, bounds[1:], strict=False):
            part = array.reshape(n_blocks, -1)[first:end].reshape(
                count, end - first, columns, LANES
            )
            lanes = part.transpose(0, 1, 3, 2).reshape(count, (end - first) * LANES, columns)
            whole[:, first * LANES : end * LANES] = lanes
        results.append(whole)
    *weights, bias = results
    return (*weights, bias[..., 0])
