"""Modules in a row: scaling, recurrent layers, dense layers, as one module with one flat vector.

A whole model as it is deployed is one :class:`Sequential`: its inputs in the user's units are
scaled, go through recurrent and dense layers, and are scaled back. What saves, converts, streams or
exports a model therefore knows four kinds of modules: :class:`Scaling`, recurrent layers,
:class:`~fastgates.Dense` and :class:`Sequential`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._checks import positive_integer, real_array
from ._parameters import Gradients, Module
from .dense import Dense
from .layers import NO_STATE_GRADIENTS, Recurrent, State

__all__ = ["Scaling", "Sequential", "SequentialTape", "deployed"]


class Scaling(Module):
    """``(x - mean) / scale`` on the last axis, or its inverse ``x * scale + mean``.

    Not trained: optimisers do not see it. All in float32, each operation rounded once.

    Parameters
    ----------
    mean, scale : array_like, shape (size,)
        Finite; no scale is 0.
    inverse : bool
        Whether scaled values are brought back to the user's units.

    Raises
    ------
    ValueError, TypeError
        If the shapes differ, or a number is not finite, or a scale is 0 in float32.
    """

    trainable = False

    def __init__(self, mean: Any, scale: Any, inverse: bool = False) -> None:
        mean = real_array("mean", mean, ("size",))
        self.size = positive_integer("size", mean.size)
        scale = real_array("scale", scale, (("size", self.size),))
        self.inverse = bool(inverse)
        super().__init__({"mean": (self.size,), "scale": (self.size,)})
        self._tiled: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None
        self.load_state_dict({"mean": mean, "scale": scale})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set both from a mapping, see :meth:`Module.load_state_dict`."""
        for name in ("mean", "scale"):
            value = np.asarray(state_dict.get(name, 1), np.float32)
            if not np.isfinite(value).all() or (name == "scale" and not value.all()):
                raise ValueError(f"{name} must be finite and no scale 0, got {value}")
        super().load_state_dict(state_dict)

    @property
    def input_size(self) -> int:
        """Features of the input, and of the output."""
        return self.size

    @property
    def output_size(self) -> int:
        """Features of the output."""
        return self.size

    def __repr__(self) -> str:
        return f"Scaling({self.size}{', inverse=True' * self.inverse})"

    def _cuda(self) -> Any:
        """Return the passes on the GPU."""
        if self._on_device is None:
            from .cuda.modules import ScalingPasses

            self._on_device = ScalingPasses(self)
        return self._on_device

    def __call__(self, x: Any) -> np.ndarray:
        """Return `x` (..., size) scaled, float32."""
        if self._device != "cpu":
            return self._cuda().call(x)
        x = real_array("x", x, ("...", ("size", self.size)))
        mean, scale = self._vector[: self.size], self._vector[self.size :]
        shape = x.shape
        if x.ndim > 2:  # a few features in the innermost loop would take longer than the rest
            key = (self._version, shape[-2])
            if self._tiled is None or self._tiled[0] != key:
                self._tiled = (key, np.tile(mean, shape[-2]), np.tile(scale, shape[-2]))
            _, mean, scale = self._tiled
            x = x.reshape(*shape[:-2], mean.size)
        y = np.multiply(x, scale) if self.inverse else np.subtract(x, mean)
        result = np.add(y, mean, out=y) if self.inverse else np.divide(y, scale, out=y)
        return result.reshape(shape)

    def gradient(self, d_output: np.ndarray) -> np.ndarray:
        """Return the gradient with respect to the input."""
        scale = self._vector[self.size :]
        return d_output * scale if self.inverse else d_output / scale


@dataclass
class SequentialTape:
    """What :meth:`Sequential.forward` keeps for :meth:`Sequential.backward`; good for one use."""

    owner: Sequential
    steps: tuple[Any, ...]  # for each module its tape, None for scaling
    states: tuple[State, ...]  # the final ones
    past_end: np.ndarray | None  # (B, T) where rows of the output were set to 0
    nbytes: int = field(default=0)


