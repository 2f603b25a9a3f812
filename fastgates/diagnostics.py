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

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import positive_integer, real_array
from ._parameters import Gradients
from ._sequences import Sequences
from .cells._functions import FUNCTIONS
from .engine.passes import Direction
from .initialization import MEMORY_GATES
from .layers import Recurrent, Tape
from .losses import mse
from .models import Model as BaseModel
from .sequential import Sequential

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

RESOLUTION = 2.0**-24
"""What is smaller than this share of a float32 number leaves it unchanged when it is added."""

_EXPLODED = 1e3  # times the gradient at the output: what a user should hear of
_LITTLE = 1e3  # times less than at the end of the window
_CANDIDATES = ("g", "n", "n_h", "n_x")  # slots that are no gates
_WRITING = {"lstm_coupled": "i"}  # cells whose memory is multiplied by 1 - the gate that writes
_VALVES = ("f", "z")  # what cells of one's own call the gate that multiplies the memory
_MOST_ROWS = 4096  # of unit vectors that go through the engine at a time
_SHUT, _OPEN = 0.1, 0.9  # saturated gates, of Karpathy, Johnson and Li, 2015

Model = Any  # Recurrent, Sequential, or what gives a Sequential by to_sequential()
Loss = Callable[[np.ndarray, Any], tuple[float, Any]]


# -- Runs of a model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Strand:
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


def _as_model(model: Model) -> Recurrent | Sequential:
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
    return _as_model(deployable())


def _forward(
    model: Recurrent | Sequential, x: Any, initial_state: Any, lengths: Any, resets: Any
) -> tuple[np.ndarray, Any, list[_Strand]]:
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


def _strands(model: Recurrent | Sequential, tape: Any) -> list[_Strand]:
    modules = {id(model): tape}
    if isinstance(model, Sequential):
        modules = {id(m): step for m, step in zip(model.modules, tape.steps, strict=True)}
    strands = []
    for name, layer, direction in _named(model):
        inner = modules[id(layer)]
        batch = inner.batch
        lengths = np.empty(batch.size, np.int64)
        lengths[batch.order] = batch.sorted_lengths
        strands.append(_Strand(name, layer, direction, lengths, batch.time, batch.resets, inner))
    return strands


def _named(model: Recurrent | Sequential) -> Iterator[tuple[str, Recurrent, Direction]]:
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


def _by_direction(per_layer: Iterable[Any]) -> list[np.ndarray]:
    """Return the state gradients (N, B, T, H) of each direction of each layer."""
    found = []
    for states in per_layer:
        stacked = np.stack(states if isinstance(states, tuple) else (states,))
        found += [stacked[:, place] for place in range(stacked.shape[1])]
    return found


# -- The profile ----------------------------------------------------------------------------------


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
                f"past about {_rounded(self.reach)} steps"
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
        from ._diagnostics_plots import profile_picture

        return profile_picture(self, path)


def _times(factor: float) -> str:
    """Return a factor in few digits, 3.14 or 2e5."""
    if factor < 1e4:
        return f"{factor:.3g}"
    return f"{factor:.0e}".replace("e+0", "e").replace("e+", "e")


def _rate(slope: float) -> str:
    word = "falls" if slope < 0 else "grows"
    factor = "1e-3" if slope < 0 else "1e3"
    return f"{word} by {factor} every {_rounded(3 / abs(slope))} steps" if slope else "stays"


def _rounded(steps: float) -> str:
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
    network = _as_model(model)
    output, tape, strands = _forward(network, x, initial_state, lengths, resets)
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
    every = iter(_by_direction(gradients.states))
    first = data.x if data.x is not None else data.y
    strands, networks = [], model._networks()
    for place, (network_name, network) in enumerate(networks.items()):
        for name, layer, direction in _named(network):
            if len(networks) > 1:
                name = f"{network_name}, {name}"
            size, time = next(every).shape[1:3]
            lengths = np.full(size, time)
            if place == 0 and data.lengths is not None:
                # A free run does not read the last value.
                lengths = data.lengths - (first.shape[1] - time)
            strands.append(_Strand(name, layer, direction, lengths, time))
    return _profile(gradients, strands, gradients.states, value, d_output)


