"""Gradients with respect to the states after every step, against the float64 reference."""

import numpy as np
import pytest
from helpers import (
    CELLS,
    GRADIENT_TOLERANCE,
    assert_close,
    assert_same_bits,
    make_problem,
    named_parts,
    parts,
    take_rows,
)
from hypothesis import given
from hypothesis import strategies as st
from naive import backward, forward

import fastgates as fg


def reference(problem, d_output, d_final_state):
    """The gradients of the states, each (layers * directions, B, T, H) of float64."""
    layer = problem.layer
    _, _, tape = forward(
        problem.case.reference(layer.hidden_size),
        layer.parameters,
        problem.x,
        num_layers=layer.num_layers,
        num_directions=layer.num_directions,
        **problem.data,
    )
    backward(tape, d_output, d_final_state)
    return parts(tape.d_states)


def state_gradients(problem, segment=None):
    _, _, tape = problem.layer.forward(problem.x, **problem.data, segment=segment)
    return problem.layer.backward(
        tape, problem.d_output, problem.d_final_state, state_gradients=True
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"time": 1},
        {"lengths": True, "resets": True, "batch": 5},
        {"num_layers": 2, "bidirectional": True, "lengths": np.array([7, 2, 4, 4]), "batch": 4},
        {"num_layers": 3, "hidden_size": 17, "resets": True},
    ],
    ids=["plain", "one step", "lengths and resets", "both directions", "stack"],
)
def test_against_the_reference(case, options):
    problem = make_problem(case, **options)
    expected = reference(problem, problem.d_output, problem.d_final_state)
    for name, a, e in named_parts(state_gradients(problem).states, expected):
        assert_close(f"gradient of {name}", a, e, GRADIENT_TOLERANCE)


def test_other_gradients_are_the_same_bits(case):
    problem = make_problem(case, num_layers=2, lengths=True, resets=True, batch=5)
    _, _, plain = problem.run()
    assert plain.states is None
    for segment in (None, 3):
        gradients = state_gradients(problem, segment)
        assert_same_bits("parameters", gradients.parameter_vector, plain.parameter_vector)
        assert_same_bits("input", gradients.input, plain.input)
        for a, e in zip(parts(gradients.initial_state), parts(plain.initial_state), strict=True):
            assert_same_bits("initial state", a, e)


def test_a_model_has_them_for_each_recurrent_layer():
    first, second = fg.LSTM(3, 4, seed=0), fg.GRU(4, 5, seed=1)
    model = fg.Sequential(first, second, fg.Dense(5, 2, seed=2), return_sequences=False)
    x = np.random.default_rng(0).standard_normal((2, 6, 3))
    output, _, tape = model.forward(x)
    gradients = model.backward(tape, np.ones_like(output), state_gradients=True)
    (d_h, d_c), d_gru = gradients.states
    assert d_h.shape == d_c.shape == (1, 2, 6, 4) and d_gru.shape == (1, 2, 6, 5)
    readout = np.ones((2, 2)) @ model.modules[2].parameters["weight"]
    assert_close("last step", d_gru[0, :, -1], readout, GRADIENT_TOLERANCE)


def test_nothing_to_go_through():
    layer = fg.GRU(2, 3, seed=0)
    _, _, tape = layer.forward(np.zeros((2, 0, 2)))
    assert layer.backward(tape, state_gradients=True).states.shape == (1, 2, 0, 3)


@given(
    case=st.sampled_from(CELLS),
    seed=st.integers(0, 99),
    hidden_size=st.integers(1, 20),
    time=st.integers(1, 9),
    bidirectional=st.booleans(),
)
def test_a_row_has_the_same_bits_alone(case, seed, hidden_size, time, bidirectional):
    problem = make_problem(
        case,
        seed,
        batch=4,
        time=time,
        hidden_size=hidden_size,
        bidirectional=bidirectional,
        lengths=True,
        resets=True,
    )
    whole = parts(state_gradients(problem).states)
    row = slice(seed % 4, seed % 4 + 1)
    for name in ("x", "d_output", "lengths", "resets"):
        setattr(problem, name, getattr(problem, name)[row])
    problem.initial_state = take_rows(problem.initial_state, row)
    problem.d_final_state = take_rows(problem.d_final_state, row)
    for name, a, e in named_parts(state_gradients(problem).states, whole):
        assert_same_bits(f"gradient of {name}", a, e[:, row])
