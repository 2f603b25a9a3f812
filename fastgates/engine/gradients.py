"""Weight gradients: sums over all steps of the batch, each output owned by one worker.

The gradient of a weight matrix is a product over all steps of the batch: what the matrix
multiplied, transposed, times the gradients of the slots. A worker owns some blocks of units and
walks the steps from the last to the first, at each step the batch from the longest sequence on, in
chunks of a fixed size. So there are no partial buffers to add up, no atomics, and the bits are the
same for any number of threads. They are also the same for any pieces that time is cut into: a chunk
that a piece leaves half full waits for the next one.

Each chunk is first copied to compact scratch (``a``: inputs, states before the step, sources;
``b``: gradients of the slots), which settles lengths, resets and directions once. Sums run over one
chunk from zero before they join the total, which keeps their rounding error small for long series.

One kernel serves every cell and :class:`fastgates.Dense`, since equations play no part in it.
"""

from __future__ import annotations

import numpy as np

from .._jit import INT0, STAMP, helper, kernel
from .._simd import (
    LANES,
    float_pointer,
    int_pointer,
    load,
    load_first,
    prefetch,
    splat,
    store,
    store_first,
)
from .._threads import Tasks
from .._vecmath import ZERO
from .call import FIELD, N_ALIKE, N_FIELDS, ONE_AT, Scratch, address, aligned_empty, record
from .forward import kept_row, load_row, restarts_at, row_of_step
from .multiply import GROUP, call_multiply

__all__ = ["GradientPlan", "WeightGradients", "weight_gradients"]

_HAS_SUMS = 1 << 32  # more than there are rows in a chunk
_HAS_STATES = 2 * _HAS_SUMS
_SUMS = FIELD["sums"]
_N_PASSED = FIELD["chunk"]  # fields that change from piece to piece are among these
_BIAS_STEPS = 16  # summed alone, for small rounding errors in sums of many terms
_STEP = GROUP * LANES  # from one column of the results to the next
_PART_FLOATS = 384 * 1024  # of results and scratch of a part: most of an L2 cache
_CHUNK = 96  # steps: four vectors of each fit into the L1 cache, beside numbers to multiply with


@helper
def _copy(source, start, target, place, count, ahead):
    """Copy `count` floats, padded with zeros, and ask for those that lie `ahead` of them."""
    k = INT0
    while k + LANES <= count:
        store(target, place + k, load(source, start + k))
        prefetch(source, start + k + ahead)
        k += LANES
    if k < count:
        store(target, place + k, load_first(source, start + k, count - k))


@helper
def _gather_unit_weights(call, position, step, count, first_block, n_owned):
    """Add to row `count` of ``b`` what the weights of units on their own states get of one step.

    That is the gradient of the slot times the state. So they are further columns that are summed
    like the biases.
    """
    width, owned = call.n_blocks * LANES, n_owned * LANES
    kept, row = kept_row(call, position, step), row_of_step(call, position, step)
    slots, target = float_pointer(call.saved), float_pointer(call.b)
    start = kept * call.slot_row + first_block * LANES
    for weight in range(call.n_unit_weights):
        slot = int_pointer(call.unit_weights)[3 * weight]
        state = int_pointer(call.unit_weights)[3 * weight + 1]
        size, place = width, INT0
        if int_pointer(call.unit_weights)[3 * weight + 2] != 0:
            source = call.cells + 4 * (kept * call.n_others + state - 1) * width
        elif restarts_at(call, row, step):
            source = call.nothing
            if call.initial != 0:
                source, size = call.initial, call.hidden_size
                place = state * call.state_stride
                place += int_pointer(call.order)[position] * call.hidden_size
        elif step == call.kept_step:
            source = call.carried + 4 * (state * call.batch + position) * width
        else:
            earlier = kept_row(call, position, step - 1)
            source = call.cells + 4 * (earlier * call.n_others + state - 1) * width
        states = float_pointer(source)
        for k in range(0, owned, LANES):
            value = load_row(states, place, first_block * LANES + k, size)
            column = count * call.b_stride + (call.n_slots + weight) * owned + k
            store(target, column, load(slots, start + slot * width + k) * value)


