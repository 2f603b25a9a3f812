"""Truncated back-propagation: pieces, windows, states carried on, memory that does not grow."""

import tracemalloc

import naive
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
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgates as fg


def random_chunks(x, resets, rng):
    """The series in chunks of random sizes, none at all among them, in a buffer used again."""
    buffer = np.empty_like(x)
    first = 0
    while first < x.shape[1]:
        stop = min(x.shape[1], first + int(rng.integers(0, 9)))
        view = buffer[:, : stop - first]
        view[...] = x[:, first:stop]
        yield view if resets is None else (view, resets[:, first:stop])
        view[...] = np.nan
        first = stop


def change(layer, rng):
    with layer.edit_parameters() as parameters:
        parameters.vector += 0.01 * rng.standard_normal(parameters.vector.size)


@settings(max_examples=15)
@given(
    k1=st.integers(1, 12),
    more=st.integers(0, 20),
    time=st.integers(1, 40),
    batch=st.integers(1, 5),
    hidden_size=st.integers(1, 40),
    num_layers=st.integers(1, 2),
    stream=st.booleans(),
    initial_state=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_windows_by_hand(
    case, k1, more, time, batch, hidden_size, num_layers, stream, initial_state, seed
):
    """Each piece is forward and backward of its window, with the parameters of that moment."""
    options = {"batch": batch, "time": time, "hidden_size": hidden_size, "num_layers": num_layers}
    problem = make_problem(case, seed, initial_state=initial_state, **options)
    layer, x, k2 = problem.layer, problem.x, k1 + more
    rng = np.random.default_rng(seed)
    source = random_chunks(x, None, rng) if stream else x
    state, begin, number = problem.initial_state, 0, -1
    updates = np.random.default_rng(1)
    pieces = fg.truncated_bptt(layer, source, k1, k2, initial_state=problem.initial_state)
    for number, piece in enumerate(pieces):
        start, stop = number * k1, min(time, (number + 1) * k1)
        next_begin = max(0, (number + 2) * k1 - k2)
        assert (piece.start, piece.stop, piece.window_start) == (start, stop, begin)
        output, final_state, tape = layer.forward(x[:, begin:stop], state)
        assert_same_bits("output", piece.output, output[:, start - begin :])
        assert_same_state("state", piece.state, final_state)
        d_output = np.zeros_like(output)
        d_output[:, start - begin :] = problem.d_output[:, start:stop]
        expected = layer.backward(tape, d_output, problem.d_final_state)
        gradients = piece.backward(
            problem.d_output[:, start:stop], problem.d_final_state, input_gradient=True
        )
        assert_same_bits("parameters", gradients.parameter_vector, expected.parameter_vector)
        assert_same_bits("input", gradients.input, expected.input)
        for mine, theirs in zip(
            parts(gradients.initial_state), parts(expected.initial_state), strict=True
        ):
            # A state that was carried in is a constant.
            assert_same_bits("initial_state", mine, theirs if begin == 0 else 0 * theirs)
        if next_begin > begin and next_begin <= stop:
            _, state = layer(x[:, begin:next_begin], state)
        begin = next_begin
        change(layer, updates)
    assert number == -(-time // k1) - 1


@pytest.mark.parametrize("k", [40, 41, 10**9])
@pytest.mark.parametrize("resets", [False, True])
def test_one_window_is_the_whole_series(case, k, resets):
    problem = make_problem(case, time=40, num_layers=2, resets=resets)
    output, final_state, gradients = problem.run()
    (piece,) = fg.truncated_bptt(
        problem.layer, problem.x, k, initial_state=problem.initial_state, resets=problem.resets
    )
    assert_same_bits("output", piece.output, output)
    assert_same_state("state", piece.state, final_state)
    again = piece.backward(problem.d_output, problem.d_final_state, input_gradient=True)
    assert_same_gradients("gradients", again, gradients)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_pieces_that_reach_back_to_the_start_add_up(case, num_layers):
    """With k2 of the whole series, the gradients of all losses are those of their sum."""
    problem = make_problem(case, time=37, num_layers=num_layers, resets=True)
    whole = problem.run(d_final_state=False)[2]
    total = np.zeros(whole.parameter_vector.size)
    d_initial = [np.zeros(part.shape) for part in parts(whole.initial_state)]
    options = {"initial_state": problem.initial_state, "resets": problem.resets}
    for piece in fg.truncated_bptt(problem.layer, problem.x, 5, 37 + 5, **options):
        assert piece.window_start == 0
        gradients = piece.backward(problem.d_output[:, piece.start : piece.stop])
        assert gradients.input is None
        total += gradients.parameter_vector
        for part, mine in zip(d_initial, parts(gradients.initial_state), strict=True):
            part += mine
    assert_close("parameters", total, whole.parameter_vector, GRADIENT_TOLERANCE)
    for part, expected in zip(d_initial, parts(whole.initial_state), strict=True):
        assert_close("initial_state", part, expected, GRADIENT_TOLERANCE)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (3, 10), (1, 5), (7, 9)])
