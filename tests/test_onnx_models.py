"""ONNX: the standard's own cases, onnxruntime as the judge, and the graphs that exporters write."""

import importlib
import importlib.util
import io
import unittest
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, normal
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgates as fg

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.parity
FIXTURES = Path(__file__).parent / "files"
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def session(model):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


# -- The cases of the standard --------------------------------------------------------------------


def node_cases():
    """The recurrent cases of onnx.backend.test; to make those of all operators takes long."""
    for name in ("gru", "lstm", "rnn"):
        importlib.import_module(f"onnx.backend.test.case.node.{name}")
    from onnx.backend.test.case import node

    starts = ("test_gru", "test_lstm", "test_rnn", "test_simple_rnn")
    return [case for case in node._NodeTestCases if case.name.startswith(starts)]


CASES = node_cases()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_recurrent_case_of_onnx(case):
    from fastgates import onnx_backend

    prepared = onnx_backend.prepare(case.model)
    for inputs, expected in case.data_sets:
        actual = prepared.run(list(inputs))
        for a, e in zip(actual, expected, strict=True):
            assert a.shape == e.shape and a.dtype == e.dtype
            np.testing.assert_allclose(a, e, rtol=case.rtol, atol=case.atol)


def test_there_are_all_cases():
    assert len(CASES) == 18


@pytest.mark.slow
def test_the_same_by_the_runner_of_onnx():
    import onnx.backend.test

    from fastgates import onnx_backend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cases of other operators, while they are made
        suite = onnx.backend.test.BackendTest(onnx_backend, __name__)
    suite.include(r"^test_(gru|lstm|rnn|simple_rnn)_.*_cpu$")
    loader, result = unittest.defaultTestLoader, unittest.TestResult()
    loader.loadTestsFromTestCase(suite.test_cases["OnnxBackendNodeModelTest"]).run(result)
    assert not result.failures and not result.errors, result
    assert result.testsRun - len(result.skipped) == 18


def test_backend_interface():
    from fastgates import onnx_backend

    model = fg.to_onnx(fg.Sequential(fg.LSTM(2, 3, seed=0), fg.Dense(3, 2, seed=1)))
    assert onnx_backend.supports_device("CPU") and not onnx_backend.supports_device("CUDA")
    assert onnx_backend.is_compatible(model)
    x = normal(np.random.default_rng(0), (2, 5, 2))
    prepared = onnx_backend.prepare(model)
    (first,) = prepared.run([x])
    (second,) = prepared.run({"x": x})
    (third,) = onnx_backend.run_model(model, [x])
    assert_same_bits("output", second, first)
    assert_same_bits("output", third, first)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="mine")
    other = helper.make_model(helper.make_graph([node], "g", [], []))
    assert not onnx_backend.is_compatible(other)
    with pytest.raises(ValueError, match="node 'mine': the operator Conv of opset"):
        onnx_backend.FastgatesRep(other)
    with pytest.raises(ValueError, match="device must be 'CPU', got 'CUDA'"):
        onnx_backend.prepare(model, "CUDA")
    with pytest.raises(ValueError, match="missing"):
        prepared.run({})


# -- Nodes with any attributes, judged by onnxruntime ---------------------------------------------

FUNCTIONS = [
    "Tanh", "Sigmoid", "Relu", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh",
    "HardSigmoid", "Elu", "Softsign", "Softplus",
]  # fmt: skip
NUMBERS = {"Affine": 2, "ScaledTanh": 2, "HardSigmoid": 2, "LeakyRelu": 1, "ThresholdedRelu": 1}
NUMBERS["Elu"] = 1
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@st.composite
def nodes(draw):
    kind = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    count = 2 if direction == "bidirectional" else 1
    attributes = {"direction": direction}
    if draw(st.booleans()):
        each = {"RNN": 1, "GRU": 2, "LSTM": 3}[kind] * count
        names = draw(st.lists(st.sampled_from(FUNCTIONS), min_size=each, max_size=each))
        attributes["activations"] = names
        for place, key in enumerate(("activation_alpha", "activation_beta")):
            takers = sum(NUMBERS.get(name, 0) > place for name in names)
            if takers:
                number = st.floats(0.125, 1, width=16)
                attributes[key] = draw(st.lists(number, min_size=takers, max_size=takers))
    if draw(st.booleans()):
        # Never a threshold: there the standard says >=, as here, and onnxruntime does >.
        attributes["clip"] = draw(st.floats(0.125, 2, width=16)) + 2**-16
    if kind == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if kind == "LSTM":
        attributes["input_forget"] = draw(st.integers(0, 1))
    given = draw(st.sets(st.sampled_from(["B", "sequence_lens", "initial_h", "initial_c", "P"])))
    sizes = draw(st.tuples(*[st.integers(1, 6)] * 4))
    return kind, count, attributes, given, sizes, draw(st.integers(0, 99))