@helper
def _gather_step(call, position, step, count, first_block, n_owned):
    """Copy one step of one sequence to row `count` of the chunk; return 0 if its state was 0."""
    row = row_of_step(call, position, step)
    kept = kept_row(call, position, step)
    width = call.n_blocks * LANES
    a = float_pointer(call.a)
    size, hidden = call.input_size, call.hidden_size
    start = count * call.a_stride
    # The next round copies the step before this one.
    ahead = INT0 + 1 if call.reverse else INT0 - 1
    _copy(float_pointer(call.x), row * size, a, start, size, ahead * size)
    if call.n_stage > 0:
        if restarts_at(call, row, step):
            if call.initial != 0:
                source, place = call.initial, int_pointer(call.order)[position] * hidden
            else:
                source, place = call.nothing, INT0
        elif step == call.kept_step:
            source, place = call.carried, position * width
        else:
            earlier = row + 1 if call.reverse else row - 1
            source, place = call.output, earlier * call.output_stride
        skip = ahead * call.output_stride
        _copy(float_pointer(source), place, a, start + size, hidden, skip)
    if call.n_stage_2 > 0:
        sources, skip = float_pointer(call.sources), -call.batch * width
        _copy(sources, kept * width, a, start + size + hidden, hidden, skip)
    owned = n_owned * LANES
    saved = float_pointer(call.saved + 4 * (kept * call.slot_row + first_block * LANES))
    target = float_pointer(call.b + 4 * count * call.b_stride)
    for slot in range(call.n_slots):
        for k in range(0, owned, LANES):
            store(target, slot * owned + k, load(saved, slot * width + k))
            prefetch(saved, slot * width + k - call.batch * call.slot_row)
    if call.n_unit_weights > 0:
        _gather_unit_weights(call, position, step, count, first_block, n_owned)
    return 0 if call.initial == 0 and restarts_at(call, row, step) else 1


@helper
def _add_products(call, n_owned, steps, first_part, end_part, joins):
    """Add the products of a chunk to some of the results: for the inputs 0, for the states 1, 2."""
    size, hidden, offset = call.input_size, call.hidden_size, INT0
    for part in range(first_part, end_part):
        if part == 0:
            first, count, columns, result = (
                call.first_input,
                call.n_inputs,
                size,
                call.d_input_panel,
            )
        elif part == 1:
            first, count, columns, result = INT0, call.n_stage, hidden, call.d_panel
            offset = size
        else:
            first, count, columns, result = call.n_stage, call.n_stage_2, hidden, call.d_panel_2
            offset = size + hidden
        if count > 0:
            call_multiply(
                call.multiply,
                (columns, count * n_owned, steps),
                (call.a + 4 * offset, 0, 1, call.a_stride),
                (call.b + 4 * first * n_owned * LANES, call.b_stride),
                (result, 0, _STEP, columns * _STEP),
                (call.nothing, 0, 0),
                joins,
                (1, 0),
            )


@helper
def _add_biases(call, n_vectors, steps, joins):
    """Add the sums of the slots' gradients, a few steps at a time: products with a row of ones."""
    first = INT0
    while True:
        call_multiply(
            call.multiply,
            (1, n_vectors, min(steps - first, _BIAS_STEPS)),
            (call.one, 0, 0, 0),
            (call.b + 4 * first * call.b_stride, call.b_stride),
            (call.d_bias, 0, 0, 0),
            (call.nothing, 0, 0),
            joins,
            (1, 0),
        )
        joins = INT0 + 1
        first += _BIAS_STEPS
        if first >= steps:
            break


