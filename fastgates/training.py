"""The training loop: minibatches, early stopping, checkpoints, and what happened on the way.

>>> model = fg.SequenceModel.build("gru", 3, 1, seed=0)                     # doctest: +SKIP
>>> trainer = fg.Trainer(model, learning_rate=3e-3, patience=10)            # doctest: +SKIP
>>> history = trainer.fit(training_data, validation=validation_data)        # doctest: +SKIP

A training that was broken off at any moment goes on from its last checkpoint with the same bits:
all that the next step depends on is in it or follows from the seed and the number of the epoch.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import signal
import sys
import threading
import time
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from . import _checkpoint
from ._checks import not_negative, positive_integer, positive_number
from ._parameters import Gradients
from ._sequences import Sequences, windows
from ._series import batches
from .clipping import global_norm, limit_values, norm_factor
from .models import Learn, Model
from .optimizers import Optimizer, make_optimizer
from .schedules import Constant, Schedule, make_schedule

__all__ = [
    "Callback",
    "DivergenceError",
    "History",
    "Sequences",
    "Trainer",
    "windows",
]

_REMEMBERED_NORMS = 10
_EPOCH_COLUMNS = (
    "epoch", "step", "loss", "validation_loss", "gradient_norm", "gradient_norm_max",
    "learning_rate", "seconds",
)  # fmt: skip
_STEP_COLUMNS = ("loss", "gradient_norm", "learning_rate")


class DivergenceError(RuntimeError):
    """The loss or the gradient stopped being a finite number.

    The model has the weights of the best epoch, or else the last ones that had a finite loss.

    Attributes
    ----------
    epoch, step : int
        Where, both counted from 1; the step in all.
    loss : float
    gradient_norms : tuple of float
        The gradient norms of the last steps before, and of this one.
    """

    def __init__(
        self,
        message: str,
        epoch: int = 0,
        step: int = 0,
        loss: float = math.nan,
        gradient_norms: Sequence[float] = (),
    ) -> None:
        super().__init__(message)
        self.epoch, self.step, self.loss = epoch, step, loss
        self.gradient_norms = tuple(gradient_norms)

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self.epoch, self.step, self.loss, self.gradient_norms)


class History:
    """What happened in each epoch and in each step.

    ``history["loss"]`` is a column of :attr:`epochs` as an array.

    Attributes
    ----------
    epochs : dict of str to ndarray
        ``epoch`` (from 1), ``step`` (in all, at its end), ``loss`` (mean over the epoch),
        ``validation_loss`` (NaN without one), ``gradient_norm`` and ``gradient_norm_max`` (before
        clipping; mean and greatest), ``learning_rate`` (of its last step), ``seconds``.
    steps : dict of str to ndarray
        ``loss``, ``gradient_norm`` (before clipping), ``learning_rate`` of each step.
    best_epoch : int
        That with the least loss (of validation, where there is one); 0 before the first.
    stop_reason : str
        "max_epochs", "patience", "interrupted", what was given to ``Trainer.stop``, or "" while
        it runs.
    """

    def __init__(self) -> None:
        self._epochs = {name: array("d") for name in _EPOCH_COLUMNS}
        self._steps = {name: array("d") for name in _STEP_COLUMNS}
        self.best_epoch = 0
        self.stop_reason = ""

    @property
    def epochs(self) -> dict[str, np.ndarray]:
        """The columns by epoch."""
        columns = {name: np.array(column) for name, column in self._epochs.items()}
        return columns | {name: columns[name].astype(np.int64) for name in ("epoch", "step")}

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """The columns by step."""
        return {name: np.array(column) for name, column in self._steps.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._epochs:
            raise KeyError(f"history has the columns {', '.join(self._epochs)}, got {name!r}")
        return self.epochs[name]

    def __len__(self) -> int:
        return len(self._epochs["epoch"])

    def __repr__(self) -> str:
        return f"History(epochs={len(self)}, best_epoch={self.best_epoch}, {self.stop_reason!r})"

    def to_frame(self) -> Any:
        """Return the epochs as a pandas DataFrame.

        Raises
        ------
        MissingPackageError
            Without pandas.
        """
        from ._extras import require

        return require("pandas", "a history as a DataFrame").DataFrame(self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in what JSON knows."""
        return {
            "epochs": {name: _plain(column) for name, column in self.epochs.items()},
            "steps": {name: _plain(column) for name, column in self.steps.items()},
            "best_epoch": self.best_epoch,
            "stop_reason": self.stop_reason,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        """Return the history that ``to_dict`` gave."""
        history = cls()
        for own, given in (
            (history._epochs, values["epochs"]),
            (history._steps, values["steps"]),
        ):
            for name, column in own.items():
                column.extend(math.nan if each is None else float(each) for each in given[name])
        history.best_epoch = int(values["best_epoch"])
        history.stop_reason = str(values["stop_reason"])
        return history

    def _add_step(self, loss: float, norm: float, rate: float) -> None:
        steps = self._steps
        steps["loss"].append(loss)
        steps["gradient_norm"].append(norm)
        steps["learning_rate"].append(rate)

    def _add_epoch(self, *values: float) -> None:
        for column, value in zip(self._epochs.values(), values, strict=True):
            column.append(value)


def _plain(column: np.ndarray) -> list[Any]:
    """Return a list with None for NaN, which JSON does not know."""
    return [None if value != value else value for value in column.tolist()]


class Callback:
    """What is called during training; override what is needed.

    Every method gets the :class:`Trainer`, whose attributes say how things stand, and whose
    ``stop`` ends the training after this step.
    """

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first step."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After each step of the optimiser."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After each epoch and its validation."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last step; the best weights are in place again."""


_EVENTS = ("on_fit_begin", "on_step_end", "on_epoch_end", "on_fit_end")


class Trainer:
    """Fit a model by gradient descent.

    Parameters
    ----------
    model : Model
        A :class:`~fastgates.SequenceModel`, :class:`~fastgates.FreeRunModel` or
        :class:`~fastgates.EncoderDecoder`.
    optimizer : {"adam", "adamw", "rmsprop", "sgd"} or Optimizer
        A name, or an optimiser of this model.
    learning_rate : float, optional
        1e-3 by default; that of the optimiser where one is given.
    optimizer_options : mapping, optional
        Further arguments of the optimiser that is named, such as ``weight_decay``.
    schedule : Schedule or {"constant", "cosine", "plateau"}, optional
        Factors of the learning rate; constant by default. ``"cosine"`` falls over `max_epochs`.
    batch_size : int, default 32
        Sequences in a step.
    max_epochs : int, default 100
        The most passes over the training data in one ``fit``.
    patience : int, optional
        Stop after so many epochs without a lower loss of validation, whose data ``fit`` then needs.
        By default all epochs are run.
    min_delta : float, default 0
        By how much a loss must be lower to count as such.
    clip_norm : float, optional
        Global norm above which gradients are scaled down.
    clip_value : float, optional
        Largest magnitude of an entry of the gradients, applied before `clip_norm`.
    shuffle : bool
        Whether the order of sequences is drawn for each epoch.
    seed : int
        Of that order.
    callbacks : sequence
        :class:`Callback` objects, or functions that take the trainer after each epoch.
    progress : bool or str
        Whether a bar shows loss, gradient norm, learning rate and validation loss on stderr; a text
        is its label.
    checkpoint : path, optional
        A file that is replaced, whole or not at all, at intervals and at the end.
    checkpoint_epochs, checkpoint_steps : int, optional
        After every so many epochs, or steps in all.
    device : {"cpu", "cuda"}, optional
        Where the model's networks run from now on; by default where they are.
    fit_scaling : bool
        Whether the scaling of a new model is learned from the training data.

    Attributes
    ----------
    epoch, step : int
        Epochs begun, and steps taken, in all.
    steps_per_epoch : int
    batch : Sequences or None
        The minibatch of this step, gathered anew each time that it is read.
    loss, gradient_norm, learning_rate, validation_loss : float
        Of this step, and of the last epoch (NaN before it); the norm is that before clipping.
    best_loss, best_epoch
        Of this ``fit``.
    history : History

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range.
    """

    def __init__(
        self,
        model: Model,
        *,
        optimizer: str | Optimizer = "adam",
        learning_rate: float | None = None,
        optimizer_options: Mapping[str, Any] | None = None,
        schedule: Schedule | str | None = None,
        batch_size: int = 32,
        max_epochs: int = 100,
        patience: int | None = None,
        min_delta: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        shuffle: bool = True,
        seed: int = 0,
        callbacks: Sequence[Callback | Callable[[Trainer], None]] = (),
        progress: bool | str = False,
        checkpoint: Any = None,
        checkpoint_epochs: int | None = 1,
        checkpoint_steps: int | None = None,
        fit_scaling: bool = True,
        device: str | None = None,
    ) -> None:
        if not isinstance(model, Model):
            raise TypeError(
                "model must be a SequenceModel, FreeRunModel or EncoderDecoder, "
                f"got {type(model).__name__}"
            )
        self.model = model if device is None else model.to(device)
        if isinstance(optimizer, Optimizer):
            if tuple(optimizer._modules) != (model,):
                raise ValueError("optimizer must be one of this model: Adam([model])")
            if optimizer_options:
                raise ValueError("optimizer_options are for an optimiser that is named")
            self.optimizer = optimizer
            if learning_rate is not None:
                optimizer.lr = positive_number("learning_rate", learning_rate)
        else:
            rate = (
                1e-3 if learning_rate is None else positive_number("learning_rate", learning_rate)
            )
            options = dict(optimizer_options or {})
            self.optimizer = make_optimizer(optimizer, [model], rate, **options)
        self._rate = self.optimizer.lr
        if schedule is None:
            schedule = Constant()
        elif isinstance(schedule, str):
            schedule = make_schedule(schedule, max_epochs)
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a schedule, got {type(schedule).__name__}")
        self.schedule = schedule
        self.batch_size = positive_integer("batch_size", batch_size)
        self.max_epochs = positive_integer("max_epochs", max_epochs)
        self.patience = None if patience is None else positive_integer("patience", patience)
        self.min_delta = not_negative("min_delta", min_delta)
        self.clip_norm = None if clip_norm is None else positive_number("clip_norm", clip_norm)
        self.clip_value = None if clip_value is None else positive_number("clip_value", clip_value)
        self.shuffle = bool(shuffle)
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
        self.seed = int(seed)
        if not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks must be a list of them, got {type(callbacks).__name__}")
        self.callbacks = tuple(callbacks)
        for callback in self.callbacks:
            if not callable(callback) and not any(hasattr(callback, name) for name in _EVENTS):
                raise TypeError(
                    f"callbacks must have one of {', '.join(_EVENTS)} or be functions, "
                    f"got {type(callback).__name__}"
                )
        self.progress = progress if isinstance(progress, str) else bool(progress)
        self.checkpoint = checkpoint
        self.checkpoint_epochs, self.checkpoint_steps = (
            None if value is None else positive_integer(name, value)
            for name, value in (
                ("checkpoint_epochs", checkpoint_epochs),
                ("checkpoint_steps", checkpoint_steps),
            )
        )
        self.fit_scaling = bool(fit_scaling)

        self.history = History()
        self.epoch = self.step = self.steps_per_epoch = 0
        self._data: Sequences | None = None  # of this fit
        self._rows = np.empty(0, np.int64)  # of the minibatch of this step
        self.loss = self.gradient_norm = self.validation_loss = math.nan
        self.learning_rate = self._rate
        self.best_loss, self.best_epoch = math.inf, 0
        self._best: np.ndarray | None = None  # the weights of the best epoch
        self._good: np.ndarray | None = None  # the last weights with a finite loss in this fit
        self._first_epoch = 0  # epochs before this fit
        self._position = 0  # steps taken in this epoch
        self._sums = _Sums()
        self._stop_reason = ""

    @property
    def batch(self) -> Sequences | None:
        """The minibatch of this step, gathered when it is asked for; None before the first."""
        if self._data is None or self._rows.size == 0:
            return None
        return self._data.take(self._rows)

    def _keep_batch(self) -> None:
        """Keep the last minibatch, not all of the data."""
        self._data, self._rows = self.batch, np.arange(len(self._rows))

    def stop(self, reason: str = "callback") -> None:
        """End the training after this step (or epoch, from ``on_epoch_end``)."""
        self._stop_reason = str(reason)

    def fit(
        self,
        data: Sequences,
        validation: Sequences | None = None,
        *,
        epochs: int | None = None,
        resume: bool = False,
    ) -> History:
        """Train, and leave the best weights in the model.

        Those are the weights after the epoch with the least loss of validation; without validation
        the last ones. Another call goes on: with the optimiser's moments, the schedule and the
        count of epochs, but a new search for the best epoch.

        Parameters
        ----------
        data : Sequences
            Training data.
        validation : Sequences, optional
            What early stopping and the best epoch look at.
        epochs : int, optional
            The most epochs, in place of ``max_epochs``.
        resume : bool
            Go on from the checkpoint if there is one; else start. All else must be as it was: data,
            model and settings. The weights are then, bit for bit, those of a training that was
            never broken off.

        Returns
        -------
        History
            That of all calls.

        Raises
        ------
        DataError, TypeError
            If the data does not fit the model or is not finite; nothing is changed then.
        ValueError
            If there is `patience` without `validation`, or `resume` without a checkpoint.
        DivergenceError
            If the loss or gradient stops being finite.
        CheckpointError
            If the checkpoint cannot be used.

        Warns
        -----
        RuntimeWarning
            When Ctrl-C ends the training. It ends after the step, keeps the best weights, writes
            the checkpoint and returns; a second Ctrl-C raises KeyboardInterrupt.
        """
        data = self.model.check(data)
        if validation is not None:
            validation = self.model.check(validation)
        elif self.patience is not None:
            raise ValueError("patience needs validation data, got none")
        count = self.max_epochs if epochs is None else positive_integer("epochs", epochs)
        if resume and self.checkpoint is None:
            raise ValueError("resume needs a checkpoint: give the trainer a file for it")
        self.steps_per_epoch = -(-len(data) // self.batch_size)
        facts = self._facts(data, validation) if self.checkpoint is not None else {}
        finished = False
        if resume and _checkpoint.exists(self.checkpoint):
            finished = self._load(facts)
        else:
            if self.fit_scaling and not self.model.scaled:
                self.model.fit_scaling(data)
            if self.checkpoint is not None:
                _checkpoint.check_writable(self.checkpoint)
            self._first_epoch, self._position = self.epoch, 0
            self.best_loss, self.best_epoch, self._best = math.inf, 0, None
        if not finished:
            self._stop_reason = self.history.stop_reason = ""
        self._good = None
        last_epoch = self._first_epoch + count
        self._call("on_fit_begin")
        with _Bar(self, last_epoch) as bar, _interrupt(self):
            if not finished:
                try:
                    self._run(data, validation, last_epoch, facts, bar)
                except KeyboardInterrupt:  # a second Ctrl-C, or signals are someone else's
                    if self._best is not None:
                        self._set_weights(self._best)
                    raise
                finally:
                    self._keep_batch()
        if not self._stop_reason:
            self._stop_reason = "max_epochs"
        self.history.stop_reason = self._stop_reason
        if self.checkpoint is not None and not finished:
            self._save(facts)
        if self._best is not None:
            self._set_weights(self._best)
        if self._stop_reason == "interrupted":
            warnings.warn(
                f"training was interrupted in epoch {self.epoch} of {last_epoch}; the model has "
                + ("the best weights so far" if self._best is not None else "the last weights"),
                RuntimeWarning,
                stacklevel=2,
            )
        self._call("on_fit_end")
        return self.history

    def _go_on_from(self, other: Trainer) -> None:
        """Stand where another trainer of such a model does, by copies; settings stay this one's."""
        if type(self.optimizer) is type(other.optimizer):
            self.optimizer.steps = other.optimizer.steps
            self.optimizer._buffers = copy.deepcopy(other.optimizer._buffers)
        if repr(self.schedule) == repr(other.schedule):
            self.schedule.load_state_dict(other.schedule.state_dict())
        self.history = copy.deepcopy(other.history)
        self.epoch, self.step, self.seed = other.epoch, other.step, other.seed

    # -- The loop ----------------------------------------------------------------------------------

    def _run(
        self,
        data: Sequences,
        validation: Sequences | None,
        last_epoch: int,
        facts: dict[str, Any],
        bar: _Bar,
    ) -> None:
        learn = self.model._learner(data)
        self._data, self._rows = data, self._rows[:0]
        while not self._stop_reason and (self.epoch < last_epoch or self._position):
            if self._position == 0:
                self.epoch += 1
                self._sums = _Sums()
            order = self._order(len(data))
            began = time.perf_counter()
            while self._position < self.steps_per_epoch and not self._stop_reason:
                start = self._position * self.batch_size
                self._rows = order[start : start + self.batch_size]
                self._step(learn)
                if self.callbacks:
                    self._call("on_step_end")
                bar.update()
                every = self.checkpoint_steps
                if (
                    self.checkpoint is not None
                    and every
                    and self.step % every == 0
                    and self._position < self.steps_per_epoch
                ):
                    self._sums.seconds += time.perf_counter() - began
                    began = time.perf_counter()
                    self._save(facts)
            self._sums.seconds += time.perf_counter() - began
            if self._position < self.steps_per_epoch:
                return  # stopped in the middle of an epoch, which a checkpoint remembers
            self._end_epoch(validation)
            self._call("on_epoch_end")
            bar.update()
            every = self.checkpoint_epochs
            if self.checkpoint is not None and every and self.epoch % every == 0:
                self._save(facts)

    def _order(self, count: int) -> np.ndarray:
        """Return the order of the sequences in this epoch, which depends on its number only."""
        if not self.shuffle:
            return np.arange(count)
        return np.random.default_rng([self.seed, self.epoch]).permutation(count)

    def _step(self, learn: Learn) -> None:
        optimizer = self.optimizer
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is an error below
            self.loss, vector, weight = learn(self._rows)
            self.gradient_norm, factor = self._clip(vector)
        if not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm)):
            self._diverged(f"loss {self.loss:g}, gradient norm {self.gradient_norm:g}")
        time_now = self.epoch - 1 + self._position / self.steps_per_epoch
        self.learning_rate = self._rate * self.schedule.factor(time_now)
        if self._good is None:
            self._good = self.model.parameter_vector.copy()
        else:
            np.copyto(self._good, self.model._vector)
        optimizer.lr = self.learning_rate
        if optimizer.lr > 0 and weight > 0:
            if type(optimizer).step is Optimizer.step:
                optimizer._descend((vector,), factor)
            else:  # somebody's own
                scaled = vector * np.float32(factor)
                optimizer.step(Gradients(None, None, scaled, self.model._shapes))
        self.step += 1
        self._position += 1
        self._sums.add(self.loss, weight, self.gradient_norm)
        self.history._add_step(self.loss, self.gradient_norm, self.learning_rate)

    def _clip(self, vector: np.ndarray) -> tuple[float, float]:
        """Clip the values of gradients; return their norm before, and by what to scale them."""
        norm = clipped = global_norm((vector,))
        if self.clip_value is not None:
            limit_values((vector,), self.clip_value)
            clipped = global_norm((vector,))
        return norm, 1.0 if self.clip_norm is None else norm_factor(clipped, self.clip_norm)

    def _end_epoch(self, validation: Sequences | None) -> None:
        sums = self._sums
        loss = sums.loss / sums.weight
        self.validation_loss = math.nan
        if validation is not None:
            began = time.perf_counter()
            with np.errstate(over="ignore", invalid="ignore"):
                self.validation_loss = self.model._evaluate(validation)
            sums.seconds += time.perf_counter() - began
            if not math.isfinite(self.validation_loss):
                self._diverged(f"validation loss {self.validation_loss:g}")
        self.history._add_epoch(
            self.epoch, self.step, loss, self.validation_loss, sums.norm / self.steps_per_epoch,
            sums.norm_max, self.learning_rate, sums.seconds,
        )  # fmt: skip
        self._position = 0
        observed = loss if validation is None else self.validation_loss
        self.schedule.observe(observed)
        if observed < self.best_loss - self.min_delta:
            self.best_loss, self.best_epoch = observed, self.epoch
            if validation is not None:
                self._best = self.model.parameter_vector.copy()
        elif self._is_out_of_patience():
            self.stop("patience")
        self.history.best_epoch = self.best_epoch

    def _is_out_of_patience(self) -> bool:
        return self.patience is not None and self.epoch - self.best_epoch >= self.patience

    def _diverged(self, what: str) -> None:
        norms = [*self.history._steps["gradient_norm"][-_REMEMBERED_NORMS:], self.gradient_norm]
        step = self.step + 1
        kept = "the model has the weights it had"
        if self._best is not None:
            self._set_weights(self._best)
            kept = f"the model has the weights of epoch {self.best_epoch}"
        elif self._good is not None:
            self._set_weights(self._good)
            kept = "the model has the last weights with a finite loss"
        before = ", ".join(f"{norm:.3g}" for norm in norms[:-1][-5:]) or "none"
        clip = "" if self.clip_norm or self.clip_value else ", or clip gradients (clip_norm=1.0)"
        raise DivergenceError(
            f"training diverged in epoch {self.epoch} at step {step}: {what}; gradient norms "
            f"before: {before}. Use a learning rate below {self._rate:g}{clip}; {kept}",
            self.epoch,
            step,
            self.loss,
            norms,
        )

    def _set_weights(self, vector: np.ndarray) -> None:
        with self.model.edit_parameters() as parameters:
            parameters.vector[...] = vector

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            function = getattr(callback, event, None)
            if function is None and event == "on_epoch_end" and callable(callback):
                function = callback
            if function is not None:
                function(self)

    # -- Checkpoints -------------------------------------------------------------------------------

    def _facts(self, data: Sequences, validation: Sequences | None) -> dict[str, Any]:
        """Return what must be the same for a training to go on."""
        model = self.model
        settings = {
            name: getattr(self.optimizer, name) for name in self.optimizer._settings if name != "lr"
        }
        return {
            "model": repr(model),
            "cells": ", ".join(layer.cell.name for layer in model.recurrent),
            "loss": f"{model.loss.name} {dict(model.loss.options)}, washout {model.washout}",
            "initial_state": model.initial_state,
            "parameters": model.parameter_vector.size,
            "optimizer": f"{type(self.optimizer).__name__} {settings}",
            "learning_rate": self._rate,
            "schedule": repr(self.schedule),
            "batch_size": self.batch_size,
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "data": _digest(data),
            "validation": None if validation is None else _digest(validation),
        }

    def _save(self, facts: dict[str, Any]) -> None:
        arrays = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self._best is not None:
            arrays["best"] = self._best
        optimizer = self.optimizer.state_dict()
        for name, buffer in optimizer.pop("buffers")[0].items():
            arrays[f"optimizer.{name}"] = buffer
        for group, columns in (("epochs", self.history.epochs), ("steps", self.history.steps)):
            for name, column in columns.items():
                arrays[f"{group}.{name}"] = column
        state = {
            "facts": facts,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "dropout": [
                layer._dropout_random.bit_generator.state for layer in self.model.recurrent
            ],
            "epoch": self.epoch,
            "step": self.step,
            "position": self._position,
            "first_epoch": self._first_epoch,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "best_epoch": self.best_epoch,
            "sums": vars(self._sums),
            "stop_reason": self._stop_reason,
        }
        _checkpoint.write(self.checkpoint, state, arrays)

    def _load(self, facts: dict[str, Any]) -> bool:
        """Go on from the checkpoint; return whether nothing is left to do."""
        state, arrays = _checkpoint.read(self.checkpoint)
        before = state.get("facts", {})
        different = [name for name in facts if before.get(name) != facts[name]]
        if different:
            found = "; ".join(f"{k} was {before.get(k)!r}, is {facts[k]!r}" for k in different)
            raise _checkpoint.CheckpointError(
                f"{self.checkpoint}: the training that it is of is another: {found}"
            )
        try:
            self.optimizer.load_state_dict(
                state["optimizer"] | {"buffers": [_under("optimizer", arrays)]}
            )
            self.model.load_state_dict(_under("model", arrays))
            self.schedule.load_state_dict(state["schedule"])
            for layer, random in zip(self.model.recurrent, state["dropout"], strict=True):
                layer._dropout_random.bit_generator.state = random
            self._best = arrays.get("best")
            self.history = History.from_dict(
                {
                    "epochs": _under("epochs", arrays),
                    "steps": _under("steps", arrays),
                    "best_epoch": state["best_epoch"],
                    "stop_reason": state["stop_reason"],
                }
            )
            self.epoch, self.step = state["epoch"], state["step"]
            self._position, self._first_epoch = state["position"], state["first_epoch"]
            best = state["best_loss"]
            self.best_loss = math.inf if best is None else best
            self.best_epoch = state["best_epoch"]
            self._sums = _Sums(**state["sums"])
        except (KeyError, TypeError, ValueError) as error:
            raise _checkpoint.CheckpointError(
                f"{self.checkpoint}: it is damaged: {error!r}"
            ) from None
        self._stop_reason = state["stop_reason"]
        return self._stop_reason == "patience" and self._is_out_of_patience()


