"""Adam and stochastic gradient descent on the flat parameter vectors of layers.

An optimiser holds its modules, and ``step`` takes their gradients in the same order:

>>> optimizer = fg.Adam([layer, readout], lr=1e-3)               # doctest: +SKIP
>>> optimizer.step([layer_gradients, readout_gradients])         # doctest: +SKIP

The formulas are those of ``torch.optim``.  A step works in place on preallocated scratch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastgates.clipping import HasParameterVector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

__all__ = ["SGD", "Adam"]


class Module(Protocol):
    """What an optimiser needs of a layer."""

    @property
    def parameter_vector(self) -> Vector: ...

    def edit_parameters(self) -> AbstractContextManager[Any]: ...


class Optimizer:
    """Base of the optimisers: checks, the loop over modules, saved state.

    A subclass names its per-module buffers and settings and writes ``_update``.

    Parameters
    ----------
    modules : module or sequence of modules
        The layers to train, each once.
    lr : float
        Learning rate; the attribute may be changed between steps.

    Attributes
    ----------
    lr : float
        The learning rate of the next step.
    steps : int
        Steps taken so far.
    """

    _settings: tuple[str, ...] = ("lr",)
    _buffer_names: tuple[str, ...] = ()

    def __init__(self, modules: Module | Sequence[Module], lr: float) -> None:
        self._modules = tuple(modules) if isinstance(modules, Sequence) else (modules,)
        for module in self._modules:
            if not (hasattr(module, "parameter_vector") and hasattr(module, "edit_parameters")):
                raise TypeError(
                    "modules must be a layer or a list of layers (fg.GRU, fg.Dense, ...), "
                    f"got {type(module).__name__}"
                )
        if not self._modules:
            raise ValueError("modules must hold at least one layer, got none")
        if len({id(module) for module in self._modules}) != len(self._modules):
            raise ValueError("modules must be different layers, got the same one twice")
        if not (_is_number(lr) and 0.0 < lr < math.inf):
            raise ValueError(f"lr must be a positive number, got {lr!r}")
        self.lr = float(lr)
        self.steps = 0
        sizes = [module.parameter_vector.size for module in self._modules]
        self._buffers = [
            {name: np.zeros(size, np.float32) for name in self._buffer_names} for size in sizes
        ]
        self._scratch = np.empty((2, max(sizes)), np.float32)

    def step(self, gradients: HasParameterVector | Sequence[HasParameterVector]) -> None:
        """Change the parameters of every module by one step.

        Parameters
        ----------
        gradients : Gradients or sequence of Gradients
            One for each module, in the modules' order; they are only read.

        Raises
        ------
        ValueError
            If their number, or the size of one, does not match; nothing is changed then.
        """
        vectors = self._check(gradients)
        self.steps += 1
        for module, vector, buffers in zip(self._modules, vectors, self._buffers, strict=True):
            first, second = self._scratch[:, : vector.size]
            with module.edit_parameters() as parameters:
                self._update(parameters.vector, vector, buffers, first, second)

    def state_dict(self) -> dict[str, Any]:
        """Copy the settings, the step count and every buffer.

        Returns
        -------
        dict
            ``{"optimizer": class name, "settings": dict, "steps": int, "buffers": [dict of
            float32 arrays for each module]}``.
        """
        return {
            "optimizer": type(self).__name__,
            "settings": {name: getattr(self, name) for name in self._settings},
            "steps": self.steps,
            "buffers": [
                {name: buffer.copy() for name, buffer in buffers.items()}
                for buffers in self._buffers
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: the next steps have the same bits as without the break.

        Parameters
        ----------
        state : mapping
            From ``state_dict`` of the same kind of optimiser over modules of the same sizes.

        Raises
        ------
        ValueError
            If it is of another optimiser, or its buffers do not fit the modules; nothing is
            changed then.
        """
        missing = {"optimizer", "settings", "steps", "buffers"} - set(state)
        if missing:
            raise ValueError(f"state lacks {', '.join(sorted(missing))}: not from state_dict()")
        if state["optimizer"] != type(self).__name__:
            raise ValueError(f"state is of {state['optimizer']}, not of {type(self).__name__}")
        if set(state["settings"]) != set(self._settings):
            raise ValueError(
                f"settings must be {', '.join(self._settings)}, got {', '.join(state['settings'])}"
            )
        if len(state["buffers"]) != len(self._buffers):
            raise ValueError(
                f"state must be of {len(self._buffers)} modules, got {len(state['buffers'])}"
            )
        loaded = []
        for k, (buffers, given) in enumerate(zip(self._buffers, state["buffers"], strict=True)):
            if set(given) != set(buffers):
                raise ValueError(
                    f"buffers of module {k} must be {', '.join(buffers)}, got {', '.join(given)}"
                )
            arrays = {name: np.array(given[name], dtype=np.float32) for name in buffers}
            for name, array in arrays.items():
                if array.shape != buffers[name].shape:
                    raise ValueError(
                        f"buffer {name} of module {k} must have shape {buffers[name].shape}, "
                        f"got {array.shape}"
                    )
            loaded.append(arrays)
        for name in self._settings:
            setattr(self, name, state["settings"][name])
        self.steps = int(state["steps"])
        self._buffers = loaded

    def _check(self, gradients: HasParameterVector | Sequence[HasParameterVector]) -> list[Vector]:
        items = gradients if isinstance(gradients, Sequence) else (gradients,)
        if len(items) != len(self._modules):
            raise ValueError(
                f"gradients must be one for each of the {len(self._modules)} modules, in their "
                f"order, got {len(items)}"
            )
        vectors = []
        for k, (item, module) in enumerate(zip(items, self._modules, strict=True)):
            vector = getattr(item, "parameter_vector", None)
            if not isinstance(vector, np.ndarray):
                raise TypeError(
                    f"gradients[{k}] must be the Gradients of a backward call, "
                    f"got {type(item).__name__}"
                )
            if vector.shape != module.parameter_vector.shape:
                raise ValueError(
                    f"gradients[{k}] must have {module.parameter_vector.size} entries for "
                    f"{type(module).__name__}, got {vector.size}: are they in the modules' order?"
                )
            vectors.append(vector)
        return vectors

    def _update(
        self,
        parameter: Vector,
        gradient: Vector,
        buffers: dict[str, Vector],
        first: Vector,
        second: Vector,
    ) -> None:
        """Change `parameter` in place; `first` and `second` are scratch of its size."""
        raise TypeError("use Adam or SGD, the base class has no update rule")


