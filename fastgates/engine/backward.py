"""Back-propagation through time of any cell, as a template like that of the forward pass.

For a range of the batch, from the last step to the first: the gradient of the output joins that of
the state, the cell's equations turn it into the gradients of the pre-activations, which overwrite
the saved slots in place, and a product with the transposed weights carries them to the state one
step earlier. Weight gradients follow when all rows are done (:mod:`fastgates.engine.gradients`).

``equations(d_states, saved, states, new_states, constant) -> (d_slots, d_old_states)``
    `saved` as the forward equations left it, `states` before the step, `new_states` after it (all
    but the first, which no cell needs). `d_old_states` holds what does not pass through a product.
    In a cell of two stages, the slots of the first stage are given back as they were.
``first_equations(d_source, saved, states, constant) -> (d_slots_of_first_stage, d_hidden, source)``
    Only for cells with two stages: from the gradient of what the second stage multiplied;
    `d_hidden` is added to the gradient of the hidden state. `source` is once more what the second
    stage multiplied, for the weight gradients: the forward pass does not keep it.
"""

from __future__ import annotations

from .._jit import INT0, helper
from .._simd import LANES, float_pointer, int_pointer, load, prefetch, splat, store
from .._vecmath import ZERO
from .call import record
from .forward import (
    clear_ends,
    constant_of,
    kept_row,
    load_carried,
    load_row,
    load_states,
    restarts_at,
    row_of_step,
    store_carried,
    store_row,
    store_states,
)
from .multiply import call_multiply, multiply_row
from .tuples import load_vectors, store_vectors

__all__ = ["backward_pass"]


# -- The equations, unit by unit ------------------------------------------------------------------


@helper
def _old_states(call, i, position, step, n_rows, n_others):
    """Return where the states before this step are.

    Returns
    -------
    hidden_at : int
        Address of the row of the first state.
    others_at, step : int
        Address from which the further states lie at once, twice ... so many floats.
    """
    width = call.n_blocks * LANES
    row = int_pointer(call.where)[i]
    if restarts_at(call, row, step):
        at = call.start + 4 * i * width
        return at, at, n_rows * width
    if step == call.kept_step:
        at = call.carried + 4 * position * width
        return at, at, call.batch * width
    earlier = row + 1 if call.reverse else row - 1
    cells = call.cells + 4 * (kept_row(call, position, step - 1) * n_others - 1) * width
    return call.output + 4 * earlier * call.output_stride, cells, width


@helper
def _differentiate_units(call, begin, active, step, n_rows, equations, slots, states, shape):
    """Turn the gradients of the states into those of the slots, for all units of a step."""
    width, hidden_size, n_others = call.n_blocks * LANES, call.hidden_size, len(states) - 1
    row_size, size = call.slot_row, n_rows * width
    first_kept = kept_row(call, begin, step)
    pointer = float_pointer(call.saved + 4 * first_kept * row_size)
    cells = float_pointer(call.cells + 4 * (first_kept * n_others - 1) * width)
    d_state, d_hidden = float_pointer(call.d_state), float_pointer(call.d_hidden)
    constants = float_pointer(call.unit_constant)
    d_output, d_output_stride = float_pointer(call.d_output), call.d_output_stride
    has_output = call.d_output != 0
    # What the next round reads is asked for now: the product in between hides the way from memory.
    ahead = 1 if call.reverse else -1
    slots_ahead, cells_ahead = call.batch * row_size, 2 * call.batch * n_others * width
    for i in range(active):
        row = int_pointer(call.where)[i]
        hidden_at, others_at, others_step = _old_states(call, i, begin + i, step, n_rows, n_others)
        old_hidden, old_others = float_pointer(hidden_at), float_pointer(others_at)
        for k in range(0, width, LANES):
            unit = i * width + k
            d_h = load(d_state, unit) + load(d_hidden, unit)
            if has_output:
                d_h = d_h + load_row(d_output, row * d_output_stride, k, hidden_size)
                prefetch(d_output, (row + ahead) * d_output_stride + k)
            hidden = load_row(old_hidden, INT0, k, hidden_size)
            prefetch(old_hidden, ahead * call.output_stride + k)
            d_slots, d_old = equations(
                load_vectors((d_h,), d_state, unit, size, states),
                load_vectors((), pointer, i * row_size + k, width, slots),
                load_vectors((hidden,), old_others, k, others_step, states),
                load_vectors((splat(ZERO),), cells, i * n_others * width + k, width, states),
                constant_of(call, constants, k, shape),
            )
            store_vectors((), d_slots, pointer, i * row_size + k, width)
            store_vectors((), d_old, d_state, unit, size)
            for slot in range(len(slots)):
                prefetch(pointer, i * row_size + k + slot * width - slots_ahead)
            for state in range(n_others):
                prefetch(cells, (i * n_others + state + 1) * width + k - cells_ahead)


