"""What is measured: cells, sizes, the work each one needs, and random data for it."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]

#: The fixed share of the old state that the leaky cells keep in every benchmark.
LEAK = 0.25

MODES = ("inference", "training")


@dataclasses.dataclass(frozen=True)
class CellFacts:
    """What the floor of a cell is made of, per hidden unit and time step.

    Attributes
    ----------
    gates : int
        Gate rows of the weight matrices, in units of ``hidden_size``.
    tanhs, sigmoids : int
        Evaluations of each in the forward pass. The backward pass needs none: derivatives come
        from the stored values (the LSTM's ``tanh(c)`` may be stored or computed again; it is
        counted once).
    """

    gates: int
    tanhs: int
    sigmoids: int


#: Names as in ``fastgates.cells.registered()``.
CELLS = {
    "rnn": CellFacts(gates=1, tanhs=1, sigmoids=0),
    "rnn_relu": CellFacts(gates=1, tanhs=0, sigmoids=0),
    "leaky_rnn": CellFacts(gates=1, tanhs=1, sigmoids=0),
    "simplified_gru": CellFacts(gates=2, tanhs=1, sigmoids=1),
    "gru": CellFacts(gates=3, tanhs=1, sigmoids=2),
    "gru_reset_after": CellFacts(gates=3, tanhs=1, sigmoids=2),
    "lstm": CellFacts(gates=4, tanhs=2, sigmoids=3),
}

#: (batch, time, input, hidden)
Size: TypeAlias = tuple[int, int, int, int]

SIZES: tuple[Size, ...] = (
    (1, 64, 4, 16),
    (1, 256, 8, 32),
    (1, 256, 16, 128),
    (32, 100, 8, 32),
    (64, 128, 16, 64),
    (64, 128, 32, 128),
    (128, 64, 64, 256),
    (32, 64, 64, 512),
)

#: The selection of ``pytest bench/`` and ``python -m bench.report --quick``.
QUICK_SIZES: tuple[Size, ...] = (
    (1, 64, 4, 16),
    (1, 256, 16, 128),
    (32, 100, 8, 32),
    (64, 128, 16, 64),
)
QUICK_CELLS = ("rnn", "simplified_gru", "gru", "gru_reset_after", "lstm")


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell at one size: a single layer, zero initial state, the whole output.

    Attributes
    ----------
    cell : str
        A key of `CELLS`.
    batch, time, input, hidden : int
        Sizes B, T, I, H.
    """

    cell: str
    batch: int
    time: int
    input: int
    hidden: int

    @property
    def size(self) -> Size:
        """The sizes (batch, time, input, hidden)."""
        return self.batch, self.time, self.input, self.hidden

    @property
    def size_text(self) -> str:
        """The sizes as ``batch,time,input,hidden``."""
        return ",".join(map(str, self.size))

    def product_flops(self, mode: str) -> int:
        """Return the floating-point operations that the matrix products alone need.

        A multiplication and an addition count as two. With G gates: the forward pass needs
        2 B T G H (I + H). Training adds the way back through the state, 2 B T G H H, and the
        weight gradients, 2 B T G H (I + H); the gradient of the input is not asked for.
        """
        rows = 2 * self.batch * self.time * CELLS[self.cell].gates * self.hidden
        forward = rows * (self.input + self.hidden)
        if mode == "inference":
            return forward
        return 2 * forward + rows * self.hidden

    def activations(self) -> tuple[int, int]:
        """Return how many tanh and how many sigmoid values one forward pass needs."""
        facts = CELLS[self.cell]
        units = self.batch * self.time * self.hidden
        return units * facts.tanhs, units * facts.sigmoids


@dataclasses.dataclass(frozen=True)
class Data:
    """Weights, input and output gradient of one case.

    Attributes
    ----------
    weights : dict of str to array
        ``weight_ih_l0`` (G*H, I), ``weight_hh_l0`` (G*H, H), ``bias_ih_l0`` and ``bias_hh_l0``
        (G*H,), gates in PyTorch's order (LSTM i f g o; GRU r z n; SimplifiedGRU f g).
    x : array
        (B, T, I)
    d_output : array
        (B, T, H)
    """

    weights: dict[str, Array]
    x: Array
    d_output: Array


def make_data(case: Case, seed: int = 0) -> Data:
    """Return reproducible random data for `case`; weights are uniform in +-1/sqrt(hidden)."""
    rng = np.random.default_rng(seed)
    rows = CELLS[case.cell].gates * case.hidden
    bound = case.hidden**-0.5

    def uniform(*shape: int) -> Array:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    weights = {
        "weight_ih_l0": uniform(rows, case.input),
        "weight_hh_l0": uniform(rows, case.hidden),
        "bias_ih_l0": uniform(rows),
        "bias_hh_l0": uniform(rows),
    }
    x = rng.standard_normal((case.batch, case.time, case.input), dtype=np.float32)
    d_output = rng.standard_normal((case.batch, case.time, case.hidden), dtype=np.float32)
    return Data(weights, x, d_output)
