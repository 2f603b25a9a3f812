"""The interface of the layers: shapes, what is accepted, what is refused, parameters, dropout."""

import copy
import pickle

import naive
import numpy as np
import pytest
from helpers import (
    CELLS,
    GRADIENT_TOLERANCE,
    assert_close,
    assert_same_bits,
    assert_same_gradients,
    assert_same_state,
    check_gradients,
    check_output,
    make_problem,
    parts,
    random_state,
)

import fastgates as fg

LSTM = next(case for case in CELLS if case.num_states == 2)
GRU = next(case for case in CELLS if case.id == "gru")


# -- Shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_shapes(case, num_layers, bidirectional):
    directions = 2 if bidirectional else 1
    layer = case.build(5, 6, num_layers, bidirectional=bidirectional)
    assert (layer.input_size, layer.hidden_size, layer.num_layers) == (5, 6, num_layers)
    assert layer.num_directions == directions
    assert layer.bidirectional is bidirectional
    assert layer.bias is True
    x = np.zeros((2, 7, 5), dtype=np.float32)
    for output, final_state in (layer(x), layer.forward(x)[:2]):
        assert output.shape == (2, 7, directions * 6)
        assert output.dtype == np.float32
        assert isinstance(final_state, tuple) == (case.num_states == 2)
        for part in parts(final_state):
            assert part.shape == (num_layers * directions, 2, 6)
            assert part.dtype == np.float32
    gradients = make_problem(case, num_layers=num_layers, bidirectional=bidirectional).run()[2]
    assert isinstance(gradients, fg.Gradients)
    assert gradients.input.shape == (3, 7, 5)
    assert isinstance(gradients.initial_state, tuple) == (case.num_states == 2)
    for part in parts(gradients.initial_state):
        assert part.shape == (num_layers * directions, 3, 6)
        assert part.dtype == np.float32


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("batch", "time"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_in_nothing_out(case, batch, time, bidirectional):
    """An empty batch or no time steps: empty results, and the initial state back."""
    layer = case.build(5, 6, 2, bidirectional=bidirectional)
    directions = 2 if bidirectional else 1
    x = np.zeros((batch, time, 5))
    rng = np.random.default_rng(0)
    initial = random_state(case, rng, (2 * directions, batch, 6))
    for state in (None, initial):
        expected = state
        if state is None:
            expected = random_state(case, rng, (2 * directions, batch, 6))
            for part in parts(expected):
                part[...] = 0.0
        output, final_state = layer(x, state)
        assert output.shape == (batch, time, directions * 6)
        assert_same_state("final_state", final_state, expected)
        output, final_state, tape = layer.forward(x, state)
        assert output.shape == (batch, time, directions * 6)
        assert_same_state("final_state", final_state, expected)
        d_final = random_state(case, rng, (2 * directions, batch, 6))
        gradients = layer.backward(tape, np.zeros_like(output), d_final)
        assert gradients.input.shape == x.shape
        assert_same_state("gradient of initial_state", gradients.initial_state, d_final)
        assert not gradients.parameter_vector.any()


def test_final_state_is_no_view_of_the_initial_state(case):
    """Changing what comes back does not change what was given."""
    layer = case.build(2, 3)
    initial = random_state(case, np.random.default_rng(0), (1, 1, 3))
    before = copy.deepcopy(initial)
    _, final_state = layer(np.zeros((1, 0, 2)), initial)
    for part in parts(final_state):
        part[...] = 9.0
    assert_same_state("initial_state", initial, before)


# -- What is accepted -----------------------------------------------------------------------------


def variants(array):
    """The same values in other dtypes, orders and strides."""
    array = np.asarray(array)
    double = array.astype(np.float64)
    spread = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), dtype=np.float32)
    spread[..., ::2] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    wide = np.zeros((array.shape[0] + 2, *array.shape[1:]), dtype=np.float32)
    wide[1:-1] = array
    return {
        "float64": double,
        "float128": array.astype(np.longdouble),
        "fortran": np.asfortranarray(array),
        "fortran64": np.asfortranarray(double),
        "every other": spread[..., ::2],
        "backwards": array[::-1].copy()[::-1],
        "time first": np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1),
        "part of an array": wide[1:-1],
        "big-endian": array.astype(">f4"),
        "list": array.tolist(),
        "read-only": read_only,
    }


def test_any_dtype_and_strides(case):
    problem = make_problem(case, batch=4, num_layers=2)
    expected_output, expected_final, expected = problem.run()
    names = list(variants(problem.x))
    for name in names:
        problem_like = make_problem(case, batch=4, num_layers=2, layer=problem.layer)
        problem_like.x = variants(problem.x)[name]
        state = [variants(part)[name] for part in parts(problem.initial_state)]
        problem_like.initial_state = tuple(state) if case.num_states == 2 else state[0]
        problem_like.d_output = variants(problem.d_output)[name]
        d_final = [variants(part)[name] for part in parts(problem.d_final_state)]
        problem_like.d_final_state = tuple(d_final) if case.num_states == 2 else d_final[0]
        output, final_state, gradients = problem_like.run()
        assert_same_bits(f"output, {name}", output, expected_output)
        assert_same_state(f"final_state, {name}", final_state, expected_final)
        assert_same_gradients(f"gradients, {name}", gradients, expected)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.bool_, np.float16])
