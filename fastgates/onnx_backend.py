"""The backend interface of ONNX: recurrent nodes run on fastgates, what is between them in NumPy.

See https://onnx.ai/onnx/api/backend.html. All recurrent cases of ONNX's own test suite pass. For
inference at speed :func:`fastgates.from_onnx` makes a model of a graph, where the graph is one; a
backend runs any graph of the operators that it knows, node by node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ._extras import require
from .interchange._onnx_nodes import INPUTS, Node
from .interchange._onnx_ops import OPERATORS
from .interchange._parts import InterchangeError

onnx: Any = require("onnx", "a model of ONNX")
_base: Any = import_module("onnx.backend.base")

__all__ = [
    "FastgatesBackend",
    "FastgatesRep",
    "attributes_of",
    "is_compatible",
    "opset_of",
    "prepare",
    "run_model",
    "run_node",
    "run_recurrent",
    "supports_device",
]

_RECURRENT = ("RNN", "GRU", "LSTM")
_OLDEST = 7  # of the operator sets whose recurrent operators are those of today


def attributes_of(node: Any) -> dict[str, Any]:
    """Return a node's attributes as Python's numbers, bytes, lists and arrays."""
    result = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.type == onnx.AttributeProto.TENSOR:
            value = onnx.numpy_helper.to_array(value)
        result[attribute.name] = value
    if node.op_type == "Split":  # before version 18 only the outputs tell
        result.setdefault("num_outputs", len(node.output))
    return result


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operators that a model imports."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return max(versions, default=1)


def run_recurrent(node: Node, layer: Any, inputs: Sequence[Any]) -> list[np.ndarray]:
    """Run a recurrent node: return Y, Y_h and, of an LSTM, Y_c in ONNX's shapes.

    Parameters
    ----------
    node : Node
    layer : Recurrent
        Of its weights.
    inputs : sequence
        All of the node's, None where there is none; of the weights nothing is read.
    """
    given = dict(zip(INPUTS, inputs, strict=False))
    x = given["X"] if node.batch_first else given["X"].transpose(1, 0, 2)
    size, time, _ = x.shape
    states: list[Any] = []
    for name in ("initial_h", "initial_c")[: len(layer.cell.states)]:
        state = given.get(name)
        if state is None:
            state = np.zeros((layer.num_directions, size, layer.hidden_size), np.float32)
        elif node.batch_first:
            state = state.transpose(1, 0, 2)
        states.append(state)
    lengths = given.get("sequence_lens")
    if lengths is not None:
        lengths = np.asarray(lengths, np.int64)
        if (lengths == 0).any():
            return _run_some(node, layer, given, lengths)
    output, final = layer(x, tuple(states) if len(states) > 1 else states[0], lengths)
    y = output.reshape(size, time, layer.num_directions, layer.hidden_size)
    finals = list(final) if isinstance(final, tuple) else [final]
    if node.batch_first:
        return [y, *(state.transpose(1, 0, 2) for state in finals)]
    return [y.transpose(1, 2, 0, 3), *finals]


def _run_some(
    node: Node, layer: Any, given: Mapping[str, Any], lengths: np.ndarray
) -> list[np.ndarray]:
    """Run the sequences that have any steps; the others give zeros, as in onnxruntime."""
    rows = np.flatnonzero(lengths)
    axis = 0 if node.batch_first else 1
    some = [
        None if value is None or name in ("W", "R", "B", "P")
        else value[rows] if name == "sequence_lens"
        else np.take(value, rows, axis)
        for name, value in given.items()
    ]  # fmt: skip
    results = []
    for place, part in enumerate(run_recurrent(node, layer, some)):
        at = 0 if node.batch_first else 2 if place == 0 else 1
        whole = np.zeros((*part.shape[:at], lengths.size, *part.shape[at + 1 :]), np.float32)
        whole[(slice(None),) * at + (rows,)] = part
        results.append(whole)
    return results


class FastgatesRep(_base.BackendRep):  # type: ignore[misc]
    """A model that is ready to run.

    Parameters
    ----------
    model : onnx.ModelProto
    """

    def __init__(self, model: Any) -> None:
        self._opset = opset_of(model)
        self._graph = graph = model.graph
        self._constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in self._constants]
        self.outputs = [o.name for o in graph.output]
        self._steps = [self._step(node) for node in graph.node]

    def _step(self, node: Any) -> Callable[[dict[str, Any]], None]:
        """Return a function that runs a node on the values by name."""
        attributes = attributes_of(node)
        name = node.name or node.op_type
        if node.domain not in ("", "ai.onnx") or not _is_known(node.op_type, self._opset):
            raise InterchangeError(
                f"node {name!r}: the operator {node.op_type} of opset {self._opset} is not "
                "supported"
            )
        if node.op_type in _RECURRENT:
            run = self._recurrent_step(node, Node.of(node.op_type, name, attributes))
        else:
            operator = OPERATORS[node.op_type]
            run = lambda inputs: operator(inputs, attributes, self._opset)  # noqa: E731

        def step(values: dict[str, Any]) -> None:
            results = run([values[i] if i else None for i in node.input])
            for output, result in zip(node.output, results, strict=False):
                if output:
                    values[output] = result

        return step

    def _recurrent_step(self, node: Any, parsed: Node) -> Callable[[Sequence[Any]], Any]:
        def weights(inputs: Sequence[Any]) -> list[Any]:
            given = dict(zip(INPUTS, inputs, strict=False))
            return [given["W"], given["R"], given.get("B"), given.get("P")]

        made: list[Any] = []  # the layer, once, where its weights are constants
        names = weights(node.input)
        fixed = all(not name or name in self._constants for name in names)

        def run(inputs: Sequence[Any]) -> list[np.ndarray]:
            layer = made[0] if made else parsed.layer(*weights(inputs))
            if fixed and not made:
                made.append(layer)
            return run_recurrent(parsed, layer, inputs)

        return run

    def run(self, inputs: Any, **options: Any) -> tuple[Any, ...]:
        """Return the outputs of the graph.

        Parameters
        ----------
        inputs : ndarray, sequence of ndarray, or mapping of str to ndarray
            In the order of the graph's inputs, or by their names.

        Returns
        -------
        namedtuple of ndarray
            In the order of the graph's outputs.

        Raises
        ------
        ValueError
            If an input is missing, or does not fit.
        TypeError
            If there are options: there are none.
        """
        if options:
            raise TypeError(f"run takes no options, got {sorted(options)}")
        values: dict[str, Any] = dict(self._constants)
        if isinstance(inputs, Mapping):
            unknown = sorted(set(inputs) - {*self.inputs, *self._constants})
            if unknown:
                raise ValueError(f"inputs must hold {self.inputs}, got {unknown} too")
            values |= inputs
        else:
            inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            values |= dict(zip(self.inputs, inputs, strict=True))
        missing = [name for name in self.inputs if name not in values]
        if missing:
            raise ValueError(f"inputs must hold {self.inputs}, missing {missing}")
        for step in self._steps:
            step(values)
        results = [values[name] for name in self.outputs]
        return tuple(onnx.backend.base.namedtupledict("Outputs", self.outputs)(*results))


def _is_known(operator: str, opset: int) -> bool:
    return operator in OPERATORS or (operator in _RECURRENT and opset >= _OLDEST)


class FastgatesBackend(_base.Backend):  # type: ignore[misc]
    """The interface's functions as class methods."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **options: Any) -> bool:
        """Tell whether all operators of a model are known."""
        opset = opset_of(model)
        return cls.supports_device(device) and all(
            node.domain in ("", "ai.onnx") and _is_known(node.op_type, opset)
            for node in model.graph.node
        )

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **options: Any) -> FastgatesRep:
        """Check a model and make it ready to run.

        Parameters
        ----------
        model : onnx.ModelProto
        device : str
            ``"CPU"``.
        **options
            Of other backends: none changes anything here.

        Raises
        ------
        InterchangeError
            A ValueError: a node that is not supported, by its name.
        ValueError
            If the device is another one.
        """
        if not cls.supports_device(device):
            raise ValueError(f"device must be 'CPU', got {device!r}")
        onnx.checker.check_model(model)
        return FastgatesRep(model)

    @classmethod
    def run_node(
        cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Any = None, **options: Any
    ) -> tuple[Any, ...]:
        """Run a single node.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of ndarray
            Those that the node leaves out left out.
        **options
            ``opset_version``, the newest by default.

        Returns
        -------
        namedtuple of ndarray
        """
        names = [name for name in node.input if name]
        value = onnx.helper.make_empty_tensor_value_info
        graph = onnx.helper.make_graph(
            [node], "node", [value(n) for n in names], [value(n) for n in node.output if n]
        )
        opset = options.get("opset_version", onnx.defs.onnx_opset_version())
        imports = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(graph, opset_imports=imports)
        return FastgatesRep(model).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Tell whether a device is the CPU."""
        return device.split(":")[0] == "CPU"


is_compatible = FastgatesBackend.is_compatible
prepare = FastgatesBackend.prepare
run_model = FastgatesBackend.run_model
run_node = FastgatesBackend.run_node
supports_device = FastgatesBackend.supports_device
