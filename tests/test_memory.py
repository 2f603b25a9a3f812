"""What the layers keep: bytes of a tape, segments that are computed again, last outputs only."""

import gc
import tracemalloc

import numpy as np
import pytest
from helpers import (
    CELLS,
    assert_same_bits,
    assert_same_gradients,
    assert_same_state,
    make_problem,
    parts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgates as fg

SIZES = {
    "seed": st.integers(0, 2**32 - 1),
    "batch": st.integers(1, 20),
    "time": st.integers(1, 40),
    "input_size": st.integers(1, 20),
    "hidden_size": st.integers(1, 40),
    "num_layers": st.integers(1, 3),
    "bidirectional": st.booleans(),
    "lengths": st.booleans(),
    "resets": st.booleans(),
    "initial_state": st.booleans(),
}
few_examples = settings(max_examples=15)
MIB = 2**20

# Numbers a unit that the equations need of a step besides input and output: the activated gates
# (reset after the product: the product too, which the gradient of r needs), and LSTM's c.
KEPT_A_UNIT = {
    "rnn": 1,
    "rnn_relu": 1,
    "leaky_rnn": 1,
    "leaky_rnn_per_unit": 1,
    "leaky_rnn_relu": 1,
    "simplified_gru": 2,
    "gru": 3,
    "gru_reset_after": 4,
    "lstm": 5,
}


def arrays_within(thing, seen=None):
    """Every array that an object reaches through attributes and containers, by the memory's owner.

    Layers and packed weights are left out: they are there with and without a tape.
    """
    seen = {} if seen is None else seen
    if isinstance(thing, np.ndarray):
        while isinstance(thing.base, np.ndarray):
            thing = thing.base
        seen[id(thing)] = thing
    elif isinstance(thing, dict):
        for part in thing.values():
            arrays_within(part, seen)
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            arrays_within(part, seen)
    elif hasattr(thing, "__dataclass_fields__") and type(thing).__name__ != "Prepared":
        arrays_within({name: getattr(thing, name) for name in thing.__dataclass_fields__}, seen)
    return seen


def bytes_within(thing):
    return sum(array.nbytes for array in arrays_within(thing).values())


class Peak:
    """The most memory that a block takes beyond what there was before, in bytes."""

    def __enter__(self):
        gc.collect()
        tracemalloc.start()
        return self

    def __exit__(self, *error):
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


# -- What a tape keeps ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
def test_a_tape_keeps_nothing_twice(case, num_layers, bidirectional):
    batch, time, input_size, hidden_size = 8, 500, 16, 32
    directions = 2 if bidirectional else 1
    layer = case.build(input_size, hidden_size, num_layers, bidirectional=bidirectional)
    x = np.zeros((batch, time, input_size), np.float32)
    layer.forward(x[:, :5])  # packs the weights, compiles, makes the scratch
    with Peak() as peak:
        output, final_state, tape = layer.forward(x)
    unit = num_layers * directions * hidden_size
    floats = batch * time * (input_size + unit * (1 + KEPT_A_UNIT[case.id]))
    kept = bytes_within(tape)
    assert 4 * floats <= kept <= 1.1 * 4 * floats
    assert 4 * floats <= tape.nbytes <= kept
    assert peak.bytes <= 1.1 * 4 * floats + MIB // 2  # the scratch of the thread


def test_backward_needs_little_more_than_the_tape(case):
    batch, time, hidden_size = 8, 2000, 64
    layer = case.build(1, hidden_size)
    x = np.zeros((batch, time, 1), np.float32)
    d_output = np.ones((batch, time, hidden_size), np.float32)
    _, _, tape = layer.forward(x[:, :5])
    layer.backward(tape, d_output[:, :5])
    _, _, tape = layer.forward(x)
    with Peak() as peak:
        layer.backward(tape, d_output)
    # The gradient of the input, what GRU's second stage multiplied for an eighth of the steps, and
    # scratch.
    assert peak.bytes <= x.nbytes + d_output.nbytes / 8 + MIB


# -- Segments -------------------------------------------------------------------------------------


@few_examples
@given(segment=st.integers(1, 45), **SIZES)
def test_segments_change_no_bit(case, segment, **options):
    problem = make_problem(case, **options)
    layer = problem.layer
    results = []
    for each in (None, segment):
        output, final_state, tape = layer.forward(problem.x, **problem.data, segment=each)
        # The final state is the caller's by now.
        copies = [part.copy() for part in parts(final_state)]
        for part in parts(final_state):
            part[...] = np.nan
        gradients = layer.backward(tape, problem.d_output, problem.d_final_state)
        assert all(np.isnan(part).all() for part in parts(final_state))
        results.append((output, copies, gradients))
    (output, final_state, gradients), (again_output, again_final, again) = results
    assert_same_bits("output", again_output, output)
    assert_same_state("final_state", again_final, final_state)
    assert_same_gradients("gradients", again, gradients)


@pytest.mark.usefixtures("restore_threads", "share_out_small_work")
@pytest.mark.parametrize("segment", [7, 32])
def test_segments_with_any_number_of_threads(case, segment):
    problem = make_problem(
        case,
        batch=20,
        time=100,
        input_size=17,
        hidden_size=70,
        bidirectional=True,
        lengths=True,
        resets=True,
    )
    fg.set_num_threads(1)
    _, _, gradients = problem.run()
    for threads in (1, 2, 3, 7):
        fg.set_num_threads(threads)
        _, _, tape = problem.layer.forward(problem.x, **problem.data, segment=segment)
        again = problem.layer.backward(tape, problem.d_output, problem.d_final_state)
        assert_same_gradients(f"{threads} threads", again, gradients)


def test_segments_with_dropout():
    x = np.random.default_rng(0).standard_normal((3, 30, 4), np.float32)
    results = []
    for segment in (None, 4):
        layer = fg.LSTM(4, 16, num_layers=3, dropout=0.5, seed=0)
        output, _, tape = layer.forward(x, training=True, segment=segment)
        results.append(layer.backward(tape, np.ones_like(output)))
    assert_same_gradients("gradients", results[1], results[0])


@pytest.mark.parametrize("segment", [0, -3, 2.0, True, "all"])
def test_segment_errors(segment):
    layer = fg.GRU(3, 4, seed=0)
    with pytest.raises(ValueError, match=r"segment must be a positive integer, got"):
        layer.forward(np.zeros((1, 5, 3)), segment=segment)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_twenty_thousand_steps_in_little_memory(name):
    """Beyond the input and the output, a tape of T steps holds about the root of T."""
    case = next(case for case in CELLS if case.id == name)
    time, hidden_size, segment = 20_000, 32, 141
    layer = case.build(1, hidden_size)
    x = np.random.default_rng(0).standard_normal((1, time, 1), np.float32)
    states = case.num_states * hidden_size * 4
    step = KEPT_A_UNIT[name] * hidden_size * 4
    layer.backward(layer.forward(x[:, :300], segment=141)[2])
    with Peak() as peak:
        output, _, tape = layer.forward(x, segment=segment)
    users = x.nbytes + output.nbytes
    assert tape.nbytes <= users + time / segment * states
    assert peak.bytes <= users + time / segment * states + MIB // 8
    d_output = np.ones_like(output)
    with Peak() as peak:
        gradients = layer.backward(tape, d_output, input_gradient=False)
    assert peak.bytes <= segment * step + MIB // 2
    assert np.isfinite(gradients.parameter_vector).all()


def memory_of_this_process():
    with open("/proc/self/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return 1024 * int(fields["VmHWM"].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CELLS if case.id in ("gru", "lstm")], ids=str)
def test_a_million_steps_in_less_than_a_gigabyte(case):
    layer = case.build(1, 32)
    x = np.random.default_rng(0).standard_normal((1, 1_000_000, 1), np.float32)
    layer.backward(layer.forward(x[:, :100])[2])
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # forget the peak so far
        before = memory_of_this_process()
    except OSError:
        pytest.skip("the system does not tell how much memory a process takes")
    output, _, tape = layer.forward(x, segment=1000)
    gradients = layer.backward(tape, output)
    assert memory_of_this_process() - before < 1e9
    assert np.isfinite(gradients.parameter_vector).all()
    assert np.isfinite(gradients.input).all()


# -- The last outputs only ------------------------------------------------------------------------


def last_outputs(layer, output, lengths):
    """The last processed step of each direction, picked from a whole output."""
    batch, time, _ = output.shape
    ends = np.full(batch, time) if lengths is None else lengths
    forward = output[np.arange(batch), ends - 1, : layer.hidden_size]
    if not layer.bidirectional:
        return forward
    return np.concatenate([forward, output[:, 0, layer.hidden_size :]], axis=1)


@few_examples
@given(floats=st.sampled_from([1, 300, 10**6]), **SIZES)
def test_last_outputs_are_those_of_the_whole(case, floats, **options):
    problem = make_problem(case, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgates.layers._CHUNK_FLOATS", floats)  # chunks of 16 steps and more
        output, final_state = problem.layer(problem.x, **problem.data)
        last, last_state = problem.layer(problem.x, **problem.data, return_sequences=False)
    assert_same_bits("output", last, last_outputs(problem.layer, output, problem.lengths))
    assert_same_state("final_state", last_state, final_state)
    last[...] = np.nan
    assert not any(np.isnan(part).any() for part in parts(last_state))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 3}, {"bidirectional": True}],
    ids=["one-layer", "three-layers", "both-ways"],
)
@pytest.mark.usefixtures("restore_threads")
def test_memory_of_the_last_outputs_does_not_grow(case, options):
    fg.set_num_threads(1)  # long series may start a worker, whose scratch would count
    layer = case.build(8, 32, **options)
    peaks = []
    for time in (2_000, 2_000, 40_000):
        x = np.zeros((4, time, 8), np.float32)
        lengths = np.array([time, time - 7, time // 2, 3])
        with Peak() as peak:
            layer(x, lengths=lengths, return_sequences=False)
        peaks.append(peak.bytes)
    assert peaks[2] <= peaks[1] + 10_000


def test_last_outputs_of_nothing():
    layer = fg.GRU(3, 4, num_layers=2, bidirectional=True, seed=0)
    state = np.random.default_rng(0).standard_normal((4, 5, 4), np.float32)
    last, final_state = layer(np.zeros((5, 0, 3)), state, return_sequences=False)
    assert_same_state("final_state", final_state, state)
    assert_same_bits("output", last, np.concatenate([state[2], state[3]], axis=1))
    last, _ = layer(np.zeros((0, 6, 3)), return_sequences=False)
    assert last.shape == (0, 8)
