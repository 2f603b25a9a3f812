"""RTNeural's JSON, and the commands convert and inspect over all formats."""

import json
import os

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, normal
from hypothesis import given
from hypothesis import strategies as st

import fastgates as fg

pytest.importorskip("safetensors")
os.environ.setdefault("KERAS_BACKEND", "torch")


def network():
    return fg.Sequential(
        fg.LSTM(2, 5, num_layers=2, seed=0), fg.GRU(5, 4, reset_after=True, seed=1),
        fg.Dense(4, 1, seed=2),
    )  # fmt: skip


@given(
    kind=st.sampled_from(["LSTM", "GRU"]),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 3)),
    bias=st.booleans(),
    activation=st.sampled_from(["identity", "tanh", "relu", "sigmoid", "softmax"]),
    seed=st.integers(0, 99),
)
def test_rtneural_there_and_back(kind, sizes, bias, activation, seed):
    options = {"reset_after": True} if kind == "GRU" else {}
    layer = getattr(fg, kind)(*sizes, bias=bias, seed=seed, **options)
    model = fg.Sequential(layer, fg.Dense(sizes[1], 2, activation, seed=seed))
    content = json.loads(json.dumps(fg.to_rtneural(model)))
    again = fg.from_rtneural(content)
    x = normal(np.random.default_rng(seed), (2, 30, sizes[0]))
    assert_close("output", again(x)[0], model(x)[0], 1e-6, floor=1.0)
    assert fg.to_rtneural(again) == content


def test_rtneural_has_the_weights_of_keras(tmp_path):
    """Its loader expects what ``get_weights`` of Keras gives."""
    content = fg.to_rtneural(network(), tmp_path / "a.json")
    assert content["in_shape"] == [None, None, 2]
    assert [layer["type"] for layer in content["layers"]] == ["lstm", "lstm", "gru", "dense"]
    assert [layer["shape"][-1] for layer in content["layers"]] == [5, 5, 4, 1]
    shapes = [[np.shape(w) for w in layer["weights"]] for layer in content["layers"]]
    assert shapes[0] == [(2, 20), (5, 20), (20,)]
    assert shapes[2] == [(5, 12), (4, 12), (2, 12)]
    assert shapes[3] == [(4, 1), (1,)]
    gru = network().modules[1].parameters["weight_ih_l0"]
    z, r, h = np.split(np.float32(content["layers"][2]["weights"][0]), 3, axis=1)
    for name, value, part in zip("rzn", np.split(gru, 3), (r, z, h), strict=True):
        assert_same_bits(name, part.T, value)
    assert json.loads((tmp_path / "a.json").read_text()) == content


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (fg.GRU(2, 3), "RTNeural has no GRU with reset_after=False"),
        (fg.LSTM(2, 3, bidirectional=True), "no LSTM with two directions"),
        (fg.RNN(2, 3), "no RNN"),
        (fg.LSTM(2, 3, peepholes=True), "no LSTM with peepholes"),
        (fg.Sequential(fg.Scaling([1], [2]), fg.LSTM(1, 2)), "no Scaling"),
    ],
    ids=repr,
)
def test_what_rtneural_cannot_run(model, message):
    with pytest.raises(ValueError, match=message):
        fg.to_rtneural(model)


def edited(change):
    content = fg.to_rtneural(network())
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("layers"), "must have in_shape and layers"),
        (lambda c: c["layers"][0].update(type="conv1d"), "type 'conv1d' is not supported"),
        (lambda c: c["layers"][0].pop("weights"), "layer 0 is damaged"),
        (lambda c: c["layers"][3].update(activation="prelu"), "with 'prelu' is not supported"),
        (lambda c: c["layers"][0]["weights"].pop(), "a lstm does not fit its weights"),
        (lambda c: c["layers"][0].update(weights=[[[1, 2], [3]]]), "no arrays of numbers"),
        (lambda c: c.update(in_shape=[None, None, 7]), "must end with the 2 inputs"),
        (lambda c: c["layers"].pop(1), None),
        (lambda c: c["layers"].pop(2), "do not fit each other"),
    ],
)
def test_damaged_rtneural(change, message):
    if message is None:
        assert len(fg.from_rtneural(edited(change)).modules) == 3
        return
    with pytest.raises(ValueError, match=message):
        fg.from_rtneural(edited(change))


# -- The commands ---------------------------------------------------------------------------------


