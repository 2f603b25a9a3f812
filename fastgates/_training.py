"""A recurrent layer with a read-out on its last hidden state, and its training.

Letters in shape comments: N windows, B windows in a minibatch, T window, C columns, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgates._series import batches
from fastgates.clipping import clip_grad_norm
from fastgates.dense import Dense
from fastgates.losses import mse
from fastgates.optimizers import Adam

__all__ = ["DivergenceError", "Epoch", "Network", "Progress", "TrainingSettings", "train"]


class DivergenceError(RuntimeError):
    """The loss or the gradient stopped being a finite number."""


class Progress(NamedTuple):
    """What a progress callback is given after every optimiser step.

    ``loss`` is the minibatch's and ``validation_loss`` that of the last finished epoch (NaN in
    the first); both in squared units of the usual change, so that persistence has about 1.
    ``gradient_norm`` is the global norm before clipping.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    gradient_norm: float
    validation_loss: float


class Epoch(NamedTuple):
    """One line of the training history; means over the epoch's steps."""

    loss: float
    validation_loss: float
    gradient_norm: float


class Network(NamedTuple):
    """Recurrent layer and read-out."""

    recurrent: Any
    readout: Dense

    @classmethod
    def build(
        cls,
        layer: Callable[..., Any],
        columns: int,
        hidden_size: int,
        num_layers: int,
        options: Mapping[str, Any],
        seed: int,
    ) -> Network:
        """Make a network with initial weights from `seed`."""
        first, second = (int(each) for each in np.random.SeedSequence(seed).generate_state(2))
        return cls(
            layer(columns, hidden_size, num_layers, seed=first, **options),
            Dense(hidden_size, 1, seed=second),
        )

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs (B,) for windows (B, T, C)."""
        _, state = self.recurrent(x)
        result: NDArray[np.float32] = self.readout(_last_hidden(state))[:, 0]
        return result

    def gradients(
        self, x: NDArray[np.float32], target: NDArray[np.float32]
    ) -> tuple[float, list[Any]]:
        """Return loss and gradients for windows (B, T, C) with targets (B,)."""
        _, state, tape = self.recurrent.forward(x, training=True)
        prediction, readout_tape = self.readout.forward(_last_hidden(state))
        loss, d_prediction = mse(prediction, target[:, None])
        readout = self.readout.backward(readout_tape, d_prediction)
        d_state = _last_hidden_gradient(state, readout.input)
        recurrent = self.recurrent.backward(tape, d_final_state=d_state, input_gradient=False)
        return loss, [recurrent, readout]

    def weights(self) -> list[NDArray[np.float32]]:
        """Copy both flat parameter vectors."""
        return [module.parameter_vector.copy() for module in self]

    def restore(self, weights: Sequence[NDArray[np.float32]]) -> None:
        """Put weights back."""
        for module, vector in zip(self, weights, strict=True):
            with module.edit_parameters() as parameters:
                parameters.vector[...] = vector


class TrainingSettings(NamedTuple):
    """How to train; the fields are those of ``Forecaster``."""

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    max_norm: float
    seed: int


def train(
    network: Network,
    windows: NDArray[np.float32],  # (N, T, C), a view
    target: NDArray[np.float32],  # (N,)
    training: NDArray[np.intp],
    validation: NDArray[np.intp],
    settings: TrainingSettings,
    progress: Callable[[Progress], None] | None = None,
) -> list[Epoch]:
    """Run Adam with gradient clipping until the validation loss stops falling.

    `training` and `validation` are window numbers.  The network is left with the weights of
    the epoch that had the least validation loss.

    Raises
    ------
    DivergenceError
        If a loss or gradient is not finite.
    """
    optimizer = Adam(list(network), lr=settings.learning_rate)
    order = np.random.default_rng(settings.seed)
    history: list[Epoch] = []
    best_loss, best_epoch, best_weights = math.inf, 0, network.weights()
    starts = range(0, len(training), settings.batch_size)
    validation_loss = math.nan
    for epoch in range(1, settings.epochs + 1):
        shuffled = order.permutation(training)
        total_loss = total_norm = 0.0
        for step, start in enumerate(starts, start=1):
            rows = shuffled[start : start + settings.batch_size]
            with np.errstate(over="ignore", invalid="ignore"):  # divergence is an error below
                loss, gradients = network.gradients(windows[rows], target[rows])
            norm = clip_grad_norm(gradients, settings.max_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergenceError(
                    f"training diverged in epoch {epoch}: loss {loss:g}, gradient norm {norm:g}; "
                    f"use a learning rate below {settings.learning_rate:g}"
                )
            optimizer.step(gradients)
            total_loss += loss * len(rows)
            total_norm += norm
            if progress is not None:
                progress(
                    Progress(epoch, settings.epochs, step, len(starts), loss, norm, validation_loss)
                )
        with np.errstate(over="ignore", invalid="ignore"):
            validation_loss = _mean_squared_error(network, windows, target, validation)
        if not math.isfinite(validation_loss):
            raise DivergenceError(f"the validation loss of epoch {epoch} is {validation_loss:g}")
        history.append(Epoch(total_loss / len(training), validation_loss, total_norm / len(starts)))
        if validation_loss < best_loss:
            best_loss, best_epoch, best_weights = validation_loss, epoch, network.weights()
        elif epoch - best_epoch >= settings.patience:
            break
    network.restore(best_weights)
    return history


def _mean_squared_error(
    network: Network,
    windows: NDArray[np.float32],
    target: NDArray[np.float32],
    rows: NDArray[np.intp],
) -> float:
    total = 0.0
    for batch in batches(len(rows)):
        chosen = rows[batch]
        total += mse(network(windows[chosen]), target[chosen])[0] * len(chosen)
    return total / len(rows)


def _last_hidden(state: Any) -> NDArray[np.float32]:
    """(B, H): the hidden state of the top layer; an LSTM's state is the pair (h, c)."""
    hidden = state[0] if isinstance(state, tuple) else state
    result: NDArray[np.float32] = hidden[-1]
    return result


def _last_hidden_gradient(state: Any, d_hidden: Any) -> Any:
    """Return the gradient of a final state of which only the top hidden state was used."""
    if isinstance(state, tuple):
        hidden, *others = state
        return (_last_hidden_gradient(hidden, d_hidden), *map(np.zeros_like, others))
    d_state = np.zeros_like(state)
    d_state[-1] = d_hidden
    return d_state