def arrays_of(kind, count, given, sizes, seed):
    """Random inputs of a node by name, in the order of the standard."""
    size, time, features, hidden = sizes
    rng, gates = np.random.default_rng(seed), GATES[kind]
    arrays = {
        "X": normal(rng, (time, size, features)),
        "W": normal(rng, (count, gates * hidden, features)) / 2,
        "R": normal(rng, (count, gates * hidden, hidden)) / (2 * np.sqrt(np.float32(hidden))),
        "B": normal(rng, (count, 2 * gates * hidden)) / 2,
        "sequence_lens": rng.integers(0, time + 1, size).astype(np.int32),
        "initial_h": normal(rng, (count, size, hidden)) / 2,
        "initial_c": normal(rng, (count, size, hidden)) / 2,
        "P": normal(rng, (count, 3 * hidden)) / 2,
    }
    if kind != "LSTM":
        del arrays["initial_c"], arrays["P"]
    return {n: v for n, v in arrays.items() if n in ("X", "W", "R") or n in given}


def node_model(kind, attributes, arrays, hidden):
    """A model of one node whose inputs are all the graph's."""
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    order = order[: 8 if kind == "LSTM" else 6]
    inputs = [name if name in arrays else "" for name in order]
    while not inputs[-1]:
        inputs.pop()
    outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(kind, inputs, outputs, hidden_size=hidden, **attributes)
    types = {n: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for n, v in arrays.items()}
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(n, types[n], v.shape) for n, v in arrays.items()],
        [helper.make_tensor_value_info(n, FLOAT, [None] * (4 if n == "Y" else 3)) for n in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=60)
@given(nodes())
def test_any_node(drawn):
    """Against onnxruntime; the other layout against this one, which is all that it runs."""
    from fastgates import onnx_backend

    kind, count, attributes, given_inputs, sizes, seed = drawn
    arrays = arrays_of(kind, count, given_inputs, sizes, seed)
    model = node_model(kind, attributes, arrays, sizes[3])
    expected = session(model).run(None, arrays)
    actual = onnx_backend.run_model(model, list(arrays.values()))
    names = ("Y", "Y_h", "Y_c")[: len(expected)]
    for name, a, e in zip(names, actual, expected, strict=True):
        assert_close(name, a, e, 5e-6, floor=1.0)
    turned = dict(arrays)
    for name in ("X", "initial_h", "initial_c"):
        if name in turned:
            turned[name] = turned[name].transpose(1, 0, 2)
    model = node_model(kind, attributes | {"layout": 1}, turned, sizes[3])
    batch_first = onnx_backend.run_model(model, list(turned.values()))
    orders = [(2, 0, 1, 3), (1, 0, 2), (1, 0, 2)][: len(expected)]
    for name, order, a, e in zip(names, orders, batch_first, actual, strict=True):
        assert_same_bits(name, a, e.transpose(order))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"direction": "sideways"}, "direction must be one of forward, reverse, bidirectional"),
        ({"activations": ["Tanh"]}, "activations must be 3"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"activations": ["Sigmoid", "Cube", "Tanh"]}, "got 'Cube'"),
        ({"activation_alpha": [0.5]}, "activation_alpha has 1 values for 0 functions"),
        ({"output_sequence": 1}, r"attributes \['output_sequence'\] are not supported"),
        ({"hidden_size": 9}, "R must have hidden_size=9 columns, got 4"),
    ],
)
def test_nodes_that_are_refused(attributes, message):
    from fastgates.interchange._onnx_nodes import Node

    arrays = arrays_of("LSTM", 1, {"B"}, (1, 2, 3, 4), 0)
    with pytest.raises(ValueError, match=message):
        Node.of("LSTM", "mine", attributes).layer(arrays["W"], arrays["R"], arrays["B"])


