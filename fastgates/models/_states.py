"""Initial states that are parameters of a model: learned, or estimated from the first steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._parameters import Module
from ..dense import Dense
from ..layers import Recurrent, State

__all__ = ["EstimatedState", "LearnedState", "States"]


class States:
    """The states of some recurrent layers as one array (B, size), and back."""

    def __init__(self, layers: Sequence[Recurrent]) -> None:
        self.layers = [
            (len(layer.cell.states), layer.num_layers * layer.num_directions, layer.hidden_size)
            for layer in layers
        ]
        self.size = sum(count * stack * hidden for count, stack, hidden in self.layers)

    def split(self, flat: np.ndarray) -> tuple[State, ...]:
        """Return the state of each layer."""
        start, states = 0, []
        for count, stack, hidden in self.layers:
            parts = []
            for _ in range(count):
                end = start + stack * hidden
                parts.append(flat[:, start:end].reshape(len(flat), stack, hidden).swapaxes(0, 1))
                start = end
            states.append(tuple(parts) if count > 1 else parts[0])
        return tuple(states)

    def join(self, states: Sequence[State]) -> np.ndarray:
        """Return the reverse of :meth:`split`."""
        parts = [
            part.swapaxes(0, 1).reshape(part.shape[1], -1)
            for state in states
            for part in (state if isinstance(state, tuple) else (state,))
        ]
        return np.concatenate(parts, axis=1)


class LearnedState(Module):
    """One initial state for all sequences, trained; 0 at first."""

    def __init__(self, states: States) -> None:
        super().__init__({"state": (states.size,)})
        self._states = states

    def forward(self, batch_size: int) -> tuple[State, ...]:
        return self._states.split(np.broadcast_to(self._vector, (batch_size, self._states.size)))

    def backward(self, d_states: Sequence[State]) -> np.ndarray:
        total = self._states.join(d_states).sum(axis=0, dtype=np.float64)
        return total.astype(np.float32)


class EstimatedState(Module):
    """An initial state from a linear map of what the first steps hold, trained."""

    def __init__(self, states: States, steps: int, features: int, seed: int | None) -> None:
        self._states = states
        self.steps = steps
        self._map = Dense(steps * features, states.size, seed=seed)
        super().__init__({name: value.shape for name, value in self._map.parameters.items()})
        self._vector[:] = self._map.parameter_vector
        self._map._bind(self._vector)

    def _bind(self, vector: np.ndarray) -> None:
        super()._bind(vector)
        self._map._bind(vector)

    def _changed(self) -> None:
        super()._changed()
        self._map._changed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map._bind(self._vector)

    def _first(self, features: Sequence[np.ndarray], lengths: np.ndarray | None) -> np.ndarray:
        """Return (B, steps * features), 0 past the ends."""
        size = len(features[0])
        width = sum(each.shape[-1] for each in features)
        first = np.zeros((size, self.steps, width), np.float32)
        column = 0
        for each in features:
            steps = min(self.steps, each.shape[1])
            first[:, :steps, column : column + each.shape[-1]] = each[:, :steps]
            column += each.shape[-1]
        if lengths is not None:
            first[np.arange(self.steps) >= lengths[:, None]] = 0
        return first.reshape(size, -1)

    def __call__(
        self, features: Sequence[np.ndarray], lengths: np.ndarray | None
    ) -> tuple[State, ...]:
        return self._states.split(self._map(self._first(features, lengths)))

    def forward(
        self, features: Sequence[np.ndarray], lengths: np.ndarray | None
    ) -> tuple[tuple[State, ...], Any]:
        flat, tape = self._map.forward(self._first(features, lengths))
        return self._states.split(flat), tape

    def backward(self, tape: Any, d_states: Sequence[State]) -> np.ndarray:
        return self._map.backward(tape, self._states.join(d_states), False).parameter_vector
