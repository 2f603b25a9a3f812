"""Models from Keras 3 and back: the same bits of weights, the same outputs."""

import json
import os
import zipfile

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, normal
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgates as fg

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("torch")
keras = pytest.importorskip("keras")
pytest.importorskip("h5py")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(keras.config.backend() != "torch", reason="KERAS_BACKEND is not torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
L = keras.layers
SHAPE = (None, None, 3)


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


def assert_same_outputs(ours, theirs, features=3, time=20, seed=1):
    x = normal(np.random.default_rng(seed), (2, time, features))
    expected = run(theirs, x)
    output = ours(x)
    output = output[0] if isinstance(output, tuple) else output
    assert_close("output", output, expected, 1e-6, floor=1.0)


def randomize(model, seed=0):
    """Weights with biases that are not 0."""
    rng = np.random.default_rng(seed)
    model.set_weights([normal(rng, w.shape) / 3 for w in model.get_weights()])
    return model


def sequential(*layers, features=3):
    return randomize(keras.Sequential([keras.Input((None, features)), *layers]))


LAYERS = {
    "SimpleRNN": lambda **o: L.SimpleRNN(5, **o),
    "SimpleRNN relu": lambda **o: L.SimpleRNN(5, activation="relu", **o),
    "GRU": lambda **o: L.GRU(5, **o),
    "GRU before": lambda **o: L.GRU(5, reset_after=False, **o),
    "LSTM": lambda **o: L.LSTM(5, **o),
    "LSTM others": lambda **o: L.LSTM(
        5, activation="softsign", recurrent_activation="hard_sigmoid", **o
    ),
    "GRU linear": lambda **o: L.GRU(
        5, activation="linear", recurrent_activation="hard_sigmoid", **o
    ),
    "SimpleRNN elu": lambda **o: L.SimpleRNN(5, activation="elu", **o),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, bidirectional, tmp_path):
    for options in ({}, {"use_bias": False}):
        layer = LAYERS[name](return_sequences=True, **options)
        model = sequential(L.Bidirectional(layer) if bidirectional else layer)
        ours = fg.from_keras(model)
        assert_same_outputs(ours, model)
        again = fg.to_keras(ours)
        for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
            assert_same_bits("weights", a, b)
        assert_same_outputs(ours, again)
        model.save(tmp_path / "a.keras")
        from_file = fg.from_keras(tmp_path / "a.keras")
        assert repr(from_file) == repr(ours)
        assert_same_bits("weights", from_file.parameter_vector, ours.parameter_vector)


def whole_model(return_sequences=False):
    return sequential(
        L.Normalization(mean=[1.0, -2.0, 0.5], variance=[4.0, 0.25, 16.0]),
        L.Bidirectional(L.GRU(4, return_sequences=True)),
        L.Dropout(0.5),
        L.TimeDistributed(L.Dense(6, activation="tanh")),
        L.GRU(5, reset_after=False, return_sequences=True, dropout=0.2, recurrent_dropout=0.1),
        L.LSTM(6, return_sequences=return_sequences, name="mine"),
        L.Dense(2),
        L.Activation("softmax"),
        L.Rescaling(2.0, [3.0, 0.5]),
    )


@pytest.mark.parametrize("return_sequences", [True, False])
def test_a_whole_model(return_sequences, tmp_path):
    model = whole_model(return_sequences)
    ours = fg.from_keras(model)
    assert repr(ours) == (
        "Sequential(Scaling(3), GRU(3, 4, bidirectional=True, reset_after=True), "
        "Dense(8, 6, 'tanh'), GRU(6, 5), LSTM(5, 6), Dense(6, 2, 'softmax'), "
        "Scaling(2, inverse=True)" + ("" if return_sequences else ", return_sequences=False") + ")"
    )
    assert_same_outputs(ours, model)
    again = fg.to_keras(ours)
    assert_same_outputs(ours, again)
    model.save(tmp_path / "a.keras")
    from_file = fg.from_keras(tmp_path / "a.keras")
    assert repr(from_file) == repr(ours)
    for name, value in ours.state_dict().items():
        assert_same_bits(name, from_file.state_dict()[name], value)


def test_a_functional_model_and_a_layer(tmp_path):
    first = keras.Input(SHAPE[1:])
    lstm = L.LSTM(4, return_sequences=True)
    model = randomize(keras.Model(first, L.Dense(2, activation="relu")(lstm(first))))
    ours = fg.from_keras(model)
    assert_same_outputs(ours, model)
    model.save(tmp_path / "a.keras")
    assert_same_outputs(fg.from_keras(str(tmp_path / "a.keras")), model)
    alone = fg.from_keras(lstm)
    assert repr(alone) == "LSTM(3, 4)"
    assert_same_outputs(alone, lstm)


def test_normalization_that_was_adapted(tmp_path):
    scaling = L.Normalization()
    scaling.adapt(normal(np.random.default_rng(0), (50, 7, 3)) * 5 + 2)
    model = keras.Sequential([keras.Input(SHAPE[1:]), scaling, L.GRU(4, return_sequences=True)])
    model.save(tmp_path / "a.keras")
    for ours in (fg.from_keras(model), fg.from_keras(tmp_path / "a.keras")):
        assert_same_outputs(ours, model)


def test_a_layer_that_goes_backwards():
    model = sequential(L.LSTM(4, return_sequences=True), L.GRU(5, go_backwards=True), L.Dense(2))
    ours = fg.from_keras(model)
    assert ours.modules[1].reverse
    assert_same_outputs(ours, model)
    assert_same_outputs(ours, fg.to_keras(ours))


def test_files_of_weights(tmp_path):
    model = sequential(
        L.Bidirectional(L.GRU(4, return_sequences=True)),
        L.LSTM(5, return_sequences=True),
        L.LSTM(6, return_sequences=True, use_bias=False),
        L.SimpleRNN(7, return_sequences=True),
        L.Dense(2),
    )
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    ours = fg.from_keras(path)
    assert_same_outputs(ours, model)
    from fastgates.interchange.keras_models import write_keras

    write_keras(ours, tmp_path / "b.weights.h5")
    model.load_weights(tmp_path / "b.weights.h5")
    assert_same_outputs(ours, model)
    write_keras(ours, tmp_path / "b.keras")
    assert_same_outputs(ours, keras.models.load_model(tmp_path / "b.keras"))
    with pytest.raises(ValueError, match=r"would not make this model again: write a \.keras"):
        write_keras(fg.from_keras(whole_model()), tmp_path / "c.weights.h5")
    sequential(L.LSTM(3, return_sequences=True), L.Dense(3)).save_weights(path)
    with pytest.raises(ValueError, match=r"fit in 2 orders; save the model as \.keras"):
        fg.from_keras(path)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        fg.from_keras(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.weights.h5", "b.keras", "b.weights.h5",
    ]  # fmt: skip


def test_damaged_files(tmp_path):
    path = tmp_path / "a.keras"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"not a \.keras file"):
        fg.from_keras(path)
    with pytest.raises(FileNotFoundError):
        fg.from_keras(tmp_path / "absent.keras")
    with pytest.raises(FileNotFoundError):
        fg.from_keras(tmp_path / "absent.weights.h5")
    sequential(L.LSTM(4), L.Dense(2)).save(path)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    config = json.loads(content["config.json"])
    config["config"]["layers"].pop()
    content["config.json"] = json.dumps(config)
    with zipfile.ZipFile(path, "w") as file:
        for name, value in content.items():
            file.writestr(name, value)
    with pytest.raises(ValueError, match="nothing takes the weights of layers/dense"):
        fg.from_keras(path)


