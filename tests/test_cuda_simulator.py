"""The GPU backend in Numba's CUDA simulator, against the CPU: every kernel, at tiny sizes.

The kernels are those that run on a GPU. What the simulator cannot show is in `test_cuda_ptx.py`.
"""

import json
import os
import subprocess
import sys

import pytest
from helpers import CELLS, PACKAGE_ROOT, ROOT

ALL = [case.id for case in CELLS] + ["toy"]
EVERYTHING = {"num_layers": 2, "bidirectional": True, "lengths": True, "resets": True}
SIZES = {"batch": 2, "time": 3, "input_size": 2, "hidden_size": 3}


@pytest.fixture(scope="module")
def job():
    """Runs a job of `cuda_jobs.py` in a process with the simulator, one for all tests."""
    environment = dict(os.environ, NUMBA_ENABLE_CUDASIM="1")
    places = [PACKAGE_ROOT, ROOT / "tests", ROOT]  # the last for the benchmark
    environment["PYTHONPATH"] = os.pathsep.join(map(str, places))
    with subprocess.Popen(
        [sys.executable, "-P", "-W", "error", str(ROOT / "tests" / "cuda_jobs.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(name, **arguments):
            process.stdin.write(json.dumps({"job": name, "arguments": arguments}) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
            assert reply, "the process with the simulator ended"
            problem = json.loads(reply)["problem"]
            assert problem is None, problem

        yield run
        process.stdin.close()


@pytest.mark.parametrize("case", ALL)
def test_every_cell(job, case):
    """The fifth cell, `toy_cell.py`, has no line of CUDA anywhere."""
    job("layer", case=case, **SIZES)


@pytest.mark.parametrize("case", ["rnn_elu", "gru_functions", "functions", "peepholes"])
def test_cells_with_functions_to_choose(job, case):
    """Settings, and weights of units on states of their own, before and after the step."""
    job("options", case=case, lengths=True, resets=True, bidirectional=case == "functions")


def test_a_layer_that_runs_in_reverse_only(job):
    job("options", case="lstm", num_layers=2, reverse=True, lengths=True)


@pytest.mark.parametrize("case", ["leaky_rnn_per_unit", "gru", "lstm"])
def test_lengths_resets_layers_and_directions(job, case):
    job("layer", case=case, **SIZES | EVERYTHING | {"batch": 3})


@pytest.mark.parametrize("case", ["gru", "lstm"])
def test_segments_are_computed_again(job, case):
    job("layer", case=case, segment=2, **SIZES | {"time": 5}, bidirectional=True, lengths=True)


def test_several_rows_and_columns_of_a_thread_and_twice_the_same_bits(job):
    """With one processor, 9 sequences: blocks of several rows; 17 units: four columns a thread."""
    sizes = {"batch": 9, "time": 2, "input_size": 3, "hidden_size": 17}
    job("layer", case="gru_reset_after", times=2, **sizes, bias=False)


@pytest.mark.parametrize("case", ["lstm", "gru", "gru_reset_after", "toy"])
def test_blocks_that_share_the_units(job, case):
    """As above 128 units: the blocks of a group wait for each other, here as threads of Python."""
    options = SIZES | {"hidden_size": 5, "lengths": True, "resets": True}
    job("shared_units", case=case, units=2, processors=6, **options)


def test_blocks_that_share_the_units_of_several_tiles(job):
    """More sequences than all blocks take at once."""
    options = SIZES | {"batch": 6, "time": 2}
    job("shared_units", case="lstm", units=2, processors=2, **options)


@pytest.mark.parametrize("variational", [False, True])
def test_dropout(job, variational):
    job("dropout", variational=variational)


@pytest.mark.parametrize("activation", ["identity", "tanh", "sigmoid", "relu", "softmax"])
def test_read_outs(job, activation):
    job("dense", activation=activation, bias=activation != "relu")


@pytest.mark.parametrize("return_sequences", [True, False])
def test_whole_models(job, return_sequences):
    job("model", return_sequences=return_sequences, lengths=True, activation="sigmoid")


def test_windows_over_a_series(job):
    job("windows")


def test_the_training_loop(job):
    job("training")


def test_estimators(job):
    pytest.importorskip("sklearn")
    job("estimators")


def test_arrays_on_the_device(job):
    job("device_arrays")


def test_errors_at_the_door(job):
    job("errors")


PIECE = {"rows": 3, "time": 5, "begin": 1, "steps": 3, "inputs": 9, "outputs": 10}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tiled_products", PIECE),
        ("tiled_products", PIECE | {"time": 9, "steps": 8, "inputs": 1}),
        ("cupy_products", PIECE),
        ("cupy_products", PIECE | {"begin": 0, "steps": 5}),
    ],
    ids=["ours", "ours, a sum in parts", "through CuPy", "through CuPy, all steps"],
)
def test_products_over_all_steps(job, name, sizes):
    job(name, **sizes)


def test_tanh_and_sigmoid_are_those_of_the_cpu(job):
    job("functions")


@pytest.mark.parity
def test_the_benchmark(job, tmp_path):
    pytest.importorskip("torch")
    job("benchmark", folder=str(tmp_path))