def test_whole_numbers(dtype):
    layer = GRU.build(3, 4, seed=0)
    x = np.array([[[0, 1, 1], [1, 0, 1]]])
    expected, _ = layer(x.astype(np.float32))
    output, _ = layer(x.astype(dtype))
    assert_same_bits("output", output, expected)


@pytest.mark.parametrize("convert", [list, np.int32, np.uint8, np.int64], ids=lambda c: c.__name__)
def test_lengths_of_any_integer_type(convert):
    layer = GRU.build(3, 4, seed=0)
    x = np.ones((2, 5, 3))
    expected, _ = layer(x, lengths=np.array([5, 2]))
    output, _ = layer(x, lengths=convert([5, 2]))
    assert_same_bits("output", output, expected)


def test_inputs_are_left_alone(case):
    problem = make_problem(case, num_layers=2, bidirectional=True, lengths=True, resets=True)
    arrays = [problem.x, problem.lengths, problem.resets, problem.d_output]
    arrays += [*parts(problem.initial_state), *parts(problem.d_final_state)]
    before = [array.copy() for array in arrays]
    problem.layer(problem.x, **problem.data)
    problem.run()
    for array, original in zip(arrays, before, strict=True):
        assert_same_bits("an argument", array, original)


def test_x_may_change_between_forward_and_backward(case):
    """The tape keeps what it needs, whatever the caller does with the arrays."""
    problem = make_problem(case, num_layers=2, lengths=True, resets=True)
    _, _, expected = problem.run()
    x = problem.x.copy()
    initial = copy.deepcopy(problem.initial_state)
    lengths, resets = problem.lengths.copy(), problem.resets.copy()
    _, _, tape = problem.layer.forward(x, initial, lengths=lengths, resets=resets)
    x[...] = 5.0
    for part in parts(initial):
        part[...] = 5.0
    lengths[...] = 1
    resets[...] = False
    gradients = problem.layer.backward(tape, problem.d_output, problem.d_final_state)
    assert_same_gradients("gradients", gradients, expected)


# -- Padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_is_never_looked_at(case, garbage, bidirectional):
    problem = make_problem(
        case, batch=6, num_layers=2, bidirectional=bidirectional, lengths=True, resets=True
    )
    past = np.arange(problem.x.shape[1]) >= problem.lengths[:, None]
    problem.x[past] = 0.0
    problem.d_output[past] = 0.0
    problem.resets[past] = False
    expected_output, expected_final, expected = problem.run()
    problem.x[past] = garbage
    problem.d_output[past] = garbage
    problem.resets[past] = True
    output, final_state, gradients = problem.run()
    assert_same_bits("output", output, expected_output)
    assert_same_state("final_state", final_state, expected_final)
    assert_same_gradients("gradients", gradients, expected)
    assert not output[past].any()
    assert not gradients.input[past].any()
    called_output, called_final = problem.layer(problem.x, **problem.data)
    assert_same_bits("output of a call", called_output, expected_output)
    assert_same_state("final_state of a call", called_final, expected_final)


@pytest.mark.parametrize("segment", [None, 3])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"reverse": True}], ids=str)
def test_zeros_past_the_ends_are_written_not_found(options, segment, monkeypatch):
    """Whatever the fresh memory holds."""

    def dirty(shape):
        return np.full(shape, np.nan, np.float32)

    monkeypatch.setattr("fastgates.layers.aligned_empty", dirty)
    layer = fg.GRU(3, 5, num_layers=2, seed=0, **options)
    x = np.random.default_rng(0).standard_normal((4, 9, 3)).astype(np.float32)
    lengths = np.array([9, 1, 8, 4])
    past = np.arange(9) >= lengths[:, None]
    output, _, tape = layer.forward(x, lengths=lengths, segment=segment)
    gradient = layer.backward(tape, np.ones_like(output)).input
    assert not np.isnan(output).any() and not np.isnan(gradient).any()
    assert not output[past].any() and not gradient[past].any()
    assert output[~past].all() and gradient[~past].all()
    assert np.array_equal(layer(x, lengths=lengths)[0], output)


def test_nan_stays_in_its_row(case):
    """A bad row does not spoil the others, in either direction of use."""
    problem = make_problem(case, batch=9, hidden_size=20)
    expected_output, _, expected = problem.run()
    problem.x[4, 3] = np.nan
    output, _, gradients = problem.run()
    others = np.arange(9) != 4
    assert_same_bits("output", output[others], expected_output[others])
    assert_same_bits("gradient of input", gradients.input[others], expected.input[others])
    assert_same_bits("output before", output[4, :3], expected_output[4, :3])
    assert np.isnan(output[4, 3:]).all()


@pytest.mark.parametrize("case", [c for c in CELLS if "relu" not in c.id], ids=str)
def test_extreme_inputs_stay_finite(case):
    layer = case.build(3, 9, seed=0)
    x = np.full((2, 4, 3), 1e30)
    x[1] *= -1.0
    output, final_state, tape = layer.forward(x)
    assert np.isfinite(output).all()
    assert np.abs(output).max() <= 1.0
    gradients = layer.backward(tape, np.ones_like(output))
    for part in parts(gradients.initial_state):
        assert np.isfinite(part).all()


