"""A fifth cell from outside the package gets everything that the four have.

`docs/adding-a-cell.md` quotes `toy_cell.py` whole; `test_docs.py` checks that it still does.
"""

import copy
import pickle
from dataclasses import dataclass

import naive
import numpy as np
import pytest
import toy_cell
from helpers import CellCase, assert_same_bits, assert_same_gradients, assert_same_state
from helpers import make_problem as make_any_problem

import fastgates as fg


class CoupledLSTM:
    """The equations of `toy_cell` in float64, one unit row at a time, as the cells of `naive`."""

    gates = 3
    num_states = 2

    def step(self, p, x, states):
        h, c = states
        a_f, a_g, a_o = np.split(p.W @ h + p.b_hh + p.U @ x + p.b_ih, 3)
        f, g, o = naive.sigmoid(a_f), np.tanh(a_g), naive.sigmoid(a_o)
        c_new = f * c + (1.0 - f) * g
        return (o * np.tanh(c_new), c_new), (x, h, c, f, g, o, c_new)

    def step_backward(self, p, saved, d_states, d_p):
        d_h_new, d_c_new = d_states
        x, h, c, f, g, o, c_new = saved
        tanh_c = np.tanh(c_new)
        d_o = d_h_new * tanh_c
        d_c_new = d_c_new + d_h_new * o * (1.0 - tanh_c * tanh_c)
        d_f = d_c_new * (c - g)
        d_g = d_c_new * (1.0 - f)
        d_a = np.concatenate([d_f * f * (1.0 - f), d_g * (1.0 - g * g), d_o * o * (1.0 - o)])
        d_p.W += np.outer(d_a, h)
        d_p.U += np.outer(d_a, x)
        d_p.b_hh += d_a
        d_p.b_ih += d_a
        return p.U.T @ d_a, (p.W.T @ d_a, d_c_new * f)


@dataclass(frozen=True)
class ToyCase(CellCase):
    """As `CellCase`, for a cell that `fastgates.Recurrent` runs by its name."""

    def build(self, input_size, hidden_size, num_layers=1, **options):
        return fg.Recurrent("coupled_lstm", input_size, hidden_size, num_layers, **options)

    def reference(self, hidden_size):
        return CoupledLSTM()

    @property
    def gates(self):
        return CoupledLSTM.gates

    @property
    def num_states(self):
        return CoupledLSTM.num_states


def make_problem(**options):
    return make_any_problem(ToyCase("coupled_lstm", "coupled_lstm", "Recurrent"), **options)


def test_it_is_registered():
    assert fg.cells.registered()["coupled_lstm"] is toy_cell.COUPLED_LSTM
    with pytest.raises(ValueError, match="registered already"):
        fg.cells.register(toy_cell.COUPLED_LSTM)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "initial_state": False},
        {"num_layers": 2, "bidirectional": True, "lengths": True, "resets": True},
    ],
    ids=["plain", "no-bias", "everything"],
)
@pytest.mark.parametrize(
    ("batch", "time", "input_size", "hidden_size"), [(1, 7, 3, 1), (5, 6, 4, 9), (2, 40, 9, 17)]
)
def test_outputs_and_gradients_against_the_reference(batch, time, input_size, hidden_size, options):
    make_problem(
        batch=batch, time=time, input_size=input_size, hidden_size=hidden_size, **options
    ).check()


def test_the_reference_has_the_gradients_of_its_own_forward():
    """Central differences in float64, so the reference is not merely the same mistake twice."""
    problem = make_problem(batch=2, time=4, input_size=2, hidden_size=3, lengths=True)
    parameters = {
        name: value.astype(np.float64) for name, value in problem.layer.parameters.items()
    }

    def run():
        return naive.forward(CoupledLSTM(), parameters, problem.x, initial_state=state, **data)

    def loss():
        output, final_state, _ = run()
        products = [output * problem.d_output]
        products += [a * b for a, b in zip(final_state, problem.d_final_state, strict=True)]
        return sum(product.sum() for product in products)

    state, data = problem.initial_state, {"lengths": problem.lengths}
    _, _, expected = naive.backward(run()[2], problem.d_output, problem.d_final_state)
    step = 1e-5
    for name, value in parameters.items():
        for index in np.ndindex(value.shape):
            kept = value[index]
            value[index] = kept + step
            above = loss()
            value[index] = kept - step
            below = loss()
            value[index] = kept
            slope = (above - below) / (2 * step)
            assert abs(slope - expected[name][index]) < 1e-7, (name, index)


@pytest.mark.usefixtures("restore_threads", "share_out_small_work")
def test_bits_do_not_depend_on_batch_chunks_or_threads():
    problem = make_problem(batch=20, time=50, input_size=17, hidden_size=70)
    layer = problem.layer
    fg.set_num_threads(1)
    output, final_state, gradients = problem.run()
    fg.set_num_threads(3)
    threaded_output, threaded_final, threaded = problem.run()
    assert_same_bits("output", threaded_output, output)
    assert_same_state("final_state", threaded_final, final_state)
    assert_same_gradients("gradients", threaded, gradients)
    row = slice(4, 5)
    state = tuple(part[:, row] for part in problem.initial_state)
    for first in range(0, 50, 19):
        piece, state = layer(problem.x[row, first : first + 19], state)
        assert_same_bits("output of a piece", piece, output[row, first : first + 19])
    assert_same_state("final_state", state, tuple(part[:, row] for part in final_state))


def test_it_trains_is_copied_and_pickled():
    layer, readout = fg.Recurrent("coupled_lstm", 1, 8, seed=0), fg.Dense(8, 1, seed=1)
    optimizer = fg.Adam([layer, readout], lr=0.02)
    x = np.random.default_rng(0).uniform(-1, 1, (32, 12, 1)).astype(np.float32)
    losses = []
    for _ in range(60):
        output, _, tape = layer.forward(x)
        y, readout_tape = readout.forward(output[:, -1])
        loss, d_y = fg.mse(y, x.sum(axis=1))
        losses.append(loss)
        d_readout = readout.backward(readout_tape, d_y)
        d_output = np.zeros_like(output)
        d_output[:, -1] = d_readout.input
        optimizer.step([layer.backward(tape, d_output), d_readout])
    assert losses[-1] < 0.2 * losses[0]
    expected, _ = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_bits("output", twin(x)[0], expected)
