"""The reference itself: central differences, and PyTorch in float64."""

import naive
import numpy as np
import pytest
from helpers import CELLS, TORCH_CELLS, as_state, assert_close, named_parts, parts

LAYOUTS = [
    pytest.param(1, False, True, id="one-layer"),
    pytest.param(1, False, False, id="no-bias"),
    pytest.param(2, True, True, id="two-layers-bidirectional"),
]


def make(case, num_layers, bidirectional, bias, *, batch=2, time=4, input_size=3, hidden_size=4):
    """A float64 problem: cell, parameters, x, initial state, gradients from above."""
    rng = np.random.default_rng(7)
    num_directions = 2 if bidirectional else 1
    cell = case.reference(hidden_size)
    parameters = naive.random_parameters(
        cell, rng, input_size, hidden_size, num_layers, num_directions, bias
    )
    parameters = {name: 2.0 * value.astype(np.float64) for name, value in parameters.items()}
    shape = (num_layers * num_directions, batch, hidden_size)
    x = rng.standard_normal((batch, time, input_size))
    initial = as_state([rng.standard_normal(shape) for _ in range(cell.num_states)])
    d_output = rng.standard_normal((batch, time, num_directions * hidden_size))
    d_final = as_state([rng.standard_normal(shape) for _ in range(cell.num_states)])
    sizes = {"num_layers": num_layers, "num_directions": num_directions}
    return cell, parameters, x, initial, d_output, d_final, sizes


@pytest.mark.parametrize("case", CELLS, ids=str)
@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), LAYOUTS)
def test_gradients_are_central_differences(case, num_layers, bidirectional, bias):
    cell, parameters, x, initial, d_output, d_final, sizes = make(
        case, num_layers, bidirectional, bias, hidden_size=4 // num_layers
    )
    resets = np.array([[True, False, True, False], [False, True, False, False]])
    mask = np.array([0.0, 2.0])[np.arange(x.shape[0] * x.shape[1] * d_output.shape[2]) % 2]
    data = {
        **sizes,
        "lengths": np.array([4, 3]),
        "resets": resets,
        "masks": [mask.reshape(d_output.shape)] * (num_layers - 1),
    }

    def loss(_=None):
        output, final_state, _ = naive.forward(cell, parameters, x, initial_state=initial, **data)
        total = np.sum(output * d_output)
        for part, d_part in zip(parts(final_state), parts(d_final), strict=True):
            total += np.sum(part * d_part)
        return total

    _, _, tape = naive.forward(cell, parameters, x, initial_state=initial, **data)
    d_input, d_initial, d_parameters = naive.backward(tape, d_output, d_final)
    assert_close("d_input", d_input, naive.central_difference(loss, x), 1e-7)
    for label, part, d_part in named_parts(initial, d_initial):
        expected = naive.central_difference(loss, part)
        assert_close(f"d_initial_state.{label}", d_part, expected, 1e-7)
    assert list(d_parameters) == list(parameters)
    for name, parameter in parameters.items():
        expected = naive.central_difference(loss, parameter)
        assert_close(f"d_{name}", d_parameters[name], expected, 1e-7)


@pytest.mark.parametrize("activation", naive.DENSE_ACTIVATIONS)
def test_dense_gradients_are_central_differences(activation):
    rng = np.random.default_rng(3)
    weight, bias, x = (rng.standard_normal(shape) for shape in [(4, 3), (4,), (2, 5, 3)])
    d_output = rng.standard_normal((2, 5, 4))

    def loss(_):
        return np.sum(naive.dense(weight, bias, x, activation) * d_output)

    gradients = naive.dense_backward(weight, bias, x, activation, d_output)
    for name, array, gradient in zip(
        ("x", "weight", "bias"), (x, weight, bias), gradients, strict=True
    ):
        assert_close(f"d_{name}", gradient, naive.central_difference(loss, array), 1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("case", TORCH_CELLS, ids=str)
@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), LAYOUTS)
@pytest.mark.parametrize("lengths", [None, [4, 2, 6]], ids=["full", "lengths"])
def test_reference_is_torch_in_float64(case, num_layers, bidirectional, bias, lengths):
    torch = pytest.importorskip("torch")
    cell, parameters, x, initial, d_output, d_final, sizes = make(
        case, num_layers, bidirectional, bias, batch=3, time=6, input_size=5, hidden_size=4
    )
    output, final_state, tape = naive.forward(
        cell, parameters, x, initial_state=initial, lengths=lengths, **sizes
    )
    d_input, d_initial, d_parameters = naive.backward(tape, d_output, d_final)

    module = case.build_torch(5, 4, num_layers, bidirectional=bidirectional, bias=bias).double()
    module.load_state_dict({name: torch.tensor(value) for name, value in parameters.items()})
    torch_x = torch.tensor(x, requires_grad=True)
    torch_initial = [torch.tensor(part, requires_grad=True) for part in parts(initial)]
    rnn = torch.nn.utils.rnn
    packed = torch_x
    if lengths is not None:
        packed = rnn.pack_padded_sequence(torch_x, lengths, batch_first=True, enforce_sorted=False)
    torch_output, torch_final = module(packed, as_state(torch_initial))
    if lengths is not None:
        torch_output, _ = rnn.pad_packed_sequence(torch_output, batch_first=True, total_length=6)
    loss = (torch_output * torch.tensor(d_output)).sum()
    for part, d_part in zip(parts(torch_final), parts(d_final), strict=True):
        loss = loss + (part * torch.tensor(d_part)).sum()
    loss.backward()

    assert_close("output", output, torch_output.detach().numpy(), 1e-13)
    for part, torch_part in zip(parts(final_state), parts(torch_final), strict=True):
        assert_close("final_state", part, torch_part.detach().numpy(), 1e-13)
    assert_close("d_input", d_input, torch_x.grad.numpy(), 1e-12)
    for d_part, torch_part in zip(parts(d_initial), torch_initial, strict=True):
        assert_close("d_initial_state", d_part, torch_part.grad.numpy(), 1e-12)
    for name, parameter in module.named_parameters():
        assert_close(f"d_{name}", d_parameters[name], parameter.grad.numpy(), 1e-12)
