"""Modules in a row: the same as calling them one after the other, forward and backward."""

import copy
import pickle

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, normal

import fastgates as fg
from fastgates._parameters import split


def build(return_sequences=True):
    return fg.Sequential(
        fg.Scaling([1.0, -2.0, 0.5], [2.0, 0.5, 4.0]),
        fg.GRU(3, 6, bidirectional=True, seed=0),
        fg.Dense(12, 5, "tanh", seed=1),
        fg.LSTM(5, 4, num_layers=2, seed=2),
        fg.Dense(4, 2, seed=3),
        fg.Scaling([3.0, 0.0], [10.0, 0.1], inverse=True),
        return_sequences=return_sequences,
    )


def data(seed=0, batch=4, time=7):
    rng = np.random.default_rng(seed)
    return normal(rng, (batch, time, 3)), np.array([7, 3, 1, 5])


def by_hand(model, x, lengths):
    scale, gru, dense, lstm, readout, unscale = model.modules
    p = scale.parameters
    x = (x - p["mean"]) / p["scale"]
    x, first = gru(x, lengths=lengths)
    x, second = lstm(dense(x), lengths=lengths, return_sequences=model.return_sequences)
    p = unscale.parameters
    return readout(x) * p["scale"] + p["mean"], (first, second)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_call_and_forward(return_sequences, padded):
    model = build(return_sequences)
    x, lengths = data()
    lengths = lengths if padded else None
    expected, states = by_hand(model, x, lengths)
    if padded and return_sequences:
        expected[np.arange(7) >= lengths[:, None]] = 0
    output, final = model(x, lengths=lengths)
    assert_same_bits("output", output, expected)
    assert_same_bits("h of the GRU", final[0], states[0])
    assert_same_bits("c of the LSTM", final[1][1], states[1][1])
    again, final, tape = model.forward(x, lengths=lengths)
    assert_same_bits("output of forward", again, output)
    assert_same_bits("h of the LSTM", final[1][0], states[1][0])
    assert not again.flags.writeable and tape.nbytes > x.nbytes


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_gradients_by_central_differences(return_sequences, padded):
    model = build(return_sequences)
    x, lengths = data()
    lengths = lengths if padded else None
    rng = np.random.default_rng(1)
    start = (normal(rng, (2, 4, 6)) / 2, (normal(rng, (2, 4, 4)) / 2, normal(rng, (2, 4, 4)) / 2))
    output, final, tape = model.forward(x, start, lengths)
    d_output = normal(rng, output.shape)
    d_final = (normal(rng, (2, 4, 6)), (normal(rng, (2, 4, 4)), normal(rng, (2, 4, 4))))
    gradients = model.backward(tape, d_output, d_final)

    def loss():
        y, (h_1, (h_2, c_2)) = model(x, start, lengths)
        if padded and return_sequences:
            y = np.where((np.arange(7) >= lengths[:, None])[..., None], 0, y)
        pairs = [(y, d_output), (h_1, d_final[0]), (h_2, d_final[1][0]), (c_2, d_final[1][1])]
        return sum(float((a.astype(np.float64) * b).sum()) for a, b in pairs)

    def slope(array, index, step=2.0**-8):
        before, sides = array[index], []
        for sign in (1, -1):
            array[index] = before + np.float32(sign * step)
            model._changed()
            sides.append(loss())
        array[index] = before
        model._changed()
        return (sides[0] - sides[1]) / (2 * step)

    def check(name, array, gradient):
        places = [tuple(rng.integers(n) for n in array.shape) for _ in range(4)]
        expected = np.array([slope(array, place) for place in places])
        actual = np.array([gradient[place] for place in places])
        assert_close(name, actual, expected, 5e-3, floor=1.0)

    check("x", x, gradients.input)
    check("h of the GRU", start[0], gradients.initial_state[0])
    check("c of the LSTM", start[1][1], gradients.initial_state[1][1])
    for place, module in enumerate(model.modules):
        if module.trainable:
            name = f"{place}.{next(iter(module.parameters))}"
            check(name, split(model._vector, model._shapes)[name], gradients.parameters[name])
    assert gradients.parameter_vector.size == model.parameter_vector.size