@pytest.mark.parametrize("name", ["W", "R", "B", "P"])
def test_weights_of_wrong_shapes(name):
    from fastgates.interchange._onnx_nodes import Node

    arrays = arrays_of("LSTM", 1, {"B", "P"}, (1, 2, 3, 4), 0)
    weights = {n: arrays[n] for n in ("W", "R", "B", "P")}
    weights[name] = np.concatenate([weights[name]] * 2, axis=1)
    with pytest.raises(ValueError, match=rf"node 'mine': {name} must have shape \("):
        Node.of("LSTM", "mine", {}).layer(**weights)


# -- Our own models, there and back ---------------------------------------------------------------


def randomized(layer, seed=0):
    with layer.edit_parameters() as parameters:
        parameters.vector[:] = normal(np.random.default_rng(seed), parameters.vector.size) / 2
    return layer


def sequential(return_sequences=True):
    return fg.Sequential(
        fg.Scaling([1.0, -2.0, 0.5], [2.0, 0.5, 4.0]),
        fg.GRU(3, 6, reset_after=True, num_layers=2, seed=0),
        fg.Dense(6, 5, "tanh", seed=1),
        fg.LSTM(5, 4, seed=2),
        fg.Dense(4, 2, "softmax", seed=3),
        fg.Scaling([3.0, 0.0], [10.0, 0.1], inverse=True),
        return_sequences=return_sequences,
    )


SOME = (("hard_sigmoid", 0.25, 0.5), "softsign", ("elu", 0.5))
MODELS = {
    "rnn relu": lambda: fg.RNN(3, 5, nonlinearity="relu", seed=0),
    "rnn elu clip": lambda: fg.RNN(3, 5, nonlinearity=("elu", 0.5), clip=0.5, seed=0),
    "leaky rnn": lambda: fg.RNN(3, 5, leak=[0, 0.1, 0.5, 0.9, 1], bias=False, seed=0),
    "leaky relu rnn": lambda: fg.RNN(3, 5, nonlinearity="relu", leak=0.3, seed=0),
    "simplified gru": lambda: fg.SimplifiedGRU(3, 5, bidirectional=True, seed=0),
    "gru": lambda: fg.GRU(3, 5, 2, bidirectional=True, seed=0),
    "gru others": lambda: fg.GRU(3, 5, activations=SOME[:2], clip=0.75, seed=0),
    "gru after": lambda: fg.GRU(3, 5, reset_after=True, bias=False, seed=0),
    "lstm": lambda: fg.LSTM(3, 5, 2, seed=0),
    "lstm last": lambda: fg.Sequential(
        fg.LSTM(3, 5, bidirectional=True, seed=0), return_sequences=False
    ),
    "lstm peepholes": lambda: randomized(fg.LSTM(3, 5, peepholes=True, bidirectional=True)),
    "lstm coupled": lambda: randomized(fg.LSTM(3, 5, coupled=True, peepholes=True, clip=0.5)),
    "lstm others": lambda: randomized(fg.LSTM(3, 5, activations=SOME, reverse=True)),
    "sequential": sequential,
    "sequential last": lambda: sequential(False),
}


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_gives_the_same(name, tmp_path):
    model = MODELS[name]()
    x = normal(np.random.default_rng(1), (4, 20, 3))
    proto = fg.to_onnx(model, tmp_path / "a.onnx")
    onnx.checker.check_model(proto, full_check=True)
    (expected,) = session(proto).run(None, {"x": x})
    output = model(x)[0]
    assert_close("output", output, expected, 1e-6, floor=1.0)
    again = fg.from_onnx(tmp_path / "a.onnx")
    output_again = again(x)[0]
    assert_close("output of the model that came back", output_again, output, 1e-6, floor=1.0)
    twice = fg.to_onnx(again)
    for a, b in zip(twice.graph.initializer, proto.graph.initializer, strict=True):
        assert_same_bits(a.name, onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))


