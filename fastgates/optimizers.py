"""Gradient descent on the flat parameter vectors of layers: SGD, RMSprop, Adam and AdamW.

An optimiser holds its modules, and ``step`` takes their gradients in the same order:

>>> optimizer = fg.Adam([layer, readout], lr=1e-3)               # doctest: +SKIP
>>> optimizer.step([layer_gradients, readout_gradients])         # doctest: +SKIP

The formulas are those of ``torch.optim``. A step is one pass of a compiled kernel over each vector
and its buffers, in place (:mod:`fastgates._updates`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from fastgates import _parameters, _updates
from fastgates._checks import not_negative, positive_number, probability
from fastgates.clipping import HasParameterVector
from fastgates.engine.call import address

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "make_optimizer"]


class Module(Protocol):
    """What an optimiser needs of a layer."""

    @property
    def parameter_vector(self) -> Vector: ...

    def edit_parameters(self) -> AbstractContextManager[Any]: ...


def _two_betas(name: str, values: Any) -> tuple[float, float]:
    # A tuple becomes a list in a file.
    if isinstance(values, Sequence | np.ndarray) and len(values) == 2:
        with suppress(ValueError):
            return probability(name, values[0]), probability(name, values[1])
    raise ValueError(f"{name} must be two numbers in [0, 1), got {values!r}")


def _truth(name: str, value: Any) -> bool:
    return bool(value)


class Optimizer:
    """Base of the optimisers: checks, the loop over modules, saved state.

    A subclass names its per-module buffers and settings and writes ``_update``.

    Parameters
    ----------
    modules : module or sequence of modules
        The layers to train, each once.
    lr : float
        Learning rate; the attribute may be changed between steps.
    weight_decay : float
        At least 0. What it does is the subclass's.

    Attributes
    ----------
    lr : float
        The learning rate of the next step.
    steps : int
        Steps taken so far.
    """

    # What each setting is checked with; a rate that a schedule has brought to 0 is one.
    _settings: ClassVar[dict[str, Callable[[str, Any], Any]]] = {
        "lr": not_negative,
        "weight_decay": not_negative,
    }
    _buffer_names: tuple[str, ...] = ()
    lr: float
    weight_decay: float

    def __init__(
        self, modules: Module | Sequence[Module], lr: float, weight_decay: float = 0.0
    ) -> None:
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
        self._set({"lr": positive_number("lr", lr), "weight_decay": weight_decay})
        self.steps = 0
        sizes = [module.parameter_vector.size for module in self._modules]
        self._buffers = [
            {name: np.zeros(size, np.float32) for name in self._buffer_names} for size in sizes
        ]

    def _set(self, settings: Mapping[str, Any]) -> None:
        """Set some settings, or none of them where one is out of its range."""
        checked = {name: self._settings[name](name, value) for name, value in settings.items()}
        for name, value in checked.items():
            setattr(self, name, value)

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
        self._descend(self._check(gradients))

    def _descend(self, vectors: Sequence[Vector], factor: float = 1.0) -> None:
        """Take a step along checked gradients, scaled by a factor."""
        self.steps += 1
        for module, vector, buffers in zip(self._modules, vectors, self._buffers, strict=True):
            if isinstance(module, _parameters.Module):  # its door without views of all parameters
                self._update(module._vector, vector, factor, buffers)
                module._changed()
            else:
                with module.edit_parameters() as parameters:
                    self._update(parameters.vector, vector, factor, buffers)

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
            If it is of another optimiser, a setting is out of its range, or its buffers do not fit
            the modules; nothing is changed then.
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
        self._set(state["settings"])
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
            vectors.append(np.ascontiguousarray(vector, np.float32))
        return vectors

    def _update(
        self, parameter: Vector, gradient: Vector, factor: float, buffers: dict[str, Vector]
    ) -> None:
        """Change `parameter` in place, by `factor` times the gradient."""
        raise TypeError("use SGD, RMSprop, Adam or AdamW, the base class has no update rule")


class Adam(Optimizer):
    """Adam, with bias-corrected running moments.

    With gradient g at step t, for every parameter p::

        g = g + weight_decay p
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
    weight_decay : float, default 0.0
        Weight of the parameters' squares in the loss, halved.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    .. [1] D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015,
       algorithm 1.
    """

    _settings = Optimizer._settings | {"betas": _two_betas, "eps": positive_number}
    _buffer_names = ("first_moment", "second_moment")
    betas: tuple[float, float]
    eps: float
    _decoupled = False

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, lr, weight_decay)
        self._set({"betas": betas, "eps": eps})

    def _update(
        self, parameter: Vector, gradient: Vector, factor: float, buffers: dict[str, Vector]
    ) -> None:
        beta1, beta2 = self.betas
        kept, decay = 1.0, self.weight_decay
        if self._decoupled:
            kept, decay = 1.0 - self.lr * self.weight_decay, 0.0
        _updates.adam.dispatcher(
            address(parameter),
            address(gradient),
            address(buffers["first_moment"]),
            address(buffers["second_moment"]),
            parameter.size,
            factor,
            float(self.lr) / (1.0 - beta1**self.steps),
            kept,
            decay,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            1.0 / math.sqrt(1.0 - beta2**self.steps),
            self.eps,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p = p - lr weight_decay p`` before each step of Adam.

    Parameters
    ----------
    modules, lr, betas, eps
        As in :class:`Adam`.
    weight_decay : float, default 0.01

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019,
       algorithm 2.
    """

    _decoupled = True

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(modules, lr, betas, eps, weight_decay)


