"""The contract that no rounding depends on the company a row keeps.

A row's outputs and its own gradients have the same bits alone and in any batch, padded or not,
whole, in chunks or step by step, with any number of threads; parameter gradients have the same bits
with any number of threads. Every comparison here is for equality.
"""

import numpy as np
import pytest
from helpers import (
    GRADIENT_TOLERANCE,
    as_state,
    assert_close,
    assert_same_bits,
    assert_same_gradients,
    assert_same_state,
    make_problem,
    parts,
    take_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgates as fg

SIZES = {
    "seed": st.integers(0, 2**32 - 1),
    "batch": st.integers(1, 20),
    "time": st.integers(1, 12),
    "input_size": st.integers(1, 40),
    "hidden_size": st.integers(1, 70),
    "num_layers": st.integers(1, 2),
    "bias": st.booleans(),
}
DIRECTIONS = {"bidirectional": st.booleans()}
VARYING = {"lengths": st.booleans(), "resets": st.booleans(), "initial_state": st.booleans()}
few_examples = settings(max_examples=12)


@few_examples
@given(data=st.data(), **SIZES, **DIRECTIONS, **VARYING)
def test_rows_in_any_batch_and_place(case, data, **options):
    """Any choice of rows, in any order, with repeats, gives those rows: outputs and gradients."""
    problem = make_problem(case, **options)
    rows = data.draw(st.lists(st.integers(0, options["batch"] - 1), min_size=1, max_size=20))
    output, final_state, gradients = problem.run()

    def pick(array):
        return None if array is None else array[rows]

    picked = make_problem(case, **options, layer=problem.layer)
    picked.x = pick(problem.x)
    picked.initial_state = take_rows(problem.initial_state, rows)
    picked.lengths = pick(problem.lengths)
    picked.resets = pick(problem.resets)
    picked.d_output = pick(problem.d_output)
    picked.d_final_state = take_rows(problem.d_final_state, rows)
    picked_output, picked_final, picked_gradients = picked.run()

    assert_same_bits("output", picked_output, output[rows])
    assert_same_state("final_state", picked_final, take_rows(final_state, rows))
    assert_same_bits("gradient of input", picked_gradients.input, gradients.input[rows])
    assert_same_state(
        "gradient of initial_state",
        picked_gradients.initial_state,
        take_rows(gradients.initial_state, rows),
    )
    called_output, called_final = problem.layer(picked.x, **picked.data)
    assert_same_bits("output of a call", called_output, output[rows])
    assert_same_state("final_state of a call", called_final, take_rows(final_state, rows))


@few_examples
@given(**SIZES, **DIRECTIONS)
def test_padded_or_not(case, **options):
    """A row of a padded batch is the row alone at its own length."""
    problem = make_problem(case, lengths=True, **options)
    output, final_state, gradients = problem.run()
    for b, length in enumerate(problem.lengths):
        row = slice(b, b + 1)
        alone_output, alone_final, tape = problem.layer.forward(
            problem.x[row, :length], take_rows(problem.initial_state, row)
        )
        alone = problem.layer.backward(
            tape, problem.d_output[row, :length], take_rows(problem.d_final_state, row)
        )
        assert_same_bits("output", output[row, :length], alone_output)
        assert not output[b, length:].any()
        assert_same_state("final_state", take_rows(final_state, row), alone_final)
        assert_same_bits("gradient of input", gradients.input[row, :length], alone.input)
        assert not gradients.input[b, length:].any()
        assert_same_state(
            "gradient of initial_state",
            take_rows(gradients.initial_state, row),
            alone.initial_state,
        )


@few_examples
@given(data=st.data(), **SIZES)
def test_whole_or_in_chunks(case, data, **options):
    """Cut anywhere, with the state carried over, by __call__ and by forward."""
    problem = make_problem(case, **options)
    cuts = data.draw(st.sets(st.integers(1, max(1, options["time"] - 1)), max_size=6))
    edges = sorted({0, *cuts, options["time"]})
    output, final_state = problem.layer(problem.x, problem.initial_state)
    state = problem.initial_state
    state_of_forward = problem.initial_state
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        chunk = problem.x[:, start:end]
        chunk_output, state = problem.layer(chunk, state)
        assert_same_bits("output of a chunk", chunk_output, output[:, start:end])
        chunk_output, state_of_forward, _ = problem.layer.forward(chunk, state_of_forward)
        assert_same_bits("output of a chunk by forward", chunk_output, output[:, start:end])
    assert_same_state("final_state", state, final_state)
    assert_same_state("final_state by forward", state_of_forward, final_state)


@pytest.mark.parametrize(
    ("batch", "hidden_size", "time"), [(1, 33, 300), (3, 16, 150), (20, 70, 40), (1, 1, 600)]
)
def test_step_by_step(case, batch, hidden_size, time):
    """One call a step: what streaming does."""
    problem = make_problem(case, batch=batch, hidden_size=hidden_size, time=time, num_layers=2)
    output, final_state = problem.layer(problem.x, problem.initial_state)
    state = problem.initial_state
    for t in range(time):
        step_output, state = problem.layer(problem.x[:, t : t + 1], state)
        assert_same_bits("output of a step", step_output, output[:, t : t + 1])
    assert_same_state("final_state", state, final_state)


@few_examples
@given(**SIZES, **DIRECTIONS, **VARYING)
def test_forward_is_call(case, **options):
    """Keeping a tape changes no bit; neither does training without dropout."""
    problem = make_problem(case, **options)
    output, final_state = problem.layer(problem.x, **problem.data)
    for training in (False, True):
        kept_output, kept_final, _ = problem.layer.forward(
            problem.x, **problem.data, training=training
        )
        assert_same_bits("output", kept_output, output)
        assert_same_state("final_state", kept_final, final_state)


def pieces_of(length, resets):
    """[start, end) of every piece of a row."""
    edges = [0, *(t for t in range(1, length) if resets[t]), length]
    return list(zip(edges[:-1], edges[1:], strict=True))


@few_examples
@given(**SIZES, **DIRECTIONS, lengths=st.booleans(), initial_state=st.booleans())
def test_resets_are_the_series_split_by_hand(case, **options):
    problem = make_problem(case, resets=True, **options)
    layer = problem.layer
    output, final_state, gradients = problem.run()
    called_output, called_final = layer(problem.x, **problem.data)
    assert_same_bits("output of a call", called_output, output)
    assert_same_state("final_state of a call", called_final, final_state)
    batch, time, _ = problem.x.shape
    backwards = np.arange(layer.num_layers * layer.num_directions) % layer.num_directions == 1
    d_parameters = np.zeros(layer.parameter_vector.shape)
    for b in range(batch):
        row = slice(b, b + 1)
        length = time if problem.lengths is None else problem.lengths[b]
        pieces = pieces_of(length, problem.resets[b])
        d_initial = [np.zeros(part[:, row].shape) for part in parts(problem.d_final_state)]
        for start, end in pieces:
            # The final state is where a direction stops: in the last piece, or reversed the first.
            ends_here = np.where(backwards, start == 0, end == length)[:, None, None]
            d_final = [part[:, row] * ends_here for part in parts(problem.d_final_state)]
            piece_output, piece_final, tape = layer.forward(
                problem.x[row, start:end], take_rows(problem.initial_state, row)
            )
            piece = layer.backward(
                tape,
                problem.d_output[row, start:end],
                as_state([part.astype(np.float32) for part in d_final]),
            )
            assert_same_bits("output", output[row, start:end], piece_output)
            assert_same_bits("gradient of input", gradients.input[row, start:end], piece.input)
            for whole, part in zip(parts(final_state), parts(piece_final), strict=True):
                here = ends_here[:, 0, 0]
                assert_same_bits("final_state", whole[here, row], part[here])
            for total, part in zip(d_initial, parts(piece.initial_state), strict=True):
                total += part
            d_parameters += piece.parameter_vector
        for whole, total in zip(parts(gradients.initial_state), d_initial, strict=True):
            if len(pieces) == 1:
                assert_same_bits(
                    "gradient of initial_state", whole[:, row], total.astype(np.float32)
                )
            assert_close("gradient of initial_state", whole[:, row], total, GRADIENT_TOLERANCE)
    assert_close("parameters", gradients.parameter_vector, d_parameters, GRADIENT_TOLERANCE)


@few_examples
@given(**SIZES, **DIRECTIONS, **VARYING)
def test_repeating_a_call_repeats_its_bits(case, **options):
    problem = make_problem(case, **options)
    output, final_state, gradients = problem.run()
    again_output, again_final, again = problem.run()
    assert_same_bits("output", again_output, output)
    assert_same_state("final_state", again_final, final_state)
    assert_same_gradients("gradients", again, gradients)


THREADED = [
    pytest.param({"batch": 20, "time": 40, "input_size": 17, "hidden_size": 70}, id="wide"),
    pytest.param({"batch": 64, "time": 50, "input_size": 3, "hidden_size": 33}, id="many-rows"),
    pytest.param({"batch": 1, "time": 300, "input_size": 40, "hidden_size": 64}, id="one-row"),
    pytest.param({"batch": 5, "time": 100, "input_size": 65, "hidden_size": 7}, id="odd"),
]


@pytest.mark.usefixtures("restore_threads", "share_out_small_work")
@pytest.mark.parametrize("sizes", THREADED)
@pytest.mark.parametrize("layout", ["plain", "everything"])
def test_any_number_of_threads(case, sizes, layout):
    """All outputs and all gradients, of parameters too."""
    options = {} if layout == "plain" else {"num_layers": 2, "bidirectional": True}
    varying = layout == "everything"
    problem = make_problem(case, **sizes, **options, lengths=varying, resets=varying)
    fg.set_num_threads(1)
    output, final_state, gradients = problem.run()
    for threads in (2, 3, 7):
        fg.set_num_threads(threads)
        assert fg.get_num_threads() == threads
        threaded_output, threaded_final, threaded = problem.run()
        assert_same_bits(f"output, {threads} threads", threaded_output, output)
        assert_same_state(f"final_state, {threads} threads", threaded_final, final_state)
        assert_same_gradients(f"gradients, {threads} threads", threaded, gradients)
        called_output, called_final = problem.layer(problem.x, **problem.data)
        assert_same_bits(f"output of a call, {threads} threads", called_output, output)
        assert_same_state(f"final_state of a call, {threads} threads", called_final, final_state)


@pytest.mark.usefixtures("restore_threads", "share_out_small_work")
@few_examples
@given(threads=st.sampled_from([2, 3, 7]), **SIZES, **DIRECTIONS, **VARYING)
def test_any_size_with_any_number_of_threads(case, threads, **options):
    problem = make_problem(case, **options)
    fg.set_num_threads(1)
    output, final_state, gradients = problem.run()
    fg.set_num_threads(threads)
    threaded_output, threaded_final, threaded = problem.run()
    assert_same_bits("output", threaded_output, output)
    assert_same_state("final_state", threaded_final, final_state)
    assert_same_gradients("gradients", threaded, gradients)