class Sequential(Module):
    """Modules that take each other's output, as one module.

    Parameters
    ----------
    *modules : Scaling, Recurrent or Dense
        In order, at least one recurrent layer among them; each is owned by this one from now on:
        its parameters become a part of the flat vector.
    return_sequences : bool
        Whether there is an output for every step, or one for each sequence: then what follows the
        last recurrent layer sees its last outputs only (see ``Recurrent.__call__``).

    Raises
    ------
    ValueError, TypeError
        If sizes do not fit each other, or something else is among the modules.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgates as fg
    >>> model = fg.Sequential(fg.GRU(3, 16, seed=0), fg.Dense(16, 2, seed=1))
    >>> output, states = model(np.zeros((5, 7, 3)))
    >>> output.shape
    (5, 7, 2)
    """

    def __init__(
        self, *modules: Scaling | Recurrent | Dense, return_sequences: bool = True
    ) -> None:
        sizes: list[int] = []
        for place, module in enumerate(modules):
            if not isinstance(module, Scaling | Recurrent | Dense):
                raise TypeError(
                    f"modules[{place}] must be a Scaling, a recurrent layer or a Dense, "
                    f"got {type(module).__name__}"
                )
            if sizes and sizes[-1] != module.input_size:
                raise ValueError(
                    f"modules[{place}] must take the {sizes[-1]} features of the one before it, "
                    f"got {module!r}"
                )
            sizes.append(module.output_size)
        if len({id(module) for module in modules}) != len(modules):
            raise ValueError("modules must be different objects, got the same one twice")
        self.modules: tuple[Any, ...] = modules
        self.recurrent = tuple(m for m in modules if isinstance(m, Recurrent))
        if not self.recurrent:
            raise ValueError("modules must hold at least one recurrent layer, got none")
        self.return_sequences = bool(return_sequences)
        self.input_size, self.output_size = modules[0].input_size, sizes[-1]
        self._last_recurrent = max(k for k, m in enumerate(modules) if isinstance(m, Recurrent))
        super().__init__(
            {
                f"{place}.{name}": value.shape
                for place, module in self._trainable()
                for name, value in module.parameters.items()
            }
        )
        self._owned = tuple(module for _, module in self._trainable())
        self._vector[:] = np.concatenate([m.parameter_vector for m in self._owned])
        self._adopt()
        for module in modules:
            if module.device != "cpu":  # then the whole model goes there
                self.to(module.device)
                break

    def _followers(self) -> tuple[Any, ...]:
        return self.modules

    def _cuda(self) -> Any:
        """Return the passes on the GPU."""
        if self._on_device is None:
            from .cuda.modules import SequentialPasses

            self._on_device = SequentialPasses(self)
        return self._on_device

    def _trainable(self) -> Iterator[tuple[int, Any]]:
        return ((k, module) for k, module in enumerate(self.modules) if module.trainable)

    def _adopt(self) -> None:
        """Make the vectors of the modules views of this one's."""
        start = 0
        for module in self._owned:
            end = start + module.parameter_vector.size
            module._belong_to(self, self._vector[start:end])
            start = end

    def _bind(self, vector: np.ndarray) -> None:
        super()._bind(vector)
        self._adopt()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._adopt()

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.modules))
        return f"Sequential({inner}{', return_sequences=False' * (not self.return_sequences)})"

    def _changed(self) -> None:
        super()._changed()
        for module in self.modules:
            module._changed()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of the parameters of all modules, scaling too, as ``place.name``."""
        return {
            f"{place}.{name}": value
            for place, module in enumerate(self.modules)
            for name, value in module.state_dict().items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set all parameters, see :meth:`Module.load_state_dict`."""
        unknown = [name for name in state_dict if not self._place_of(name)[0]]
        if unknown:
            raise ValueError(f"state_dict must hold names place.name, got {unknown}")
        before = self.state_dict()
        try:
            self._load(state_dict)
        except (ValueError, TypeError):
            self._load(before)
            raise

    def _place_of(self, name: str) -> tuple[Module | None, str]:
        """Return whose parameter a name of a state_dict is, and its name there."""
        place, _, rest = name.partition(".")
        known = place.isdigit() and int(place) < len(self.modules)
        return (self.modules[int(place)] if known else None), rest

    def _load(self, state_dict: Mapping[str, Any]) -> None:
        for place, module in enumerate(self.modules):
            part = {}
            for name, value in state_dict.items():
                owner, rest = self._place_of(name)
                if owner is module:
                    part[rest] = value
            try:
                module.load_state_dict(part)
            except (ValueError, TypeError) as error:
                raise type(error)(f"modules[{place}]: {error}") from None
        self._changed()

    # -- Passes -----------------------------------------------------------------------------------

    def _checked_gradients(
        self, d_final_state: Sequence[State] | None, final: Sequence[State]
    ) -> list[State]:
        """Return the gradients of the final states, checked before any tape is used up."""
        checked: list[State] = []
        given = self._for_each_layer("d_final_state", d_final_state)
        for k, (layer, d_state, state) in enumerate(zip(self.recurrent, given, final, strict=True)):
            stacked = layer._states_in(f"d_final_state[{k}]", d_state, _hidden(state).shape[1])
            checked.append(None if stacked is None else layer._states_out(stacked))
        return checked

    def _for_each_layer(self, name: str, states: Sequence[State] | None) -> list[State]:
        self._check_parts(self._owned)
        if states is None:
            return [None] * len(self.recurrent)
        if not isinstance(states, list | tuple) or len(states) != len(self.recurrent):
            raise ValueError(
                f"{name} must be a list of {len(self.recurrent)} states, one for each "
                f"recurrent layer, got {type(states).__name__}"
            )
        return list(states)

    def __call__(
        self,
        x: Any,
        initial_state: Sequence[State] | None = None,
        lengths: Any = None,
        resets: Any = None,
    ) -> tuple[np.ndarray, tuple[State, ...]]:
        """Run all modules over sequences, keeping nothing for back-propagation.

        Parameters
        ----------
        x : array_like, shape (batch, time, input_size)
        initial_state : sequence, optional
            A state for each recurrent layer, as that takes it; None for zeros.
        lengths, resets
            As for a recurrent layer; they hold for all of them.

        Returns
        -------
        output : ndarray of float32
            Of shape (batch, time, output_size), 0 past the end of a sequence; without
            `return_sequences` (batch, output_size).
        final_state : tuple
            The final state of each recurrent layer.
        """
        if self._device != "cpu":
            return self._cuda().call(x, initial_state, lengths, resets)
        x = real_array("x", x, ("batch_size", "time", ("input_size", self.input_size)))
        states = iter(self._for_each_layer("initial_state", initial_state))
        final = []
        for place, module in enumerate(self.modules):
            if isinstance(module, Recurrent):
                whole = self.return_sequences or place != self._last_recurrent
                x, state = module(x, next(states), lengths, resets, return_sequences=whole)
                final.append(state)
            else:
                x = module(x)
        past_end = self._past_end(x, lengths)
        if past_end is not None:
            x[past_end] = 0
        return x, tuple(final)

    def _past_end(self, output: np.ndarray, lengths: Any) -> np.ndarray | None:
        """Return where steps past the end of a sequence must be set to 0."""
        if lengths is None or not self.return_sequences or self.modules[-1] is self.recurrent[-1]:
            return None
        return np.arange(output.shape[1]) >= np.asarray(lengths)[:, None]

    def forward(
        self,
        x: Any,
        initial_state: Sequence[State] | None = None,
        lengths: Any = None,
        resets: Any = None,
        training: bool = False,
        segment: int | None = None,
        copy: bool = True,
    ) -> tuple[np.ndarray, tuple[State, ...], SequentialTape]:
        """Run all modules, keeping what :meth:`backward` needs.

        Parameters
        ----------
        x, initial_state, lengths, resets
            As in a call.
        training, segment, copy
            As for a recurrent layer.

        Returns
        -------
        output, final_state
            As from a call; the output is read-only.
        tape : SequentialTape
        """
        if self._device != "cpu":
            return self._cuda().forward(x, initial_state, lengths, resets, training, segment)
        x = real_array("x", x, ("batch_size", "time", ("input_size", self.input_size)))
        states = iter(self._for_each_layer("initial_state", initial_state))
        final: list[State] = []
        tapes: list[Any] = []
        for place, module in enumerate(self.modules):
            tape: Any = None
            copy = copy and place == 0  # what the modules make themselves does not change
            if isinstance(module, Recurrent):
                x, state, tape = module.forward(
                    x, next(states), lengths, resets, training, segment, copy
                )
                final.append(state)
                if place == self._last_recurrent and not self.return_sequences:
                    x = _last_outputs(module, state)
            elif isinstance(module, Dense):
                x, tape = module.forward(x, copy)
            else:
                x = module(x)
            tapes.append(tape)
        past_end = self._past_end(x, lengths)
        if past_end is not None:
            x = np.where(past_end[..., None], np.float32(0), x)
        x.flags.writeable = False
        nbytes = sum(tape.nbytes for tape in tapes if tape is not None)
        return x, tuple(final), SequentialTape(self, tuple(tapes), tuple(final), past_end, nbytes)

    def backward(
        self,
        tape: SequentialTape,
        d_output: Any = None,
        d_final_state: Sequence[State] | None = None,
        input_gradient: bool = True,
        state_gradients: bool = False,
        initial_gradient: bool = True,
    ) -> Gradients:
        """Back-propagate through all modules.

        Parameters
        ----------
        tape : SequentialTape
            From :meth:`forward`; used up.
        d_output : array_like, in the shape of the output, optional
            Gradient with respect to the output; zero by default.
        d_final_state : sequence, optional
            A gradient for the final state of each recurrent layer; None for zero.
        input_gradient : bool
            Whether the gradient with respect to `x` is wanted.
        state_gradients : bool
            Whether the gradients with respect to the states after every step are wanted, see
            :meth:`fastgates.Recurrent.backward`.
        initial_gradient : bool
            Whether the gradient with respect to the initial states is wanted.

        Returns
        -------
        Gradients
            With ``parameters`` by ``place.name``, and ``initial_state`` (and ``states``) a tuple
            with an entry for each recurrent layer.

        Raises
        ------
        RuntimeError
            If the tape was used before, or the parameters have changed since.
        ValueError, TypeError
            If the tape is another's, or a gradient has the wrong shape or dtype.
        """
        if self._device != "cpu":
            if state_gradients:
                raise ValueError(NO_STATE_GRADIENTS.format(self._device))
            return self._cuda().backward(
                tape, d_output, d_final_state, input_gradient, initial_gradient
            )
        if not isinstance(tape, SequentialTape):
            raise TypeError(f"tape must be what forward returned last, got {type(tape).__name__}")
        if tape.owner is not self:
            raise ValueError("tape must come from this model's forward, got another one's")
        d_states = self._checked_gradients(d_final_state, tape.states)
        d_x = None if d_output is None else np.asarray(d_output)
        if d_x is not None and tape.past_end is not None:
            d_x = np.where(tape.past_end[..., None], 0, d_x)
        vectors: list[np.ndarray] = []
        d_initial: list[State] = []
        d_every: list[State] = []
        for place in reversed(range(len(self.modules))):
            module, step = self.modules[place], tape.steps[place]
            wanted = input_gradient or any(m.trainable for m in self.modules[:place])
            if isinstance(module, Recurrent):
                d_state = d_states.pop()
                if place == self._last_recurrent and not self.return_sequences:
                    d_state = _add_to_last(module, tape.states[-1], d_state, d_x)
                    d_x = None
                gradients = module.backward(
                    step, d_x, d_state, wanted, state_gradients, initial_gradient
                )
                d_initial.append(gradients.initial_state)
                d_every.append(gradients.states)
            elif isinstance(module, Dense):
                if d_x is None:
                    d_x = np.zeros(step.y.shape, np.float32)
                gradients = module.backward(step, d_x, wanted)
            else:
                d_x = None if d_x is None else module.gradient(d_x)
                continue
            d_x = gradients.input
            vectors.append(gradients.parameter_vector)
        vector = np.concatenate(vectors[::-1])
        if d_x is not None and not input_gradient:
            d_x = None
        every = tuple(d_every[::-1]) if state_gradients else None
        start = tuple(d_initial[::-1]) if initial_gradient else None
        return Gradients(d_x, start, vector, self._shapes, every)


