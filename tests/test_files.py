"""Any module in one file: the same bits back, a proof, and one line for whatever is off."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import CELLS, assert_same_bits, normal
from hypothesis import given
from hypothesis import strategies as st

import fastgates as fg
from fastgates import files
from fastgates._modelfile import read_any, write_model
from fastgates.files import ModelFileError

pytest.importorskip("safetensors")
FIXTURES = Path(__file__).parent / "files"


def network(return_sequences=True):
    return fg.Sequential(
        fg.Scaling([1.0, -2.0], [2.0, 0.5]),
        fg.RNN(2, 5, leak=[0.1, 0.2, 0.3, 1 / 3, 1.0], seed=0),
        fg.Dense(5, 4, "tanh", bias=False, seed=1),
        fg.LSTM(4, 3, num_layers=2, bidirectional=True, dropout=0.25, forget_bias=2.0, seed=2),
        fg.Dense(6, 2, seed=3),
        fg.Scaling([3.0, 0.0], [10.0, 0.1], inverse=True),
        return_sequences=return_sequences,
    )


def assert_same_module(actual, expected):
    assert repr(actual) == repr(expected)
    assert files.describe(actual) == files.describe(expected)
    expected = expected.state_dict()
    assert list(actual.state_dict()) == list(expected)
    for name, value in actual.state_dict().items():
        assert_same_bits(name, value, expected[name])


def test_every_cell(case, tmp_path):
    layer = case.build(3, 4, 2, bidirectional=True, seed=0)
    fg.save(layer, tmp_path / "layer.safetensors")
    again = fg.load(tmp_path / "layer.safetensors")
    assert_same_module(again, layer)
    x = normal(np.random.default_rng(0), (2, 5, 3))
    assert_same_bits("output", again(x)[0], layer(x)[0])


@pytest.mark.parametrize("return_sequences", [True, False])
def test_sequential(return_sequences, tmp_path):
    model = network(return_sequences)
    fg.save(model, tmp_path / "a", record={"epochs": 3, "losses": [0.5, 0.1]})
    again = fg.load(tmp_path / "a")
    assert_same_module(again, model)
    assert again.modules[1].leak.dtype == np.float32
    assert_same_bits("leak", again.modules[1].leak, model.modules[1].leak)
    assert files.read_header(tmp_path / "a").header["record"] == {"epochs": 3, "losses": [0.5, 0.1]}
    fg.save(again, tmp_path / "b", record={"epochs": 3, "losses": [0.5, 0.1]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "module", [fg.Dense(3, 2, "softmax", seed=0), fg.Scaling([1], [2], inverse=True)], ids=repr
)
def test_other_modules(module, tmp_path):
    fg.save(module, tmp_path / "a")
    assert_same_module(fg.load(tmp_path / "a"), module)


def test_a_layer_of_any_cell_by_its_name(tmp_path):
    layer = fg.Recurrent("leaky_rnn", 2, 3, unit_constant=[0.1, 0.2, 0.3], seed=0)
    fg.save(layer, tmp_path / "a")
    again = fg.load(tmp_path / "a")
    x = normal(np.random.default_rng(0), (2, 5, 2))
    assert_same_bits("output", again(x)[0], layer(x)[0])


@given(
    case=st.sampled_from(CELLS),
    sizes=st.tuples(*[st.integers(1, 9)] * 2),
    num_layers=st.integers(1, 3),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    seed=st.integers(0, 99),
)
def test_description_and_tensors_say_all(case, sizes, num_layers, bias, bidirectional, seed):
    layer = case.build(*sizes, num_layers, bias=bias, bidirectional=bidirectional, seed=seed)
    description = json.loads(json.dumps(files.describe(layer)))
    assert_same_module(files.rebuild(description, layer.state_dict()), layer)


def test_every_option_of_every_constructor_is_described():
    """A new option of a layer must be an attribute of the same name, or this fails."""
    for layer in (
        fg.RNN(2, 3, leak=0.5), fg.GRU(2, 3), fg.SimplifiedGRU(2, 3), fg.LSTM(2, 3),
        fg.Recurrent("gru", 2, 3), fg.Dense(2, 3),
    ):  # fmt: skip
        signature = inspect.signature(type(layer)).parameters
        names = {n for n, p in signature.items() if p.kind is not p.VAR_KEYWORD} - {"seed"}
        assert names <= set(files.describe(layer))


def test_reference_guards_the_weights(tmp_path):
    fg.save(network(), tmp_path / "a")
    kind, version, (tensors, header) = read_any(tmp_path / "a")
    tensors["3.weight_hh_l1"][0, 0] += 0.25
    write_model(tmp_path / "b", kind, version, tensors, header)
    with pytest.raises(ModelFileError, match="does not give the output that was saved with it"):
        fg.load(tmp_path / "b")
    changed = fg.load(tmp_path / "b", verify=False)
    assert changed.parameters["3.weight_hh_l1"][0, 0] == tensors["3.weight_hh_l1"][0, 0]


def _drop(name):
    return lambda tensors, header: tensors.pop(name)


def _set(name, shape):
    return lambda tensors, header: tensors.update({name: np.zeros(shape, np.float32)})


def _model(**entries):
    return lambda tensors, header: header["model"].update(entries)


EDITS = {
    "missing": (_drop("2.weight"), r"missing \['weight'\]"),
    "missing mean": (_drop("0.mean"), "no tensor 'mean'"),
    "left over": (_set("2.bias", 4), r"unknown \['bias'\]"),
    "no such module": (_set("9.weight", (1, 1)), r"no module takes the tensors \['9.weight'\]"),
    "shape": (_set("2.weight", (5, 4)), r"weight must have shape \(4, 5\), got \(5, 4\)"),
    "half a reference": (_drop("reference.output"), "both of reference.input"),
    "reference shape": (_set("reference.output", (2, 9, 3)), "reference output has shape"),
    "reference input": (_set("reference.input", (2, 9, 3)), "reference input cannot be run"),
    "no model": (lambda t, h: h.pop("model"), "lacks 'model'"),
    "kind": (_model(kind="Eval"), "described by a kind among"),
    "option": (_model(jump=1), "Sequential has no option jump: pip install"),
    "value": (lambda t, h: h["model"]["modules"][1].update(nonlinearity="x"), "nonlinearity must"),
    "sizes": (lambda t, h: h["model"]["modules"].pop(2), "must"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_files(name, tmp_path):
    change, message = EDITS[name]
    fg.save(network(), tmp_path / "a")
    kind, version, (tensors, header) = read_any(tmp_path / "a")
    change(tensors, header)
    write_model(tmp_path / "b", kind, version, tensors, header)
    with pytest.raises(ModelFileError, match=message) as caught:
        fg.load(tmp_path / "b")
    assert str(caught.value).startswith(f"{tmp_path / 'b'}: ") and "\n" not in str(caught.value)


def test_newer_and_unknown_files(tmp_path):
    write_model(tmp_path / "a", "fastgates.module", 99, {}, {})
    with pytest.raises(ModelFileError, match=r"newer fastgates \(format 99, this one reads up to"):
        fg.load(tmp_path / "a")
    write_model(tmp_path / "a", "fastgates.crystal_ball", 1, {}, {})
    with pytest.raises(ModelFileError, match=r"does not know; it knows .*fastgates\.forecaster, "):
        fg.load(tmp_path / "a")


def test_what_cannot_be_saved(tmp_path):
    class Mine(fg.GRU):
        pass

    layer = fg.GRU(2, 3)
    with pytest.raises(TypeError, match="only objects of Module"):
        fg.save({"a": 1}, tmp_path / "a")
    with pytest.raises(TypeError, match="module must be one of RNN, "):
        fg.save(Mine(2, 3), tmp_path / "a")
    with pytest.raises(TypeError, match="record must be a mapping"):
        fg.save(layer, tmp_path / "a", record=[1])
    with layer.edit_parameters() as parameters:
        parameters.vector[0] = np.nan
    with pytest.raises(ValueError, match="weight_ih_l0 must be finite"):
        fg.save(layer, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pair_kind(monkeypatch):
    monkeypatch.setattr(files, "_kinds", dict(files._kinds))

    class Pair:
        def __init__(self, layer, bias):
            self.layer, self.bias = layer, bias

    def from_file(header, tensors, version):
        layer = files.rebuild(header["layer"], files.pop_prefix(tensors, "layer."))
        return Pair(layer, tensors.pop("bias"))

    files.register(
        files.Kind(
            "test.pair",
            1,
            Pair,
            lambda pair: (
                {"layer": files.describe(pair.layer)},
                {f"layer.{n}": v for n, v in pair.layer.state_dict().items()} | {"bias": pair.bias},
            ),
            from_file,
            example=lambda pair: np.ones((1, 2, 2), np.float32),
            run=lambda pair, x: pair.layer(x)[0] + pair.bias,
        )
    )
    return Pair


def test_kinds_of_others(pair_kind, tmp_path):
    pair = pair_kind(fg.GRU(2, 3, seed=0), np.arange(3, dtype=np.float32))
    fg.save(pair, tmp_path / "a")
    again = fg.load(tmp_path / "a")
    assert_same_module(again.layer, pair.layer)
    assert_same_bits("bias", again.bias, pair.bias)
    _, version, (tensors, header) = read_any(tmp_path / "a")
    tensors["more"] = tensors["bias"]
    write_model(tmp_path / "b", "test.pair", version, tensors, header)
    with pytest.raises(ModelFileError, match="nothing takes the tensors more"):
        fg.load(tmp_path / "b")
    with pytest.raises(ValueError, match="registered already"):
        files.register(files._kinds["test.pair"])


def test_files_of_every_version_keep_loading():
    assert (
        len(list(FIXTURES.glob("module-v*.safetensors")))
        == files._kinds["fastgates.module"].version
    )
    assert_same_module(fg.load(FIXTURES / "module-v1.safetensors"), network(False))


def test_digest_and_summary():
    model = network()
    first = files.digest(model.state_dict(), files.describe(model))
    assert first == files.digest(network().state_dict(), files.describe(network()))
    with model.edit_parameters() as parameters:
        parameters.vector[0] += 1
    assert first != files.digest(model.state_dict(), files.describe(model))
    rows = files.summarize(model)
    assert [row.kind for row in rows] == ["Scaling", "RNN", "Dense", "LSTM", "Dense", "Scaling"]
    assert sum(row.parameters for row in rows) == sum(v.size for v in model.state_dict().values())
    assert rows[1].options == "hidden_size=5, leak=[5 numbers]"
    assert rows[2].options == "activation=tanh, bias=False"
    assert rows[4].options == ""