# -- What is refused ------------------------------------------------------------------------------

CONSTRUCTION = {
    "input_size 0": (lambda: fg.GRU(0, 3), ["input_size", "0"]),
    "input_size < 0": (lambda: fg.GRU(-1, 3), ["input_size", "-1"]),
    "hidden_size 0": (lambda: fg.GRU(3, 0), ["hidden_size", "0"]),
    "hidden_size < 0": (lambda: fg.LSTM(3, -4), ["hidden_size", "-4"]),
    "num_layers 0": (lambda: fg.LSTM(3, 4, 0), ["num_layers", "0"]),
    "num_layers < 0": (lambda: fg.LSTM(3, 4, -2), ["num_layers", "-2"]),
    "hidden_size float": (lambda: fg.LSTM(3, 4.5), ["hidden_size", "4.5"]),
    "input_size text": (lambda: fg.LSTM("3", 4), ["input_size", "'3'"]),
    "dropout < 0": (lambda: fg.LSTM(3, 4, 2, dropout=-0.1), ["dropout", "-0.1"]),
    "dropout > 1": (lambda: fg.LSTM(3, 4, 2, dropout=1.5), ["dropout", "1.5"]),
    "dropout nan": (lambda: fg.LSTM(3, 4, 2, dropout=float("nan")), ["dropout", "nan"]),
    "nonlinearity": (lambda: fg.RNN(3, 4, nonlinearity="cube"), ["nonlinearity", "relu", "'cube'"]),
    "leak > 1": (lambda: fg.RNN(3, 4, leak=1.5), ["leak", "1.5"]),
    "leak < 0": (lambda: fg.RNN(3, 4, leak=-0.5), ["leak", "-0.5"]),
    "leak nan": (lambda: fg.RNN(3, 4, leak=float("nan")), ["leak", "nan"]),
    "leak per unit > 1": (lambda: fg.RNN(3, 2, leak=[0.5, 1.5]), ["leak", "1.5"]),
    "leak shape": (lambda: fg.RNN(3, 4, leak=[0.5, 0.5]), ["leak", "hidden_size=4", "(2,)"]),
}


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_construction_errors(name):
    build, fragments = CONSTRUCTION[name]
    with pytest.raises((ValueError, TypeError)) as error:
        build()
    for fragment in fragments:
        assert fragment in str(error.value), str(error.value)