def test_one_flat_vector():
    model = build()
    x, _ = data()
    sizes = [m.parameter_vector.size for m in model.modules if m.trainable]
    assert model.parameter_vector.size == sum(sizes)
    before, _ = model(x)
    with model.edit_parameters() as parameters:
        parameters.vector *= np.float32(0.5)
    after, _ = model(x)
    assert not np.array_equal(before, after)
    assert_same_bits("by hand", after, by_hand(model, x, None)[0])
    with model.modules[-2].edit_parameters() as parameters:  # a module is changed on its own
        parameters["bias"][:] = 7
    assert (model.parameters["4.bias"] == 7).all()
    assert_same_bits("by hand", model(x)[0], by_hand(model, x, None)[0])
    fg.Adam(model).step(model.backward(model.forward(x)[2], after))
    assert not (model.modules[-2].parameters["bias"] == 7).any()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(duplicate):
    model = build()
    x, _ = data()
    expected, _ = model(x)
    other = duplicate(model)
    assert_same_bits("output of the copy", other(x)[0], expected)
    with other.edit_parameters() as parameters:
        parameters.vector[:] = 0
    assert not other.modules[1].parameter_vector.any()
    assert_same_bits("output", model(x)[0], expected)


def test_state_dict():
    model, other = build(), build()
    with other.edit_parameters() as parameters:
        parameters.vector[:] = 0
    other.load_state_dict(model.state_dict())
    x, _ = data()
    assert_same_bits("output", other(x)[0], model(x)[0])
    assert {"0.mean", "1.weight_ih_l0_reverse", "5.scale"} <= set(model.state_dict())
    state = model.state_dict()
    state["4.weight"] = state["4.weight"][:, :1]
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"modules\[4\]: weight must have shape \(2, 4\)"):
        other.load_state_dict(state)
    for name, value in other.state_dict().items():
        assert_same_bits(name, value, before[name])
    with pytest.raises(ValueError, match=r"got \['9.weight'\]"):
        other.load_state_dict(before | {"9.weight": 1})


def test_batch_and_steps_change_no_bits():
    model = build()
    x, lengths = data()
    whole, _ = model(x, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, _ = model(x[row : row + 1, :length])
        assert_same_bits(f"row {row}", whole[row, :length], alone[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fg.Sequential(), "at least one recurrent layer, got none"),
        (lambda: fg.Sequential(fg.Dense(2, 3)), "at least one recurrent layer, got none"),
        (lambda: fg.Sequential(fg.GRU(2, 3), fg.Dense(4, 1)), "must take the 3 features"),
        (lambda: fg.Sequential(fg.GRU(2, 3), np.tanh), r"modules\[1\] must be a Scaling"),
        (lambda: fg.Sequential(*[fg.GRU(2, 2)] * 2), "got the same one twice"),
        (lambda: fg.Scaling([0.0], [0.0]), "no scale 0"),
        (lambda: fg.Scaling([np.nan], [1.0]), "mean must be finite"),
        (lambda: fg.Scaling([1.0], [1.0, 2.0]), r"scale must have shape \(size=1,\), got \(2,\)"),
        (lambda: build()(np.zeros((2, 3, 4))), r"input_size=3\), got \(2, 3, 4\)"),
        (lambda: build()(np.zeros((2, 3, 3)), [None]), "a list of 2 states"),
        (lambda: build().backward(build().forward(np.zeros((1, 1, 3)))[2]), "another one's"),
    ],
)
def test_errors(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_tape_is_used_once_and_for_these_parameters():
    model = build()
    x, _ = data()
    output, _, tape = model.forward(x)
    model.backward(tape, output)
    with pytest.raises(RuntimeError, match="used before"):
        model.backward(tape, output)
    _, _, tape = model.forward(x)
    with model.edit_parameters():
        pass
    with pytest.raises(RuntimeError, match="parameters changed"):
        model.backward(tape, output)


@pytest.mark.parametrize("wrong", [[np.zeros((1, 1, 4))], [np.zeros((1, 3, 4))] * 2])
def test_a_wrong_gradient_leaves_the_tape_unused(wrong):
    model = fg.Sequential(fg.GRU(2, 4, seed=0), fg.Dense(4, 1, seed=0), return_sequences=False)
    output, _, tape = model.forward(np.ones((3, 5, 2)))
    with pytest.raises(ValueError, match="d_final_state"):
        model.backward(tape, np.ones_like(output), wrong)
    model.backward(tape, np.ones_like(output))


def test_gradients_of_states_may_be_lists():
    model = fg.Sequential(fg.LSTM(2, 4, seed=0), return_sequences=False)
    d_state = [np.ones((1, 3, 4)), np.ones((1, 3, 4))]
    found = []
    for given in (d_state, tuple(d_state)):
        output, _, tape = model.forward(np.ones((3, 5, 2)))
        found.append(model.backward(tape, np.ones_like(output), [given]).parameter_vector)
    np.testing.assert_array_equal(*found)


def test_a_copy_is_a_model_of_its_own():
    layer = fg.GRU(2, 4, seed=0)
    x = np.ones((1, 3, 2))
    layer(x)
    other = copy.copy(layer)
    before = other(x)[0]
    with layer.edit_parameters() as parameters:
        parameters.vector[...] = 0
    np.testing.assert_array_equal(other(x)[0], before)
