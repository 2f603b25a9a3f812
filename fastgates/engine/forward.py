"""The forward pass of any cell, as a template that a cell's own module turns into a kernel.

For a range of the batch: the inputs of a chunk of time are projected into a workspace that stays
in the cache (``bias + U x``, rows = batch x time, so that even a single sequence fills the tiles),
then step by step each tile adds ``W h`` to that and applies the cell's equations to the sums while
they are in registers.

A cell's functions see tuples of SIMD values, never arrays:

``equations(slots, states, constant) -> (new_states, saved)``
    `slots` holds the pre-activations of one vector of units, `states` the old states, `constant`
    the unit's fixed number (the leak); `saved` takes the place of `slots` for back-propagation.
``first_equations(slots, states, constant) -> (source, activated)``
    Only for cells with two stages, run after the first: what the second stage multiplies, and the
    activated slots of the first stage, which ``equations`` then finds in their place in `slots`.
"""

from __future__ import annotations

from .._jit import INT0, STAMP, helper, kernel
from .._simd import (
    LANES,
    byte_pointer,
    float_pointer,
    int_pointer,
    load,
    load_first,
    splat,
    store,
    store_first,
)
from .._vecmath import ZERO
from .call import record
from .tile import (
    for_each,
    gathered,
    load_tile,
    merged,
    product,
    scaled,
    store_vectors,
    walk,
)

__all__ = ["forward_pass", "project_1", "project_2", "project_3", "project_4"]


@helper
def load_row(pointer, row_start, block, hidden_size):
    """Load one block of units from a row of `hidden_size` floats, padding with 0."""
    left = hidden_size - block * LANES
    if left >= LANES:
        return load(pointer, row_start + block * LANES)
    return load_first(pointer, row_start + block * LANES, left)


@helper
def store_row(pointer, row_start, block, hidden_size, vector):
    """Store one block of units to a row of `hidden_size` floats, without the padding."""
    left = hidden_size - block * LANES
    if left >= LANES:
        store(pointer, row_start + block * LANES, vector)
    else:
        store_first(pointer, row_start + block * LANES, left, vector)


@helper
def row_of_step(call, position, step):
    """Return the row ``b * T + t`` at which the sequence at `position` is in its `step`."""
    row = int_pointer(call.order)[position] * call.time
    if call.reverse:
        return row + int_pointer(call.lengths)[position] - 1 - step
    return row + step


@helper
def restarts_at(call, row, step):
    """Tell whether the state goes back to the initial one before this step.

    In reverse, pieces of a series are the same as forward, so a piece starts at its last step.
    """
    if step == 0:
        return True
    if call.resets == 0:
        return False
    return byte_pointer(call.resets)[row + call.reverse] != 0


@kernel
def load_states(calls, begin, end, source, target, n_states, stamp=STAMP):
    """Copy states (B, H) of the positions begin ... end to padded rows ``[state][i][Hp]``.

    `source` and `target` are addresses; a source of 0 stands for zeros.
    """
    call = record(calls)
    n_rows = end - begin
    width = call.n_blocks * LANES
    if source == 0:
        for k in range(0, n_states * n_rows * width, LANES):
            store(float_pointer(target), k, splat(ZERO))
        return
    for n in range(n_states):
        for i in range(n_rows):
            row = n * call.state_stride + int_pointer(call.order)[begin + i] * call.hidden_size
            for block in range(call.n_blocks):
                vector = load_row(float_pointer(source), row, block, call.hidden_size)
                store(
                    float_pointer(target),
                    (n * n_rows + i) * width + block * LANES,
                    vector,
                )


@kernel
def store_states(calls, position, i, n_rows, source, first, target, n_states, stamp=STAMP):
    """Copy the padded states of row `i` to the states (B, H) of a position.

    `source` and `target` are addresses. State 0 is read from buffer `first` of `source`.
    """
    call = record(calls)
    width = call.n_blocks * LANES
    for n in range(n_states):
        buffer = first if n == 0 else n
        row = n * call.state_stride + int_pointer(call.order)[position] * call.hidden_size
        for block in range(call.n_blocks):
            place = (buffer * n_rows + i) * width + block * LANES
            vector = load(float_pointer(source), place)
            store_row(float_pointer(target), row, block, call.hidden_size, vector)


# -- Projection of the inputs ---------------------------------------------------------------------


@helper
def _store_projection(vectors, row, block, a):
    call, n_slots, first_input, _ = a
    workspace = float_pointer(call.workspace)
    start = (row * call.n_blocks + block) * n_slots * LANES
    for slot in range(first_input):
        place = block * n_slots * LANES + slot * LANES
        store(workspace, start + slot * LANES, load(float_pointer(call.bias), place))
    store_vectors((), vectors, workspace, start + first_input * LANES, LANES)


