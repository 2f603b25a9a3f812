"""What the tests of the GPU backend run in a process of its own, with Numba's CUDA simulator.

The simulator must be chosen before Numba is imported, so `test_cuda_simulator.py` starts this file
once and sends it jobs, a line of JSON each.
"""

import copy
import io
import json
import sys
import threading
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import helpers
import numpy as np
from helpers import (
    CELLS,
    CellCase,
    assert_close,
    assert_same_gradients,
    assert_same_state,
    make_problem,
)
from helpers import assert_same_bits as same

import fastgates as fg

TOLERANCE = 1e-5


def cases():
    """Every cell of the package, and the one of the tests."""
    from test_toy_cell import ToyCase

    functions = ["hard_sigmoid", ("scaled_tanh", 1.2, 0.7), "softsign"]
    more = [
        ToyCase("toy", "coupled_lstm", "Recurrent"),
        CellCase("rnn_elu", "rnn_general", "RNN", {"nonlinearity": "elu"}),
        CellCase("gru_functions", "gru_general", "GRU", {"activations": functions[:2]}),
        CellCase("peepholes", "lstm_general", "LSTM", {"peepholes": True, "clip": 1.5}),
        CellCase("functions", "lstm_general", "LSTM", {"activations": functions}),
    ]
    return {case.id: case for case in [*CELLS, *more]}


def on_gpu(layer):
    return copy.deepcopy(layer).to("cuda")


def compare(problem, times=1, **options):
    """A problem's layer on the simulated GPU with the CPU's, forward and backward."""
    layer, twin = problem.layer, on_gpu(problem.layer)
    expected_output, expected_final, tape = layer.forward(problem.x, **problem.data)
    expected = layer.backward(tape, problem.d_output, problem.d_final_state)
    results = []
    for _ in range(times):
        output, final, tape = twin.forward(problem.x, **problem.data, **options)
        gradients = twin.backward(tape, problem.d_output, problem.d_final_state)
        results.append((output, final, gradients))
    (output, final, gradients), *others = results
    for again in others:
        same("output again", again[0], output)
        assert_same_state("final_state again", again[1], final)
        assert_same_gradients("gradients again", again[2], gradients)
    check_results(output, final, expected_output, expected_final)
    check_gradients(gradients, expected)
    return twin, expected_output, expected_final


def check_results(output, final, expected_output, expected_final):
    assert_close("output", output, expected_output, TOLERANCE, floor=1.0)
    for a, e in zip(helpers.parts(final), helpers.parts(expected_final), strict=True):
        assert_close("final_state", a, e, TOLERANCE, floor=1.0)


def check_gradients(gradients, expected):
    assert (gradients.input is None) == (expected.input is None)
    if expected.input is not None:
        assert_close("d_input", gradients.input, expected.input, TOLERANCE, floor=1.0)
    for a, e in zip(
        helpers.parts(gradients.initial_state), helpers.parts(expected.initial_state), strict=True
    ):
        assert_close("d_initial_state", a, e, TOLERANCE, floor=1.0)
    for name, value in expected.parameters.items():
        assert_close(f"d_{name}", gradients.parameters[name], value, TOLERANCE, floor=1.0)


# -- Jobs -----------------------------------------------------------------------------------------


def layer(case, segment=None, times=1, **options):
    """A layer against the CPU: forward, backward, a plain call, the last outputs."""
    problem = make_problem(cases()[case], **options)
    twin, output, final = compare(problem, times, segment=segment)
    result, state = twin(problem.x, **problem.data)
    check_results(result, state, output, final)
    result, state = twin(problem.x, **problem.data, return_sequences=False)
    expected, _ = problem.layer(problem.x, **problem.data, return_sequences=False)
    check_results(result, state, expected, final)
    assert twin.state_dict().keys() == problem.layer.state_dict().keys()
    assert twin.device == "cuda"
    same("back on the CPU", twin.to("cpu")(problem.x, **problem.data)[0], output)


