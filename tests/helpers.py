"""The table of cells that every test is parametrised over, and the comparisons.

A new member of the family is tested by adding one line to `CELLS`.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import naive
import numpy as np

OUTPUT_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
ROOT = Path(__file__).resolve().parents[1]
# Where the package under test lies: the checkout, or the site-packages it was installed to.
PACKAGE_ROOT = Path(importlib.util.find_spec("fastgates").origin).parents[1]


def vector_leak(hidden_size):
    """One leak per unit, away from and up to both ends of [0, 1]."""
    return np.float32(0.37) * np.arange(hidden_size, dtype=np.float32) % np.float32(1.0)


@dataclass(frozen=True)
class CellCase:
    """A layer of fastgates with its options, its reference, and PyTorch's class if it has one."""

    id: str
    registered: str  # the cell's name in fastgates.cells.registered()
    layer: str  # the class in fastgates
    options: dict = field(default_factory=dict)
    torch_class: str | None = None
    torch_options: dict = field(default_factory=dict)
    leak_per_unit: bool = False

    def layer_options(self, hidden_size):
        """Keyword arguments of the layer's class."""
        options = dict(self.options)
        if self.leak_per_unit:
            options["leak"] = vector_leak(hidden_size)
        return options

    def build(self, input_size, hidden_size, num_layers=1, **options):
        """A layer of fastgates."""
        import fastgates

        options = self.layer_options(hidden_size) | options
        return getattr(fastgates, self.layer)(input_size, hidden_size, num_layers, **options)

    def reference(self, hidden_size):
        """The float64 cell of `naive`."""
        options = self.layer_options(hidden_size)
        if self.layer == "RNN":
            options["leak"] = options.get("leak", 0.0)
        return getattr(naive, self.layer)(**options)

    def build_torch(self, input_size, hidden_size, num_layers=1, **options):
        """The same layer in PyTorch, batch first."""
        import torch

        module = getattr(torch.nn, self.torch_class)
        options = self.torch_options | options
        return module(input_size, hidden_size, num_layers, batch_first=True, **options)

    @property
    def gates(self):
        """Rows of the parameter matrices in units of hidden_size."""
        return getattr(naive, self.layer).gates

    @property
    def num_states(self):
        """1, or 2 for h and c."""
        return getattr(naive, self.layer).num_states

    def __str__(self):
        return self.id


CELLS = [
    CellCase("rnn", "rnn", "RNN", torch_class="RNN"),
    CellCase(
        "rnn_relu",
        "rnn_relu",
        "RNN",
        {"nonlinearity": "relu"},
        torch_class="RNN",
        torch_options={"nonlinearity": "relu"},
    ),
    CellCase("leaky_rnn", "leaky_rnn", "RNN", {"leak": 0.3}),
    CellCase("leaky_rnn_per_unit", "leaky_rnn", "RNN", leak_per_unit=True),
    CellCase("leaky_rnn_relu", "leaky_rnn_relu", "RNN", {"nonlinearity": "relu", "leak": 0.6}),
    CellCase("simplified_gru", "simplified_gru", "SimplifiedGRU"),
    CellCase("gru", "gru", "GRU"),
    CellCase("gru_reset_after", "gru_reset_after", "GRU", {"reset_after": True}, torch_class="GRU"),
    CellCase("lstm", "lstm", "LSTM", torch_class="LSTM"),
]
TORCH_CELLS = [case for case in CELLS if case.torch_class]


def parts(state):
    """The arrays of a state: a pair as it is, a single array as a tuple of one."""
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)


def named_parts(actual, expected):
    """The arrays of two states side by side, with their names; both must have as many."""
    pairs = list(zip(parts(actual), parts(expected), strict=True))
    return [(name, *pair) for name, pair in zip("hc"[: len(pairs)], pairs, strict=True)]


def as_state(arrays):
    """The reverse of `parts`."""
    return tuple(arrays) if len(arrays) > 1 else arrays[0]


def take_rows(state, rows):
    """The given rows of the batch of a state, None stays None."""
    return None if state is None else as_state([part[:, rows] for part in parts(state)])


