"""ONNX in: ``from_onnx`` finds the model that a graph is.

The graph is walked once, node by node, with small sizes for batch and time. What depends on
constants and shapes only is simply computed. What depends on the input is never computed: of such a
value we know its shape, what each axis counts (``time``, ``batch``, the ``row`` of a layer's
directions, ``hidden`` units), and the chain of modules that made it. So it does not matter how an
exporter moves axes about: a transposition moves names, a reshaping joins neighbours or parts them,
and a matrix multiplies what was found to be all features of a layer, in order, or is refused.

In the end the model that was found and the graph, node by node in NumPy, are run on the same random
numbers, at two sizes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .._extras import require
from ..dense import Dense
from ..layers import Recurrent
from ..sequential import Scaling
from ._onnx_nodes import INPUTS, Node
from ._onnx_ops import (
    OPERATORS,
    axes_of,
    axis_of_flatten,
    indices_of_slice,
    shape_of_reshape,
)
from ._parts import InterchangeError, assemble, float32, load

onnx: Any = require("onnx", "a model of ONNX")

__all__ = ["from_onnx"]

_SIZES = ((2, 3), (3, 5))  # of the first two axes of the input, where they are free
_TOLERANCE = 1e-5
_ACTIVATIONS = {"Tanh": "tanh", "Sigmoid": "sigmoid", "Relu": "relu", "Softmax": "softmax"}

Axes = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class _Chain:
    """A module and those before it; or a graph's input, which has neither.

    `backwards` says of each row of what comes out whether its time ends at the first step, or at
    either end, where it was made of two directions.
    """

    name: str
    module: Any = None
    parent: _Chain | None = None
    backwards: tuple[frozenset[bool], ...] = (frozenset([False]),)

    def back(self) -> Iterator[_Chain]:
        """Go back through the links, from this one to the graph's input."""
        yield self
        if self.parent is not None:
            yield from self.parent.back()

    def modules(self) -> list[Any]:
        """Return all modules, the first one first."""
        return [link.module for link in self.back() if link.parent is not None][::-1]


@dataclass(frozen=True)
class _Flow:
    """A value that depends on the input.

    Attributes
    ----------
    rows : tuple of (chain, direction)
        Whose values lie along the axis ``row``.
    axes : tuple of tuples of str
        What each axis counts; several names where axes were joined, none for one of size 1.
    sizes : dict of str to int
    last : bool
        Whether these are values at the end of time, and not of every step.
    state : int
        0 for outputs, 1 for the c of an LSTM.
    """

    rows: tuple[tuple[_Chain, int], ...]
    axes: Axes
    sizes: Mapping[str, int]
    last: bool = False
    state: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.sizes[name] for name in axis) for axis in self.axes)

    @property
    def chain(self) -> _Chain:
        return self.rows[0][0]

    def proper(self) -> Axes:
        """Return the axes without names of size 1."""
        return tuple(tuple(n for n in axis if self.sizes[n] > 1) for axis in self.axes)

    def is_complete(self) -> bool:
        """Tell whether the last axis is all features of one chain in order."""
        chain, count = self.chain, len(self.chain.backwards)
        features = tuple(n for n in ("row", "hidden") if self.sizes[n] > 1)
        return (
            self.rows == tuple((chain, d) for d in range(count))
            and self.state == 0
            and bool(self.axes)
            and self.proper()[-1] == features
        )


@dataclass
class _Walk:
    """One walk over the graph."""

    opset: int
    inputs: set[str] = field(default_factory=set)  # those that are states or lengths
    lengths_are_given: bool = False
    first: str = "batch"  # what the first axis of the input counts


