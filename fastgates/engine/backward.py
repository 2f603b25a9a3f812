"""Back-propagation through time of any cell, as a template like that of the forward pass.

For a range of the batch, from the last step to the first: the gradient of the output joins that of
the state, the cell's equations turn it into the gradients of the pre-activations, which overwrite
the saved slots in place, and a tile of products with the transposed weights carries them to the
state one step earlier. Weight gradients follow when all rows are done
(:mod:`fastgates.engine.gradients`).

``equations(d_states, saved, states, new_states, constant) -> (d_slots, d_old_states)``
    `saved` as the forward equations left it, `states` before the step, `new_states` after it (all
    but the first, which no cell needs). `d_old_states` holds what does not pass through a product.
    In a cell of two stages, the slots of the first stage are given back as they were.
``first_equations(d_source, saved, states, constant) -> (d_slots_of_first_stage, d_hidden)``
    Only for cells with two stages: from the gradient of what the second stage multiplied;
    `d_hidden` is added to the gradient of the hidden state.
"""

from __future__ import annotations

from .._jit import INT0, STAMP, helper, kernel
from .._simd import LANES, float_pointer, int_pointer, load, splat, store
from .._vecmath import ZERO
from .call import record
from .forward import (
    load_row,
    load_states,
    restarts_at,
    row_of_step,
    store_row,
    store_states,
)
from .tile import (
    for_each,
    gathered,
    merged,
    product,
    scaled,
    store_vectors,
    walk,
    zero_tile,
)

__all__ = ["backward_pass"]


# -- The equations, unit by unit ------------------------------------------------------------------


@helper
def _old_states(call, i, block, step, n_rows, states):
    """Return the states before this step, wherever they are; what is not used is not loaded."""
    width = call.n_blocks * LANES
    row = int_pointer(call.where)[i]
    if restarts_at(call, row, step):
        unit = i * width + block * LANES
        return merged((), (), float_pointer(call.start), unit, n_rows * width, states)
    earlier = row + 1 if call.reverse else row - 1
    output = float_pointer(call.output)
    hidden = load_row(output, earlier * call.output_stride, block, call.hidden_size)
    cell = (earlier * (len(states) - 1) - 1) * width + block * LANES
    return merged((), (hidden,), float_pointer(call.cells), cell, width, states)


@helper
def _differentiate_units(call, active, step, n_rows, equations, slots, states):
    """Turn the gradients of the states into those of the slots, for all units of a step."""
    width = call.n_blocks * LANES
    size = n_rows * width
    d_state, saved_rows = float_pointer(call.d_state), float_pointer(call.saved)
    d_output, cells = float_pointer(call.d_output), float_pointer(call.cells)
    for i in range(active):
        row = int_pointer(call.where)[i]
        for block in range(call.n_blocks):
            unit = i * width + block * LANES
            slot_row = (row * call.n_blocks + block) * len(slots) * LANES
            cell = (row * (len(states) - 1) - 1) * width + block * LANES
            hidden = load(d_state, unit)
            if call.d_output != 0:
                hidden = hidden + load_row(
                    d_output, row * call.d_output_stride, block, call.hidden_size
                )
            d_states = merged((), (hidden,), d_state, unit, size, states)
            saved = merged((), (), saved_rows, slot_row, LANES, slots)
            old = _old_states(call, i, block, step, n_rows, states)
            new = merged((), (splat(ZERO),), cells, cell, width, states)
            constant = load(float_pointer(call.unit_constant), block * LANES)
            d_slots, d_old = equations(d_states, saved, old, new, constant)
            store_vectors((), d_slots, saved_rows, slot_row, LANES)
            here = (i * call.n_blocks + block) * len(slots) * LANES
            store_vectors((), d_slots, float_pointer(call.d_slots), here, LANES)
            store_vectors((), d_old, d_state, unit, size)


# -- Products with the transposed weights ---------------------------------------------------------


