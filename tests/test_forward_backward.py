"""Outputs and all gradients against the float64 reference, for every cell and option."""

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, make_problem, named_parts, parts
from hypothesis import given
from hypothesis import strategies as st

LAYOUTS = {
    "plain": {},
    "no-bias": {"bias": False},
    "zero-initial-state": {"initial_state": False},
    "two-layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "three-layers-bidirectional": {"num_layers": 3, "bidirectional": True, "bias": False},
    "lengths": {"lengths": True},
    "lengths-bidirectional": {"lengths": True, "bidirectional": True, "num_layers": 2},
    "resets": {"resets": True},
    "resets-bidirectional": {"resets": True, "bidirectional": True, "num_layers": 2},
    "everything": {
        "lengths": True,
        "resets": True,
        "bidirectional": True,
        "num_layers": 2,
        "bias": True,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_option(case, layout):
    make_problem(
        case, seed=1, batch=5, time=6, input_size=3, hidden_size=9, **LAYOUTS[layout]
    ).check()


@pytest.mark.parametrize(
    ("batch", "input_size", "hidden_size"),
    [
        (1, 1, 1),
        (2, 40, 2),
        (3, 2, 3),
        (4, 7, 4),
        (7, 8, 7),
        (8, 9, 8),
        (9, 15, 15),
        (11, 16, 16),
        (16, 17, 17),
        (1, 5, 31),
        (20, 31, 32),
        (13, 33, 33),
        (2, 3, 70),
        (17, 1, 64),
    ],
)
def test_sizes_around_the_lanes(case, batch, input_size, hidden_size):
    make_problem(
        case, seed=2, batch=batch, time=5, input_size=input_size, hidden_size=hidden_size
    ).check()


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_one_hundred_steps(case, bidirectional):
    make_problem(
        case,
        seed=3,
        batch=3,
        time=100,
        input_size=6,
        hidden_size=21,
        bidirectional=bidirectional,
    ).check()


@pytest.mark.parametrize("time", [1, 2, 3, 63, 64, 65])
def test_times(case, time):
    make_problem(case, seed=4, batch=2, time=time, input_size=4, hidden_size=10).check()


def test_gradient_from_the_output_only(case):
    problem = make_problem(case, seed=5, batch=4, time=6, lengths=True, bidirectional=True)
    problem.check(d_final_state=False)


def test_gradient_from_the_final_state_only(case):
    problem = make_problem(case, seed=6, batch=4, time=6, lengths=True, bidirectional=True)
    problem.check(d_output=False)


def test_gradient_from_one_array_of_a_pair():
    from helpers import CELLS

    case = next(case for case in CELLS if case.num_states == 2)
    problem = make_problem(case, seed=7)
    d_h, d_c = problem.d_final_state
    for kept in [(d_h, np.zeros_like(d_c)), (np.zeros_like(d_h), d_c)]:
        problem.d_final_state = kept
        problem.check(d_output=False)


def test_no_gradient_from_above_is_a_zero_gradient(case):
    problem = make_problem(case, seed=8)
    _, _, gradients = problem.run(d_output=False, d_final_state=False)
    arrays = [gradients.input, gradients.parameter_vector, *parts(gradients.initial_state)]
    assert not any(array.any() for array in arrays)


def test_input_gradient_can_be_left_out(case):
    problem = make_problem(case, seed=9, num_layers=2)
    _, _, expected = problem.run()
    _, _, tape = problem.layer.forward(problem.x, **problem.data)
    gradients = problem.layer.backward(
        tape, problem.d_output, problem.d_final_state, input_gradient=False
    )
    assert gradients.input is None
    np.testing.assert_array_equal(gradients.parameter_vector, expected.parameter_vector)
    for part, expected_part in zip(
        parts(gradients.initial_state), parts(expected.initial_state), strict=True
    ):
        np.testing.assert_array_equal(part, expected_part)


def test_gradients_are_central_differences_of_the_layer(case):
    """Along one random direction at a time, in float32: coarse, but it needs no reference."""
    problem = make_problem(
        case, seed=10, batch=3, time=8, input_size=4, hidden_size=5, lengths=True, resets=True
    )
    _, _, gradients = problem.run()
    rng = np.random.default_rng(0)

    def loss():
        output, final_state = problem.layer(problem.x, **problem.data)
        total = np.vdot(output.astype(np.float64), problem.d_output.astype(np.float64))
        for part, d_part in zip(parts(final_state), parts(problem.d_final_state), strict=True):
            total += np.vdot(part.astype(np.float64), d_part.astype(np.float64))
        return total

    def along(array, direction, step=2e-3):
        original = array.copy()
        array[...] = original + step * direction
        above = loss()
        array[...] = original - step * direction
        below = loss()
        array[...] = original
        return (above - below) / (2 * step)

    arrays = {"input": (problem.x, gradients.input)}
    for label, part, d_part in named_parts(problem.initial_state, gradients.initial_state):
        arrays[f"initial_state.{label}"] = part, d_part
    for name, (array, gradient) in arrays.items():
        for _ in range(3):
            direction = rng.standard_normal(array.shape)
            expected = along(array, direction)
            actual = np.vdot(gradient.astype(np.float64), direction)
            assert_close(name, [actual], [expected], 5e-3, floor=1.0)
    for name, gradient in gradients.parameters.items():
        direction = rng.standard_normal(gradient.shape)
        values = []
        for sign in (1.0, -1.0):
            with problem.layer.edit_parameters() as parameters:
                original = parameters[name].copy()
                parameters[name][...] = original + sign * 2e-3 * direction
            values.append(loss())
            with problem.layer.edit_parameters() as parameters:
                parameters[name][...] = original
        expected = (values[0] - values[1]) / 4e-3
        actual = np.vdot(gradient.astype(np.float64), direction)
        assert_close(name, [actual], [expected], 5e-3, floor=1.0)


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 20),
    time=st.integers(1, 9),
    input_size=st.integers(1, 40),
    hidden_size=st.integers(1, 70),
    num_layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    initial_state=st.booleans(),
    lengths=st.booleans(),
    resets=st.booleans(),
)
def test_any_size_and_option(case, **options):
    make_problem(case, **options).check(floor=0.02)


@pytest.mark.parametrize("time", [1, 4])
def test_without_the_gradient_of_the_initial_state(case, time):
    """Nothing else changes, also where sequences start from nothing."""
    for initial_state in (True, False):
        problem = make_problem(case, seed=5, time=time, initial_state=initial_state)
        _, _, all_of_them = problem.run()
        _, _, tape = problem.layer.forward(problem.x, **problem.data)
        some = problem.layer.backward(
            tape, problem.d_output, problem.d_final_state, initial_gradient=False
        )
        assert some.initial_state is None
        assert_same_bits("gradient of x", some.input, all_of_them.input)
        assert_same_bits("parameters", some.parameter_vector, all_of_them.parameter_vector)


def test_weight_gradients_of_one_step_without_a_state_are_zero(case):
    problem = make_problem(case, seed=6, time=1, initial_state=False)
    _, _, gradients = problem.run()
    assert not gradients.parameters["weight_hh_l0"].any()
    problem.check()
