"""A run of a model and its strands: what all diagnostics look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import real_array
from ..engine.passes import Direction
from ..layers import Recurrent, Tape
from ..sequential import Sequential

__all__ = ["Model", "Strand", "as_model", "by_direction", "named_directions", "run_model"]

Model = Any  # Recurrent, Sequential, or what gives a Sequential by to_sequential()


@dataclass(frozen=True)
class Strand:
    """One direction of one layer in a run.

    Attributes
    ----------
    lengths : ndarray of int, shape (B,)
    time : int
    resets : ndarray of uint8, shape (B, T), or None
    tape : Tape or None
        None where the run was one of many, as in a loop.
    """

    name: str
    layer: Recurrent
    direction: Direction
    lengths: np.ndarray
    time: int
    resets: np.ndarray | None = None
    tape: Tape | None = None

    def lags(self) -> np.ndarray:
        """Return (B, T) how many steps back from where a row ends; -1 past it or past a reset.

        In the order of processing: the reverse direction ends at the first step.
        """
        lengths, resets = self.lengths, self.resets
        time = np.arange(self.time)
        lags = time + np.zeros_like(lengths)[:, None]
        if not self.direction.reverse:
            lags = lengths[:, None] - 1 - lags
        lags[time >= lengths[:, None]] = -1
        if resets is not None:
            for row, length in enumerate(lengths):
                cuts = np.flatnonzero(resets[row, 1:length]) + 1
                if cuts.size and self.direction.reverse:
                    lags[row, cuts[0] :] = -1
                elif cuts.size:
                    lags[row, : cuts[-1]] = -1
        return lags


def as_model(model: Model) -> Recurrent | Sequential:
    if isinstance(model, Recurrent | Sequential):
        if model.device != "cpu":
            raise ValueError(
                'model must be on the CPU, to which to("cpu") brings it, '
                f"got device {model.device!r}"
            )
        return model
    deployable = getattr(model, "to_sequential", None)
    if deployable is None:
        raise TypeError(
            "model must be a recurrent layer, a Sequential or have to_sequential(), "
            f"got {type(model).__name__}"
        )
    return as_model(deployable())


def run_model(
    model: Recurrent | Sequential, x: Any, initial_state: Any, lengths: Any, resets: Any
) -> tuple[np.ndarray, Any, list[Strand]]:
    """Run the model; return its output, its tape, and its strands from the input on."""
    x = real_array("x", x, ("batch_size", "time", ("input_size", model.input_size)))
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"x must hold at least one sequence of one step, got shape {x.shape}")
    if not np.isfinite(model.parameter_vector).all():
        raise ValueError("the parameters of the model must be finite: there is nothing to look at")
    lengths = None if lengths is None else np.asarray(lengths)
    past_end = 0 if lengths is None else np.arange(x.shape[1]) >= lengths[:, None]
    if not np.isfinite(x[past_end == 0]).all():
        raise ValueError("x must be finite")
    output, _, tape = model.forward(x, initial_state, lengths, resets)
    return output, tape, _strands(model, tape)


def _strands(model: Recurrent | Sequential, tape: Any) -> list[Strand]:
    modules = {id(model): tape}
    if isinstance(model, Sequential):
        modules = {id(m): step for m, step in zip(model.modules, tape.steps, strict=True)}
    strands = []
    for name, layer, direction in named_directions(model):
        inner = modules[id(layer)]
        batch = inner.batch
        lengths = np.empty(batch.size, np.int64)
        lengths[batch.order] = batch.sorted_lengths
        strands.append(Strand(name, layer, direction, lengths, batch.time, batch.resets, inner))
    return strands


def named_directions(model: Recurrent | Sequential) -> Iterator[tuple[str, Recurrent, Direction]]:
    """Go through each direction of each layer, from the input on."""
    modules = (model,) if isinstance(model, Recurrent) else model.modules
    several = isinstance(model, Sequential) and len(model.recurrent) > 1
    for place, layer in enumerate(modules):
        if not isinstance(layer, Recurrent):
            continue
        for direction in layer._directions:
            name = type(layer).__name__ if type(layer) is not Recurrent else layer.cell.name
            if layer.num_layers > 1:
                name += f" layer {direction.index // layer.num_directions}"
            if layer.bidirectional or layer.reverse:
                name += " reverse" if direction.reverse else " forward"
            yield f"module {place}, {name}" if several else name, layer, direction


def by_direction(per_layer: Iterable[Any]) -> list[np.ndarray]:
    """Return the state gradients (N, B, T, H) of each direction of each layer."""
    found = []
    for states in per_layer:
        stacked = np.stack(states if isinstance(states, tuple) else (states,))
        found += [stacked[:, place] for place in range(stacked.shape[1])]
    return found