def options(case, lengths=False, resets=False, segment=2, **layer_options):
    """A layer with options that the other tests' problems do not know, against the CPU."""
    layer = cases()[case].build(2, 3, seed=0, **layer_options)
    rng = np.random.default_rng(0)
    with layer.edit_parameters() as parameters:
        parameters.vector[:] = rng.uniform(-1, 1, parameters.vector.size)
    count = layer.num_layers * layer.num_directions
    state = [helpers.normal(rng, (count, 3, 3)) for _ in layer.cell.states]
    problem = helpers.Problem(
        case=cases()[case],
        layer=layer,
        x=helpers.normal(rng, (3, 4, 2)),
        initial_state=helpers.as_state(state),
        lengths=np.array([4, 1, 3]) if lengths else None,
        resets=rng.random((3, 4)) < 0.3 if resets else None,
        d_output=helpers.normal(rng, (3, 4, layer.output_size)),
        d_final_state=helpers.as_state([part[::-1] for part in state]),
    )
    twin, output, final = compare(problem, segment=segment)
    for return_sequences in (True, False):
        data = problem.data | {"return_sequences": return_sequences}
        expected = layer(problem.x, **data)
        check_results(*twin(problem.x, **data), *expected)


@contextmanager
def blocks_at_once():
    """Let the simulator run all blocks of a launch at the same time."""
    from numba.cuda.simulator import kernel

    waiting, manager = [], kernel.BlockManager

    class Together(manager):
        def run(self, grid_point, *args):
            waiting.append((self, grid_point, args))
            if len(waiting) < np.prod(self._grid_dim):
                return
            blocks, errors = list(waiting), []
            waiting.clear()

            def run_one(block, point, arguments):
                try:
                    manager.run(block, point, *arguments)
                except Exception as error:
                    errors.append(error)

            threads = [threading.Thread(target=run_one, args=block) for block in blocks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if errors:
                raise errors[0]

    kernel.BlockManager = Together
    try:
        yield
    finally:
        kernel.BlockManager = manager


def mend_shared_memory():
    """Give each block of the simulator shared memory of its own, made by one of its threads.

    The simulator's own is one for all blocks, and two threads that come at once may both make it.
    """
    from numba.cuda.simulator import kernelapi

    def array(self, shape, dtype, alignment=None):
        frame = sys._getframe(1)
        block = tuple(threading.current_thread().blockIdx)
        key = frame.f_code.co_filename, frame.f_lineno, block
        return self._allocations.setdefault(key, np.zeros(shape, np.float32))

    kernelapi.FakeCUDAShared.array = array


def shared_units(case, units, processors, **options):
    """A layer whose units several blocks share, as those of more than 128 units do."""
    from fastgates.cuda import _plans
    from fastgates.cuda.recurrent import LayerPasses

    before = LayerPasses.one_block, _plans.LARGEST_ON_ONE_BLOCK, _plans._shared_units
    LayerPasses.one_block = False
    _plans.LARGEST_ON_ONE_BLOCK = 1
    _plans._shared_units = lambda *sizes: units
    number = LayerPasses.processors
    LayerPasses.processors = processors
    try:
        with blocks_at_once():
            compare(make_problem(cases()[case], **options))
    finally:
        LayerPasses.one_block, _plans.LARGEST_ON_ONE_BLOCK, _plans._shared_units = before
        LayerPasses.processors = number


def dropout(variational):
    """Dropout between layers draws the same masks as on the CPU."""
    layer = fg.GRU(2, 3, 2, dropout=0.5, variational=variational, seed=0)
    twin = on_gpu(layer)
    x = np.random.default_rng(0).standard_normal((2, 3, 2))
    output, final, tape = layer.forward(x, training=True)
    output_2, final_2, tape_2 = twin.forward(x, training=True)
    check_results(output_2, final_2, output, final)
    check_gradients(twin.backward(tape_2, output), layer.backward(tape, output))


def model(return_sequences, lengths, activation):
    """A whole model: scaling, a layer, a read-out, scaling back."""
    rng = np.random.default_rng(0)
    network = fg.Sequential(
        fg.Scaling([0.5, -1.0], [2.0, 0.5]),
        fg.LSTM(2, 3, bidirectional=True, seed=0),
        fg.Dense(6, 3, "tanh", seed=1),
        fg.GRU(3, 2, seed=2),
        fg.Dense(2, 2, activation, seed=3),
        fg.Scaling([1.0, 2.0], [3.0, 4.0], inverse=True),
        return_sequences=return_sequences,
    )
    twin = copy.deepcopy(network).to("cuda")
    assert {module.device for module in twin.modules} == {"cuda"}
    x = rng.standard_normal((3, 4, 2)).astype(np.float32)
    data = {"lengths": np.array([4, 2, 1]) if lengths else None}
    expected, expected_states, tape = network.forward(x, **data)
    output, states, tape_2 = twin.forward(x, **data)
    assert tape_2.nbytes > 0
    assert_close("output", output, expected, TOLERANCE, floor=1.0)
    assert_close("output of a call", twin(x, **data)[0], expected, TOLERANCE, floor=1.0)
    for a, e in zip(states, expected_states, strict=True):
        check_results(output, a, expected, e)
    d_output = rng.standard_normal(expected.shape)
    d_states = [
        helpers.as_state([rng.standard_normal(p.shape) for p in helpers.parts(s)])
        for s in expected_states
    ]
    gradients = twin.backward(tape_2, d_output, d_states)
    wanted = network.backward(tape, d_output, d_states)
    assert_close("d_input", gradients.input, wanted.input, TOLERANCE, floor=1.0)
    assert_close("d", gradients.parameter_vector, wanted.parameter_vector, TOLERANCE, floor=1.0)
    for a, e in zip(gradients.initial_state, wanted.initial_state, strict=True):
        for one, other in zip(helpers.parts(a), helpers.parts(e), strict=True):
            assert_close("d_initial_state", one, other, TOLERANCE, floor=1.0)
    tape_2 = twin.forward(x, **data)[2]
    some = twin.backward(tape_2, d_output, d_states, False, initial_gradient=False)
    assert some.input is None and some.initial_state is None
    same("gradients without the others", some.parameter_vector, gradients.parameter_vector)
    # After a step of an optimiser the device sees the new parameters.
    for each, gradient in ((network, wanted), (twin, gradients)):
        fg.SGD([each], lr=0.1).step([gradient])
    assert_close("output", twin(x)[0], network(x)[0], TOLERANCE, floor=1.0)


def dense(activation, bias):
    """A read-out, with any leading axes."""
    rng = np.random.default_rng(1)
    module = fg.Dense(3, 4, activation, bias=bias, seed=0)
    twin = on_gpu(module)
    x, d_y = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 4))
    expected, tape = module.forward(x)
    y, tape_2 = twin.forward(x)
    assert_close("y", y, expected, TOLERANCE, floor=1.0)
    assert_close("y of a call", twin(x[0, 0]), module(x[0, 0]), TOLERANCE, floor=1.0)
    gradients, wanted = twin.backward(tape_2, d_y), module.backward(tape, d_y)
    assert_close("d_input", gradients.input, wanted.input, TOLERANCE, floor=1.0)
    assert_close("d", gradients.parameter_vector, wanted.parameter_vector, TOLERANCE, floor=1.0)


