"""The recurrent kernels: a block keeps its weights on the chip and walks through all time steps.

Two barriers a step: after the product, whose sums of parts then lie in shared memory, and after the
cell's equations, which a thread for each unit and sequence applies to them. Cells of two stages
take two more. Where several blocks share the units (see :mod:`fastgates.cuda._plans`), the second
barrier is one of the whole grid, and what the product takes comes from global memory: the output,
or the slots' gradients on the way back. No thread adds to a number of another's, so there are no
atomics, and results are the same bits from run to run.

What a step needs from global memory is asked for one step ahead.

The arrays, with B the batch, T the steps of a piece, H the hidden size, N the states, S the slots:

- ``slots`` (B, T, S * H): forward the pre-activations' share of the input, then (with a tape) the
  activated slots in their place; backward the gradients of the slots in their place.
- ``cells`` (B, T, (N - 1) * H): the states but the first after each step, kept with a tape.
- ``output`` (B, T', D * H): the first state after each step, 0 past the end of a sequence.
- ``packed``: weights of the products, biases of the slots, and a number for each unit.
- ``initial``, ``final`` (N, layers * D, B, H): `final` also carries the states from piece to piece.
- ``lengths`` (B,), ``resets`` (B, T''): as the layer takes them.

Time is absolute here: the reverse direction counts `t` down and starts at a sequence's last step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import float32, int32

from ._device import (
    SIMULATED,
    cuda,
    device_function,
    fma,
    load4,
    load_acquire,
    loader,
    on_device,
    store_release,
    storer,
)
from ._equations import equations_of
from ._packing import Packing
from ._plans import Plan, Product

__all__ = ["backward_kernel", "forward_kernel"]

ZERO = np.float32(0)

_MOST_UNROLLED = 256  # multiply-adds that the compiler is asked to unroll at a time

REVERSE, RESETS, INITIAL, CONTINUES, STARTS, GRADIENT = 1, 2, 4, 8, 16, 32
"""Bits of a kernel's `flags`: the direction; which arrays hold something (resets, initial, and on
the way back the gradient of the output); whether `final` holds states that are carried in; and
whether sequences start at time 0."""


def _product(
    stage: Product, plan: Plan, at: int, first: int, vectors: int, partial: int
) -> tuple[Any, Any]:
    """Return two device functions: one multiplies vectors with packed columns, one loads these.

    Parameters
    ----------
    at : int
        Where the weights of the first block begin in `packed`.
    first : int
        The first quads of a thread's share of them are loaded to its local array, from this number
        on; the product reads the others from `packed`.
    vectors, partial : int
        Where in shared memory the vectors of the rows lie, and where the product leaves the sums of
        each part, as ``[part][row][column][lane]``.
    """
    rows, columns, lanes = plan.rows, stage.columns, stage.lanes
    parts, quads, held, size = stage.parts, stage.quads, stage.held, stage.vector
    threads, n_sums, block = plan.threads, plan.rows * stage.columns, stage.block_weights
    count = 4 * columns

    def held_quads(begin: int, end: int) -> Any:
        """Return the device function for some of the quads in registers.

        The compiler makes registers of an array only if it unrolls all loops around it, which it
        does for a few hundred instructions at a time.
        """
        most = max(1, _MOST_UNROLLED // (4 * n_sums))
        middle = max(begin, end - most)
        before = held_quads(begin, middle) if middle > begin else None

        def multiply(weights, shared, part, sums):  # type: ignore[no-untyped-def]
            if before is not None:
                before(weights, shared, part, sums)
            for q in range(middle, end):
                for row in range(rows):
                    h = load4(shared, vectors + row * size + (q * parts + part) * 4)
                    for column in range(columns):
                        w, n = first + q * 4 * columns + column, row * columns + column
                        total = fma(weights[w], h[0], sums[n])
                        total = fma(weights[w + columns], h[1], total)
                        total = fma(weights[w + 2 * columns], h[2], total)
                        sums[n] = fma(weights[w + 3 * columns], h[3], total)

        return device_function(multiply)

    multiply_held = held_quads(0, held)

    def product(weights, packed, piece, shared, thread):  # type: ignore[no-untyped-def]
        begin = at + piece * block
        sums = cuda.local.array(n_sums, float32)
        for n in range(n_sums):
            sums[n] = ZERO
        part = thread // lanes
        multiply_held(weights, shared, part, sums)
        for q in range(held, quads):
            for column in range(columns):
                w = begin + (q * count + column) * threads + thread
                w0 = packed[w]
                w1 = packed[w + columns * threads]
                w2 = packed[w + 2 * columns * threads]
                w3 = packed[w + 3 * columns * threads]
                for row in range(rows):
                    h = load4(shared, vectors + row * size + (q * parts + part) * 4)
                    n = row * columns + column
                    total = fma(w0, h[0], sums[n])
                    total = fma(w1, h[1], total)
                    total = fma(w2, h[2], total)
                    sums[n] = fma(w3, h[3], total)
        lane = thread - part * lanes
        for row in range(rows):
            for column in range(columns):
                place = ((part * rows + row) * columns + column) * lanes + lane
                shared[partial + place] = sums[row * columns + column]

    def load_weights(weights, packed, piece, thread):  # type: ignore[no-untyped-def]
        begin = at + piece * block
        # Two loops, each short enough to be unrolled: only then is the array one of registers.
        for q in range(held):
            for n in range(count):
                w = q * count + n
                weights[first + w] = packed[begin + w * threads + thread]

    return device_function(product), device_function(load_weights)


def _summer(stage: Product, plan: Plan) -> Any:
    """Return a device function that adds up a column's sums of all parts, in their order."""
    rows, columns, lanes, parts = plan.rows, stage.columns, stage.lanes, stage.parts
    step = rows * columns * lanes

    def summed(shared, partial, row, column, lane):  # type: ignore[no-untyped-def]
        place = partial + (row * columns + column) * lanes + lane
        total = shared[place]
        for part in range(1, parts):
            total += shared[place + part * step]
        return total

    return device_function(summed)