X = np.zeros((2, 5, 3), dtype=np.float32)
H = np.zeros((2, 2, 4), dtype=np.float32)
STATE = "shape (num_layers * num_directions=2, batch_size=2, hidden_size=4), got "
CALLS = {
    "x flat": ({"x": np.zeros(3)}, ["x must have shape", "input_size=3", "(3,)"]),
    "x 2-d": ({"x": np.zeros((5, 3))}, ["x must have shape", "input_size=3", "(5, 3)"]),
    "x 4-d": ({"x": np.zeros((1, 2, 5, 3))}, ["x must have shape", "(1, 2, 5, 3)"]),
    "x features": ({"x": np.zeros((2, 5, 7))}, ["x must have shape", "input_size=3", "(2, 5, 7)"]),
    "x complex": ({"x": X.astype(np.complex64)}, ["x", "real", "complex64"]),
    "x object": ({"x": X.astype(object)}, ["x", "real", "object"]),
    "x text": ({"x": np.full((2, 5, 3), "a")}, ["x", "real", "<U1"]),
    "x ragged": ({"x": [[[1.0, 2.0, 3.0]], [[1.0]]]}, ["x"]),
    "x dates": ({"x": X.astype("datetime64[s]")}, ["x", "real", "datetime64"]),
    "state 2-d": ({"initial_state": H[0]}, ["initial_state", STATE + "(2, 4)"]),
    "state layers": ({"initial_state": H[:1]}, ["initial_state", STATE + "(1, 2, 4)"]),
    "state batch": ({"initial_state": H[:, :1]}, ["initial_state", STATE + "(2, 1, 4)"]),
    "state hidden": ({"initial_state": H[..., :3]}, ["initial_state", STATE + "(2, 2, 3)"]),
    "state complex": ({"initial_state": H * 1j}, ["initial_state", "real", "complex"]),
    "state pair": ({"initial_state": (H, H)}, ["initial_state"]),
    "lengths 0": ({"lengths": [0, 5]}, ["lengths", "1", "5", "0"]),
    "lengths > time": ({"lengths": [5, 6]}, ["lengths", "1", "5", "6"]),
    "lengths < 0": ({"lengths": [-1, 5]}, ["lengths", "-1"]),
    "lengths count": ({"lengths": [5]}, ["lengths", "batch_size=2", "(1,)"]),
    "lengths 2-d": ({"lengths": [[5], [5]]}, ["lengths", "(2, 1)"]),
    "lengths float": ({"lengths": [5.0, 4.0]}, ["lengths", "integer", "float64"]),
    "lengths bool": ({"lengths": [True, True]}, ["lengths", "integer", "bool"]),
    "resets shape": (
        {"resets": np.zeros((2, 4), bool)},
        ["resets", "batch_size=2, time=5", "(2, 4)"],
    ),
    "resets float": ({"resets": np.zeros((2, 5))}, ["resets", "bool", "float64"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_errors(name):
    arguments, fragments = CALLS[name]
    layer = fg.GRU(3, 4, 2)
    for function in (layer, layer.forward):
        with pytest.raises((ValueError, TypeError)) as error:
            function(**({"x": X} | arguments))
        for fragment in fragments:
            assert fragment in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("state", "fragments"),
    [
        (H[:1], ["initial_state", "h", "c"]),
        ((H[:1],), ["initial_state", "h", "c"]),
        ((H[:1], H[:1], H[:1]), ["initial_state", "h", "c"]),
        ((H[:1], H), ["initial_state[1]", "num_directions=1", "(2, 2, 4)"]),
    ],
    ids=["array", "one", "three", "shapes"],
)
def test_lstm_state_errors(state, fragments):
    layer = fg.LSTM(3, 4)
    with pytest.raises((ValueError, TypeError)) as error:
        layer(X, state)
    for fragment in fragments:
        assert fragment in str(error.value), str(error.value)


BACKWARD = {
    "d_output shape": (
        {"d_output": np.zeros((2, 5, 3))},
        ["d_output", "hidden_size=4", "(2, 5, 3)"],
    ),
    "d_output complex": ({"d_output": np.zeros((2, 5, 4)) * 1j}, ["d_output", "real", "complex"]),
    "d_final shape": ({"d_final_state": H[:1]}, ["d_final_state", STATE + "(1, 2, 4)"]),
    "d_final pair": ({"d_final_state": (H, H)}, ["d_final_state"]),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backward_errors(name):
    arguments, fragments = BACKWARD[name]
    layer = fg.GRU(3, 4, 2)
    _, _, tape = layer.forward(X)
    with pytest.raises((ValueError, TypeError)) as error:
        layer.backward(tape, **arguments)
    for fragment in fragments:
        assert fragment in str(error.value), str(error.value)


def test_a_refused_backward_leaves_the_tape_usable():
    problem = make_problem(GRU)
    _, _, expected = problem.run()
    _, _, tape = problem.layer.forward(problem.x, **problem.data)
    with pytest.raises(ValueError, match="d_output"):
        problem.layer.backward(tape, problem.d_output[:, 1:])
    gradients = problem.layer.backward(tape, problem.d_output, problem.d_final_state)
    assert_same_gradients("gradients", gradients, expected)


def test_tape_is_used_once(case):
    problem = make_problem(case)
    output, _, tape = problem.layer.forward(problem.x, **problem.data)
    problem.layer.backward(tape, problem.d_output)
    with pytest.raises(RuntimeError, match="tape"):
        problem.layer.backward(tape, problem.d_output)


def test_tape_of_another_layer():
    _, _, tape = fg.GRU(3, 4).forward(X)
    with pytest.raises((ValueError, RuntimeError), match="tape"):
        fg.GRU(3, 4).backward(tape)
    with pytest.raises((ValueError, TypeError), match="tape"):
        fg.GRU(3, 4).backward(None)


def test_output_of_forward_is_read_only(case):
    output, _, _ = case.build(3, 4).forward(X)
    with pytest.raises(ValueError, match="read-only"):
        output[0, 0, 0] = 1.0


def test_output_of_a_call_is_the_callers(case):
    layer = case.build(3, 4)
    output, _ = layer(X)
    output[...] = 7.0
    again, _ = layer(X)
    assert not (again == 7.0).any()


# -- Parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_parameter_counts_are_1_2_3_4(bias, num_layers, bidirectional):
    options = {"bias": bias, "bidirectional": bidirectional}
    counts = [
        cls(7, 10, num_layers, **options).parameter_vector.size
        for cls in (fg.RNN, fg.SimplifiedGRU, fg.GRU, fg.LSTM)
    ]
    assert counts == [counts[0] * ratio for ratio in (1, 2, 3, 4)]
    if num_layers == 1 and not bidirectional:
        assert counts[0] == 7 * 10 + 10 * 10 + (20 if bias else 0)
    assert fg.GRU(7, 10, num_layers, reset_after=True, **options).parameter_vector.size == counts[2]
    assert fg.RNN(7, 10, num_layers, leak=0.5, **options).parameter_vector.size == counts[0]


@pytest.mark.parametrize("bias", [True, False])
def test_parameter_names_and_shapes(case, bias):
    layer = case.build(5, 6, 2, bidirectional=True, bias=bias)
    expected = naive.random_parameters(
        case.reference(6), np.random.default_rng(0), 5, 6, 2, 2, bias
    )
    assert list(layer.parameters) == list(expected)
    for name, value in expected.items():
        assert layer.parameters[name].shape == value.shape
        assert layer.parameters[name].dtype == np.float32
    flat = np.concatenate([np.ravel(value) for value in layer.parameters.values()])
    assert_same_bits("parameter_vector", layer.parameter_vector, flat)


def test_parameters_are_read_only(case):
    layer = case.build(3, 4)
    for name in layer.parameters:
        with pytest.raises(ValueError, match="read-only"):
            layer.parameters[name][...] = 0.0
    with pytest.raises(ValueError, match="read-only"):
        layer.parameter_vector[0] = 1.0
    with pytest.raises(TypeError):
        layer.parameters["weight_ih_l0"] = np.zeros((4, 3))


def test_state_dict_is_a_copy(case):
    layer = case.build(3, 4)
    before = layer.parameter_vector.copy()
    state_dict = layer.state_dict()
    for value in state_dict.values():
        value[...] = 9.0
    assert_same_bits("parameter_vector", layer.parameter_vector, before)


def test_load_state_dict(case):
    problem = make_problem(case, num_layers=2, bidirectional=True)
    other = case.build(5, 6, 2, bidirectional=True)
    assert other(problem.x)[0].tobytes() != problem.layer(problem.x)[0].tobytes()
    other.load_state_dict(problem.layer.state_dict())
    assert_same_bits("parameters", other.parameter_vector, problem.layer.parameter_vector)
    assert_same_bits("output", other(problem.x)[0], problem.layer(problem.x)[0])
    double = {name: value.astype(np.float64) for name, value in problem.layer.state_dict().items()}
    other.load_state_dict(dict(reversed(double.items())))
    assert_same_bits("output", other(problem.x)[0], problem.layer(problem.x)[0])


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (lambda d: d.pop("bias_hh_l0"), ["bias_hh_l0"]),
        (lambda d: d.update(weight_ih_l1=np.zeros((12, 4))), ["weight_ih_l1"]),
        (
            lambda d: d.update(weight_ih_l0=np.zeros((12, 4))),
            ["weight_ih_l0", "(12, 3)", "(12, 4)"],
        ),
        (lambda d: d.update(weight_hh_l0=d["weight_hh_l0"] * 1j), ["weight_hh_l0", "complex"]),
    ],
    ids=["missing", "extra", "shape", "complex"],
)
def test_load_state_dict_errors(change, fragments):
    layer = fg.GRU(3, 4, seed=1)
    before = layer.parameter_vector.copy()
    state_dict = {name: value + 1.0 for name, value in layer.state_dict().items()}
    change(state_dict)
    with pytest.raises((ValueError, TypeError)) as error:
        layer.load_state_dict(state_dict)
    for fragment in fragments:
        assert fragment in str(error.value), str(error.value)
    assert_same_bits("parameters after the error", layer.parameter_vector, before)


@pytest.mark.parametrize("how", ["names", "vector"])
def test_edit_parameters_takes_effect(case, how):
    """Packed weights are kept between calls, so a change must repack them."""
    problem = make_problem(case, num_layers=2, bidirectional=True)
    problem.layer(problem.x)
    problem.check()
    with problem.layer.edit_parameters() as parameters:
        if how == "names":
            for name in parameters:
                parameters[name][...] *= 0.5
        else:
            parameters.vector[...] *= 0.5
    problem.check()
    problem.layer.load_state_dict({n: 3.0 * v for n, v in problem.layer.state_dict().items()})
    problem.check()


def test_an_edit_that_fails_halfway_is_seen_too():
    problem = make_problem(GRU)
    problem.check()
    with pytest.raises(KeyError), problem.layer.edit_parameters() as parameters:
        parameters["weight_ih_l0"][...] *= 0.5
        parameters["no such parameter"]
    problem.check()


def test_editing_after_the_edit_is_over():
    layer = fg.GRU(3, 4)
    with layer.edit_parameters() as parameters:
        parameters["weight_ih_l0"][...] = 0.0
    with pytest.raises((ValueError, RuntimeError, KeyError)):
        parameters["weight_ih_l0"][...] = 1.0
    assert not layer.parameters["weight_ih_l0"].any()


def test_views_see_the_edit():
    layer = fg.GRU(3, 4)
    view, vector = layer.parameters["weight_ih_l0"], layer.parameter_vector
    with layer.edit_parameters() as parameters:
        parameters["weight_ih_l0"][...] = 0.25
    assert (view == 0.25).all()
    assert np.count_nonzero(vector == 0.25) == view.size


def test_backward_uses_the_parameters_of_its_forward(case):
    """Either the gradient of the forward pass as it was, or an error: never a mixture."""
    problem = make_problem(case)
    _, _, expected = problem.run()
    _, _, tape = problem.layer.forward(problem.x, **problem.data)
    with problem.layer.edit_parameters() as parameters:
        parameters.vector[...] *= -1.0
    try:
        gradients = problem.layer.backward(tape, problem.d_output, problem.d_final_state)
    except RuntimeError as error:
        assert "parameters" in str(error)
    else:
        assert_same_gradients("gradients", gradients, expected)


def test_gradient_views_share_the_vector(case):
    """What clipping does to the vector is seen by name."""
    _, _, gradients = make_problem(case).run()
    gradients.parameter_vector[...] = 2.0
    for value in gradients.parameters.values():
        assert (value == 2.0).all()


# -- Initial values -------------------------------------------------------------------------------


def test_seeds_reproduce(case):
    build = {"input_size": 5, "hidden_size": 6, "num_layers": 2, "bidirectional": True}
    one, same, other = (case.build(**build, seed=seed) for seed in (3, 3, 4))
    assert_same_bits("parameters", same.parameter_vector, one.parameter_vector)
    assert not np.array_equal(other.parameter_vector, one.parameter_vector)
    unseeded = [case.build(**build).parameter_vector for _ in range(2)]
    assert not np.array_equal(*unseeded)


def test_initial_values_are_random_and_bounded(case):
    """PyTorch's rule: uniform in +-1/sqrt(hidden_size); nothing starts equal to its neighbour."""
    layer = case.build(5, 16, seed=0)
    limit = 1.0 / np.sqrt(16)
    for name, value in layer.parameters.items():
        assert np.isfinite(value).all()
        if name.startswith("weight"):
            assert np.abs(value).max() <= limit * (1 + 1e-6)
            assert value.std() > 0.3 * limit


@pytest.mark.parametrize("forget_bias", [None, 0.0, 1.0, 2.5])
def test_forget_bias(forget_bias):
    """What the forget gate sees in total: the sum of both biases (1 unless asked otherwise)."""
    options = {} if forget_bias is None else {"forget_bias": forget_bias}
    layer = fg.LSTM(3, 8, 2, bidirectional=True, seed=0, **options)
    expected = 1.0 if forget_bias is None else forget_bias
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        total = layer.parameters["bias_ih" + suffix] + layer.parameters["bias_hh" + suffix]
        np.testing.assert_allclose(total[8:16], expected, atol=1e-6)


# -- Copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_equal_and_independent(case, how):
    problem = make_problem(case, num_layers=2, bidirectional=True)
    layer = problem.layer
    layer(problem.x)
    twin = how(layer)
    assert_same_bits("parameters", twin.parameter_vector, layer.parameter_vector)
    assert type(twin) is type(layer)
    expected_output, expected_final, expected = problem.run()
    problem.layer = twin
    output, final_state, gradients = problem.run()
    assert_same_bits("output", output, expected_output)
    assert_same_state("final_state", final_state, expected_final)
    assert_same_gradients("gradients", gradients, expected)
    with twin.edit_parameters() as parameters:
        parameters.vector[...] *= 0.5
    problem.check()
    problem.layer = layer
    assert_same_bits("output", problem.run()[0], expected_output)
    for name in twin.parameters:
        with pytest.raises(ValueError, match="read-only"):
            twin.parameters[name][...] = 0.0


def test_repr_names_the_sizes(case):
    text = repr(case.build(5, 6, 2, bidirectional=True))
    assert case.layer in text
    assert "5" in text
    assert "6" in text


# -- Leak -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_leak_zero_is_the_plain_rnn(nonlinearity):
    plain = fg.RNN(3, 9, 2, nonlinearity=nonlinearity, seed=0)
    leaky = fg.RNN(3, 9, 2, nonlinearity=nonlinearity, leak=0.0, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 6, 3))
    assert_same_bits("output", leaky(x)[0], plain(x)[0])