def windows():
    """Truncated back-propagation, whose windows carry states and go back over them."""
    layer = fg.LSTM(2, 3, 2, seed=0)
    twin = on_gpu(layer)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 2)).astype(np.float32)
    resets = rng.random((2, 9)) < 0.2
    state = helpers.as_state([np.ones((2, 2, 3), np.float32)] * 2)
    options = {"k1": 2, "k2": 4, "initial_state": state, "resets": resets}
    pieces = zip(
        fg.truncated_bptt(layer, x, **options), fg.truncated_bptt(twin, x, **options), strict=True
    )
    for expected, piece in pieces:
        check_results(piece.output, piece.state, expected.output, expected.state)
        d_output = np.ones_like(expected.output)
        wanted = expected.backward(d_output)
        check_gradients(piece.backward(d_output), wanted)


def training():
    """The training loop with device="cuda" takes the steps that it takes on the CPU."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 4, 2))
    data = fg.Sequences(x, x.mean(axis=1))
    losses = []
    for device in ("cpu", "cuda"):
        model = fg.SequenceModel.build("gru", 2, 2, hidden_size=3, seed=0)
        trainer = fg.Trainer(model, max_epochs=2, batch_size=3, learning_rate=0.1, device=device)
        losses.append(trainer.fit(data)["loss"])
        assert model.device == device
        assert np.isfinite(model.predict(x)).all()
    assert_close("losses", losses[1], losses[0], 1e-4)


def estimators():
    """An estimator takes the device."""
    from fastgates.estimators import SequenceRegressor

    x = np.random.default_rng(0).standard_normal((6, 3, 2))
    y = x.mean(axis=(1, 2))
    options = {"hidden_size": 3, "max_epochs": 1, "random_state": 0}
    expected = SequenceRegressor(**options).fit(x, y)
    found = SequenceRegressor(**options, device="cuda").fit(x, y)
    assert found.model_.device == "cuda"
    assert_close("prediction", found.predict(x), expected.predict(x), 1e-4)


def device_arrays():
    """An array on the device gives arrays on the device, without a copy of the input."""
    from numba import cuda

    problem = make_problem(cases()["lstm"], batch=2, time=3, input_size=2, hidden_size=3)
    layer, twin = problem.layer, on_gpu(problem.layer)
    x, d_output = cuda.to_device(problem.x), cuda.to_device(problem.d_output)
    state = tuple(map(cuda.to_device, problem.initial_state))
    output, final, tape = twin.forward(x, state)
    assert tape.inputs[0] is x
    gradients = twin.backward(tape, d_output)
    for array in (output, *final, gradients.input, *gradients.initial_state):
        assert hasattr(array, "__cuda_ndarray__"), type(array)
    expected, expected_final, tape = layer.forward(problem.x, problem.initial_state)
    wanted = layer.backward(tape, problem.d_output)
    check_results(to_host(output), tuple(map(to_host, final)), expected, expected_final)
    assert_close("d_input", gradients.input.copy_to_host(), wanted.input, TOLERANCE, floor=1.0)
    assert_close("d", gradients.parameter_vector, wanted.parameter_vector, TOLERANCE, floor=1.0)
    last, _ = twin(x, state, return_sequences=False)
    assert_close("last", last.copy_to_host(), expected[:, -1], TOLERANCE, floor=1.0)
    for wrong, error, text in (
        (cuda.to_device(problem.x.astype(np.float64)), TypeError, "x must hold float32"),
        (cuda.to_device(problem.x[:, :, :1].copy()), ValueError, "input_size=2"),
        (cuda.to_device(problem.x)[:, ::2], ValueError, "C-contiguous"),
    ):
        expect(error, text, lambda wrong=wrong: twin(wrong))


def expect(error, text, call):
    try:
        call()
    except error as raised:
        assert text in str(raised), raised
    else:
        raise AssertionError(f"no {error.__name__}")


def errors():
    """The door is the CPU's: the same errors for the same mistakes."""
    layer = on_gpu(fg.LSTM(2, 3, seed=0))
    x = np.zeros((2, 3, 2), np.float32)
    expect(ValueError, "x must have shape", lambda: layer(x[0]))
    expect(ValueError, "lengths must be from 1", lambda: layer(x, lengths=[0, 1]))
    expect(ValueError, "resets must be bool", lambda: layer(x, resets=np.zeros((2, 3))))
    expect(ValueError, "initial_state must be a tuple", lambda: layer(x, np.zeros((1, 2, 3))))
    expect(
        ValueError,
        "initial_state[1] must have shape",
        lambda: layer(x, (np.zeros((1, 2, 3)), np.zeros((1, 2, 4)))),
    )
    expect(ValueError, "must not be empty", lambda: layer(x[:0]))
    expect(ValueError, "device must be", lambda: layer.to("gpu"))
    _, _, tape = layer.forward(x)
    expect(TypeError, "tape must be", lambda: layer.backward(None))
    expect(ValueError, "d_output must have shape", lambda: layer.backward(tape, x))
    expect(TypeError, "cannot be copied", lambda: copy.deepcopy(tape))
    other = on_gpu(layer)
    expect(ValueError, "one of LSTM", lambda: other.backward(tape, np.zeros((2, 3, 3))))
    layer.backward(tape, np.zeros((2, 3, 3)))
    expect(RuntimeError, "used before", lambda: layer.backward(tape, np.zeros((2, 3, 3))))
    _, _, tape = layer.forward(x)
    with layer.edit_parameters():
        pass
    expect(RuntimeError, "parameters changed", lambda: layer.backward(tape))
    _, _, tape = layer.forward(x)
    layer.to("cpu")
    expect(TypeError, "tape must be", lambda: layer.backward(tape))


