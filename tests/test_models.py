"""Models: exact gradients of all parameters, prediction as deployed, scaling, errors."""

import copy
import pickle

import numpy as np
import pytest
from helpers import CELLS, assert_close, parts

import fastgates as fg
from fastgates._tables import DataError
from fastgates.losses import Loss
from fastgates.models import EncoderDecoder, FreeRunModel, SequenceModel

N, T, C, H = 5, 7, 3, 6
LENGTHS = np.array([7, 2, 5, 7, 4])


def rng(seed=0):
    return np.random.default_rng(seed)


def data(kind="many_to_many", targets=2, lengths=None, **more):
    random = rng(1)
    x = random.standard_normal((N, T, C)) * 2 + 1
    shape = {"many_to_many": (N, T, targets), "many_to_one": (N, targets)}[kind]
    return fg.Sequences(x, random.standard_normal(shape) * 3 - 5, lengths=lengths, **more)


def prepared(model, sequences):
    sequences = model.check(sequences)
    model.fit_scaling(sequences)
    return sequences


def with_weights(model, vector):
    with model.edit_parameters() as parameters:
        parameters.vector[...] = vector


def assert_gradient(model, sequences, tolerance=2e-3):
    """The derivative along random directions, from central differences, for each part."""
    sequences = prepared(model, sequences)
    _, gradients, _ = model.gradients(sequences, training=False)
    vector = model.parameter_vector.copy()
    gradient = gradients.parameter_vector.astype(np.float64)
    start = 0
    for place, (name, value) in enumerate(model.parameters.items()):
        direction = np.zeros_like(vector)
        part = slice(start, start + value.size)
        direction[part] = rng(place).standard_normal(value.size)
        direction *= np.float32(3e-3 / np.sqrt(np.mean(direction[part] ** 2)))
        losses = []
        for sign in (1, -1):
            with_weights(model, vector + sign * direction)
            losses.append(model.gradients(sequences, training=False)[0])
        with_weights(model, vector)
        numeric = (losses[0] - losses[1]) / 2
        exact = gradient @ direction
        scale = np.linalg.norm(gradient[part]) * np.linalg.norm(direction) + 1e-6
        assert abs(numeric - exact) < tolerance * scale, (name, numeric, exact)
        start += value.size


STATES = ["zero", "learned", "estimated"]


@pytest.mark.parametrize("kind", ["many_to_many", "many_to_one"])
@pytest.mark.parametrize("initial_state", STATES)
def test_gradients_of_a_sequence_model(kind, initial_state):
    model = SequenceModel.build(
        "lstm", C, 2, H, 2, return_sequences=kind == "many_to_many", seed=0,
        initial_state=initial_state, estimation_steps=3,
    )  # fmt: skip
    assert_gradient(model, data(kind, lengths=LENGTHS))


@pytest.mark.parametrize("case", CELLS, ids=str)
def test_gradients_of_every_cell(case):
    layer = case.build(C, H, seed=0)
    model = SequenceModel(
        fg.Sequential(layer, fg.Dense(H, 2, seed=1)), initial_state="learned", washout=1
    )
    with model.edit_parameters() as parameters:
        parameters["initial_state.state"][...] = 0.3 * rng().standard_normal(
            parameters["initial_state.state"].size
        )
    assert_gradient(model, data(), tolerance=0.15 if "relu" in case.id else 2e-3)


def test_gradients_of_a_state_estimated_from_targets():
    model = SequenceModel.build(
        "gru", C, 2, H, return_sequences=True, seed=0,
        initial_state="estimated", estimation_steps=3, estimate_from_targets=True,
    )  # fmt: skip
    sequences = data(lengths=np.array([7, 5, 5, 7, 4]))
    assert_gradient(model, sequences)
    # The steps that the state is estimated from do not count.
    changed = sequences.y.copy()
    assert model._targets(sequences)[3] == 3
    first = model.predict(sequences.x, lengths=sequences.lengths, first_targets=changed[:, :3])
    assert np.array_equal(first, model.predict(sequences))


