"""What the tests of the GPU backend run in a process of its own, with Numba's CUDA simulator.

The simulator must be chosen before Numba is imported, so `test_cuda_simulator.py` starts this file
once and sends it jobs, a line of JSON each.
"""

import copy
import json
import os
import sys
import threading
import traceback
from contextlib import contextmanager
from itertools import count

import helpers
import numpy as np
from helpers import CELLS, assert_close, assert_same_gradients, assert_same_state, make_problem
from helpers import assert_same_bits as same

import fastgates as fg

TOLERANCE = 1e-5


def cases():
    """Every cell of the package, and the one of the tests."""
    from test_toy_cell import ToyCase

    return {case.id: case for case in [*CELLS, ToyCase("toy", "coupled_lstm", "Recurrent")]}


def on_gpu(layer):
    return copy.deepcopy(layer).to("cuda")


def compare(problem, **options):
    """A problem's layer on the simulated GPU with the CPU's, forward and backward, twice."""
    layer, twin = problem.layer, on_gpu(problem.layer)
    expected_output, expected_final, tape = layer.forward(problem.x, **problem.data)
    expected = layer.backward(tape, problem.d_output, problem.d_final_state)
    results = []
    for _ in range(2):
        output, final, tape = twin.forward(problem.x, **problem.data, **options)
        gradients = twin.backward(tape, problem.d_output, problem.d_final_state)
        results.append((output, final, gradients))
    (output, final, gradients), again = results
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
    assert_close("d_input", gradients.input, expected.input, TOLERANCE, floor=1.0)
    for a, e in zip(
        helpers.parts(gradients.initial_state), helpers.parts(expected.initial_state), strict=True
    ):
        assert_close("d_initial_state", a, e, TOLERANCE, floor=1.0)
    for name, value in expected.parameters.items():
        assert_close(f"d_{name}", gradients.parameters[name], value, TOLERANCE, floor=1.0)


# -- Jobs -----------------------------------------------------------------------------------------


def layer(case, segment=None, **options):
    """A layer against the CPU: forward, backward, a plain call, the last outputs."""
    problem = make_problem(cases()[case], **options)
    twin, output, final = compare(problem, segment=segment)
    result, state = twin(problem.x, **problem.data)
    check_results(result, state, output, final)
    result, state = twin(problem.x, **problem.data, return_sequences=False)
    expected, _ = problem.layer(problem.x, **problem.data, return_sequences=False)
    check_results(result, state, expected, final)
    assert twin.state_dict().keys() == problem.layer.state_dict().keys()
    assert twin.device == "cuda"
    same("back on the CPU", twin.to("cpu")(problem.x, **problem.data)[0], output)


@contextmanager
def blocks_at_once():
    """Let the simulator run all blocks of a launch at the same time, each with shared memory."""
    from numba.cuda.simulator import kernel, kernelapi

    waiting, manager, array = [], kernel.BlockManager, kernelapi.FakeCUDAShared.array

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

    def array_of_block(self, shape, dtype, alignment=None):
        frame = sys._getframe(1)
        block = tuple(threading.current_thread().blockIdx)
        key = frame.f_code.co_filename, frame.f_lineno, block
        return self._allocations.setdefault(key, np.zeros(shape, np.float32))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # blocks that wait for each other do so in a loop
    kernel.BlockManager, kernelapi.FakeCUDAShared.array = Together, array_of_block
    try:
        yield
    finally:
        kernel.BlockManager, kernelapi.FakeCUDAShared.array = manager, array
        sys.setswitchinterval(interval)


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


def main():
    """Answer jobs on standard input until it ends."""
    jobs = {name: value for name, value in globals().items() if callable(value)}
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints does not disturb the replies
    for number in count():
        line = sys.stdin.readline()
        if not line:
            return
        job = json.loads(line)
        try:
            jobs[job["job"]](**job["arguments"])
            problem = None
        except Exception:
            problem = traceback.format_exc()
        replies.write(json.dumps({"number": number, "problem": problem}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
