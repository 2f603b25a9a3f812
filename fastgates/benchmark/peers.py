"""One adapter per contender behind one small interface.

A contender builds, for a case and its data, two callables without arguments: ``inference()`` and
``train()``. Everything a user prepares once (modules, graphs, compilation, the layout of the
input) happens in ``build``; what a call returns stays in the contender's own arrays and is
brought to fastgates' layout, outside the timing, by ``output_of`` and ``gradients_of``. ``check``
compares two built contenders with each other, so that nobody times a wrong computation.

Each one gets the layout of sequences that it prefers: (batch, time, input) for fastgates,
(time, batch, input) for the peers. Packages are imported only by the adapter that needs them,
inside ``machine.one_core``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import numpy as np

from fastgates.benchmark.cases import CELLS, LEAK, Array, Case, Data

#: Largest difference from the reference, relative to the reference's largest entry (or 1).
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Built:
    """A contender made ready for one case.

    Attributes
    ----------
    inference : callable
        Computes the whole output; keeps nothing for a backward pass.
    train : callable or None
        Forward, then backward with the case's output gradient to the gradients of all weights.
        None if the contender does not train.
    output_of : callable
        From what `inference` returned to an array (B, T, H).
    gradients_of : callable or None
        From what `train` returned to a dict of arrays with the names and shapes of the weights.
    """

    inference: Callable[[], Any]
    train: Callable[[], Any] | None
    output_of: Callable[[Any], Array]
    gradients_of: Callable[[Any], dict[str, Array]] | None


class Contender(Hashable, Protocol):
    """What a contender offers."""

    @property
    def name(self) -> str:
        """The name used in the tables."""

    def available(self) -> bool:
        """Return whether its packages are installed, without importing them."""

    def supports(self, cell: str, mode: str) -> bool:
        """Return whether it can express `cell` naturally, in inference or in training."""

    def build(self, case: Case, data: Data) -> Built | None:
        """Prepare `case`; None if the cell is not supported."""


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


class Fastgates:
    """The package under test."""

    name = "fastgates"

    def available(self) -> bool:
        """Return whether fastgates is importable."""
        return _installed("fastgates")

    def supports(self, cell: str, mode: str) -> bool:
        """Return True: all cells, inference and training."""
        return cell in CELLS

    def build(self, case: Case, data: Data) -> Built | None:
        """Make a layer."""
        layer = self.layer(case, data)
        x, d_output = data.x, data.d_output

        def train() -> Any:
            _, _, tape = layer.forward(x, training=True, copy=False)
            return layer.backward(tape, d_output, input_gradient=False, initial_gradient=False)

        return Built(
            inference=lambda: layer(x),
            train=train,
            output_of=lambda result: result[0],
            gradients_of=lambda gradients: gradients.parameters,
        )

    def layer(self, case: Case, data: Data) -> Any:
        """Return the case's layer with the given weights."""
        import fastgates as fg

        sizes = case.input, case.hidden
        layer: Any
        match case.cell:
            case "rnn":
                layer = fg.RNN(*sizes)
            case "rnn_relu":
                layer = fg.RNN(*sizes, nonlinearity="relu")
            case "leaky_rnn":
                layer = fg.RNN(*sizes, leak=LEAK)
            case "simplified_gru":
                layer = fg.SimplifiedGRU(*sizes)
            case "gru":
                layer = fg.GRU(*sizes)
            case "gru_reset_after":
                layer = fg.GRU(*sizes, reset_after=True)
            case "lstm":
                layer = fg.LSTM(*sizes)
            case _:
                raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {case.cell!r}")
        layer.load_state_dict(data.weights)
        return layer