@helper
def _finish_source(call, begin, active, step, n_rows, equations, slots, states, shape):
    """Apply the equations of the first stage to the gradient of what the second multiplied."""
    width, hidden_size, n_others = call.n_blocks * LANES, call.hidden_size, len(states) - 1
    row_size = call.slot_row
    first_kept = kept_row(call, begin, step)
    pointer = float_pointer(call.saved + 4 * first_kept * row_size)
    sources = float_pointer(call.sources + 4 * first_kept * width)
    d_state, d_source = float_pointer(call.d_state), float_pointer(call.d_source)
    constants = float_pointer(call.unit_constant)
    for i in range(active):
        hidden_at, others_at, others_step = _old_states(call, i, begin + i, step, n_rows, n_others)
        old_hidden, old_others = float_pointer(hidden_at), float_pointer(others_at)
        for k in range(0, width, LANES):
            unit = i * width + k
            hidden = load_row(old_hidden, INT0, k, hidden_size)
            d_slots, d_h, source = equations(
                load(d_source, unit),
                load_vectors((), pointer, i * row_size + k, width, slots),
                load_vectors((hidden,), old_others, k, others_step, states),
                constant_of(call, constants, k, shape),
            )
            store_vectors((), d_slots, pointer, i * row_size + k, width)
            store(sources, unit, source)
            store(d_state, unit, load(d_state, unit) + d_h)


# -- Products with the transposed weights ---------------------------------------------------------


@helper
def _product_of_slots(call, n_rows, rows, numbers, first, count, panel, n_vectors, target, step):
    """Multiply some slots of kept rows with a transposed panel, to rows of so many vectors.

    Parameters
    ----------
    rows, numbers : int
        Addresses of slot rows, and of the numbers of those that are meant; 0: the first ones.
    step : int
        Where the product is one of every step; every second one takes the panel backwards.
    """
    width, hidden, parts = call.n_blocks * LANES, call.hidden_size, count
    if hidden == width:  # without padding between them, the slots are one long row
        hidden, parts = count * hidden, INT0 + 1
    if n_rows == 1 and numbers == 0:
        row, start = rows + 4 * first * width, call.nothing
        multiply_row(n_vectors, hidden, row, panel, target, start, parts, width, step % 2)
        return
    call_multiply(
        call.multiply,
        (n_rows, n_vectors, hidden),
        (rows + 4 * first * width, numbers, call.slot_row, 1),
        (panel, 0),
        (target, 0, n_vectors * LANES, 0),
        (call.nothing, 0, 0),
        0,
        (parts, width),
    )


@helper
def _differentiate_inputs(call, begin, end):
    """Compute the gradient of the input for the piece of the positions begin ... end."""
    where, kept = int_pointer(call.where), int_pointer(call.kept)
    lengths, size = int_pointer(call.lengths), call.input_size
    n_vectors = (size + LANES - 1) // LANES
    d_input, result = float_pointer(call.d_input), float_pointer(call.d_rows)
    position, step = begin, call.first_step
    longest = min(lengths[begin], call.end_step)
    while step < longest:
        rows = INT0
        while step < longest and rows < call.chunk_rows:
            where[rows] = row_of_step(call, position, step)
            kept[rows] = kept_row(call, position, step)
            rows += 1
            position += 1
            if position == end or lengths[position] <= step:
                position = begin
                step += 1
        _product_of_slots(
            call,
            rows,
            call.saved,
            call.kept,
            call.first_input,
            call.n_inputs,
            call.input_panel_t,
            n_vectors,
            call.d_rows,
            INT0,
        )
        for row in range(rows):
            for k in range(0, size, LANES):
                vector = load(result, row * n_vectors * LANES + k)
                store_row(d_input, where[row] * size, k, size, vector)
    if call.first_step == 0:
        clear_ends(call, begin, end, call.d_input, size, size)


# -- The pass -------------------------------------------------------------------------------------