@helper
def _project_tile(rows, groups, units, a):
    call, n_slots, first_input, inputs = a
    size = call.input_size
    bias = float_pointer(call.bias + 4 * first_input * LANES)
    unit_size = n_slots * LANES
    tile = load_tile(bias, scaled(rows, 0), scaled(groups, unit_size), units, unit_size, inputs)
    width = len(inputs) * LANES
    tile = product(
        tile,
        float_pointer(call.x),
        gathered(int_pointer(call.where), rows, size),
        1,
        float_pointer(call.input_panel),
        scaled(groups, size * width),
        len(units) * width,
        size,
    )
    for_each(_store_projection, tile, rows, groups, units, a)


@helper
def _project(calls, n_rows, n_slots, first_input, inputs):
    call = record(calls)
    walk(
        n_rows,
        call.n_blocks,
        inputs,
        _project_tile,
        (call, n_slots, first_input, inputs),
    )


@kernel
def project_1(calls, n_rows, n_slots, first_input, stamp=STAMP):
    """Project the inputs of `n_rows` rows of the workspace for cells with one gate."""
    _project(calls, n_rows, n_slots, first_input, (0,))


@kernel
def project_2(calls, n_rows, n_slots, first_input, stamp=STAMP):
    """The same for cells with two gates."""
    _project(calls, n_rows, n_slots, first_input, (0, 0))


@kernel
def project_3(calls, n_rows, n_slots, first_input, stamp=STAMP):
    """The same for cells with three gates."""
    _project(calls, n_rows, n_slots, first_input, (0, 0, 0))


@kernel
def project_4(calls, n_rows, n_slots, first_input, stamp=STAMP):
    """The same for cells with four gates."""
    _project(calls, n_rows, n_slots, first_input, (0, 0, 0, 0))


# -- One step -------------------------------------------------------------------------------------


@helper
def _units(vectors, i, block, a):
    """Return what the equations take for one vector of units of one row."""
    call, place, before, slots, states = a
    base, n_rows, now, _ = place
    width = call.n_blocks * LANES
    unit = i * width + block * LANES
    slot_row = ((base + i) * call.n_blocks + block) * len(slots) * LANES
    state = float_pointer(call.state)
    hidden = (load(state, now * n_rows * width + unit),)
    return (
        merged(before, vectors, float_pointer(call.workspace), slot_row, LANES, slots),
        merged((), hidden, state, unit, n_rows * width, states),
        load(float_pointer(call.unit_constant), block * LANES),
    )


@helper
def _finish_first_stage(vectors, i, block, a):
    """Apply the equations between two stages: keep what the second one multiplies."""
    call, place, equations, before, slots_shape, states_shape = a
    slots, states, constant = _units(
        vectors, i, block, (call, place, before, slots_shape, states_shape)
    )
    source, slots = equations(slots, states, constant)
    width = call.n_blocks * LANES
    base = place[0]
    slot_row = ((base + i) * call.n_blocks + block) * len(slots_shape) * LANES
    store(float_pointer(call.source), i * width + block * LANES, source)
    store_vectors((), slots, float_pointer(call.workspace), slot_row, LANES)
    if call.saved != 0:
        row = int_pointer(call.where)[base + i]
        store(float_pointer(call.sources), row * width + block * LANES, source)


@helper
def _finish(vectors, i, block, a):
    """Apply the cell's equations; store the new state, the output and what is to be kept."""
    call, place, equations, before, slots_shape, states_shape = a
    slots, states, constant = _units(
        vectors, i, block, (call, place, before, slots_shape, states_shape)
    )
    new_states, saved = equations(slots, states, constant)
    width = call.n_blocks * LANES
    base, n_rows, _, later = place
    unit = i * width + block * LANES
    state = float_pointer(call.state)
    store(state, later * n_rows * width + unit, new_states[0])
    store_vectors((0,), new_states, state, unit, n_rows * width)
    row = int_pointer(call.where)[base + i]
    output = float_pointer(call.output)
    store_row(output, row * call.output_stride, block, call.hidden_size, new_states[0])
    if call.saved != 0:
        saved_row = (row * call.n_blocks + block) * len(slots_shape) * LANES
        store_vectors((), saved, float_pointer(call.saved), saved_row, LANES)
        cell_row = (row * (len(states_shape) - 1) - 1) * width + block * LANES
        store_vectors((0,), new_states, float_pointer(call.cells), cell_row, width)