def functions():
    """The device's functions give the CPU's numbers, at the ends of the range too."""
    from fastgates import _vecmath
    from fastgates.cuda._device import on_device

    x = np.float32([0.0, -0.0, 1e-8, 0.3, -0.7, 5.0, -20.0, 88.0, -100.0, np.inf, -np.inf, np.nan])
    x = np.concatenate([x, np.linspace(-9, 9, 200, dtype=np.float32)])
    for helper, array in (
        (_vecmath.tanh, _vecmath.tanh_array),
        (_vecmath.sigmoid, _vecmath.sigmoid_array),
    ):
        values = np.float32([on_device(helper)(number) for number in x])
        np.testing.assert_allclose(values, array(x), rtol=2e-7, atol=1e-38)


def to_host(array):
    """An array of any library as NumPy's."""
    for name in ("copy_to_host", "get"):  # numba-cuda, CuPy
        if hasattr(array, name):
            return getattr(array, name)()
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def tiled_products(**sizes):
    """Our own products over all steps against NumPy."""
    from fastgates.cuda._arrays import Memory
    from fastgates.cuda._products import TiledProducts

    check_products(TiledProducts(Memory()), **sizes)


def cupy_products(**sizes):
    """The calls that are made of CuPy, with NumPy in its place: they are both libraries'."""
    import types

    from fastgates.cuda._products import CuPyProducts

    numpy = types.SimpleNamespace(
        asarray=lambda a: a._ary if hasattr(a, "_ary") else a,
        ascontiguousarray=np.ascontiguousarray,
        matmul=np.matmul,
        ones=np.ones,
        cuda=types.SimpleNamespace(ExternalStream=lambda pointer: threading.Lock()),
    )
    check_products(CuPyProducts(numpy), **sizes)


