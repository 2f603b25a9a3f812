"""Gradients one can see: where they vanish or explode, how long valves remember, what to do.

What is measured, of any model and batch, with the compiled passes that also train:

- :func:`gradient_profile`: the gradient of the loss with respect to the state after every step,
  its norm by step, by how many steps the norm falls or grows, and which share of the gradients is
  below the resolution of float32;
- :func:`step_jacobians`: singular values and spectral radius of one step's Jacobian along a
  trajectory;
- :func:`gate_openings`: how far gates are open, and how many steps a memory valve remembers;
- :func:`examine`: all of them, with a verdict in plain words;
- :class:`GradientMonitor`: the profile again and again during a training.

All but the monitor return objects with ``text()`` and ``figure(path=None)``; the latter needs
matplotlib, the extra ``plot``.

Letters in shape comments: B batch, T time, H hidden, N states of a cell (2 for h and c), K steps.

The profile is that of Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", 1991, and of
Bengio, Simard and Frasconi, "Learning long-term dependencies with gradient descent is difficult",
1994; the Jacobian's part in it that of Pascanu, Mikolov and Bengio, "On the difficulty of training
recurrent neural networks", 2013.
"""

from __future__ import annotations

from .examination import Examination, examine
from .gates import GateOpenings, LayerGates, gate_openings
from .jacobians import LayerJacobians, StepJacobians, step_jacobians
from .monitor import GradientMonitor
from .profile import RESOLUTION, GradientProfile, LayerProfile, gradient_profile

__all__ = [
    "RESOLUTION",
    "Examination",
    "GateOpenings",
    "GradientMonitor",
    "GradientProfile",
    "LayerGates",
    "LayerJacobians",
    "LayerProfile",
    "StepJacobians",
    "examine",
    "gate_openings",
    "gradient_profile",
    "step_jacobians",
]
