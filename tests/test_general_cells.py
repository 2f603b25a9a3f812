"""Cells with functions to choose, clips, peepholes and coupled gates, against float64."""

import copy
import pickle
from dataclasses import dataclass

import naive
import numpy as np
import pytest
from helpers import (
    CellCase,
    assert_close,
    assert_same_bits,
    assert_same_gradients,
    assert_same_state,
    make_problem,
    normal,
)
from hypothesis import given
from hypothesis import strategies as st

import fastgates as fg
from fastgates import cells
from fastgates.cells._functions import FUNCTIONS

SOME = ("hard_sigmoid", 0.3, 0.4), ("scaled_tanh", 1.5, 0.7), ("softsign",)


@dataclass(frozen=True)
class GeneralCase(CellCase):
    """As `CellCase`, with the reference's class by name."""

    def reference(self, hidden_size):
        options = {n: v for n, v in self.options.items() if n not in ("peepholes", "nonlinearity")}
        if self.layer == "RNN":
            options["activations"] = [self.options.get("nonlinearity", "tanh")]
        return getattr(naive, f"General{self.layer}")(**options)

    @property
    def gates(self):
        return self.reference(1).gates

    @property
    def num_states(self):
        return 2 if self.layer == "LSTM" else 1


def case_of(layer, cell, **options):
    return GeneralCase("-".join([cell, *options]), cell, layer, options)


GENERAL = [
    case_of("RNN", "rnn_general", clip=0.6),
    case_of("RNN", "rnn_general", nonlinearity=("elu", 0.7)),
    case_of("GRU", "gru_general", activations=SOME[:2]),
    case_of("GRU", "gru_general", clip=0.5),
    case_of("GRU", "gru_reset_after_general", reset_after=True, activations=SOME[1:], clip=0.7),
    case_of("LSTM", "lstm_general", peepholes=True),
    case_of("LSTM", "lstm_general", activations=SOME, clip=0.4, peepholes=True),
    case_of("LSTM", "lstm_coupled", coupled=True),
    case_of("LSTM", "lstm_coupled", coupled=True, peepholes=True, clip=0.9),
]
LAYOUTS = {
    "plain": {},
    "sizes": {"batch": 17, "hidden_size": 33, "bias": False},
    "everything": {"lengths": True, "resets": True, "bidirectional": True, "num_layers": 2},
}


def random_layer(case, input_size=3, hidden_size=9, seed=0, **options):
    layer = case.build(input_size, hidden_size, seed=seed, **options)
    with layer.edit_parameters() as parameters:
        random = normal(np.random.default_rng(seed), parameters.vector.size)
        parameters.vector[:] = random * np.float32(0.8 / np.sqrt(hidden_size))
    return layer