class _Sums:
    """What is summed over the steps of an epoch."""

    def __init__(
        self,
        loss: float = 0.0,
        weight: float = 0.0,
        norm: float = 0.0,
        norm_max: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        self.loss, self.weight, self.norm, self.norm_max = loss, weight, norm, norm_max
        self.seconds = seconds

    def add(self, loss: float, weight: float, norm: float) -> None:
        self.loss += loss * weight
        self.weight += weight
        self.norm += norm
        self.norm_max = max(self.norm_max, norm)


class _Bar:
    """The progress bar, or nothing."""

    def __init__(self, trainer: Trainer, last_epoch: int) -> None:
        self._trainer = trainer
        self._bar: Any = None
        # Text costs more than a step of a small network, and stays where it is no terminal.
        self._interval = 0.1 if sys.stderr.isatty() else 5.0
        self._shown = time.perf_counter()
        if trainer.progress:
            from tqdm import tqdm

            total = (last_epoch - trainer._first_epoch) * trainer.steps_per_epoch
            done = trainer.step - trainer._first_epoch * trainer.steps_per_epoch
            self._bar = tqdm(
                total=total, initial=max(0, done), unit="step", dynamic_ncols=True,
                mininterval=self._interval,
            )  # fmt: skip

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._show()
            self._bar.close()

    def update(self) -> None:
        if self._bar is None:
            return
        now = time.perf_counter()
        if now - self._shown > self._interval:
            self._shown = now
            self._show()

    def _show(self) -> None:
        trainer = self._trainer
        first = trainer._first_epoch * trainer.steps_per_epoch
        label = f"{trainer.progress}, " if isinstance(trainer.progress, str) else ""
        self._bar.set_description(f"{label}epoch {trainer.epoch}", refresh=False)
        figures = {
            "loss": f"{trainer.loss:.4g}",
            "norm": f"{trainer.gradient_norm:.3g}",
            "rate": f"{trainer.learning_rate:.3g}",
        }
        if trainer.validation_loss == trainer.validation_loss:
            figures["validation"] = f"{trainer.validation_loss:.4g}"
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(max(0, trainer.step - first - self._bar.n))
        self._bar.refresh()


@contextlib.contextmanager
def _interrupt(trainer: Trainer) -> Iterator[None]:
    """Let the first Ctrl-C end the training after its step, and a second one raise as usual."""
    usual = signal.default_int_handler
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not usual
    ):
        yield
        return

    def handler(number: int, frame: Any) -> None:
        trainer.stop("interrupted")
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _digest(data: Sequences) -> str:
    """Return a hash over all arrays, in parts: they may be views of windows, or of a file."""
    digest = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, tuple | list):
            for k, each in enumerate(value):
                add(f"{name}[{k}]", each)
        elif value is not None:
            value = np.asarray(value)
            digest.update(f"{name}{value.shape}{value.dtype}".encode())
            for rows in batches(len(value)):
                digest.update(value[rows].tobytes())

    for entry in fields(data):
        add(entry.name, getattr(data, entry.name))
    return digest.hexdigest()[:32]


def _under(group: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with the group, without it."""
    prefix = f"{group}."
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
