"""What is measured: cells, sizes, the work each one needs, and random data for it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
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

#: The selection of ``--quick`` and of ``pytest bench/``.
QUICK_SIZES: tuple[Size, ...] = (
    (1, 64, 4, 16),
    (1, 256, 16, 128),
    (32, 100, 8, 32),
    (64, 128, 16, 64),
)

#: What is measured without ``--cells``.
DEFAULT_CELLS = ("rnn", "simplified_gru", "gru", "gru_reset_after", "lstm")

#: The share of the FMA peak is shown for these hidden sizes at this batch, time and input.
SHARE_HIDDEN = (16, 32, 64, 128, 256, 512)
QUICK_SHARE_HIDDEN = (16, 64, 256)
SHARE_SIZE = (32, 128, 64)

#: One sequence, step after step: the latency of a step is the time divided by the steps.
LATENCY_SIZES: tuple[Size, ...] = ((1, 1000, 8, 32), (1, 1000, 8, 128))

#: The axes of the grid: batch, time, input, hidden.
AXES = (
    (1, 2, 7, 32, 100, 256),
    (1, 16, 128, 1000),
    (1, 8, 64, 300),
    (5, 8, 16, 24, 32, 50, 64, 100, 128, 256, 512),
)

#: The grid has one sweep along each axis through each of these.
CENTRES: tuple[Size, ...] = (
    (1, 128, 8, 32),
    (*SHARE_SIZE, 64),
    (100, 16, 64, 256),
)

#: A size of the grid needs at most so many multiply-adds for one training call of an LSTM, and so
#: many numbers in its input and output.
MOST_WORK = 2e10
MOST_NUMBERS = 4e7


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

        A multiplication and an addition count as two. With G gates the products with the input need
        2 B T G H I, those with the state 2 B (T - 1) G H H, since it is zero at the first step.
        Training adds the way back through the state and the weight gradients: twice the latter and
        once the former more; the gradient of the input is not asked for.
        """
        unit = 2 * self.batch * CELLS[self.cell].gates * self.hidden
        inputs, states = unit * self.time * self.input, unit * (self.time - 1) * self.hidden
        return inputs + states if mode == "inference" else 2 * inputs + 3 * states

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


def share_sizes(hidden: tuple[int, ...] = SHARE_HIDDEN) -> list[Size]:
    """Return the sizes of the table of shares."""
    return [(*SHARE_SIZE, each) for each in hidden]


def affordable(size: Size) -> Size:
    """Return `size` with the longest time of the grid, up to its own, that is affordable.

    ``MOST_WORK`` and ``MOST_NUMBERS`` are the limits; a single step is always affordable.
    """
    batch, longest, inputs, hidden = size
    for time in sorted(AXES[1], reverse=True):
        if time > longest:
            continue
        case = Case("lstm", batch, time, inputs, hidden)
        numbers = batch * time * (inputs + hidden)
        if case.product_flops("training") <= 2 * MOST_WORK and numbers <= MOST_NUMBERS:
            return case.size
    return batch, 1, inputs, hidden


def grid() -> list[Size]:
    """Return the thinned grid: its corners, and sweeps along each axis through the centres.

    A size that is not `affordable` has fewer time steps, so that no corner is lost.
    """
    batches, times, inputs, hiddens = AXES
    sizes = [
        (batches[b], times[t], inputs[i], hiddens[h])
        for b, t, i, h in itertools.product((0, -1), repeat=4)
    ]
    for batch, time, input_, hidden in CENTRES:
        sizes += [(each, time, input_, hidden) for each in batches]
        sizes += [(batch, each, input_, hidden) for each in times]
        sizes += [(batch, time, each, hidden) for each in inputs]
        sizes += [(batch, time, input_, each) for each in hiddens]
    return list(dict.fromkeys(map(affordable, sizes)))


def random_cases(cells: Sequence[str], count: int, seed: int) -> list[Case]:
    """Return `count` different cases drawn from `cells` and the whole grid.

    Parameters
    ----------
    cells : sequence of str
        Keys of `CELLS`.
    count : int
        At most the number of different cases that were found in 100 `count` draws.
    seed : int
        The same seed gives the same cases.
    """
    rng = np.random.default_rng(seed)
    cases: dict[Case, None] = {}
    for _ in range(100 * count):
        if len(cases) == count:
            break
        b, t, i, h = (int(rng.choice(axis)) for axis in AXES)
        cell = cells[int(rng.integers(len(cells)))]
        cases[Case(cell, *affordable((b, t, i, h)))] = None
    return list(cases)