@helper
def _stage_tile(rows, groups, units, a):
    """Add the product with the state to the projection, then finish the units in registers."""
    call, vector, panel, stage, finish, arguments = a
    _, place, _, before, slots, _ = arguments
    n_slots, size = len(slots), call.hidden_size
    row_size = call.n_blocks * n_slots * LANES
    workspace = float_pointer(call.workspace + 4 * (place[0] * row_size + len(before) * LANES))
    unit_size = n_slots * LANES
    tile = load_tile(
        workspace,
        scaled(rows, row_size),
        scaled(groups, unit_size),
        units,
        unit_size,
        stage,
    )
    width = len(stage) * LANES
    tile = product(
        tile,
        float_pointer(vector),
        scaled(rows, call.n_blocks * LANES),
        1,
        float_pointer(panel),
        scaled(groups, size * width),
        len(units) * width,
        size,
    )
    for_each(finish, tile, rows, groups, units, arguments)


@helper
def _step(call, active, place, first_equations, cell):
    """Advance `active` rows by one step."""
    slots, states, stage, stage_2, equations = cell
    _, n_rows, now, _ = place
    hidden = call.state + 4 * now * n_rows * call.n_blocks * LANES
    if first_equations is None:
        arguments = (call, place, equations, (), slots, states)
        walk(
            active,
            call.n_blocks,
            stage,
            _stage_tile,
            (call, hidden, call.panel, stage, _finish, arguments),
        )
    else:
        first = (call, place, first_equations, (), slots, states)
        walk(
            active,
            call.n_blocks,
            stage,
            _stage_tile,
            (call, hidden, call.panel, stage, _finish_first_stage, first),
        )
        second = (call, place, equations, stage, slots, states)
        walk(
            active,
            call.n_blocks,
            stage_2,
            _stage_tile,
            (call, call.source, call.panel_2, stage_2, _finish, second),
        )


# -- The pass -------------------------------------------------------------------------------------


@kernel
def restart_rows(calls, base, active, step, n_rows, now, n_states, stamp=STAMP):
    """Put the initial states back in the rows that start here."""
    call = record(calls)
    state, start = float_pointer(call.state), float_pointer(call.start)
    width = call.n_blocks * LANES
    for i in range(active):
        if restarts_at(call, int_pointer(call.where)[base + i], step):
            for n in range(n_states):
                buffer = now if n == 0 else n
                for k in range(0, width, LANES):
                    vector = load(start, (n * n_rows + i) * width + k)
                    store(state, (buffer * n_rows + i) * width + k, vector)


@kernel
def plan_chunk(calls, begin, active, step, longest, stamp=STAMP):
    """List the rows of the next steps that the workspace holds, and return where they end.

    Returns
    -------
    chunk_end, chunk_rows : int
        The step after the last one of the chunk, and the rows of all its steps.
    """
    call = record(calls)
    where, lengths = int_pointer(call.where), int_pointer(call.lengths)
    chunk_end, chunk_rows = step, INT0
    while chunk_end < longest and chunk_rows + active <= call.chunk_rows:
        for i in range(active):
            where[chunk_rows + i] = row_of_step(call, begin + i, chunk_end)
        chunk_rows += active
        chunk_end += 1
        while active > 0 and lengths[begin + active - 1] <= chunk_end:
            active -= 1
    return chunk_end, chunk_rows


@helper
def forward_pass(
    calls,
    begin,
    end,
    equations,
    first_equations,
    slots,
    states,
    project,
    first_input,
    stage,
    stage_2,
):
    """Run the forward pass of the positions begin ... end of the batch.

    Parameters
    ----------
    calls : int64 array
        A call, see :mod:`fastgates.engine.call`.
    equations, first_equations : function
        The cell's (see the module's docstring); the second None for cells of one stage.
    slots, states, stage, stage_2 : shape
        Tuples as long as the number of slots, of states, and of the slots of each stage.
    project : kernel
        ``project_1`` to ``project_4``, after the number of gates.
    first_input : int
        The first slot that takes a product with the input.
    """
    call = record(calls)
    cell = (slots, states, stage, stage_2, equations)
    n_states = INT0 + len(states)
    n_rows = end - begin
    lengths = int_pointer(call.lengths)
    load_states(calls, begin, end, call.initial, call.start, n_states)
    now, later = INT0, n_states
    active = n_rows
    step, longest = INT0, lengths[begin]
    while step < longest:
        chunk_end, chunk_rows = plan_chunk(calls, begin, active, step, longest)
        project(calls, chunk_rows, INT0 + len(slots), INT0 + first_input)
        base = INT0
        while step < chunk_end:
            if step == 0 or call.resets != 0:
                restart_rows(calls, base, active, step, n_rows, now, n_states)
            _step(call, active, (base, n_rows, now, later), first_equations, cell)
            now, later = later, now
            base += active
            step += 1
            while active > 0 and lengths[begin + active - 1] <= step:
                active -= 1
                store_states(
                    calls,
                    begin + active,
                    active,
                    n_rows,
                    call.state,
                    now,
                    call.final,
                    n_states,
                )