def _slots_summer(stage: Product, plan: Plan, first: int, count: int, slots: int) -> Any:
    """Return a device function that adds the products of a stage to a tuple of pre-activations."""
    summed = _summer(stage, plan)

    def chain(place: int) -> Any:
        if place == 0:
            return device_function(lambda values, shared, partial, row, lane: ())
        before, slot = chain(place - 1), place - 1
        if first <= slot < first + count:
            column = slot - first

            def add(values, shared, partial, row, lane):  # type: ignore[no-untyped-def]
                total = values[slot] + summed(shared, partial, row, column, lane)
                return before(values, shared, partial, row, lane) + (total,)

            return device_function(add)

        def keep(values, shared, partial, row, lane):  # type: ignore[no-untyped-def]
            return before(values, shared, partial, row, lane) + (values[slot],)

        return device_function(keep)

    return chain(slots)


def _added(count: int) -> Any:
    """Return a device function that adds two tuples number by number."""
    if count == 0:
        return device_function(lambda a, b: ())
    before, place = _added(count - 1), count - 1

    def add(a, b):  # type: ignore[no-untyped-def]
        return before(a, b) + (a[place] + b[place],)

    return device_function(add)


def _given(numbers: int | None, settings: int, hidden: int, at: int) -> Any:
    """Return a device function that loads what the equations are given of a unit besides."""
    if numbers is None:
        return device_function(lambda packed, unit: packed[at + unit])
    load_numbers, begin = loader(numbers), at + numbers * hidden
    end = begin + settings

    def load(packed, unit):  # type: ignore[no-untyped-def]
        return packed[begin:end], load_numbers(packed, at + unit, hidden)

    return device_function(load)