@pytest.mark.parametrize("name", MODELS)
def test_streaming(name):
    model = MODELS[name]()
    recurrent = getattr(model, "recurrent", [model])
    if any(layer.bidirectional or layer.reverse for layer in recurrent):
        with pytest.raises(ValueError, match="a streaming model must run forward only"):
            fg.to_onnx(model, streaming=True)
        return
    proto = fg.to_onnx(model, streaming=True)
    step = session(proto)
    x = normal(np.random.default_rng(1), (4, 20, 3))
    states = {
        entry.name: np.zeros((entry.shape[0], 4, entry.shape[2]), np.float32)
        for entry in step.get_inputs()[1:]
    }
    outputs = []
    for t in range(20):
        found = dict(zip([o.name for o in step.get_outputs()],
                         step.run(None, {"x": x[:, t], **states}), strict=True))  # fmt: skip
        outputs.append(found["y"])
        states = {state: found[f"{state}_next"] for state in states}
    expected, final = model(x)
    outputs = np.stack(outputs, axis=1) if expected.ndim == 3 else outputs[-1]
    assert_close("output", outputs, expected, 1e-6, floor=1.0)
    final = final if isinstance(model, fg.Sequential) else (final,)
    flat = [a for state in final for a in (state if isinstance(state, tuple) else (state,))]
    for name_of_state, a in zip(states, flat, strict=True):
        assert_close(name_of_state, states[name_of_state], a, 1e-6, floor=1.0)
    again = fg.from_onnx(proto)
    output = again(x)[0]
    output = output if expected.ndim == 3 else output[:, -1]
    assert_close("output of the model that came back", output, expected, 1e-6, floor=1.0)


@settings(max_examples=20)
@given(
    cell=st.sampled_from(["RNN", "SimplifiedGRU", "GRU", "LSTM"]),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 3)),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    return_sequences=st.booleans(),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 100)),
    seed=st.integers(0, 99),
)
def test_round_trips(cell, sizes, bias, bidirectional, return_sequences, shape, seed):
    layer = getattr(fg, cell)(*sizes, bias=bias, bidirectional=bidirectional, seed=seed)
    model = fg.Sequential(
        layer, fg.Dense(layer.output_size, 2, "tanh", seed=seed), return_sequences=return_sequences
    )
    proto = fg.to_onnx(model)
    x = normal(np.random.default_rng(seed), (*shape, sizes[0]))
    output = model(x)[0]
    (expected,) = session(proto).run(None, {"x": x})
    assert_close("output", output, expected, 1e-6, floor=1.0)
    assert_close("back", fg.from_onnx(proto)(x)[0], output, 1e-6, floor=1.0)


def test_a_cell_of_ones_own_is_refused():
    with pytest.raises(ValueError, match="ONNX has no cell 'lstm'"):
        fg.to_onnx(fg.Recurrent("lstm", 2, 3))
    with pytest.raises(ValueError, match="cannot say a leak with a clip"):
        fg.to_onnx(fg.RNN(2, 3, leak=0.5, clip=1.0))


# -- Graphs that others write ---------------------------------------------------------------------


def torch_modules():
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self, layer, take):
            super().__init__()
            self.layer, self.take = layer, take
            width = layer.hidden_size * (2 if layer.bidirectional else 1)
            self.head = torch.nn.Linear(width, 2)

        def forward(self, x):
            output, state = self.layer(x)
            hidden = state[0] if isinstance(state, tuple) else state
            if self.take == "all":
                return torch.tanh(self.head(output))
            if self.take == "step":
                return torch.softmax(self.head(output[:, -1]), -1)
            if self.take == "state":
                return self.head(hidden[-1])
            if self.take == "both states":
                return self.head(torch.cat([hidden[-2], hidden[-1]], dim=-1))
            return self.head(output), state

    nn = torch.nn
    return torch, {
        "lstm": Net(nn.LSTM(3, 4, 2, batch_first=True), "all"),
        "lstm step": Net(nn.LSTM(3, 4, 2, batch_first=True), "step"),
        "gru state": Net(nn.GRU(3, 4, 2, batch_first=True), "state"),
        "gru both": Net(nn.GRU(3, 4, 2, batch_first=True, bidirectional=True), "both states"),
        "rnn": Net(nn.RNN(3, 4, nonlinearity="relu", bidirectional=True, batch_first=True), "all"),
        "states too": Net(nn.LSTM(3, 4, batch_first=True, bias=False), "with states"),
        "time first": Net(nn.GRU(3, 4), "all"),
    }


