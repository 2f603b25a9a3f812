"""Models from PyTorch and back: the same bits of weights, the same outputs."""

import itertools

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, normal
from hypothesis import given
from hypothesis import strategies as st

import fastgates as fg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
nn = torch.nn

KINDS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def arrays(state):
    return state if isinstance(state, tuple) else (state,)


def assert_same_outputs(layer, module, features, time=20, batch=3):
    x = normal(np.random.default_rng(1), (batch, time, features))
    module.eval()
    with torch.no_grad():
        expected, expected_state = module(torch.from_numpy(x))
    output, state = layer(x)
    assert_close("output", output, expected.numpy(), 1e-6, floor=1.0)
    if isinstance(layer, fg.Sequential):
        state, expected_state = state[0], expected_state[0]
    for part, other in zip(arrays(state), arrays(expected_state), strict=True):
        assert_close("state", part, other.numpy(), 1e-6, floor=1.0)


def assert_same_weights(actual, expected):
    expected, actual = expected.state_dict(), actual.state_dict()
    for name, value in expected.items():
        assert_same_bits(name, np.asarray(actual[name]), np.asarray(value))


@given(
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(1, 3)),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    relu=st.booleans(),
    time=st.integers(1, 100),
    seed=st.integers(0, 99),
)
def test_round_trips(kind, sizes, bias, bidirectional, batch_first, relu, time, seed):
    torch.manual_seed(seed)
    options = {"nonlinearity": "relu"} if kind == "RNN" and relu else {}
    module = KINDS[kind](
        *sizes, bias=bias, bidirectional=bidirectional, batch_first=batch_first, **options
    )
    layer = fg.from_torch(module)
    assert isinstance(layer, getattr(fg, kind))
    assert_same_weights(layer, module)
    again = fg.to_torch(layer)
    assert_same_weights(again, module)
    assert_same_outputs(layer, again, sizes[0], time)


@pytest.mark.parametrize(
    "cell",
    [nn.RNNCell(3, 5), nn.RNNCell(3, 5, nonlinearity="relu"), nn.GRUCell(3, 5), nn.LSTMCell(3, 5)],
    ids=str,
)
def test_cells(cell):
    layer = fg.from_torch(cell)
    x = normal(np.random.default_rng(0), (4, 3))
    with torch.no_grad():
        expected = arrays(cell(torch.from_numpy(x)))
    _, state = layer(x[:, None])
    for part, other in zip(arrays(state), expected, strict=True):
        assert_close("state", part[0], other.numpy(), 1e-6, floor=1.0)


def stack(return_sequences=True):
    return fg.Sequential(
        fg.Scaling([1.0, -2.0, 0.5], [2.0, 0.5, 4.0]),
        fg.GRU(3, 6, reset_after=True, bidirectional=True, seed=0),
        fg.Dense(12, 5, "tanh", seed=1),
        fg.LSTM(5, 4, num_layers=2, seed=2),
        fg.Dense(4, 2, "softmax", bias=False, seed=3),
        fg.Scaling([3.0, 0.0], [10.0, 0.1], inverse=True),
        return_sequences=return_sequences,
    )


@pytest.mark.parametrize("return_sequences", [True, False])
def test_a_whole_model(return_sequences):
    model = stack(return_sequences)
    module = fg.to_torch(model)
    assert_same_outputs(model, module, 3)
    again = fg.from_torch(module)
    assert repr(again) == repr(model)
    assert_same_weights(again, model)


def test_a_stack_that_torch_trained():
    modules = [nn.LSTM(2, 8, 2, batch_first=True), nn.Dropout(0.5), nn.Linear(8, 4), nn.ReLU()]
    model = fg.from_torch(modules, return_sequences=False)
    assert repr(model) == (
        "Sequential(LSTM(2, 8, num_layers=2), Dense(8, 4, 'relu'), return_sequences=False)"
    )
    x = normal(np.random.default_rng(0), (3, 6, 2))
    with torch.no_grad():
        hidden, _ = modules[0](torch.from_numpy(x))
        expected = modules[3](modules[2](hidden[:, -1])).numpy()
    assert_close("output", model(x)[0], expected, 1e-6, floor=1.0)
    same = fg.from_torch(nn.ModuleList(modules), return_sequences=False)
    assert_same_weights(same, model)


def test_files_of_weights(tmp_path):
    module = nn.ModuleDict(
        {"encoder": nn.RNN(3, 5, 2, bidirectional=True, nonlinearity="relu"),
         "head": nn.Linear(10, 2), "cell": nn.GRUCell(2, 4)}
    )  # fmt: skip
    for content in (module.state_dict(), {"state_dict": module.state_dict(), "epoch": 3}):
        torch.save(content, tmp_path / "a.pt")
        model = fg.from_torch(tmp_path / "a.pt", nonlinearity="relu")
        assert repr(model) == (
            "Sequential(RNN(3, 5, num_layers=2, bidirectional=True, nonlinearity='relu'), "
            "Dense(10, 2, 'identity'), GRU(2, 4, reset_after=True))"
        )
        assert_same_weights(model.modules[1], module["head"])
    from fastgates.interchange.torch_modules import write_pt

    kept = fg.Sequential(fg.Scaling([1.0], [2.0]), fg.LSTM(1, 4, seed=0), fg.Dense(4, 1, seed=1))
    write_pt(kept, tmp_path / "b.pt")
    again = fg.from_torch(tmp_path / "b.pt")
    assert repr(again) == repr(kept)
    assert_same_weights(again, kept)
    for lost, message in ((stack(), "lose the activation 'tanh'"), (
        fg.Sequential(fg.LSTM(1, 4), return_sequences=False), "lose return_sequences=False"
    )):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            write_pt(lost, tmp_path / "c.pt")


