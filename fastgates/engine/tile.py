"""The register tile: a small block of sums that lives in SIMD registers while a loop runs over k.

A tile is a tuple of vectors, ordered ``[row][group][vector]``. All products of the package, in the
forward pass, in back-propagation and for the weight gradients, are this one loop::

    tile[r, u, v] += a[rows[r] + k * a_step] * b[groups[u] + k * b_step + v * LANES : ... + LANES]

with the sum over k always in ascending order, each term added by one fused multiply-add. So a sum
has the same bits in a tile of any shape, alone or in a batch: the shapes are chosen for speed only.

Shapes are the lengths of tuples, since those are known when Numba compiles: ``(0,) * 3`` says
"three". The numbers in such a tuple do not matter.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from .._jit import INT0, helper
from .._simd import (
    LANES,
    REGISTERS,
    as_vector,
    float32v,
    float_p,
    fma_value,
    int_p,
    load_value,
    splat_value,
    vector_address,
)

__all__ = [
    "accumulate",
    "consecutive",
    "for_each",
    "gathered",
    "load_tile",
    "merged",
    "product",
    "scaled",
    "store_vectors",
    "tile_shapes",
    "units_of_group",
    "walk",
    "zero_tile",
]


def _vectors(count: int) -> Any:
    return types.UniTuple(float32v, count)


def _unpack(builder: Any, value: Any, count: int) -> list[Any]:
    return [builder.extract_value(value, i) for i in range(count)]


def _pack(context: Any, builder: Any, tuple_type: Any, values: list[Any]) -> Any:
    return cgutils.pack_array(builder, values, context.get_value_type(tuple_type.dtype))


# -- Tuples of integers ---------------------------------------------------------------------------


@intrinsic
def consecutive(typingctx, start, step, shape):  # type: ignore[no-untyped-def]
    """Return ``(start, start + step, start + 2 * step, ...)``, as long as `shape`."""
    result = types.UniTuple(types.int64, shape.count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        start, step, _ = args
        values = [builder.add(start, builder.mul(step, step.type(i))) for i in range(shape.count)]
        return _pack(context, builder, result, values)

    return result(types.int64, types.int64, shape), codegen


@intrinsic
def scaled(typingctx, numbers, factor):  # type: ignore[no-untyped-def]
    """Return the tuple `numbers`, each times `factor`."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        values = [builder.mul(n, args[1]) for n in _unpack(builder, args[0], numbers.count)]
        return _pack(context, builder, numbers, values)

    return numbers(numbers, types.int64), codegen


