"""The gradient of a loss with respect to the state after every step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._parameters import Gradients
from .._sequences import Sequences
from ..layers import Recurrent
from ..losses import mse
from ..models import Model as BaseModel
from ..sequential import Sequential
from ._runs import Model, Strand, as_model, by_direction, named_directions, run_model

__all__ = ["RESOLUTION", "GradientProfile", "LayerProfile", "gradient_profile", "rounded"]

RESOLUTION = 2.0**-24
"""What is smaller than this share of a float32 number leaves it unchanged when it is added."""

_EXPLODED = 1e3  # times the gradient at the output: what a user should hear of
_LITTLE = 1e3  # times less than at the end of the window

Loss = Callable[[np.ndarray, Any], tuple[float, Any]]


@dataclass(frozen=True)
class LayerProfile:
    """The gradients with respect to the states of one layer (and direction), by step.

    Attributes
    ----------
    name : str
    cell : str
        The cell's name in the registry.
    norms : ndarray of float64, shape (B, T)
        Euclidean norm of the gradient with respect to all states after each step; NaN past the end
        of a sequence.
    by_state : mapping of str to ndarray
        The same for each state variable by itself, h (and c).
    by_lag : ndarray of float64, shape (T,)
        Root mean square over the rows of the norm so many steps before a row's end (for the reverse
        direction, before the step that it processes last); NaN where no row reaches so far back.
        Steps before a reset do not count: nothing crosses it.
    lost : float
        Share of the steps whose norm is below :data:`RESOLUTION` times the largest of their row:
        what they add to a weight's gradient is rounded away.
    underflow : float
        Share of the numbers that are zero or too small for a normal float32 (1.2e-38).
    """

    name: str
    cell: str
    norms: np.ndarray
    by_state: Mapping[str, np.ndarray]
    by_lag: np.ndarray
    lost: float
    underflow: float

    @property
    def decades_per_step(self) -> float:
        """Slope of log10 of `by_lag`: below 0 the gradient vanishes backwards, above it explodes.

        By least squares over the lags at which it is positive and finite; NaN for less than two.
        """
        lags = np.flatnonzero(np.isfinite(self.by_lag) & (self.by_lag > 0))
        if lags.size < 2:
            return math.nan
        return float(np.polyfit(lags, np.log10(self.by_lag[lags]), 1)[0])

    @property
    def window(self) -> int:
        """Steps that the profile covers."""
        return int(np.count_nonzero(~np.isnan(self.by_lag)))

    @property
    def reach(self) -> float:
        """Steps back after which the gradient has fallen below :data:`RESOLUTION` of its largest.

        Measured where it happens within the window, else from the slope; infinite where it does
        not fall.
        """
        profile = self.by_lag[: self.window]
        largest = np.maximum.accumulate(profile)
        below = np.flatnonzero(profile < RESOLUTION * largest)
        if below.size:
            return float(below[0])
        slope = self.decades_per_step
        return math.log10(RESOLUTION) / slope if slope < 0 else math.inf

    @property
    def growth(self) -> float:
        """The largest gradient in the window over that at its end; infinite if not finite."""
        profile = self.by_lag[: self.window]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = profile.max() / profile[0]
        return float(ratio) if math.isfinite(ratio) else math.inf

    @property
    def kind(self) -> str:
        """``"explodes"``, ``"vanishes"`` (within the window) or ``"carries"``."""
        slope = self.decades_per_step
        if self.growth >= _EXPLODED and not slope < 0:
            return "explodes"
        return "vanishes" if self.reach < self.window else "carries"

    def text(self) -> str:
        """Return one sentence on how the gradient goes back in time."""
        slope, start = self.decades_per_step, f"{self.name}: "
        if self.window < 2:
            return start + "sequences of one step say nothing about time"
        if math.isnan(slope):
            return start + "the gradient is zero, or not finite, at nearly every step"
        over = f"over the {self.window} steps"
        if self.kind == "explodes":
            if not math.isfinite(self.growth):
                return f"{start}the gradient norm grows beyond float32 {over}"
            times = _times(self.growth)
            return f"{start}the gradient norm grows by {times} {over} and {_rate(slope)}"
        if self.kind == "vanishes":
            return (
                f"{start}the gradient norm {_rate(slope)}: the network cannot learn dependencies "
                f"past about {rounded(self.reach)} steps"
            )
        profile = self.by_lag[: self.window]
        factor = profile[-1] / profile[0]
        word = "falls" if factor < 1 else "grows"
        factor = max(factor, 1 / factor) if factor > 0 else math.inf
        end = "little of it gets through" if factor >= _LITTLE else "it gets through"
        return f"{start}the gradient norm {word} by a factor of {_times(factor)} {over}: {end}"


@dataclass(frozen=True)
class GradientProfile:
    """What :func:`gradient_profile` found.

    Attributes
    ----------
    layers : tuple of LayerProfile
        For each direction of each recurrent layer, from the input on.
    loss : float
        Of the batch; NaN where the gradient was given.
    parameters : mapping of str to float
        For each parameter the share of the entries of its gradient that are zero or smaller than
        :data:`RESOLUTION` times the largest.
    gradient_norm : float
        Of all parameters together.
    at_every_step : bool
        Whether the loss gives a gradient at other steps than the last: then norms say what a
        layer receives, and not how far a gradient travels.
    """

    layers: tuple[LayerProfile, ...]
    loss: float
    parameters: Mapping[str, float]
    gradient_norm: float
    at_every_step: bool

    def text(self) -> str:
        """Return what was found, a sentence for each layer."""
        lines = [layer.text() for layer in self.layers]
        if self.at_every_step:
            lines.append(
                "the loss gives a gradient at every step, so this is what arrives, not how far it "
                "travels: leave the target out to see that"
            )
        return "\n".join([*lines, *self._shares()])

    def _shares(self) -> list[str]:
        return [
            f"{layer.name}: {layer.lost:.0%} of the steps have gradients below the resolution of "
            f"float32 beside the largest; {layer.underflow:.0%} of all numbers are 0 or subnormal"
            for layer in self.layers
            if layer.lost > 0 or layer.underflow > 0
        ]

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the norms by steps back; return the matplotlib figure, and write it to `path`."""
        from ._plots import profile_picture

        return profile_picture(self, path)


