"""Initial parameters: what each scheme promises, and what it leaves alone."""

import numpy as np
import pytest
from helpers import CELLS

import fastgates as fg
from fastgates.initialization import MEMORY_GATES, chrono, initialize, orthogonal, xavier


def gate_rows(layer, gate):
    k = layer.cell.gates.index(gate)
    return slice(k * layer.hidden_size, (k + 1) * layer.hidden_size)


def test_orthogonal(case):
    layer = case.build(3, 6, 2, bidirectional=True, seed=0)
    before = layer.state_dict()
    orthogonal(layer, 1.5, seed=1)
    for name, value in layer.parameters.items():
        if name.startswith("weight_hh"):
            for gate in value.reshape(-1, 6, 6):
                assert np.allclose(gate @ gate.T, 1.5**2 * np.eye(6), atol=1e-5)
        else:
            assert np.array_equal(value, before[name])
    x = np.ones((1, 2, 3))
    assert not np.array_equal(layer(x)[0], case.build(3, 6, 2, bidirectional=True, seed=0)(x)[0])


def test_xavier():
    layer, readout = fg.LSTM(30, 50, seed=0), fg.Dense(50, 10, seed=0)
    for module, outputs in ((layer, 50), (readout, 10)):
        before = module.state_dict()
        xavier(module, 2.0, seed=1)
        for name, value in module.parameters.items():
            if name.startswith("weight"):
                bound = 2 * np.sqrt(6 / (value.shape[1] + outputs))
                assert 0.98 * bound < np.abs(value).max() <= bound
                assert value.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
            else:
                assert np.array_equal(value, before[name])


@pytest.mark.parametrize("case", CELLS, ids=str)
def test_chrono(case):
    layer = case.build(2, 400, seed=0)
    gates = MEMORY_GATES.get(layer.cell.name)
    if gates is None:
        with pytest.raises(ValueError, match="needs a cell with a gate that keeps its memory"):
            chrono(layer, 100)
        return
    before = layer.state_dict()
    chrono(layer, 100, seed=1)
    after = layer.parameters
    bias = after["bias_ih_l0"] + after["bias_hh_l0"]
    keep = bias[gate_rows(layer, gates.keep)]
    # A unit that keeps the share f of its memory remembers for 1 / (1 - f) steps.
    remembered = 1 + np.exp(keep)
    assert remembered.min() >= 2 and remembered.max() <= 100
    assert abs(remembered.mean() - 51) < 5
    if gates.write is not None:
        assert np.array_equal(bias[gate_rows(layer, gates.write)], -keep)
    untouched = set(layer.cell.gates) - {gates.keep, gates.write}
    for name, value in after.items():
        for gate in untouched:
            rows = gate_rows(layer, gate)
            assert np.array_equal(value[rows], before[name][rows])
        assert name.startswith("bias") or np.array_equal(value, before[name])


def test_the_gates_that_keep_the_memory_do():
    """With the keep gates wide open (and the write gates shut) a step changes nothing."""
    for case in CELLS:
        layer = case.build(2, 4, seed=0)
        gates = MEMORY_GATES.get(layer.cell.name)
        if gates is None:
            continue
        with layer.edit_parameters() as parameters:
            parameters["bias_ih_l0"][gate_rows(layer, gates.keep)] = 40
            if gates.write is not None:
                parameters["bias_ih_l0"][gate_rows(layer, gates.write)] = -40
        memory = np.random.default_rng(0).uniform(-0.9, 0.9, (1, 1, 4)).astype(np.float32)
        state = memory if len(layer.cell.states) == 1 else (memory, memory)
        _, after = layer(np.ones((1, 5, 2)), state)
        kept = after if len(layer.cell.states) == 1 else after[1]
        assert np.allclose(kept, memory, atol=1e-6)


def test_a_scheme_for_a_whole_model():
    scheme = {"xavier": {}, "orthogonal": {"gain": 0.9}, "chrono": {"longest": 50}}
    model = fg.SequenceModel.build("gru", 3, 2, 8, 2, seed=0, initialization=scheme)
    again = fg.SequenceModel.build("gru", 3, 2, 8, 2, seed=0, initialization=scheme)
    other = fg.SequenceModel.build("gru", 3, 2, 8, 2, seed=1, initialization=scheme)
    assert np.array_equal(model.parameter_vector, again.parameter_vector)
    assert not np.array_equal(model.parameter_vector, other.parameter_vector)
    layer = model.recurrent[0]
    first, second = (layer.parameters[f"weight_hh_l{k}"][:8] for k in (0, 1))
    assert np.allclose(first @ first.T, 0.81 * np.eye(8), atol=1e-5)
    assert not np.array_equal(first, second)
    plain = fg.SequenceModel.build("gru", 3, 2, 8, 2, seed=0)
    initialize(plain.network, ["orthogonal"], seed=3)
    x = np.ones((1, 4, 3))
    assert np.array_equal(plain.predict(x), plain.to_sequential()(x)[0])  # packed anew


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: initialize(fg.GRU(1, 2), "zeros"), ValueError, "initialization must be of ortho"),
        (lambda: initialize(fg.GRU(1, 2), "chrono"), ValueError, "chrono needs the longest"),
        (lambda: chrono(fg.GRU(1, 2), 1.0), ValueError, "longest must be a number of steps"),
        (lambda: chrono(fg.GRU(1, 2, bias=False), 9), ValueError, "bias=False"),
        (lambda: orthogonal(fg.GRU(1, 2), gain=0), ValueError, "gain must be a positive number"),
        (lambda: orthogonal(fg.Dense(1, 2)), TypeError, "layer must be a recurrent layer"),
        (lambda: xavier(3), TypeError, "layer must be recurrent or a Dense, got int"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
