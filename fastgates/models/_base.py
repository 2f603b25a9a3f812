"""What all models have: parts in one flat vector, scaling, initial states, checks, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from .. import cells
from .._checks import positive_integer
from .._feed import Feed
from .._parameters import Gradients, Module
from .._sequences import Sequences, check_finite, moments, zeros_past_ends
from .._series import batches
from .._tables import DataError
from ..dense import Dense
from ..engine.linear import softmax_rows
from ..layers import GRU, LSTM, RNN, Recurrent, SimplifiedGRU, State
from ..losses import Loss, NothingCountsError, check_labels
from ..sequential import Scaling, Sequential
from ._states import EstimatedState, LearnedState, States

__all__ = [
    "LAYERS",
    "Learn",
    "Model",
    "check_network",
    "check_states",
    "make_layer",
    "no_scaling",
    "nothing_beside",
    "seeds",
]

Learn = Callable[[np.ndarray], tuple[float, np.ndarray, float]]
"""From numbers of sequences to their loss, its gradients in one vector, and the sum of weights."""

INITIAL_STATES = ("zero", "given", "learned", "estimated")

LAYERS: dict[str, tuple[type, dict[str, Any]]] = {
    "rnn": (RNN, {}),
    "rnn_relu": (RNN, {"nonlinearity": "relu"}),
    "leaky_rnn": (RNN, {"leak": 0.5}),
    "simplified_gru": (SimplifiedGRU, {}),
    "gru": (GRU, {}),
    "gru_reset_after": (GRU, {"reset_after": True}),
    "lstm": (LSTM, {}),
}
"""The layer of each name that models take, and its options, which may be overridden."""


def make_layer(
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    cell_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Recurrent:
    """Make a recurrent layer from a cell's name.

    Parameters
    ----------
    cell : str
        A key of :data:`LAYERS`, or the name of a registered cell.
    input_size, hidden_size, num_layers : int
    cell_options : mapping, optional
        Options of that cell's layer.
    **options
        Options that every layer has.

    Raises
    ------
    ValueError, TypeError
        If the cell is unknown or an option does not fit it.
    """
    own = dict(cell_options or {}) | options
    if cell in LAYERS:
        layer, defaults = LAYERS[cell]
        made: Recurrent = layer(input_size, hidden_size, num_layers, **(defaults | own))
        return made
    if cell not in cells.registered():
        known = sorted({*LAYERS, *cells.registered()})
        raise ValueError(f"cell must be one of {', '.join(known)}, got {cell!r}")
    return Recurrent(cell, input_size, hidden_size, num_layers, **own)


class Model(Module):
    """Base of the models: parts in one flat vector, scaling, initial states, evaluation.

    A subclass writes ``_run`` (outputs without tape), ``_forward``, ``backward``, ``_targets`` and
    ``_check_axes``. What begins with an underscore takes data in the networks' units, from a
    :class:`~fastgates._feed.Feed`.

    Parameters
    ----------
    parts : mapping of str to Module
        The networks, owned by the model from now on.
    starting : Sequential
        The one whose initial state is given, learned or estimated.
    output_size : int
        Outputs of a step, before they are scaled back.
    loss, washout, initial_state, estimation_steps, estimate_from_targets, seed
        See :class:`SequenceModel`.
    inputs : int
        Features that are scaled as inputs.
    scale_inputs, scale_outputs : bool
    """

    #: Whether targets are those of the steps of the inputs, so that lengths hold for them too.
    per_step = True
    _target_axes = 3  # of numbers; labels have one less

    def __init__(
        self,
        parts: Mapping[str, Module],
        starting: Sequential,
        output_size: int,
        inputs: int,
        *,
        loss: str | Loss,
        washout: int,
        initial_state: str,
        estimation_steps: int,
        estimate_from_targets: bool,
        scale_inputs: bool,
        scale_outputs: bool | None,
        seed: int | None,
    ) -> None:
        self.loss = Loss.of(loss)
        if isinstance(washout, bool) or not isinstance(washout, int | np.integer) or washout < 0:
            raise ValueError(f"washout must be an integer of at least 0, got {washout!r}")
        self.washout = int(washout)
        if initial_state not in INITIAL_STATES:
            raise ValueError(
                f"initial_state must be one of {', '.join(INITIAL_STATES)}, got {initial_state!r}"
            )
        self.initial_state = initial_state
        if output_size % self.loss.outputs_per_target:
            raise ValueError(
                f"the network's output size must be a multiple of the "
                f"{self.loss.outputs_per_target} quantiles, got {output_size}"
            )
        self.output_size = output_size
        self.input_size = inputs
        self.target_size = output_size // self.loss.outputs_per_target
        scale_outputs = (not self.loss.classifies) if scale_outputs is None else scale_outputs
        if scale_outputs and self.loss.classifies:
            raise ValueError("scale_outputs must be False for cross_entropy: labels have no scale")
        self.input_scaling = no_scaling(inputs) if scale_inputs and inputs else None
        self.output_scaling = no_scaling(self.target_size) if scale_outputs else None
        self.scaled = False
        self.estimate_from_targets = bool(estimate_from_targets)
        self._state: Any = None
        states = States(starting.recurrent)
        if initial_state == "learned":
            self._state = LearnedState(states)
        elif initial_state == "estimated":
            steps = positive_integer("estimation_steps", estimation_steps)
            features = inputs + self.target_size * self.estimate_from_targets
            self._state = EstimatedState(states, steps, features, seed)
        self._parts: dict[str, Module] = dict(parts)
        if self._state is not None:
            self._parts["initial_state"] = self._state
        super().__init__(
            {
                f"{part}.{name}": shape
                for part, module in self._parts.items()
                for name, shape in module._shapes.items()
            }
        )
        self._vector[:] = np.concatenate([m.parameter_vector for m in self._parts.values()])
        self._adopt()

    def _adopt(self) -> None:
        """Make the vectors of the parts views of this one's."""
        start = 0
        for module in self._parts.values():
            end = start + module.parameter_vector.size
            module._belong_to(self, self._vector[start:end])
            start = end

    def _bind(self, vector: np.ndarray) -> None:
        super()._bind(vector)
        self._adopt()

    def _changed(self) -> None:
        super()._changed()
        for module in self._parts.values():
            module._changed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._adopt()

    def _followers(self) -> list[Module]:
        return [*self._networks().values(), *self._scalings().values()]

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={part!r}" for name, part in self._networks().items())
        return f"{type(self).__name__}({inner}, loss={self.loss.name!r})"

    def _networks(self) -> dict[str, Sequential]:
        return {name: part for name, part in self._parts.items() if isinstance(part, Sequential)}

    @property
    def recurrent(self) -> tuple[Recurrent, ...]:
        """The recurrent layers of all networks, in order."""
        return tuple(layer for net in self._networks().values() for layer in net.recurrent)

    # -- Scaling -----------------------------------------------------------------------------------

    def _scalings(self) -> dict[str, Scaling]:
        both = {"input_scaling": self.input_scaling, "output_scaling": self.output_scaling}
        return {name: scaling for name, scaling in both.items() if scaling is not None}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of all parameters by name, and of the scaling."""
        scaling = {
            f"{place}.{name}": value
            for place, module in self._scalings().items()
            for name, value in module.state_dict().items()
        }
        return super().state_dict() | scaling

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set all parameters and the scaling, see :meth:`Module.load_state_dict`."""
        own = dict(state_dict)
        scaling = {
            place: {name: own.pop(f"{place}.{name}", None) for name in ("mean", "scale")}
            for place in self._scalings()
        }
        missing = [
            f"{place}.{name}"
            for place, values in scaling.items()
            for name, value in values.items()
            if value is None
        ]
        if missing:
            raise ValueError(f"state_dict must hold the model's scaling: missing {missing}")
        super().load_state_dict(own)
        for place, values in scaling.items():
            self._scalings()[place].load_state_dict(values)
        self.scaled = True

    def fit_scaling(self, data: Sequences) -> None:
        """Learn means and deviations of inputs and targets from the steps that count.

        A constant column is only shifted. The training loop does this once, with its training data.
        """
        data = self.check(data)
        self._fit_scaling(data)
        self.scaled = True

    def _fit_scaling(self, data: Sequences) -> None:
        if self.input_scaling is not None:
            set_scaling(self.input_scaling, *moments("x", data.x, data.lengths))
        if self.output_scaling is not None:
            lengths = data.lengths if self.per_step else None
            set_scaling(self.output_scaling, *moments("y", data.y, lengths))

    def _feed(self, data: Sequences) -> Feed:
        """Return checked data, ready to be taken in the networks' units."""
        return Feed(data, {"x": self.input_scaling} | self._scaled_fields())

    def _scaled_fields(self) -> dict[str, Scaling]:
        """Return how fields other than the inputs are scaled."""
        return {} if self.output_scaling is None else {"y": self.output_scaling}

    def _in_units(self, data: Sequences) -> Sequences:
        """Return checked data in the networks' units."""
        return self._feed(data).take(np.arange(len(data), dtype=np.int64))

    def _output_scaling(self) -> Scaling | None:
        """Return the way back, of all outputs."""
        if self.output_scaling is None:
            return None
        count = self.loss.outputs_per_target
        values = self.output_scaling.parameters
        mean, scale = (np.repeat(values[name], count) for name in ("mean", "scale"))
        return Scaling(mean, scale, inverse=True)

    # -- Initial states ----------------------------------------------------------------------------

    def initial_states(
        self, batch_size: int = 1, data: Sequences | None = None
    ) -> tuple[State, ...]:
        """Return the initial states that the model has learned, or estimates.

        They are those of the network alone: of ``to_sequential()``, its stream, and whatever is
        made of that.

        Parameters
        ----------
        batch_size : int
            Of how many sequences, where they are learned.
        data : Sequences
            Of which sequences, where they are estimated; with `y` where they are estimated from
            targets too.

        Returns
        -------
        tuple
            A state for each recurrent layer.

        Raises
        ------
        ValueError
            If the initial states are zero or given, or `data` is missing.
        """
        if isinstance(self._state, LearnedState):
            return self._state.forward(positive_integer("batch_size", batch_size))
        if not isinstance(self._state, EstimatedState):
            raise ValueError(
                f"only learned and estimated initial states are the model's, got "
                f"{self.initial_state!r}"
            )
        if data is None:
            raise ValueError("data must hold the sequences whose initial states are estimated")
        states, _ = self._start(self._in_units(self.check(data, targets=False)), keep=False)
        return cast("tuple[State, ...]", states)

    def _start(self, data: Sequences, keep: bool) -> tuple[tuple[State, ...] | None, Any]:
        """Return the initial states, and their tape."""
        if self.initial_state == "given":
            return data.initial_state, None
        if isinstance(self._state, LearnedState):
            return self._state.forward(len(data)), None
        if isinstance(self._state, EstimatedState):
            features = [] if data.x is None else [data.x]
            features += [data.y] if self.estimate_from_targets else []
            if keep:
                return self._state.forward(features, data.lengths)
            return self._state(features, data.lengths), None
        return None, None

    def _start_gradient(self, tape: Any, d_states: Sequence[State]) -> list[np.ndarray]:
        """Return the gradient of the parameters of the initial state, in a list."""
        if isinstance(self._state, LearnedState):
            return [self._state.backward(d_states)]
        if isinstance(self._state, EstimatedState):
            return [self._state.backward(tape, d_states)]
        return []

    def _gradients(self, vectors: list[np.ndarray], d_states: Any, every: Any = None) -> Gradients:
        vector = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
        return Gradients(None, d_states, vector, self._shapes, every)

    # -- Checks ------------------------------------------------------------------------------------

    def check(self, data: Sequences, targets: bool = True) -> Sequences:
        """Return `data` as this model takes it, or raise the error that says what is wrong.

        Parameters
        ----------
        data : Sequences
        targets : bool
            Whether `data` must have targets.

        Raises
        ------
        DataError
            If the data is empty, has another shape than the model asks for, numbers that are not
            finite, lengths beyond the array or labels that are no class.
        TypeError
            If labels are not integers.
        """
        self._check_parts(self._parts.values())
        if not isinstance(data, Sequences):
            raise TypeError(f"data must be fastgates.Sequences, got {type(data).__name__}")
        if len(data) == 0:
            raise DataError("data must hold at least one sequence, got none")
        if targets and data.y is None:
            raise DataError("data must have targets y, got none")
        if (data.initial_state is None) == (self.initial_state == "given"):
            if self.initial_state == "given":
                raise DataError("data must have initial_state: the model's is 'given'")
            raise DataError(
                "data has initial_state, but the model's is "
                f"{self.initial_state!r}: make the model with initial_state='given'"
            )
        if data.y is not None and self.loss.classifies and data.y.dtype.kind not in "iu":
            raise TypeError(f"labels y must be integers, got dtype {data.y.dtype}")
        y = data.y
        if y is not None and not self.loss.classifies and y.ndim < self._target_axes:
            y = y[..., None]  # one target
        elif y is not None and self.loss.classifies and y.shape[self._target_axes - 1 :] == (1,):
            y = y[..., 0]
        data = data.replace(y=y)
        self._check_axes(data)
        steps = (data.y if data.x is None else data.x).shape[1]
        if data.lengths is not None:
            low, high = data.lengths.min(), data.lengths.max()
            if low < 1 or high > steps:
                raise DataError(f"lengths must be from 1 to time={steps}, got {low} to {high}")
        if data.x is not None and not check_finite("x", data.x, data.lengths):
            # What is past an end counts for nothing, but zero times NaN is NaN.
            data = data.replace(x=zeros_past_ends(data.x, data.lengths))
        if data.x_future is not None:
            check_finite("x_future", data.x_future)
        if data.y is not None:
            lengths = data.lengths if self.per_step else None
            if self.loss.classifies:
                self._check_labels(data.y, lengths)
            else:
                check_finite("y", data.y, lengths)
        weight = data.sample_weight
        if weight is not None and not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise DataError("sample_weight must hold finite numbers of at least 0")
        if targets:
            self._check_counts(data)
        return data

    def _check_counts(self, data: Sequences) -> None:
        y, lengths, weight, washout = self._targets(data)
        of_class = self.loss.options.get("class_weight")
        if weight is None and not washout and of_class is None:
            return
        counts = np.ones((len(data), 1)) if weight is None else weight.reshape(len(data), -1)
        if lengths is not None or washout:
            steps = np.arange(y.shape[1])
            counts = counts * (steps >= washout)
            if lengths is not None:
                counts = counts * (steps < lengths[:, None])
        if of_class is not None:  # what stands past an end, whatever it is, counts 0 already
            counts = counts * np.take(of_class, y, mode="clip").reshape(len(data), -1)
        if not counts.any():
            classes = "" if of_class is None else f", class_weight={of_class}"
            raise DataError(
                f"nothing counts in the loss: lengths, sample_weight and washout={washout}"
                f"{classes} leave no step"
            )

    def _check_labels(self, labels: np.ndarray, lengths: np.ndarray | None) -> None:
        if lengths is not None:
            labels = np.where(np.arange(labels.shape[1]) < lengths[:, None], labels, 0)
        try:
            check_labels(labels, self.output_size)
        except ValueError as error:
            raise DataError(str(error)) from None

    def _check_axes(self, data: Sequences) -> None:
        raise TypeError("use SequenceModel, FreeRunModel or EncoderDecoder, the base runs nothing")

    def _check_inputs(self, name: str, x: Any, features: int) -> None:
        if x is None or x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != features:
            got = None if x is None else x.shape
            raise DataError(
                f"{name} must have shape (n, time >= 1, features={features}), got {got}"
            )

    # -- Training and evaluation -------------------------------------------------------------------

    def forward(self, data: Sequences, training: bool = False) -> tuple[np.ndarray, Any]:
        """Run over checked data.

        Parameters
        ----------
        data : Sequences
            As :meth:`check` returns it.
        training : bool
            Whether dropout is applied.

        Returns
        -------
        output : ndarray of float32
            In the network's units: of each step (B, T, output_size), of each sequence
            (B, output_size), of the steps after the context or of the horizon.
        tape
            For :meth:`backward`. ``tape.network`` is that of the network; where outputs are fed
            back, that of the given steps and one for each step after. ``tape.encoder`` is that of
            an encoder.
        """
        return self._forward(self._in_units(data), training)

    def _forward(self, data: Sequences, training: bool) -> tuple[np.ndarray, Any]:
        raise TypeError("use SequenceModel, FreeRunModel or EncoderDecoder, the base runs nothing")

    def backward(self, tape: Any, d_output: np.ndarray, state_gradients: bool = False) -> Gradients:
        """Return the gradients, from that with respect to the outputs in the network's units.

        ``initial_state`` is the gradient with respect to the initial states, whatever they are.
        With `state_gradients`, ``states`` is a tuple with an entry for each of the layers of
        ``recurrent``, see :meth:`fastgates.Recurrent.backward`.
        """
        raise TypeError("use SequenceModel, FreeRunModel or EncoderDecoder, the base runs nothing")

    def _run(self, data: Sequences) -> np.ndarray:
        """Return the outputs of :meth:`_forward`, keeping nothing."""
        raise TypeError("use SequenceModel, FreeRunModel or EncoderDecoder, the base runs nothing")

    def _targets(self, data: Sequences) -> tuple[Any, Any, Any, int]:
        """Return targets, lengths, sample weights and wash-out of the outputs."""
        raise TypeError("use SequenceModel, FreeRunModel or EncoderDecoder, the base runs nothing")

    def loss_of(self, output: np.ndarray, data: Sequences) -> tuple[float, np.ndarray, float]:
        """Return the loss of outputs, its gradient, and the sum of weights that it is a mean over.

        Parameters
        ----------
        output : ndarray
            From :meth:`forward`.
        data : Sequences
            Checked, with targets.
        """
        return self._loss_of(output, self._in_units(data.replace(x=None, x_future=None)))

    def _loss_of(
        self, output: np.ndarray, data: Sequences, out: np.ndarray | None = None
    ) -> tuple[float, np.ndarray, float]:
        """Return what :meth:`loss_of` does; the gradient is written to `out`."""
        gradient = np.empty(output.shape, np.float32) if out is None else out
        try:
            return self.loss.weighted(output, *self._targets(data), out=gradient)
        except NothingCountsError:  # a minibatch of short sequences, say: it has no say
            gradient[...] = 0
            return 0.0, gradient, 0.0

    def gradients(self, data: Sequences, training: bool = True) -> tuple[float, Gradients, float]:
        """Return the loss of checked data, its gradients, and the sum of weights.

        Parameters
        ----------
        data : Sequences
            As :meth:`check` returns it.
        training : bool
            Whether dropout is applied.
        """
        output, tape = self.forward(data, training)
        loss, d_output, weight = self.loss_of(output, data)
        return loss, self.backward(tape, d_output), weight

    def _gradients_of(
        self, data: Sequences, training: bool = True
    ) -> tuple[float, Gradients, float]:
        output, tape = self._forward(data, training)
        loss, d_output, weight = self._loss_of(output, data)
        return loss, self.backward(tape, d_output), weight

    def _learner(self, data: Sequences) -> Learn:
        """Return what gives the loss, gradients and weight of some of the rows of checked data.

        The vector of the gradients is good until the next call.
        """
        if self._overrides(Model, "forward", "loss_of", "gradients"):

            def learn_publicly(rows: np.ndarray) -> tuple[float, np.ndarray, float]:
                loss, gradients, weight = self.gradients(data.take(rows))
                return loss, gradients.parameter_vector, weight

            return learn_publicly
        feed = self._feed(data)

        def learn(rows: np.ndarray) -> tuple[float, np.ndarray, float]:
            loss, gradients, weight = self._gradients_of(feed.take(rows))
            return loss, gradients.parameter_vector, weight

        return learn

    def _overrides(self, base: type, *names: str) -> bool:
        """Tell whether this model's class has methods in place of those of `base`."""
        return any(getattr(type(self), name) is not getattr(base, name) for name in names)

    def evaluate(self, data: Sequences, batch_size: int = 512) -> float:
        """Return the mean loss of data, in the network's units, without dropout."""
        return self._evaluate(self.check(data), positive_integer("batch_size", batch_size))

    def _evaluate(self, data: Sequences, batch_size: int = 512) -> float:
        total = weight = 0.0
        for part in self._parts_of(data, batch_size):
            loss, _, counted = self._loss_of(self._run(part), part)
            total += loss * counted
            weight += counted
        return total / weight

    def _parts_of(self, data: Sequences, batch_size: int) -> Iterator[Sequences]:
        """Return checked data in the networks' units, some sequences at a time."""
        feed, numbers = self._feed(data), np.arange(len(data), dtype=np.int64)
        return (feed.take(numbers[rows]) for rows in batches(len(data), batch_size))

    def _predict(self, data: Sequences, batch_size: int) -> np.ndarray:
        """Return the outputs of checked data in the user's units."""
        size = positive_integer("batch_size", batch_size)
        back = self._output_scaling()
        parts = []
        for part in self._parts_of(data, size):
            output = self._run(part)
            if self.loss.classifies:
                output = softmax_rows(output.reshape(-1, self.output_size)).reshape(output.shape)
            elif back is not None:
                output = back(output)
            parts.append(self._without_padding(output, part))
        return np.concatenate(parts)

    def _without_padding(self, output: np.ndarray, data: Sequences) -> np.ndarray:
        return output