class Torch:
    """``torch.nn.RNN``, ``GRU`` and ``LSTM``, eager, one thread."""

    name = "torch"

    def available(self) -> bool:
        """Return whether torch is installed."""
        return _installed("torch")

    def supports(self, cell: str, mode: str) -> bool:
        """Return whether torch has the cell; its GRU resets after the product."""
        return cell in ("rnn", "rnn_relu", "gru_reset_after", "lstm")

    def build(self, case: Case, data: Data) -> Built | None:
        """Make a module and load the weights."""
        if not self.supports(case.cell, "inference"):
            return None
        import torch

        torch.set_num_threads(1)
        match case.cell:
            case "gru_reset_after":
                module: torch.nn.Module = torch.nn.GRU(case.input, case.hidden)
            case "lstm":
                module = torch.nn.LSTM(case.input, case.hidden)
            case _:
                nonlinearity = "relu" if case.cell == "rnn_relu" else "tanh"
                module = torch.nn.RNN(case.input, case.hidden, nonlinearity=nonlinearity)
        module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in data.weights.items()})
        x = torch.from_numpy(_time_major(data.x))
        d_output = torch.from_numpy(_time_major(data.d_output))
        parameters = dict(module.named_parameters())
        names, leaves = list(parameters), list(parameters.values())

        def inference() -> Any:
            with torch.inference_mode():
                return module(x)

        def train() -> Any:
            output, _ = module(x)
            return torch.autograd.grad(output, leaves, d_output)

        def gradients_of(result: Any) -> dict[str, Array]:
            return {name: gradient.numpy() for name, gradient in zip(names, result, strict=True)}

        return Built(
            inference=inference,
            train=train,
            output_of=lambda result: _batch_major(result[0].numpy()),
            gradients_of=gradients_of,
        )