# The newer exporter of PyTorch 2.13 unrolls nn.RNN, and fixes the time of input with time first.
UNROLLED = ["rnn", "time first"]
TORCH = ["lstm", "lstm step", "gru state", "gru both", "rnn", "states too", "time first"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "dynamo"),
    [(name, False) for name in TORCH]
    + [pytest.param(name, True, marks=pytest.mark.slow) for name in TORCH if name not in UNROLLED],
)
def test_what_torch_exports(name, dynamo):
    torch, modules = torch_modules()
    if dynamo and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("torch.onnx needs onnxscript for this exporter")
    torch.manual_seed(0)
    module = modules[name].eval()
    axes = ("time", "batch") if name == "time first" else ("batch", "time")
    file = io.BytesIO()
    example = torch.randn(2, 5, 3)
    if dynamo:
        dims = tuple(torch.export.Dim(n) for n in axes)
        program = torch.onnx.export(
            module, (example,), dynamo=True, dynamic_shapes={"x": dict(enumerate(dims))},
            verbose=False,
        )  # fmt: skip
        proto = program.model_proto
    else:
        torch.onnx.export(
            module, (example,), file, dynamo=False, input_names=["x"],
            dynamic_axes={"x": dict(enumerate(axes))},
        )  # fmt: skip
        proto = onnx.load_from_string(file.getvalue())
    model = fg.from_onnx(proto)
    x = normal(np.random.default_rng(0), (4, 17, 3))
    turned = x.transpose(1, 0, 2) if name == "time first" else x
    with torch.no_grad():
        expected = module(torch.from_numpy(np.ascontiguousarray(turned)))
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()
    if name == "time first":
        expected = expected.transpose(1, 0, 2)
    assert_close("output", model(x)[0], expected, 1e-6, floor=1.0)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_of_fixed_sizes_and_a_step_that_is_not_the_last():
    torch, modules = torch_modules()
    torch.manual_seed(0)
    module = modules["lstm step"].eval()
    file, example = io.BytesIO(), torch.randn(1, 1, 3)
    torch.onnx.export(module, (example,), file, dynamo=False)
    model = fg.from_onnx(onnx.load_from_string(file.getvalue()))
    x = normal(np.random.default_rng(0), (4, 17, 3))
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    assert_close("output", model(x)[0], expected, 1e-6, floor=1.0)
    both = modules["rnn"]
    both.take = "step"
    file = io.BytesIO()
    torch.onnx.export(both, (torch.randn(2, 5, 3),), file, dynamo=False)
    with pytest.raises(ValueError, match=r"Gather\): only the step at which all directions"):
        fg.from_onnx(onnx.load_from_string(file.getvalue()))


@pytest.mark.parametrize("name", ["lstm", "bidirectional_lstm", "lstm_sequences"])
def test_what_keras_exports(name):
    """Files that Keras 3.15 wrote with TensorFlow as its backend; its GRU becomes a Loop."""
    model = fg.from_onnx(FIXTURES / f"keras-{name}.onnx")
    data = np.load(FIXTURES / f"keras-{name}.npz")
    assert_close("output", model(data["x"])[0], data["y"], 1e-6, floor=1.0)