def _times(factor: float) -> str:
    """Return a factor in few digits, 3.14 or 2e5."""
    if factor < 1e4:
        return f"{factor:.3g}"
    return f"{factor:.0e}".replace("e+0", "e").replace("e+", "e")


def _rate(slope: float) -> str:
    word = "falls" if slope < 0 else "grows"
    factor = "1e-3" if slope < 0 else "1e3"
    return f"{word} by {factor} every {rounded(3 / abs(slope))} steps" if slope else "stays"


def rounded(steps: float) -> str:
    """Return a number of steps in two digits, in words where it is infinite."""
    if not math.isfinite(steps):
        return "infinitely many"
    if steps < 20:
        return f"{steps:.2g}"
    magnitude = 10 ** (math.floor(math.log10(steps)) - 1)
    return f"{round(steps / magnitude) * magnitude:,}"


def gradient_profile(
    model: Model,
    x: Any,
    target: Any = None,
    loss: Loss = mse,
    *,
    d_output: Any = None,
    initial_state: Any = None,
    lengths: Any = None,
    resets: Any = None,
) -> GradientProfile:
    """Measure the gradient of a loss with respect to the state after every step.

    Parameters
    ----------
    model : Recurrent, Sequential, or what gives one by ``to_sequential()``
    x : array_like, shape (batch, time, input_size), or Sequences
        Of :class:`fastgates.Sequences` with a :class:`fastgates.SequenceModel`, a free run or an
        encoder-decoder the loss is that of its training, through the loop, with masks, weights,
        wash-out and initial state; give nothing else then.
    target : array_like, optional
        What `loss` takes beside the output. Without it (and without `d_output`) the loss is the
        output of the last step of each sequence (for a reverse direction, of the step that it
        processes last), projected onto a fixed random direction and averaged over the batch: the
        profile then says how far back that step can feel.
    loss : callable
        ``loss(output, target) -> (value, gradient)``, such as :func:`fastgates.mse`.
    d_output : array_like, in the shape of the output, optional
        The gradient itself, in place of a target.
    initial_state, lengths, resets
        As in a call of the model.

    Returns
    -------
    GradientProfile

    Raises
    ------
    ValueError, TypeError
        If `x` is empty, `target` and `d_output` (or either with Sequences) are given, or an
        argument does not fit.

    Notes
    -----
    The gradients come from the kernels that train, called for a step at a time
    (``backward(..., state_gradients=True)``); norms are computed in float64.
    """
    if isinstance(x, Sequences):
        if any(each is not None for each in (target, d_output, initial_state, lengths, resets)):
            raise ValueError("Sequences hold target, lengths and initial state: give nothing else")
        return _training_profile(model, x)
    if target is not None and d_output is not None:
        raise ValueError("give target or d_output, got both")
    network = as_model(model)
    output, tape, strands = run_model(network, x, initial_state, lengths, resets)
    value = math.nan
    if target is not None:
        value, d_output = loss(output, target)
    elif d_output is None:
        value, d_output = _last_step(output, strands[-1].lengths, network)
    d_output = np.asarray(d_output)
    gradients = network.backward(tape, d_output, input_gradient=False, state_gradients=True)
    per_layer = (gradients.states,) if isinstance(network, Recurrent) else gradients.states
    return _profile(gradients, strands, per_layer, value, d_output)


