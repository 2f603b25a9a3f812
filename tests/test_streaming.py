"""Streams: bit for bit the call with whole sequences, state of their own, errors at the door."""

import copy
import pickle
import threading

import numpy as np
import pytest
from helpers import (
    CELLS,
    as_state,
    assert_same_bits,
    assert_same_state,
    make_problem,
    normal,
    random_state,
)
from hypothesis import given
from hypothesis import strategies as st

import fastgates as fg
from fastgates.embedding.program import program_of


def every_kind(return_sequences=True):
    """A model with every kind of module and activation in it."""
    rng = np.random.default_rng(0)
    return fg.Sequential(
        fg.Scaling(rng.normal(size=3), [0.5, 1.0, 2.0]),
        fg.LSTM(3, 9, 2, seed=1),
        fg.Dense(9, 4, "relu", seed=2),
        fg.Dense(4, 5, "tanh", bias=False, seed=3),
        fg.GRU(5, 17, seed=4),
        fg.Dense(17, 6, "sigmoid", seed=5),
        fg.Dense(6, 3, "softmax", seed=6),
        fg.Scaling([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], inverse=True),
        return_sequences=return_sequences,
    )


def feed(stream, x):
    """Feed a stream (time, ...) step by step; the outputs in the same order of axes."""
    return np.stack([stream.step(x_t) for x_t in x])


def steps_first(x):
    """(1, T, I) as (T, I), (B, T, I) as (T, B, I)."""
    return x[0] if len(x) == 1 else np.swapaxes(x, 0, 1)


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_same_bits_as_a_call(case, batch):
    """Also for more rows than a block has, and from a state that is not zero."""
    problem = make_problem(case, batch=batch, time=4, num_layers=2)
    expected, final = problem.layer(problem.x, problem.initial_state)
    stream = problem.layer.stream(batch)
    stream.reset(problem.initial_state)
    assert_same_bits("output", feed(stream, steps_first(problem.x)), steps_first(expected))
    assert_same_state("state", stream.state, final)
    stream.state = problem.initial_state
    x, whole = (problem.x[0], expected[0]) if batch == 1 else (problem.x, expected)
    assert_same_bits("output of run", stream.run(x), whole)


GENERAL = [
    fg.RNN(3, 5, nonlinearity="softsign", leak=0.3, seed=0),
    fg.GRU(3, 5, clip=0.5, activations=("hard_sigmoid", "elu"), seed=0),
    fg.LSTM(3, 5, 2, peepholes=True, clip=1.0, seed=0),
    fg.LSTM(3, 5, coupled=True, seed=0),
]


@pytest.mark.parametrize("layer", GENERAL, ids=repr)
def test_cells_with_settings(layer):
    with layer.edit_parameters() as parameters:
        parameters.vector[:] = normal(np.random.default_rng(0), parameters.vector.size)
    x = normal(np.random.default_rng(1), (1, 5, 3))
    assert_same_bits("output", layer.stream().run(x[0]), layer(x)[0][0])


@pytest.mark.parametrize("batch", [1, 2])
def test_every_kind_of_module(batch):
    model = every_kind()
    x = normal(np.random.default_rng(1), (batch, 6, 3))
    expected, final = model(x)
    stream = model.stream(batch)
    assert_same_bits("output", feed(stream, steps_first(x)), steps_first(expected))
    for actual, wanted in zip(stream.state, final, strict=True):
        assert_same_state("state", actual, wanted)


def test_without_sequences_an_output_is_that_of_the_sequence_so_far():
    model = every_kind(return_sequences=False)
    x = normal(np.random.default_rng(1), (1, 4, 3))
    stream = model.stream()
    for t in range(4):
        assert_same_bits("output", stream.step(x[0, t]), model(x[:, : t + 1])[0][0])


def test_modules_without_a_state():
    x = normal(np.random.default_rng(1), (4, 3))
    for module in (fg.Dense(3, 10, "softmax", seed=0), fg.Scaling([1, 2, 3], [4, 5, 6])):
        stream = module.stream(4)
        assert_same_bits("output", stream.step(x), module(x))
        assert stream.state is None