def graph_of(nodes, constants, outputs=("y",), inputs=None, opset=17):
    inputs = inputs or {"x": ["batch", "time", 3]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, None) for n in outputs],
        [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


WEIGHTS = {
    "W": normal(np.random.default_rng(0), (1, 15, 3)),
    "R": normal(np.random.default_rng(1), (1, 15, 5)) / 4,
    "one": np.array([1], np.int64),
}


def gru(x="x", y="Y", layout=1, **options):
    return helper.make_node("GRU", [x, "W", "R"], [y, "Y_h"], "my_gru", layout=layout, **options)


def node(operator, inputs, outputs, **options):
    return helper.make_node(operator, inputs, outputs, f"my_{operator}", **options)


FLAT = {"two": np.array([2], np.int64), "V": np.ones((5, 2), np.float32)}
SQUEEZE = node("Squeeze", ["Y", "two"], ["s"])
TURN = node("Transpose", ["s"], ["t"], perm=[0, 2, 1])
REFUSED = {
    "operator": ([gru(), SQUEEZE, node("Erf", ["s"], ["y"])], r"node 'my_Erf' \(Erf\)"),
    "activation": ([gru(), SQUEEZE, node("Tanh", ["s"], ["y"])], "after a dense layer only"),
    "residual": ([gru(), SQUEEZE, node("Add", ["s", "s"], ["y"])], "two values that depend on"),
    "left product": ([gru(), SQUEEZE, node("MatMul", ["V", "s"], ["y"])], "from the right"),
    "part": (
        [gru(), SQUEEZE, node("Slice", ["s", "one", "two", "two"], ["y"])],
        r"a part of the axis \('hidden',\) cannot be taken alone",
    ),
    "product over time": (
        [gru(), SQUEEZE, TURN, node("MatMul", ["t", "V"], ["y"])],
        r"cannot take|all features",
    ),
    "no layer": ([node("Mul", ["x", "c"], ["y"])], r"no output of the graph|no recurrent node"),
    "two outputs": ([gru(), SQUEEZE, node("Mul", ["x", "c"], ["y"])], "output 'y' is neither"),
    "old": ([gru(layout=0)], "my_gru"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_graphs_that_are_refused(name):
    nodes, message = REFUSED[name]
    constants = WEIGHTS | FLAT | {"c": np.ones(3, np.float32)}
    outputs = ("y", "s") if name == "two outputs" else ("y",)
    if name == "old":
        outputs = ("Y",)
        constants["W"] = constants["W"][:, :, :2]
    with pytest.raises(ValueError, match=message):
        fg.from_onnx(graph_of(nodes, constants, outputs))


def test_scaling_and_gemm_are_found():
    constants = WEIGHTS | FLAT | {
        "mean": np.float32([1, 2, 3]), "scale": np.float32([2, 4, 0.5]),
        "bias": np.float32([0.5, -1]), "factor": np.float32(3), "offset": np.float32([1, 2]),
    }  # fmt: skip
    nodes = [
        node("Sub", ["x", "mean"], ["a"]),
        node("Div", ["a", "scale"], ["b"]),
        gru("b"),
        node("Squeeze", ["Y_h", "one"], ["h"]),
        node("Gemm", ["h", "V", "bias"], ["g"], alpha=0.5, beta=2.0),
        node("Mul", ["g", "factor"], ["m"]),
        node("Add", ["m", "offset"], ["y"]),
    ]
    model = fg.from_onnx(graph_of(nodes, constants))
    assert repr(model) == (
        "Sequential(Scaling(3), GRU(3, 5, bias=False), Dense(5, 2, 'identity'), "
        "Scaling(2, inverse=True), return_sequences=False)"
    )
    assert_same_bits("scale", model.modules[0].parameters["scale"], constants["scale"])
    assert_same_bits("bias", model.modules[2].parameters["bias"], 2 * constants["bias"])


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no model at all")
    with pytest.raises(ValueError, match=r"not a model of ONNX|no output"):
        fg.from_onnx(tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError):
        fg.from_onnx(tmp_path / "absent.onnx")
    with pytest.raises(TypeError, match="must be a ModelProto or a path, got int"):
        fg.from_onnx(3)


# -- What stands between nodes, judged by onnxruntime ---------------------------------------------

SEVEN = np.arange(28, dtype=np.float32).reshape(7, 4)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "outputs", "opset"),
    [
        ("Split", [SEVEN], {"num_outputs": 3}, 3, 18),
        ("Split", [SEVEN[:6]], {}, 3, 13),
        ("Split", [SEVEN[:6]], {}, 2, 11),
        ("Range", [np.float32(0), np.float32(1), np.float32(0.25)], {}, 1, 13),
        ("Range", [np.int64(7), np.int64(0), np.int64(-2)], {}, 1, 13),
        ("Constant", [], {"value_float": 2.5}, 1, 13),
        ("Constant", [], {"value_floats": [2.5, 1.0]}, 1, 13),
        ("Constant", [], {"value_ints": [2, 1]}, 1, 13),
        ("ReduceProd", [SEVEN], {"noop_with_empty_axes": 1}, 1, 18),
        ("ReduceProd", [SEVEN], {}, 1, 18),
        ("Flatten", [SEVEN], {"axis": -1}, 1, 13),
        ("Flatten", [SEVEN], {"axis": 2}, 1, 13),
    ],
)
def test_operators(operator, inputs, attributes, outputs, opset):
    from fastgates import onnx_backend

    runtime = pytest.importorskip("onnxruntime")
    names = [f"x{k}" for k in range(len(inputs))]
    node = helper.make_node(operator, names, [f"y{k}" for k in range(outputs)], **attributes)
    types = [helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype) for value in inputs]
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, t, np.shape(value))
            for n, t, value in zip(names, types, inputs, strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    given = dict(zip(names, map(np.asarray, inputs), strict=True))
    expected = runtime.InferenceSession(model.SerializeToString()).run(None, given)
    found = onnx_backend.FastgatesRep(model).run(given)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_inputs_that_there_are_not():
    from fastgates import onnx_backend

    model = fg.to_onnx(fg.LSTM(2, 3, seed=0))
    x = np.zeros((2, 5, 2), np.float32)
    with pytest.raises(ValueError, match=r"got \['z'\] too"):
        onnx_backend.prepare(model).run({"x": x, "z": x})
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(fg.InterchangeError, match="nothing gives its input 'nowhere'"):
        fg.from_onnx(model)
