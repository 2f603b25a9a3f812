"""What stands between recurrent nodes in exported graphs, in NumPy.

Each function takes the inputs of a node (None for those left out), its attributes and the version
of the operator set, and returns the outputs, as https://onnx.ai/onnx/operators/ says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["OPERATORS", "axes_of", "axis_of_flatten", "indices_of_slice", "shape_of_reshape"]

Inputs = Sequence[Any]
Attributes = Mapping[str, Any]


def axes_of(inputs: Inputs, attributes: Attributes) -> list[int] | None:
    """Return the axes of Squeeze and Unsqueeze, an attribute once, an input now."""
    axes = attributes.get("axes")
    if axes is None and len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1]
    return None if axes is None else [int(axis) for axis in np.ravel(axes)]


def _squeeze(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    axes = axes_of(inputs, attributes)
    return [np.squeeze(inputs[0], None if axes is None else tuple(axes))]


def _unsqueeze(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    return [np.expand_dims(inputs[0], tuple(axes_of(inputs, attributes) or ()))]


def shape_of_reshape(shape: Sequence[int], inputs: Inputs, attributes: Attributes) -> list[int]:
    """Return the new shape of an array of a shape."""
    target = [int(size) for size in np.ravel(inputs[1])]
    if not attributes.get("allowzero", 0):
        target = [shape[k] if size == 0 else size for k, size in enumerate(target)]
    if -1 in target:
        known = int(np.prod([size for size in target if size != -1]))
        target[target.index(-1)] = int(np.prod(shape)) // max(known, 1)
    return target


def _reshape(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    return [inputs[0].reshape(shape_of_reshape(inputs[0].shape, inputs, attributes))]


def axis_of_flatten(attributes: Attributes, rank: int) -> int:
    """Return how many axes become the first one."""
    axis = int(attributes.get("axis", 1))
    return axis + rank if axis < 0 else axis


def _flatten(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    x = inputs[0]
    axis = axis_of_flatten(attributes, x.ndim)
    return [x.reshape(int(np.prod(x.shape[:axis])), -1)]


def indices_of_slice(
    shape: Sequence[int], inputs: Inputs, attributes: Attributes
) -> dict[int, slice]:
    """Return what Slice takes of each axis that it names."""
    if "starts" in attributes:  # before version 10
        starts, ends = attributes["starts"], attributes["ends"]
        axes, steps = attributes.get("axes"), None
    else:
        starts, ends, axes, steps = [*inputs[1:5], None, None][:4]
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    result = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size, step = shape[int(axis)], int(step)
        end = int(end)
        if step < 0 and end < -size:
            result[int(axis) % len(shape)] = slice(int(start), None, step)
        else:
            result[int(axis) % len(shape)] = slice(int(start), end, step)
    return result


def _slice(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    places = indices_of_slice(inputs[0].shape, inputs, attributes)
    return [inputs[0][tuple(places.get(k, slice(None)) for k in range(inputs[0].ndim))]]


def _gather(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    return [np.take(inputs[0], inputs[1], axis=attributes.get("axis", 0))]


def _transpose(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    return [np.transpose(inputs[0], attributes.get("perm"))]


def _concat(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    return [np.concatenate(list(inputs), axis=attributes["axis"])]


def _split(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    axis = attributes.get("axis", 0)
    sizes = attributes.get("split", inputs[1] if len(inputs) > 1 else None)
    if sizes is None:  # the last part may be smaller; before version 18 the outputs tell
        count, size = int(attributes["num_outputs"]), inputs[0].shape[axis]
        part = -(-size // count)
        sizes = [max(0, min(part, size - k * part)) for k in range(count)]
    return list(np.split(inputs[0], np.cumsum(sizes)[:-1], axis))


def _shape(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    part = slice(attributes.get("start", 0), attributes.get("end"))
    return [np.array(np.shape(inputs[0])[part], np.int64)]


def _constant(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    ((name, value),) = attributes.items()
    return [np.asarray(value, np.float32 if name in ("value_float", "value_floats") else None)]


def _constant_of_shape(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    value = np.asarray(attributes.get("value", np.float32(0)))
    return [np.full([int(size) for size in inputs[0]], value.reshape(()), value.dtype)]


def _expand(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(int(size) for size in inputs[1]))
    return [np.broadcast_to(inputs[0], shape)]


_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


def _cast(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    if attributes["to"] not in _DTYPES:
        raise ValueError(f"Cast to the data type {attributes['to']} is not supported")
    return [inputs[0].astype(_DTYPES[attributes["to"]])]


def _gemm(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    a = inputs[0].T if attributes.get("transA", 0) else inputs[0]
    b = inputs[1].T if attributes.get("transB", 0) else inputs[1]
    y = np.float32(attributes.get("alpha", 1.0)) * (a @ b)
    if len(inputs) > 2 and inputs[2] is not None:
        y = y + np.float32(attributes.get("beta", 1.0)) * inputs[2]
    return [y]


def _softmax(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    x = inputs[0]
    axis: Any = attributes.get("axis", -1 if opset >= 13 else 1)
    if opset < 13:  # all axes from there on are one
        axis = tuple(range(axis % x.ndim, x.ndim))
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return [e / e.sum(axis=axis, keepdims=True)]


def _reduce_prod(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    axes = axes_of(inputs, attributes)
    if not axes and attributes.get("noop_with_empty_axes", 0):
        return [inputs[0]]
    axes = axes or None
    keep = bool(attributes.get("keepdims", 1))
    return [np.prod(inputs[0], None if axes is None else tuple(axes), inputs[0].dtype, None, keep)]


def _dropout(inputs: Inputs, attributes: Attributes, opset: int) -> list[Any]:
    if len(inputs) > 2 and inputs[2] is not None and bool(inputs[2]):
        raise ValueError("Dropout in training mode is not supported")
    return [inputs[0], np.ones(np.shape(inputs[0]), np.bool_)]


def _plain(function: Callable[..., Any]) -> Callable[[Inputs, Attributes, int], list[Any]]:
    return lambda inputs, attributes, opset: [function(*inputs)]


def _div(a: Any, b: Any) -> Any:
    if np.issubdtype(np.result_type(a, b), np.integer):
        return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(np.result_type(a, b))
    return a / b


def _range(start: Any, end: Any, step: Any) -> Any:
    dtype = np.asarray(start).dtype
    count = max(0, int(np.ceil((float(end) - float(start)) / float(step))))
    return (np.asarray(start) + np.arange(count, dtype=dtype) * np.asarray(step)).astype(dtype)


OPERATORS: dict[str, Callable[[Inputs, Attributes, int], list[Any]]] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _plain(_div),
    "Dropout": _dropout,
    "Equal": _plain(np.equal),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": _plain(np.greater),
    "Identity": _plain(lambda x: x),
    "Less": _plain(np.less),
    "MatMul": _plain(np.matmul),
    "Max": _plain(lambda *x: np.maximum.reduce(np.broadcast_arrays(*x))),
    "Min": _plain(lambda *x: np.minimum.reduce(np.broadcast_arrays(*x))),
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "Range": _plain(_range),
    "ReduceProd": _reduce_prod,
    "Relu": _plain(lambda x: np.maximum(x, 0)),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _plain(lambda x: 1 / (1 + np.exp(-x))),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _plain(np.subtract),
    "Tanh": _plain(np.tanh),
    "Tile": _plain(lambda x, repeats: np.tile(x, [int(r) for r in repeats])),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(np.where),
}