@helper
def _scatter(call, panel, columns, slot, gate, first_block, n_owned, target):
    """Write the owned units of one gate's weight gradient in PyTorch's layout."""
    source, weights = float_pointer(panel), float_pointer(target)
    for block in range(n_owned):
        first_unit = (first_block + block) * LANES
        n_units = min(call.n_units - first_unit, INT0 + LANES)
        vector = slot * n_owned + block
        start = vector // GROUP * columns * _STEP + vector % GROUP * LANES
        # A few columns at a time, so that what is read stays in the cache.
        for first in range(0, columns, LANES):
            end = min(first + LANES, columns)
            for lane in range(n_units):
                row = (gate * call.n_units + first_unit + lane) * columns
                for k in range(first, end):
                    weights[row + k] = source[start + k * _STEP + lane]


@helper
def _fill_with_zeros(call, columns, gate, first_block, n_owned, target):
    """Write the owned units of one gate's weight gradient where nothing was summed."""
    first, end = first_block * LANES, min((first_block + n_owned) * LANES, call.n_units)
    weights, start = float_pointer(target), (gate * call.n_units + first) * columns
    k, count = INT0, (end - first) * columns
    while k + LANES <= count:
        store(weights, start + k, splat(ZERO))
        k += LANES
    if k < count:
        store_first(weights, start + k, count - k, splat(ZERO))


@helper
def _scatter_all(call, first_block, n_owned, has_states):
    """Write the owned units of all results in PyTorch's layout, gate by gate."""
    for gate in range(call.n_inputs):
        slot = int_pointer(call.input_slots)[gate]
        recurrent_slot = int_pointer(call.recurrent_slots)[gate] if call.n_stage > 0 else slot
        for result in range(4):
            if result == 0:
                panel, target = call.d_input_panel, call.d_weight_ih
                place, columns = slot - call.first_input, call.input_size
            elif result == 1:
                panel, target = call.d_panel, call.d_weight_hh
                place, columns = recurrent_slot, call.hidden_size
                if recurrent_slot >= call.n_stage:
                    panel, place = call.d_panel_2, recurrent_slot - call.n_stage
            else:
                panel, target = call.d_bias, call.d_bias_ih
                place, columns = slot, INT0 + 1
                if result == 3:
                    target, place = call.d_bias_hh, recurrent_slot
            if result == 1 and has_states == 0 and target != 0:
                _fill_with_zeros(call, columns, gate, first_block, n_owned, target)
            elif target != 0:
                _scatter(call, panel, columns, place, gate, first_block, n_owned, target)
    for weight in range(call.n_unit_weights):
        slot, target = call.n_slots + weight, call.d_unit_weights
        _scatter(call, call.d_bias, INT0 + 1, slot, weight, first_block, n_owned, target)


@kernel
def weight_gradients(calls, first_block, end_block, stamp=STAMP):
    """Add a piece to the gradients of the weights of the blocks of units first_block ... end_block.

    Pieces come from the last to the first, which also writes the results. The call holds how a
    piece left the sums for the next one: the rows of the chunk that wait in the scratch, and
    ``_HAS_SUMS`` and ``_HAS_STATES`` if there were chunks before, and such with states other than
    zero. It is 0 to begin with, and in the end.
    """
    call = record(calls)
    state = call.sums
    n_owned = end_block - first_block
    lengths = int_pointer(call.lengths)
    steps = state % _HAS_SUMS
    joins, joins_states = state // _HAS_SUMS % 2, state // _HAS_STATES
    position, step = INT0, call.end_step - 1
    states = steps  # those that wait may have had any
    while True:
        while step >= call.first_step and steps < call.chunk:
            if position < call.batch and lengths[position] > step:
                states += _gather_step(call, position, step, steps, first_block, n_owned)
                steps += 1
                position += 1
            else:
                position = INT0
                step -= 1
        if steps < call.chunk and (call.first_step > 0 or (steps == 0 and joins != 0)):
            break
        _add_biases(call, (call.n_slots + call.n_unit_weights) * n_owned, steps, joins)
        _add_products(call, n_owned, steps, INT0, INT0 + 1, joins)
        if states > 0:
            _add_products(call, n_owned, steps, INT0 + 1, INT0 + 3, joins_states)
            joins_states = INT0 + 1
        joins, steps, states = INT0 + 1, INT0, INT0
    state = joins_states * _HAS_STATES + joins * _HAS_SUMS + steps
    if call.first_step == 0:
        _scatter_all(call, first_block, n_owned, joins_states)
        state = INT0
    int_pointer(calls.ctypes.data)[_SUMS] = state


