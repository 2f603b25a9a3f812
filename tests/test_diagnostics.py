"""Diagnostics: profiles, Jacobians and gates against the float64 reference, and what is said."""

import math

import naive
import numpy as np
import pytest
from helpers import GRADIENT_TOLERANCE, as_state, assert_close, make_problem, normal, parts
from test_state_gradients import reference

import fastgates as fg
from fastgates.cells._functions import FUNCTIONS
from fastgates.diagnostics import (
    RESOLUTION,
    GradientMonitor,
    examine,
    gate_openings,
    gradient_profile,
    step_jacobians,
)
from fastgates.diagnostics import jacobians as jacobians_module


def linear(factor, hidden_size=4, **options):
    """A layer of relu units whose state is multiplied by `factor` at each step."""
    layer = fg.RNN(1, hidden_size, nonlinearity="relu", bias=False, seed=0, **options)
    with layer.edit_parameters() as parameters:
        parameters["weight_ih_l0"][...] = 1
        parameters["weight_hh_l0"][...] = factor * np.eye(hidden_size)
    return layer


ONES = np.ones((3, 60, 1))


# -- The profile ----------------------------------------------------------------------------------


def test_norms_are_those_of_the_reference(case):
    problem = make_problem(
        case, batch=4, num_layers=2, bidirectional=True, lengths=np.array([7, 3, 5, 7])
    )
    profile = gradient_profile(problem.layer, problem.x, d_output=problem.d_output, **problem.data)
    expected = reference(problem, problem.d_output, None)
    outside = np.arange(7) >= problem.lengths[:, None]
    assert len(profile.layers) == 4
    for place, layer in enumerate(profile.layers):
        for state, d_state in zip(layer.by_state.values(), expected, strict=True):
            norms = np.linalg.norm(d_state[place], axis=-1)
            assert np.isnan(state[outside]).all()
            assert_close("norm", state[~outside], norms[~outside], GRADIENT_TOLERANCE)
        joint = np.sqrt(sum(np.square(d[place]).sum(axis=-1) for d in expected))
        assert_close("joint norm", layer.norms[~outside], joint[~outside], GRADIENT_TOLERANCE)
        assert profile.at_every_step


def test_lags_count_from_where_a_row_ends():
    layer = fg.GRU(2, 3, num_layers=1, bidirectional=True, seed=0)
    x = normal(np.random.default_rng(0), (2, 5, 2))
    resets = np.zeros((2, 5), bool)
    resets[0, 3] = True
    profile = gradient_profile(layer, x, lengths=[5, 2], resets=resets)
    forward, reverse = profile.layers
    # Row 0 ends at step 4 and begins at 3; row 1 ends at step 1. In reverse both end at step 0.
    mean = math.sqrt((forward.norms[0, 4] ** 2 + forward.norms[1, 1] ** 2) / 2)
    assert math.isclose(forward.by_lag[0], mean) and forward.window == 2
    mean = math.sqrt((reverse.norms[0, 0] ** 2 + reverse.norms[1, 0] ** 2) / 2)
    assert math.isclose(reverse.by_lag[0], mean)
    assert math.isclose(reverse.by_lag[2], reverse.norms[0, 2]) and reverse.window == 3


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1])
def test_rate_of_a_linear_layer_is_known(factor):
    profile = gradient_profile(linear(factor), ONES)
    (layer,) = profile.layers
    assert math.isclose(layer.decades_per_step, math.log10(factor), abs_tol=1e-6)
    if factor < 1:
        expected = math.log(RESOLUTION) / math.log(factor)  # 24 or 158 steps
        assert abs(layer.reach - expected) <= 1
    assert not profile.at_every_step


@pytest.mark.parametrize(
    "factor, kind, words",
    [
        (0.5, "vanishes", ("falls by 1e-3 every 10 steps", "past about 25 steps", "gated cell")),
        (0.97, "carries", ("falls by a factor of 6.03 over the 60 steps",)),
        (1.0, "carries", ("gets through",)),
        (1.5, "explodes", ("grows by 2e10", "every 17 steps", "clip")),
        (9.0, "explodes", ("beyond float32", "clip")),
    ],
)
def test_verdict_in_plain_words(factor, kind, words):
    found = examine(linear(factor), 1e-25 * ONES)  # the output stays finite at any factor
    assert found.profile.layers[0].kind == kind
    for word in words:
        assert word in found.verdict, found.verdict
    assert found.verdict in found.text()