def from_onnx(source: Any) -> Any:
    """Return the model that an ONNX graph is, with its weights bit for bit.

    Parameters
    ----------
    source : onnx.ModelProto or path-like
        Of recurrent nodes (RNN, GRU, LSTM with any attributes), of dense layers (Gemm, or MatMul
        and Add) and their activations, of scaling (Sub, Div, Mul, Add of constants), one after the
        other, and of whatever moves axes between them, as exporters write it. The model may give
        all steps or the last ones, and the states. Initial states and lengths may be inputs of the
        graph: the model takes them in its call.

    Returns
    -------
    Recurrent or Sequential
        Called with the batch first, whatever the graph's order.

    Raises
    ------
    InterchangeError
        A ValueError: a node that has no counterpart here, by its name; or if the model and the
        graph disagree, which is tried with random numbers.
    MissingPackageError
        Without onnx (``pip install 'fastgates[onnx]'``).
    """
    if isinstance(source, str | os.PathLike):
        try:
            source = onnx.load(os.fspath(source))
        except FileNotFoundError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InterchangeError(f"not a model of ONNX: {reason}") from None
    if not isinstance(source, onnx.ModelProto):
        raise TypeError(f"source must be a ModelProto or a path, got {type(source).__name__}")
    model: Any = None
    for number, sizes in enumerate(_SIZES):
        walk, values = _walk(source, sizes)
        flow = _main_output(source, values)
        if number == 0:
            model = assemble(flow.chain.modules(), not flow.last)
            if not any(isinstance(part, Recurrent) for part in flow.chain.modules()):
                raise InterchangeError("there is no recurrent node in the graph")
        _verify(source, model, flow, values, walk)
    return model


def _walk(model: Any, sizes: tuple[int, int]) -> tuple[_Walk, dict[str, Any]]:
    """Return the values of all names."""
    from ..onnx_backend import attributes_of, opset_of

    graph = model.graph
    walk = _Walk(opset_of(model))
    values: dict[str, Any] = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    free: dict[str, int] = {}
    for entry in graph.input:
        if entry.name not in values:
            values[entry.name] = _input(entry, sizes, free)
    for node in graph.node:
        name = node.name or node.output[0]
        unknown = [i for i in node.input if i and i not in values]
        if unknown:
            raise InterchangeError(f"node {name!r}: nothing gives its input {unknown[0]!r}")
        given = [values[i] if i else None for i in node.input]
        attributes = attributes_of(node)
        try:
            if node.domain not in ("", "ai.onnx"):
                raise InterchangeError(f"operators of {node.domain} are not supported")
            results = _results(walk, node.op_type, name, given, attributes)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise InterchangeError(f"node {name!r} ({node.op_type}): {error}") from None
        for output, result in zip(node.output, results, strict=False):
            if output:
                values[output] = result
    return walk, values


def _input(entry: Any, sizes: tuple[int, int], free: dict[str, int]) -> _Flow:
    """Return the value of an input of the graph."""
    found: list[int] = []
    for place, dim in enumerate(entry.type.tensor_type.shape.dim):
        size = dim.dim_value
        if size <= 0:
            default = sizes[min(place, 1)]
            size = free.setdefault(dim.dim_param, default) if dim.dim_param else default
        found.append(size)
    names = [f"axis {place}" for place in range(len(found))]
    if names:
        names[-1] = "hidden"
    axes = tuple((name,) for name in names)
    counts = {"hidden": 1, "row": 1} | dict(zip(names, found, strict=True))
    return _Flow(((_Chain(entry.name), 0),), axes, counts)


def _results(
    walk: _Walk, operator: str, name: str, given: Sequence[Any], attributes: Mapping[str, Any]
) -> Sequence[Any]:
    """Return the outputs of a node."""
    if operator in ("RNN", "GRU", "LSTM"):
        return _recurrent(walk, Node.of(operator, name, attributes), given)
    if operator not in OPERATORS:
        raise InterchangeError("this operator is not supported")
    if not any(isinstance(value, _Flow) for value in given):
        return OPERATORS[operator](given, attributes, walk.opset)
    if operator == "Shape":
        return OPERATORS[operator]([np.empty(given[0].shape, np.uint8)], attributes, walk.opset)
    rule = _RULES.get(operator)
    if rule is None:
        raise InterchangeError("this operator is supported on constants and shapes only")
    return [rule(walk, name, given, attributes)]


# -- Recurrent nodes ------------------------------------------------------------------------------


