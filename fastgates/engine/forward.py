"""The forward pass of any cell, as a template that a cell's own module turns into a kernel.

For a range of the batch, a chunk of time after the other: the inputs of the chunk are projected,
``bias + U x``, to slot rows that stay in the cache (rows = batch x time, so that even a single
sequence fills the tiles of the product); then step by step ``W h`` is added to the slot rows of the
step, and the cell's equations are applied to them. With a tape the slot rows are those that
back-propagation finds, and the equations leave their results in place; without one they lie in a
workspace.

A cell's functions see tuples of SIMD values, never arrays:

``equations(slots, states, constant) -> (new_states, saved)``
    `slots` holds the pre-activations of one vector of units, `states` the old states, `constant`
    the unit's fixed number (the leak); `saved` takes the place of `slots` for back-propagation.
``first_equations(slots, states, constant) -> (source, activated)``
    Only for cells with two stages, run after the first: what the second stage multiplies, and the
    activated slots of the first stage, which ``equations`` then finds in their place in `slots`.
``activate(slots) -> slots``
    Optional: what can be done before the rest of ``equations``, which then finds its results. Each
    is a loop of its own over a row of units. A long chain of operations that wait for each other,
    such as tanh of what sigmoids made, keeps a processor from working on enough units at once.

For a pass that is given the shape `constants`, `constant` is a pair: a pointer to the layer's
settings, and a tuple of as many fixed numbers or weights of the unit.
"""

from __future__ import annotations

from .._jit import INT0, helper
from .._simd import (
    LANES,
    byte_pointer,
    float_pointer,
    int_pointer,
    load,
    load_first,
    prefetch,
    prefetch_to_write,
    splat,
    store,
    store_first,
)
from .._vecmath import ZERO
from .call import record
from .multiply import call_multiply, multiply_row
from .tuples import load_constants, load_vectors, store_vectors

__all__ = ["forward_pass"]

_LINE_FLOATS = 16  # in a cache line
_FAR = 1024  # floats, more than processors look ahead
_AHEAD_FLOATS = 32 * 1024  # of inputs that are asked for ahead: a part of the L2 cache


@helper
def load_row(pointer, row_start, k, size):
    """Load the units k ... of a row of `size` floats, padding with 0."""
    if size - k >= LANES:
        return load(pointer, row_start + k)
    return load_first(pointer, row_start + k, size - k)


@helper
def store_row(pointer, row_start, k, size, vector):
    """Store the units k ... of a row of `size` floats, without the padding."""
    if size - k >= LANES:
        store(pointer, row_start + k, vector)
    else:
        store_first(pointer, row_start + k, size - k, vector)


@helper
def row_of_step(call, position, step):
    """Return the row ``b * T + t`` at which the sequence at `position` is in its `step`."""
    row = int_pointer(call.order)[position] * call.time
    if call.reverse:
        return row + int_pointer(call.lengths)[position] - 1 - step
    return row + step - call.origin


@helper
def kept_row(call, position, step):
    """Return the number of the row that is kept for this step of the sequence at `position`."""
    return (step - call.kept_step) * call.batch + position


@helper
def restarts_at(call, row, step):
    """Tell whether the state goes back to the initial one before this step.

    In reverse, pieces of a series are the same as forward, so a piece starts at its last step.
    """
    if step == 0 and call.carried == 0:
        return True
    if call.resets == 0:
        return False
    return byte_pointer(call.resets)[row + call.reverse] != 0


# -- States ---------------------------------------------------------------------------------------


@helper
def load_states(call, begin, end, source, target, n_states):
    """Copy states (B, H) of the positions begin ... end to padded rows ``[state][i][Hp]``.

    `source` and `target` are addresses; a source of 0 stands for zeros.
    """
    n_rows, width, hidden = end - begin, call.n_blocks * LANES, call.hidden_size
    to = float_pointer(target)
    if source == 0:
        for k in range(0, n_states * n_rows * width, LANES):
            store(to, k, splat(ZERO))
        return
    for n in range(n_states):
        for i in range(n_rows):
            row = n * call.state_stride + int_pointer(call.order)[begin + i] * hidden
            for k in range(0, width, LANES):
                vector = load_row(float_pointer(source), row, k, hidden)
                store(to, (n * n_rows + i) * width + k, vector)