def _unit_weights_adder(cell: Any, count: int) -> Any:
    """Return a device function that adds to the gradients of a unit's weights on its states."""
    if count == 0:
        return device_function(lambda d_slots, old, new, array, index, step: None)
    before, place = _unit_weights_adder(cell, count - 1), count - 1
    slot, state, after = cell.unit_weights[place]

    def add(d_slots, old, new, array, index, step):  # type: ignore[no-untyped-def]
        before(d_slots, old, new, array, index, step)
        value = new[state] if after else old[state]
        array[index + place * step] = fma(d_slots[slot], value, array[index + place * step])

    return device_function(add)


@device_function
def _restarts(t, row, lengths, resets, flags):  # type: ignore[no-untyped-def]
    """Tell whether the state goes back to the initial one before the step at time `t`.

    In reverse the pieces between resets are the same as forward, so one starts at its last step.
    """
    if (flags & REVERSE) != 0:
        if t == lengths[row] - 1:
            return True
        return (flags & RESETS) != 0 and resets[row, t + 1] != 0
    if t == 0 and (flags & STARTS) != 0:
        return True
    return (flags & RESETS) != 0 and resets[row, t] != 0


def _across_loader(count: int) -> Any:
    """Return a device function that loads a tuple over the first axis of states (N, L, B, H)."""
    if count == 0:
        return device_function(lambda states, direction, row, unit: ())
    before, place = _across_loader(count - 1), count - 1

    def load(states, direction, row, unit):  # type: ignore[no-untyped-def]
        return before(states, direction, row, unit) + (states[place, direction, row, unit],)

    return device_function(load)


def _others_storer(count: int) -> Any:
    """Return a device function that stores all states but the first, as ``storer`` does."""
    if count == 1:
        return device_function(lambda states, array, index, step: None)
    store_rest = storer(count - 1)

    def store(states, array, index, step):  # type: ignore[no-untyped-def]
        store_rest(states[1:], array, index, step)

    return device_function(store)


class _Places:
    """Where things lie in a block's shared memory, in floats.

    First the vectors of the rows, for two stages two sets, then the sums of the parts, then for
    each tile the numbers kept of each unit of each row.
    """

    def __init__(self, plan: Plan, two: bool) -> None:
        vectors = plan.rows * plan.largest_vector
        self.second = vectors if two else 0
        self.partial = self.second + vectors
        self.state = self.partial + plan.partials
        self.roles = plan.rows * plan.units
        self.tile = plan.kept * self.roles


def _role(plan: Plan, hidden: int) -> Any:
    """Return a device function that gives a thread its role in the equations.

    It is one unit of one of the rows of each tile. Threads without one get numbers that exist, for
    what they load in vain.
    """
    units, rows = plan.units, plan.rows

    def role(thread, piece):  # type: ignore[no-untyped-def]
        row = thread // units
        lane = thread - row * units
        unit = piece * units + lane
        if row < rows and unit < hidden:
            return True, row, lane, unit
        return False, 0, 0, 0

    return device_function(role)


def _fetch(stage: Product, plan: Plan, count: int, vectors: int) -> Any:
    """Return a device function that brings the vectors of a tile's rows to shared memory.

    Where blocks share the units each needs the numbers of all: `count` for a row, from `column` on
    at `time` in an array (B, T, ...).
    """
    rows, threads, size = plan.rows, plan.threads, stage.vector

    def fetch(array, time, column, first_row, batch, shared, thread):  # type: ignore[no-untyped-def]
        for n in range(thread, rows * count, threads):
            row = n // count
            k = n - row * count
            value = ZERO
            if first_row + row < batch:
                value = array[first_row + row, time, column + k]
            shared[vectors + row * size + k] = value
        cuda.syncthreads()

    return device_function(fetch)