def _onnx_bytes(case: Case, data: Data) -> bytes:
    """Return a serialised graph of one RNN, GRU or LSTM node with fixed shapes.

    Input ``x`` is (T, B, I), output ``y`` (T, 1, B, H).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    B, T, I, H = case.size  # noqa: E741
    attributes: dict[str, Any] = {"hidden_size": H}
    match case.cell:
        case "gru" | "gru_reset_after":
            operator, order = "GRU", [1, 0, 2]  # z r h from r z n
            attributes["linear_before_reset"] = int(case.cell == "gru_reset_after")
        case "lstm":
            operator, order = "LSTM", [0, 3, 1, 2]  # i o f c from i f g o
        case _:
            operator, order = "RNN", [0]
            attributes["activations"] = ["Relu" if case.cell == "rnn_relu" else "Tanh"]

    def gates(name: str) -> Array:
        rows = data.weights[name].reshape(len(order), H, -1)[order]
        return np.ascontiguousarray(rows.reshape(1, len(order) * H, -1))

    bias = np.concatenate([gates("bias_ih_l0"), gates("bias_hh_l0")], axis=1)[:, :, 0]
    initializers = {"w": gates("weight_ih_l0"), "r": gates("weight_hh_l0"), "b": bias}
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *initializers], ["y"], **attributes)],
        case.cell,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [T, B, I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [T, 1, B, H])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


_ONNX_CELLS = ("rnn", "rnn_relu", "gru", "gru_reset_after", "lstm")


class OnnxRuntime:
    """A graph of a single node in onnxruntime, one thread, inference only."""

    name = "onnxruntime"

    def available(self) -> bool:
        """Return whether onnx and onnxruntime are installed."""
        return _installed("onnx", "onnxruntime")

    def supports(self, cell: str, mode: str) -> bool:
        """Return whether ONNX has a node for the cell; there is no training."""
        return mode == "inference" and cell in _ONNX_CELLS

    def build(self, case: Case, data: Data) -> Built | None:
        """Make a session."""
        if not self.supports(case.cell, "inference"):
            return None
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        session = onnxruntime.InferenceSession(
            _onnx_bytes(case, data), options, providers=["CPUExecutionProvider"]
        )
        outputs, inputs = ["y"], {"x": _time_major(data.x)}
        return Built(
            inference=lambda: session.run(outputs, inputs),
            train=None,
            output_of=lambda result: _batch_major(result[0][:, 0]),
            gradients_of=None,
        )


class OpenVino:
    """The same graph in OpenVINO, one thread, float32, inference only."""

    name = "openvino"

    def available(self) -> bool:
        """Return whether onnx and openvino are installed."""
        return _installed("onnx", "openvino")

    def supports(self, cell: str, mode: str) -> bool:
        """Return whether ONNX has a node for the cell; there is no training."""
        return mode == "inference" and cell in _ONNX_CELLS

    def build(self, case: Case, data: Data) -> Built | None:
        """Compile the model for the CPU, with input and output arrays shared."""
        if not self.supports(case.cell, "inference"):
            return None
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        model = core.read_model(_onnx_bytes(case, data))
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        inputs = {0: _time_major(data.x)}
        return Built(
            inference=lambda: request.infer(inputs, share_inputs=True, share_outputs=True),
            train=None,
            output_of=lambda result: _batch_major(np.array(result[0][:, 0])),
            gradients_of=None,
        )


class Jax:
    """``jax.lax.scan`` over one step, compiled, on XLA's CPU backend, one thread.

    Of the ways to write the step, XLA makes the fastest code from a single product
    ``[x, h] @ W`` in inference and from two products in training; a product over all time steps
    ahead of the scan, the usual advice, was up to eight times slower. Each mode gets its best.
    The initial state is an argument: a constant zero would let XLA leave out the first product,
    which at a single step is most of the work.
    """

    name = "jax"

    def available(self) -> bool:
        """Return whether jax is installed."""
        return _installed("jax", "jaxlib")

    def supports(self, cell: str, mode: str) -> bool:
        """Return True: a step function can express every cell."""
        return cell in CELLS

    def build(self, case: Case, data: Data) -> Built | None:
        """Compile the forward pass, and the value and gradient with respect to the weights."""
        import jax
        import jax.numpy as jnp

        weights = {
            name: jnp.asarray(np.ascontiguousarray(value.T)) for name, value in data.weights.items()
        }
        x = jnp.asarray(_time_major(data.x))
        d_output = jnp.asarray(_time_major(data.d_output))

        zeros = jnp.zeros((case.batch, case.hidden), jnp.float32)
        state = (zeros, zeros) if case.cell == "lstm" else zeros

        def forward(weights: dict[str, Any], x: Any, state: Any) -> Any:
            step = _jax_step(case, weights, one_product=True)
            return jax.lax.scan(step, state, x)[1]

        def loss(weights: dict[str, Any], x: Any, d_output: Any, state: Any) -> Any:
            step = _jax_step(case, weights, one_product=False)
            return jnp.vdot(jax.lax.scan(step, state, x)[1], d_output)

        inference = jax.jit(forward)
        train = jax.jit(jax.value_and_grad(loss))

        def gradients_of(result: Any) -> dict[str, Array]:
            return {name: np.asarray(gradient).T for name, gradient in result[1].items()}

        return Built(
            inference=lambda: jax.block_until_ready(inference(weights, x, state)),
            train=lambda: jax.block_until_ready(train(weights, x, d_output, state)),
            output_of=lambda result: _batch_major(np.asarray(result)),
            gradients_of=gradients_of,
        )


def _jax_step(case: Case, weights: dict[str, Any], *, one_product: bool) -> Callable[..., Any]:
    """Return the step function of a cell, from (state, x_t) to (state, h_t)."""
    import jax
    import jax.numpy as jnp

    H = case.hidden
    w, u = weights["weight_hh_l0"], weights["weight_ih_l0"]  # (H, G*H), (I, G*H)
    bias_ih, bias_hh = weights["bias_ih_l0"], weights["bias_hh_l0"]
    bias = bias_ih + bias_hh
    joined = jnp.concatenate([u, w]) if one_product else None
    w_rz, w_n = w[:, : 2 * H], w[:, 2 * H :]
    sigmoid, tanh = jax.nn.sigmoid, jnp.tanh

    def affine(h: Any, x: Any) -> Any:
        if joined is not None:
            return jnp.concatenate([x, h], axis=1) @ joined + bias
        return x @ u + h @ w + bias

    def rnn(h: Any, x: Any) -> Any:
        h = tanh(affine(h, x))
        return h, h

    def rnn_relu(h: Any, x: Any) -> Any:
        h = jax.nn.relu(affine(h, x))
        return h, h

    def leaky_rnn(h: Any, x: Any) -> Any:
        h = (1 - LEAK) * tanh(affine(h, x)) + LEAK * h
        return h, h

    def simplified_gru(h: Any, x: Any) -> Any:
        f, g = jnp.split(affine(h, x), 2, axis=1)
        f = sigmoid(f)
        h = f * h + (1 - f) * tanh(g)
        return h, h

    def gru(h: Any, x: Any) -> Any:
        projected = x @ u + bias
        r, z = jnp.split(sigmoid(projected[:, : 2 * H] + h @ w_rz), 2, axis=1)
        n = tanh(projected[:, 2 * H :] + (r * h) @ w_n)
        h = z * h + (1 - z) * n
        return h, h

    def gru_reset_after(h: Any, x: Any) -> Any:
        projected, product = x @ u + bias_ih, h @ w + bias_hh
        r, z = jnp.split(sigmoid(projected[:, : 2 * H] + product[:, : 2 * H]), 2, axis=1)
        n = tanh(projected[:, 2 * H :] + r * product[:, 2 * H :])
        h = z * h + (1 - z) * n
        return h, h

    def lstm(state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(affine(h, x), 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h

    steps: dict[str, Callable[..., Any]] = {
        "rnn": rnn,
        "rnn_relu": rnn_relu,
        "leaky_rnn": leaky_rnn,
        "simplified_gru": simplified_gru,
        "gru": gru,
        "gru_reset_after": gru_reset_after,
        "lstm": lstm,
    }
    return steps[case.cell]


SUBJECT = Fastgates()
PEERS: tuple[Contender, ...] = (Torch(), OnnxRuntime(), OpenVino(), Jax())

#: In the order of the table's columns; fastgates, the first, is the reference of the checks.
CONTENDERS: tuple[Contender, ...] = (SUBJECT, *PEERS)


def installed_contenders() -> list[Contender]:
    """Return the contenders whose packages are installed."""
    return [contender for contender in CONTENDERS if contender.available()]


def check(name: str, built: Built, reference: Built, *, training: bool = True) -> None:
    """Compare a contender's output, and its gradients where it trains, with the reference's.

    Raises
    ------
    AssertionError
        If an entry differs by more than `TOLERANCE` of the reference's largest entry (of 1, if
        that is smaller); the message names the tensor and its worst index.
    """
    expected = reference.output_of(reference.inference())
    _compare(f"{name}: output", built.output_of(built.inference()), expected)
    if not training or built.train is None or reference.train is None:
        return
    assert built.gradients_of is not None
    assert reference.gradients_of is not None
    expected_gradients = reference.gradients_of(reference.train())
    gradients = built.gradients_of(built.train())
    for key, expected in expected_gradients.items():
        _compare(f"{name}: gradient of {key}", gradients[key], expected)


def _compare(what: str, actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape, f"{what}: {actual.shape} instead of {expected.shape}"
    difference = np.abs(np.asarray(actual, np.float64) - expected)
    worst = np.unravel_index(int(np.argmax(difference)), difference.shape)
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    place = tuple(map(int, worst))
    assert difference[worst] <= limit, (
        f"{what} differs by {difference[worst]:.2e} (limit {limit:.2e}) at {place}: "
        f"{actual[worst]} instead of {expected[worst]}"
    )


def _time_major(values: Array) -> Array:
    return np.ascontiguousarray(values.swapaxes(0, 1))


def _batch_major(values: Array) -> Array:
    return np.ascontiguousarray(values.swapaxes(0, 1))