def test_advice_fits_the_cell():
    x = normal(np.random.default_rng(0), (2, 300, 3))
    assert "chrono" in examine(fg.GRU(3, 8, seed=0), x).verdict
    assert "raise the leak" in examine(fg.RNN(3, 8, leak=0.1, seed=0), x).verdict


def test_shares_below_resolution():
    profile = gradient_profile(linear(0.5), np.ones((2, 200, 1)))
    (layer,) = profile.layers
    assert layer.lost == 175 / 200  # 2^-24 is still the resolution
    assert 0.35 < layer.underflow < 0.4  # 2^-126 and what the read-out's direction takes away
    assert "below the resolution" in profile.text()
    assert set(profile.parameters) == {"weight_ih_l0", "weight_hh_l0"}
    dead = gradient_profile(linear(0.5), -ONES)
    assert dead.parameters["weight_hh_l0"] == 1 and dead.layers[0].lost == 59 / 60


@pytest.mark.parametrize("return_sequences", [True, False])
def test_the_default_loss_is_the_last_output(return_sequences):
    def build():
        return fg.Sequential(
            fg.Scaling([0.0, 1.0], [1.0, 2.0]),
            fg.LSTM(2, 4, seed=0),
            fg.Dense(4, 3, "softmax", seed=1),
            return_sequences=return_sequences,
        )

    x = normal(np.random.default_rng(0), (3, 6, 2))
    lengths = np.array([6, 2, 4])
    model = build()
    profile = gradient_profile(model, x, lengths=lengths)
    assert profile.layers[0].by_lag[0] > 1e-3 and not profile.at_every_step
    _, states, tape = model.forward(x, lengths=lengths)
    logits, dense_tape = model.modules[2].forward(states[0][0][-1])
    direction = np.random.default_rng(0).standard_normal(3)
    direction /= 3 * np.linalg.norm(direction)
    d_last = model.modules[2].backward(dense_tape, np.tile(direction, (3, 1))).input
    norms = np.linalg.norm(d_last.astype(np.float64), axis=1)
    last = profile.layers[0].by_state["h"][np.arange(3), lengths - 1]
    assert_close("norms at the ends", last, norms, GRADIENT_TOLERANCE)
    assert math.isclose(profile.loss, float((logits @ direction).sum()), rel_tol=1e-5)


def test_a_target_and_a_loss():
    layer = fg.GRU(2, 3, seed=0)
    x, y = normal(np.random.default_rng(0), (2, 6, 2)), np.zeros((2, 6, 3))
    profile = gradient_profile(layer, x, y)
    loss, d_output = fg.mse(layer(x)[0], y)
    assert profile.loss == loss and profile.at_every_step
    given = gradient_profile(layer, x, d_output=d_output)
    np.testing.assert_array_equal(given.layers[0].norms, profile.layers[0].norms)
    assert math.isnan(given.loss) and given.gradient_norm == profile.gradient_norm > 0
    assert "what arrives" in profile.text()
    other = gradient_profile(layer, x, y, loss=lambda o, t: (1.5, np.zeros(o.shape)))
    assert other.loss == 1.5 and "zero, or not finite" in other.text()


# -- Jacobians ------------------------------------------------------------------------------------


def reference_jacobian(problem, index, step):
    """The step's Jacobian (N * H, N * H) in float64, of row 0."""
    layer = problem.layer
    _, _, tape = naive.forward(
        problem.case.reference(layer.hidden_size),
        layer.parameters,
        problem.x,
        num_layers=layer.num_layers,
        num_directions=layer.num_directions,
        **problem.data,
    )
    place, direction = divmod(index, layer.num_directions)
    p = naive.parameters_of(layer.parameters, place, direction)
    hidden, count = layer.hidden_size, tape.cell.num_states
    rows = []
    for unit in np.eye(count * hidden):
        d_p = naive.Parameters(*(np.zeros_like(a) for a in (p.U, p.W, p.b_ih, p.b_hh)))
        saved = tape.saved[place, direction, 0, step]
        _, old = tape.cell.step_backward(p, saved, tuple(np.split(unit, count)), d_p)
        rows.append(np.concatenate(old))
    return np.array(rows)