def test_leak_one_is_pure_memory():
    layer = fg.RNN(3, 4, leak=1.0)
    initial = random_state(LSTM, np.random.default_rng(0), (1, 2, 4))[0]
    output, final_state, tape = layer.forward(X, initial)
    assert_same_bits("output", output, np.repeat(initial[0][:, None], 5, axis=1))
    assert_same_bits("final_state", final_state, initial)
    gradients = layer.backward(tape, None, initial)
    assert_same_bits("gradient of initial_state", gradients.initial_state, initial)
    assert not gradients.input.any()
    assert not gradients.parameter_vector.any()


def test_leak_is_copied():
    leak = np.full(4, 0.5)
    layer = fg.RNN(3, 4, leak=leak, seed=0)
    expected, _ = layer(X + 1.0)
    leak[...] = 0.0
    assert_same_bits("output", layer(X + 1.0)[0], expected)


# -- Dropout --------------------------------------------------------------------------------------


def visible_masks(dropout, batch=6, time=50, hidden_size=20, seed=0):
    """A relu RNN whose second layer copies its input, so that its output shows the mask."""
    layer = fg.RNN(3, hidden_size, 2, nonlinearity="relu", dropout=dropout, seed=seed)
    with layer.edit_parameters() as parameters:
        # The first layer's outputs are all positive.
        parameters["bias_ih_l0"][...] = 5.0
        parameters["weight_hh_l0"][...] = 0.0
        parameters["weight_ih_l1"][...] = np.eye(hidden_size)
        for name in ("weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
            parameters[name][...] = 0.0
    x = np.random.default_rng(1).standard_normal((batch, time, 3)).astype(np.float32)
    clean, _ = layer(x)
    assert (clean > 0.0).all()
    return layer, x, clean


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.8])
def test_dropout_keeps_the_expectation(dropout):
    layer, x, clean = visible_masks(dropout)
    output, _, _ = layer.forward(x, training=True)
    scale = output / clean
    kept = scale > 0.0
    np.testing.assert_allclose(scale[kept], 1.0 / (1.0 - dropout), rtol=1e-5)
    spread = np.sqrt(dropout * (1.0 - dropout) / kept.size)
    assert abs(kept.mean() - (1.0 - dropout)) < 5.0 * spread
    # Independent from step to step, row to row and unit to unit.
    for axis in range(3):
        share = kept.mean(axis=axis)
        assert share.std() > 0.0
    again, _, _ = layer.forward(x, training=True)
    assert not np.array_equal(again, output)  # a new mask every time