def test_convert_and_inspect(run, folder):
    fg.save(network(), "a.safetensors", record={"epochs": 3})
    code, out, err = run("convert", "a.safetensors", "b.json")
    assert code == 0 and out.startswith("b.json: Sequential(LSTM(2, 5, num_layers=2)") and not err
    assert run("convert", "b.json", "c.safetensors")[0] == 0
    x = normal(np.random.default_rng(0), (2, 9, 2))
    expected = network()(x)[0]
    assert_close("output", fg.load("c.safetensors")(x)[0], expected, 1e-6)
    code, out, _ = run("inspect", "a.safetensors", "--tensors")
    assert code == 0
    for text in (
        "format    fastgates.module 1",
        "verified  by its reference output",
        "digest    sha256 ",
        "layer  features  parameters  options",
        "LSTM   2 -> 5           420  hidden_size=5, num_layers=2",
        "GRU    5 -> 4           132  hidden_size=4, reset_after=True",
        "Dense  4 -> 1             5",
        "557 numbers in 14 tensors",
        "0.weight_hh_l1",
        '{"epochs": 3}',
    ):
        assert text in out, out
    first = out.split("sha256 ")[1].split()[0]
    fg.save(network(), "d.safetensors", record={"epochs": 3})
    assert first in run("inspect", "d.safetensors")[1]
    assert "LSTM" in run("inspect", "b.json")[1]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_convert_through_all_formats(run, folder):
    for package in ("torch", "keras", "h5py", "onnx"):
        pytest.importorskip(package)
    fg.save(network(), "a.safetensors")
    names = ["a.safetensors", "b.pt", "c.onnx", "d.keras", "e.weights.h5", "f.json", "g.pth"]
    for source, target in zip(names, [*names[1:], "h.safetensors"], strict=True):
        code, _, err = run("convert", source, target)
        assert code == 0, err
        assert run("inspect", target)[0] == 0
    x = normal(np.random.default_rng(0), (2, 9, 2))
    output = fg.load("h.safetensors")(x)[0]
    assert_close("output", output, network()(x)[0], 1e-6, floor=1.0)
    assert run("convert", "a.safetensors", "s.onnx", "--streaming")[0] == 0


@pytest.mark.parity
def test_options_of_weights_alone(run, folder):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.RNN(2, 3).state_dict(), "a.pt")
    options = ("--nonlinearity", "relu", "--last")
    assert run("convert", "a.pt", "b.safetensors", *options)[0] == 0
    model = fg.load("b.safetensors")
    assert model.modules[0].nonlinearity == "relu" and not model.return_sequences
    assert (
        "--last is for files that do not say it"
        in run("convert", "b.safetensors", "c.safetensors", "--last")[2]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "absent.json", "b.safetensors"], "absent.json: no such file"),
        (["convert", "a.safetensors", "b.txt"], "b.txt: the suffix must be one of .safetensors, "),
        (["convert", "a.safetensors", "b.json"], "b.json: RTNeural has no SimplifiedGRU"),
        (["convert", "a.safetensors", "b.json", "--streaming"], "--streaming is for .onnx files"),
        (["convert", "bad.json", "b.safetensors"], "bad.json: not JSON"),
        (["inspect", "bad.safetensors"], "bad.safetensors: not a safetensors file"),
        (["inspect", "absent.safetensors"], "absent.safetensors: no such file"),
        (["inspect", "a.csv"], "a.csv: the suffix must be one of"),
        (["inspect", "shape.json"], "shape.json: it is damaged, or no such model"),
        (["convert", "shape.json", "b.safetensors"], "shape.json: it is damaged, or no such"),
    ],
)
def test_errors_are_one_line(run, folder, arguments, message):
    fg.save(fg.SimplifiedGRU(2, 3, seed=0), "a.safetensors")
    for name in ("bad.json", "bad.safetensors"):
        (folder / name).write_text("{no")
    fg.save(fg.Sequential(fg.LSTM(2, 3, seed=0), fg.Dense(3, 1, seed=0)), "l.safetensors")
    assert run("convert", "l.safetensors", "shape.json")[0] == 0
    text = (folder / "shape.json").read_text()
    (folder / "shape.json").write_text(json.dumps(json.loads(text) | {"in_shape": []}))
    code, out, err = run(*arguments)
    assert code == 2 and not out
    assert message in err and err.count("\n") == 1, err
    assert not (folder / "b.json").exists()