def check_products(products, rows, time, begin, steps, inputs, outputs):
    from numba import cuda

    from fastgates.cuda._device import default_stream
    from fastgates.cuda._products import Rows, Weights

    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, time, inputs + 1)).astype(np.float32)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    target = rng.standard_normal((rows, steps, outputs + 2)).astype(np.float32)
    piece = x[:, begin : begin + steps, 1:]
    mapped, summed = target.copy(), np.ones(outputs * inputs + 2, np.float32)
    mapped[:, :, 2:] = piece @ weight.T
    added = mapped.copy()
    added[:, :, 2:] *= 2
    flat = mapped[:, :, 2:].reshape(-1, outputs).astype(np.float64)
    expected = flat.T @ piece.reshape(-1, inputs)
    stream = default_stream()
    there = cuda.to_device(x)
    source = Rows(there, begin, steps, 1, inputs)
    for place, strides, values in (
        (5, (inputs, 1), weight),
        (0, (1, outputs), weight.T),
    ):
        stretch = np.concatenate([np.zeros(place, np.float32), values.ravel()])
        weights = Weights(cuda.to_device(stretch), place, *strides)
        result = cuda.to_device(target)
        into = Rows(result, 0, steps, 2, outputs)
        products.map_rows(source, weights, into, stream)
        assert_close("mapped", result.copy_to_host(), mapped, TOLERANCE)
        products.map_rows(source, weights, into, stream, True)
        assert_close("added", result.copy_to_host(), added, TOLERANCE)
    left = Rows(cuda.to_device(mapped), 0, steps, 2, outputs)
    sums = cuda.to_device(summed)
    products.sum_rows(left, source, sums, 2, stream, False)
    assert_close("sums", sums.copy_to_host()[2:], expected.ravel(), TOLERANCE)
    assert np.array_equal(sums.copy_to_host()[:2], summed[:2])
    products.sum_rows(left, source, sums, 2, stream, True)
    assert_close("sums twice", sums.copy_to_host()[2:], 2 * expected.ravel(), TOLERANCE)
    products.sum_rows(left, None, sums, 0, stream, False)
    assert_close("columns", sums.copy_to_host()[:outputs], flat.sum(axis=0), TOLERANCE)


def benchmark(folder):
    """The benchmark of the GPU, with a device that is made up."""
    import torch

    from bench import gpu

    device = gpu.Device("simulated", 2, 128, 1e9, 1e12)
    gpu.current_device = lambda: device
    sizes = ["--hidden", "3", "--batch", "1", "2", "--time", "2", "--inputs", "2"]
    files = ["--json", f"{folder}/gpu.json", "--markdown", f"{folder}/gpu.md"]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert gpu.main([*sizes, *files, "--seconds", "0", "--cells", "gru"]) == 0
        assert gpu.main(["--from", f"{folder}/gpu.json"]) == 0
    text = Path(folder, "gpu.md").read_text()
    assert text.count("| 3 | 1 | 2 |") == 2, text
    # The peer's side, on PyTorch's CPU: the same numbers come out of both.
    for mode in gpu.MODES:
        case = gpu.Case("gru", mode, 3, 2, 4, 2)
        x, d_output = np.ones((2, 4, 2), np.float32), np.ones((2, 4, 3), np.float32)
        ours = gpu.Ours(case, x, d_output)
        theirs = gpu.Torch(case, torch.from_numpy(x), torch.from_numpy(d_output))
        gpu.compare(case, getattr(ours, mode)(), getattr(theirs, mode)())


def main():
    """Answer jobs on standard input until it ends."""
    # The simulator waits for its threads in a loop, which must let them run.
    sys.setswitchinterval(1e-4)
    mend_shared_memory()
    jobs = {name: value for name, value in globals().items() if callable(value)}
    for line in sys.stdin:
        job = json.loads(line)
        try:
            jobs[job["job"]](**job["arguments"])
            problem = None
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps({"problem": problem}), flush=True)


if __name__ == "__main__":
    main()
