"""Regression of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted

from fastgates.estimators._base import SequenceEstimator, all_or_nothing
from fastgates.estimators._conformal import Interval, radius, residuals
from fastgates.estimators._input import (
    Inputs,
    read_inputs,
    read_pair,
    read_step_targets,
    read_targets,
    read_weights,
)
from fastgates.losses import Loss
from fastgates.training import Sequences

__all__ = ["SequenceRegressor"]


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceRegressor(RegressorMixin, SequenceEstimator):
    """Predict numbers from sequences: one set for each sequence, or one for each step.

    Inputs and targets are standardised with the means and deviations of the training data.

    Parameters
    ----------
    loss : {"mse", "mae", "huber", "quantile"} or Loss, default "mse"
        What is made small, in standardised units.
    loss_options : dict, optional
        ``{"delta": 1.0}`` for ``"huber"``, ``{"quantiles": (0.1, 0.5, 0.9)}`` for ``"quantile"``.
    per_step : bool, default False
        Whether there is a target for every step of a sequence.
    washout : int, default 0
        With `per_step`, how many first steps do not count in the loss.
    **others
        Those of :class:`~fastgates.estimators.SequenceEstimator`.

    Attributes
    ----------
    model_ : SequenceModel
        The trained model.
    history_ : History
        Losses, gradient norms and rates by epoch.
    n_iter_ : int
        Epochs trained.
    n_features_in_ : int
        Features of a step; for X of shape (n, time) the number of steps.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgates as fg
    >>> X = np.random.default_rng(0).normal(size=(40, 12, 3))
    >>> y = X[:, :, 0].mean(axis=1)
    >>> model = fg.SequenceRegressor(hidden_size=8, max_epochs=5, random_state=0).fit(X, y)
    >>> model.predict(X).shape
    (40,)
    """

    loss: str | Loss = "mse"
    loss_options: Mapping[str, Any] | None = None
    per_step: bool = False
    washout: int = 0

    @all_or_nothing
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None = None,
        *,
        validation: tuple[Any, Any] | None = None,
    ) -> SequenceRegressor:
        """Train on sequences.

        Parameters
        ----------
        X : array_like of shape (n, time, features) or (n, time), or list of arrays
            A list holds (time_k, features) or (time_k,) arrays of any length.
        y : array_like of shape (n,) or (n, targets)
            With `per_step` of shape (n, time) or (n, time, targets), or a list like X.
        sample_weight : array_like of shape (n,), optional
            Weights in the loss; with `per_step` also (n, time).
        validation : pair (X, y), optional
            Data to choose the best epoch by, in place of a share of X.

        Returns
        -------
        SequenceRegressor
            Itself.

        Raises
        ------
        ValueError, TypeError
            If data or a parameter cannot be used; the message says where.
        DivergenceError
            If a loss or gradient is not finite; the model before is kept.
        """
        data = self._data(X, y, sample_weight, reset=not self._going_on())
        held_back = None
        if validation is not None:
            held_back = self._data(*read_pair(validation), None, reset=False)
        elif self.early_stopping:
            data, held_back = data.split(self.validation_fraction, seed=self._seeds()[0])
        self._fit_model(data, held_back, self._shape(data), self._options())
        self._forget_residuals()
        return self

    @all_or_nothing
    def partial_fit(
        self, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> SequenceRegressor:
        """Train for one epoch on these sequences; the optimiser goes on where it was.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.  The first call decides the scaling.

        Returns
        -------
        SequenceRegressor
            Itself.
        """
        data = self._data(X, y, sample_weight, reset=not hasattr(self, "model_"))
        self._partial_fit_model(data, self._shape(data), self._options())
        self._forget_residuals()
        return self

    def _forget_residuals(self) -> None:
        """Let go of the errors of the model before."""
        if hasattr(self, "residuals_"):
            del self.residuals_

    def _data(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> Sequences:
        inputs = read_inputs(self, X, reset=reset)
        x, lengths, _ = inputs
        if self.per_step:
            targets = np.asarray(read_step_targets(y, inputs, self), np.float64)
            dimensions = targets.ndim - 1
        else:
            targets = read_targets(y, x, self)
            dimensions = targets.ndim
        if reset:
            self._target_dimensions = dimensions
        weights = read_weights(sample_weight, x.shape[: 1 + self.per_step])
        return Sequences(x, targets, lengths=lengths, sample_weight=weights)

    def _shape(self, data: Sequences) -> dict[str, Any]:
        targets = np.asarray(data.y)
        per_sequence = 2 + self.per_step
        return {
            "input_size": self.n_inputs_,
            "output_size": targets.shape[-1] if targets.ndim == per_sequence else 1,
            "return_sequences": self.per_step,
        }

    def _options(self) -> dict[str, Any]:
        if isinstance(self.loss, str):
            loss = Loss(self.loss, **(self.loss_options or {}))
        else:
            loss = Loss.of(self.loss)
        if self.loss_options and not isinstance(self.loss, str):
            raise ValueError("loss_options must be None where loss is an object with its own")
        if loss.name == "cross_entropy":
            raise ValueError("loss of a regressor must not be cross_entropy: use a classifier")
        return {"loss": loss, "washout": self.washout}

    # -- Prediction -------------------------------------------------------------------------------

    def predict(self, X: Any) -> Any:
        """Predict the targets.

        Parameters
        ----------
        X : array_like or list
            As in :meth:`fit`; any number of steps, but for X of shape (n, time).

        Returns
        -------
        ndarray of float64, or list of such
            In the shape of `y`; for a list with `per_step` a list.  With the quantile loss, the
            quantile nearest to the median.
        """
        inputs, output = self._outputs(X)
        return self._shaped(output[..., self.model_.loss.point], inputs)

    def predict_quantiles(self, X: Any) -> Any:
        """Predict all quantiles of the quantile loss.

        Parameters
        ----------
        X : array_like or list
            As in :meth:`predict`.

        Returns
        -------
        ndarray of float64, or list of such
            The shape of :meth:`predict` with one more axis, of the quantiles.

        Raises
        ------
        ValueError
            If the loss is another one.
        """
        inputs, output = self._outputs(X)
        if self.model_.loss.name != "quantile":
            raise ValueError(f"predict_quantiles needs loss='quantile', got {self.loss!r}")
        return self._shaped(output, inputs)

    def _outputs(self, X: Any) -> tuple[Inputs, NDArray[np.float64]]:
        """Predictions (N, O, Q) or (N, T, O, Q), Q the quantiles or 1."""
        check_is_fitted(self)
        inputs = read_inputs(self, X, reset=False)
        output = self.model_.predict(inputs.x, lengths=inputs.lengths).astype(np.float64)
        return inputs, output.reshape(*output.shape[:-1], -1, self.model_.loss.outputs_per_target)

    def _shaped(self, output: NDArray[Any], inputs: Inputs) -> Any:
        """Give predictions the dimensions of the targets, and the lengths of the sequences."""
        if self._target_dimensions == 1:
            output = np.take(output, 0, axis=1 + self.per_step)
        return inputs.cut(output) if self.per_step else output

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return the coefficient of determination, R2.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        sample_weight : array_like of shape (n,), optional
            Weights of the sequences.

        Returns
        -------
        float
            Over all sequences, with `per_step` over all their steps after the wash-out; the mean
            over the targets.
        """
        if not self.per_step:
            return float(r2_score(y, self.predict(X), sample_weight=sample_weight))
        truth, prediction = self._all_steps(X, y)
        inputs = read_inputs(self, X, reset=False)
        weights = read_weights(sample_weight, inputs.x.shape[:1])
        if weights is not None:
            weights = np.repeat(weights, np.maximum(inputs.steps - self.washout, 0))
        return float(r2_score(truth, prediction, sample_weight=weights))

    def _all_steps(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Lay targets and predictions of the steps after the wash-out of all sequences in a row."""
        check_is_fitted(self)
        inputs = read_inputs(self, X, reset=False)
        targets = inputs.cut(read_step_targets(y, inputs, self))
        truth, prediction = (
            np.concatenate([np.asarray(each)[self.washout :] for each in sequences])
            for sequences in (targets, self.predict(X))
        )
        if truth.size != prediction.size:
            raise ValueError(
                f"y must have the targets of the predictions, {prediction.shape[1:]} a step, "
                f"got {truth.shape[1:]}"
            )
        return truth.reshape(prediction.shape), prediction

    # -- Intervals --------------------------------------------------------------------------------

    def calibrate(self, X: Any, y: Any) -> SequenceRegressor:
        """Measure the errors on data that was not trained on, for :meth:`predict_interval`.

        Parameters
        ----------
        X, y
            As in :meth:`fit`: sequences kept out of the training.

        Returns
        -------
        SequenceRegressor
            Itself.  Another training needs another call.
        """
        check_is_fitted(self)
        if self.per_step:
            truth, prediction = self._all_steps(X, y)
        else:
            truth, prediction = np.asarray(self._data(X, y, None, reset=False).y), self.predict(X)
        self.residuals_ = residuals(truth.reshape(prediction.shape), prediction)
        return self

    def predict_interval(self, X: Any, coverage: float = 0.9) -> Interval:
        """Predict with split-conformal bounds.

        Parameters
        ----------
        X : array_like or list
            As in :meth:`predict`.
        coverage : float, default 0.9
            How often the truth is to lie between the bounds.

        Returns
        -------
        Interval
            ``prediction``, ``lower`` and ``upper``, each as from :meth:`predict`.

        Raises
        ------
        ValueError
            Before :meth:`calibrate`, or if that had too few sequences for this coverage.
        """
        width = self.radius(coverage)
        prediction = self.predict(X)
        if isinstance(prediction, list):
            bounds = [Interval.around(each, width) for each in prediction]
            return Interval(*map(list, zip(*bounds, strict=True)))
        return Interval.around(prediction, width)

    def radius(self, coverage: float = 0.9) -> NDArray[np.float64]:
        """Return half the width of the intervals.

        Parameters
        ----------
        coverage : float, default 0.9
            As in :meth:`predict_interval`.

        Returns
        -------
        ndarray, shape () or (targets,)

        Raises
        ------
        ValueError
            Before :meth:`calibrate`, or if that had too few sequences for this coverage.
        """
        if not hasattr(self, "residuals_"):
            raise ValueError("intervals need calibrate(X, y) first, on data kept back")
        return radius(self.residuals_, coverage)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