def _barrier(plan: Plan) -> Any:
    """Return a device function that waits for all who write what the next product takes.

    Where blocks share the units of a group, each counts its steps in a place of `counters`, which
    all threads of one block or another watch: so a barrier joins the blocks of a group, not all.
    """
    if not plan.together:
        return device_function(lambda counters, meetings: cuda.syncthreads())
    slices, threads = plan.slices, plan.threads

    def wait(counters, meetings):  # type: ignore[no-untyped-def]
        cuda.syncthreads()
        thread = cuda.threadIdx.x
        if thread == 0:
            store_release(counters, cuda.blockIdx.x, int32(meetings))
        first = cuda.blockIdx.x // slices * slices
        for other in range(thread, slices, threads):
            while load_acquire(counters, first + other) < meetings:
                pass
        cuda.syncthreads()

    return device_function(wait)


def _jit(function: Any, plan: Plan) -> Any:
    if SIMULATED:
        return cuda.jit(function)
    return cuda.jit(max_registers=plan.registers, fastmath=False)(function)


def _with_first(count: int) -> Any:
    """Return a device function that puts a number in the first place of a tuple."""
    if count == 1:
        return device_function(lambda values, number: (number,))
    return device_function(lambda values, number: (number,) + values[1:])


@lru_cache(maxsize=256)
def forward_kernel(cell: Any, hidden: int, plan: Plan, keep: bool) -> Any:
    """Return the kernel of the forward pass of a cell; `keep` says whether for a tape."""
    n_slots, n_states, two = len(cell.slots), len(cell.states), len(cell.stages) == 2
    given = equations_of(cell)
    equations = on_device(given.step)
    first_equations = on_device(given.first_step) if two else None
    stage, stage_2 = plan.stages[0], plan.stages[-1]
    (first, count), (first_2, count_2) = cell.stages[0], cell.stages[-1]
    places = _Places(plan, two)
    size, size_2, partial, source_at = stage.vector, stage_2.vector, places.partial, places.second
    weights_2_at, biases_at, given_at = Packing.offsets(plan, hidden, n_slots)
    held = 4 * stage.held * stage.columns
    n_weights = max(1, held + (4 * stage_2.held * stage_2.columns if two else 0))
    product, load_weights = _product(stage, plan, 0, 0, 0, partial)
    product_2, load_weights_2 = _product(stage_2, plan, weights_2_at, held, source_at, partial)
    fetch_2 = _fetch(stage_2, plan, hidden, source_at)
    add_products = _slots_summer(stage, plan, first, count, n_slots)
    add_products_2 = _slots_summer(stage_2, plan, first_2, count_2, n_slots)
    add_biases = _added(n_slots)
    load_slots, store_slots = loader(n_slots), storer(n_slots)
    store_activated = storer(count)
    load_states, store_states = loader(n_states), storer(n_states)
    store_others = _others_storer(n_states)
    units, slices, rows, threads = plan.units, plan.slices, plan.rows, plan.threads
    together, wait = plan.together, _barrier(plan)
    role_of = _role(plan, hidden)
    state_at, roles, kept, clear = places.state, places.roles, places.tile, places.partial
    stash_at, n_shared = n_states * roles, plan.shared
    load_given = _given(given.numbers, 4 * len(cell.functions), hidden, given_at)

    @device_function
    def finish(here, constant, shared, at, arrays, times, row, t, column, unit):  # type: ignore[no-untyped-def]
        """Apply the equations of a step to a unit and store what they give."""
        slots, cells, output, lengths = arrays
        begin, output_begin = times
        new_states, saved = equations(here, load_states(shared, at, roles), constant)
        value = ZERO
        if t < lengths[row]:
            value = new_states[0]
            store_states(new_states, shared, at, roles)
            if keep:
                store_slots(saved, slots[row, t - begin], unit, hidden)
                store_others(new_states, cells[row, t - begin], unit, hidden)
        output[row, t - output_begin, column + unit] = value

    def forward(  # type: ignore[no-untyped-def]
        slots,
        cells,
        output,
        sources,
        packed,
        initial,
        final,
        lengths,
        resets,
        direction,
        column,
        begin,
        steps,
        output_begin,
        row_begin,
        batch,
        tiles,
        flags,
        counters,
    ):
        if SIMULATED:
            shared = cuda.shared.array(n_shared, float32)
        else:
            shared = cuda.shared.array(n_shared, float32, alignment=16)
        thread = cuda.threadIdx.x
        piece = cuda.blockIdx.x % slices
        first_row = row_begin + cuda.blockIdx.x // slices * tiles * rows
        reverse = (flags & REVERSE) != 0
        t_step = -1 if reverse else 1
        t_first = begin + steps - 1 if reverse else begin

        weights = cuda.local.array(n_weights, float32)
        load_weights(weights, packed, piece, thread)
        if two:
            load_weights_2(weights, packed, piece, thread)
        for n in range(thread, clear, threads):
            shared[n] = ZERO
        cuda.syncthreads()

        has_role, my_row, lane, unit = role_of(thread, piece)
        biases = load_slots(packed, biases_at + unit, hidden)
        constant = load_given(packed, unit)
        ahead = biases
        for tile in range(tiles):
            row = first_row + tile * rows + my_row
            if has_role and row < batch:
                at = state_at + tile * kept + my_row * units + lane
                carried = (flags & CONTINUES) != 0
                if carried and t_first < lengths[row]:
                    carried = not _restarts(t_first, row, lengths, resets, flags)
                for state in range(n_states):
                    value = ZERO
                    if carried:
                        value = final[state, direction, row, unit]
                    elif (flags & INITIAL) != 0:
                        value = initial[state, direction, row, unit]
                    shared[at + state * roles] = value
                if not together:
                    shared[my_row * size + lane] = shared[at]
                if tile == 0 and steps > 0:
                    ahead = load_slots(slots[row, t_first - begin], unit, hidden)
        arrays, times = (slots, cells, output, lengths), (begin, output_begin)
        meetings = 0
        if together:
            # So that all blocks run at the same time, which Numba promises to who says this once.
            cuda.cg.this_grid().sync()
        else:
            cuda.syncthreads()

        for step in range(steps):
            t = t_first + t_step * step
            for tile in range(tiles):
                tile_row = first_row + tile * rows
                if together:
                    for n in range(thread, rows * hidden, threads):
                        r = n // hidden
                        k = n - r * hidden
                        row = tile_row + r
                        value = ZERO
                        if row < batch and t < lengths[row]:
                            carried = step > 0 or (flags & CONTINUES) != 0
                            if carried:
                                carried = not _restarts(t, row, lengths, resets, flags)
                            if carried:
                                if step > 0:
                                    value = output[row, t - t_step - output_begin, column + k]
                                else:
                                    value = final[0, direction, row, k]
                            elif (flags & INITIAL) != 0:
                                value = initial[0, direction, row, k]
                        shared[r * size + k] = value
                    cuda.syncthreads()
                product(weights, packed, piece, shared, thread)
                row = tile_row + my_row
                mine = has_role and row < batch
                here = ahead
                # What the next round takes is asked for now.
                next_row, next_t = row + rows, t
                if tile + 1 == tiles:
                    next_row, next_t = first_row + my_row, t + t_step
                if has_role and next_row < batch and begin <= next_t and next_t < begin + steps:
                    ahead = load_slots(slots[next_row, next_t - begin], unit, hidden)
                cuda.syncthreads()
                if mine:
                    at = state_at + tile * kept + my_row * units + lane
                    here = add_products(add_biases(here, biases), shared, partial, my_row, lane)
                    if two:
                        states = load_states(shared, at, roles)
                        source, activated = first_equations(here, states, constant)
                        store_slots(here, shared, at + stash_at, roles)
                        store_activated(activated, shared, at + stash_at + first * roles, roles)
                        if together:
                            sources[row, 0, unit] = source
                        else:
                            shared[source_at + my_row * size_2 + lane] = source
                    else:
                        finish(here, constant, shared, at, arrays, times, row, t, column, unit)
            if two:
                meetings += 1
                wait(counters, meetings)
                for tile in range(tiles):
                    tile_row = first_row + tile * rows
                    if together:
                        fetch_2(sources, 0, 0, tile_row, batch, shared, thread)
                    product_2(weights, packed, piece, shared, thread)
                    cuda.syncthreads()
                    row = tile_row + my_row
                    if has_role and row < batch:
                        at = state_at + tile * kept + my_row * units + lane
                        here = load_slots(shared, at + stash_at, roles)
                        here = add_products_2(here, shared, partial, my_row, lane)
                        finish(here, constant, shared, at, arrays, times, row, t, column, unit)
            # The state that the next step begins with.
            for tile in range(tiles):
                row = first_row + tile * rows + my_row
                if has_role and row < batch:
                    at = state_at + tile * kept + my_row * units + lane
                    if step + 1 < steps and t + t_step < lengths[row]:
                        if _restarts(t + t_step, row, lengths, resets, flags):
                            for state in range(n_states):
                                value = ZERO
                                if (flags & INITIAL) != 0:
                                    value = initial[state, direction, row, unit]
                                shared[at + state * roles] = value
                    if not together:
                        shared[my_row * size + lane] = shared[at]
            meetings += 1
            wait(counters, meetings)

        for tile in range(tiles):
            row = first_row + tile * rows + my_row
            if has_role and row < batch:
                at = state_at + tile * kept + my_row * units + lane
                for state in range(n_states):
                    final[state, direction, row, unit] = shared[at + state * roles]

    return _jit(forward, plan)