def test_variational_dropout_drops_a_unit_at_all_steps_or_none(case):
    layer = case.build(3, 8, 2, dropout=0.4, variational=True, bidirectional=True, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 6, 3))
    lengths = np.array([6, 2, 5, 6])
    _, _, tape = layer.forward(x, lengths=lengths, training=True)
    mask = tape.masks[1]
    assert mask.shape == (4, 1, 16)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.6)}
    # Two layers with the mask in between give the same output and gradients.
    lower, upper = (case.build(n, 8, bidirectional=True, seed=0) for n in (3, 16))
    for k, part in enumerate((lower, upper)):
        part.load_state_dict(
            {
                name.replace(f"_l{k}", "_l0"): value
                for name, value in layer.parameters.items()
                if f"_l{k}" in name
            }
        )
    output, _, tape = copy.deepcopy(layer).forward(x, lengths=lengths, training=True)
    between, _, lower_tape = lower.forward(x, lengths=lengths)
    again = copy.deepcopy(layer)
    expected, _, upper_tape = upper.forward(between * _mask_of(again, x), lengths=lengths)
    assert_same_bits("output", output, expected)
    gradients = tape.owner.backward(tape, np.ones_like(output))
    d_upper = upper.backward(upper_tape, np.ones_like(output))
    d_lower = lower.backward(lower_tape, d_upper.input * _mask_of(copy.deepcopy(layer), x))
    assert_same_bits("d_input", gradients.input, d_lower.input)
    vectors = [d_lower.parameter_vector, d_upper.parameter_vector]
    assert_same_bits("d_parameters", gradients.parameter_vector, np.concatenate(vectors))