def _stride(size: int) -> int:
    """Return a row length of at least `size`: an odd number of cache lines.

    Then the rows of a column lie in different sets of the cache.
    """
    return (-(-size // 16) | 1) * 16


class GradientPlan:
    """How the weight gradients of one direction of one layer are cut into parts.

    A part owns some blocks of units: so few that its results and scratch stay in the L2 cache.

    Parameters
    ----------
    call : ndarray
        A call with the sizes of the layer.
    threads : int
    """

    def __init__(self, call: np.ndarray, threads: int) -> None:
        names = (
            "input_size",
            "hidden_size",
            "n_blocks",
            "n_slots",
            "n_inputs",
            "n_stage",
            "n_stage_2",
            "n_unit_weights",
        )
        size, hidden, n_blocks, n_slots, n_inputs, n_stage, n_stage_2, n_unit_weights = (
            int(call[FIELD[name]]) for name in names
        )
        n_slots += n_unit_weights  # summed like the biases of slots
        width = size + ((n_stage > 0) + (n_stage_2 > 0)) * hidden
        floats = (width + _CHUNK) * n_slots * n_blocks * LANES
        self.threads = threads = min(threads, n_blocks)
        parts = max(threads, min(n_blocks, -(-floats // _PART_FLOATS)))
        self.bounds = [n_blocks * i // parts for i in range(parts + 1)]
        self._tasks = Tasks(weight_gradients, self.bounds, threads, N_FIELDS, n_alike=N_ALIKE)
        most = -(-n_blocks // parts)
        # A vector more, since rows are copied in whole vectors.
        a_stride, b_stride = _stride(width + LANES - 1), _stride(n_slots * most * LANES)
        products = ((n_inputs, size), (n_stage, hidden), (n_stage_2, hidden), (n_slots, 1))
        panels = [-(-slots * most // GROUP) * _STEP * columns for slots, columns in products]
        names = ("a", "b", "d_input_panel", "d_panel", "d_panel_2", "d_bias")
        sizes = (_CHUNK * a_stride, _CHUNK * b_stride, *panels)
        self.scratch = Scratch(
            dict(zip(names, sizes, strict=True)),
            chunk=_CHUNK,
            a_stride=a_stride,
            b_stride=b_stride,
            one=ONE_AT,
        )

    def sum(self, calls: np.ndarray) -> None:
        """Sum over all steps at once.

        Parameters
        ----------
        calls : ndarray
            One for each thread, with :attr:`scratch` in place; the first one is filled.
        """
        self._tasks.run(calls)


class WeightGradients:
    """The gradients of the weights of one direction of one layer, summed piece by piece.

    Parameters
    ----------
    plan : GradientPlan
        Each of its parts gets a call of its own, with scratch that outlives a piece.
    call : ndarray
        As for a pass over a piece.
    """

    def __init__(self, plan: GradientPlan, call: np.ndarray) -> None:
        parts = len(plan.bounds) - 1
        self._calls = np.tile(call[:N_FIELDS], (parts, 1))
        self._own = [aligned_empty(plan.scratch.floats) for _ in range(parts)]
        for mine, scratch in zip(self._calls, self._own, strict=True):
            plan.scratch.place(mine, address(scratch))
        bounds, threads = plan.bounds, plan.threads
        self._tasks = Tasks(weight_gradients, bounds, threads, N_FIELDS, by_task=True)

    def add(self, call: np.ndarray) -> None:
        """Add a piece; with the one that begins at step 0 the results are complete."""
        self._calls[:, :_N_PASSED] = call[:_N_PASSED]
        self._tasks.run(self._calls.ravel())