def _recurrent(walk: _Walk, node: Node, given: Sequence[Any]) -> list[_Flow]:
    named = dict(zip(INPUTS, given, strict=False))
    weights = [named.get(name) for name in ("W", "R", "B", "P")]
    if any(isinstance(value, _Flow) for value in weights):
        raise InterchangeError("its weights must be constants")
    layer = node.layer(*weights)
    x = named["X"]
    if not isinstance(x, _Flow):
        raise InterchangeError("its input must come from the input of the graph")
    order = ("batch", "time") if node.batch_first else ("time", "batch")
    x = _bound(walk, x, order)
    if x.shape and x.shape[-1] != layer.input_size:
        raise InterchangeError(
            f"it takes {layer.input_size} features, got {x.shape[-1]}, which must be a fixed number"
        )
    if (
        x.last
        or len(x.axes) != 3
        or not x.is_complete()
        or any(axis not in ((), (name,)) for axis, name in zip(x.proper(), order, strict=False))
    ):
        raise InterchangeError(
            f"its input must have the axes {', '.join(order)} and all features of the layer "
            f"before it, got {x.axes}"
        )
    sizes = dict(zip(order, x.shape, strict=False))
    for name in ("initial_h", "initial_c"):
        state = named.get(name)
        if isinstance(state, _Flow):
            if state.chain.parent is not None:
                raise InterchangeError(f"its {name} must be an input of the graph, or zeros")
            walk.inputs |= {chain.name for chain, _ in state.rows}
        elif state is not None and np.any(state):
            raise InterchangeError(f"its {name} must be an input of the graph, or zeros")
    lengths = named.get("sequence_lens")
    if isinstance(lengths, _Flow):
        walk.inputs.add(lengths.chain.name)
        walk.lengths_are_given = True
    elif lengths is not None and np.any(np.asarray(lengths) != sizes["time"]):
        raise InterchangeError("its sequence_lens must be an input of the graph, or all of time")
    chain = _Chain(node.name, layer, x.chain, tuple(frozenset([d]) for d in node.directions))
    rows = tuple((chain, d) for d in range(len(node.directions)))
    sizes |= {"row": len(rows), "hidden": layer.hidden_size}
    if node.batch_first:
        axes, final = ("batch", "time", "row", "hidden"), ("batch", "row", "hidden")
    else:
        axes, final = ("time", "row", "batch", "hidden"), ("row", "batch", "hidden")
    flows = [_Flow(rows, tuple((n,) for n in axes), sizes)]
    for state in range(len(layer.cell.states)):
        flows.append(_Flow(rows, tuple((n,) for n in final), sizes, True, state))
    return flows


def _bound(walk: _Walk, flow: _Flow, order: tuple[str, str]) -> _Flow:
    """Give the axes of an input of the graph their names, at the first recurrent node."""
    names = {}
    for axis, name in zip(flow.axes, order, strict=False):
        if len(axis) == 1 and axis[0].startswith("axis "):
            names[axis[0]] = name
    walk.first = names.get("axis 0", walk.first)
    axes = tuple(tuple(names.get(n, n) for n in axis) for axis in flow.axes)
    return replace(flow, axes=axes, sizes={names.get(n, n): s for n, s in flow.sizes.items()})


# -- Moving axes ----------------------------------------------------------------------------------

_Rule = Callable[[_Walk, str, Sequence[Any], Mapping[str, Any]], _Flow]


