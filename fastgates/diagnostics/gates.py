"""How far gates are open, and how many steps a memory valve remembers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cells._functions import FUNCTIONS
from ..initialization import MEMORY_GATES
from ._runs import Model, Strand, as_model, run_model
from .profile import rounded

__all__ = ["GateOpenings", "LayerGates", "gate_openings"]

_CANDIDATES = ("g", "n", "n_h", "n_x")  # slots that are no gates
_WRITING = {"lstm_coupled": "i"}  # cells whose memory is multiplied by 1 - the gate that writes
_VALVES = ("f", "z")  # what cells of one's own call the gate that multiplies the memory
_SHUT, _OPEN = 0.1, 0.9  # saturated gates, of Karpathy, Johnson and Li, 2015


@dataclass(frozen=True)
class LayerGates:
    """How far the gates of one layer (and direction) are open.

    Attributes
    ----------
    name : str
    openings : mapping of str to ndarray, shape (B, T, H)
        Each gate's values between 0 (shut) and 1 (open); NaN past the end of a sequence. Empty for
        cells without gates.
    valve : str or None
        The gate that multiplies the memory, "(1 - i)" where that follows from the one that writes,
        or "leak"; None where there is none.
    memory : ndarray of float64, shape (H,), or None
        Steps that each unit remembers: 1 / (1 - f) for the mean f of its valve.
    """

    name: str
    openings: Mapping[str, np.ndarray]
    valve: str | None
    memory: np.ndarray | None

    def saturation(self, gate: str) -> tuple[float, float]:
        """Return the shares of a gate's values below 0.1 and above 0.9."""
        values = self.openings[gate]
        values = values[~np.isnan(values)]
        return float(np.mean(values < _SHUT)), float(np.mean(values > _OPEN))

    def text(self) -> str:
        """Return a sentence on memory and gates."""
        if self.memory is None:
            return f"{self.name}: no valve keeps the memory; each step computes all of it anew"
        low, middle, high = np.sort(self.memory)[[0, self.memory.size // 2, -1]]
        spread = f"{rounded(low)} to {rounded(high)} steps, half of them less than"
        spread = f"{spread} " if rounded(low) != rounded(high) else ""
        sentence = f"{self.name}: units remember {spread}{rounded(middle)}"
        sentence += f"{' steps' * (not spread)} (1 / (1 - {self.valve}))"
        for gate in self.openings:
            shut, opened = self.saturation(gate)
            sentence += f"; {gate} is shut in {shut:.0%} and open in {opened:.0%}"
        return sentence


@dataclass(frozen=True)
class GateOpenings:
    """What :func:`gate_openings` found: `layers`, a tuple of :class:`LayerGates`."""

    layers: tuple[LayerGates, ...]

    def text(self) -> str:
        """Return a sentence for each layer."""
        return "\n".join(layer.text() for layer in self.layers)

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw gates and memory lengths; return the matplotlib figure, and write it to `path`."""
        from ._plots import gate_picture

        return gate_picture(self, path)


def gate_openings(
    model: Model,
    x: Any,
    *,
    initial_state: Any = None,
    lengths: Any = None,
    resets: Any = None,
) -> GateOpenings:
    """Measure how far gates are open on a batch, and how long their valve remembers.

    Parameters
    ----------
    model : Recurrent, Sequential, or what gives one by ``to_sequential()``
    x : array_like, shape (batch, time, input_size)
    initial_state, lengths, resets
        As in a call of the model.

    Returns
    -------
    GateOpenings

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Notes
    -----
    A valve at f keeps f^k of the memory over k steps, that is 1 / e after about 1 / (1 - f) of them
    (Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018). The valve is f or, in a
    GRU, z; a leaky layer's is its fixed leak. In a cell of your own it is the slot of that name.
    """
    _, _, strands = run_model(as_model(model), x, initial_state, lengths, resets)
    return GateOpenings(tuple(_layer_gates(strand) for strand in strands))


def _layer_gates(strand: Strand) -> LayerGates:
    layer, direction = strand.layer, strand.direction
    assert strand.tape is not None
    slots = layer._trajectories(strand.tape)[direction.index][0]
    outside = np.arange(strand.time) >= strand.lengths[:, None]
    openings = {name: value for name, value in slots.items() if name not in _CANDIDATES}
    if direction.settings is not None:  # such cells keep what goes into their functions
        openings = {
            name: _function_of_gates(direction.settings, value) for name, value in openings.items()
        }
    for values in openings.values():
        values[outside] = np.nan
    known = MEMORY_GATES.get(layer.cell.name)
    valve = known.keep if known else next((name for name in _VALVES if name in openings), None)
    kept = None
    if valve is not None:
        kept = np.nanmean(openings[valve].astype(np.float64), axis=(0, 1))
    elif layer.cell.name in _WRITING:
        valve = _WRITING[layer.cell.name]
        kept = 1 - np.nanmean(openings[valve].astype(np.float64), axis=(0, 1))
        valve = f"(1 - {valve})"
    elif layer._unit_constant is not None:
        valve, kept = "leak", layer._unit_constant.astype(np.float64)
    memory = None
    if kept is not None:
        with np.errstate(divide="ignore"):
            memory = 1 / (1 - kept)
    return LayerGates(strand.name, openings, valve, memory)


def _function_of_gates(settings: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the first of a layer's functions with its clip, see ``cells/_functions.py``."""
    number, alpha, beta, limit = settings[:4]
    x = np.clip(x, -limit, limit)
    function = _GATE_FUNCTIONS[list(FUNCTIONS)[int(number)]]
    with np.errstate(over="ignore"):  # of the branch that is not taken
        return function(x, alpha, beta).astype(np.float32)


_GATE_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "tanh": lambda x, a, b: np.tanh(x),
    "sigmoid": lambda x, a, b: 0.5 + 0.5 * np.tanh(0.5 * x),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x < 0, a * x, x),
    "thresholded_relu": lambda x, a, b: np.where(x < a, 0, x),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: np.where(x < 0, a * np.expm1(x), x),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: np.logaddexp(0, x),
}
