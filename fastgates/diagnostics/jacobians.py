"""The Jacobians of single steps along a trajectory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import positive_integer
from ..engine.passes import Direction
from ..layers import Recurrent
from ._runs import Model, Strand, as_model, run_model

__all__ = ["LayerJacobians", "StepJacobians", "step_jacobians"]

_MOST_ROWS = 4096  # of unit vectors that go through the engine at a time


@dataclass(frozen=True)
class LayerJacobians:
    """The Jacobians of single steps of one layer (and direction) along a trajectory.

    Attributes
    ----------
    name : str
    steps : ndarray of int, shape (K,)
    matrices : ndarray of float32, shape (K, N * H, N * H)
        Of the states after a step (row) with respect to those before it (column); h before c.
    singular_values : ndarray of float64, shape (K, N * H)
        Each step's, largest first. The largest is the most that a step can stretch a gradient.
    spectral_radius : ndarray of float64, shape (K,)
        Largest magnitude of an eigenvalue.
    """

    name: str
    steps: np.ndarray
    matrices: np.ndarray
    singular_values: np.ndarray
    spectral_radius: np.ndarray


@dataclass(frozen=True)
class StepJacobians:
    """What :func:`step_jacobians` found: `layers`, a tuple of :class:`LayerJacobians`."""

    layers: tuple[LayerJacobians, ...]

    def text(self) -> str:
        """Return a sentence for each layer."""
        return "\n".join(
            f"{layer.name}: a step stretches by {np.median(layer.singular_values[:, 0]):.3g} at "
            f"most, in the middle of all directions by {np.median(layer.singular_values):.3g} "
            f"(singular values); its spectral radius is {np.median(layer.spectral_radius):.3g}"
            for layer in self.layers
        )

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw singular values and radius by step; return the figure, and write it to `path`."""
        from ._plots import jacobian_picture

        return jacobian_picture(self, path)


def step_jacobians(
    model: Model,
    x: Any,
    *,
    row: int = 0,
    most_steps: int = 32,
    initial_state: Any = None,
    lengths: Any = None,
    resets: Any = None,
) -> StepJacobians:
    """Compute the Jacobian of single steps along the trajectory of one sequence.

    Parameters
    ----------
    model : Recurrent, Sequential, or what gives one by ``to_sequential()``
    x : array_like, shape (batch, time, input_size)
    row : int
        Which sequence of the batch.
    most_steps : int
        At so many steps at most, evenly over the sequence.
    initial_state, lengths, resets
        As in a call of the model.

    Returns
    -------
    StepJacobians

    Raises
    ------
    ValueError, TypeError
        If `row` is none of the batch, or an argument does not fit.

    Notes
    -----
    Of any registered cell: unit vectors, as gradients of the states after a step, go back through
    that step in one batch.
    """
    network = as_model(model)
    most_steps = positive_integer("most_steps", most_steps)
    _, _, strands = run_model(network, x, initial_state, lengths, resets)
    size = strands[0].lengths.size
    if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < size:
        raise ValueError(f"row must be an integer from 0 to {size - 1}, got {row!r}")
    return StepJacobians(
        tuple(_layer_jacobians(strand, int(row), most_steps) for strand in strands)
    )


def _layer_jacobians(strand: Strand, row: int, most: int) -> LayerJacobians:
    layer, direction, tape = strand.layer, strand.direction, strand.tape
    assert tape is not None
    hidden, n_states = layer.hidden_size, len(layer.cell.states)
    states = layer._trajectories(tape)[direction.index][1]  # (B, T, H) each
    length = int(strand.lengths[row])
    steps = np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(np.int64))
    start = np.zeros((n_states, hidden), np.float32)
    if tape.initial is not None:
        start = tape.initial[:, direction.index, row]
    before = np.empty((n_states, steps.size, hidden), np.float32)
    earlier = steps + 1 if direction.reverse else steps - 1
    resets = strand.resets
    for place, (step, old) in enumerate(zip(steps, earlier, strict=True)):
        starts = not 0 <= old < length
        if resets is not None and not starts:
            starts = bool(resets[row, old if direction.reverse else step])
        before[:, place] = start if starts else [state[row, old] for state in states]
    x = tape.inputs[direction.index // layer.num_directions][row, steps]  # (K, I)
    matrices = _jacobians(_alone(layer, direction), x, before)
    exact = matrices.astype(np.float64)
    return LayerJacobians(
        name=strand.name,
        steps=steps,
        matrices=matrices,
        singular_values=np.linalg.svd(exact, compute_uv=False),
        spectral_radius=np.abs(np.linalg.eigvals(exact)).max(axis=1),
    )


def _alone(layer: Recurrent, direction: Direction) -> Recurrent:
    """Return one direction of one layer as a layer of its own."""
    activations, count = layer.activations, len(layer.cell.functions)
    if activations is not None:  # of each direction by itself, or of both
        place = direction.index % layer.num_directions * count % len(activations)
        activations = activations[place : place + count]
    alone = Recurrent(
        layer.cell,
        direction.input_size,
        layer.hidden_size,
        bias=layer.bias,
        unit_constant=layer._unit_constant,
        activations=activations,
        clip=layer.clip,
        peepholes=layer.peepholes,
    )
    suffix = layer._suffix(direction)
    alone.load_state_dict(
        {name: layer.parameters[f"{name.removesuffix('l0')}{suffix}"] for name in alone.parameters}
    )
    return alone


def _jacobians(layer: Recurrent, x: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return (K, N * H, N * H) for inputs (K, I) and states before the step (N, K, H)."""
    n_states, count, hidden = before.shape
    size = n_states * hidden
    matrices = np.empty((count, size, size), np.float32)
    at_once = max(1, _MOST_ROWS // size)
    for first in range(0, count, at_once):
        part = slice(first, min(count, first + at_once))
        number = part.stop - first
        units = np.tile(np.eye(size, dtype=np.float32), (number, 1))  # (rows, N * H)
        d_states = units.reshape(-1, n_states, hidden).transpose(1, 0, 2)[:, None]
        state = np.repeat(before[:, part], size, axis=1)[:, None]
        inputs = np.repeat(x[part], size, axis=0)[:, None]
        _, _, tape = layer.forward(inputs, _as_state(state))
        gradients = layer.backward(tape, None, _as_state(d_states), input_gradient=False)
        found = gradients.initial_state
        parts = found if isinstance(found, tuple) else (found,)
        matrices[part] = np.concatenate([each[0] for each in parts], axis=1).reshape(
            number, size, size
        )
    return matrices


def _as_state(stacked: np.ndarray) -> Any:
    return stacked[0] if len(stacked) == 1 else tuple(stacked)
