"""Made-up tasks that need a memory of known length, to see where a network stops learning.

Each makes batches of any length without end, from a generator of random numbers, and says what
without any memory is the best one can do, and what counts as solved.

- :class:`DelayedRecall`: a symbol, then noise; which symbol was it? The information latching of
  Bengio, Simard and Frasconi, "Learning long-term dependencies with gradient descent is difficult",
  1994, section II, with four symbols in place of two.
- :class:`Adding`: two marked numbers among many, what is their sum? Experiment 4 of Hochreiter and
  Schmidhuber, "Long short-term memory", 1997, in the form of Arjovsky, Shah and Bengio, "Unitary
  evolution recurrent neural networks", 2016, section 4.2.
- :class:`TemporalOrder`: two rare symbols among distracting ones, which came first? Experiment 6a
  of Hochreiter and Schmidhuber, 1997, with the places of Pascanu, Mikolov and Bengio, "On the
  difficulty of training recurrent neural networks", 2013, section 4.1.
- :class:`CopyMemory`: some symbols, a long pause, then say them again. Arjovsky et al., 2016,
  section 4.1, and Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and
  recurrent networks for sequence modeling", 2018, with a choice of how much is to be kept.

Letters in shape comments: B batch, T time, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ._checks import positive_integer
from .losses import cross_entropy, mse

__all__ = ["TASKS", "Adding", "CopyMemory", "DelayedRecall", "Task", "TaskBatch", "TemporalOrder"]


@dataclass(frozen=True)
class TaskBatch:
    """Sequences and what is asked about them.

    Attributes
    ----------
    x : ndarray of float32, shape (B, T, input_size)
    target : ndarray
        Numbers (B, 1), labels (B,), or labels of the last steps (B, steps asked).
    """

    x: np.ndarray
    target: np.ndarray


class Task:
    """A family of sequences of any length, and a question at their end.

    Attributes
    ----------
    name : str
    input_size, output_size : int
        Features of a step; numbers or classes asked for.
    shortest : int
        The least length that makes sense.
    solved_below : float
        The error below which the task counts as solved.
    """

    name: ClassVar[str]
    input_size: int
    output_size: int
    shortest: int
    solved_below: float
    error_name: ClassVar[str] = "share of wrong answers"

    def batch(self, random: np.random.Generator, size: int, length: int) -> TaskBatch:
        """Return sequences.

        Parameters
        ----------
        random : numpy.random.Generator
        size, length : int
            How many, and how long.

        Returns
        -------
        TaskBatch

        Raises
        ------
        ValueError
            If the length is below `shortest`, or the size below 1.
        """
        size = positive_integer("size", size)
        length = positive_integer("length", length)
        if length < self.shortest:
            raise ValueError(f"length must be at least {self.shortest} for {self}, got {length}")
        return self._make(random, size, length)

    def _make(self, random: np.random.Generator, size: int, length: int) -> TaskBatch:
        raise NotImplementedError

    def baseline(self, length: int) -> float:
        """Return the error of the best answer that uses no memory."""
        return 1 - 1 / self.output_size

    @property
    def steps_asked(self) -> int:
        """How many steps at the end of a sequence have an answer."""
        return 1

    def steps(self, length: int) -> int:
        """Return the steps T of a sequence of this length."""
        return length

    def loss(self, output: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient.

        Parameters
        ----------
        output : ndarray, shape (B, steps asked, output_size)
            The read-out.
        target : ndarray
            See :class:`TaskBatch`.

        Returns
        -------
        loss : float
        d_output : ndarray, in the shape of `output`
        """
        if self.steps_asked == 1:
            value, d_output = cross_entropy(output[:, 0], target)
            return value, d_output[:, None]
        return cross_entropy(output, target)

    def error(self, output: np.ndarray, target: np.ndarray) -> float:
        """Return the error of a read-out, see :meth:`loss` and `error_name`."""
        answers = output.argmax(axis=-1).reshape(target.shape)
        return float(np.mean(answers != target))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class DelayedRecall(Task):
    """Recall which of four symbols the first step held, after nothing but noise.

    The symbol is one-hot in four channels, the noise normal with deviation `noise` in each.

    Parameters
    ----------
    noise : float
    """

    name = "recall"

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = float(noise)
        self.input_size = self.output_size = 4
        self.shortest = 1
        self.solved_below = 0.05

    def _make(self, random: np.random.Generator, size: int, length: int) -> TaskBatch:
        x = self.noise * random.standard_normal((size, length, self.input_size), np.float32)
        labels = random.integers(self.output_size, size=size)
        x[:, 0] = np.eye(self.output_size, dtype=np.float32)[labels]
        return TaskBatch(x.astype(np.float32, copy=False), labels)


