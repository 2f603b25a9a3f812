"""Initial parameters: orthogonal, Xavier, and chrono for gates that must remember.

Each function changes a layer's parameters in place; :func:`initialize` applies a scheme to all
layers of a module, as the ``initialization`` of models does. Biases that a function does not name
are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._checks import positive_number
from ._parameters import Module
from .dense import Dense
from .layers import Recurrent
from .sequential import Sequential

__all__ = [
    "MEMORY_GATES",
    "MemoryGates",
    "Scheme",
    "chrono",
    "initialize",
    "orthogonal",
    "xavier",
]

Scheme = None | str | Sequence[str] | Mapping[str, Mapping[str, Any]]


class MemoryGates(NamedTuple):
    """Which gates of a cell say how long it remembers.

    Attributes
    ----------
    keep : str
        The gate whose opening is the share of the memory that a step keeps.
    write : str or None
        The gate that lets new content in; None where that is 1 - keep.
    """

    keep: str
    write: str | None


MEMORY_GATES: dict[str, MemoryGates] = {
    "simplified_gru": MemoryGates("f", None),
    "gru": MemoryGates("z", None),
    "gru_reset_after": MemoryGates("z", None),
    "lstm": MemoryGates("f", "i"),
}
"""For each cell with such gates their names, as in ``Cell.gates``; other cells have none."""


def orthogonal(
    layer: Recurrent, gain: float = 1.0, seed: int | np.random.Generator | None = None
) -> None:
    """Make the matrix of each gate on the state a random orthogonal one, times `gain`.

    Its singular values are all `gain`, so that a step of a linear network keeps the length of a
    gradient (Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning
    in deep linear neural networks", 2014).

    Parameters
    ----------
    layer : Recurrent
    gain : float
        Above 0.
    seed : int, Generator or None
    """
    random = np.random.default_rng(seed)
    gain = positive_number("gain", gain)
    size = _recurrent(layer).hidden_size
    with layer.edit_parameters() as parameters:
        for name, value in parameters.items():
            if name.startswith("weight_hh"):
                for gate in value.reshape(-1, size, size):
                    q, r = np.linalg.qr(random.standard_normal((size, size)))
                    gate[...] = gain * q * np.sign(np.diag(r))  # uniform over all of them


def xavier(
    layer: Recurrent | Dense, gain: float = 1.0, seed: int | np.random.Generator | None = None
) -> None:
    """Draw each matrix from a uniform distribution that suits its numbers of inputs and outputs.

    ``U(-a, a)`` with ``a = gain sqrt(6 / (inputs + outputs))`` (Glorot and Bengio, "Understanding
    the difficulty of training deep feedforward neural networks", 2010), each gate for itself.

    Parameters
    ----------
    layer : Recurrent or Dense
    gain : float
        Above 0.
    seed : int, Generator or None
    """
    random = np.random.default_rng(seed)
    gain = positive_number("gain", gain)
    if not isinstance(layer, Recurrent | Dense):
        raise TypeError(f"layer must be recurrent or a Dense, got {type(layer).__name__}")
    outputs = layer.hidden_size if isinstance(layer, Recurrent) else layer.output_size
    with layer.edit_parameters() as parameters:
        for name, value in parameters.items():
            if name.startswith("weight"):
                bound = gain * math.sqrt(6 / (value.shape[1] + outputs))
                value[...] = random.uniform(-bound, bound, value.shape)


def chrono(layer: Recurrent, longest: float, seed: int | np.random.Generator | None = None) -> None:
    """Start the gates so that units remember for 1 to `longest` steps.

    The bias of the gate that keeps the memory is ``log(U[1, longest - 1])``, that of a gate that
    writes into it the negative of the same number (Tallec and Ollivier, "Can recurrent neural
    networks warp time?", 2018, equation 16). It is set in ``bias_ih``, that of ``bias_hh`` is 0.

    Parameters
    ----------
    layer : Recurrent
        Of a cell in :data:`MEMORY_GATES`, with biases.
    longest : float
        The longest dependency to remember, in steps; at least 2.
    seed : int, Generator or None

    Raises
    ------
    ValueError
        If the cell has no such gate, there are no biases, or `longest` is below 2.
    """
    random = np.random.default_rng(seed)
    cell = _recurrent(layer).cell
    gates = MEMORY_GATES.get(cell.name)
    if gates is None:
        raise ValueError(
            f"chrono needs a cell with a gate that keeps its memory "
            f"({', '.join(MEMORY_GATES)}), got {cell.name!r}"
        )
    if not layer.bias:
        raise ValueError("chrono sets biases, but the layer was made with bias=False")
    if isinstance(longest, bool) or not 2 <= longest < math.inf:
        raise ValueError(f"longest must be a number of steps of at least 2, got {longest!r}")
    size = layer.hidden_size
    signs = {gates.keep: 1.0, gates.write: -1.0}
    with layer.edit_parameters() as parameters:
        for name, value in parameters.items():
            if not name.startswith("bias_ih"):
                continue
            bias = np.log(random.uniform(1.0, longest - 1.0, size))
            for gate, sign in signs.items():
                if gate is not None:
                    rows = slice(size * cell.gates.index(gate), size * (cell.gates.index(gate) + 1))
                    value[rows] = sign * bias
                    parameters[name.replace("bias_ih", "bias_hh")][rows] = 0


_SCHEMES = {"orthogonal": orthogonal, "xavier": xavier, "chrono": chrono}


def initialize(module: Module, scheme: Scheme, seed: int | None = None) -> None:
    """Apply one or several of these functions to all layers of a module.

    Parameters
    ----------
    module : Recurrent, Dense or Sequential
    scheme : str, sequence of str, mapping or None
        Names: "orthogonal" (recurrent layers), "xavier" (dense layers too), "chrono" (recurrent
        layers); in order, each after the other. A mapping has their further arguments:
        ``{"xavier": {}, "chrono": {"longest": 200}}``. None changes nothing.
    seed : int, optional

    Raises
    ------
    ValueError, TypeError
        If a scheme is unknown or does not fit a layer.
    """
    if scheme is None:
        return
    names = [scheme] if isinstance(scheme, str) else list(scheme)
    for name in names:
        if name not in _SCHEMES:
            raise ValueError(f"initialization must be of {', '.join(_SCHEMES)}, got {name!r}")
    random = np.random.default_rng(seed)
    layers = module.modules if isinstance(module, Sequential) else (module,)
    for name in names:
        options = dict(scheme[name]) if isinstance(scheme, Mapping) else {}
        if name == "chrono" and "longest" not in options:
            raise ValueError(
                'chrono needs the longest dependency in steps: {"chrono": {"longest": 200}}'
            )
        for layer in layers:
            if isinstance(layer, Recurrent) or (name == "xavier" and isinstance(layer, Dense)):
                _SCHEMES[name](layer, **options, seed=random)  # type: ignore[operator]
    if isinstance(module, Sequential):
        module._changed()


def _recurrent(layer: Any) -> Recurrent:
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer must be a recurrent layer, got {type(layer).__name__}")
    return layer