def branching():
    first = keras.Input(SHAPE[1:])
    return keras.Model(first, L.Add()([L.LSTM(4)(first), L.GRU(4)(first)]))


def with_a_state():
    first, state = keras.Input(SHAPE[1:]), keras.Input((4,))
    return keras.Model([first, state], L.GRU(4)(first, initial_state=state))


class Doubled(keras.Sequential):
    def call(self, *arguments, **options):
        return 2 * super().call(*arguments, **options)


def training():
    first = keras.Input(SHAPE[1:])
    return keras.Model(first, L.LSTM(4, dropout=0.5)(first, training=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Doubled([keras.Input(SHAPE[1:]), L.LSTM(4)]), "Doubled has a call of its own"),
        (training, "called with training=True"),
        (lambda: sequential(L.LSTM(4, activation="gelu")), "activation='gelu' is not supported"),
        (lambda: stateful(), "stateful=True"),
        (lambda: sequential(L.LSTM(4, go_backwards=True, return_sequences=True)), "go_backwards"),
        (lambda: sequential(L.Bidirectional(L.LSTM(4), merge_mode="sum")), "merge_mode='sum'"),
        (lambda: sequential(L.LSTM(4), L.Dense(2, activation="gelu")), "activation 'gelu'"),
        (lambda: sequential(L.Conv1D(4, 3), L.LSTM(4)), "Conv1D has no counterpart here"),
        (lambda: sequential(L.Masking(), L.LSTM(4)), "Masking"),
        (lambda: sequential(L.LSTM(4), L.RepeatVector(3), L.LSTM(2)), "RepeatVector"),
        (lambda: sequential(L.LSTM(4, return_sequences=True, dtype="float64")), "float32"),
        (branching, "must take the output of one layer"),
        (with_a_state, "must take the output of one layer"),
        (lambda: object(), "must be a model or a layer of Keras, or a path, got object"),
    ],
)
def test_what_cannot_come_in(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fg.from_keras(make())


def stateful():
    return keras.Sequential([keras.Input(batch_shape=(1, 4, 3)), L.LSTM(4, stateful=True)])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (fg.LSTM(2, 3, peepholes=True), "Keras has no LSTM with peepholes"),
        (fg.RNN(2, 3, leak=0.5), "no RNN with leak"),
        (fg.GRU(2, 3, reverse=True), "no GRU with reverse"),
        (fg.SimplifiedGRU(2, 3), "no SimplifiedGRU"),
        (fg.GRU(2, 3, activations=("sigmoid", ("elu", 0.3))), "no GRU with the activations"),
        (fg.LSTM(2, 3, activations=("sigmoid", "tanh", "relu")), "no LSTM with the activations"),
        (fg.Sequential(fg.Scaling([0, 0], [1, -1]), fg.GRU(2, 3)), "above 1e-7 only"),
    ],
    ids=repr,
)
def test_what_cannot_go_out(model, message):
    with pytest.raises(ValueError, match=message):
        fg.to_keras(model)