class Adding(Task):
    """Give the sum of the two marked numbers, one in each half, among many in [0, 1].

    To answer 1 always has a mean squared error of 1/6 = 0.167.
    """

    name = "adding"
    error_name = "mean squared error"

    def __init__(self) -> None:
        self.input_size, self.output_size = 2, 1
        self.shortest = 2
        self.solved_below = 0.01

    def _make(self, random: np.random.Generator, size: int, length: int) -> TaskBatch:
        x = np.zeros((size, length, 2), np.float32)
        x[..., 0] = random.random((size, length), np.float32)
        rows, half = np.arange(size), length // 2
        marked = random.integers(half, size=size), random.integers(half, length, size=size)
        total = np.zeros(size, np.float32)
        for places in marked:
            x[rows, places, 1] = 1
            total += x[rows, places, 0]
        return TaskBatch(x, total[:, None])

    def baseline(self, length: int) -> float:
        """Return the variance of the sum of two uniform numbers."""
        return 1 / 6

    def loss(self, output: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean squared error and its gradient."""
        value, d_output = mse(output[:, 0], target)
        return value, d_output[:, None]

    def error(self, output: np.ndarray, target: np.ndarray) -> float:
        """Return the mean squared error."""
        return mse(output[:, 0], target)[0]


class TemporalOrder(Task):
    """Say which of XX, XY, YX, YY came by, among distracting symbols.

    One is at a place between T/10 and 2T/10, the other between 4T/10 and 5T/10; all other steps
    hold one of four distracting symbols. Symbols are one-hot in six channels.
    """

    name = "order"

    def __init__(self) -> None:
        self.input_size, self.output_size = 6, 4
        self.shortest = 5
        self.solved_below = 0.01

    def _make(self, random: np.random.Generator, size: int, length: int) -> TaskBatch:
        symbols = random.integers(2, 6, size=(size, length))
        rows, labels = np.arange(size), np.zeros(size, np.int64)
        for tenths in (1, 4):
            first = tenths * length // 10
            last = max(first + 1, (tenths + 1) * length // 10)
            which = random.integers(2, size=size)
            symbols[rows, random.integers(first, last, size=size)] = which
            labels = 2 * labels + which
        return TaskBatch(np.eye(6, dtype=np.float32)[symbols], labels)


class CopyMemory(Task):
    """Some symbols, a pause of the given length, then a sign to say them again.

    The sequence has ``length + 2 * copied`` steps: the symbols, the pause, whose last step is the
    sign, and as many steps for the answer, in which the input is the pause's.

    Parameters
    ----------
    symbols, copied : int
        How many different ones there are, and how many have to be kept. Literature: 8 and 10.
    """

    name = "copy"

    def __init__(self, symbols: int = 2, copied: int = 3) -> None:
        self.symbols = positive_integer("symbols", symbols)
        self.copied = positive_integer("copied", copied)
        self.input_size, self.output_size = self.symbols + 2, self.symbols
        self.shortest = 1
        self.solved_below = 0.05

    def _make(self, random: np.random.Generator, size: int, length: int) -> TaskBatch:
        blank, sign = self.symbols, self.symbols + 1
        symbols = np.full((size, self.steps(length)), blank)
        labels = random.integers(self.symbols, size=(size, self.copied))
        symbols[:, : self.copied] = labels
        symbols[:, self.copied + length - 1] = sign
        return TaskBatch(np.eye(self.input_size, dtype=np.float32)[symbols], labels)

    @property
    def steps_asked(self) -> int:
        """The symbols to say."""
        return self.copied

    def steps(self, length: int) -> int:
        """Return the steps of a sequence with a pause of this length."""
        return length + 2 * self.copied


TASKS: dict[str, Callable[[], Task]] = {
    task.name: task for task in (DelayedRecall, Adding, TemporalOrder, CopyMemory)
}
"""The tasks by name, each a class that can be called without arguments."""