@pytest.mark.parametrize("stream", [False, True], ids=["array", "stream"])
def test_windows_with_resets_against_the_reference(case, k1, k2, stream):
    """A window row by row in float64: its first part from the carried state, others anew."""
    time = 23
    problem = make_problem(case, batch=3, time=time, resets=True)
    layer, x, resets = problem.layer, problem.x, problem.resets
    cell = case.reference(layer.hidden_size)
    output, _ = layer(x, problem.initial_state, resets=resets)
    if stream:
        source = random_chunks(x, resets, np.random.default_rng(0))
        pieces = fg.truncated_bptt(layer, source, k1, k2, initial_state=problem.initial_state)
    else:
        pieces = fg.truncated_bptt(
            layer, x, k1, k2, initial_state=problem.initial_state, resets=resets
        )
    for piece in pieces:
        start, stop, begin = piece.start, piece.stop, piece.window_start
        # The parameters stay the same here, so that all states are those of one pass.
        assert_same_bits("output", piece.output, output[:, start:stop])
        gradients = piece.backward(problem.d_output[:, start:stop], input_gradient=True)
        total = dict.fromkeys(layer.parameters, 0.0)
        d_initial = [np.zeros(part.shape) for part in parts(problem.initial_state)]
        for b in range(3):
            row = slice(b, b + 1)
            first = as_state([part[:, row] for part in parts(problem.initial_state)])
            _, before = layer(x[row, :begin], first, resets=resets[row, :begin])
            edges = [begin, *(t for t in range(begin + 1, stop) if resets[b, t]), stop]
            for left, right in zip(edges[:-1], edges[1:], strict=True):
                anew = left == 0 or resets[b, left]
                _, _, tape = naive.forward(
                    cell,
                    layer.parameters,
                    x[row, left:right],
                    initial_state=first if anew else before,
                )
                d_output = np.zeros((1, right - left, layer.hidden_size))
                seen = slice(max(left, start), right)
                if seen.start < right:
                    d_output[:, seen.start - left :] = problem.d_output[row, seen]
                d_x, d_first, d_parameters = naive.backward(tape, d_output, None)
                assert_close(
                    "input",
                    gradients.input[row, left - begin : right - begin],
                    d_x,
                    GRADIENT_TOLERANCE,
                    floor=1.0,
                )
                total = {name: total[name] + d for name, d in d_parameters.items()}
                if anew:
                    for part, mine in zip(d_initial, parts(d_first), strict=True):
                        part[:, row] += mine
        for name, expected in total.items():
            assert_close(name, gradients.parameters[name], expected, GRADIENT_TOLERANCE, floor=1.0)
        for mine, expected in zip(parts(gradients.initial_state), d_initial, strict=True):
            assert_close("initial_state", mine, expected, GRADIENT_TOLERANCE, floor=1.0)


