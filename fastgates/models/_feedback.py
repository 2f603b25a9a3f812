"""Models whose output is fed back as input: free runs, and encoder and decoder.

A loop over steps calls the network for one step each and keeps its tape; on the way back the
gradient of an input that was an output joins that output's own. So gradients are exact through the
whole loop, and the numbers are those of one call over all steps with the same inputs.

Letters in shape comments: B batch size, T time, H horizon, O targets, Q outputs for each target,
E further inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._checks import positive_integer
from .._parameters import Gradients
from .._sequences import Sequences, moments
from .._tables import DataError
from ..dense import Dense
from ..initialization import Scheme, initialize
from ..layers import Recurrent, State
from ..losses import Loss
from ..sequential import Scaling, Sequential, SequentialTape
from ._base import (
    Model,
    check_network,
    check_states,
    make_layer,
    no_scaling,
    nothing_beside,
    seeds,
    set_scaling,
)

__all__ = ["EncoderDecoder", "FreeRunModel"]

_TRAININGS = ("free", "teacher")


class _Loop:
    """A network that is fed its own outputs.

    Parameters
    ----------
    network : Sequential
        Its inputs are the O outputs that are fed back, then E others.
    columns : slice
        Which of the O * Q outputs are fed back.
    """

    def __init__(self, network: Sequential, columns: slice) -> None:
        self.network = network
        self.columns = columns

    def run(
        self,
        first: np.ndarray,
        states: Any,
        further: np.ndarray | None,
        steps: int,
        *,
        keep: bool,
        training: bool = False,
    ) -> tuple[np.ndarray, list[SequentialTape]]:
        """Run over given inputs, then so many steps on.

        Parameters
        ----------
        first : ndarray, shape (B, n, O + E)
        states : tuple or None
        further : ndarray of shape (B, steps, E), or None
        steps : int
        keep, training : bool
            Whether tapes are kept; whether dropout is applied.

        Returns
        -------
        outputs : ndarray, shape (B, n + steps, O * Q)
        tapes : list
            Of the given inputs, then of each step.
        """
        network, tapes = self.network, []
        # A mask that is the same at all steps is drawn again from the same state of the generator.
        masks = [
            (layer._dropout_random.bit_generator, layer._dropout_random.bit_generator.state)
            for layer in network.recurrent
            if training and layer.variational
        ]
        outputs, x = [], first
        for k in range(steps + 1):
            if keep:
                for generator, state in masks:
                    generator.state = state
                output, states, tape = network.forward(x, states, training=training)
                tapes.append(tape)
            else:
                output, states = network(x, states)
            outputs.append(output)
            if k < steps:
                x = output[:, -1:, self.columns]
                if further is not None:
                    x = np.concatenate([x, further[:, k : k + 1]], axis=-1)
        return (outputs[0] if steps == 0 else np.concatenate(outputs, axis=1)), tapes

    def back(
        self, tapes: list[SequentialTape], d_outputs: np.ndarray, state_gradients: bool = False
    ) -> tuple[np.ndarray, tuple[State, ...], tuple[State, ...] | None]:
        """Return the gradients of the parameters, of the initial states, and of those of all steps.

        Parameters
        ----------
        tapes : list
            From :meth:`run`.
        d_outputs : ndarray, shape (B, n + steps, O * Q)
        state_gradients : bool
            Whether the last are wanted, else they are None.
        """
        steps = len(tapes) - 1
        d_outputs = np.array(d_outputs, np.float32)
        begin = d_outputs.shape[1] - steps  # of the free steps
        total: np.ndarray | None = None
        d_states: Any = None
        every: list[Any] = []
        for k in reversed(range(steps)):
            at = begin + k
            gradients = self.network.backward(
                tapes[1 + k],
                d_outputs[:, at : at + 1],
                d_states,
                state_gradients=state_gradients,
            )
            every.append(gradients.states)
            assert gradients.input is not None
            fed = d_outputs[:, at - 1, self.columns]
            fed += gradients.input[:, 0, : fed.shape[1]]
            d_states = gradients.initial_state
            vector = gradients.parameter_vector
            total = vector if total is None else np.add(total, vector, out=total)
        gradients = self.network.backward(
            tapes[0], d_outputs[:, :begin], d_states, False, state_gradients
        )
        every.append(gradients.states)
        vector = gradients.parameter_vector
        vector = vector if total is None else vector + total
        along_time = _joined(every[::-1]) if state_gradients else None
        return vector, gradients.initial_state, along_time


def _joined(pieces: list[tuple[State, ...]]) -> tuple[State, ...]:
    """Join the states of each layer (L * D, B, steps, H) over time."""
    return tuple(
        tuple(np.concatenate(parts, axis=2) for parts in zip(*layer, strict=True))
        if isinstance(layer[0], tuple)
        else np.concatenate(layer, axis=2)
        for layer in zip(*pieces, strict=True)
    )


class _Run(NamedTuple):
    """What ``forward`` keeps."""

    network: list[SequentialTape]
    start: Any
    skipped: int  # outputs of the loop before the first that counts
    encoder: SequentialTape | None = None


class FreeRunModel(Model):
    """A network that makes a series from its start: each output is an input of the next step.

    The step at time t reads the value at t - 1 and the further inputs at t, and gives the value at
    t: the true values of the first `context` steps, its own after them. With a context of 1 it is
    one-to-many; with further inputs it is the simulation of a system (an output-error model).

    Parameters
    ----------
    network : Sequential
        From O + E inputs, the fed-back values first, to the O outputs (O * Q for quantiles, of
        which the one next to 1/2 is fed back), of each step, in one direction.
    context : int
        True values at the start of each series.
    training : {"free", "teacher"}
        Whether training runs free too, with gradients through the loop, or always reads true values
        (one step ahead, faster). Evaluation and prediction always run free.
    loss, washout, scale_inputs, scale_outputs, seed
        As in :class:`SequenceModel`, but labels cannot be fed back. The wash-out begins after the
        context.
    initial_state : {"zero", "given", "learned", "estimated"}
        As in :class:`SequenceModel`; it is estimated from values and inputs of the context.

    Raises
    ------
    ValueError, TypeError
        If sizes or options do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgates as fg
    >>> model = fg.FreeRunModel.build("gru", output_size=1, input_size=2, seed=0)
    >>> start, inputs = np.zeros((5, 1, 1)), np.ones((5, 30, 2))
    >>> model.predict(inputs, context=start).shape
    (5, 29, 1)
    """

    def __init__(
        self,
        network: Sequential,
        *,
        context: int = 1,
        training: str = "free",
        loss: str | Loss = "mse",
        washout: int = 0,
        initial_state: str = "zero",
        scale_inputs: bool = True,
        scale_outputs: bool = True,
        seed: int | None = None,
    ) -> None:
        loss = Loss.of(loss)
        columns, targets = _check_feedback("network", network, loss)
        self.network = network
        self.context = positive_integer("context", context)
        self.training = _check_training(training)
        inputs = network.input_size - targets
        if inputs < 0:
            raise ValueError(
                f"network must read its {targets} outputs and further inputs, got {network!r}"
            )
        super().__init__(
            {"network": network},
            network,
            network.output_size,
            inputs,
            loss=loss,
            washout=washout,
            initial_state=initial_state,
            estimation_steps=context,
            estimate_from_targets=True,
            scale_inputs=scale_inputs,
            scale_outputs=scale_outputs,
            seed=seed,
        )
        self._loop = _Loop(network, columns)

    @classmethod
    def build(
        cls,
        cell: str,
        output_size: int,
        input_size: int = 0,
        hidden_size: int = 32,
        num_layers: int = 1,
        *,
        dropout: float = 0.0,
        variational: bool = False,
        cell_options: Mapping[str, Any] | None = None,
        initialization: Scheme = None,
        seed: int | None = None,
        **options: Any,
    ) -> FreeRunModel:
        """Make a recurrent layer and a read-out, and a model of both.

        Parameters
        ----------
        cell, hidden_size, num_layers, dropout, variational, cell_options, initialization, seed
            As in ``SequenceModel.build``.
        output_size, input_size : int
            Values that are fed back, and further inputs, which may be 0.
        **options
            Of :class:`FreeRunModel`.
        """
        outputs = positive_integer("output_size", output_size)
        if input_size != 0:
            positive_integer("input_size", input_size)
        first, second, third = seeds(seed, 3)
        layer = make_layer(
            cell, outputs + input_size, hidden_size, num_layers, cell_options,
            dropout=dropout, variational=variational, seed=first,
        )  # fmt: skip
        loss = Loss.of(options.get("loss", "mse"))
        readout = Dense(hidden_size, outputs * loss.outputs_per_target, seed=second)
        network = Sequential(layer, readout)
        initialize(network, initialization, third)
        return cls(network, seed=third, **options)

    def _check_axes(self, data: Sequences) -> None:
        if data.x_future is not None:
            raise DataError("x_future is for an EncoderDecoder: give inputs of all steps as x")
        if self.input_size:
            self._check_inputs("x", data.x, self.input_size)
        elif data.x is not None:
            raise DataError("x must be left out: this model has no inputs beside its own outputs")
        if data.y is None or data.y.ndim != 3 or data.y.shape[2] != self.target_size:
            got = None if data.y is None else data.y.shape
            raise DataError(
                f"y must have shape (n, time, targets={self.target_size}), also to predict, "
                f"got {got}"
            )
        if data.x is not None and data.x.shape[1] != data.y.shape[1]:
            raise DataError(
                f"x and y must be of the same steps, got {data.x.shape[1]} and {data.y.shape[1]}"
            )
        time = data.y.shape[1]
        shortest = time if data.lengths is None else data.lengths.min()
        if shortest <= self.context:
            raise DataError(
                f"series must have more than context={self.context} steps, got {shortest}"
            )
        check_states(data.initial_state, self.network, len(data))
        weight = data.sample_weight
        if weight is not None and weight.shape not in [(len(data),), (len(data), time)]:
            raise DataError(
                f"sample_weight must have shape {(len(data),)} or {(len(data), time)}, "
                f"got {weight.shape}"
            )

    def _prepared(self, data: Sequences, given: int) -> tuple[Sequences, np.ndarray]:
        """Return the data without padding, and what the network reads up to time `given`."""
        x, y = data.x, data.y
        if data.lengths is not None:  # past the ends there may be anything
            past = (np.arange(y.shape[1]) >= data.lengths[:, None])[..., None]
            x, y = None if x is None else np.where(past, 0, x), np.where(past, 0, y)
            data = data.replace(x=x, y=y)
        read = y[:, :given]
        if x is not None:
            read = np.concatenate([read, x[:, 1 : given + 1]], axis=-1)
        return data, read

    def _run(self, data: Sequences) -> np.ndarray:
        return self._pass(data, False, keep=False, free=True)[0]

    def _pass(
        self, data: Sequences, training: bool, *, keep: bool, free: bool
    ) -> tuple[np.ndarray, _Run]:
        time = data.y.shape[1]
        given = self.context if free else time - 1
        data, read = self._prepared(data, given)
        states, start = self._start(data, keep)
        further = None if data.x is None else data.x[:, given + 1 :]
        outputs, tapes = self._loop.run(
            read, states, further, time - 1 - given, keep=keep, training=training
        )
        skipped = self.context - 1
        return outputs[:, skipped:], _Run(tapes, start, skipped)

    def _forward(self, data: Sequences, training: bool) -> tuple[np.ndarray, _Run]:
        return self._pass(data, training, keep=True, free=self.training == "free")

    def backward(
        self, tape: _Run, d_output: np.ndarray, state_gradients: bool = False
    ) -> Gradients:
        """Return the gradients, see :meth:`Model.backward`."""
        size, time, width = d_output.shape
        d_outputs = np.zeros((size, tape.skipped + time, width), np.float32)
        d_outputs[:, tape.skipped :] = d_output
        vector, d_states, every = self._loop.back(tape.network, d_outputs, state_gradients)
        vectors = [vector, *self._start_gradient(tape.start, d_states)]
        return self._gradients(vectors, d_states, every)

    def _targets(self, data: Sequences) -> tuple[Any, Any, Any, int]:
        lengths, weight, first = data.lengths, data.sample_weight, self.context
        if lengths is not None:
            lengths = lengths - first
        if weight is not None and weight.ndim == 2:
            weight = weight[:, first:]
        return data.y[:, first:], lengths, weight, self.washout

    def predict(
        self,
        x: Any = None,
        *,
        context: Any = None,
        steps: int | None = None,
        initial_state: Any = None,
        batch_size: int = 512,
    ) -> np.ndarray:
        """Return the steps after the context, in the user's units.

        Parameters
        ----------
        x : array_like of shape (n, context + steps, input_size), optional
            Further inputs, those of the context too. Or Sequences, whose `y` begin with the
            context; what comes after it is not looked at.
        context : array_like, shape (n, context, targets)
            The true values at the start.
        steps : int, optional
            How many steps; needed only where there are no further inputs.
        initial_state
            As in :class:`Sequences`.
        batch_size : int
            Series that are run at once; the result does not depend on it.

        Returns
        -------
        ndarray of float32, shape (n, steps, O * Q)

        Raises
        ------
        DataError
            As from ``check``.
        """
        if isinstance(x, Sequences):
            nothing_beside(x, context=context, steps=steps, initial_state=initial_state)
            time = (x.y if x.x is None else x.x).shape[1]
            return self._predict(self._from_context(x, time), batch_size)
        start = np.asarray(context)
        if context is not None and start.ndim == 2:
            start = start[..., None]
        if context is None or start.ndim != 3 or start.shape[1] != self.context:
            raise DataError(
                f"context must have shape (n, context={self.context}, targets={self.target_size}), "
                f"got {None if context is None else start.shape}"
            )
        if x is None:
            steps = positive_integer("steps", steps)
        else:
            x = np.asarray(x)
            available = x.shape[1] - self.context if x.ndim == 3 else 0
            if available < 1 or (steps is not None and steps != available):
                raise DataError(
                    f"x must have shape (n, context + steps = {self.context} + "
                    f"{'steps' if steps is None else steps}, features={self.input_size}), "
                    f"got {x.shape}"
                )
            steps = available
        data = Sequences(x, start, initial_state=initial_state)
        return self._predict(self._from_context(data, self.context + steps), batch_size)

    def _from_context(self, data: Sequences, time: int) -> Sequences:
        """Return checked data whose `y` hold the context, then zeros up to `time`."""
        y = data.y
        if y is not None and y.ndim > 1 and self.context <= min(y.shape[1], time):
            y = np.zeros((len(y), time, *y.shape[2:]), y.dtype)
            y[:, : self.context] = data.y[:, : self.context]
        return self.check(data.replace(y=y), targets=False)

    def _without_padding(self, output: np.ndarray, data: Sequences) -> np.ndarray:
        if data.lengths is not None:
            output[np.arange(output.shape[1]) >= (data.lengths - self.context)[:, None]] = 0
        return output

    def to_sequential(self) -> Sequential:
        """Return the model of one step, in the user's units, as one module.

        It reads the last value and the further inputs, and gives the next value (its quantiles);
        who runs it feeds the value back.
        """
        both = [
            scaling if scaling is not None else no_scaling(size)
            for scaling, size in (
                (self.output_scaling, self.target_size),
                (self.input_scaling, self.input_size),
            )
            if size
        ]
        mean, scale = (
            np.concatenate([scaling.parameters[name] for scaling in both])
            for name in ("mean", "scale")
        )
        modules: list[Any] = [Scaling(mean, scale), *copy.deepcopy(self.network).modules]
        back = self._output_scaling()
        return Sequential(*modules, *([] if back is None else [back]))


class EncoderDecoder(Model):
    """One network reads the past, and its final state starts another that makes the future.

    Sutskever, Vinyals and Le, "Sequence to sequence learning with neural networks", 2014.

    Parameters
    ----------
    encoder : Recurrent or Sequential
        Over the past inputs (C features), in one direction; of its outputs nothing is used.
    decoder : Sequential
        Whose recurrent layers have the states of the encoder's. Its inputs are the O values before,
        with `feedback`, then E future inputs; its outputs O * Q.
    horizon : int
        Steps to make.
    feedback : bool
        Whether each output is an input of the next step; the first step reads the last observed
        values. Without it all steps are made in one call from the future inputs.
    target_columns : sequence of int
        Which columns of the past inputs are the targets, with `feedback`.
    training : {"free", "teacher"}
        As in :class:`FreeRunModel`.
    loss, initial_state, scale_inputs, scale_outputs, seed
        As in :class:`SequenceModel`; the initial state is the encoder's, "estimated" is not for it.
        With `feedback` targets are scaled as their columns of the inputs.

    Raises
    ------
    ValueError, TypeError
        If sizes or options do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgates as fg
    >>> model = fg.EncoderDecoder.build("gru", input_size=3, output_size=1, horizon=12, seed=0)
    >>> model.predict(np.zeros((5, 40, 3))).shape
    (5, 12, 1)
    """

    per_step = False  # lengths are those of the past

    def __init__(
        self,
        encoder: Recurrent | Sequential,
        decoder: Sequential,
        *,
        horizon: int,
        feedback: bool = True,
        target_columns: Sequence[int] = (0,),
        training: str = "free",
        loss: str | Loss = "mse",
        initial_state: str = "zero",
        scale_inputs: bool = True,
        scale_outputs: bool | None = None,
        seed: int | None = None,
    ) -> None:
        loss = Loss.of(loss)
        if isinstance(encoder, Recurrent):
            encoder = Sequential(encoder)
        check_network("encoder", encoder, Loss("mse"))
        if any(layer.bidirectional for layer in encoder.recurrent):
            raise ValueError(
                "encoder must run in one direction: its final state starts the decoder"
            )
        if initial_state == "estimated":
            raise ValueError("initial_state must be zero, given or learned: the encoder reads all")
        self.horizon = positive_integer("horizon", horizon)
        self.feedback = bool(feedback)
        self.training = _check_training(training)
        self.target_columns: tuple[int, ...] = ()
        if self.feedback:
            columns, targets = _check_feedback("decoder", decoder, loss)
            self.target_columns = tuple(int(column) for column in target_columns)
            known = range(encoder.input_size)
            if len(self.target_columns) != targets or not set(self.target_columns) <= set(known):
                raise ValueError(
                    f"target_columns must be {targets} of the {encoder.input_size} columns of x, "
                    f"got {target_columns!r}"
                )
            scale_outputs = scale_inputs if scale_outputs is None else scale_outputs
            if scale_outputs != scale_inputs:
                raise ValueError(
                    "scale_inputs and scale_outputs must be the same with feedback: the targets "
                    "are scaled as their columns of x"
                )
        else:
            check_network("decoder", decoder, loss)
            columns, targets = slice(0, 0), 0
        shapes = [
            [(layer.cell.states, layer.num_layers, layer.num_directions, layer.hidden_size)
             for layer in network.recurrent]
            for network in (encoder, decoder)
        ]  # fmt: skip
        if shapes[0] != shapes[1]:
            raise ValueError(
                "decoder must have the same states as encoder (cell, layers, hidden_size), got "
                f"{encoder!r} and {decoder!r}"
            )
        self.future_size = decoder.input_size - targets
        if self.future_size < 0 or decoder.input_size == 0:
            raise ValueError(
                f"decoder must read its {targets} outputs and future inputs, got {decoder!r}"
            )
        super().__init__(
            {"encoder": encoder, "decoder": decoder},
            encoder,
            decoder.output_size,
            encoder.input_size,
            loss=loss,
            washout=0,
            initial_state=initial_state,
            estimation_steps=1,
            estimate_from_targets=False,
            scale_inputs=scale_inputs,
            scale_outputs=scale_outputs,
            seed=seed,
        )
        self.encoder, self.decoder = encoder, decoder
        self.future_scaling = (
            no_scaling(self.future_size) if scale_inputs and self.future_size else None
        )
        self._loop = _Loop(decoder, columns)

    @classmethod
    def build(
        cls,
        cell: str,
        input_size: int,
        output_size: int,
        horizon: int,
        future_size: int = 0,
        hidden_size: int = 32,
        num_layers: int = 1,
        *,
        feedback: bool = True,
        dropout: float = 0.0,
        variational: bool = False,
        cell_options: Mapping[str, Any] | None = None,
        initialization: Scheme = None,
        seed: int | None = None,
        **options: Any,
    ) -> EncoderDecoder:
        """Make both networks, each a recurrent layer, the second with a read-out.

        Parameters
        ----------
        cell, hidden_size, num_layers, dropout, variational, cell_options, initialization, seed
            As in ``SequenceModel.build``.
        input_size, output_size, future_size : int
            Past inputs, targets, future inputs.
        horizon : int
        feedback : bool
        **options
            Of :class:`EncoderDecoder`.
        """
        targets = positive_integer("output_size", output_size)
        if not feedback and not future_size:
            raise ValueError("without feedback the decoder needs future inputs: future_size >= 1")
        loss = Loss.of(options.get("loss", "mse"))
        first, second, third, fourth = seeds(seed, 4)
        layers = [
            make_layer(
                cell, size, hidden_size, num_layers, cell_options,
                dropout=dropout, variational=variational, seed=layer_seed,
            )
            for size, layer_seed in (
                (input_size, first), (targets * bool(feedback) + future_size, second)
            )
        ]  # fmt: skip
        readout = Dense(hidden_size, targets * loss.outputs_per_target, seed=third)
        encoder, decoder = Sequential(layers[0]), Sequential(layers[1], readout)
        for network in (encoder, decoder):
            initialize(network, initialization, fourth)
        options.setdefault("target_columns", tuple(range(targets)))
        return cls(encoder, decoder, horizon=horizon, feedback=feedback, seed=fourth, **options)

    # -- Scaling and checks ------------------------------------------------------------------------

    def _scalings(self) -> dict[str, Scaling]:
        future = {} if self.future_scaling is None else {"future_scaling": self.future_scaling}
        return super()._scalings() | future

    def _scaled_fields(self) -> dict[str, Scaling]:
        future = {} if self.future_scaling is None else {"x_future": self.future_scaling}
        return super()._scaled_fields() | future

    def _fit_scaling(self, data: Sequences) -> None:
        if not self.feedback:
            super()._fit_scaling(data)
        elif self.input_scaling is not None and self.output_scaling is not None:
            mean, scale = moments("x", data.x, data.lengths)
            set_scaling(self.input_scaling, mean, scale)
            columns = list(self.target_columns)
            set_scaling(self.output_scaling, mean[columns], scale[columns])
        if self.future_scaling is not None:
            set_scaling(self.future_scaling, *moments("x_future", data.x_future, None))

    def _check_axes(self, data: Sequences) -> None:
        self._check_inputs("x", data.x, self.input_size)
        if self.future_size:
            self._check_inputs("x_future", data.x_future, self.future_size)
            if data.x_future.shape[1] != self.horizon:
                raise DataError(
                    f"x_future must have horizon={self.horizon} steps, got {data.x_future.shape[1]}"
                )
        elif data.x_future is not None:
            raise DataError("x_future must be left out: the decoder has no future inputs")
        check_states(data.initial_state, self.encoder, len(data))
        size = len(data)
        if data.y is not None:
            shape: tuple[int, ...] = (size, self.horizon)
            if not self.loss.classifies:
                shape = (*shape, self.target_size)
            if data.y.shape != shape:
                raise DataError(
                    f"y must have shape (n, horizon={self.horizon}, targets={self.target_size}) = "
                    f"{shape}, got {data.y.shape}"
                )
        weight = data.sample_weight
        if weight is not None and weight.shape not in [(size,), (size, self.horizon)]:
            raise DataError(
                f"sample_weight must have shape {(size,)} or {(size, self.horizon)}, "
                f"got {weight.shape}"
            )

    # -- Passes ------------------------------------------------------------------------------------

    def _inputs(self, data: Sequences, free: bool) -> tuple[np.ndarray, Any, int]:
        """Return what the decoder reads first, future inputs after, and free steps."""
        x, future = data.x, data.x_future
        if not self.feedback:
            return np.asarray(future), None, 0
        ends = -1 if data.lengths is None else data.lengths - 1
        last = x[np.arange(len(x)), ends][:, list(self.target_columns)]
        if free:
            read, given = last[:, None], 1
        else:
            read = np.concatenate([last[:, None], data.y[:, :-1]], axis=1)
            given = self.horizon
        read = np.asarray(read, np.float32)
        if future is None:
            return read, None, self.horizon - given
        read = np.concatenate([read, future[:, :given]], axis=-1)
        return read, future[:, given:], self.horizon - given

    def _run(self, data: Sequences) -> np.ndarray:
        read, further, steps = self._inputs(data, free=True)
        states, _ = self._start(data, keep=False)
        _, states = self.encoder(data.x, states, data.lengths)
        return self._loop.run(read, states, further, steps, keep=False)[0]

    def _forward(self, data: Sequences, training: bool) -> tuple[np.ndarray, _Run]:
        read, further, steps = self._inputs(data, free=self.training == "free")
        states, start = self._start(data, keep=True)
        _, final, tape = self.encoder.forward(
            data.x, states, data.lengths, training=training, copy=False
        )
        outputs, tapes = self._loop.run(read, final, further, steps, keep=True, training=training)
        return outputs, _Run(tapes, start, 0, tape)

    def backward(
        self, tape: _Run, d_output: np.ndarray, state_gradients: bool = False
    ) -> Gradients:
        """Return the gradients, see :meth:`Model.backward`."""
        assert tape.encoder is not None
        decoder, d_states, every = self._loop.back(tape.network, d_output, state_gradients)
        encoder = self.encoder.backward(tape.encoder, None, d_states, False, state_gradients)
        if every is not None:
            every = (*encoder.states, *every)
        vectors = [encoder.parameter_vector, decoder]
        vectors += self._start_gradient(tape.start, encoder.initial_state)
        return self._gradients(vectors, encoder.initial_state, every)

    def _targets(self, data: Sequences) -> tuple[Any, Any, Any, int]:
        return data.y, None, data.sample_weight, 0

    def predict(
        self,
        x: Any,
        *,
        x_future: Any = None,
        lengths: Any = None,
        initial_state: Any = None,
        batch_size: int = 512,
    ) -> np.ndarray:
        """Return the steps of the horizon, in the user's units.

        Parameters
        ----------
        x : array_like of shape (n, time, input_size), or Sequences
            The past.
        x_future, lengths, initial_state
            As in :class:`Sequences`.
        batch_size : int
            Sequences that are run at once; the result does not depend on it.

        Returns
        -------
        ndarray of float32, shape (n, horizon, O * Q)

        Raises
        ------
        DataError
            As from ``check``.
        """
        data = x
        if isinstance(x, Sequences):
            nothing_beside(x, x_future=x_future, lengths=lengths, initial_state=initial_state)
        else:
            data = Sequences(x, lengths=lengths, x_future=x_future, initial_state=initial_state)
        return self._predict(self.check(data.replace(y=None), targets=False), batch_size)

    def to_sequentials(self) -> tuple[Sequential, Sequential]:
        """Return encoder and decoder in the user's units.

        The decoder starts from the encoder's final states; it reads, with feedback, the values
        before, then the future inputs, in the user's units.
        """
        encoder: list[Any] = list(copy.deepcopy(self.encoder).modules)
        decoder: list[Any] = list(copy.deepcopy(self.decoder).modules)
        if self.input_scaling is not None:
            encoder.insert(0, copy.deepcopy(self.input_scaling))
            both = [scaling for scaling in (
                self.output_scaling if self.feedback else None, self.future_scaling
            ) if scaling is not None]  # fmt: skip
            mean, scale = (
                np.concatenate([scaling.parameters[name] for scaling in both])
                for name in ("mean", "scale")
            )
            decoder.insert(0, Scaling(mean, scale))
        back = self._output_scaling()
        if back is not None:
            decoder.append(back)
        elif self.loss.classifies:
            last = decoder[-1]
            decoder[-1] = Dense(last.input_size, last.output_size, "softmax", bias=last.bias)
            decoder[-1].load_state_dict(last.state_dict())
        return Sequential(*encoder), Sequential(*decoder)


def _check_feedback(name: str, network: Any, loss: Loss) -> tuple[slice, int]:
    """Return which outputs are fed back, and how many."""
    if loss.classifies:
        raise ValueError("labels cannot be fed back: take another loss than cross_entropy")
    check_network(name, network, loss)
    if not network.return_sequences or any(layer.bidirectional for layer in network.recurrent):
        raise ValueError(f"{name} must give an output for each step, in one direction")
    count = loss.outputs_per_target
    if network.output_size % count:
        raise ValueError(
            f"{name} must have {count} outputs for each target, got {network.output_size}"
        )
    return slice(loss.point, None, count), network.output_size // count


def _check_training(training: str) -> str:
    if training not in _TRAININGS:
        raise ValueError(f"training must be one of {', '.join(_TRAININGS)}, got {training!r}")
    return training