@helper
def _start(call, begin, end, n_states):
    """Load the initial states, and the gradients of the final ones or those of a later piece."""
    size = (end - begin) * call.n_blocks * LANES
    load_states(call, begin, end, call.initial, call.start, n_states)
    d_start, d_hidden = float_pointer(call.d_start), float_pointer(call.d_hidden)
    for k in range(0, size, LANES):
        store(d_hidden, k, splat(ZERO))
    if call.end_step < int_pointer(call.lengths)[0]:
        later = call.d_carried + 4 * n_states * call.batch * call.n_blocks * LANES
        load_carried(call, begin, end, call.d_carried, call.d_state, n_states)
        load_carried(call, begin, end, later, call.d_start, n_states)
        return
    load_states(call, begin, end, call.d_final, call.d_state, n_states)
    for k in range(0, n_states * size, LANES):
        store(d_start, k, splat(ZERO))


@helper
def _release_restarted(call, active, step, n_rows, n_states):
    """Where a row started at this step, its state's gradient belongs to the initial state."""
    d_state, d_start = float_pointer(call.d_state), float_pointer(call.d_start)
    d_hidden = float_pointer(call.d_hidden)
    width = call.n_blocks * LANES
    for i in range(active):
        if restarts_at(call, int_pointer(call.where)[i], step):
            for k in range(i * width, (i + 1) * width, LANES):
                store(d_state, k, load(d_state, k) + load(d_hidden, k))
                store(d_hidden, k, splat(ZERO))
                for n in range(n_states):
                    place = n * n_rows * width + k
                    store(d_start, place, load(d_start, place) + load(d_state, place))
                    store(d_state, place, splat(ZERO))


@helper
def _end(call, begin, end, n_states):
    """Store the gradients of the initial states, or what an earlier piece goes on with."""
    n_rows = end - begin
    if call.first_step > 0:
        d_state, d_hidden = float_pointer(call.d_state), float_pointer(call.d_hidden)
        for k in range(0, n_rows * call.n_blocks * LANES, LANES):
            store(d_state, k, load(d_state, k) + load(d_hidden, k))
        later = call.d_carried + 4 * n_states * call.batch * call.n_blocks * LANES
        store_carried(call, begin, n_rows, n_rows, call.d_state, call.d_carried, n_states)
        store_carried(call, begin, n_rows, n_rows, call.d_start, later, n_states)
        return
    if call.d_initial != 0:
        for i in range(n_rows):
            store_states(call, begin + i, i, n_rows, call.d_start, call.d_initial, n_states)


@helper
def backward_pass(calls, begin, end, equations, first_equations, slots, states, constants=None):
    """Run back-propagation for the piece of the positions begin ... end of the batch.

    Parameters
    ----------
    calls : int64 array
        A call, see :mod:`fastgates.engine.call`.
    equations, first_equations : function
        The cell's (see the module's docstring); the second None for cells of one stage.
    slots, states, constants : shape
        As in the forward pass.
    """
    call = record(calls)
    n_states = INT0 + len(states)
    n_rows = end - begin
    where, lengths = int_pointer(call.where), int_pointer(call.lengths)
    _start(call, begin, end, n_states)
    active, step = INT0, min(lengths[begin], call.end_step) - 1
    while step >= call.first_step:
        # The gradient of a final state waits in its row until the sequence's last step.
        while active < n_rows and lengths[begin + active] > step:
            active += 1
        for i in range(active):
            where[i] = row_of_step(call, begin + i, step)
        here = call.saved + 4 * kept_row(call, begin, step) * call.slot_row
        _differentiate_units(call, begin, active, step, n_rows, equations, slots, states, constants)
        if first_equations is not None:
            _product_of_slots(
                call,
                active,
                here,
                INT0,
                call.n_stage,
                call.n_stage_2,
                call.panel_t_2,
                call.n_blocks,
                call.d_source,
                step,
            )
            _finish_source(
                call, begin, active, step, n_rows, first_equations, slots, states, constants
            )
        if step == 0 and call.d_initial == 0:
            break
        _product_of_slots(
            call,
            active,
            here,
            INT0,
            INT0,
            call.n_stage,
            call.panel_t,
            call.n_blocks,
            call.d_hidden,
            step,
        )
        if step == 0 or call.resets != 0:
            _release_restarted(call, active, step, n_rows, n_states)
        step -= 1
    _end(call, begin, end, n_states)
    if call.d_input != 0:
        _differentiate_inputs(call, begin, end)