@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 9),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
def test_any_size_and_split(input_size, hidden_size, batch, pieces):
    layer = fg.GRU(input_size, hidden_size, seed=0)
    x = normal(np.random.default_rng(0), (batch, sum(pieces), input_size))
    stream = layer.stream(batch)
    ends = np.cumsum(pieces)
    outputs = []
    for end, size in zip(ends, pieces, strict=True):
        piece = x[:, end - size : end]
        outputs.append(stream.run(piece[0])[None] if batch == 1 else stream.run(piece))
    assert_same_bits("output", np.concatenate(outputs, axis=1), layer(x)[0])


def test_streams_are_independent_and_share_parameters():
    model = every_kind()
    one, other = model.stream(), model.stream()
    assert one._program is other._program
    x = normal(np.random.default_rng(0), (5, 3))
    expected = model(x[None])[0][0]
    for t in range(5):
        assert_same_bits("one", one.step(x[t]), expected[t])
        if t % 2:
            other.step(-x[t])
    one.reset()
    assert_same_bits("after reset", one.step(x[0]), expected[0])


def test_a_program_holds_no_weights_of_the_way_back():
    layers = fg.LSTM(3, 16, seed=0), fg.LSTM(3, 16, seed=0)
    layers[1].forward(np.zeros((1, 2, 3), np.float32))
    sizes = [program_of(layer).weights.size for layer in layers]
    assert sizes[0] == sizes[1] < 2 * layers[0].parameter_vector.size


def test_a_stream_keeps_its_parameters():
    layer = fg.GRU(2, 4, seed=0)
    x = normal(np.random.default_rng(0), (3, 2))
    before, stream = layer(x[None])[0][0], layer.stream()
    with layer.edit_parameters() as parameters:
        parameters.vector[:] *= 2
    assert_same_bits("old", stream.run(x), before)
    assert_same_bits("new", layer.stream().run(x), layer(x[None])[0][0])


def test_a_change_inside_a_sequential_is_seen():
    model = every_kind()
    x = normal(np.random.default_rng(0), (3, 3))
    model.stream()
    with model.modules[2].edit_parameters() as parameters:
        parameters["weight"][...] += 1
    assert_same_bits("new", model.stream().run(x), model(x[None])[0][0])


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies_go_on_by_themselves(again):
    model = every_kind()
    x = normal(np.random.default_rng(0), (6, 3))
    expected = model(x[None])[0][0]
    stream = model.stream()
    stream.run(x[:3])
    other = again(stream)
    assert_same_bits("copy", other.run(x[3:]), expected[3:])
    assert_same_bits("original", stream.run(x[3:]), expected[3:])


def test_a_model_with_a_stream_can_be_copied_and_pickled():
    model = every_kind()
    x = normal(np.random.default_rng(0), (3, 3))
    stream = model.stream()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._program is None
        assert_same_bits("output", other.stream().run(x), stream.run(x))
        stream.reset()


def test_output_array_and_other_inputs():
    layer = fg.LSTM(2, 5, seed=0)
    x = np.array([[1, -2], [3, 4]])
    expected = layer(x[None])[0][0]
    stream, out = layer.stream(), np.empty((5, 2), np.float32).T[0]  # not contiguous
    assert stream.step(list(x[0]), out=out) is out
    assert_same_bits("from a list", out, expected[0])
    first = stream.step(x[1].astype(np.float64))
    assert_same_bits("from float64", first, expected[1])
    stream.step(x[0])
    assert_same_bits("an output is the caller's", first, expected[1])
    out = np.empty((2, 5), np.float32)
    stream.reset()
    assert stream.run(x, out=out) is out
    assert_same_bits("run", out, expected)
    assert stream.run(x[:0]).shape == (0, 5)


@pytest.mark.usefixtures("restore_threads", "share_out_small_work")
def test_many_sequences_on_several_threads():
    layer = fg.GRU(4, 64, seed=0)
    x = normal(np.random.default_rng(0), (1000, 2, 4))
    expected = layer(x)[0]
    for threads in (1, 3):
        fg.set_num_threads(threads)
        stream = layer.stream(1000)
        assert_same_bits("step", stream.step(x[:, 0]), expected[:, 0])
        assert_same_bits("run", stream.run(x[:, 1:]), expected[:, 1:])