@settings(max_examples=6)
@given(
    cell=st.sampled_from(["RNN", "GRU", "LSTM"]),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 2)),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    reset_after=st.booleans(),
    return_sequences=st.booleans(),
    time=st.sampled_from([1, 7, 100]),
    seed=st.integers(0, 99),
)
def test_ours_there_and_back(
    cell, sizes, bias, bidirectional, reset_after, return_sequences, time, seed
):
    options = {"reset_after": reset_after} if cell == "GRU" else {}
    layer = getattr(fg, cell)(*sizes, bias=bias, bidirectional=bidirectional, seed=seed, **options)
    model = fg.Sequential(
        layer, fg.Dense(layer.output_size, 2, "tanh", seed=seed), return_sequences=return_sequences
    )
    theirs = fg.to_keras(model)
    assert_same_outputs(model, theirs, sizes[0], time, seed)
    again = fg.from_keras(theirs)
    assert again.return_sequences == return_sequences
    assert_same_outputs(again, theirs, sizes[0], time, seed)
    for once, twice in zip(theirs.get_weights(), fg.to_keras(again).get_weights(), strict=True):
        assert_same_bits("weights", twice, once)


@pytest.mark.parametrize(
    "model",
    [fg.RNN(3, 4, nonlinearity="relu", seed=0), fg.GRU(3, 4, bias=False, seed=0)],
    ids=repr,
)
def test_weights_that_would_make_another_model(model, tmp_path):
    from fastgates.interchange.keras_models import write_keras

    with pytest.raises(fg.InterchangeError, match="would not make this model again"):
        write_keras(model, tmp_path / "a.weights.h5")
    assert not list(tmp_path.iterdir())