@pytest.mark.parametrize("initial_state", [True, False])
def test_jacobians_of_every_cell(case, initial_state):
    resets = np.zeros((3, 7), bool)
    resets[0, 4] = True
    problem = make_problem(
        case,
        num_layers=2,
        bidirectional=True,
        lengths=np.array([6, 7, 2]),
        resets=resets,
        initial_state=initial_state,
    )
    found = step_jacobians(problem.layer, problem.x, **problem.data)
    assert len(found.layers) == 4
    for index, layer in enumerate(found.layers):
        assert layer.steps.tolist() == [0, 1, 2, 3, 4, 5]
        for step in (0, 3, 4, 5):
            expected = reference_jacobian(problem, index, step)
            assert_close("Jacobian", layer.matrices[step], expected, GRADIENT_TOLERANCE)
            values = np.linalg.svd(expected, compute_uv=False)
            assert_close("singular values", layer.singular_values[step], values, 1e-4)
            radius = np.abs(np.linalg.eigvals(expected)).max()
            assert abs(layer.spectral_radius[step] - radius) < 1e-3 * max(radius, 1)
    assert "spectral radius" in found.text()


def test_jacobians_at_some_steps_of_a_long_row():
    layer = linear(0.8, hidden_size=3)
    found = step_jacobians(layer, np.ones((2, 1000, 1)), row=1, most_steps=5)
    (jacobians,) = found.layers
    assert jacobians.steps.tolist() == [0, 250, 500, 749, 999]
    assert_close("Jacobians", jacobians.matrices, np.tile(0.8 * np.eye(3), (5, 1, 1)), 1e-6)
    assert_close("radius", jacobians.spectral_radius, np.full(5, 0.8), 1e-6)


def test_jacobians_in_several_batches(monkeypatch):
    layer, x = fg.LSTM(2, 3, seed=0), normal(np.random.default_rng(0), (1, 9, 2))
    whole = step_jacobians(layer, x).layers[0].matrices
    monkeypatch.setattr(jacobians_module, "_MOST_ROWS", 13)
    np.testing.assert_array_equal(step_jacobians(layer, x).layers[0].matrices, whole)


# -- Gates ----------------------------------------------------------------------------------------


def test_gates_of_the_reference(case):
    problem = make_problem(case, lengths=np.array([7, 3, 5]))
    (found,) = gate_openings(problem.layer, problem.x, **problem.data).layers
    names = {"SimplifiedGRU": "f", "GRU": "rz", "LSTM": "ifo", "RNN": ""}[case.layer]
    assert set(found.openings) == set(names)
    if names:
        _, _, tape = naive.forward(
            case.reference(6), problem.layer.parameters, problem.x, **problem.data
        )
        places = {
            "SimplifiedGRU": {"f": 2},
            "GRU": {"r": 2, "z": 3},
            "LSTM": {"i": 3, "f": 4, "o": 6},
        }
        for name, place in places[case.layer].items():
            for b, length in enumerate(problem.lengths):
                values = found.openings[name][b]
                assert np.isnan(values[length:]).all()
                expected = [tape.saved[0, 0, b, t][place] for t in range(length)]
                assert_close(name, values[:length], np.array(expected), 1e-6)
        valve = found.openings[found.valve].astype(np.float64)
        np.testing.assert_allclose(found.memory, 1 / (1 - np.nanmean(valve, axis=(0, 1))))
    elif "leak" in case.id:
        leak = np.asarray(case.layer_options(6)["leak"], np.float32).astype(np.float64)
        np.testing.assert_allclose(found.memory, np.broadcast_to(1 / (1 - leak), 6))
    else:
        assert found.valve is None and found.memory is None and "no valve" in found.text()


def test_pure_memory_lasts_for_ever():
    (found,) = gate_openings(fg.RNN(1, 3, leak=1.0, seed=0), ONES).layers
    assert np.isinf(found.memory).all() and "infinitely many" in found.text()


def test_saturation():
    layer = fg.LSTM(1, 4, forget_bias=20.0, seed=0)
    (found,) = gate_openings(layer, ONES).layers
    assert found.saturation("f") == (0, 1) and found.memory.min() > 1e6
    assert "f is shut in 0% and open in 100%" in found.text()


