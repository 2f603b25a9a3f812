"""The register tile: a small block of sums that lives in SIMD registers while a loop runs over k.

A tile is a tuple of vectors, ordered ``[row][block][vector]``. All products of the package, in the
forward pass, in back-propagation and for the weight gradients, are this one loop::

    tile[r, u, g] += a[rows[r] + k * a_step] * b[blocks[u] + k * b_step + g * LANES : ... + LANES]

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
    int_p,
    fma_value,
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
def consecutive(typingctx, start, shape):  # type: ignore[no-untyped-def]
    """Return ``(start, start + 1, ...)``, as long as `shape`."""
    result = types.UniTuple(types.int64, shape.count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        values = [builder.add(args[0], args[0].type(i)) for i in range(shape.count)]
        return _pack(context, builder, result, values)

    return result(types.int64, shape), codegen


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
def load_tile(typingctx, pointer, rows, blocks, shape):  # type: ignore[no-untyped-def]
    """Return the tile whose vectors lie at ``pointer[rows[r] + blocks[u]]``, `shape` side by side."""
    result = _vectors(rows.count * blocks.count * shape.count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        pointer, row_values, block_values, _ = args
        values = []
        for row in _unpack(builder, row_values, rows.count):
            for block in _unpack(builder, block_values, blocks.count):
                start = builder.add(row, block)
                for g in range(shape.count):
                    place = builder.add(start, start.type(g * LANES))
                    values.append(load_value(builder, pointer, place))
        return _pack(context, builder, result, values)

    return result(float_p, rows, blocks, shape), codegen


@intrinsic
def zero_tile(typingctx, rows, blocks, shape):  # type: ignore[no-untyped-def]
    """Return a tile of zeros."""
    count = rows.count * blocks.count * shape.count
    result = _vectors(count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return context.get_constant_null(result)

    return result(rows, blocks, shape), codegen


# -- The product ----------------------------------------------------------------------------------


@intrinsic
def accumulate(typingctx, tile, a, rows, a_offset, b, blocks, b_offset):  # type: ignore[no-untyped-def]
    """Return `tile` with one term added to each of its sums.

    Parameters
    ----------
    tile : tuple of rows * blocks * g vectors
    a : pointer
        Row r contributes the number ``a[rows[r] + a_offset]``.
    rows : tuple of int64
    b : pointer
        Block u contributes the g vectors from ``b[blocks[u] + b_offset]`` on.
    blocks : tuple of int64
    """
    n_rows, n_blocks = rows.count, blocks.count
    n_vectors = tile.count // n_rows
    per_block = n_vectors // n_blocks

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        tile_value, a, rows, a_offset, b, blocks, b_offset = args
        sums = _unpack(builder, tile_value, tile.count)
        row_starts = [builder.add(row, a_offset) for row in _unpack(builder, rows, n_rows)]
        block_starts = [
            builder.add(block, b_offset) for block in _unpack(builder, blocks, n_blocks)
        ]

        def number(r):  # type: ignore[no-untyped-def]
            return splat_value(builder, builder.load(builder.gep(a, [row_starts[r]])))

        def vector(v):  # type: ignore[no-untyped-def]
            start = block_starts[v // per_block]
            return load_value(builder, b, builder.add(start, start.type(v % per_block * LANES)))

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

    return tile(tile, float_p, rows, types.int64, float_p, blocks, types.int64), codegen


@helper
def product(tile, a, rows, a_step, b, blocks, b_step, count):
    """Return `tile` with the terms ``k = 0 ... count - 1`` added (see the module's docstring)."""
    for k in range(count):
        tile = accumulate(tile, a, rows, k * a_step, b, blocks, k * b_step)
    return tile


@intrinsic
def for_each(typingctx, function, tile, rows, blocks, arguments):  # type: ignore[no-untyped-def]
    """Call ``function(vectors, row, block, arguments)`` for each row and block of a tile, unrolled.

    `vectors` are those of one row and block, still in registers; `row` and `block` are taken from
    the tuples `rows` and `blocks`.
    """
    n_rows, n_blocks = rows.count, blocks.count
    vectors = _vectors(tile.count // (n_rows * n_blocks))
    call = function.get_call_type(typingctx, (vectors, types.int64, types.int64, arguments), {})

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _, tile_value, row_values, block_values, argument_values = args
        values = _unpack(builder, tile_value, tile.count)
        implementation = context.get_function(function, call)
        for r, row in enumerate(_unpack(builder, row_values, n_rows)):
            for u, block in enumerate(_unpack(builder, block_values, n_blocks)):
                first = (r * n_blocks + u) * vectors.count
                part = _pack(context, builder, vectors, values[first : first + vectors.count])
                implementation(builder, (part, row, block, argument_values))
        return context.get_dummy_value()

    return types.void(function, tile, rows, blocks, arguments), codegen


# -- Covering a matrix with tiles -----------------------------------------------------------------


def _tile_shapes(vectors_per_block: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes (tuples of zeros) of the tiles for blocks of 1 to 4 vectors.

    Returns
    -------
    rows, blocks
        The large tile: as many sums as the registers hold, near square to need few loads.
    blocks_of_one_row
        The tile for a single row: enough independent sums to hide the latency of an addition.
    """
    if REGISTERS == 32:
        table = {1: (4, 4, 4), 2: (4, 2, 4), 3: (6, 1, 3), 4: (4, 1, 3)}
    else:
        table = {1: (3, 4, 4), 2: (3, 2, 4), 3: (4, 1, 3), 4: (3, 1, 2)}
    rows, blocks, blocks_of_one_row = table[vectors_per_block]
    return (0,) * rows, (0,) * blocks, (0,) * blocks_of_one_row


def tile_shapes(block):  # type: ignore[no-untyped-def]
    """Return the shapes that :func:`walk` uses for blocks of as many vectors as `block` is long."""
    return _tile_shapes(len(block))


@overload(tile_shapes)
def _tile_shapes_overload(block):  # type: ignore[no-untyped-def]
    shapes = _tile_shapes(block.count)
    return lambda block: shapes


@helper
def _walk_rows(n_rows, first_block, shape, blocks, tile_function, arguments):
    """Cover all rows of the blocks from `first_block` on with tiles of `shape`, 2 and 1 rows."""
    row = INT0
    blocks_here = consecutive(first_block, blocks)
    while row + len(shape) <= n_rows:
        tile_function(consecutive(row, shape), blocks_here, arguments)
        row += len(shape)
    while row + 2 <= n_rows:
        tile_function(consecutive(row, (0, 0)), blocks_here, arguments)
        row += 2
    if row < n_rows:
        tile_function(consecutive(row, (0,)), blocks_here, arguments)


@helper
def walk(n_rows, n_blocks, vectors_per_block, tile_function, arguments):
    """Call ``tile_function(rows, blocks, arguments)`` for tiles that cover a matrix once.

    `vectors_per_block` is a shape. Blocks run in the outer loop, so that the panel of a block
    stays in the cache for all rows.
    """
    rows, blocks, blocks_of_one_row = tile_shapes(vectors_per_block)
    block = INT0
    if n_rows == 1:
        while block + len(blocks_of_one_row) <= n_blocks:
            tile_function(consecutive(INT0, (0,)), consecutive(block, blocks_of_one_row), arguments)
            block += len(blocks_of_one_row)
    else:
        while block + len(blocks) <= n_blocks:
            _walk_rows(n_rows, block, rows, blocks, tile_function, arguments)
            block += len(blocks)
    while block < n_blocks:
        _walk_rows(n_rows, block, rows, (0,), tile_function, arguments)
        block += 1