@helper
def _product_of_slots(tile, call, source, rows, groups, units, panel, slots):
    """Add the product of some slots with a transposed panel.

    Parameters
    ----------
    source : int
        Address of slot rows.
    rows : tuple of int
        Numbers of those rows.
    slots : tuple of int
        First slot, how many, and how many there are in all.
    """
    first, count, n_slots = slots
    starts = scaled(rows, call.n_blocks * n_slots * LANES)
    # Where the slots are all there are, their blocks lie side by side: one long sum.
    n_parts, length = (1, call.n_blocks * count) if count == n_slots else (call.n_blocks, count)
    panel_starts = scaled(groups, call.n_blocks * count * LANES * LANES)
    step = len(units) * LANES
    for part in range(n_parts):
        a = float_pointer(source + 4 * (first + part * n_slots) * LANES)
        here = float_pointer(panel + 4 * part * count * LANES * step)
        tile = product(tile, a, starts, 1, here, panel_starts, step, length * LANES)
    return tile


@helper
def _add_vector(vectors, i, block, a):
    target, width = a
    place = i * width + block * LANES
    store(target, place, load(target, place) + vectors[0])


@helper
def _state_tile(rows, groups, units, a):
    """Add to the gradient of the hidden state what comes through the product."""
    call, slots = a
    width = call.n_blocks * LANES
    d_state = float_pointer(call.d_state)
    # From zero and joined at the end: beside a large gradient, terms would lose their last bits.
    tile = zero_tile(rows, groups, units)
    source, panel = call.d_slots, call.panel_t
    tile = _product_of_slots(tile, call, source, rows, groups, units, panel, slots)
    for_each(_add_vector, tile, rows, groups, units, (d_state, width))


@kernel
def differentiate_state(calls, active, count, n_slots, stamp=STAMP):
    """Carry the gradients of the first `count` slots to the state before the step."""
    call = record(calls)
    walk(active, call.n_blocks, (0,), _state_tile, (call, (INT0, count, n_slots)))


@helper
def _finish_source(vectors, i, block, a):
    """Apply the equations of the first stage to the gradient of what the second multiplied."""
    call, step, n_rows, slots, states, equations = a
    width = call.n_blocks * LANES
    unit = i * width + block * LANES
    row = int_pointer(call.where)[i]
    slot_row = (row * call.n_blocks + block) * len(slots) * LANES
    here = (i * call.n_blocks + block) * len(slots) * LANES
    slot_rows, d_state = float_pointer(call.d_slots), float_pointer(call.d_state)
    saved = merged((), (), slot_rows, here, LANES, slots)
    old = _old_states(call, i, block, step, n_rows, states)
    constant = load(float_pointer(call.unit_constant), block * LANES)
    d_slots, d_hidden = equations(vectors[0], saved, old, constant)
    store_vectors((), d_slots, slot_rows, here, LANES)
    store_vectors((), d_slots, float_pointer(call.saved), slot_row, LANES)
    store(d_state, unit, load(d_state, unit) + d_hidden)


@helper
def _source_tile(rows, groups, units, a):
    """Compute the gradient of what the second stage multiplied and pass it on in registers."""
    call, step, n_rows, stage, stage_2, slots, states, equations = a
    tile = zero_tile(rows, groups, units)
    source, panel = call.d_slots, call.panel_t_2
    parts = (INT0 + len(stage), INT0 + len(stage_2), INT0 + len(slots))
    tile = _product_of_slots(tile, call, source, rows, groups, units, panel, parts)
    for_each(
        _finish_source,
        tile,
        rows,
        groups,
        units,
        (call, step, n_rows, slots, states, equations),
    )


@helper
def _store_input(vectors, row, block, call):
    size = call.input_size
    place = int_pointer(call.where)[row] * size
    store_row(float_pointer(call.d_input), place, block, size, vectors[0])


@helper
def _input_tile(rows, groups, units, a):
    """Compute the gradient of the input."""
    call, slots = a
    tile = zero_tile(rows, groups, units)
    places = gathered(int_pointer(call.where), rows, 1)
    source, panel = call.saved, call.input_panel_t
    tile = _product_of_slots(tile, call, source, places, groups, units, panel, slots)
    for_each(_store_input, tile, rows, groups, units, call)