def _same(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    if len(given) > 2 and given[2] is not None and np.any(given[2]):
        raise InterchangeError("dropout in training mode is not supported")
    return given[0]  # type: ignore[no-any-return]


def _cast(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    # Lengths are cast between integers; a sequence stays float32.
    if attributes["to"] not in (1, 6, 7):
        raise InterchangeError(f"a cast to the data type {attributes['to']} is not supported")
    return given[0]  # type: ignore[no-any-return]


def _transpose(
    walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]
) -> _Flow:
    flow = given[0]
    order = attributes.get("perm", range(len(flow.axes))[::-1])
    return replace(flow, axes=tuple(flow.axes[k] for k in order))


def _squeeze(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    flow = given[0]
    axes = axes_of(given, attributes)
    if axes is None:
        axes = [k for k, size in enumerate(flow.shape) if size == 1]
    gone = {axis % len(flow.axes) for axis in axes}
    if any(flow.shape[k] != 1 for k in gone):
        raise InterchangeError(f"axes {axes} of shape {flow.shape} are not of size 1")
    return replace(flow, axes=tuple(a for k, a in enumerate(flow.axes) if k not in gone))


def _unsqueeze(
    walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]
) -> _Flow:
    flow, axes = given[0], axes_of(given, attributes) or []
    rank = len(flow.axes) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(flow.axes)
    return replace(flow, axes=tuple(() if k in new else next(rest) for k in range(rank)))


def _reshape(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    return _with_shape(given[0], shape_of_reshape(given[0].shape, given, attributes))


def _flatten(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    shape = given[0].shape
    axis = axis_of_flatten(attributes, len(shape))
    return _with_shape(given[0], [math.prod(shape[:axis]), math.prod(shape[axis:])])


def _with_shape(flow: _Flow, shape: Sequence[int]) -> _Flow:
    """Return a flow reshaped: its names in the same order, otherwise grouped."""
    names = [n for axis in flow.proper() for n in axis]
    axes = []
    for size in shape:
        axis: list[str] = []
        while math.prod(flow.sizes[n] for n in axis) < size and names:
            axis.append(names.pop(0))
        if math.prod(flow.sizes[n] for n in axis) != size:
            raise InterchangeError(
                f"axes {flow.axes} of shape {flow.shape} cannot be told apart in {tuple(shape)}"
            )
        axes.append(tuple(axis))
    if names:
        raise InterchangeError(f"{flow.shape} does not reshape to {tuple(shape)}")
    return replace(flow, axes=tuple(axes))


def _pick(walk: _Walk, flow: _Flow, axis: int, places: Sequence[int], keep: bool) -> _Flow:
    """Return some places of an axis, which stays if it is to be kept."""
    size, names = flow.shape[axis], flow.proper()[axis] or flow.axes[axis]
    if list(places) == list(range(size)) and keep:
        return flow
    before, after = flow.axes[:axis], flow.axes[axis + 1 :]
    if names == ("time",):
        ends = {0 if b else size - 1 for chain, d in flow.rows for b in chain.backwards[d]}
        if flow.last or [*places] != [*ends] or walk.lengths_are_given:
            raise InterchangeError(
                "only the step at which all directions have ended can be taken alone, got "
                f"{list(places)} of {size}"
            )
        return replace(flow, axes=(*before, *([()] * keep), *after), last=True)
    if names == ("row",):
        rows = tuple(flow.rows[place] for place in places)
        middle = [("row",)] * keep
        sizes = {**flow.sizes, "row": len(rows)}
        return replace(flow, axes=(*before, *middle, *after), rows=rows, sizes=sizes)
    if size == 1 and len(places) == 1:  # nothing is chosen
        return replace(flow, axes=(*before, *([()] * keep), *after))
    if flow.chain.parent is None:
        # The states of several layers in one input: whatever it becomes, it is only a state.
        first = f"{flow.axes[axis]}[{list(places)}]"
        sizes = {**flow.sizes, first: len(places)}
        return replace(flow, axes=(*before, *([(first,)] * keep), *after), sizes=sizes)
    raise InterchangeError(f"a part of the axis {names or axis} cannot be taken alone")


def _gather(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    flow, indices = given[0], np.asarray(given[1])
    axis = attributes.get("axis", 0) % len(flow.axes)
    if indices.ndim > 1:
        raise InterchangeError("indices of more than one axis are not supported")
    places = [int(place) % flow.shape[axis] for place in indices.ravel()]
    return _pick(walk, flow, axis, places, indices.ndim == 1)


def _slice(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    flow = given[0]
    for axis, part in indices_of_slice(flow.shape, given, attributes).items():
        flow = _pick(walk, flow, axis, range(flow.shape[axis])[part], True)
    return flow


def _concat(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    first = given[0]
    if not all(isinstance(flow, _Flow) for flow in given):
        raise InterchangeError("a constant beside what comes from the input is not supported")
    if all(flow.chain.parent is None for flow in given) and len(given) > 1:
        raise InterchangeError("inputs of the graph cannot be joined")
    axis = attributes["axis"] % len(first.axes)
    rows = tuple(row for flow in given for row in flow.rows)
    places = [flow.proper() for flow in given]
    others = {(p[:axis], p[axis + 1 :], flow.last) for p, flow in zip(places, given, strict=True)}
    here = {p[axis] for p in places}
    same = len(others) == 1 and len({flow.state for flow in given}) == 1
    hidden = {flow.sizes["hidden"] for flow in given}
    sizes = {**first.sizes, "row": len(rows)}
    if same and len(hidden) == 1 and here <= {(), ("row",)}:
        middle: tuple[str, ...] = ("row",)
    elif same and len(hidden) == 1 and here == {("hidden",)} and len(rows) == len(given):
        middle = ("row", "hidden")
    else:
        raise InterchangeError(
            "only directions of a layer, or states, can be joined, "
            f"got axes {[flow.axes for flow in given]}"
        )
    axes = (*first.axes[:axis], middle, *first.axes[axis + 1 :])
    return replace(first, rows=rows, axes=axes, sizes=sizes)


# -- Dense layers and scaling ---------------------------------------------------------------------


def _followed_by(flow: _Flow, module: Any, name: str, instead: bool = False) -> _Flow:
    """Return what a module makes of all features of a flow; or makes `instead` of the last one."""
    if not flow.is_complete():
        raise InterchangeError(
            f"the last axis must be all features of {flow.chain.name!r}, got {flow.axes}"
        )
    parent = flow.chain.parent if instead else flow.chain
    chain = _Chain(name, module, parent, (frozenset().union(*flow.chain.backwards),))
    return replace(
        flow,
        rows=((chain, 0),),
        axes=(*flow.axes[:-1], ("hidden",)),
        sizes={**flow.sizes, "row": 1, "hidden": module.output_size},
    )


def _split(given: Sequence[Any]) -> tuple[_Flow, np.ndarray, bool]:
    """Return the flow and the constant of two operands, and whether the flow comes first."""
    first, second = given
    if isinstance(first, _Flow) and isinstance(second, _Flow):
        raise InterchangeError("two values that depend on the input cannot be combined")
    if isinstance(first, _Flow):
        return first, float32("a constant", second), True
    return second, float32("a constant", first), False


def _matmul(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    flow, weight, first = _split(given)
    if not first or weight.ndim != 2:
        raise InterchangeError("only a product with a constant matrix from the right is supported")
    return _dense(flow, weight.T, None, name)


def _dense(flow: _Flow, weight: np.ndarray, bias: np.ndarray | None, name: str) -> _Flow:
    outputs, inputs = weight.shape
    if flow.shape[-1] != inputs:
        raise InterchangeError(f"a matrix of {inputs} inputs cannot take {flow.shape[-1]}")
    dense = Dense(inputs, outputs, bias=bias is not None, seed=0)
    return _followed_by(flow, load(dense, weight=weight, bias=bias), name)


def _gemm(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
    flow, weight, first = _split(given[:2])
    if not first or attributes.get("transA", 0) or len(flow.axes) != 2:
        raise InterchangeError("only a product with a constant matrix from the right is supported")
    weight = weight if attributes.get("transB", 0) else weight.T
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    weight = weight if alpha == 1 else weight * np.float32(alpha)
    bias = given[2] if len(given) > 2 else None
    if bias is not None:
        bias = float32("a bias", bias)
        bias = np.broadcast_to(bias.reshape(-1), (weight.shape[0],)) * np.float32(beta)
    return _dense(flow, weight, bias, name)


def _activation(kind: str) -> _Rule:
    def rule(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
        flow = given[0]
        dense = flow.chain.module
        if not isinstance(dense, Dense) or dense.activation != "identity":
            raise InterchangeError("it is supported after a dense layer only")
        if kind == "softmax":
            rank = len(flow.axes)
            if attributes.get("axis", -1 if walk.opset >= 13 else 1) % rank != rank - 1:
                raise InterchangeError("it must be over the last axis")
        new = Dense(dense.input_size, dense.output_size, kind, bias=dense.bias, seed=0)
        return _followed_by(flow, load(new, **dense.state_dict()), name, instead=True)

    return rule


def _joined(operator: str, last: Any, value: np.ndarray) -> Any:
    """Return the module that a module and an operation after it are together, if they are one."""
    if operator == "Add" and isinstance(last, Dense):
        if last.bias or last.activation != "identity":
            return None
        dense = Dense(last.input_size, last.output_size, seed=0)
        return load(dense, weight=last.parameters["weight"], bias=value)
    if not isinstance(last, Scaling):
        return None
    mean, scale = last.parameters["mean"], last.parameters["scale"]
    if operator == "Div" and not last.inverse and (scale == 1).all():
        return Scaling(mean, value)
    if operator == "Add" and last.inverse and not mean.any():
        return Scaling(value, scale, inverse=True)
    return None


def _elementwise(operator: str) -> _Rule:
    def rule(walk: _Walk, name: str, given: Sequence[Any], attributes: Mapping[str, Any]) -> _Flow:
        flow, constant, first = _split(given)
        if not first and operator in ("Sub", "Div"):
            raise InterchangeError("a constant minus or over a value is not supported")
        features = flow.shape[-1]
        if constant.size not in (1, constant.shape[-1] if constant.ndim else 1):
            raise InterchangeError(f"a constant of shape {constant.shape} is not one per feature")
        value = np.broadcast_to(constant.reshape(-1), (features,))
        zeros, ones = np.zeros(features, np.float32), np.ones(features, np.float32)
        last = flow.chain.module
        joined = _joined(operator, last, value)
        if joined is not None:
            return _followed_by(flow, joined, name, instead=True)
        made = {
            "Sub": lambda: Scaling(value, ones),
            "Div": lambda: Scaling(zeros, value),
            "Mul": lambda: Scaling(zeros, value, inverse=True),
            "Add": lambda: Scaling(value, ones, inverse=True),
        }[operator]()
        return _followed_by(flow, made, name)

    return rule


_RULES: dict[str, _Rule] = {
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "MatMul": _matmul,
    "Gemm": _gemm,
    **{name: _activation(kind) for name, kind in _ACTIVATIONS.items()},
    **{name: _elementwise(name) for name in ("Add", "Sub", "Mul", "Div")},
}


# -- The end --------------------------------------------------------------------------------------


def _main_output(model: Any, values: Mapping[str, Any]) -> _Flow:
    """Return the output that is the model's; all others must be states of its layers."""
    names = [entry.name for entry in model.graph.output]
    flows = {name: values[name] for name in names if isinstance(values[name], _Flow)}
    usable = {name: flow for name, flow in flows.items() if _is_output(flow)}
    if not usable:
        raise InterchangeError(
            f"no output of the graph is that of a layer: {', '.join(names) or 'there is none'}"
        )
    # All steps rather than the last one; of several, the one that most modules made.
    main = max(usable, key=lambda n: (len(usable[n].chain.modules()), not usable[n].last))
    chains = set(usable[main].chain.back())
    for name in names:
        flow = flows.get(name)
        if flow is None or not {chain for chain, _ in flow.rows} <= chains:
            raise InterchangeError(f"output {name!r} is neither that of the last layer nor a state")
    return usable[main]


def _is_output(flow: _Flow) -> bool:
    names = [n for axis in flow.proper() for n in axis]
    wanted = {"batch", "row", "hidden"} | (set() if flow.last else {"time"})
    whole = flow.rows == tuple((flow.chain, d) for d in range(len(flow.chain.backwards)))
    expected = {n for n in wanted if flow.sizes.get(n, 1) > 1}
    return whole and flow.state == 0 and set(names) == expected


def _verify(source: Any, model: Any, flow: _Flow, values: Mapping[str, Any], walk: _Walk) -> None:
    """Run the graph node by node, and the model, on the same random numbers."""
    from ..onnx_backend import FastgatesRep

    rng = np.random.default_rng(0)
    *_, start = (link.name for link in flow.chain.back())
    graph = FastgatesRep(source)
    entries = {entry.name: entry.type.tensor_type for entry in source.graph.input}
    inputs: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        if name == start:
            inputs[name] = rng.standard_normal(values[name].shape).astype(np.float32)
        elif name not in walk.inputs:
            raise InterchangeError(f"nothing takes the input {name!r} of the graph")
        else:
            inputs[name] = _plain_input(entries[name], flow)
    x = inputs[start]
    outputs = dict(zip(graph.outputs, graph.run(inputs), strict=True))
    expected = next(outputs[n] for n in graph.outputs if values[n] is flow)
    if x.ndim == 2:  # a step, or a sequence
        x = x[:, None] if walk.first == "batch" else x[None]
    elif walk.first == "time":
        x = x.transpose(1, 0, 2)
    output = model(x)[0]
    order = ["batch"] + ([] if flow.last else ["time"]) + ["row", "hidden"]
    output = output.reshape([flow.sizes[n] for n in order])
    names = [n for axis in flow.proper() for n in axis]
    names += [n for n in order if n not in names]  # those of size 1, anywhere
    actual = output.transpose([order.index(n) for n in names]).reshape(flow.shape)
    scale = float(np.abs(expected).max(initial=0.0))
    off = float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0))
    if not off <= _TOLERANCE * max(scale, 1e-30):
        raise InterchangeError(
            f"the model that was found does not give the output of the graph: off by {off:.3g} of "
            f"{scale:.3g} (please report this graph)"
        )


def _plain_input(entry: Any, flow: _Flow) -> np.ndarray:
    """Return zeros for an input that is a state, and all of time for lengths."""
    dims = [d.dim_value if d.dim_value > 0 else flow.sizes["batch"] for d in entry.shape.dim]
    if entry.elem_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
        return np.full(
            dims, flow.sizes["time"], onnx.helper.tensor_dtype_to_np_dtype(entry.elem_type)
        )
    return np.zeros(dims, np.float32)