def seeds(seed: int | None, count: int) -> list[int]:
    return [int(each) for each in np.random.SeedSequence(seed).generate_state(count)]


def no_scaling(size: int) -> Scaling:
    return Scaling(np.zeros(size), np.ones(size))


def set_scaling(scaling: Scaling, mean: np.ndarray, scale: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        values = {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}
    if not all(np.isfinite(value).all() for value in values.values()) or not values["scale"].all():
        raise DataError(
            "the numbers are too large or too small for float32; give them in another unit"
        )
    scaling.load_state_dict(values)


def check_network(name: str, network: Any, loss: Loss) -> None:
    if not isinstance(network, Sequential):
        raise TypeError(f"{name} must be a fastgates.Sequential, got {type(network).__name__}")
    if any(isinstance(module, Scaling) for module in network.modules):
        raise ValueError(f"{name} must have no Scaling: the model learns its own from the data")
    last = network.modules[-1]
    if loss.classifies and not (isinstance(last, Dense) and last.activation == "identity"):
        raise ValueError(
            f"with cross_entropy {name} must end with a Dense without activation, got {last!r}"
        )


def check_states(states: Any, network: Sequential, count: int) -> None:
    """Raise where given states are not those of `count` sequences, or not finite."""
    if states is None:
        return
    if len(states) != len(network.recurrent):
        raise DataError(
            f"initial_state must have a state for each of the {len(network.recurrent)} recurrent "
            f"layers, got {len(states)}"
        )
    for k, (state, layer) in enumerate(zip(states, network.recurrent, strict=True)):
        try:
            stacked = layer._states_in(f"initial_state[{k}]", state, count)
        except ValueError as error:
            raise DataError(str(error)) from None
        if stacked is not None:
            check_finite(f"initial_state[{k}]", stacked)


def nothing_beside(data: Sequences, **others: Any) -> None:
    """Raise where something is given beside Sequences, which hold it themselves."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise TypeError(
            f"{', '.join(given)} must not be given beside Sequences, which hold all there is: "
            "put it into them"
        )