@lru_cache(maxsize=256)
def backward_kernel(cell: Any, hidden: int, plan: Plan, unit_weights: int = 0) -> Any:
    """Return the kernel of back-propagation through time of a cell.

    Beside the gradients of the slots it leaves what the recurrent weights multiplied, for their
    gradients: the old hidden state in ``hiddens`` and, of two stages, what the second one took in
    ``sources``; both, and the gradients, are 0 past the end of a sequence. `d_states` holds the
    gradients of the final states and at the end those of the states before the piece, and
    `d_initial` collects those of the initial states. `d_units` (B, 1, unit_weights * H) gets the
    gradients of the units' weights on their own states, of each sequence.
    """
    n_slots, n_states, two = len(cell.slots), len(cell.states), len(cell.stages) == 2
    given = equations_of(cell)
    equations = on_device(given.step_backward)
    first_equations = on_device(given.first_step_backward) if two else None
    stage, stage_2 = plan.stages[-1], plan.stages[0]
    (first, count), (first_2, count_2) = cell.stages[0], cell.stages[-1]
    places = _Places(plan, two)
    size, size_2, partial, second_at = stage.vector, stage_2.vector, places.partial, places.second
    # Weights lie in the order of use: on the way back the second stage comes first.
    after_first, _, given_at = Packing.offsets(plan, hidden, n_slots)
    held = 4 * stage.held * stage.columns
    n_weights = max(1, held + (4 * stage_2.held * stage_2.columns if two else 0))
    product, load_weights = _product(stage, plan, after_first if two else 0, 0, 0, partial)
    product_2, load_weights_2 = _product(stage_2, plan, 0, held, second_at, partial)
    fetch = _fetch(stage, plan, count * hidden, 0)
    fetch_2 = _fetch(stage_2, plan, count_2 * hidden, second_at)
    summed, summed_2 = _summer(stage, plan), _summer(stage_2, plan)
    load_slots, store_slots = loader(n_slots), storer(n_slots)
    load_stage, store_stage = loader(count), storer(count)
    load_stage_2, store_stage_2 = loader(count_2), storer(count_2)
    load_states, store_states = loader(n_states), storer(n_states)
    load_others, with_first = loader(n_states - 1), _with_first(n_states)
    zeros, zero_slots = (ZERO,) * n_states, (ZERO,) * n_slots
    units, slices, rows, threads = plan.units, plan.slices, plan.rows, plan.threads
    together, wait = plan.together, _barrier(plan)
    role_of = _role(plan, hidden)
    state_at, roles, kept, clear = places.state, places.roles, places.tile, places.partial
    start_at = n_states * roles
    stash_at, old_at, n_shared = 2 * start_at, 2 * start_at + n_slots * roles, plan.shared
    units_at = kept - unit_weights * roles
    add_unit_weights = _unit_weights_adder(cell, unit_weights)
    if unit_weights and two:
        raise ValueError(f"weights of units with two stages, as of {cell.name}, need device='cpu'")
    load_given = _given(given.numbers, 4 * len(cell.functions), hidden, given_at)
    load_across = _across_loader(n_states)
    lanes = stage.lanes

    @device_function
    def gather(arrays, place, row, t, unit):  # type: ignore[no-untyped-def]
        """Return what the equations take of the step at time `t` from global memory.

        These are the slots, the states before and after (but for the first one after), and the
        gradient of the output.
        """
        slots, output, cells, d_output, initial, carried, lengths, resets = arrays
        direction, carried_direction, column, begin, steps, flags = place
        before = t + 1 if (flags & REVERSE) != 0 else t - 1
        if _restarts(t, row, lengths, resets, flags):
            old = zeros
            if (flags & INITIAL) != 0:
                old = load_across(initial, direction, row, unit)
        elif before < begin or before >= begin + steps:
            old = load_across(carried, carried_direction, row, unit)
        else:
            others = load_others(cells[row, before - begin], unit, hidden)
            old = (output[row, before, column + unit],) + others
        saved = load_slots(slots[row, t - begin], unit, hidden)
        new = (ZERO,) + load_others(cells[row, t - begin], unit, hidden)
        d_out = ZERO
        if (flags & GRADIENT) != 0:
            d_out = d_output[row, t, column + unit]
        return saved, old, new, d_out

    def backward(  # type: ignore[no-untyped-def]
        slots,
        cells,
        output,
        hiddens,
        sources,
        packed,
        initial,
        carried,
        d_output,
        d_states,
        d_initial,
        d_units,
        lengths,
        resets,
        direction,
        column,
        begin,
        steps,
        carried_direction,
        row_begin,
        batch,
        tiles,
        flags,
        counters,
    ):
        if SIMULATED:
            shared = cuda.shared.array(n_shared, float32)
        else:
            shared = cuda.shared.array(n_shared, float32, alignment=16)
        thread = cuda.threadIdx.x
        piece = cuda.blockIdx.x % slices
        first_row = row_begin + cuda.blockIdx.x // slices * tiles * rows
        reverse = (flags & REVERSE) != 0
        t_step = 1 if reverse else -1
        t_first = begin if reverse else begin + steps - 1

        weights = cuda.local.array(n_weights, float32)
        load_weights(weights, packed, piece, thread)
        if two:
            load_weights_2(weights, packed, piece, thread)
        for n in range(thread, clear, threads):
            shared[n] = ZERO
        cuda.syncthreads()

        has_role, my_row, lane, unit = role_of(thread, piece)
        my_column = lane // lanes
        my_lane = lane - my_column * lanes
        constant = load_given(packed, unit)
        arrays = slots, output, cells, d_output, initial, carried, lengths, resets
        place = direction, carried_direction, column, begin, steps, flags
        saved, old, new, d_out = zero_slots, zeros, zeros, ZERO
        for tile in range(tiles):
            row = first_row + tile * rows + my_row
            if has_role and row < batch:
                at = state_at + tile * kept + my_row * units + lane
                for state in range(n_states):
                    shared[at + state * roles] = d_states[state, direction, row, unit]
                    shared[at + start_at + state * roles] = d_initial[state, direction, row, unit]
                for weight in range(unit_weights):
                    shared[at + units_at + weight * roles] = ZERO
                if tile == 0 and steps > 0 and t_first < lengths[row]:
                    saved, old, new, d_out = gather(arrays, place, row, t_first, unit)

        meetings = 0
        if together:
            cuda.cg.this_grid().sync()
        for step in range(steps):
            t = t_first + t_step * step
            for tile in range(tiles):
                row = first_row + tile * rows + my_row
                mine = has_role and row < batch
                active = mine and t < lengths[row]
                now_saved, now_old, now_new, now_d_out = saved, old, new, d_out
                next_row, next_t = row + rows, t
                if tile + 1 == tiles:
                    next_row, next_t = first_row + my_row, t + t_step
                if has_role and next_row < batch and begin <= next_t and next_t < begin + steps:
                    if next_t < lengths[next_row]:
                        saved, old, new, d_out = gather(arrays, place, next_row, next_t, unit)
                if mine:
                    at = state_at + tile * kept + my_row * units + lane
                    d_slots, old_hidden = zero_slots, ZERO
                    if active:
                        d_new = load_states(shared, at, roles)
                        d_new = with_first(d_new, d_new[0] + now_d_out)
                        d_slots, d_old = equations(d_new, now_saved, now_old, now_new, constant)
                        store_states(d_old, shared, at, roles)
                        old_hidden = now_old[0]
                        add_unit_weights(d_slots, now_old, now_new, shared, at + units_at, roles)
                    store_slots(d_slots, slots[row, t - begin], unit, hidden)
                    hiddens[row, t - begin, unit] = old_hidden
                    if two:
                        store_slots(d_slots, shared, at + stash_at, roles)
                        store_states(now_old, shared, at + old_at, roles)
                        if not together:
                            values = load_stage_2(shared, at + stash_at + first_2 * roles, roles)
                            vector = second_at + my_row * size_2 + unit
                            store_stage_2(values, shared, vector, hidden)
                    elif not together:
                        store_stage(d_slots, shared, my_row * size + unit, hidden)
            meetings += 1
            wait(counters, meetings)
            if two:
                for tile in range(tiles):
                    tile_row = first_row + tile * rows
                    if together:
                        fetch_2(slots, t - begin, first_2 * hidden, tile_row, batch, shared, thread)
                    product_2(weights, packed, piece, shared, thread)
                    cuda.syncthreads()
                    row = tile_row + my_row
                    if has_role and row < batch:
                        at = state_at + tile * kept + my_row * units + lane
                        source = ZERO
                        d_first = load_stage(shared, at + stash_at + first * roles, roles)
                        if t < lengths[row]:
                            d_first, d_hidden, source = first_equations(
                                summed_2(shared, partial, my_row, my_column, my_lane),
                                load_slots(shared, at + stash_at, roles),
                                load_states(shared, at + old_at, roles),
                                constant,
                            )
                            shared[at] += d_hidden
                            store_stage(
                                d_first, slots[row, t - begin], first * hidden + unit, hidden
                            )
                        sources[row, t - begin, unit] = source
                        if not together:
                            store_stage(d_first, shared, my_row * size + unit, hidden)
                meetings += 1
                wait(counters, meetings)
            for tile in range(tiles):
                tile_row = first_row + tile * rows
                if together:
                    fetch(slots, t - begin, first * hidden, tile_row, batch, shared, thread)
                product(weights, packed, piece, shared, thread)
                cuda.syncthreads()
                row = tile_row + my_row
                if has_role and row < batch and t < lengths[row]:
                    at = state_at + tile * kept + my_row * units + lane
                    shared[at] += summed(shared, partial, my_row, my_column, my_lane)
                    if _restarts(t, row, lengths, resets, flags):
                        for state in range(n_states):
                            shared[at + start_at + state * roles] += shared[at + state * roles]
                            shared[at + state * roles] = ZERO

        for tile in range(tiles):
            row = first_row + tile * rows + my_row
            if has_role and row < batch:
                at = state_at + tile * kept + my_row * units + lane
                for state in range(n_states):
                    d_states[state, direction, row, unit] = shared[at + state * roles]
                    d_initial[state, direction, row, unit] = shared[at + start_at + state * roles]
                for weight in range(unit_weights):
                    d_units[row, 0, weight * hidden + unit] = shared[at + units_at + weight * roles]

    return _jit(backward, plan)