def assert_close(name, actual, expected, tolerance, floor=0.0):
    """Largest difference at most ``tolerance`` times the largest expected entry (or ``floor``)."""
    actual = np.asarray(actual)
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, (
        f"{name} has shape {actual.shape}, expected {expected.shape}"
    )
    if expected.size == 0:
        return
    assert np.isfinite(actual).all(), f"{name} is not finite at {first(~np.isfinite(actual))}"
    difference = np.abs(actual.astype(np.float64) - expected)
    allowed = tolerance * max(np.abs(expected).max(), floor) + 1e-36
    worst = np.unravel_index(np.argmax(difference), difference.shape)
    assert difference[worst] <= allowed, (
        f"{name}{list(map(int, worst))} is {actual[worst]!r}, expected {expected[worst]!r}: "
        f"off by {difference[worst]:.3g}, allowed {allowed:.3g} "
        f"({np.count_nonzero(difference > allowed)} of {difference.size} entries are off)"
    )


def assert_same_bits(name, actual, expected):
    """The same shape and the same values bit for bit (+0 and -0 count as equal)."""
    actual = np.asarray(actual)
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, (
        f"{name} has shape {actual.shape}, expected {expected.shape}"
    )
    assert actual.dtype == expected.dtype, f"{name} is {actual.dtype}, expected {expected.dtype}"
    if np.array_equal(actual, expected):
        return
    different = actual != expected
    worst = first(different)
    raise AssertionError(
        f"{name}{list(worst)} is {actual[worst]!r}, expected exactly {expected[worst]!r} "
        f"({np.count_nonzero(different)} of {different.size} entries differ)"
    )


def assert_same_state(name, actual, expected):
    """`assert_same_bits` for every array of a state."""
    for label, a, e in named_parts(actual, expected):
        assert_same_bits(f"{name}.{label}", a, e)


def assert_same_gradients(name, actual, expected):
    """`assert_same_bits` for everything in a `Gradients`."""
    assert_same_bits(f"{name}.input", actual.input, expected.input)
    assert_same_state(f"{name}.initial_state", actual.initial_state, expected.initial_state)
    assert actual.parameters.keys() == expected.parameters.keys()
    for parameter, gradient in expected.parameters.items():
        assert_same_bits(f"{name}.{parameter}", actual.parameters[parameter], gradient)
    assert_same_bits(f"{name}.parameter_vector", actual.parameter_vector, expected.parameter_vector)


def first(mask):
    """Index of the first True of a mask as a tuple of plain integers."""
    return tuple(int(i) for i in np.argwhere(mask)[0])


@dataclass
class Problem:
    """A layer with random parameters, its data, and the gradients that come from above."""

    case: CellCase
    layer: object
    x: np.ndarray
    initial_state: object
    lengths: np.ndarray | None
    resets: np.ndarray | None
    d_output: np.ndarray
    d_final_state: object

    @property
    def data(self):
        """The keyword arguments of a call besides x."""
        return {
            "initial_state": self.initial_state,
            "lengths": self.lengths,
            "resets": self.resets,
        }

    def run(self, d_output=True, d_final_state=True):
        """Forward and backward of fastgates: output, final state, gradients."""
        output, final_state, tape = self.layer.forward(self.x, **self.data)
        gradients = self.layer.backward(
            tape,
            self.d_output if d_output else None,
            self.d_final_state if d_final_state else None,
        )
        return output, final_state, gradients

    def run_naive(self, d_output=True, d_final_state=True):
        """The same in float64: output, final state, (d_input, d_initial_state, d_parameters)."""
        output, final_state, tape = naive.forward(
            self.case.reference(self.layer.hidden_size),
            self.layer.parameters,
            self.x,
            num_layers=self.layer.num_layers,
            num_directions=self.layer.num_directions,
            **self.data,
        )
        gradients = naive.backward(
            tape,
            self.d_output if d_output else None,
            self.d_final_state if d_final_state else None,
        )
        return output, final_state, gradients

    def check(self, d_output=True, d_final_state=True, floor=0.0):
        """Compare everything with the reference, forward only, forward and backward.

        Gradients are of the order of 1, like d_output. Where all entries of one are far smaller,
        they are differences of larger numbers, and ``floor`` takes the place of the largest.
        """
        expected_output, expected_final, expected = self.run_naive(d_output, d_final_state)
        output, final_state = self.layer(self.x, **self.data)
        check_output("output", output, expected_output)
        check_state("final_state", final_state, expected_final)
        output, final_state, gradients = self.run(d_output, d_final_state)
        check_output("output of forward", output, expected_output)
        check_state("final_state of forward", final_state, expected_final)
        check_gradients(gradients, expected, floor)