def test_array_memory_map_and_stream_are_the_same(tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 50, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    results = []
    for source in (x, np.load(tmp_path / "x.npy", mmap_mode="r"), [x[:, :1], x[:, 1:]]):
        layer = fg.LSTM(3, 8, seed=0)
        optimizer = fg.SGD([layer], lr=0.1)
        for piece in fg.truncated_bptt(layer, source, 4, 9):
            optimizer.step([piece.backward(np.ones_like(piece.output))])
        results.append(layer.parameter_vector.copy())
    assert_same_bits("memory map", results[1], results[0])
    assert_same_bits("stream", results[2], results[0])


@pytest.mark.parametrize(("k1", "k2"), [(50, 50), (20, 70)])
def test_memory_does_not_grow_with_the_series(case, k1, k2):
    layer = case.build(2, 16, 2)
    optimizer = fg.SGD([layer], lr=1e-3)

    def stream(time):
        for _ in range(time // 30):
            yield np.ones((16, 30, 2), np.float32)

    peaks = []
    for time in (300, 600, 9000):
        tracemalloc.start()
        for piece in fg.truncated_bptt(layer, stream(time), k1, k2):
            optimizer.step([piece.backward(piece.output)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # NumPy's pool of small blocks is counted with some 50 bytes a piece that it does not take; the
    # series alone has 1.2 MB, its outputs 18 MB.
    assert peaks[2] <= peaks[1] + 300_000


def test_dropout_and_pieces_that_are_left_out():
    x = np.random.default_rng(0).standard_normal((2, 30, 3)).astype(np.float32)
    results = []
    for used in ((0, 1, 2, 3, 4, 5), (1, 3)):
        layer = fg.GRU(3, 8, 2, dropout=0.5, seed=0)
        outputs = []
        for number, piece in enumerate(fg.truncated_bptt(layer, x, 5, 8, training=True)):
            if number in used:
                assert piece.backward(piece.output).parameter_vector.any()
            outputs.append(piece.output)
        results.append(np.concatenate(outputs, axis=1))
    assert_same_bits("output", results[1], results[0])


def test_nothing_in_nothing_out():
    layer = fg.LSTM(3, 4, seed=0)
    assert list(fg.truncated_bptt(layer, np.zeros((2, 0, 3)), 5)) == []
    assert list(fg.truncated_bptt(layer, [], 5)) == []
    pieces = list(fg.truncated_bptt(layer, np.zeros((0, 7, 3)), 2, 3))
    assert [piece.output.shape for piece in pieces] == [(0, n, 4) for n in (2, 2, 2, 1)]
    assert not pieces[2].backward(pieces[2].output).parameter_vector.any()


LAYER = fg.GRU(3, 4, seed=0)
X = np.zeros((2, 10, 3))
ERRORS = {
    "k1": (lambda: fg.truncated_bptt(LAYER, X, 0), "k1 must be a positive integer, got 0"),
    "k2": (lambda: fg.truncated_bptt(LAYER, X, 2, 2.5), "k2 must be a positive integer, got 2.5"),
    "k2-below-k1": (lambda: fg.truncated_bptt(LAYER, X, 5, 4), "k2 must be at least k1=5"),
    "both-ways": (
        lambda: fg.truncated_bptt(fg.GRU(3, 4, bidirectional=True), X, 5),
        "layer must run forward only",
    ),
    "shape": (
        lambda: fg.truncated_bptt(LAYER, X[0], 5),
        r"x must have shape \(batch_size, time, input_size=3\), got \(10, 3\)",
    ),
    "resets": (
        lambda: fg.truncated_bptt(LAYER, X, 5, resets=np.zeros((2, 9), bool)),
        r"resets must be bool of shape \(batch_size=2, time=10\), got shape \(2, 9\)",
    ),
    "resets-of-a-chunk": (
        lambda: list(fg.truncated_bptt(LAYER, [(X, np.zeros((2, 10)))], 5)),
        r"resets must be bool of shape",
    ),
    "chunk": (
        lambda: list(fg.truncated_bptt(LAYER, [X, X[:, :, :2]], 5)),
        r"x must have shape \(batch_size, time, input_size=3\), got \(2, 10, 2\)",
    ),
    "batch": (
        lambda: list(fg.truncated_bptt(LAYER, [X, X[:1]], 5)),
        "all chunks must have the batch_size=2 of the first, got 1",
    ),
    "initial-state": (
        lambda: list(fg.truncated_bptt(LAYER, X, 5, initial_state=np.zeros((1, 3, 4)))),
        "initial_state must have shape",
    ),
    "d-output": (
        lambda: next(fg.truncated_bptt(LAYER, X, 5)).backward(np.zeros((2, 4, 4))),
        r"d_output must have shape \(batch_size=2, stop - start=5, hidden_size=4\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((fg.Dense(3, 4), X, 5), "layer must be a recurrent layer, got Dense"),
        ((LAYER, 7, 5), "x must be an array or an iterable of chunks, got int"),
    ],
)
def test_type_errors(arguments, message):
    with pytest.raises(TypeError, match=message):
        fg.truncated_bptt(*arguments)


def test_resets_of_a_stream_come_with_it():
    with pytest.raises(TypeError, match="resets must come with the chunks"):
        fg.truncated_bptt(LAYER, [X], 5, resets=np.zeros((2, 10), bool))


def test_backward_works_once_and_before_the_parameters_change():
    layer = fg.GRU(3, 4, seed=0)
    first, second = fg.truncated_bptt(layer, X, 5)
    first.backward(first.output)
    with pytest.raises(RuntimeError, match="used before"):
        first.backward(first.output)
    change(layer, np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="parameters changed"):
        second.backward(second.output)