def _mask_of(layer, x):
    return layer.forward(x, training=True)[2].masks[1]


def test_dropout_only_in_training_and_only_between_layers():
    layer, x, clean = visible_masks(0.5)
    assert_same_bits("output", layer.forward(x)[0], clean)
    assert_same_bits("output", layer.forward(x, training=False)[0], clean)
    single = fg.GRU(3, 8, 1, seed=0)
    assert_same_bits("output", single.forward(x, training=True)[0], single(x)[0])


def test_dropout_gradient_against_the_reference():
    layer, x, clean = visible_masks(0.4, batch=3, time=6, hidden_size=9)
    rng = np.random.default_rng(2)
    output, _, tape = layer.forward(x, training=True)
    mask = np.where(output > 0.0, 1.0 / (1.0 - 0.4), 0.0)
    d_output = rng.standard_normal(output.shape).astype(np.float32)
    gradients = layer.backward(tape, d_output)
    expected_output, _, naive_tape = naive.forward(
        naive.RNN("relu"), layer.parameters, x, num_layers=2, masks=[mask]
    )
    check_output("output", output / 10.0, expected_output / 10.0)
    check_gradients(gradients, naive.backward(naive_tape, d_output))


def test_dropout_gradient_is_the_central_difference(case):
    """With the same mask for every evaluation: copies of the layer draw the same numbers."""
    layer = case.build(4, 7, 3, bidirectional=True, dropout=0.3, seed=5)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 6, 4))
    d_output = rng.standard_normal((3, 6, 14))
    output, _, tape = copy.deepcopy(layer).forward(x, training=True)
    gradients = None
    twin = copy.deepcopy(layer)
    _, _, tape = twin.forward(x, training=True)
    gradients = twin.backward(tape, d_output)
    for _ in range(3):
        direction = rng.standard_normal(x.shape)
        values = []
        for sign in (1.0, -1.0):
            output, _, _ = copy.deepcopy(layer).forward(x + sign * 2e-3 * direction, training=True)
            values.append(np.vdot(output.astype(np.float64), d_output))
        expected = (values[0] - values[1]) / 4e-3
        actual = np.vdot(gradients.input.astype(np.float64), direction)
        assert_close("gradient of input", [actual], [expected], 5e-3, floor=1.0)


def test_dropout_reproduces_from_the_seed(case):
    x = np.random.default_rng(0).standard_normal((4, 5, 3))

    def two_outputs(seed):
        layer = case.build(3, 8, 3, dropout=0.5, bidirectional=True, seed=seed)
        return [layer.forward(x, training=True)[0] for _ in range(2)]

    one, same = two_outputs(1), two_outputs(1)
    for a, b in zip(one, same, strict=True):
        assert_same_bits("output", a, b)
    assert not np.array_equal(one[0], one[1])


