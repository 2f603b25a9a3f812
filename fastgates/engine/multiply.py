"""The one product of the package: rows of numbers times a panel of vectors.

Forward pass, back-propagation, weight gradients and :class:`fastgates.Dense` all call the kernel
:func:`multiply`::

    c[r, v] = init[r, v] + sum over k of a[r, k] * b[k, v]

where `v` counts vectors of :data:`~fastgates._simd.LANES` floats. It covers rows and vectors with
*tiles*: a few rows by up to four vectors, whose sums stay in registers while a loop runs over k.
Shapes follow the register file, so that sums, one vector or number of the panel and a broadcast
fill it, and enough sums are independent to hide the latency of an addition. The sum over k always
runs in ascending order, each term one fused multiply-add, so a sum has the same bits in a tile of
any shape; shapes are chosen for speed only.

The kernel is compiled once. Kernels of the cells call it by its address, which a call's record
holds (:mod:`fastgates.engine.call`), so its machine code is not part of theirs. To call it takes as
long as a good part of a small cell's step: where there is but one row, its tiles are part of the
caller instead (:func:`multiply_row`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .._jit import INT0, STAMP, helper, kernel
from .._simd import (
    LANES,
    REGISTERS,
    fma_value,
    load_value,
    splat_value,
    vector_address,
)

__all__ = ["GROUP", "call_multiply", "multiply", "multiply_address", "multiply_row"]

GROUP = 4  # vectors that lie side by side in a panel, and that a tile is wide

# Rows of the tiles for 1 to 4 vectors, largest first: the last ones take what is left.
_ROWS = (
    {1: (8, 4, 2, 1), 2: (8, 4, 2, 1), 3: (4, 2, 1), 4: (4, 2, 1)}
    if REGISTERS == 32
    else {1: (8, 4, 2, 1), 2: (6, 4, 2, 1), 3: (4, 2, 1), 4: (3, 2, 1)}
) | {2 * GROUP: (1,)}  # a single row takes two groups at once, for enough independent sums
_BLOCK = 128 * GROUP  # vectors of a panel that rows run over at a time: half of an L1 cache


@contextmanager
def _loop(builder: Any, count: Any) -> Iterator[Any]:
    """Emit a loop over k = 0 ... count - 1, its body as it stands.

    LLVM unrolls short loops and then loads ahead more than there are registers for.
    """
    place = cgutils.alloca_once_value(builder, ir.Constant(count.type, 0))
    test, body, done = (builder.append_basic_block() for _ in range(3))
    builder.branch(test)
    builder.position_at_end(test)
    k = builder.load(place)
    builder.cbranch(builder.icmp_signed("<", k, count), body, done)
    builder.position_at_end(body)
    yield k
    builder.store(builder.add(k, ir.Constant(k.type, 1)), place)
    module = builder.module
    whole = ir.MetaDataString(module, "llvm.loop.unroll.disable")
    # The first operand of what names a loop is itself; the name keeps it apart from others.
    name = ir.MetaDataString(module, f"fastgates.loop.{len(module.metadata)}")
    loop = module.add_metadata([name, module.add_metadata([whole])])
    loop.operands = (loop, *loop.operands[1:])
    builder.branch(test).set_metadata("llvm.loop", loop)
    builder.position_at_end(done)


def tile(builder: Any, n_rows: int, width: int, first_row: Any, names: dict[str, Any]) -> None:
    """Emit one tile: `n_rows` rows from `first_row` on by `width` vectors."""
    integer = ir.IntType(64)
    floats = ir.FloatType().as_pointer()

    def constant(value: int) -> Any:
        return ir.Constant(integer, value)

    def row_numbers(table: Any) -> list[Any]:
        """Emit the rows' numbers: from a table, or as they are counted where there is none."""
        counted = [builder.add(first_row, constant(r)) for r in range(n_rows)]
        places = [cgutils.alloca_once_value(builder, number) for number in counted]
        with builder.if_then(builder.icmp_signed("!=", table, constant(0))):
            pointer = builder.inttoptr(table, integer.as_pointer())
            for number, place in zip(counted, places, strict=True):
                builder.store(builder.load(builder.gep(pointer, [number])), place)
        return [builder.load(place) for place in places]

    a, b, c, init = (builder.inttoptr(names[name], floats) for name in ("a", "b", "c", "init"))
    a_starts = [builder.mul(row, names["a_row"]) for row in row_numbers(names["a_rows"])]
    c_rows = row_numbers(names["c_rows"])
    c_starts = [builder.mul(row, names["c_row"]) for row in c_rows]
    sums = []
    for row in c_rows:
        start = builder.mul(row, names["init_row"])
        for v in range(width):
            place = builder.add(start, builder.mul(names["init_vector"], constant(v)))
            sums.append(cgutils.alloca_once_value(builder, load_value(builder, init, place)))

    with _loop(builder, names["count"]) as k:
        a_place, b_place = builder.mul(k, names["a_step"]), builder.mul(k, names["b_step"])

        def number(r: int) -> Any:
            at = builder.gep(a, [builder.add(a_starts[r], a_place)])
            return splat_value(builder, builder.load(at))

        def vector(v: int) -> Any:
            place = builder.add(b_place, constant(v % GROUP * LANES))
            if v >= GROUP:
                place = builder.add(place, names["b_group"])
            return load_value(builder, b, place)

        def add_term(r: int, v: int, x: Any, y: Any) -> None:
            place = sums[r * width + v]
            builder.store(fma_value(builder, x, y, builder.load(place)), place)

        # The shorter side is held in registers, so that the sums may take all the others but one.
        if n_rows < width:
            numbers = [number(r) for r in range(n_rows)]
            for v in range(width):
                y = vector(v)
                for r, x in enumerate(numbers):
                    add_term(r, v, x, y)
        else:
            vectors = [vector(v) for v in range(width)]
            for r in range(n_rows):
                x = number(r)
                for v, y in enumerate(vectors):
                    add_term(r, v, x, y)

    joins = builder.icmp_signed("!=", names["join"], constant(0))
    places = [builder.add(start, constant(v * LANES)) for start in c_starts for v in range(width)]
    with builder.if_then(joins):
        for place, total in zip(places, sums, strict=True):
            builder.store(builder.fadd(load_value(builder, c, place), builder.load(total)), total)
    for place, total in zip(places, sums, strict=True):
        builder.store(builder.load(total), vector_address(builder, c, place), align=4)