@intrinsic
def gathered(typingctx, pointer, places, factor):  # type: ignore[no-untyped-def]
    """Return ``pointer[place] * factor`` for each of the tuple `places`."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        pointer, values, factor = args
        found = [
            builder.mul(builder.load(builder.gep(pointer, [place])), factor)
            for place in _unpack(builder, values, places.count)
        ]
        return _pack(context, builder, places, found)

    return places(int_p, places, types.int64), codegen


# -- Tuples of vectors ----------------------------------------------------------------------------


@intrinsic
def merged(typingctx, before, vectors, pointer, index, step, shape):  # type: ignore[no-untyped-def]
    """Return a tuple as long as `shape`: `vectors` in their place, the others from memory.

    The place of `vectors` is after as many as `before` is long; place p is loaded from
    ``pointer[index + p * step]``. What is not used later costs nothing: the load is left out.
    """
    result = _vectors(shape.count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _, given, pointer, index, step, _ = args
        given = _unpack(builder, given, vectors.count)
        values = []
        for place in range(shape.count):
            if before.count <= place < before.count + vectors.count:
                values.append(given[place - before.count])
            else:
                offset = builder.mul(step, step.type(place))
                values.append(load_value(builder, pointer, builder.add(index, offset)))
        return _pack(context, builder, result, values)

    return result(before, vectors, float_p, types.int64, types.int64, shape), codegen


@intrinsic
def store_vectors(typingctx, before, vectors, pointer, index, step):  # type: ignore[no-untyped-def]
    """Store vector p at ``pointer[index + p * step]``, but not the first ones that `before` counts.

    A float32 among the vectors stands for a vector of it.
    """

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _, value, pointer, index, step = args
        for place, vector in enumerate(_unpack(builder, value, vectors.count)):
            if place >= before.count:
                vector = as_vector(builder, vectors.types[place], vector)
                offset = builder.add(index, builder.mul(step, step.type(place)))
                builder.store(vector, vector_address(builder, pointer, offset), align=4)
        return context.get_dummy_value()

    return types.void(before, vectors, float_p, types.int64, types.int64), codegen


@intrinsic
def load_tile(typingctx, pointer, rows, groups, units, unit_step, shape):  # type: ignore[no-untyped-def]
    """Return the tile whose vectors lie at ``pointer[rows[r] + groups[u] + unit * unit_step]``.

    There lie as many vectors side by side as `shape` is long; a group has as many units as `units`.
    """
    result = _vectors(rows.count * groups.count * units.count * shape.count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        pointer, row_values, group_values, _, unit_step, _ = args
        values = []
        for row in _unpack(builder, row_values, rows.count):
            for group in _unpack(builder, group_values, groups.count):
                for unit in range(units.count):
                    start = builder.add(row, group)
                    start = builder.add(start, builder.mul(unit_step, unit_step.type(unit)))
                    for g in range(shape.count):
                        place = builder.add(start, start.type(g * LANES))
                        values.append(load_value(builder, pointer, place))
        return _pack(context, builder, result, values)

    return result(float_p, rows, groups, units, types.int64, shape), codegen


@intrinsic
def zero_tile(typingctx, rows, groups, units):  # type: ignore[no-untyped-def]
    """Return a tile of zeros with one vector a unit."""
    count = rows.count * groups.count * units.count
    result = _vectors(count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return context.get_constant_null(result)

    return result(rows, groups, units), codegen


# -- The product ----------------------------------------------------------------------------------


@intrinsic
def accumulate(typingctx, tile, a, rows, a_offset, b, groups, b_offset):  # type: ignore[no-untyped-def]
    """Return `tile` with one term added to each of its sums.

    Parameters
    ----------
    tile : tuple of rows * groups * g vectors
    a : pointer
        Row r contributes the number ``a[rows[r] + a_offset]``.
    rows : tuple of int64
    b : pointer
        Group u contributes the g vectors from ``b[groups[u] + b_offset]`` on.
    groups : tuple of int64
    """
    n_rows, n_groups = rows.count, groups.count
    n_vectors = tile.count // n_rows
    per_group = n_vectors // n_groups

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        tile_value, a, rows, a_offset, b, groups, b_offset = args
        sums = _unpack(builder, tile_value, tile.count)
        row_starts = [builder.add(row, a_offset) for row in _unpack(builder, rows, n_rows)]
        group_starts = [
            builder.add(group, b_offset) for group in _unpack(builder, groups, n_groups)
        ]

        def number(r):  # type: ignore[no-untyped-def]
            return splat_value(builder, builder.load(builder.gep(a, [row_starts[r]])))

        def vector(v):  # type: ignore[no-untyped-def]
            start = group_starts[v // per_group]
            return load_value(builder, b, builder.add(start, start.type(v % per_group * LANES)))

        def add_term(r, v, x, y):  # type: ignore[no-untyped-def]
            place = r * n_vectors + v
            sums[place] = fma_value(builder, x, y, sums[place])

        # The shorter side is held in registers, so that the tile may take all the others but one.
        if n_rows < n_vectors:
            numbers = [number(r) for r in range(n_rows)]
            for v in range(n_vectors):
                y = vector(v)
                for r, x in enumerate(numbers):
                    add_term(r, v, x, y)
        else:
            vectors = [vector(v) for v in range(n_vectors)]
            for r in range(n_rows):
                x = number(r)
                for v, y in enumerate(vectors):
                    add_term(r, v, x, y)
        return _pack(context, builder, sig.return_type, sums)

    return tile(tile, float_p, rows, types.int64, float_p, groups, types.int64), codegen


@helper
def product(tile, a, rows, a_step, b, groups, b_step, count):
    """Return `tile` with the terms ``k = 0 ... count - 1`` added (see the module's docstring)."""
    for k in range(count):
        tile = accumulate(tile, a, rows, k * a_step, b, groups, k * b_step)
    return tile


@intrinsic
def for_each(typingctx, function, tile, rows, groups, units, arguments):  # type: ignore[no-untyped-def]
    """Call ``function(vectors, row, block, arguments)`` for each row and unit of a tile, unrolled.

    `vectors` are those of one row and block, still in registers; `row` is taken from the tuple
    `rows`, `block` counts on from those in `groups`.
    """
    n_units = groups.count * units.count
    vectors = _vectors(tile.count // (rows.count * n_units))
    call = function.get_call_type(typingctx, (vectors, types.int64, types.int64, arguments), {})

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _, tile_value, row_values, group_values, _, argument_values = args
        values = _unpack(builder, tile_value, tile.count)
        implementation = context.get_function(function, call)
        for r, row in enumerate(_unpack(builder, row_values, rows.count)):
            for u, group in enumerate(_unpack(builder, group_values, groups.count)):
                for unit in range(units.count):
                    first = ((r * groups.count + u) * units.count + unit) * vectors.count
                    part = _pack(context, builder, vectors, values[first : first + vectors.count])
                    block = builder.add(group, group.type(unit))
                    implementation(builder, (part, row, block, argument_values))
        return context.get_dummy_value()

    return types.void(function, tile, rows, groups, units, arguments), codegen


# -- Covering a matrix with tiles -----------------------------------------------------------------


def units_of_group(vectors_per_block: int) -> int:
    """Return how many blocks of units, each of so many vectors, make a group of a panel."""
    return {1: 4, 2: 2, 3: 1, 4: 1}[vectors_per_block]


def _tile_shapes(vectors_per_block: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes (tuples of zeros) of the tiles for blocks of 1 to 4 vectors.

    Returns
    -------
    rows
        Rows of the large tile: as many sums as the registers hold, near square to need few loads.
    units
        Blocks of a group: its vectors lie side by side in a panel, and make one tile's width.
    groups_of_one_row
        Groups of the tile for a single row: enough independent sums to hide the latency of an
        addition.
    """
    if REGISTERS == 32:
        rows, groups = {1: (4, 2), 2: (4, 2), 3: (6, 3), 4: (4, 3)}[vectors_per_block]
    else:
        rows, groups = {1: (3, 2), 2: (3, 2), 3: (4, 3), 4: (3, 2)}[vectors_per_block]
    return (0,) * rows, (0,) * units_of_group(vectors_per_block), (0,) * groups


def tile_shapes(block):  # type: ignore[no-untyped-def]
    """Return the shapes that :func:`walk` uses for blocks of as many vectors as `block` is long."""
    return _tile_shapes(len(block))


@overload(tile_shapes)
def _tile_shapes_overload(block):  # type: ignore[no-untyped-def]
    shapes = _tile_shapes(block.count)
    return lambda block: shapes


@helper
def _walk_rows(n_rows, group, shape, units, tile_function, arguments):
    """Cover all rows of one group with tiles of `shape`, 2 and 1 rows."""
    row = INT0
    groups = (group,)
    one = INT0 + 1
    while row + len(shape) <= n_rows:
        tile_function(consecutive(row, one, shape), groups, units, arguments)
        row += len(shape)
    while row + 2 <= n_rows:
        tile_function(consecutive(row, one, (0, 0)), groups, units, arguments)
        row += 2
    if row < n_rows:
        tile_function(consecutive(row, one, (0,)), groups, units, arguments)


@helper
def walk(n_rows, n_blocks, vectors_per_block, tile_function, arguments):
    """Call ``tile_function(rows, groups, units, arguments)`` for tiles that cover a matrix once.

    `vectors_per_block` and `units` are shapes; `groups` holds the first block of each group of
    neighbouring blocks, which lie side by side in a panel: as many as fit, then single ones. Groups
    run in the outer loop, so that a group's panel stays in the cache for all rows.
    """
    rows, units, groups_of_one_row = tile_shapes(vectors_per_block)
    block = INT0
    if n_rows == 1:
        width = INT0 + len(units)
        while block + len(groups_of_one_row) * width <= n_blocks:
            groups = consecutive(block, width, groups_of_one_row)
            tile_function((INT0,), groups, units, arguments)
            block += len(groups_of_one_row) * width
    while block + len(units) <= n_blocks:
        _walk_rows(n_rows, block, rows, units, tile_function, arguments)
        block += len(units)
    while block < n_blocks:
        _walk_rows(n_rows, block, rows, (0,), tile_function, arguments)
        block += 1