@pytest.mark.usefixtures("restore_threads")
def test_dropout_is_the_same_for_any_number_of_threads():
    x = np.random.default_rng(0).standard_normal((24, 30, 9))
    results = []
    for threads in (1, 2, 3, 7):
        fg.set_num_threads(threads)
        layer = fg.LSTM(9, 33, 2, dropout=0.5, seed=1)
        output, _, tape = layer.forward(x, training=True)
        results.append((output, layer.backward(tape, np.ones_like(output))))
    for output, gradients in results[1:]:
        assert_same_bits("output", output, results[0][0])
        assert_same_gradients("gradients", gradients, results[0][1])


# -- Threads --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restore_threads")
def test_set_num_threads():
    fg.set_num_threads(3)
    assert fg.get_num_threads() == 3
    for bad in (0, -1, 1.5, "two", None):
        with pytest.raises((ValueError, TypeError), match="positive integer"):
            fg.set_num_threads(bad)
    assert fg.get_num_threads() == 3


# -- Dense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", naive.DENSE_ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "output_size"),
    [((4, 5, 7), 9), ((1, 33), 1), ((7,), 3), ((2, 3, 4, 1), 17), ((20, 16), 64)],
    ids=str,
)
def test_dense(activation, bias, shape, output_size):
    dense = fg.Dense(shape[-1], output_size, activation, bias=bias, seed=0)
    assert set(dense.parameters) == {"weight"} | ({"bias"} if bias else set())
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    d_output = rng.standard_normal((*shape[:-1], output_size)).astype(np.float32)
    weight = dense.parameters["weight"]
    vector = dense.parameters["bias"] if bias else np.zeros(output_size)
    expected = naive.dense(weight, vector, x, activation)
    check_output("dense(x)", dense(x), expected)
    output, tape = dense.forward(x)
    check_output("forward", output, expected)
    gradients = dense.backward(tape, d_output)
    d_x, d_weight, d_bias = naive.dense_backward(weight, vector, x, activation, d_output)
    # Differences cancel in softmax, and fully so with one class, so the floor is d_output's size.
    for name, actual, exact in (
        ("gradient of input", gradients.input, d_x),
        ("gradient of weight", gradients.parameters["weight"], d_weight),
        ("gradient of bias", gradients.parameters.get("bias", d_bias), d_bias),
    ):
        assert_close(name, actual, exact, GRADIENT_TOLERANCE, floor=0.1)
    assert gradients.initial_state is None


def test_dense_interface():
    dense = fg.Dense(3, 4, seed=0)
    x = np.ones((2, 3))
    output, tape = dense.forward(x)
    assert dense.backward(tape, output, input_gradient=False).input is None
    with pytest.raises(RuntimeError, match="tape"):
        dense.backward(tape, output)
    with pytest.raises(ValueError, match=r"x must have shape .*input_size=3.*\(2, 4\)"):
        dense(np.ones((2, 4)))
    with pytest.raises(ValueError, match="activation"):
        fg.Dense(3, 4, "elu")
    with pytest.raises(ValueError, match="read-only"):
        dense.parameters["weight"][...] = 0.0
    before = dense(x)
    with dense.edit_parameters() as parameters:
        parameters["weight"][...] *= 2.0
        parameters["bias"][...] *= 2.0
    np.testing.assert_array_equal(dense(x), 2.0 * before)
    other = fg.Dense(3, 4, seed=1)
    other.load_state_dict(dense.state_dict())
    assert_same_bits("output", other(x), dense(x))
    assert dense(np.ones((0, 3))).shape == (0, 4)
    with pytest.raises(ValueError, match="weight"):
        other.load_state_dict({"bias": np.zeros(4)})


@pytest.mark.parametrize("activation", naive.DENSE_ACTIVATIONS)
def test_dense_rows_do_not_depend_on_the_batch(activation):
    dense = fg.Dense(33, 21, activation, seed=0)
    x = np.random.default_rng(0).standard_normal((19, 33)).astype(np.float32)
    whole = dense(x)
    for row in range(19):
        assert_same_bits("a row", dense(x[row : row + 1]), whole[row : row + 1])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_tape_cannot_be_copied(copied):
    """Not even together with its layer: it holds addresses of its arrays."""
    layer = fg.GRU(3, 4, seed=0)
    _, _, tape = layer.forward(np.zeros((1, 2, 3)))
    with pytest.raises(TypeError, match="copied or pickled"):
        copied(tape)
    with pytest.raises(TypeError, match="copied or pickled"):
        copy.deepcopy((layer, tape))


def test_a_tape_without_a_copy_keeps_the_array_itself():
    layer = fg.GRU(3, 4, seed=0)
    x = np.ones((2, 5, 3), np.float32)
    output, _, copied = layer.forward(x)
    again, _, kept = layer.forward(x, copy=False)
    assert np.shares_memory(kept.inputs[0], x) and not np.shares_memory(copied.inputs[0], x)
    assert_same_gradients("gradients", layer.backward(kept, again), layer.backward(copied, output))
    model = fg.Sequential(fg.Dense(3, 3, seed=1), fg.GRU(3, 4, seed=0))
    _, _, tape = model.forward(x, copy=False)
    assert np.shares_memory(tape.steps[0].x, x)


def test_dropout_between_one_layer_is_worth_a_warning():
    with pytest.warns(UserWarning, match="with num_layers=1 it does nothing"):
        fg.GRU(2, 3, dropout=0.5)