def _profile(
    gradients: Gradients,
    strands: list[_Strand],
    per_layer: Iterable[Any],
    value: float,
    d_output: np.ndarray,
) -> GradientProfile:
    layers = tuple(
        _layer_profile(strand, states)
        for strand, states in zip(strands, _by_direction(per_layer), strict=True)
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


def _layer_profile(strand: _Strand, states: np.ndarray) -> LayerProfile:
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


# -- Jacobians of a step --------------------------------------------------------------------------


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
        from ._diagnostics_plots import jacobian_picture

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
    network = _as_model(model)
    most_steps = positive_integer("most_steps", most_steps)
    _, _, strands = _forward(network, x, initial_state, lengths, resets)
    size = strands[0].lengths.size
    if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < size:
        raise ValueError(f"row must be an integer from 0 to {size - 1}, got {row!r}")
    return StepJacobians(
        tuple(_layer_jacobians(strand, int(row), most_steps) for strand in strands)
    )


def _layer_jacobians(strand: _Strand, row: int, most: int) -> LayerJacobians:
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


# -- Gates ----------------------------------------------------------------------------------------


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
        spread = f"{_rounded(low)} to {_rounded(high)} steps, half of them less than"
        spread = f"{spread} " if _rounded(low) != _rounded(high) else ""
        sentence = f"{self.name}: units remember {spread}{_rounded(middle)}"
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
        from ._diagnostics_plots import gate_picture

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
    _, _, strands = _forward(_as_model(model), x, initial_state, lengths, resets)
    return GateOpenings(tuple(_layer_gates(strand) for strand in strands))


def _layer_gates(strand: _Strand) -> LayerGates:
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


# -- All of it ------------------------------------------------------------------------------------


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
        from ._diagnostics_plots import examination_picture

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
    network = _as_model(model)
    run = {"initial_state": initial_state, "lengths": lengths, "resets": resets}
    return Examination(
        profile=gradient_profile(network, x, **run),
        jacobians=step_jacobians(network, x, most_steps=most_steps, **run),
        gates=gate_openings(network, x, **run),
    )


# -- During training ------------------------------------------------------------------------------


class GradientMonitor:
    """A callback of :class:`fastgates.Trainer` that measures the gradient profile as it learns.

    It measures before the first epoch and after every `every` of them, always on the same
    sequences. In a loop of your own, call :meth:`measure`.

    Parameters
    ----------
    x : array_like, shape (batch, time, input_size), or Sequences
        In the user's units, as the model's ``predict`` takes them; a few sequences are enough. The
        loss is that of :func:`gradient_profile`: of an array how far back the last step can feel,
        of :class:`fastgates.Sequences` that of the training.
    lengths : array_like of int, shape (batch,), optional
    every : int
        Epochs from one measurement to the next.

    Attributes
    ----------
    epochs : list of int
        When profiles were measured.
    profiles : list of GradientProfile
    """

    def __init__(self, x: Any, lengths: Any = None, every: int = 1) -> None:
        self.x = x
        if not isinstance(x, Sequences):
            self.x = real_array("x", x, ("batch_size", "time", "input_size"), copy=True)
        self.lengths = lengths
        self.every = positive_integer("every", every)
        self.epochs: list[int] = []
        self.profiles: list[GradientProfile] = []

    def measure(self, model: Model, epoch: int) -> GradientProfile:
        """Measure the profile of `model` now, and keep it as that of `epoch`.

        Parameters
        ----------
        model : Model
            As :func:`gradient_profile` takes it.
        epoch : int
            Epochs trained so far.

        Returns
        -------
        GradientProfile

        Raises
        ------
        ValueError, TypeError
            If the model does not take the sequences.
        """
        profile = gradient_profile(model, self.x, lengths=self.lengths)
        self.epochs.append(int(epoch))
        self.profiles.append(profile)
        return profile

    def on_fit_begin(self, trainer: Any) -> None:
        """Measure the start."""
        if not self.profiles:
            self.measure(trainer.model, 0)

    def on_epoch_end(self, trainer: Any) -> None:
        """Measure where it is time."""
        if trainer.epoch % self.every == 0:
            self.measure(trainer.model, trainer.epoch)

    def text(self) -> str:
        """Return what the first and the last profile say."""
        if not self.profiles:
            return "nothing was measured yet"
        places = (0, len(self.profiles) - 1)[: len(self.profiles)]
        return "\n".join(
            f"after epoch {self.epochs[place]}: {layer.text()}"
            for place in places
            for layer in self.profiles[place].layers
        )

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the norms by steps back and epoch; return the figure, and write it to `path`.

        Raises
        ------
        ValueError
            If nothing was measured yet.
        """
        from ._diagnostics_plots import monitor_picture

        if not self.profiles:
            raise ValueError("nothing was measured yet: train with this callback first")
        return monitor_picture(self.epochs, self.profiles, path)
