"""What the three estimators share: parameters, the model they build, training it, going on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fastgates._checks import probability
from fastgates.models import SequenceModel
from fastgates.schedules import make_schedule
from fastgates.training import History, Trainer

if TYPE_CHECKING:
    import os

    from fastgates.sequential import Sequential
    from fastgates.training import Sequences

__all__ = ["SequenceEstimator", "all_or_nothing"]

Method = TypeVar("Method", bound=Callable[..., Any])


def all_or_nothing(method: Method) -> Method:
    """Put back all attributes of the estimator where one of its methods that train fails."""

    @wraps(method)
    def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *arguments, **options)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast("Method", wrapped)


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceEstimator(BaseEstimator):
    """The base of the estimators: a recurrent stack with a read-out, and how it is trained.

    Parameters
    ----------
    cell : {"gru", "gru_reset_after", "lstm", "simplified_gru", "rnn", "rnn_relu", "leaky_rnn"}
        The recurrent cell, ``"gru"`` by default; or the name of a registered one.
    cell_options : dict, optional
        Options of its layer, such as ``{"reset_after": True}`` for ``"gru"``.
    hidden_size, num_layers : int, default 32 and 1
        Units of a layer, and stacked layers.
    bidirectional : bool, default False
        Whether a second direction runs from the end of each sequence.
    dropout : float, default 0.0
        Probability of zeroing an output between stacked layers, in training.  With one layer it
        does nothing.
    variational_dropout : bool, default False
        Whether the same outputs are zeroed at all steps of a sequence.
    initialization : str, tuple or dict, optional
        Of the weights: ``"orthogonal"``, ``"xavier"``, a tuple of them, or a mapping with options,
        ``{"chrono": {"longest": 200}}``, see ``fastgates.initialization``.  By default uniform in
        ``+-1 / sqrt(hidden_size)``.
    initial_state : {"zero", "learned", "estimated"}, default "zero"
        The state in which a sequence begins; ``"estimated"`` from its own first steps.
    optimizer : {"adam", "adamw", "rmsprop", "sgd"}, default "adam"
        What updates the weights.
    optimizer_options : dict, optional
        Its options, such as ``{"weight_decay": 0.01}`` or ``{"momentum": 0.9}``.
    learning_rate : float, default 3e-3
        The size of a step.
    schedule : {"cosine", "step", "warmup", "plateau"} or Schedule, optional
        Of the learning rate, by name or as an object of ``fastgates.schedules``.  Constant by
        default.
    schedule_options : dict, optional
        Options of the one that is named; ``"cosine"`` takes `max_epochs` by default, ``"step"``
        needs ``every`` and ``"warmup"`` needs ``epochs``.
    batch_size : int, default 32
        Sequences in a minibatch.
    max_epochs : int, default 100
        The most passes over the data.
    clip_norm, clip_value : float or None, default 1.0 and None
        The largest norm, and the largest entry, that a gradient may have.
    early_stopping : bool, default False
        Whether training stops when the loss on data held back does not fall any more.  The weights
        of the best epoch are kept.
    validation_fraction : float, default 0.1
        The share of the sequences held back for that.
    patience : int, default 10
        Epochs without a better validation loss before stopping.
    min_delta : float, default 0.0
        By how much a loss must be lower to be better.
    warm_start : bool, default False
        Whether `fit` goes on from the weights of the last one.
    callbacks : sequence, default ()
        What is called during training, see ``fastgates.Trainer``.
    checkpoint : path-like, optional
        A file that is replaced after every epoch, from which training can be resumed.
    resume : bool, default False
        Whether `fit` goes on from the `checkpoint`, where there is one: to the same bits as without
        the break.
    random_state : int, RandomState or None, default None
        Of the initial weights, the order of minibatches, dropout and what is held back.  An integer
        reproduces every bit, for any number of threads.
    verbose : bool or str, default False
        Whether a progress bar shows loss, gradient norm and learning rate; a text is its label.
    device : {"cpu", "cuda"} or None, default None
        Where the networks run, in `fit` and after it; None is the CPU.
    """

    cell: str = "gru"
    cell_options: Mapping[str, Any] | None = None
    hidden_size: int = 32
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    variational_dropout: bool = False
    initialization: Any = None
    initial_state: str = "zero"
    optimizer: str = "adam"
    optimizer_options: Mapping[str, Any] | None = None
    learning_rate: float = 3e-3
    schedule: Any = None
    schedule_options: Mapping[str, Any] | None = None
    batch_size: int = 32
    max_epochs: int = 100
    clip_norm: float | None = 1.0
    clip_value: float | None = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    patience: int = 10
    min_delta: float = 0.0
    warm_start: bool = False
    callbacks: Sequence[Any] = ()
    checkpoint: str | os.PathLike[str] | None = None
    resume: bool = False
    random_state: int | np.random.RandomState | None = None
    verbose: bool | str = False
    device: str | None = None

    # -- Training ---------------------------------------------------------------------------------

    def _fit_model(
        self,
        data: Sequences,
        validation: Sequences | None,
        shape: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """Train a new model, or with ``warm_start`` the old one, and keep it.

        Parameters
        ----------
        data, validation : Sequences
            Checked.
        shape : mapping
            What its parameters depend on besides this object's own: arguments of
            ``SequenceModel.build``.
        options : mapping
            The others, such as the loss.
        """
        model_seed, order_seed = self._seeds()
        model: SequenceModel
        if self._going_on():
            model = self._old_model(shape, options)
        else:
            model = self._new_model(shape, options, model_seed)
        trainer = self._new_trainer(model, order_seed)
        if validation is None:  # a forecaster's split may have none
            trainer.patience = None
        history = trainer.fit(data, validation=validation, resume=self.resume)
        self._keep(model, trainer, history, shape)

    def _going_on(self) -> bool:
        """Whether `fit` trains the model of the last one."""
        return self.warm_start and hasattr(self, "model_")

    def _partial_fit_model(
        self, data: Sequences, shape: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """Run one epoch; the optimiser goes on where it was."""
        model_seed, order_seed = self._seeds()
        before: Trainer | None = None
        if hasattr(self, "model_"):
            model, before = self._old_model(shape, options), self._trainer
        else:
            model = self._new_model(shape, options, model_seed)
        trainer = self._new_trainer(model, order_seed)
        if before is not None:  # it is neither the first call nor the first after a file was loaded
            trainer._go_on_from(before)
        trainer.patience = None  # there is nothing to validate on
        history = trainer.fit(data, epochs=1)
        self._keep(model, trainer, history, shape)

    def _keep(
        self,
        model: SequenceModel,
        trainer: Trainer | None,
        history: History,
        shape: Mapping[str, Any],
    ) -> None:
        self.model_, self._trainer, self.history_ = model, trainer, history
        self._shape_, self._structure_ = dict(shape), self._structure(shape)
        self.table_ = None
        self.n_iter_ = len(history["loss"])

    def _seeds(self) -> tuple[int, int]:
        """Seeds of the weights and of the order of minibatches."""
        first, second = check_random_state(self.random_state).randint(2**31 - 1, size=2)
        return int(first), int(second)

    def _structure(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        """What decides how many parameters there are, and which."""
        return {
            "cell": self.cell,
            "input_size": shape["input_size"],
            "output_size": shape["output_size"],
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "initial_state": self.initial_state,
            "cell_options": repr(dict(self.cell_options or {})),  # arrays, too, can be compared
            "per_step": shape["return_sequences"],
        }

    def _old_model(self, shape: Mapping[str, Any], options: Mapping[str, Any]) -> SequenceModel:
        """Return a copy of the model of the last training, to go on with as parameters say now."""
        self._check_structure(shape)
        model: SequenceModel = copy.deepcopy(self.model_)
        loss = options["loss"]
        if loss.outputs_per_target != model.loss.outputs_per_target:
            raise ValueError(
                f"to go on training, the loss must have {model.loss.outputs_per_target} outputs "
                f"for a target as before, got {loss.outputs_per_target}: set warm_start=False and "
                "fit anew"
            )
        model.loss, model.washout = loss, options.get("washout", 0)
        for layer in model.recurrent:
            layer.dropout = probability("dropout", self.dropout)
            layer.variational = bool(self.variational_dropout)
        return model

    def _check_structure(self, shape: Mapping[str, Any]) -> None:
        wanted = self._structure(shape)
        for name, value in self._structure_.items():
            if wanted[name] != value:
                raise ValueError(
                    f"to go on training, {name} must be {value} as before, got {wanted[name]}: "
                    "set warm_start=False and fit anew"
                )

    def _new_model(
        self, shape: Mapping[str, Any], options: Mapping[str, Any], seed: int | None
    ) -> SequenceModel:
        if self.initial_state == "given":
            raise ValueError(
                "initial_state must be zero, learned or estimated, got 'given': "
                "a fastgates.SequenceModel takes it from the data"
            )
        return SequenceModel.build(
            self.cell,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            variational=self.variational_dropout,
            cell_options=self.cell_options,
            initialization=self.initialization,
            initial_state=self.initial_state,
            seed=seed,
            **shape,
            **options,
        )

    def _new_trainer(self, model: SequenceModel, seed: int) -> Trainer:
        schedule = copy.deepcopy(self.schedule)  # it may have a state, which is not a parameter
        if isinstance(schedule, str):
            schedule = make_schedule(schedule, self.max_epochs, **(self.schedule_options or {}))
        elif self.schedule_options:
            raise ValueError("schedule_options are for a schedule that is named")
        return Trainer(
            model,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            optimizer_options=self.optimizer_options,
            schedule=schedule,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            patience=self.patience if self.early_stopping else None,
            min_delta=self.min_delta,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            seed=seed,
            callbacks=self.callbacks,
            progress=self.verbose,
            checkpoint=self.checkpoint,
            device=self.device,
        )

    # -- What it is -------------------------------------------------------------------------------

    def to_sequential(self) -> Sequential:
        """Return the fitted model as one module that takes and gives the user's units.

        Returns
        -------
        Sequential
            Scaling, network and scaling back: what is streamed, exported and embedded.  An initial
            state that is learned or estimated does not go with it: give it
            ``model_.initial_states()``.
        """
        check_is_fitted(self)
        return self.model_.to_sequential()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
