"""Many-to-one and many-to-many: an output for each sequence, or for each step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._checks import positive_integer
from .._parameters import Gradients
from .._sequences import Sequences
from .._steady import SteadyNetwork
from .._tables import DataError
from ..dense import Dense
from ..initialization import Scheme, initialize
from ..losses import Loss
from ..sequential import Sequential, SequentialTape
from ._base import Learn, Model, check_network, check_states, make_layer, nothing_beside, seeds

__all__ = ["SequenceModel"]


_KEPT_BYTES = 32 * 2**20  # of arrays for minibatches of one size, beside those of another


class _Step(NamedTuple):
    """What :meth:`SequenceModel.forward` keeps."""

    network: SequentialTape
    start: Any


class SequenceModel(Model):
    """A network over sequences, many-to-one or many-to-many, with scaling and a loss.

    Parameters
    ----------
    network : Sequential
        Without scaling. Its ``return_sequences`` says whether there are targets for each step or
        one for each sequence. With cross_entropy it ends with a ``Dense`` without activation, an
        output for each class.
    loss : str or Loss
        A name, or :class:`fastgates.losses.Loss` with options.
    washout : int
        First steps of each sequence that do not count in the loss.
    initial_state : {"zero", "given", "learned", "estimated"}
        "given" takes it from the data; "learned" is one for all sequences, a parameter like the
        others; "estimated" is a trained linear map of the first steps of each sequence.
    estimation_steps : int
        How many steps that map sees.
    estimate_from_targets : bool
        Whether it sees the targets of these steps too: then they do not count in the loss.
    scale_inputs, scale_outputs : bool
        Whether inputs and targets are standardised; targets by default unless they are labels.
    seed : int, optional
        Of the map that estimates the initial state.

    Raises
    ------
    ValueError, TypeError
        If sizes or options do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgates as fg
    >>> model = fg.SequenceModel.build("gru", input_size=3, output_size=1, seed=0)
    >>> model.predict(np.zeros((5, 20, 3))).shape
    (5, 1)
    """

    def __init__(
        self,
        network: Sequential,
        *,
        loss: str | Loss = "mse",
        washout: int = 0,
        initial_state: str = "zero",
        estimation_steps: int = 8,
        estimate_from_targets: bool = False,
        scale_inputs: bool = True,
        scale_outputs: bool | None = None,
        seed: int | None = None,
    ) -> None:
        check_network("network", network, Loss.of(loss))
        self.network = network
        self.per_step = network.return_sequences
        self._target_axes = 3 if self.per_step else 2
        if not self.per_step and (washout or estimate_from_targets):
            raise ValueError(
                "washout and estimate_from_targets are for targets of each step: make the network "
                "with return_sequences=True"
            )
        if estimate_from_targets and initial_state != "estimated":
            raise ValueError(
                f"estimate_from_targets needs initial_state='estimated', got {initial_state!r}"
            )
        if estimate_from_targets and Loss.of(loss).classifies:
            raise ValueError("estimate_from_targets needs targets that are numbers, not labels")
        super().__init__(
            {"network": network},
            network,
            network.output_size,
            network.input_size,
            loss=loss,
            washout=washout,
            initial_state=initial_state,
            estimation_steps=estimation_steps,
            estimate_from_targets=estimate_from_targets,
            scale_inputs=scale_inputs,
            scale_outputs=scale_outputs,
            seed=seed,
        )

    @classmethod
    def build(
        cls,
        cell: str,
        input_size: int,
        output_size: int,
        hidden_size: int = 32,
        num_layers: int = 1,
        *,
        return_sequences: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        variational: bool = False,
        cell_options: Mapping[str, Any] | None = None,
        initialization: Scheme = None,
        seed: int | None = None,
        **options: Any,
    ) -> SequenceModel:
        """Make a recurrent layer and a read-out, and a model of both.

        Parameters
        ----------
        cell : str
            A key of :data:`LAYERS` or the name of a registered cell.
        input_size, output_size : int
            Features, and targets or classes.
        hidden_size, num_layers, bidirectional, dropout, variational
            Of the recurrent layer.
        return_sequences : bool
            Whether there is an output for each step.
        cell_options : mapping, optional
            Options of that cell's layer.
        initialization : optional
            See :func:`fastgates.initialization.initialize`; the layers' own by default.
        seed : int, optional
            Of all initial parameters, and of dropout.
        **options
            Of :class:`SequenceModel`.
        """
        loss = Loss.of(options.get("loss", "mse"))
        layer_seed, readout_seed, more = seeds(seed, 3)
        layer = make_layer(
            cell,
            input_size,
            hidden_size,
            num_layers,
            cell_options,
            bidirectional=bidirectional,
            dropout=dropout,
            variational=variational,
            seed=layer_seed,
        )
        outputs = positive_integer("output_size", output_size) * loss.outputs_per_target
        readout = Dense(layer.output_size, outputs, seed=readout_seed)
        network = Sequential(layer, readout, return_sequences=return_sequences)
        initialize(network, initialization, more)
        return cls(network, seed=more, **options)

    def _check_axes(self, data: Sequences) -> None:
        self._check_inputs("x", data.x, self.input_size)
        if data.x_future is not None:
            raise DataError("x_future is for an EncoderDecoder, a SequenceModel has no use for it")
        check_states(data.initial_state, self.network, len(data))
        if data.y is None:
            return
        size, time = data.x.shape[:2]
        shape: tuple[int, ...] = (size, time) if self.per_step else (size,)
        steps = "(n, time" if self.per_step else "(n"
        if self.loss.classifies:
            wanted = f"{steps}), a label for each {'step' if self.per_step else 'sequence'}"
        else:
            shape = (*shape, self.target_size)
            wanted = f"{steps}, targets={self.target_size})"
        short = self.estimate_from_targets and data.y.shape[1] < time
        if data.y.shape != shape and not (short and data.y.shape[::2] == shape[::2]):
            raise DataError(f"y must have shape {wanted} = {shape}, got {data.y.shape}")
        weight = data.sample_weight
        allowed = [(size,), (size, time)] if self.per_step else [(size,)]
        if weight is not None and weight.shape not in allowed:
            raise DataError(
                f"sample_weight must have shape {' or '.join(map(str, allowed))}, "
                f"got {weight.shape}"
            )

    def _run(self, data: Sequences) -> np.ndarray:
        states, _ = self._start(data, keep=False)
        return self.network(data.x, states, data.lengths)[0]

    def _forward(self, data: Sequences, training: bool) -> tuple[np.ndarray, _Step]:
        states, start = self._start(data, keep=True)
        output, _, tape = self.network.forward(
            data.x, states, data.lengths, training=training, copy=False
        )
        return output, _Step(tape, start)

    def _learner(self, data: Sequences) -> Learn:
        general, feed = super()._learner(data), self._feed(data)
        parts = ("forward", "loss_of", "gradients", "_forward", "_loss_of", "backward")
        if self._overrides(SequenceModel, *parts):
            return general
        # By the size of the batch, and which layers have dropout.
        networks: dict[tuple[int, ...], SteadyNetwork] = {}
        vector = np.empty(self._vector.size, np.float32)
        own = self.network.parameter_vector.size

        def learn(rows: np.ndarray) -> tuple[float, np.ndarray, float]:
            if self._device != "cpu":
                return general(rows)
            key = (len(rows), *[layer.dropout > 0 for layer in self.network.recurrent])
            network = networks.get(key)
            if network is None and sum(each.nbytes for each in networks.values()) > _KEPT_BYTES:
                networks.clear()
                feed.forget()
            part = feed.take(rows)
            if network is None:
                network = SteadyNetwork(
                    self.network, part.x, vector[:own], self.initial_state != "zero"
                )
                networks[key] = network
            states, start = self._start(part, keep=True)
            output = network.forward(states, part.lengths)
            loss, _, weight = self._loss_of(output, part, network.d_output)
            network.backward()
            if self._state is not None:
                (vector[own:],) = self._start_gradient(start, network.initial_gradients())
            return loss, vector, weight

        return learn

    def backward(
        self, tape: _Step, d_output: np.ndarray, state_gradients: bool = False
    ) -> Gradients:
        """Return the gradients, see :meth:`Model.backward`."""
        gradients = self.network.backward(
            tape.network, d_output, input_gradient=False, state_gradients=state_gradients
        )
        start = self._start_gradient(tape.start, gradients.initial_state)
        vectors = [gradients.parameter_vector, *start]
        return self._gradients(vectors, gradients.initial_state, gradients.states)

    def _targets(self, data: Sequences) -> tuple[Any, Any, Any, int]:
        if not self.per_step:
            return data.y, None, data.sample_weight, 0
        washout = self.washout
        if self.estimate_from_targets:
            washout = max(washout, self._state.steps)
        return data.y, data.lengths, data.sample_weight, washout

    def predict(
        self,
        x: Any,
        *,
        lengths: Any = None,
        first_targets: Any = None,
        initial_state: Any = None,
        batch_size: int = 512,
    ) -> np.ndarray:
        """Return the outputs in the user's units; probabilities of classes for cross_entropy.

        Parameters
        ----------
        x : array_like of shape (n, time, input_size), or Sequences
        lengths, initial_state
            As in :class:`Sequences`.
        first_targets : array_like, shape (n, steps, targets), optional
            Where the initial state is estimated from targets, those of the first steps.
        batch_size : int
            Sequences that are run at once; the result does not depend on it.

        Returns
        -------
        ndarray of float32
            Of shape (n, output_size), or (n, time, output_size), 0 past the end of a sequence.

        Raises
        ------
        DataError
            As from ``check``.
        """
        data = x
        if isinstance(x, Sequences):
            nothing_beside(
                x, lengths=lengths, first_targets=first_targets, initial_state=initial_state
            )
        else:
            data = Sequences(x, first_targets, lengths=lengths, initial_state=initial_state)
        if self.estimate_from_targets and data.y is None:
            raise DataError("first_targets must be given: the initial state is estimated from them")
        if not self.estimate_from_targets:
            data = data.replace(y=None)
        return self._predict(self.check(data, targets=False), batch_size)

    def _without_padding(self, output: np.ndarray, data: Sequences) -> np.ndarray:
        if data.lengths is not None and self.per_step:
            output[np.arange(output.shape[1]) >= data.lengths[:, None]] = 0
        return output

    def to_sequential(self) -> Sequential:
        """Return scaling, network and scaling back as one module, with its own parameters.

        With cross_entropy it ends with a softmax. A learned or estimated initial state does not
        go with it: pass :meth:`initial_states` to it.
        """
        modules: list[Any] = list(copy.deepcopy(self.network).modules)
        if self.loss.classifies:
            last = modules[-1]
            modules[-1] = Dense(last.input_size, last.output_size, "softmax", bias=last.bias)
            modules[-1].load_state_dict(last.state_dict())
        if self.input_scaling is not None:
            modules.insert(0, copy.deepcopy(self.input_scaling))
        back = self._output_scaling()
        if back is not None:
            modules.append(back)
        return Sequential(*modules, return_sequences=self.per_step)