# -- Whole models, figures, training --------------------------------------------------------------


def test_a_cell_of_ones_own():
    import toy_cell  # noqa: F401  (registers itself)

    layer = fg.Recurrent("coupled_lstm", 2, 3, seed=0)
    found = examine(layer, normal(np.random.default_rng(0), (2, 5, 2)))
    assert found.gates.layers[0].valve == "f" and found.profile.layers[0].name == "coupled_lstm"


GENERAL = [
    fg.LSTM(2, 3, peepholes=True, bidirectional=True, seed=0),
    fg.LSTM(2, 3, num_layers=2, clip=0.5, activations=["sigmoid", "relu", "tanh"], seed=0),
    fg.LSTM(2, 3, bidirectional=True, activations=["sigmoid", "tanh", "tanh"] * 2, seed=0),
    fg.Recurrent("lstm_coupled", 2, 3, seed=0),
    fg.Recurrent("gru_general", 2, 3, activations=["hard_sigmoid", "softsign"], seed=0),
    fg.Recurrent("gru", 2, 3, reverse=True, seed=0),
]


@pytest.mark.parametrize("layer", GENERAL, ids=repr)
def test_jacobians_are_differences_of_states(layer):
    """Central differences, for cells with options that the reference does not have."""
    x = normal(np.random.default_rng(0), (1, 4, 2))
    found = step_jacobians(layer, x)
    for index, jacobians in enumerate(found.layers):
        direction = layer._directions[index]
        alone = jacobians_module._alone(layer, direction)
        tape = layer.forward(x)[2]
        inputs = tape.inputs[index // layer.num_directions]
        step = 0 if direction.reverse else 3
        past = inputs[:, :0:-1] if direction.reverse else inputs[:, :3]
        states = np.stack(parts(alone(past)[1]))  # (N, 1, 1, H)
        columns = []
        for place in np.ndindex(states.shape):
            moved = []
            for sign in (1, -1):
                changed = states.copy()
                changed[place] += sign * 1e-2
                state = alone(inputs[:, step : step + 1], as_state(list(changed)))[1]
                moved.append(np.stack(parts(state)).ravel())
            columns.append((moved[0] - moved[1]) / 2e-2)
        assert_close("Jacobian", jacobians.matrices[step], np.stack(columns, axis=1), 2e-3, 1.0)


def test_the_last_step_of_a_reverse_layer_is_the_first():
    layer = GENERAL[-1]
    profile = gradient_profile(layer, np.ones((2, 5, 2)), lengths=[5, 3])
    (found,) = profile.layers
    assert found.name == "GRU reverse" or found.name == "gru reverse"
    assert not profile.at_every_step
    assert (np.diff(found.norms[0]) < 0).all() and (np.diff(found.norms[1, :3]) < 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gates_with_functions_of_choice(name):
    """The opening is the function of the pre-activation: that of a layer without weights on h."""
    layer = fg.LSTM(1, 1, activations=[name, "tanh", "tanh"], clip=1.5, bias=False, seed=0)
    with layer.edit_parameters() as parameters:
        parameters["weight_hh_l0"][...] = 0
        parameters["weight_ih_l0"][...] = 1
    x = np.linspace(-3, 3, 13, dtype=np.float32)[None, :, None]
    (found,) = gate_openings(layer, x).layers
    state = np.zeros((1, 13, 1)), np.ones((1, 13, 1))  # c' = f + i tanh(x) with i = f
    _, (_, c) = layer(x.transpose(1, 0, 2), state)
    squashed = np.tanh(np.clip(x[0, :, 0].astype(np.float64), -1.5, 1.5))
    assert_close(name, found.openings["f"][0, :, 0] * (1 + squashed), c[0, :, 0], 1e-5)


def test_memory_of_coupled_gates():
    (found,) = gate_openings(fg.Recurrent("lstm_coupled", 1, 3, seed=0), ONES).layers
    opening = found.openings["i"].astype(np.float64)
    assert (opening > 0).all() and (opening < 1).all()
    np.testing.assert_allclose(found.memory, 1 / opening.mean(axis=(0, 1)))
    assert "(1 / (1 - (1 - i)))" in found.text()


class Wrapped:
    def __init__(self, network):
        self.network = network

    def to_sequential(self):
        return self.network


def test_layers_of_a_model_are_named():
    model = fg.Sequential(
        fg.GRU(2, 3, num_layers=2, bidirectional=True, seed=0),
        fg.Dense(6, 2, "tanh", seed=1),
        fg.LSTM(2, 3, seed=2),
    )
    found = examine(Wrapped(model), normal(np.random.default_rng(0), (2, 5, 2)))
    names = [layer.name for layer in found.profile.layers]
    assert names == [layer.name for layer in found.gates.layers]
    assert names == [layer.name for layer in found.jacobians.layers]
    assert names[0] == "module 0, GRU layer 0 forward" and names[-1] == "module 2, LSTM"


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    model = fg.Sequential(fg.GRU(2, 4, seed=0), fg.RNN(4, 3, seed=1))
    x = normal(np.random.default_rng(0), (2, 30, 2))
    found = examine(model, x)
    monitor = GradientMonitor(x)
    for epoch in (0, 1, 2):
        monitor.measure(model, epoch)
    for name, result in (
        ("all", found),
        ("profile", found.profile),
        ("jacobians", found.jacobians),
        ("gates", found.gates),
        ("monitor", monitor),
    ):
        figure = result.figure(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
        assert len(figure.axes) == len(result.figure().axes) >= 1


def test_a_monitor_keeps_profiles():
    layer = fg.LSTM(2, 3, seed=0)
    monitor = GradientMonitor(np.ones((2, 9, 2)), lengths=[9, 4], every=2)
    assert "nothing" in monitor.text()
    with pytest.raises(ValueError, match="nothing was measured"):
        monitor.figure()
    monitor.measure(layer, 0)
    monitor.measure(layer, 2)
    assert monitor.epochs == [0, 2]
    assert monitor.text().startswith("after epoch 0: LSTM: ")


def sequences():
    rng = np.random.default_rng(0)
    x = 3 + 2 * normal(rng, (12, 15, 2))
    return fg.Sequences(x, x.mean(axis=(1, 2), keepdims=True)[:, 0], lengths=[15] * 10 + [4, 7])


def test_the_loss_of_a_training():
    data = sequences()
    model = fg.SequenceModel.build("lstm", 2, 1, 4, loss="huber", seed=0)
    model.fit_scaling(model.check(data))
    profile = gradient_profile(model, data)
    loss, gradients, _ = model.gradients(model.check(data), training=False)
    assert profile.loss == loss and not profile.at_every_step
    norm = np.linalg.norm(gradients.parameter_vector.astype(np.float64))
    assert math.isclose(profile.gradient_norm, norm, rel_tol=1e-6)
    assert np.isnan(profile.layers[0].norms[-1, 7:]).all()


def finite_difference(loss, states, unit=1e-2):
    """Slopes of the loss by each number of an initial state (1, 1, H), the rest fixed."""
    slopes = np.empty(states.shape[-1])
    for k in range(slopes.size):
        change = np.zeros_like(states)
        change[..., k] = unit
        slopes[k] = (loss(states + change) - loss(states - change)) / (2 * unit)
    return slopes


def test_a_free_run_through_its_loop():
    rng = np.random.default_rng(0)
    y, x = normal(rng, (1, 9, 1)), normal(rng, (1, 9, 2))
    model = fg.FreeRunModel.build("gru", 1, 2, 3, context=3, initial_state="given", seed=0)
    start = (0.5 * normal(rng, (1, 1, 3)),)
    data = fg.Sequences(x, y, initial_state=start)
    profile = gradient_profile(model, data)
    (layer,) = profile.layers
    assert layer.norms.shape == (1, 8) and profile.loss == model.evaluate(model.check(data))
    # The state after the steps of the context, moved by hand: what follows is a free run.
    network = model.network
    _, states = network(np.concatenate([y[:, :3], x[:, 1:4]], axis=-1), start)

    def loss(state):
        run, prediction = (state,), network.modules[1](state[0])[:, None]
        total = [prediction[0, 0, 0]]
        for t in range(4, 9):
            inputs = np.concatenate([prediction, x[:, t : t + 1]], axis=-1)
            prediction, run = network(inputs, run)
            total.append(prediction[0, 0, 0])
        return float(np.mean(np.square(np.array(total, np.float64) - y[0, 3:, 0])))

    slopes = finite_difference(loss, states[0])
    assert_close("norm", layer.norms[0, 2], np.linalg.norm(slopes), 1e-2)


def test_an_encoder_and_its_decoder():
    rng = np.random.default_rng(0)
    x, y = normal(rng, (4, 9, 2)), normal(rng, (4, 3, 1))
    model = fg.EncoderDecoder.build("lstm", 2, 1, 3, hidden_size=4, seed=0)
    profile = gradient_profile(model, fg.Sequences(x, y, lengths=[9, 5, 9, 2]))
    assert [layer.name for layer in profile.layers] == ["encoder, LSTM", "decoder, LSTM"]
    encoder, decoder = profile.layers
    assert encoder.norms.shape == (4, 9) and decoder.norms.shape == (4, 3)
    assert np.isnan(encoder.norms[1, 5:]).all() and np.isfinite(decoder.norms).all()
    # Nothing is read from the encoder but its last state.
    assert encoder.window == 9 and (encoder.norms[0] > 0).all()


def test_a_monitor_watches_a_training():
    data = sequences()
    model = fg.SequenceModel.build("gru", 2, 1, 4, seed=0)
    last, whole = GradientMonitor(data.x[:3], every=2), GradientMonitor(data)
    trainer = fg.Trainer(model, max_epochs=4, batch_size=6, callbacks=[last, whole], seed=0)
    trainer.fit(data)
    assert last.epochs == [0, 2, 4] and whole.epochs == [0, 1, 2, 3, 4]
    assert whole.profiles[-1].loss == model.evaluate(model.check(data))
    # Watching changes nothing.
    alone = fg.SequenceModel.build("gru", 2, 1, 4, seed=0)
    fg.Trainer(alone, max_epochs=4, batch_size=6, seed=0).fit(data)
    np.testing.assert_array_equal(alone.parameter_vector, model.parameter_vector)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: gradient_profile(3, ONES), TypeError, "model must be"),
        (lambda: gradient_profile(linear(1), np.ones((2, 0, 1))), ValueError, "at least one"),
        (lambda: gradient_profile(linear(1), np.ones((0, 2, 1))), ValueError, "at least one"),
        (lambda: gradient_profile(linear(1), np.ones((2, 3, 2))), ValueError, "input_size=1"),
        (
            lambda: gradient_profile(linear(1), ONES, ONES, d_output=ONES),
            ValueError,
            "target or d_output",
        ),
        (lambda: step_jacobians(linear(1), ONES, row=3), ValueError, "0 to 2"),
        (lambda: step_jacobians(linear(1), ONES, most_steps=0), ValueError, "most_steps"),
        (lambda: GradientMonitor(ONES, every=0), ValueError, "every"),
        (lambda: gradient_profile(linear(1), fg.Sequences(ONES, ONES)), TypeError, "SequenceModel"),
        (
            lambda: gradient_profile(linear(1), fg.Sequences(ONES, ONES), ONES),
            ValueError,
            "nothing else",
        ),
    ],
)
def test_wrong_use(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_another_device_is_refused(monkeypatch):
    layer, model = fg.GRU(1, 2, seed=0), fg.Sequential(fg.GRU(1, 2, seed=0))
    for module in (layer, model):
        _, _, tape = module.forward(ONES)
        monkeypatch.setattr(module, "_device", "cuda")
        with pytest.raises(ValueError, match="model must be on the CPU"):
            examine(module, ONES)
        with pytest.raises(ValueError, match="state_gradients must be False"):
            module.backward(tape, state_gradients=True)


def test_one_step_says_nothing():
    found = examine(fg.GRU(1, 3, seed=0), np.ones((2, 1, 1)))
    assert "one step" in found.verdict


def test_numbers_that_are_not_finite_are_no_question_of_gradients():
    layer, x = fg.GRU(2, 3, seed=0), np.ones((2, 4, 2))
    x[1, 3] = np.nan
    with pytest.raises(ValueError, match="x must be finite"):
        fg.diagnostics.examine(layer, x)
    fg.diagnostics.examine(layer, x, lengths=[4, 3])
    with layer.edit_parameters() as parameters:
        parameters.vector[0] = np.inf
    with pytest.raises(ValueError, match="parameters of the model must be finite"):
        fg.diagnostics.examine(layer, np.ones((2, 4, 2)))