def test_a_file_is_not_executed(tmp_path):
    torch.save(nn.LSTM(2, 3), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match="not a file of weights"):
        fg.from_torch(tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="must hold a state_dict, got list"):
        fg.from_torch(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError):
        fg.from_torch(tmp_path / "absent.pt")


class Custom(nn.Module):
    pass


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Silent(nn.Identity):
    def forward(self, x):
        return 0 * x


def hooked():
    module = nn.Linear(4, 2)
    module.register_forward_hook(lambda module, given, output: 2 * output)
    return module


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: nn.LSTM(2, 4, proj_size=3), "LSTM has proj_size=3"),
        (lambda: nn.LSTM(2, 4).double(), "must be float32, got float64"),
        (lambda: nn.Transformer, "type has no counterpart"),
        (lambda: [nn.LSTM(2, 4), Custom()], "Custom has no counterpart here. Of a module of your"),
        (lambda: [nn.LSTM(2, 4), nn.Tanh()], "Tanh is supported after a dense layer only"),
        (lambda: [nn.LSTM(2, 4), nn.Linear(5, 2)], "do not fit each other"),
        (lambda: [nn.LSTM(2, 4), nn.Linear(4, 2), nn.Softmax(dim=1)], "must be over dim=-1"),
        (lambda: nn.LSTM(2, 4, proj_size=3).state_dict(), "'weight_hr_l0' is no parameter of"),
        (lambda: nn.Conv1d(2, 3, 4).state_dict(), "are no parameters of an RNN"),
        (lambda: {}, "no layer in the model"),
        (lambda: Doubled(nn.Linear(4, 2)), "Doubled has a forward of its own"),
        (lambda: [nn.LSTM(2, 4), Doubled(nn.Linear(4, 2))], "Doubled has a forward of its own"),
        (lambda: [nn.LSTM(2, 4), Silent()], "Silent has a forward of its own"),
        (lambda: [nn.LSTM(2, 4), hooked()], "Linear has forward hooks"),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 2)), "Linear has forward hooks"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), "has parametrizations"),
        (lambda: nn.LSTM(2, 4).bfloat16(), "weight_ih_l0 of LSTM cannot be read"),
        (lambda: nn.LSTM(2, 4, device="meta"), "weight_ih_l0 of LSTM cannot be read"),
        (lambda: nn.GRU(2, 4).state_dict() | {"weight_hh_l0": torch.ones(4)}, "must be a matrix"),
        (lambda: {3: torch.ones(4)}, "3 is no parameter of"),
    ],
)
def test_what_cannot_come_in(source, message):
    with pytest.raises(ValueError, match=message):
        fg.from_torch(source())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (fg.GRU(2, 3), "PyTorch has no GRU with reset_after=False"),
        (fg.RNN(2, 3, leak=0.5), "no RNN with leak"),
        (fg.LSTM(2, 3, peepholes=True, clip=1.0), "no LSTM with peepholes, clip"),
        (fg.SimplifiedGRU(2, 3), "no SimplifiedGRU"),
        (fg.LSTM(2, 3, 2, dropout=0.5, variational=True), "variational dropout"),
        (fg.Recurrent("lstm", 2, 3), "cell lstm"),
    ],
    ids=repr,
)
def test_what_cannot_go_out(model, message):
    with pytest.raises(ValueError, match=message):
        fg.to_torch(model)


def test_tensors_are_taken_without_a_copy():
    from fastgates._checks import real_array

    tensor = torch.randn(2, 3, 4)
    axes = ("batch_size", "time", ("input_size", 4))
    assert np.shares_memory(real_array("x", tensor, axes), tensor.numpy())

    class OnlyDLPack:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    assert np.shares_memory(real_array("x", OnlyDLPack(tensor), axes), tensor.numpy())
    layer = fg.GRU(4, 5, seed=0)
    for x in (tensor, OnlyDLPack(tensor)):
        assert_same_bits("output", layer(x)[0], layer(tensor.numpy())[0])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4, requires_grad=True),
        torch.zeros(2, 3, 4, dtype=torch.bfloat16),
        torch.empty(2, 3, 4, device="meta"),
    ],
    ids=["gradient", "bfloat16", "device"],
)
def test_tensors_that_numpy_cannot_see(tensor):
    with pytest.raises(TypeError, match="x must be an array, or a tensor on the CPU"):
        fg.GRU(4, 5, seed=0)(tensor)


def test_states_may_be_tensors():
    layer = fg.LSTM(4, 5, seed=0)
    x, h, c = torch.randn(2, 3, 4), torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    expected = layer(x.numpy(), (h.numpy(), c.numpy()))
    for actual, other in zip(
        itertools.chain(*layer(x, (h, c))), itertools.chain(*expected), strict=True
    ):
        assert_same_bits("output", actual, other)


class Trained(nn.Sequential):
    def loss(self, x):
        return self(x).square().mean()


def test_a_subclass_that_runs_as_usual():
    module = Trained(nn.Linear(4, 2), nn.Tanh())
    x = torch.randn(3, 4)
    found = fg.from_torch(module)(x.numpy())
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=0, atol=1e-6)


def test_a_file_of_weights_would_lose_the_nonlinearity(tmp_path):
    from fastgates.interchange.torch_modules import write_pt

    with pytest.raises(fg.InterchangeError, match="would lose the nonlinearity 'relu'"):
        write_pt(fg.RNN(3, 4, nonlinearity="relu", seed=0), tmp_path / "a.pt")