@pytest.mark.parametrize(
    "loss",
    ["mae", Loss("huber", delta=0.5), Loss("quantile", quantiles=(0.2, 0.5, 0.9))],
    ids=lambda loss: getattr(loss, "name", loss),
)
def test_gradients_of_losses(loss):
    model = SequenceModel.build("gru", C, 2, H, return_sequences=True, seed=0, loss=loss)
    weight = rng(3).random((N, T)) + 0.1
    assert_gradient(model, data(lengths=LENGTHS, sample_weight=weight), tolerance=1e-2)


def free_run(initial_state="zero", targets=2, inputs=C, context=2, **options):
    return FreeRunModel.build(
        "gru", targets, inputs, H, 2, seed=0, context=context, initial_state=initial_state,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("initial_state", STATES)
@pytest.mark.parametrize("training", ["free", "teacher"])
def test_gradients_through_a_free_run(initial_state, training):
    model = free_run(initial_state, training=training)
    assert_gradient(model, data(lengths=np.array([7, 3, 5, 7, 4])))


@pytest.mark.parametrize("cell", ["rnn", "leaky_rnn", "lstm", "simplified_gru"])
def test_gradients_through_a_free_run_without_inputs(cell):
    model = FreeRunModel.build(cell, 2, 0, H, seed=0, context=1, loss="huber")
    assert_gradient(model, fg.Sequences(None, data().y))


def test_a_free_run_with_quantiles_feeds_the_median_back():
    model = free_run(loss=Loss("quantile", quantiles=(0.1, 0.4, 0.9)))
    sequences = data()
    assert_gradient(model, sequences, tolerance=1e-2)
    one_step = model.to_sequential()
    value, states = sequences.y[:, :1], None
    for t in range(1, T):
        read = np.concatenate([value, sequences.x[:, t : t + 1]], axis=-1)
        output, states = one_step(read, states)
        value = sequences.y[:, t : t + 1] if t < model.context else output[:, :, 1::3]
        if t >= model.context:
            expected = model.predict(sequences)[:, t - model.context]
            assert_close(f"step {t}", output[:, 0], expected, 1e-4)


def test_teacher_forcing_is_one_call_with_the_bits_of_single_steps():
    """The outputs that follow the context are the same free or not; then they differ."""
    free, teacher = free_run(), free_run(training="teacher")
    sequences = prepared(free, data())
    prepared(teacher, sequences)
    ours, theirs = free.forward(sequences)[0], teacher.forward(sequences)[0]
    assert np.array_equal(ours[:, 0], theirs[:, 0])
    assert not np.array_equal(ours[:, 1], theirs[:, 1])
    assert np.array_equal(
        free._run(free._in_units(sequences)), teacher._run(teacher._in_units(sequences))
    )  # evaluation runs free


def encoder_decoder(future=0, feedback=True, **options):
    return EncoderDecoder.build("lstm", C, 2, 4, future, H, 2, feedback=feedback, seed=0, **options)


def horizon_data(future=0, lengths=LENGTHS):
    random = rng(2)
    x = random.standard_normal((N, T, C)) * 2 + 1
    return fg.Sequences(
        x,
        random.standard_normal((N, 4, 2)) * 2 + 1,
        lengths=lengths,
        x_future=random.standard_normal((N, 4, future)) + 1 if future else None,
    )


@pytest.mark.parametrize("training", ["free", "teacher"])
@pytest.mark.parametrize("future", [0, 2])
def test_gradients_of_encoder_and_decoder(training, future):
    model = encoder_decoder(future, training=training, initial_state="learned")
    assert_gradient(model, horizon_data(future))


def test_gradients_of_a_decoder_without_feedback():
    model = encoder_decoder(2, feedback=False, loss="huber")
    assert_gradient(model, horizon_data(2))


def test_the_parts_of_an_encoder_decoder_in_the_users_units():
    model = encoder_decoder(2)
    sequences = prepared(model, horizon_data(2, lengths=None))
    encoder, decoder = model.to_sequentials()
    _, states = encoder(sequences.x)
    value = sequences.x[:, -1:, :2]
    expected = model.predict(sequences.x, x_future=sequences.x_future)
    for step in range(4):
        read = np.concatenate([value, sequences.x_future[:, step : step + 1]], axis=-1)
        value, states = decoder(read, states)
        assert_close(f"step {step}", value[:, 0], expected[:, step], 1e-4)


def test_a_given_initial_state_and_its_gradient():
    model = SequenceModel.build("lstm", C, 2, H, return_sequences=True, initial_state="given")
    state = tuple(0.3 * rng(4).standard_normal((1, N, H)).astype(np.float32) for _ in range(2))
    sequences = prepared(model, data(initial_state=(state,)))
    _, gradients, _ = model.gradients(sequences)
    (d_state,) = gradients.initial_state
    for place, part in enumerate(parts(d_state)):
        direction = rng(place).standard_normal(part.shape)
        losses = []
        for sign in (1, -1):
            moved = list(state)
            moved[place] = state[place] + sign * 1e-3 * direction
            moved_data = sequences.replace(initial_state=(tuple(moved),))
            losses.append(model.gradients(moved_data)[0])
        numeric = (losses[0] - losses[1]) / 2e-3
        assert numeric == pytest.approx((part * direction).sum(), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("kind", ["many_to_many", "many_to_one"])
@pytest.mark.parametrize("loss", ["mse", "quantile", "cross_entropy"])
def test_what_is_deployed_gives_the_same_bits(kind, loss):
    model = SequenceModel.build(
        "gru", C, 2, H, return_sequences=kind == "many_to_many", bidirectional=True, seed=0,
        loss=loss,
    )  # fmt: skip
    sequences = data(kind, lengths=LENGTHS)
    if loss == "cross_entropy":
        sequences = sequences.replace(y=(sequences.y[..., 0] > -5).astype(np.int64))
    prepared(model, sequences)
    expected = model.predict(sequences.x, lengths=LENGTHS)
    deployed, _ = model.to_sequential()(sequences.x, lengths=LENGTHS)
    assert np.array_equal(deployed, expected)
    assert np.array_equal(model.predict(sequences, batch_size=2), expected)
    if loss == "cross_entropy":
        real = expected[np.arange(T) < LENGTHS[:, None]] if expected.ndim == 3 else expected
        assert np.allclose(real.sum(axis=-1), 1, atol=1e-6)


def test_the_scaling_is_that_of_the_steps_that_count():
    model = SequenceModel.build("gru", C, 2, H, return_sequences=True)
    sequences = data(lengths=LENGTHS)
    x = np.array(sequences.x)
    x[:, :, 1] = 7.0  # a constant column
    past = np.arange(T) >= LENGTHS[:, None]
    x[past] = np.nan
    y = np.array(sequences.y)
    y[past] = np.inf
    sequences = prepared(model, sequences.replace(x=x, y=y))
    real = x[~past].astype(np.float64)
    values = model.input_scaling.parameters
    assert np.allclose(values["mean"], real.mean(axis=0))
    assert np.allclose(values["scale"], [real[:, 0].std(), 1, real[:, 2].std()])
    assert np.allclose(model.output_scaling.parameters["scale"], y[~past].std(axis=0))
    loss, gradients, _ = model.gradients(sequences)
    assert np.isfinite(loss) and np.isfinite(gradients.parameter_vector).all()
    assert np.isfinite(model.predict(sequences)).all()


def test_nothing_past_the_ends_reaches_a_free_run():
    model = free_run("estimated")
    lengths = np.array([7, 3, 5, 7, 4])
    sequences = data(lengths=lengths)
    x, y = np.array(sequences.x), np.array(sequences.y)
    past = np.arange(T) >= lengths[:, None]
    x[past], y[past] = np.nan, np.inf
    dirty = prepared(model, sequences.replace(x=x, y=y))
    loss, gradients, _ = model.gradients(dirty)
    assert np.isfinite(loss) and np.isfinite(gradients.parameter_vector).all()
    clean = model.check(sequences)
    assert model.gradients(clean)[0] == loss


MODELS = {
    "sequence": (lambda: SequenceModel.build("lstm", C, 2, H, initial_state="learned", seed=0),
                 lambda: data("many_to_one")),
    "free": (lambda: free_run("estimated"), data),
    "encoder_decoder": (lambda: encoder_decoder(2), lambda: horizon_data(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_copies_pickles_and_state_dicts(name):
    build, sequences = MODELS[name]
    model, sequences = build(), sequences()
    sequences = prepared(model, sequences)
    expected = model.predict(sequences)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.predict(sequences), expected)
        # The parts of a copy live in its own vector.
        with other.edit_parameters() as parameters:
            parameters.vector *= 0.5
        assert not np.array_equal(other.predict(sequences), expected)
        assert np.array_equal(model.predict(sequences), expected)
    fresh = build()
    with fresh.edit_parameters() as parameters:
        parameters.vector[...] = 0
    fresh.load_state_dict(model.state_dict())
    assert np.array_equal(fresh.predict(sequences), expected)
    with pytest.raises(ValueError, match="missing"):
        fresh.load_state_dict({})


def test_the_loss_is_that_of_the_function():
    model = SequenceModel.build("gru", C, 2, H, return_sequences=True, seed=0, washout=1)
    weight = rng(3).random(N) + 0.1
    sequences = prepared(model, data(lengths=LENGTHS, sample_weight=weight))
    output, _ = model.network(model.input_scaling(sequences.x), lengths=LENGTHS)
    target = model.output_scaling(sequences.y)
    expected, _ = fg.mse(output, target, lengths=LENGTHS, sample_weight=weight, washout=1)
    assert model.evaluate(sequences) == pytest.approx(expected, rel=1e-12)
    assert model.evaluate(sequences, batch_size=2) == pytest.approx(expected, rel=1e-6)


def test_variational_dropout_in_a_loop_has_one_mask():
    """All steps drop the same units: run again with the masks as weights of the second layer."""
    model = free_run(dropout=0.5, variational=True, context=1)
    sequences = prepared(model, data())
    _, tape = model.forward(sequences, training=True)
    masks = [step.steps[0].masks[1] for step in tape.network]
    assert len(masks) == T - 1
    for mask in masks[1:]:
        assert np.array_equal(mask, masks[0])
    _, again = model.forward(sequences, training=True)
    assert not np.array_equal(again.network[0].steps[0].masks[1], masks[0])


def sequence_model(**options):
    return SequenceModel.build("gru", C, 2, H, seed=0, **options)


X = np.zeros((N, T, C))
Y = np.zeros((N, 2))


def nan_at(array, *index):
    changed = np.array(array, float)
    changed[index] = np.nan
    return changed


BAD_DATA = [
    ("NaN in x", {}, lambda: fg.Sequences(nan_at(X, 3, 2, 1), Y),
     r"x must be finite, got nan at index \(3, 2, 1\)"),
    ("infinite y", {}, lambda: fg.Sequences(X, Y + np.inf), r"y must be finite, got inf"),
    ("features", {}, lambda: fg.Sequences(X[..., :2], Y),
     r"x must have shape \(n, time >= 1, features=3\), got \(5, 7, 2\)"),
    ("no time", {}, lambda: fg.Sequences(X[:, :0], Y), r"x must have shape \(n, time >= 1"),
    ("two axes", {}, lambda: fg.Sequences(X[0], Y[0]), r"x must have shape \(n, time, features\)"),
    ("counts", {}, lambda: fg.Sequences(X, Y[:3]), "5 of x, 3 of y"),
    ("empty", {}, lambda: fg.Sequences(X[:0], Y[:0]), "at least one sequence, got none"),
    ("nothing", {}, lambda: fg.Sequences(), "x or y, got neither"),
    ("no targets", {}, lambda: fg.Sequences(X), "data must have targets y, got none"),
    ("target shape", {}, lambda: fg.Sequences(X, Y[:, :1]), r"\(5, 2\), got \(5, 1\)"),
    ("steps of targets", {"return_sequences": True}, lambda: fg.Sequences(X, np.zeros((N, 3, 2))),
     r"= \(5, 7, 2\), got \(5, 3, 2\)"),
    ("long lengths", {}, lambda: fg.Sequences(X, Y, lengths=[7, 8, 1, 1, 1]),
     "lengths must be from 1 to time=7, got 1 to 8"),
    ("zero lengths", {}, lambda: fg.Sequences(X, Y, lengths=[7, 0, 1, 1, 1]), "got 0 to 7"),
    ("label outside", {"loss": "cross_entropy"}, lambda: fg.Sequences(X, [0, 1, 2, 0, 0]),
     r"labels must be 0 to 1 \(logits have 2 classes\), got 2 at index \(2,\)"),
    ("negative weight", {}, lambda: fg.Sequences(X, Y, sample_weight=[1, -1, 1, 1, 1]),
     "sample_weight must hold finite numbers of at least 0"),
    ("weight shape", {}, lambda: fg.Sequences(X, Y, sample_weight=np.ones((N, T))),
     r"sample_weight must have shape \(5,\), got \(5, 7\)"),
    ("state not asked for", {}, lambda: fg.Sequences(X, Y, initial_state=(np.zeros((1, N, H)),)),
     "make the model with initial_state='given'"),
    ("no state", {"initial_state": "given"}, lambda: fg.Sequences(X, Y), "data must have initial"),
    ("states", {"initial_state": "given"}, lambda: fg.Sequences(X, Y, initial_state=()),
     "a state for each of the 1 recurrent layers, got 0"),
    ("future", {}, lambda: fg.Sequences(X, Y, x_future=X), "x_future is for an EncoderDecoder"),
    ("unequal features", {}, lambda: fg.Sequences.from_lists([X[0], X[1, :, :2]], Y[:2]),
     r"x\[1\] must have shape \(time >= 1, features=3\), got \(7, 2\)"),
    ("empty sequence", {}, lambda: fg.Sequences.from_lists([X[0], X[1, :0]], Y[:2]),
     r"x\[1\] must have shape \(time >= 1"),
    ("no sequences", {}, lambda: fg.Sequences.from_lists([], []), "at least one sequence"),
    ("steps of a target", {}, lambda: fg.Sequences.from_lists([X[0]], [X[1, :3, :2]]),
     r"y\[0\] must have a row for each of the 7 steps of x\[0\], got 3"),
    ("ragged array", {}, lambda: fg.Sequences([X[0], X[1, :3]], Y[:2]), "Sequences.from_lists"),
    ("short series", {}, lambda: fg.Sequences(fg.training.windows(X[0], 8), Y),
     "series must have at least length=8 rows, got 7"),
    ("too large", {}, lambda: fg.Sequences(X + 1e300 * rng().random(X.shape), Y + 1e200),
     r"x must be within the range of float32, got .*e\+299 at index \(0, 0, 0\)"),
    ("too small", {}, lambda: fg.Sequences(rng().random(X.shape) * 1e-60, Y),
     "too large or too small for float32"),
]  # fmt: skip


@pytest.mark.parametrize("options, make, match", [bad[1:] for bad in BAD_DATA],
                         ids=[bad[0] for bad in BAD_DATA])  # fmt: skip
def test_bad_data(options, make, match):
    model = sequence_model(**options)
    before = model.state_dict()
    with pytest.raises(DataError, match=match):
        fg.Trainer(model, max_epochs=1).fit(make())
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: fg.Sequences(np.array([["a"]]), Y), "x must hold real numbers"),
        (lambda: fg.Sequences(X + 1j, Y), "dtype complex128"),
        (lambda: fg.Sequences(X, Y, lengths=np.ones(N)), "lengths must be integers, got dtype"),
        (lambda: sequence_model(loss="cross_entropy").check(fg.Sequences(X, Y[:, 0])), "labels y"),
        (lambda: sequence_model().check(X), "data must be fastgates.Sequences, got ndarray"),
    ],
)
def test_wrong_types(make, match):
    with pytest.raises(TypeError, match=match):
        make()


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: sequence_model(loss="hinge"), "loss must be one of mse"),
        (lambda: sequence_model(initial_state="random"), "initial_state must be one of zero"),
        (lambda: sequence_model(washout=2), "return_sequences=True"),
        (lambda: sequence_model(washout=-1, return_sequences=True), "washout must be an integer"),
        (lambda: SequenceModel.build("gpu", 1, 1), "cell must be one of .*gru"),
        (lambda: SequenceModel(fg.Sequential(fg.Scaling([0], [1]), fg.GRU(1, 2))), "no Scaling"),
        (lambda: SequenceModel(fg.Sequential(fg.GRU(1, 2)), loss="cross_entropy"), "with a Dense"),
        (lambda: sequence_model(loss="cross_entropy", scale_outputs=True), "labels have no scale"),
        (lambda: FreeRunModel.build("gru", 1, context=0), "context must be a positive integer"),
        (lambda: FreeRunModel.build("gru", 1, loss="cross_entropy"), "labels cannot be fed back"),
        (lambda: FreeRunModel.build("gru", 1, training="half"), "training must be one of free"),
        (lambda: FreeRunModel(fg.Sequential(fg.GRU(1, 2))), "read its 2 outputs"),
        (lambda: EncoderDecoder.build("gru", 3, 1, 2, feedback=False), "future_size >= 1"),
        (lambda: EncoderDecoder.build("gru", 1, 2, 3), "target_columns must be 2 of the 1"),
        (lambda: EncoderDecoder(fg.GRU(1, 2), fg.Sequential(fg.GRU(1, 3), fg.Dense(3, 1)),
                                horizon=2), "the same states as encoder"),
        (lambda: sequence_model().initial_states(), "are the model's, got 'zero'"),
        (lambda: free_run().predict(np.zeros((2, 5, C))), r"context must have shape \(n, context="),
        (lambda: free_run().predict(np.zeros((2, 2, C)), context=np.zeros((2, 2, 2))),
         r"context \+ steps = 2 \+ steps"),
        (lambda: free_run().check(data(lengths=[7, 2, 3, 3, 3])), "more than context=2 steps"),
        (lambda: encoder_decoder(2).check(horizon_data(0)), r"x_future must have shape"),
        (lambda: encoder_decoder(0).check(horizon_data(2)), "x_future must be left out"),
    ],
)  # fmt: skip
def test_wrong_models(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# -- Against PyTorch -------------------------------------------------------------------------------


def torch_network(model, prefix):
    """The LSTM and the read-out of one of a model's networks."""
    import torch

    network = getattr(model, prefix)
    layer = network.recurrent[0]
    theirs = torch.nn.LSTM(layer.input_size, layer.hidden_size, layer.num_layers, batch_first=True)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in layer.state_dict().items()})
    if len(network.modules) == 1:
        return theirs, None
    readout = torch.nn.Linear(layer.hidden_size, network.output_size)
    readout.load_state_dict(
        {k: torch.from_numpy(v) for k, v in network.modules[1].state_dict().items()}
    )
    return theirs, readout


