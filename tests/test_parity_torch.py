"""The same numbers as PyTorch's layers: outputs, gradients, state dicts, and the same accuracy."""

import numpy as np
import pytest
from helpers import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    TORCH_CELLS,
    as_state,
    assert_close,
    assert_same_bits,
    make_problem,
    parts,
)

pytestmark = [
    pytest.mark.parity,
    # PyTorch speaks to its own users here: a CPU build, a deprecation inside the library.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]
torch = pytest.importorskip("torch")

LAYOUTS = {
    "plain": {},
    "no-bias": {"bias": False},
    "zero-initial-state": {"initial_state": False},
    "two-layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "lengths": {"lengths": True},
    "everything": {"num_layers": 2, "bidirectional": True, "lengths": True},
}


def same_in_torch(problem):
    """PyTorch's module with the layer's parameters, through load_state_dict."""
    layer = problem.layer
    module = problem.case.build_torch(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=layer.bias,
        bidirectional=layer.bidirectional,
    )
    state_dict = {name: torch.from_numpy(value) for name, value in layer.state_dict().items()}
    module.load_state_dict(state_dict, strict=True)
    return module


def run_torch(problem, module):
    """Output, final state, (d_input, d_initial_state or None, d_parameters) as NumPy arrays."""
    rnn = torch.nn.utils.rnn
    x = torch.tensor(problem.x, requires_grad=True)
    state = None
    if problem.initial_state is not None:
        state = [torch.tensor(part, requires_grad=True) for part in parts(problem.initial_state)]
    fed = x
    if problem.lengths is not None:
        fed = rnn.pack_padded_sequence(
            x, torch.from_numpy(problem.lengths), batch_first=True, enforce_sorted=False
        )
    output, final_state = module(fed, None if state is None else as_state(state))
    if problem.lengths is not None:
        output, _ = rnn.pad_packed_sequence(
            output, batch_first=True, total_length=problem.x.shape[1]
        )
    loss = (output * torch.from_numpy(problem.d_output)).sum()
    for part, d_part in zip(parts(final_state), parts(problem.d_final_state), strict=True):
        loss = loss + (part * torch.from_numpy(d_part)).sum()
    loss.backward()
    return (
        output.detach().numpy(),
        [part.detach().numpy() for part in parts(final_state)],
        (
            x.grad.numpy(),
            None if state is None else [part.grad.numpy() for part in state],
            {name: parameter.grad.numpy() for name, parameter in module.named_parameters()},
        ),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(5, 9, 3, 9), (18, 20, 17, 33)], ids=str)
def test_outputs_and_gradients(torch_case, layout, sizes):
    batch, time, input_size, hidden_size = sizes
    problem = make_problem(
        torch_case,
        seed=1,
        batch=batch,
        time=time,
        input_size=input_size,
        hidden_size=hidden_size,
        **LAYOUTS[layout],
    )
    output, final_state, gradients = problem.run()
    module = same_in_torch(problem)
    torch_output, torch_final, (d_input, d_initial, d_parameters) = run_torch(problem, module)
    assert_close("output", output, torch_output, 2 * OUTPUT_TOLERANCE, floor=1.0)
    for part, torch_part in zip(parts(final_state), torch_final, strict=True):
        assert_close("final_state", part, torch_part, 2 * OUTPUT_TOLERANCE, floor=1.0)
    assert_close("gradient of input", gradients.input, d_input, 2 * GRADIENT_TOLERANCE)
    if d_initial is not None:
        for part, torch_part in zip(parts(gradients.initial_state), d_initial, strict=True):
            assert_close("gradient of initial_state", part, torch_part, 2 * GRADIENT_TOLERANCE)
    assert list(gradients.parameters) == list(d_parameters)
    for name, gradient in d_parameters.items():
        assert_close(name, gradients.parameters[name], gradient, 2 * GRADIENT_TOLERANCE)


@pytest.mark.parametrize("layout", ["plain", "no-bias", "everything"])
def test_state_dicts_go_both_ways(torch_case, layout):
    problem = make_problem(torch_case, **LAYOUTS[layout])
    layer = problem.layer
    module = same_in_torch(problem)  # ours to theirs: strict, so the names and shapes agree
    assert list(module.state_dict()) == list(layer.state_dict())
    for name, value in module.state_dict().items():
        assert_same_bits(name, layer.parameters[name], value.numpy())

    fresh = torch_case.build_torch(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=layer.bias,
        bidirectional=layer.bidirectional,
    )
    layer.load_state_dict(fresh.state_dict())  # theirs to ours: tensors as they are
    for name, value in fresh.state_dict().items():
        assert_same_bits(name, layer.parameters[name], value.numpy())
    with torch.no_grad():
        expected, _ = fresh(torch.from_numpy(problem.x))
    output, _ = layer(problem.x)
    assert_close("output", output, expected.numpy(), 2 * OUTPUT_TOLERANCE, floor=1.0)


def test_parameters_with_gradients_load_too(torch_case):
    """named_parameters() gives tensors that require gradients."""
    module = torch_case.build_torch(4, 6)
    layer = torch_case.build(4, 6)
    layer.load_state_dict(dict(module.double().state_dict()))
    for name, value in module.state_dict().items():
        assert_same_bits(name, layer.parameters[name], value.numpy().astype(np.float32))


def error(actual, expected):
    """Largest difference relative to the largest expected entry."""
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("time", [10, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_less_accurate_than_torch(torch_case, time, seed):
    """Errors against float64: at most 4 times PyTorch's, or below a few roundings."""
    problem = make_problem(torch_case, seed=seed, batch=4, time=time, input_size=10, hidden_size=40)
    expected_output, expected_final, (d_input, d_initial, d_parameters) = problem.run_naive()
    output, final_state, gradients = problem.run()
    torch_output, torch_final, (t_input, t_initial, t_parameters) = run_torch(
        problem, same_in_torch(problem)
    )
    compared = {
        "output": (output, torch_output, expected_output),
        "gradient of input": (gradients.input, t_input, d_input),
    }
    for i, label in enumerate("hc"[: torch_case.num_states]):
        compared[f"final_state.{label}"] = (
            parts(final_state)[i],
            torch_final[i],
            parts(expected_final)[i],
        )
        compared[f"gradient of initial_state.{label}"] = (
            parts(gradients.initial_state)[i],
            t_initial[i],
            parts(d_initial)[i],
        )
    for name in d_parameters:
        compared[f"gradient of {name}"] = (
            gradients.parameters[name],
            t_parameters[name],
            d_parameters[name],
        )
    for name, (ours, theirs, exact) in compared.items():
        allowed = max(4 * error(theirs, exact), 4 * np.finfo(np.float32).eps)
        assert error(ours, exact) <= allowed, (
            f"{name}: error {error(ours, exact):.3g}, PyTorch's {error(theirs, exact):.3g}"
        )


def test_torch_cells_are_those_with_torch_parameters():
    assert {case.registered for case in TORCH_CELLS} == {
        "rnn",
        "rnn_relu",
        "gru_reset_after",
        "lstm",
    }