@helper
def store_states(call, position, i, n_rows, source, target, n_states):
    """Copy the padded states of row `i` to the states (B, H) of a position."""
    width, hidden = call.n_blocks * LANES, call.hidden_size
    for n in range(n_states):
        row = n * call.state_stride + int_pointer(call.order)[position] * hidden
        for k in range(0, width, LANES):
            vector = load(float_pointer(source), (n * n_rows + i) * width + k)
            store_row(float_pointer(target), row, k, hidden, vector)


@helper
def load_carried(call, begin, end, source, target, n_states):
    """Copy states (n_states, B, Hp) of the positions begin ... end to rows ``[state][i][Hp]``."""
    n_rows, width = end - begin, call.n_blocks * LANES
    for n in range(n_states):
        for k in range(0, n_rows * width, LANES):
            vector = load(float_pointer(source), (n * call.batch + begin) * width + k)
            store(float_pointer(target), n * n_rows * width + k, vector)


@helper
def store_carried(call, begin, active, n_rows, source, target, n_states):
    """Copy the first `active` rows of padded states back."""
    width = call.n_blocks * LANES
    for n in range(n_states):
        for k in range(0, active * width, LANES):
            vector = load(float_pointer(source), n * n_rows * width + k)
            store(float_pointer(target), (n * call.batch + begin) * width + k, vector)


@helper
def restart_rows(call, base, active, step, n_rows, n_states):
    """Put the initial states back in the rows that start here."""
    state, start = float_pointer(call.state), float_pointer(call.start)
    width = call.n_blocks * LANES
    for i in range(active):
        if restarts_at(call, int_pointer(call.where)[base + i], step):
            for n in range(n_states):
                for k in range(0, width, LANES):
                    place = (n * n_rows + i) * width + k
                    store(state, place, load(start, place))


# -- Products -------------------------------------------------------------------------------------


@helper
def slot_rows(call):
    """Return the address of the slot rows: those that are kept, or the workspace."""
    if call.saved != 0:
        return call.saved
    return call.workspace


@helper
def plan_chunk(call, begin, active, step, longest):
    """List the rows of the next steps that the workspace holds, and return where they end.

    Returns
    -------
    chunk_end, chunk_rows : int
        The step after the last one of the chunk, and the rows of all its steps.
    """
    where, kept = int_pointer(call.where), int_pointer(call.kept)
    lengths = int_pointer(call.lengths)
    chunk_end, chunk_rows = step, INT0
    while chunk_end < longest and chunk_rows + active <= call.chunk_rows:
        for i in range(active):
            where[chunk_rows + i] = row_of_step(call, begin + i, chunk_end)
            kept[chunk_rows + i] = chunk_rows + i
            if call.saved != 0:
                kept[chunk_rows + i] = kept_row(call, begin + i, chunk_end)
        chunk_rows += active
        chunk_end += 1
        while active > 0 and lengths[begin + active - 1] <= chunk_end:
            active -= 1
    return chunk_end, chunk_rows


@helper
def _project(call, n_rows):
    """Project the inputs of the chunk's rows to their slot rows."""
    width, size = call.n_blocks * LANES, call.input_size
    row, c = call.slot_row, slot_rows(call)
    first, bias = call.first_input, call.bias
    # Slots without a product with the input take their bias: a sum of no terms.
    count, n_vectors = INT0, first * call.n_blocks
    for _ in range(2):
        call_multiply(
            call.multiply,
            (n_rows, n_vectors, count),
            (call.x, call.where, size, 1),
            (call.input_panel, 0),
            (c, call.kept, row, 0),
            (bias, 0, LANES),
            0,
            (1, 0),
        )
        c += 4 * first * width
        bias += 4 * first * width
        count, n_vectors = size, call.n_inputs * call.n_blocks