def assert_same_gradients(model, sequences, loss, modules):
    """Compare with autograd's gradients, in the order of the model's vector."""
    ours, gradients, _ = model.gradients(sequences)
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-5)
    order = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    expected = []
    for layer, readout in modules:
        names = [f"{kind}_l{k}" for k in range(layer.num_layers) for kind in order]
        expected += [getattr(layer, name).grad.numpy().ravel() for name in names]
        if readout is not None:
            expected += [readout.weight.grad.numpy().ravel(), readout.bias.grad.numpy()]
    assert_close("gradient", gradients.parameter_vector, np.concatenate(expected), 1e-4)


@pytest.mark.parity
def test_a_free_run_has_the_gradients_of_autograd():
    torch = pytest.importorskip("torch")
    model = FreeRunModel.build("lstm", 2, C, H, 2, seed=0, context=2, scale_inputs=False,
                               scale_outputs=False)  # fmt: skip
    sequences = prepared(model, data())
    layer, readout = torch_network(model, "network")
    x, y = (torch.tensor(part, dtype=torch.float32) for part in (sequences.x, sequences.y))
    value, state, outputs = y[:, 0], None, []
    for t in range(1, T):
        states, state = layer(torch.cat([value, x[:, t]], dim=1)[:, None], state)
        outputs.append(readout(states[:, 0]))
        value = y[:, t] if t < 2 else outputs[-1]
    loss = ((torch.stack(outputs[1:], dim=1) - y[:, 2:]) ** 2).mean()
    assert_same_gradients(model, sequences, loss, [(layer, readout)])