def test_streams_in_threads():
    layer = fg.LSTM(3, 8, seed=0)
    x = normal(np.random.default_rng(0), (4, 200, 3))
    expected, results = layer(x)[0], [None] * 4

    def work(i):
        stream = layer.stream()
        results[i] = feed(stream, x[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_bits("output", np.stack(results), expected)


def test_states_have_the_structure_of_the_model():
    rng = np.random.default_rng(0)
    case = next(case for case in CELLS if case.id == "lstm")
    layer = case.build(2, 3, 2, seed=0)
    stream = layer.stream(4)
    state = random_state(case, rng, (2, 4, 3))
    stream.state = state
    assert_same_state("state", stream.state, state)
    stream.reset()
    assert_same_state("zeros", stream.state, as_state([np.zeros((2, 4, 3), np.float32)] * 2))


class TestErrors:
    """What cannot be used says so, and changes nothing."""

    @pytest.mark.parametrize(
        ("x", "error", "message"),
        [
            (np.zeros(3), ValueError, r"x must have shape \(input_size=2,\), got \(3,\)"),
            (np.zeros((1, 2)), ValueError, "x must have shape"),
            (np.zeros(2, complex), TypeError, "x must hold real numbers"),
            ("ab", (TypeError, ValueError), "x must"),
        ],
    )
    def test_input(self, x, error, message):
        stream = fg.GRU(2, 3, seed=0).stream()
        stream.step([1, 2])
        before = stream.state
        with pytest.raises(error, match=message):
            stream.step(x)
        assert_same_state("state", stream.state, before)

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (np.zeros(3), TypeError, "out must be of dtype float32, got float64"),
            (np.zeros(4, np.float32), ValueError, r"out must have shape \(3,\), got \(4,\)"),
            ([0.0] * 3, TypeError, "out must be a NumPy array, got list"),
            (np.broadcast_to(np.float32(0), 3), ValueError, "out must be writeable"),
        ],
    )
    def test_output(self, out, error, message):
        stream = fg.GRU(2, 3, seed=0).stream()
        with pytest.raises(error, match=message):
            stream.step([1, 2], out=out)
        assert not np.any(stream.state)

    def test_run(self):
        stream = fg.GRU(2, 3, seed=0).stream(2)
        with pytest.raises(ValueError, match=r"x must have shape \(batch_size=2, time, input"):
            stream.run(np.zeros((3, 4, 2)))
        with pytest.raises(ValueError, match="out must be C-contiguous"):
            out = np.zeros((2, 3, 4), np.float32).swapaxes(1, 2)
            stream.run(np.zeros((2, 4, 2)), out=out)

    def test_state(self):
        stream = fg.GRU(2, 3, seed=0).stream()
        with pytest.raises(ValueError, match="state must have shape"):
            stream.state = np.zeros((1, 2, 3))
        with pytest.raises(ValueError, match="state must be a list of 2 states"):
            every_kind().stream().reset([None])

    @pytest.mark.parametrize("size", [0, -1, 2.0, True])
    def test_batch_size(self, size):
        with pytest.raises(ValueError, match="batch_size must be a positive integer"):
            fg.GRU(2, 3, seed=0).stream(size)

    @pytest.mark.parametrize("option", ["bidirectional", "reverse"])
    @pytest.mark.parametrize("method", ["stream", "jit_handle", "cfunc", "to_c"])
    def test_directions(self, option, method):
        layer = fg.GRU(2, 3, seed=0, **{option: True})
        with pytest.raises(ValueError, match=r"from the end|starts at the end"):
            getattr(layer, method)()

    def test_unregistered_cell(self):
        from dataclasses import replace

        layer = fg.Recurrent(replace(fg.cells.get("gru"), name="mine"), 2, 3, seed=0)
        with pytest.raises(ValueError, match="the cell 'mine' must be registered"):
            layer.stream()