_ARGUMENTS = (
    "count",
    "a",
    "a_rows",
    "a_row",
    "a_step",
    "b",
    "b_step",
    "b_group",
    "c",
    "c_rows",
    "c_row",
    "init",
    "init_row",
    "init_vector",
    "join",
)


@intrinsic
def _cover(typingctx, width, n_rows, arguments):  # type: ignore[no-untyped-def]
    """Cover `n_rows` rows of as many vectors as the shape `width` is long with tiles."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _, n_rows, values = args
        names = {name: builder.extract_value(values, i) for i, name in enumerate(_ARGUMENTS)}
        row = cgutils.alloca_once_value(builder, ir.Constant(n_rows.type, 0))
        for rows in _ROWS[width.count]:
            test, body, done = (builder.append_basic_block() for _ in range(3))
            builder.branch(test)
            builder.position_at_end(test)
            after = builder.add(builder.load(row), ir.Constant(n_rows.type, rows))
            builder.cbranch(builder.icmp_signed("<=", after, n_rows), body, done)
            builder.position_at_end(body)
            tile(builder, rows, width.count, builder.load(row), names)
            builder.store(after, row)
            builder.branch(test)
            builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(width, types.int64, arguments), codegen


@helper
def _group(width, n_rows, count, a, b, c, init, join, parts, a_part):
    """Compute the vectors of one group, or two, for all rows.

    The sum over k is cut where a part ends, and where the panel would leave the L1 cache before all
    rows have used it; it goes on from what is stored.
    """
    a_at, a_rows, a_row, a_step = a
    b_at, b_step, b_group = b
    c_at, c_rows, c_row = c
    init_at, init_row, init_vector = init
    most = INT0 + _BLOCK // len(width)
    for part in range(parts):
        k = INT0
        while True:
            size = count - k
            if n_rows > 4 and join == 0 and size > most + most // 2:
                size = most
            arguments = (
                size,
                a_at + 4 * (part * a_part + k * a_step),
                a_rows,
                a_row,
                a_step,
                b_at,
                b_step,
                b_group,
                c_at,
                c_rows,
                c_row,
                init_at,
                init_row,
                init_vector,
                join,
            )
            _cover(width, n_rows, arguments)
            init_at, init_row, init_vector = c_at, c_row, INT0 + LANES
            b_at += 4 * size * b_step
            k += size
            if k >= count:
                break


@kernel
def multiply(
    n_rows,
    n_vectors,
    count,
    a,
    a_rows,
    a_row,
    a_step,
    b,
    b_step,
    c,
    c_rows,
    c_row,
    c_group,
    init,
    init_row,
    init_vector,
    join,
    parts,
    a_part,
    stamp=STAMP,
):
    """Multiply rows of numbers with a panel of vectors (see the module's docstring).

    All arguments are int64; lengths and strides count floats, and addresses are those of float32.

    Parameters
    ----------
    n_rows, n_vectors, count : int
        Sizes of the product; `count` numbers a part are summed over.
    a, a_rows, a_row, a_step : int
        Number k of row r is at ``a + a_rows[r] * a_row + k * a_step``. `a_rows` is the address of
        int64 row numbers; 0 stands for 0, 1, 2, ...
    b, b_step : int
        The panel: groups of :data:`GROUP` vectors, in a group the vectors of k = 0, then those of
        k = 1, and so on; the last group may be narrower. A `b_step` other than 0 stands for plain
        rows instead: vector v of k is at ``b + k * b_step + v * LANES``.
    c, c_rows, c_row, c_group : int
        Vector v of row r of the result is at ``c + c_rows[r] * c_row + v * LANES``. A `c_group`
        other than 0 is how far groups of vectors are apart instead of side by side.
    init, init_row, init_vector : int
        The sum starts from the vector at ``init + c_rows[r] * init_row + v * init_vector``.
    join : int
        Other than 0: the sum is added to what is stored at `c`.
    parts, a_part : int
        The numbers of a row come in so many parts of `count`, `a_part` apart; the panel has them
        one after the other.
    """
    vector = INT0
    while vector < n_vectors:
        left = n_vectors - vector
        width = min(left, GROUP)
        step = b_step if b_step != 0 else width * LANES
        group = INT0 + GROUP * LANES if b_step != 0 else parts * count * GROUP * LANES
        a_ = (a, a_rows, a_row, a_step)
        b_ = (b, step, group)
        c_ = (c, c_rows, c_row)
        init_ = (init, init_row, init_vector)
        if n_rows == 1 and c_group == 0 and left >= 2 * GROUP:
            _group(_EIGHT, n_rows, count, a_, b_, c_, init_, join, parts, a_part)
            width = INT0 + 2 * GROUP
        elif width == 4:
            _group(_FOUR, n_rows, count, a_, b_, c_, init_, join, parts, a_part)
        elif width == 3:
            _group((0, 0, 0), n_rows, count, a_, b_, c_, init_, join, parts, a_part)
        elif width == 2:
            _group((0, 0), n_rows, count, a_, b_, c_, init_, join, parts, a_part)
        else:
            _group((0,), n_rows, count, a_, b_, c_, init_, join, parts, a_part)
        b += 4 * group * ((width + GROUP - 1) // GROUP)
        c += 4 * (c_group if c_group != 0 else width * LANES)
        init += 4 * width * init_vector
        vector += width


_FOUR = (0,) * GROUP
_EIGHT = (0,) * (2 * GROUP)
_N_ARGUMENTS = 19


@lru_cache(maxsize=1)
def multiply_address() -> int:
    """Return the address of the compiled kernel, for :func:`call_multiply`."""
    return int(multiply.address(*[types.int64] * _N_ARGUMENTS))


@intrinsic
def call_multiply(typingctx, at, sizes, a, b, c, init, join, parts):  # type: ignore[no-untyped-def]
    """Call :func:`multiply` by its address, with its arguments in groups.

    Parameters
    ----------
    at : int
        See :func:`multiply_address`.
    sizes, a, b, c, init, join, parts : tuple of int, and int for join
        ``(n_rows, n_vectors, count)``, ``(a, a_rows, a_row, a_step)``, ``(b, b_step)``,
        ``(c, c_rows, c_row, c_group)``, ``(init, init_row, init_vector)``, ``join`` and
        ``(parts, a_part)`` of the kernel.
    """
    groups = [types.UniTuple(types.int64, count) for count in (3, 4, 2, 4, 3)]

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        # Numba's own convention: a status is returned (the kernel cannot fail), and places for the
        # result, here None, and for an exception come first.
        place = ir.IntType(8).as_pointer()
        parameters = [place.as_pointer()] * 2 + [ir.IntType(64)] * _N_ARGUMENTS
        function_type = ir.FunctionType(ir.IntType(32), parameters)
        function = builder.inttoptr(args[0], function_type.as_pointer())
        values = [cgutils.alloca_once(builder, place) for _ in range(2)]
        for group, value in zip(sig.args[1:], args[1:], strict=True):
            if isinstance(group, types.UniTuple):
                values += cgutils.unpack_tuple(builder, value, group.count)
            else:
                values.append(value)
        builder.call(function, values)
        return context.get_dummy_value()

    last = types.UniTuple(types.int64, 2)
    return types.void(types.int64, *groups, types.int64, last), codegen


# -- A single row ----------------------------------------------------------------------------------


@intrinsic
def _row_tile(typingctx, width, count, a, b, group, c, init):  # type: ignore[no-untyped-def]
    """Make the tile of one row by as many vectors as `width` is long.

    All but sizes and addresses is known to the compiler. Groups of the panel are `group` rows long.
    """

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        names = dict(zip(("count", "a", "b", "group", "c", "init"), args[1:], strict=True))
        n_vectors, integer = width.count, ir.IntType(64)
        known = {"a_rows": 0, "a_row": 0, "a_step": 1, "b_step": min(n_vectors, GROUP) * LANES}
        known |= {"c_rows": 0, "c_row": 0, "init_row": 0, "init_vector": LANES, "join": 0}
        names |= {name: ir.Constant(integer, value) for name, value in known.items()}
        names["b_group"] = builder.mul(names["group"], ir.Constant(integer, GROUP * LANES))
        tile(builder, 1, n_vectors, ir.Constant(integer, 0), names)
        return context.get_dummy_value()

    return types.void(width, *[types.int64] * 6), codegen


@helper
def multiply_row(n_vectors, count, a, b, c, init, parts, a_part, backwards):
    """Multiply one row with a panel, as :func:`multiply` does, in the code of the caller.

    Parameters
    ----------
    n_vectors, count, a, b, c, init, parts, a_part : int
        As there; the numbers of a part lie side by side, and so do the vectors of `c` and `init`.
    backwards : int
        Other than 0: the last vectors come first. If every second of many products with a panel
        does so, it begins with what the one before has left of the panel in the cache.
    """
    pair = INT0 + 2 * GROUP
    n_pairs = (n_vectors + pair - 1) // pair
    for i in range(n_pairs):
        done = pair * (n_pairs - 1 - i if backwards != 0 else i)
        end = min(done + pair, n_vectors)
        while done < end:
            left, at = end - done, 4 * LANES * done
            panel, sums, starts, group = b + at * parts * count, c + at, init + at, parts * count
            width = left if left < GROUP else INT0 + GROUP
            for part in range(parts):
                numbers = a + 4 * part * a_part
                if left == pair:
                    _row_tile(_EIGHT, count, numbers, panel, group, sums, starts)
                elif width == GROUP:
                    _row_tile(_FOUR, count, numbers, panel, group, sums, starts)
                elif width == 3:
                    _row_tile((0, 0, 0), count, numbers, panel, group, sums, starts)
                elif width == 2:
                    _row_tile((0, 0), count, numbers, panel, group, sums, starts)
                else:
                    _row_tile((0,), count, numbers, panel, group, sums, starts)
                panel += 4 * LANES * width * count
                starts = sums
            done += pair if left == pair else width