@pytest.mark.parity
def test_an_encoder_and_decoder_have_the_gradients_of_autograd():
    torch = pytest.importorskip("torch")
    model = encoder_decoder(2, scale_inputs=False)
    sequences = prepared(model, horizon_data(2, lengths=None))
    encoder, _ = torch_network(model, "encoder")
    decoder, readout = torch_network(model, "decoder")
    x, y, future = (
        torch.tensor(part, dtype=torch.float32)
        for part in (sequences.x, sequences.y, sequences.x_future)
    )
    _, state = encoder(x)
    value, outputs = x[:, -1, :2], []
    for step in range(4):
        states, state = decoder(torch.cat([value, future[:, step]], dim=1)[:, None], state)
        value = readout(states[:, 0])
        outputs.append(value)
    loss = ((torch.stack(outputs, dim=1) - y) ** 2).mean()
    assert_same_gradients(model, sequences, loss, [(encoder, None), (decoder, readout)])


def test_given_states_are_checked():
    model = sequence_model(initial_state="given")
    for shape, match in (((1, N + 1, H), "initial_state"), ((2, N, H), "initial_state")):
        with pytest.raises(DataError, match=match):
            model.predict(X, initial_state=(np.zeros(shape),))
    with pytest.raises(DataError, match=r"initial_state\[0\] must be finite"):
        model.predict(X, initial_state=(np.full((1, N, H), np.nan),))
    model.predict(X, initial_state=(np.zeros((1, N, H)),))