@kernel
def differentiate_inputs(calls, begin, end, first, count, n_slots, stamp=STAMP):
    """Compute the gradient of the input for all steps of the positions begin ... end."""
    call = record(calls)
    where, lengths = int_pointer(call.where), int_pointer(call.lengths)
    n_blocks = (call.input_size + LANES - 1) // LANES
    position, step = begin, INT0
    while position < end:
        rows = INT0
        while position < end and rows < call.chunk_rows:
            where[rows] = row_of_step(call, position, step)
            rows += 1
            step += 1
            if step == lengths[position]:
                position += 1
                step = 0
        walk(rows, n_blocks, (0,), _input_tile, (call, (first, count, n_slots)))


# -- The pass -------------------------------------------------------------------------------------


@kernel
def start_backward(calls, begin, end, n_states, stamp=STAMP):
    """Load the initial states and the gradients of the final ones; clear those of the initial."""
    call = record(calls)
    load_states(calls, begin, end, call.initial, call.start, n_states)
    load_states(calls, begin, end, call.d_final, call.d_state, n_states)
    d_start = float_pointer(call.d_start)
    for k in range(0, n_states * (end - begin) * call.n_blocks * LANES, LANES):
        store(d_start, k, splat(ZERO))


@kernel
def release_restarted(calls, active, step, n_rows, n_states, stamp=STAMP):
    """Where a row started at this step, its state's gradient belongs to the initial state."""
    call = record(calls)
    d_state, d_start = float_pointer(call.d_state), float_pointer(call.d_start)
    width = call.n_blocks * LANES
    for i in range(active):
        if restarts_at(call, int_pointer(call.where)[i], step):
            for n in range(n_states):
                for k in range(0, width, LANES):
                    place = (n * n_rows + i) * width + k
                    store(d_start, place, load(d_start, place) + load(d_state, place))
                    store(d_state, place, splat(ZERO))


@helper
def backward_pass(
    calls,
    begin,
    end,
    equations,
    first_equations,
    slots,
    states,
    first_input,
    inputs,
    stage,
    stage_2,
):
    """Run back-propagation for the positions begin ... end of the batch.

    Parameters
    ----------
    calls : int64 array
        A call, see :mod:`fastgates.engine.call`.
    equations, first_equations : function
        The cell's (see the module's docstring); the second None for cells of one stage.
    slots, states, inputs, stage, stage_2 : shape
        Tuples as long as the number of slots, of states, of slots that take a product with the
        input (from the slot `first_input` on), and of the slots of each stage.
    """
    call = record(calls)
    n_slots, n_states = INT0 + len(slots), INT0 + len(states)
    n_rows = end - begin
    where, lengths = int_pointer(call.where), int_pointer(call.lengths)
    start_backward(calls, begin, end, n_states)
    active, step = INT0, lengths[begin] - 1
    while step >= 0:
        # The gradient of a final state waits in its row until the sequence's last step.
        while active < n_rows and lengths[begin + active] > step:
            active += 1
        for i in range(active):
            where[i] = row_of_step(call, begin + i, step)
        _differentiate_units(call, active, step, n_rows, equations, slots, states)
        if first_equations is not None:
            arguments = (
                call,
                step,
                n_rows,
                stage,
                stage_2,
                slots,
                states,
                first_equations,
            )
            walk(active, call.n_blocks, (0,), _source_tile, arguments)
        differentiate_state(calls, active, INT0 + len(stage), n_slots)
        if step == 0 or call.resets != 0:
            release_restarted(calls, active, step, n_rows, n_states)
        step -= 1
    for i in range(n_rows):
        store_states(calls, begin + i, i, n_rows, call.d_start, INT0, call.d_initial, n_states)
    if call.d_input != 0:
        differentiate_inputs(calls, begin, end, INT0 + first_input, INT0 + len(inputs), n_slots)
