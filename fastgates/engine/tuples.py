"""Tuples of SIMD values in and out of memory: what the equations of a cell take and return.

How many there are must be known when Numba compiles, and a tuple's length is: ``(0,) * 3`` says
"three". The numbers in such a *shape* do not matter.
"""

from __future__ import annotations

from numba.core import cgutils, types
from numba.extending import intrinsic

from .._simd import as_vector, float32v, float_p, load_value, vector_address

__all__ = ["load_constants", "load_vectors", "store_vectors"]


@intrinsic
def load_vectors(typingctx, first, pointer, index, step, shape):  # type: ignore[no-untyped-def]
    """Return a tuple as long as `shape`: the vectors `first`, the others from memory.

    Vector p is loaded from ``pointer[index + p * step]``. What is not used later costs nothing: the
    load is left out.
    """
    result = types.UniTuple(float32v, shape.count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        given, pointer, index, step, _ = args
        values = [builder.extract_value(given, place) for place in range(first.count)]
        for place in range(first.count, shape.count):
            offset = builder.mul(step, step.type(place))
            values.append(load_value(builder, pointer, builder.add(index, offset)))
        return cgutils.pack_array(builder, values, context.get_value_type(float32v))

    return result(first, float_p, types.int64, types.int64, shape), codegen


@intrinsic
def load_constants(typingctx, settings, pointer, index, step, shape):  # type: ignore[no-untyped-def]
    """Return a pair of `settings` and the tuple of vectors ``pointer[index + p * step]``.

    Without a shape, which is None, one vector alone.
    """
    alone = shape == types.none
    vectors = types.UniTuple(float32v, 1 if alone else shape.count)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        settings, pointer, index, step, _ = args
        values = [
            load_value(builder, pointer, builder.add(index, builder.mul(step, step.type(place))))
            for place in range(vectors.count)
        ]
        if alone:
            return values[0]
        packed = cgutils.pack_array(builder, values, context.get_value_type(float32v))
        return context.make_tuple(builder, sig.return_type, (settings, packed))

    result = float32v if alone else types.Tuple((float_p, vectors))
    return result(float_p, float_p, types.int64, types.int64, shape), codegen


@intrinsic
def store_vectors(typingctx, before, vectors, pointer, index, step):  # type: ignore[no-untyped-def]
    """Store vector p at ``pointer[index + p * step]``, but not the first ones that `before` counts.

    A float32 among the vectors stands for a vector of it.
    """

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _, value, pointer, index, step = args
        for place in range(before.count, vectors.count):
            vector = builder.extract_value(value, place)
            vector = as_vector(builder, vectors.types[place], vector)
            offset = builder.add(index, builder.mul(step, step.type(place)))
            builder.store(vector, vector_address(builder, pointer, offset), align=4)
        return context.get_dummy_value()

    return types.void(before, vectors, float_p, types.int64, types.int64), codegen