class RMSprop(Optimizer):
    """Gradients divided by the root of their running mean square.

    With gradient g, for every parameter p (m only if centered, b = 0 at the start)::

        g = g + weight_decay p
        v = alpha v + (1 - alpha) g*g
        m = alpha m + (1 - alpha) g
        b = momentum b + g / (sqrt(v - m*m) + eps)
        p = p - lr b

    Parameters
    ----------
    modules : module or sequence of modules
        The layers to train.
    lr : float, default 0.01
        Learning rate.
    alpha : float, default 0.99
        Decay rate of the mean square, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator.
    weight_decay : float, default 0.0
        Weight of the parameters' squares in the loss, halved.
    momentum : float, default 0.0
        In [0, 1).
    centered : bool, default False
        Whether gradients are divided by their standard deviation instead.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    .. [1] G. Hinton, "Neural networks for machine learning", lecture 6, 2012; centered: A. Graves,
       "Generating sequences with recurrent neural networks", 2013; in the form of ``torch.optim``.
    """

    _settings = Optimizer._settings | {
        "alpha": probability,
        "eps": positive_number,
        "momentum": probability,
        "centered": _truth,
    }
    _buffer_names = ("mean_square", "mean", "momentum_buffer")
    alpha: float
    eps: float
    momentum: float
    centered: bool

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(modules, lr, weight_decay)
        self._set({"alpha": alpha, "eps": eps, "momentum": momentum, "centered": centered})

    def _update(
        self, parameter: Vector, gradient: Vector, factor: float, buffers: dict[str, Vector]
    ) -> None:
        _updates.rmsprop.dispatcher(
            address(parameter),
            address(gradient),
            address(buffers["mean_square"]),
            address(buffers["mean"]),
            address(buffers["momentum_buffer"]),
            parameter.size,
            factor,
            float(self.lr),
            self.weight_decay,
            self.alpha,
            1.0 - self.alpha,
            1.0 - self.alpha if self.centered else 0.0,  # the mean then stays 0
            self.eps,
            self.momentum,
        )


class SGD(Optimizer):
    """Gradient descent, with momentum and Nesterov's form of it.

    With gradient g, for every parameter p::

        g = g + weight_decay p
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
    weight_decay : float, default 0.0
        Weight of the parameters' squares in the loss, halved.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    .. [1] I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization
       and momentum in deep learning", ICML 2013; in the form of ``torch.optim.SGD``.
    """

    _settings = Optimizer._settings | {"momentum": probability, "nesterov": _truth}
    _buffer_names = ("momentum_buffer",)
    momentum: float
    nesterov: bool

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, lr, weight_decay)
        self._set({"momentum": momentum, "nesterov": nesterov})
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov needs momentum > 0, got momentum=0.0")

    def _update(
        self, parameter: Vector, gradient: Vector, factor: float, buffers: dict[str, Vector]
    ) -> None:
        # p - lr (1 g + momentum b) with nesterov, p - lr (0 g + 1 b) without.
        ahead = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        _updates.sgd.dispatcher(
            address(parameter),
            address(gradient),
            address(buffers["momentum_buffer"]),
            parameter.size,
            factor,
            float(self.lr),
            self.weight_decay,
            self.momentum,
            ahead[0],
            ahead[1],
        )


_BY_NAME: dict[str, type[Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "sgd": SGD,
}


def make_optimizer(name: str, modules: Any, lr: float, /, **options: Any) -> Optimizer:
    """Make an optimiser from its name.

    Parameters
    ----------
    name : {"adam", "adamw", "rmsprop", "sgd"}
    modules : module or sequence of modules
    lr : float
    **options
        Further arguments of its class.

    Raises
    ------
    ValueError, TypeError
        If there is no such optimiser or option, or a number is out of its range.
    """
    if name not in _BY_NAME:
        raise ValueError(f"optimizer must be one of {', '.join(_BY_NAME)}, got {name!r}")
    kind = _BY_NAME[name]
    unknown = [option for option in options if option not in kind._settings or option == "lr"]
    if unknown:
        allowed = ", ".join(setting for setting in kind._settings if setting != "lr")
        raise TypeError(f"the options of {name} are {allowed}; got {', '.join(unknown)}")
    return kind(modules, lr, **options)