def check_output(name, actual, expected):
    """Against the reference, with the tolerance for outputs; outputs are of the order of 1."""
    assert np.asarray(actual).dtype == np.float32
    assert_close(name, actual, expected, OUTPUT_TOLERANCE, floor=1.0)


def check_state(name, actual, expected):
    """`check_output` for every array of a state."""
    for label, a, e in named_parts(actual, expected):
        check_output(f"{name}.{label}", a, e)


def check_gradients(gradients, expected, floor=0.0):
    """A `Gradients` against the reference's (d_input, d_initial_state, d_parameters)."""
    d_input, d_initial_state, d_parameters = expected
    assert_close("gradient of input", gradients.input, d_input, GRADIENT_TOLERANCE, floor)
    for label, a, e in named_parts(gradients.initial_state, d_initial_state):
        assert_close(f"gradient of initial_state.{label}", a, e, GRADIENT_TOLERANCE, floor)
    assert list(gradients.parameters) == list(d_parameters)
    for name, gradient in d_parameters.items():
        assert_close(
            f"gradient of {name}", gradients.parameters[name], gradient, GRADIENT_TOLERANCE, floor
        )
    flat = np.concatenate([np.ravel(g) for g in gradients.parameters.values()])
    assert_same_bits("parameter_vector", gradients.parameter_vector, flat)


def make_problem(
    case,
    seed=0,
    *,
    batch=3,
    time=7,
    input_size=5,
    hidden_size=6,
    num_layers=1,
    bidirectional=False,
    bias=True,
    initial_state=True,
    lengths=False,
    resets=False,
    layer=None,
):
    """Random data for one layer; ``lengths`` and ``resets`` may be True (random) or arrays."""
    rng = np.random.default_rng(seed)
    num_directions = 2 if bidirectional else 1
    if layer is None:
        layer = case.build(
            input_size, hidden_size, num_layers, bidirectional=bidirectional, bias=bias
        )
        layer.load_state_dict(
            naive.random_parameters(
                case.reference(hidden_size),
                rng,
                input_size,
                hidden_size,
                num_layers,
                num_directions,
                bias,
            )
        )
    x = normal(rng, (batch, time, input_size))
    if lengths is True:
        lengths = rng.integers(1, time + 1, batch)
        lengths[rng.integers(batch)] = time
    if resets is True:
        resets = rng.random((batch, time)) < 0.25
    state_shape = (num_layers * num_directions, batch, hidden_size)
    return Problem(
        case=case,
        layer=layer,
        x=x,
        initial_state=random_state(case, rng, state_shape) if initial_state else None,
        lengths=None if lengths is False else lengths,
        resets=None if resets is False else resets,
        d_output=normal(rng, (batch, time, num_directions * hidden_size)),
        d_final_state=random_state(case, rng, state_shape),
    )


def normal(rng, shape):
    """Standard normal float32."""
    return rng.standard_normal(shape).astype(np.float32)


def random_state(case, rng, shape):
    """A state of the case's structure: an array or a pair."""
    return as_state([np.float32(0.5) * normal(rng, shape) for _ in range(case.num_states)])


def run_python(code, *arguments, env=None, expect=0, cwd=None, path=PACKAGE_ROOT):
    """Run code in a fresh interpreter, with ``path`` and the tests importable; its output.

    ``env`` is added to this process's environment (a value of None removes the name).
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(path), str(ROOT / "tests")])
    for name, value in (env or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = str(value)
    result = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == expect, (
        f"exit status {result.returncode}, expected {expect}\n{result.stdout}\n{result.stderr}"
    )
    return result