def _hidden(state: State) -> np.ndarray:
    """Return the first state variable of a state, (layers * directions, B, H)."""
    hidden: np.ndarray = state[0] if isinstance(state, tuple) else state
    return hidden


def _last_outputs(layer: Recurrent, state: State) -> np.ndarray:
    """Return the last outputs (B, directions * H) of the top layer."""
    return np.concatenate(list(_hidden(state)[-layer.num_directions :]), axis=-1)


def _add_to_last(layer: Recurrent, state: State, d_state: State, d_last: Any) -> State:
    """Add the gradient of the last outputs to that of the final state."""
    shape = _hidden(state).shape
    if d_last is None:
        return d_state
    d_last = np.asarray(d_last)
    expected = (shape[1], layer.num_directions * layer.hidden_size)
    if d_last.shape != expected:
        raise ValueError(
            f"d_output must have shape (batch_size={expected[0]}, "
            f"num_directions * hidden_size={expected[1]}), got {d_last.shape}"
        )
    d_hidden = np.zeros(shape, np.float32)
    if d_state is not None:
        d_hidden += _hidden(d_state)
    top = d_last.reshape(shape[1], layer.num_directions, layer.hidden_size)
    d_hidden[-layer.num_directions :] += top.swapaxes(0, 1)
    if not isinstance(state, tuple):
        return d_hidden
    others = [np.zeros(shape, np.float32) for _ in state[1:]] if d_state is None else d_state[1:]
    return (d_hidden, *others)


def deployed(model: Any) -> Any:
    """Return a model as it is deployed: what models that are trained make of themselves.

    Raises
    ------
    ValueError
        If an initial state that the model learned, or estimates, would be lost.
    """
    if not hasattr(model, "to_sequential"):
        return model
    start = getattr(getattr(model, "model_", model), "initial_state", "zero")
    if start in ("learned", "estimated"):
        raise ValueError(
            f"the initial state of this model is {start}, and would be lost: take "
            "to_sequential(), and start that from the model's initial_states()"
        )
    return model.to_sequential()