class Adam(Optimizer):
    """Adam, with bias-corrected running moments.

    With gradient g at step t, for every parameter p::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g*g
        p = p - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)

    Parameters
    ----------
    modules : module or sequence of modules
        The layers to train.
    lr : float, default 1e-3
        Learning rate.
    betas : (float, float), default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-8
        Added to the denominator.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    .. [1] D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015,
       algorithm 1.
    """

    _settings = ("lr", "betas", "eps")
    _buffer_names = ("first_moment", "second_moment")

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(modules, lr)
        if len(betas) != 2 or not all(_is_number(beta) and 0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        if not (_is_number(eps) and 0.0 < eps < math.inf):
            raise ValueError(f"eps must be a positive number, got {eps!r}")
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps = float(eps)

    def _update(
        self,
        parameter: Vector,
        gradient: Vector,
        buffers: dict[str, Vector],
        first: Vector,
        second: Vector,
    ) -> None:
        beta1, beta2 = self.betas
        m, v = buffers["first_moment"], buffers["second_moment"]

        np.subtract(gradient, m, out=first)
        first *= np.float32(1.0 - beta1)
        m += first

        np.multiply(gradient, gradient, out=first)
        first *= np.float32(1.0 - beta2)
        v *= np.float32(beta2)
        v += first

        np.sqrt(v, out=first)
        first *= np.float32(1.0 / math.sqrt(1.0 - beta2**self.steps))
        first += np.float32(self.eps)
        np.divide(m, first, out=second)
        second *= np.float32(self.lr / (1.0 - beta1**self.steps))
        parameter -= second


class SGD(Optimizer):
    """Gradient descent, with momentum and Nesterov's form of it.

    With gradient g, for every parameter p::

        b = momentum b + g                      (b = 0 at the start)
        p = p - lr b                            or with nesterov: p - lr (g + momentum b)

    Parameters
    ----------
    modules : module or sequence of modules
        The layers to train.
    lr : float
        Learning rate.
    momentum : float, default 0.0
        In [0, 1).
    nesterov : bool, default False
        Look ahead along the momentum; needs ``momentum > 0``.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    .. [1] I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization
       and momentum in deep learning", ICML 2013; in the form of ``torch.optim.SGD``.
    """

    _settings = ("lr", "momentum", "nesterov")
    _buffer_names = ("momentum_buffer",)

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(modules, lr)
        if not (_is_number(momentum) and 0.0 <= momentum < 1.0):
            raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov needs momentum > 0, got momentum=0.0")
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)

    def _update(
        self,
        parameter: Vector,
        gradient: Vector,
        buffers: dict[str, Vector],
        first: Vector,
        second: Vector,
    ) -> None:
        momentum = np.float32(self.momentum)
        direction = gradient
        if self.momentum > 0.0:
            buffer = buffers["momentum_buffer"]
            buffer *= momentum
            buffer += gradient
            direction = buffer
            if self.nesterov:
                np.multiply(buffer, momentum, out=first)
                first += gradient
                direction = first
        np.multiply(direction, np.float32(self.lr), out=second)
        parameter -= second


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
