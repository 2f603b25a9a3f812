"""Small maps take a kernel of their own: the same bits as in a large one."""

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits

import fastgates as fg
from fastgates.engine.linear import SMALL_MAP, SMALL_ROWS

SIZES = [(1, 1), (7, 9), (32, 1), (33, 5), (64, 17)]


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_rows_alone_and_in_a_large_map(inputs, outputs, bias, monkeypatch):
    dense = fg.Dense(inputs, outputs, bias=bias, seed=0)
    random = np.random.default_rng(1)
    rows = max(SMALL_ROWS, SMALL_MAP // (inputs * outputs)) + 5
    x = random.standard_normal((rows, inputs))
    pieces = [dense(x[k : k + 3]) for k in range(0, rows, 3)]
    assert_same_bits("output", np.concatenate(pieces), dense(x))

    few = min(SMALL_ROWS, SMALL_MAP // (inputs * outputs))
    d_output = random.standard_normal((few, outputs))
    results = []
    for small in (True, False):
        if not small:
            monkeypatch.setattr("fastgates.dense.SMALL_ROWS", -1)
        output, tape = dense.forward(x[:few])
        results.append((output, dense.backward(tape, d_output)))
    (output, ours), (expected, theirs) = results
    assert_same_bits("output", output, expected)
    assert_same_bits("d_input", ours.input, theirs.input)
    # These sums over rows are in another order.
    for name, value in theirs.parameters.items():
        exact = d_output.sum(axis=0) if name == "bias" else d_output.T @ np.float32(x[:few])
        assert_close(name, ours.parameters[name], exact, 1e-5)
        assert_close(name, value, exact, 1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0, 3), (3,)])
def test_no_rows_and_one(shape):
    dense = fg.Dense(3, 2, seed=0)
    output, tape = dense.forward(np.ones(shape))
    assert output.shape == (*shape[:-1], 2)
    gradients = dense.backward(tape, np.ones_like(output))
    assert gradients.input.shape == shape
    assert np.isfinite(gradients.parameter_vector).all()
    assert gradients.parameter_vector.any() == (output.size > 0)
