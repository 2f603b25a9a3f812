"""The GPU backend on a GPU: ``pytest -m gpu``. Skipped where there is none.

The comparisons are those that `test_cuda_simulator.py` makes, at sizes that a simulator cannot do.
"""

import cuda_jobs
import numpy as np
import pytest
from cuda_jobs import cases, check_gradients, check_results, on_gpu
from helpers import CELLS, as_state, assert_same_bits, assert_same_gradients, make_problem, normal

import fastgates as fg

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not fg.cuda.is_available(), reason="needs an NVIDIA GPU and fastgates[cuda]"
    ),
]

ALL = [case.id for case in CELLS] + ["toy"]


def options_of(seed):
    """Random sizes and options of a layer."""
    rng = np.random.default_rng(seed)
    return {
        "seed": seed,
        "batch": int(rng.integers(1, 40)),
        "time": int(rng.integers(1, 60)),
        "input_size": int(rng.integers(1, 70)),
        "hidden_size": int(rng.choice([1, 2, 5, 16, 31, 32, 33, 64, 100, 127, 128, 129, 200, 256])),
        "num_layers": int(rng.integers(1, 4)),
        "bidirectional": bool(rng.random() < 0.4),
        "bias": bool(rng.random() < 0.7),
        "initial_state": bool(rng.random() < 0.7),
        "lengths": bool(rng.random() < 0.5),
        "resets": bool(rng.random() < 0.4),
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", ALL)
def test_random_options(case, seed):
    segment = None if seed % 3 else 7
    cuda_jobs.layer(case=case, segment=segment, **options_of(1000 + seed))


@pytest.mark.parametrize("hidden_size", [64, 256])
@pytest.mark.parametrize("case", ["gru", "gru_reset_after", "lstm", "simplified_gru", "rnn"])
def test_thousand_steps(case, hidden_size):
    sizes = {"batch": 4, "time": 1000, "input_size": 8, "hidden_size": hidden_size}
    cuda_jobs.compare(make_problem(cases()[case], **sizes))


@pytest.mark.parametrize("hidden_size", [32, 128, 160])
@pytest.mark.parametrize("batch", [1, 2, 131, 133, 300, 1000, 4096])
def test_batches(batch, hidden_size):
    sizes = {"batch": batch, "time": 6, "input_size": 5, "hidden_size": hidden_size}
    cuda_jobs.compare(make_problem(cases()["lstm"], **sizes))


@pytest.mark.parametrize("case", ["gru", "lstm"])
@pytest.mark.parametrize("hidden_size", [384, 512, 1000])
def test_large_layers(case, hidden_size):
    sizes = {"batch": 9, "time": 8, "input_size": 5, "hidden_size": hidden_size}
    cuda_jobs.compare(make_problem(cases()[case], **sizes))


@pytest.mark.parametrize("hidden_size", [48, 256])
@pytest.mark.parametrize("case", ["gru", "lstm"])
def test_the_same_bits_from_run_to_run(case, hidden_size):
    problem = make_problem(
        cases()[case], batch=70, time=50, input_size=9, hidden_size=hidden_size, lengths=True
    )
    layer = problem.layer.to("cuda")
    first, _, expected = problem.run()
    for _ in range(5):
        output, _, gradients = problem.run()
        assert_same_bits("output", output, first)
        assert_same_gradients("gradients", gradients, expected)
    # A row does not depend on the batch that it is in, as long as blocks take as many at once.
    whole = layer(problem.x, **problem.data)[0]
    assert_same_bits("output of a call", whole, first)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_whole_models(return_sequences, lengths):
    cuda_jobs.model(return_sequences, lengths, "sigmoid")


@pytest.mark.parametrize("activation", ["identity", "tanh", "sigmoid", "relu", "softmax"])
def test_read_outs(activation):
    cuda_jobs.dense(activation, True)


@pytest.mark.parametrize(
    "job", ["windows", "training", "estimators", "device_arrays", "errors"], ids=lambda name: name
)
def test_jobs_of_the_simulator(job):
    getattr(cuda_jobs, job)()


@pytest.mark.parametrize("variational", [False, True])
def test_dropout(variational):
    cuda_jobs.dropout(variational)


def test_products_over_all_steps():
    cuda_jobs.tiled_products(rows=70, time=90, begin=3, steps=80, inputs=37, outputs=130)


def test_no_memory_left_is_an_error_and_the_device_goes_on():
    layer = fg.LSTM(1, 256, seed=0).to("cuda")
    x = np.zeros((4096, 1, 1), np.float32)
    expected = layer(x[:8])[0]
    with pytest.raises(MemoryError, match="MiB left"):
        # One step again and again; the outputs would take 168 GB, the gates four times as much.
        layer.forward(np.broadcast_to(x, (4096, 40000, 1)))
    assert_same_bits("output", layer(x[:8])[0], expected)


# -- Arrays of other libraries --------------------------------------------------------------------


def exchange(to_device, kind, pointer):
    """Arrays of a library in, arrays of it out, the input where it is, and the same numbers."""
    problem = make_problem(cases()["lstm"], batch=5, time=20, input_size=6, hidden_size=33)
    layer, twin = problem.layer, on_gpu(problem.layer)
    x, d_output = to_device(problem.x), to_device(problem.d_output)
    state = tuple(map(to_device, problem.initial_state))
    output, final, tape = twin.forward(x, state)
    assert tape.inputs[0].__cuda_array_interface__["data"][0] == pointer(x)
    gradients = twin.backward(tape, d_output)
    arrays = [output, *final, gradients.input, *gradients.initial_state]
    assert all(isinstance(array, kind) for array in arrays), list(map(type, arrays))
    expected, expected_final, tape = layer.forward(problem.x, problem.initial_state)
    wanted = layer.backward(tape, problem.d_output)
    output, *final, d_input, d_h, d_c = (cuda_jobs.to_host(array) for array in arrays)
    check_results(output, as_state(final), expected, expected_final)
    found = fg.Gradients(d_input, (d_h, d_c), gradients.parameters, gradients.parameter_vector)
    check_gradients(found, wanted)


def test_pytorch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no GPU")

    def to_device(array):
        return torch.from_numpy(array).to("cuda")

    exchange(to_device, torch.Tensor, lambda tensor: tensor.data_ptr())
    with torch.cuda.stream(torch.cuda.Stream()):
        exchange(to_device, torch.Tensor, lambda tensor: tensor.data_ptr())
    layer = fg.GRU(3, 8, seed=0).to("cuda")
    x = torch.randn(2, 5, 3, device="cuda", requires_grad=True)
    assert layer(x)[0].shape == (2, 5, 8)
    with pytest.raises(ValueError, match="C-contiguous"):
        layer(torch.randn(5, 2, 3, device="cuda").transpose(0, 1))
    with pytest.raises(TypeError, match="float32"):
        layer(x.double())


def test_cupy():
    cupy = pytest.importorskip("cupy")
    exchange(cupy.asarray, cupy.ndarray, lambda array: array.data.ptr)
    with cupy.cuda.Stream(non_blocking=True):
        exchange(cupy.asarray, cupy.ndarray, lambda array: array.data.ptr)


def test_dlpack_alone():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no GPU")

    class OnlyDLPack:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    layer = fg.LSTM(3, 8, seed=0)
    x = normal(np.random.default_rng(0), (2, 5, 3))
    expected, _ = layer(x)
    output, _ = layer.to("cuda")(OnlyDLPack(torch.from_numpy(x).to("cuda")))
    cuda_jobs.assert_close("output", cuda_jobs.to_host(output), expected, 1e-5, floor=1.0)


def test_the_benchmark_runs(tmp_path):
    from bench import gpu

    target = tmp_path / "gpu.json"
    arguments = ["--hidden", "16", "--batch", "2", "--time", "8", "--json", str(target)]
    assert gpu.main([*arguments, "--seconds", "0.01"]) == 0
    assert "fastgates" in target.read_text()
