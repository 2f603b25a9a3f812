"""Learning-rate schedules: a factor of the learning rate that depends on the epoch.

Time counts in epochs, with fractions within one: the training loop asks for the factor before each
step. At whole epochs the factors are those of ``torch.optim.lr_scheduler`` stepped once an epoch.
"""

from __future__ import annotations

import math
from typing import Any

from ._checks import positive_integer, positive_number

__all__ = [
    "Constant",
    "Cosine",
    "ReduceOnPlateau",
    "Schedule",
    "StepDecay",
    "WarmUp",
    "make_schedule",
]


class Schedule:
    """Base of the schedules."""

    def factor(self, epoch: float) -> float:
        """Return the factor of the learning rate after so many epochs.

        Parameters
        ----------
        epoch : float
            Whole epochs and the share of the one that runs.

        Raises
        ------
        TypeError
            Of the base, which is no schedule.
        """
        raise TypeError("use Constant, Cosine, StepDecay, WarmUp or ReduceOnPlateau")

    def observe(self, loss: float) -> None:
        """Take note of the loss at the end of an epoch (of validation, where there is one)."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a later ``load_state_dict`` needs to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises
        ------
        ValueError
            If it is another kind of schedule's; then nothing is changed.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"state must hold {sorted(self.state_dict())}, got {sorted(state)}")

    def _arguments(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({inner})"


class Constant(Schedule):
    """The learning rate as it is."""

    def factor(self, epoch: float) -> float:
        """Return 1."""
        return 1.0


class Cosine(Schedule):
    """From 1 to `minimum` along half a cosine (Loshchilov and Hutter, "SGDR", 2017), then there.

    Parameters
    ----------
    epochs : float
        How long it takes, above 0.
    minimum : float
        In [0, 1].
    """

    def __init__(self, epochs: float, minimum: float = 0.0) -> None:
        self.epochs = positive_number("epochs", epochs)
        self.minimum = _share("minimum", minimum)

    def factor(self, epoch: float) -> float:
        """Return the factor after so many epochs."""
        part = min(1.0, epoch / self.epochs)
        return self.minimum + (1 - self.minimum) * 0.5 * (1 + math.cos(math.pi * part))


class StepDecay(Schedule):
    """Times `reduction` after every so many epochs.

    Parameters
    ----------
    every : float
        Epochs from one reduction to the next, above 0.
    reduction : float
        Above 0 and below 1.
    """

    def __init__(self, every: float, reduction: float = 0.1) -> None:
        self.every = positive_number("every", every)
        self.reduction = _reduction(reduction)

    def factor(self, epoch: float) -> float:
        """Return the factor after so many epochs."""
        return self.reduction ** math.floor(epoch / self.every)


class WarmUp(Schedule):
    """Linearly from `start` to 1, then another schedule, whose time begins there.

    Parameters
    ----------
    epochs : float
        How long it takes, above 0; a fraction for some steps.
    then : Schedule, optional
        By default the learning rate stays.
    start : float
        In [0, 1].
    """

    def __init__(self, epochs: float, then: Schedule | None = None, start: float = 0.0) -> None:
        self.epochs = positive_number("epochs", epochs)
        if then is not None and not isinstance(then, Schedule):
            raise TypeError(f"then must be a schedule, got {type(then).__name__}")
        self.then = Constant() if then is None else then
        self.start = _share("start", start)

    def factor(self, epoch: float) -> float:
        """Return the factor after so many epochs."""
        if epoch < self.epochs:
            return self.start + (1 - self.start) * epoch / self.epochs
        return self.then.factor(epoch - self.epochs)

    def observe(self, loss: float) -> None:
        """Tell the schedule that follows."""
        self.then.observe(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule that follows."""
        return self.then.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the state of the schedule that follows."""
        self.then.load_state_dict(state)


class ReduceOnPlateau(Schedule):
    """Times `reduction` when the loss has not fallen for more than `patience` epochs.

    Parameters
    ----------
    reduction : float
        Above 0 and below 1.
    patience : int
        Epochs without a better loss that are let pass.
    threshold : float
        By which share of the best loss a better one must be lower.
    minimum : float
        The least factor.
    """

    def __init__(
        self,
        reduction: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        minimum: float = 0.0,
    ) -> None:
        self.reduction = _reduction(reduction)
        self.patience = positive_integer("patience", patience)
        self.threshold = _share("threshold", threshold, zero=True)
        self.minimum = _share("minimum", minimum, zero=True)
        self._factor, self._best, self._waited = 1.0, math.inf, 0

    def factor(self, epoch: float) -> float:
        """Return the present factor."""
        return self._factor

    def observe(self, loss: float) -> None:
        """Take note of the loss at the end of an epoch."""
        if loss < self._best * (1 - self.threshold):
            self._best, self._waited = loss, 0
            return
        self._waited += 1
        if self._waited > self.patience:
            self._factor = max(self.minimum, self._factor * self.reduction)
            self._waited = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the factor, the best loss (None before the first) and how long it waited."""
        best = None if math.isinf(self._best) else self._best
        return {"factor": self._factor, "best": best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        super().load_state_dict(state)
        self._factor, self._waited = float(state["factor"]), int(state["waited"])
        self._best = math.inf if state["best"] is None else float(state["best"])


_BY_NAME: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "plateau": ReduceOnPlateau,
    "step": StepDecay,
    "warmup": WarmUp,
}


def make_schedule(name: str, max_epochs: float | None = None, **options: Any) -> Schedule:
    """Make a schedule from its name.

    Parameters
    ----------
    name : {"constant", "cosine", "step", "warmup", "plateau"}
    max_epochs : float, optional
        Over which ``"cosine"`` falls where its ``epochs`` are not among the options.
    **options
        Arguments of its class.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If there is no such schedule, or an option is out of its range.
    TypeError
        If it has no such option, or needs one.
    """
    if name not in _BY_NAME:
        raise ValueError(f"schedule must be one of {', '.join(_BY_NAME)}, got {name!r}")
    if name == "cosine" and max_epochs is not None:
        options = {"epochs": max_epochs} | options
    try:
        return _BY_NAME[name](**options)
    except TypeError as error:
        said = str(error).removeprefix(f"{_BY_NAME[name].__name__}.__init__() ")
        raise TypeError(
            f"schedule {name!r}: {said}; give its options, or {_BY_NAME[name].__name__}(...) itself"
        ) from None


def _share(name: str, value: float, zero: bool = True) -> float:
    if isinstance(value, bool) or not 0 <= value <= 1 or (value == 0 and not zero):
        raise ValueError(f"{name} must be in {'[' if zero else '('}0, 1], got {value!r}")
    return float(value)


def _reduction(value: float) -> float:
    if isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"reduction must be above 0 and below 1, got {value!r}")
    return float(value)