def problem(case, seed=1, bidirectional=False, num_layers=1, bias=True, hidden_size=9, **options):
    layer = random_layer(
        case, 3, hidden_size, seed, bidirectional=bidirectional, num_layers=num_layers, bias=bias
    )
    return make_problem(
        case, seed, layer=layer, input_size=3, hidden_size=hidden_size, num_layers=num_layers,
        bidirectional=bidirectional, **options,
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", GENERAL, ids=str)
def test_against_the_reference(case, layout):
    made = problem(case, batch=LAYOUTS[layout].get("batch", 5), time=6,
                   **{n: v for n, v in LAYOUTS[layout].items() if n != "batch"})  # fmt: skip
    assert made.layer.cell.name == case.registered
    made.check()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function(name):
    """Over a wide range of arguments, through one step of one unit."""
    numbers = {0: (), 1: (0.7,), 2: (0.6, -0.3)}[len(FUNCTIONS[name])]
    layer = fg.RNN(1, 1, nonlinearity=(name, *numbers), seed=0, bias=False)
    layer.load_state_dict({"weight_ih_l0": [[1]], "weight_hh_l0": [[0]]})
    x = np.concatenate([np.linspace(-12, 12, 400), [-300, -1e-4, 1e-30, 300]]).astype(np.float32)
    y, _, tape = layer.forward(x[:, None, None])
    slope = layer.backward(tape, np.ones((x.size, 1, 1))).input.ravel()
    value, derivative = naive.FUNCTIONS[name]
    numbers = [float(np.float32(number)) for number in numbers]
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(y.ravel(), value(x.astype(float), *numbers), 1e-6, 1e-7)
        np.testing.assert_allclose(slope, derivative(x.astype(float), *numbers), 2e-6, 3e-7)
    bad = layer(np.full((1, 1, 1), np.nan))[0]
    assert np.isnan(bad).all()


@pytest.mark.parametrize(
    ("plain", "options"),
    [
        (fg.RNN(2, 5, nonlinearity="relu", seed=0), {"nonlinearity": "relu", "clip": 1e9}),
        (fg.RNN(2, 5, leak=0.3, seed=0), {"leak": 0.3, "clip": 1e9}),
        (fg.GRU(2, 5, seed=0), {"activations": ("sigmoid", "tanh")}),
        (fg.GRU(2, 5, reset_after=True, seed=0), {"reset_after": True, "clip": 1e9}),
        (fg.LSTM(2, 5, seed=0), {"clip": 1e9}),
    ],
    ids=str,
)
def test_the_same_as_the_plain_cells(plain, options):
    layer = type(plain)(2, 5, seed=0, **options)
    assert "general" in layer.cell.name
    assert_same_bits("parameters", layer.parameter_vector, plain.parameter_vector)
    x = normal(np.random.default_rng(0), (3, 9, 2))
    y, _, tape = layer.forward(x)
    expected, _, plain_tape = plain.forward(x)
    assert_close("output", y, expected, 1e-6)
    gradient = layer.backward(tape, y).parameter_vector
    assert_close("gradient", gradient, plain.backward(plain_tape, y).parameter_vector, 1e-5)


def test_peepholes_of_zero_are_none():
    layer = fg.LSTM(2, 5, peepholes=True, seed=0)
    assert layer.parameters["weight_peephole_l0"].shape == (15,)
    assert not layer.parameters["weight_peephole_l0"].any()
    x = normal(np.random.default_rng(0), (3, 9, 2))
    bare = fg.LSTM(2, 5, seed=0)
    bare.load_state_dict({n: layer.parameters[n] for n in bare.parameters})
    assert_same_bits("output", layer(x)[0], bare(x)[0])


@pytest.mark.usefixtures("restore_threads", "share_out_small_work")
def test_segments_and_threads_give_the_same_bits():
    case = GENERAL[6]
    layer = random_layer(case, 3, 40, bidirectional=True)
    rng = np.random.default_rng(2)
    x, resets = normal(rng, (20, 30, 3)), rng.random((20, 30)) < 0.1
    lengths = rng.integers(1, 31, 20)
    results = []
    for threads, segment in ((1, None), (2, None), (1, 7), (2, 1)):
        fg.set_num_threads(threads)
        y, final, tape = layer.forward(x, None, lengths, resets, segment=segment)
        results.append((y, final, layer.backward(tape, y, final)))
    for y, final, gradients in results[1:]:
        assert_same_bits("output", y, results[0][0])
        assert_same_state("final", final, results[0][1])
        assert_same_gradients("gradients", gradients, results[0][2])


def test_truncation_carries_peepholes():
    layer = random_layer(GENERAL[5])
    x = normal(np.random.default_rng(0), (2, 12, 3))
    whole, _ = layer(x)
    pieces = [piece.output for piece in fg.truncated_bptt(layer, x, 4, 8)]
    assert_same_bits("output", np.concatenate(pieces, axis=1), whole)


def test_functions_of_each_direction():
    both = fg.LSTM(2, 3, bidirectional=True, activations=[*SOME, "sigmoid", "relu", "elu"], seed=0)
    x = normal(np.random.default_rng(0), (2, 6, 2))
    y, _ = both(x)
    for direction, (functions, reverse) in enumerate(
        [(SOME, False), (("sigmoid", "relu", "elu"), True)]
    ):
        one = fg.LSTM(2, 3, activations=functions, reverse=reverse)
        end = "_reverse" if reverse else ""
        one.load_state_dict({n: both.parameters[n + end] for n in one.parameters})
        assert_same_bits("output", one(x)[0], y[..., 3 * direction : 3 * direction + 3])
    rnn = fg.RNN(2, 3, bidirectional=True, nonlinearity=["relu", ("elu", 0.5)], seed=0)
    assert rnn.activations == ("relu", ("elu", 0.5))


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("lengths", [None, [6, 2, 4]])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_reverse_alone(case, num_layers, lengths, return_sequences):
    """The reverse direction alone is the second half of a bidirectional layer."""
    layer = case.build(3, 5, num_layers, reverse=True, seed=0)
    x, current = normal(np.random.default_rng(0), (3, 6, 3)), None
    current = x
    for k in range(num_layers):
        both = case.build(current.shape[2], 5, bidirectional=True, seed=1)
        parameters = both.state_dict()
        for name in parameters:
            if name.endswith("_reverse"):
                parameters[name] = layer.parameters[name.replace("l0_reverse", f"l{k}")]
        both.load_state_dict(parameters)
        current = both(current, lengths=lengths)[0][..., 5:]
    output, final = layer(x, lengths=lengths, return_sequences=return_sequences)
    expected = current if return_sequences else current[:, 0]
    assert_same_bits("output", output, expected)
    y, _, tape = layer.forward(x, lengths=lengths)
    assert_same_bits("output of forward", y, current)
    assert layer.backward(tape, y).input.shape == x.shape


@given(
    functions=st.lists(st.sampled_from(list(FUNCTIONS)), min_size=3, max_size=3),
    clip=st.one_of(st.none(), st.floats(0.1, 3)),
    peepholes=st.booleans(),
    coupled=st.booleans(),
    sizes=st.tuples(*[st.integers(1, 20)] * 3),
    seed=st.integers(0, 99),
)
def test_any_lstm(functions, clip, peepholes, coupled, sizes, seed):
    options = {"activations": functions, "clip": clip, "coupled": coupled}
    case = GeneralCase("any", "any", "LSTM", options | {"peepholes": peepholes})
    time, hidden, batch = sizes
    made = problem(case, seed, hidden_size=hidden, batch=batch, time=min(time, 5))
    expected, _, _ = made.run_naive()
    output, _, gradients = made.run()
    # Unbounded functions grow, and kinks may be met on either side: outputs suffice here.
    assert_close("output", output, expected, 1e-5, floor=1.0)
    assert np.isfinite(gradients.parameter_vector).all()


def test_copies_and_pickles():
    layer = random_layer(GENERAL[6], bidirectional=True)
    x = normal(np.random.default_rng(0), (2, 6, 3))
    layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_bits("output", again(x)[0], layer(x)[0])


def test_coupled_gates_begin_as_open_as_others():
    layer = fg.LSTM(2, 3, coupled=True, forget_bias=2.0, seed=0)
    assert layer.parameters["weight_ih_l0"].shape == (9, 2)
    assert (layer.parameters["bias_ih_l0"][:3] == -2).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fg.LSTM(2, 3, activations=("tanh",)), "activations must be 3 functions, got 1"),
        (lambda: fg.LSTM(2, 3, activations=("a", "b", "c")), "an activation must be one of tanh, "),
        (lambda: fg.GRU(2, 3, activations="tanh"), "activations must be a sequence of functions"),
        (lambda: fg.GRU(2, 3, clip=0), "clip must be a positive number, got 0"),
        (lambda: fg.RNN(2, 3, nonlinearity=("elu", 1, 2)), "elu must have at most 1 finite"),
        (lambda: fg.RNN(2, 3, nonlinearity="cube"), "nonlinearity must be 'tanh' or 'relu', or"),
        (lambda: fg.SimplifiedGRU(2, 3, clip=1), "SimplifiedGRU has no option 'clip'"),
        (lambda: fg.Recurrent("gru", 2, 3, clip=1), "the functions of the cell gru are fixed"),
        (lambda: fg.Recurrent("gru_general", 2, 3, peepholes=True), "peepholes must be False"),
        (lambda: fg.GRU(2, 3, reverse=True, bidirectional=True), "reverse=True means the only"),
        (
            lambda: next(fg.truncated_bptt(fg.GRU(2, 3, reverse=True), np.zeros((1, 4, 2)), 2)),
            "got one with reverse=True",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_every_general_cell_is_tested_here():
    general = {name for name, cell in cells.registered().items() if cell.functions}
    assert general == {case.registered for case in GENERAL}