@helper
def _add_product(call, active, slots, count, vectors, panel, step):
    """Add the product of `active` rows of `vectors` with a panel to `count` slots of a step."""
    width, row = call.n_blocks * LANES, call.slot_row
    if active == 1:
        n_vectors, size = count * call.n_blocks, call.hidden_size
        multiply_row(n_vectors, size, vectors, panel, slots, slots, INT0 + 1, INT0, step % 2)
        return
    call_multiply(
        call.multiply,
        (active, count * call.n_blocks, call.hidden_size),
        (vectors, 0, width, 1),
        (panel, 0),
        (slots, 0, row, 0),
        (slots, row, LANES),
        0,
        (1, 0),
    )


# -- Equations ------------------------------------------------------------------------------------


@helper
def constant_of(call, pointer, k, shape):
    """Return what the equations are given of the units k ... besides slots and states."""
    return load_constants(float_pointer(call.settings), pointer, k, call.n_blocks * LANES, shape)


@helper
def _finish_first_stage(call, active, slots_at, n_rows, equations, slots, states, shape):
    """Apply the equations between two stages: make what the second one multiplies."""
    width = call.n_blocks * LANES
    row, size = call.slot_row, n_rows * width
    pointer, state = float_pointer(slots_at), float_pointer(call.state)
    constants, sources = float_pointer(call.unit_constant), float_pointer(call.source)
    for i in range(active):
        for k in range(0, width, LANES):
            place = i * width + k
            source, activated = equations(
                load_vectors((), pointer, i * row + k, width, slots),
                load_vectors((), state, place, size, states),
                constant_of(call, constants, k, shape),
            )
            store(sources, place, source)
            store_vectors((), activated, pointer, i * row + k, width)


@helper
def _finish(
    call,
    active,
    slots_at,
    base,
    chunk_steps,
    n_rows,
    may_spill,
    activate,
    equations,
    slots,
    states,
    shape,
):
    """Apply the cell's equations; store the new state, the output and what is to be kept."""
    width, hidden = call.n_blocks * LANES, call.hidden_size
    row, states_size, keep = call.slot_row, n_rows * width, call.saved != 0
    pointer, state = float_pointer(slots_at), float_pointer(call.state)
    constants = float_pointer(call.unit_constant)
    output = float_pointer(call.output if call.output != 0 else call.discarded)
    where, stride, others = int_pointer(call.where), call.output_stride, len(states) - 1
    if may_spill:
        hidden = width
    cells = float_pointer(call.cells + 4 * (int_pointer(call.kept)[base] * others - 1) * width)
    # Where the rows of a step lie far apart, the processor does not see what comes next: the inputs
    # of the next chunk and the place of the next output are asked for now.
    x, size = float_pointer(call.x), call.input_size
    ahead = -1 if call.reverse else 1
    x_asked, output_asked = INT0, INT0
    if call.time * size > _FAR and chunk_steps * n_rows * size <= _AHEAD_FLOATS:
        x_asked = size
    if call.time * stride > _FAR:
        output_asked = hidden
    for i in range(active):
        output_row = where[base + i] * stride
        for k in range(0, x_asked, _LINE_FLOATS):
            prefetch(x, (where[base + i] + ahead * chunk_steps) * size + k)
        for k in range(0, output_asked, _LINE_FLOATS):
            prefetch_to_write(output, output_row + ahead * stride + k)
        if activate is not None:
            for k in range(i * row, i * row + width, LANES):
                values = load_vectors((), pointer, k, width, slots)
                store_vectors((), activate(values), pointer, k, width)
        for k in range(0, width, LANES):
            place = i * width + k
            new_states, saved = equations(
                load_vectors((), pointer, i * row + k, width, slots),
                load_vectors((), state, place, states_size, states),
                constant_of(call, constants, k, shape),
            )
            store_vectors((), new_states, state, place, states_size)
            store_row(output, output_row, k, hidden, new_states[0])
            if keep:
                store_vectors((), saved, pointer, i * row + k, width)
                store_vectors((0,), new_states, cells, i * others * width + k, width)