def test_nothing_is_given_beside_sequences():
    with pytest.raises(TypeError, match="lengths must not be given beside Sequences"):
        sequence_model().predict(fg.Sequences(X), lengths=np.ones(N, int))
    with pytest.raises(TypeError, match="context must not be given beside Sequences"):
        free_run().predict(data(), context=np.zeros((N, 2, 2)))
    with pytest.raises(TypeError, match="x_future must not be given beside Sequences"):
        encoder_decoder().predict(fg.Sequences(X), x_future=np.zeros((N, 3, 1)))


def test_a_free_run_needs_no_truth_after_the_context():
    model, given = free_run(washout=50), data()
    expected = model.predict(given.x, context=given.y[:, :2])
    unknown = given.y.copy()
    unknown[:, 2:] = np.nan
    for y in (given.y, unknown, given.y[:, :2]):
        np.testing.assert_array_equal(model.predict(fg.Sequences(given.x, y)), expected)


def test_classes_that_all_weigh_nothing():
    loss = fg.losses.Loss("cross_entropy", class_weight=(1, 0))
    model = SequenceModel.build("gru", C, 2, H, seed=0, loss=loss)
    model.evaluate(fg.Sequences(X, np.arange(N) % 2))
    with pytest.raises(DataError, match=r"nothing counts .*class_weight=\(1.0, 0.0\)"):
        model.evaluate(fg.Sequences(X, np.ones(N, int)))


