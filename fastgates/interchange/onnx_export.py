"""ONNX out: ``to_onnx``, for whole sequences or a step at a time."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .._atomic import replacing
from .._extras import require
from .._version import __version__
from ..dense import Dense
from ..layers import Recurrent
from ..sequential import Scaling
from ._onnx_nodes import attributes_of, tensors_of
from ._parts import InterchangeError, parts_of, returns_sequences

onnx: Any = require("onnx", "a model of ONNX")

__all__ = ["to_onnx"]

_OPSET, _IR_VERSION = 17, 8  # of 2022, which all that runs ONNX today reads

_ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "softmax": "Softmax"}


class _Graph:
    """Nodes and constants while they are written."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._count = 0

    def constant(self, name: str, value: Any) -> str:
        """Add a constant, the same name once."""
        if name not in self.constants:
            self.constants[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, *values: int) -> str:
        """Add a constant of integers."""
        name = "int_" + "_".join(map(str, values)).replace("-", "m")
        return self.constant(name, np.array(values, np.int64))

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or a list of them."""
        self._count += 1
        name = f"{operator}_{self._count}"
        names = [f"{name}_{k}" for k in range(outputs)]
        self.nodes.append(
            onnx.helper.make_node(operator, list(inputs), names, name=name, **attributes)
        )
        return names[0] if outputs == 1 else names


def to_onnx(
    model: Any, path: str | os.PathLike[str] | None = None, *, streaming: bool = False
) -> Any:
    """Return a layer or model as an ONNX model, and write it to a file.

    Parameters
    ----------
    model : Recurrent, Dense, Scaling or Sequential
    path : path-like, optional
        Where to write it, whole or not at all.
    streaming : bool
        A model of one step, for use live: its inputs are ``x`` (batch, features) and for each
        recurrent layer its states ``h0``, ``c0``, ``h1`` ... (layers, batch, hidden), its outputs
        ``y`` and the states after the step, ``h0_next`` ... By default a model of whole sequences,
        from ``x`` (batch, time, features) to ``y``.

    Returns
    -------
    onnx.ModelProto
        Of operator set 17, with batch and time of any size. A :class:`SimplifiedGRU` and an
        :class:`RNN` with a leak are written as GRUs whose reset gate is open.

    Raises
    ------
    InterchangeError
        A ValueError: ONNX has no such cell; or a reverse direction in a streaming model.
    MissingPackageError
        Without onnx (``pip install 'fastgates[onnx]'``).
    """
    graph = _Graph()
    parts = parts_of(model)
    whole = returns_sequences(model)
    info, float_type = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    first, last = parts[0].input_size, parts[-1].output_size
    if streaming:
        inputs = [info("x", float_type, ["batch", first])]
        outputs = [info("y", float_type, ["batch", last])]
        x = graph.add("Unsqueeze", "x", graph.integers(0))
    else:
        inputs = [info("x", float_type, ["batch", "time", first])]
        shape = ["batch", "time", last] if whole else ["batch", last]
        outputs = [info("y", float_type, shape)]
        x = graph.add("Transpose", "x", perm=[1, 0, 2])  # time first, as recurrent nodes want it
    recurrent = [part for part in parts if isinstance(part, Recurrent)]
    for place, part in enumerate(parts):
        if isinstance(part, Scaling):
            x = _write_scaling(graph, part, place, x)
        elif isinstance(part, Dense):
            x = _write_dense(graph, part, place, x)
        elif streaming:
            number = recurrent.index(part)
            names = [f"{state}{number}" for state in part.cell.states]
            shape = [part.num_layers, "batch", part.hidden_size]
            x, states = _write_step(graph, part, place, x, names)
            inputs += [info(name, float_type, shape) for name in names]
            outputs += [info(f"{name}_next", float_type, shape) for name in names]
            for name, state in zip(names, states, strict=True):
                _rename_output(graph, state, f"{name}_next")
        else:
            x = _write_recurrent(graph, part, place, x, whole or part is not recurrent[-1])
    if streaming:
        x = graph.add("Squeeze", x, graph.integers(0))
    elif whole:
        x = graph.add("Transpose", x, perm=[1, 0, 2])
    _rename_output(graph, x, "y")
    return _finish(graph, inputs, outputs, path)


def _rename_output(graph: _Graph, old: str, new: str) -> None:
    graph.nodes.append(onnx.helper.make_node("Identity", [old], [new], name=f"output_{new}"))


def _finish(graph: _Graph, inputs: list[Any], outputs: list[Any], path: Any) -> Any:
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "fastgates", inputs, outputs, list(graph.constants.values())
        ),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="fastgates",
        producer_version=__version__,
    )
    onnx.checker.check_model(proto, full_check=True)
    if path is not None:
        with replacing(path) as temporary, open(temporary, "xb") as file:
            file.write(proto.SerializeToString())
    return proto


def _write_scaling(graph: _Graph, part: Scaling, place: int, x: str) -> str:
    values = part.parameters
    mean = graph.constant(f"{place}.mean", values["mean"])
    scale = graph.constant(f"{place}.scale", values["scale"])
    if part.inverse:
        return str(graph.add("Add", graph.add("Mul", x, scale), mean))
    return str(graph.add("Div", graph.add("Sub", x, mean), scale))


def _write_dense(graph: _Graph, part: Dense, place: int, x: str) -> str:
    values = part.parameters
    x = graph.add("MatMul", x, graph.constant(f"{place}.weight", values["weight"].T))
    if part.bias:
        x = graph.add("Add", x, graph.constant(f"{place}.bias", values["bias"]))
    if part.activation != "identity":
        options = {"axis": -1} if part.activation == "softmax" else {}
        x = graph.add(_ACTIVATIONS[part.activation], x, **options)
    return x


def _write_node(
    graph: _Graph, part: Recurrent, place: int, number: int, x: str, states: list[str]
) -> list[str]:
    """Write one of the stacked layers; return the names of Y, Y_h and, of an LSTM, Y_c."""
    kind, attributes = attributes_of(part)
    tensors = {
        name: graph.constant(f"{place}.{name}_l{number}", value)
        for name, value in tensors_of(part, number).items()
    }
    inputs = [x, tensors["W"], tensors["R"], tensors.get("B", ""), "", *states]
    if "P" in tensors:
        inputs += [""] * (7 - len(inputs)) + [tensors["P"]]
    while not inputs[-1]:
        inputs.pop()
    outputs: list[str] = graph.add(kind, *inputs, outputs=1 + len(part.cell.states), **attributes)
    return outputs


def _write_recurrent(graph: _Graph, part: Recurrent, place: int, x: str, whole: bool) -> str:
    for number in range(part.num_layers):
        y, hidden, *_ = _write_node(graph, part, place, number, x, [])
        if number == part.num_layers - 1 and not whole:
            # (directions, batch, hidden) to (batch, directions * hidden)
            if part.bidirectional:
                hidden = graph.add("Transpose", hidden, perm=[1, 0, 2])
                return str(graph.add("Reshape", hidden, graph.integers(0, -1)))
            return str(graph.add("Squeeze", hidden, graph.integers(0)))
        if part.bidirectional:  # (time, directions, batch, hidden) to (time, batch, both)
            y = graph.add("Transpose", y, perm=[0, 2, 1, 3])
            x = graph.add("Reshape", y, graph.integers(0, 0, -1))
        else:
            x = graph.add("Squeeze", y, graph.integers(1))
    return x


def _write_step(
    graph: _Graph, part: Recurrent, place: int, x: str, names: list[str]
) -> tuple[str, list[str]]:
    """Write one step; return the output and the names of the states after it."""
    if part.bidirectional or part.reverse:
        raise InterchangeError(
            f"a streaming model must run forward only, got {part!r}: its reverse direction would "
            "need the end of the series first"
        )
    after: list[list[str]] = [[] for _ in names]
    for number in range(part.num_layers):
        before = list(names)
        if part.num_layers > 1:
            bounds = graph.integers(number), graph.integers(number + 1), graph.integers(0)
            before = [graph.add("Slice", name, *bounds) for name in names]
        y, *states = _write_node(graph, part, place, number, x, before)
        x = graph.add("Squeeze", y, graph.integers(1))
        for row, state in zip(after, states, strict=True):
            row.append(state)
    finals = [row[0] if len(row) == 1 else graph.add("Concat", *row, axis=0) for row in after]
    return x, finals
