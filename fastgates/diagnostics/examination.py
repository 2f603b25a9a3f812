"""Profile, Jacobians and gates together, with a verdict in plain words."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from ._runs import Model, as_model
from .gates import GateOpenings, LayerGates, gate_openings
from .jacobians import StepJacobians, step_jacobians
from .profile import GradientProfile, LayerProfile, gradient_profile

__all__ = ["Examination", "examine"]


@dataclass(frozen=True)
class Examination:
    """What :func:`examine` found.

    Attributes
    ----------
    profile : GradientProfile
        Of the last step of each sequence: how far back it can feel.
    jacobians : StepJacobians
    gates : GateOpenings
    """

    profile: GradientProfile
    jacobians: StepJacobians
    gates: GateOpenings

    @property
    def verdict(self) -> str:
        """What the gradients do, and what to do about it, in plain words."""
        lines = []
        for layer, gates in zip(self.profile.layers, self.gates.layers, strict=True):
            lines.append(f"{layer.text()}{_advice(layer, gates)}.")
        return "\n".join(lines)

    def text(self) -> str:
        """Return the verdict, and what was measured."""
        measured = [*self.profile._shares(), self.jacobians.text(), self.gates.text()]
        return "\n".join([self.verdict, "", *measured])

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw all three; return the matplotlib figure, and write it to `path`."""
        from ._plots import examination_picture

        return examination_picture(self, path)


def _advice(layer: LayerProfile, gates: LayerGates) -> str:
    if layer.window < 2 or math.isnan(layer.decades_per_step) or layer.kind == "carries":
        return ""
    if layer.kind == "explodes":
        return "; clip the gradient's norm (clip_grad_norm), and start recurrent weights smaller"
    if gates.valve is None:
        return (
            "; clipping does not help: take a gated cell (SimplifiedGRU, GRU, LSTM), or an "
            "orthogonal start for a little more"
        )
    if gates.valve == "leak":
        return f"; raise the leak: 1 - 1 / {layer.window} remembers the whole window"
    return (
        "; start its valve open for as long as the window: chrono initialisation, biases "
        f"log U[1, {layer.window - 1}]"
    )


def examine(
    model: Model,
    x: Any,
    *,
    most_steps: int = 16,
    initial_state: Any = None,
    lengths: Any = None,
    resets: Any = None,
) -> Examination:
    """Measure gradients, Jacobians and gates of a model on a batch, and say what to do.

    Parameters
    ----------
    model : Recurrent, Sequential, or what gives one by ``to_sequential()``
    x : array_like, shape (batch, time, input_size)
    most_steps : int
        Jacobians at so many steps at most, of the first sequence.
    initial_state, lengths, resets
        As in a call of the model.

    Returns
    -------
    Examination

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgates as fg
    >>> from fastgates.diagnostics import examine
    >>> x = np.random.default_rng(0).standard_normal((4, 100, 3))
    >>> found = examine(fg.RNN(3, 16, seed=0), x)
    >>> found.profile.layers[0].kind
    'vanishes'
    """
    network = as_model(model)
    run = {"initial_state": initial_state, "lengths": lengths, "resets": resets}
    return Examination(
        profile=gradient_profile(network, x, **run),
        jacobians=step_jacobians(network, x, most_steps=most_steps, **run),
        gates=gate_openings(network, x, **run),
    )