@helper
def _may_spill(call, begin, active, step):
    """Tell whether whole vectors may be stored at the end of an output row.

    What is stored too much is overwritten by the sequence's later steps, if it has enough of them.
    Stores of a part of a vector take tens of cycles on some processors.
    """
    if call.output == 0:
        return True
    if call.reverse != 0 or call.output_stride != call.hidden_size:
        return False
    end = min(int_pointer(call.lengths)[begin + active - 1], call.origin + call.time)
    return step * call.hidden_size + call.n_blocks * LANES <= end * call.hidden_size


# -- Padding --------------------------------------------------------------------------------------


@helper
def clear_ends(call, begin, end, target, stride, size):
    """Write zeros past the ends of the sequences, `size` floats in each row of the batch's steps.

    Not to the whole array beforehand, which for small networks takes a good part of the pass.
    """
    pointer = float_pointer(target)
    order, lengths = int_pointer(call.order), int_pointer(call.lengths)
    for position in range(begin, end):
        first = max(lengths[position] - call.origin, INT0)
        row, count, width = order[position] * call.time + first, call.time - first, size
        if stride == size and count > 0:
            count, width = INT0 + 1, count * size
        for i in range(count):
            for k in range(0, width, LANES):
                store_row(pointer, (row + i) * stride, k, width, splat(ZERO))


# -- The pass -------------------------------------------------------------------------------------


@helper
def forward_pass(
    calls, begin, end, equations, first_equations, slots, states, constants=None, activate=None
):
    """Run the piece of the forward pass of the positions begin ... end of the batch.

    Parameters
    ----------
    calls : int64 array
        A call, see :mod:`fastgates.engine.call`.
    equations, first_equations : function
        The cell's (see the module's docstring); the second None for cells of one stage.
    slots, states, constants : shape
        Tuples as long as the number of slots, of states, and of numbers of a unit; None of those
        for cells without settings, which have one.
    activate : function, optional
        What `equations` begin with, for a row of units at a time (see the module's docstring).
    """
    call = record(calls)
    n_states = INT0 + len(states)
    n_rows = end - begin
    lengths = int_pointer(call.lengths)
    load_states(call, begin, end, call.initial, call.start, n_states)
    if call.carried != 0:
        load_carried(call, begin, end, call.carried, call.state, n_states)
    width = call.n_blocks * LANES
    active = n_rows
    step, longest = call.first_step, min(lengths[begin], call.end_step)
    while active > 0 and lengths[begin + active - 1] <= step:
        active -= 1
    while step < longest:
        chunk_end, chunk_rows = plan_chunk(call, begin, active, step, longest)
        _project(call, chunk_rows)
        base, chunk_steps = INT0, chunk_end - step
        while step < chunk_end:
            if step == 0 or call.resets != 0:
                restart_rows(call, base, active, step, n_rows, n_states)
            here = slot_rows(call) + 4 * int_pointer(call.kept)[base] * call.slot_row
            # Zeros, which sequences start from where no states are given, add nothing.
            nothing = step == 0 and call.initial == 0 and call.carried == 0
            if not nothing:
                _add_product(call, active, here, call.n_stage, call.state, call.panel, step)
            if first_equations is not None:
                _finish_first_stage(
                    call, active, here, n_rows, first_equations, slots, states, constants
                )
                later = here + 4 * call.n_stage * width
                if not nothing:
                    _add_product(
                        call, active, later, call.n_stage_2, call.source, call.panel_2, step
                    )
            _finish(
                call,
                active,
                here,
                base,
                chunk_steps,
                n_rows,
                _may_spill(call, begin, active, step),
                activate,
                equations,
                slots,
                states,
                constants,
            )
            base += active
            step += 1
            while active > 0 and lengths[begin + active - 1] <= step:
                active -= 1
                if call.final != 0:
                    store_states(
                        call, begin + active, active, n_rows, call.state, call.final, n_states
                    )
    if call.carried_on != 0:
        store_carried(call, begin, active, n_rows, call.state, call.carried_on, n_states)
    if call.output != 0 and call.first_step == call.origin:
        clear_ends(call, begin, end, call.output, call.output_stride, call.hidden_size)