def test_estimating_from_targets_is_an_estimated_state():
    with pytest.raises(ValueError, match="estimate_from_targets needs initial_state='estimated'"):
        sequence_model(estimate_from_targets=True, return_sequences=True)


@pytest.mark.parametrize("initial_state", ["learned", "estimated"])
def test_a_state_of_the_models_own_is_not_lost_without_a_word(initial_state):
    model = sequence_model(initial_state=initial_state, return_sequences=True)
    given = data()
    fg.Trainer(model, max_epochs=3, learning_rate=0.1).fit(given)
    start = model.initial_states(N, given.replace(y=None))
    again = model.to_sequential()(given.x, start)[0]
    np.testing.assert_allclose(again, model.predict(given.x), rtol=0, atol=2e-5)
    assert np.abs(model.to_sequential()(given.x)[0] - again).max() > 1e-3
    stream = model.to_sequential().stream(batch_size=N)
    stream.reset(start)
    np.testing.assert_array_equal(stream.run(given.x), again)
    for lose in (model.stream, model.jit_handle, model.cfunc, model.to_c):
        with pytest.raises(ValueError, match=f"initial state of this model is {initial_state}"):
            lose()


def test_a_module_is_part_of_the_last_model_that_was_given_it():
    network = fg.Sequential(fg.GRU(C, H, seed=0), fg.Dense(H, 2, seed=0), return_sequences=False)
    first, x = SequenceModel(network), fg.Sequences(X)
    own = SequenceModel(copy.deepcopy(network))
    second = SequenceModel(network)
    with pytest.raises(RuntimeError, match=r"given to another SequenceModel since.*copy\.deepcopy"):
        first.predict(x)
    for model in (second, own, pickle.loads(pickle.dumps(second)), copy.deepcopy(second)):
        with model.edit_parameters() as parameters:
            parameters.vector[...] = 0
        assert not model.predict(x).any() and not model.network.parameter_vector.any()
    other = fg.Sequential(network.modules[0])
    other(X)
    with pytest.raises(RuntimeError, match=r"GRU\(.* was given to another Sequential since"):
        second.predict(x)