def _training_profile(model: Any, data: Sequences) -> GradientProfile:
    """Return the profile of a model's own loss."""
    if not isinstance(model, BaseModel):
        raise TypeError(
            "Sequences go with a SequenceModel, FreeRunModel or EncoderDecoder, whose loss they "
            f"give; with {type(model).__name__} pass an array"
        )
    data = model.check(data)
    output, tape = model.forward(data)
    value, d_output, _ = model.loss_of(output, data)
    gradients = model.backward(tape, d_output, state_gradients=True)
    every = iter(by_direction(gradients.states))
    first = data.x if data.x is not None else data.y
    strands, networks = [], model._networks()
    for place, (network_name, network) in enumerate(networks.items()):
        for name, layer, direction in named_directions(network):
            if len(networks) > 1:
                name = f"{network_name}, {name}"
            size, time = next(every).shape[1:3]
            lengths = np.full(size, time)
            if place == 0 and data.lengths is not None:
                # A free run does not read the last value.
                lengths = data.lengths - (first.shape[1] - time)
            strands.append(Strand(name, layer, direction, lengths, time))
    return _profile(gradients, strands, gradients.states, value, d_output)


def _profile(
    gradients: Gradients,
    strands: list[Strand],
    per_layer: Iterable[Any],
    value: float,
    d_output: np.ndarray,
) -> GradientProfile:
    layers = tuple(
        _layer_profile(strand, states)
        for strand, states in zip(strands, by_direction(per_layer), strict=True)
    )
    # Of the two directions of a layer, one ends at the first step and one at the last.
    everywhere = d_output.ndim > 2 and np.any(np.any(d_output, axis=-1).sum(axis=1) > 2)
    return GradientProfile(
        layers=layers,
        loss=float(value),
        parameters={
            name: _below_resolution(gradient) for name, gradient in gradients.parameters.items()
        },
        gradient_norm=_norm(gradients.parameter_vector),
        at_every_step=bool(everywhere),
    )


def _last_step(
    output: np.ndarray, lengths: np.ndarray, model: Recurrent | Sequential
) -> tuple[float, np.ndarray]:
    """Return the default loss, and its gradient."""
    size, features = output.shape[0], output.shape[-1]
    # Not (1, ..., 1): the outputs of a softmax have the sum 1 whatever happens.
    weight = np.random.default_rng(0).standard_normal(features)
    weight /= size * np.linalg.norm(weight)
    d_output = np.zeros(output.shape, np.float32)
    if output.ndim == 2:
        d_output[...] = weight
        return _projected(output, d_output), d_output
    if isinstance(model, Recurrent):
        ends = [direction.reverse for direction in model._directions[-model.num_directions :]]
    else:
        ends = [model.recurrent[-1].reverse]
    for columns, reverse in zip(np.split(np.arange(features), len(ends)), ends, strict=True):
        last = np.zeros_like(lengths) if reverse else lengths - 1
        d_output[np.arange(size)[:, None], last[:, None], columns] = weight[columns]
    return _projected(output, d_output), d_output


def _projected(output: np.ndarray, direction: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):  # an output that overflowed
        return float((output * direction).sum(dtype=np.float64))


def _norm(vector: np.ndarray) -> float:
    return math.sqrt(float(np.square(vector, dtype=np.float64).sum()))


def _below_resolution(gradient: np.ndarray) -> float:
    size = np.abs(gradient)
    return float(np.mean((size == 0) | (size < np.float32(RESOLUTION) * size.max())))


def _layer_profile(strand: Strand, states: np.ndarray) -> LayerProfile:
    lags, names = strand.lags(), strand.direction.cell.states
    outside = np.arange(lags.shape[1]) >= strand.lengths[:, None]
    squares = np.square(states, dtype=np.float64).sum(axis=-1)  # (N, B, T)
    squares[np.isnan(squares)] = np.inf  # the difference of two infinite numbers
    squares[:, outside] = np.nan
    total = squares.sum(axis=0)
    by_lag = np.full(lags.shape[1], np.nan)
    for lag in range(lags.max() + 1):
        by_lag[lag] = np.sqrt(total[lags == lag].mean())
    norms = np.sqrt(total)
    inside = states[:, ~outside]
    with np.errstate(invalid="ignore"):
        lost = norms < RESOLUTION * np.nanmax(norms, axis=1, keepdims=True)
    return LayerProfile(
        name=strand.name,
        cell=strand.direction.cell.name,
        norms=norms,
        by_state=dict(zip(names, np.sqrt(squares), strict=True)),
        by_lag=by_lag,
        lost=float(lost[~outside].mean()),
        underflow=float(np.mean(np.abs(inside) < np.finfo(np.float32).tiny)),
    )
