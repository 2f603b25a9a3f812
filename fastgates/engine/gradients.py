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
from .call import FIELD, address, aligned_empty, place_scratch, record
from .forward import restarts_at, row_of_step
from .tile import for_each, product, scaled, walk, zero_tile

__all__ = ["run_weight_gradients", "weight_gradients"]

_BIAS_STEPS = 16  # summed alone, for small rounding errors in sums of many terms
_CHUNK_FLOATS = 64 * 1024  # of scratch, about half an L2 cache


@helper
def _copy(source, start, target, place, count):
    for k in range(count):
        target[place + k] = source[start + k]


@helper
def _gather_step(call, row, batch_row, step, count, first_block, n_owned):
    """Copy one step to row `count` of the chunk."""
    a, b = float_pointer(call.a), float_pointer(call.b)
    size, hidden = call.input_size, call.hidden_size
    start = count * call.a_stride
    _copy(float_pointer(call.x), row * size, a, start, size)
    if call.n_stage > 0:
        if restarts_at(call, row, step):
            if call.initial != 0:
                _copy(
                    float_pointer(call.initial),
                    batch_row * hidden,
                    a,
                    start + size,
                    hidden,
                )
            else:
                for k in range(hidden):
                    a[start + size + k] = ZERO
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
            target = count * call.b_stride + (slot * n_owned + block) * LANES
            store(b, target, load(saved, place + slot * LANES))


@helper
def _add_to_result(vectors, k, vector, a):
    result, count = a[0], a[1]
    place = (vector * count + k) * LANES
    store(result, place, load(result, place) + vectors[0])


@helper
def _gradient_tile(rows, groups, units, a):
    """Add the sums of a chunk for some columns of ``a`` and some vectors of ``b``."""
    result, n_columns, steps, columns, a_stride, vectors, b_stride = a
    tile = zero_tile(rows, groups, units)
    starts = scaled(groups, LANES)
    tile = product(tile, columns, rows, a_stride, vectors, starts, b_stride, steps)
    for_each(_add_to_result, tile, rows, groups, units, (result, n_columns))


@helper
def _add_biases(call, n_vectors, steps, result):
    b = float_pointer(call.b)
    for vector in range(n_vectors):
        total = splat(ZERO)
        for first in range(0, steps, _BIAS_STEPS):
            part = splat(ZERO)
            for step in range(first, min(steps, first + _BIAS_STEPS)):
                part = part + load(b, step * call.b_stride + vector * LANES)
            total = total + part
        store(result, vector * LANES, load(result, vector * LANES) + total)


@helper
def _scatter(call, panel, n_slots, columns, slot, gate, first_block, n_owned, target):
    """Write the owned units of one gate's weight gradient in PyTorch's layout."""
    source = float_pointer(panel + 4 * first_block * n_slots * columns * LANES)
    weights = float_pointer(target)
    for block in range(n_owned):
        start = (slot * n_owned + block) * columns * LANES
        for lane in range(LANES):
            unit = (first_block + block) * LANES + lane
            if unit < call.n_units:
                row = (gate * call.n_units + unit) * columns
                for k in range(columns):
                    weights[row + k] = source[start + k * LANES + lane]


@helper
def _scatter_all(call, first_block, n_owned):
    """Write the owned units of all results in PyTorch's layout, gate by gate."""
    for gate in range(call.n_inputs):
        slot = int_pointer(call.input_slots)[gate]
        recurrent_slot = int_pointer(call.recurrent_slots)[gate] if call.n_stage > 0 else slot
        for result in range(4):
            if result == 0:
                panel, target = call.d_input_panel, call.d_weight_ih
                place, n_slots, columns = slot - call.first_input, call.n_inputs, call.input_size
            elif result == 1:
                panel, target = call.d_panel, call.d_weight_hh
                place, n_slots, columns = recurrent_slot, call.n_stage, call.hidden_size
                if recurrent_slot >= call.n_stage:
                    panel = call.d_panel_2
                    place, n_slots = recurrent_slot - call.n_stage, call.n_stage_2
            else:
                panel, target = call.d_bias, call.d_bias_ih
                place, n_slots, columns = slot, call.n_slots, INT0 + 1
                if result == 3:
                    target, place = call.d_bias_hh, recurrent_slot
            if target != 0:
                _scatter(call, panel, n_slots, columns, place, gate, first_block, n_owned, target)


@kernel
def weight_gradients(calls, first_block, end_block, stamp=STAMP):
    """Compute the gradients of the weights of the blocks of units first_block ... end_block."""
    call = record(calls)
    n_owned = end_block - first_block
    size, hidden = call.input_size, call.hidden_size
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
                first, count, columns, offset = (
                    call.first_input,
                    call.n_inputs,
                    size,
                    INT0,
                )
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
                b = float_pointer(call.b + 4 * first * n_owned * LANES)
                walk(
                    columns,
                    count * n_owned,
                    (0,),
                    _gradient_tile,
                    (
                        float_pointer(result),
                        columns,
                        steps,
                        a,
                        call.a_stride,
                        b,
                        call.b_stride,
                    ),
                )
    _scatter_all(call, first_block, n_owned)


def _stride(size: int) -> int:
    """Return a row length of at least `size`: an odd number of cache lines.

    Then the rows of a column lie in different sets of the cache.
    """
    return (-(-size // 16) | 1) * 16


def run_weight_gradients(call: np.ndarray, steps: int) -> None:
    """Run the kernel over ranges of the blocks of units, for `steps` steps in all.

    `call` must have all but the fields from ``chunk`` to ``d_bias``.
    """
    names = (
        "input_size",
        "hidden_size",
        "n_blocks",
        "n_slots",
        "n_inputs",
        "n_stage",
        "n_stage_2",
    )
    size, hidden, n_blocks, n_slots, n_inputs, n_stage, n_stage_2 = (
        int(call[FIELD[name]]) for name in names
    )
    width = size + 2 * hidden
    chunk = 32
    while chunk < 256 and 2 * chunk * (width + n_slots * n_blocks * LANES) <= _CHUNK_FLOATS:
        chunk *= 2
    products = n_inputs * size + (n_stage + n_stage_2) * hidden
    work = steps * products * n_blocks * LANES
    threads = 1 if work < SMALL_WORK else min(get_num_threads(), n_blocks)
    bounds = [n_blocks * i // threads for i in range(threads + 1)]
    most = -(-n_blocks // threads)
    a_stride, b_stride = _stride(width), _stride(n_slots * most * LANES)
    columns = (n_inputs * size, n_stage * hidden, n_stage_2 * hidden, n_slots)
    results = aligned_empty(sum(columns) * n_blocks * LANES)
    results[:] = 0
    place = address(results)
    for name, count in zip(
        ("d_input_panel", "d_panel", "d_panel_2", "d_bias"), columns, strict=True
    ):
        call[FIELD[name]] = place
        place += 4 * count * n_blocks * LANES
    call[FIELD["chunk"]] = chunk
    call[FIELD["a_stride"]] = a_stride
    call[FIELD["b_stride"]] = b_stride

    def make_worker() -> Callable[[int], None]:
        mine = call.copy()
        place_scratch(mine, (("a", chunk * a_stride), ("b", chunk * b_stride)))

        def task(number: int, _keep: object = results) -> None:
            weight_gradients(mine, bounds[number], bounds[number + 1])

        return task

    run(make_worker, threads, threads)
