"""Classification of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from fastgates.estimators._base import SequenceEstimator, all_or_nothing
from fastgates.estimators._input import (
    Inputs,
    read_inputs,
    read_pair,
    read_step_targets,
    read_weights,
)
from fastgates.losses import Loss
from fastgates.training import Sequences

__all__ = ["SequenceClassifier"]


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceClassifier(ClassifierMixin, SequenceEstimator):
    """Tell the class of a sequence, or of each of its steps.

    Inputs are standardised with the means and deviations of the training data; the read-out gives
    a logit for each class, trained by cross entropy.

    Parameters
    ----------
    class_weight : dict, "balanced" or None, default None
        Weights of the classes in the loss; ``"balanced"`` makes them inverse to how often a class
        occurs.
    per_step : bool, default False
        Whether there is a label for every step of a sequence.
    washout : int, default 0
        With `per_step`, how many first steps do not count in the loss.
    **others
        Those of :class:`~fastgates.estimators.SequenceEstimator`.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    model_, history_, n_iter_, n_features_in_
        As of :class:`~fastgates.estimators.SequenceRegressor`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgates as fg
    >>> runs = [np.random.default_rng(k).normal(k % 2, 1, size=(5 + k, 2)) for k in range(30)]
    >>> labels = ["worn" if k % 2 else "new" for k in range(30)]
    >>> model = fg.SequenceClassifier(hidden_size=8, max_epochs=5, random_state=0)
    >>> model.fit(runs, labels).predict_proba(runs).shape
    (30, 2)
    """

    class_weight: Mapping[Any, float] | str | None = None
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
    ) -> SequenceClassifier:
        """Train on labelled sequences.

        Parameters
        ----------
        X : array_like of shape (n, time, features) or (n, time), or list of arrays
            A list holds (time_k, features) or (time_k,) arrays of any length.
        y : array_like of shape (n,)
            Labels of any kind; with `per_step` of shape (n, time), or a list like X.
        sample_weight : array_like of shape (n,), optional
            Weights in the loss; with `per_step` also (n, time).
        validation : pair (X, y), optional
            Data to choose the best epoch by, in place of a share of X.

        Returns
        -------
        SequenceClassifier
            Itself.

        Raises
        ------
        ValueError, TypeError
            If data or a parameter cannot be used; the message says where.
        DivergenceError
            If a loss or gradient is not finite; the model before is kept.
        """
        going_on = self._going_on()
        inputs = read_inputs(self, X, reset=not going_on)
        labels = self._labels(y, inputs)
        if not going_on:
            self.classes_ = np.unique(labels)
        data = self._data(inputs, labels, sample_weight)
        held_back = None
        if validation is not None:
            other_X, other_y = read_pair(validation)
            other = read_inputs(self, other_X, reset=False)
            held_back = self._data(other, self._labels(other_y, other), None)
        elif self.early_stopping:
            data, held_back = self._split(data)
        self._fit_model(data, held_back, self._shape(), self._options(labels))
        return self

    def _split(self, data: Sequences) -> tuple[Sequences, Sequences]:
        """Hold back a share of the sequences; of each class the same share."""
        if self.per_step:
            return data.split(self.validation_fraction, seed=self._seeds()[0])
        rows, held_back = train_test_split(
            np.arange(len(data)),
            test_size=self.validation_fraction,
            stratify=data.y,
            random_state=self._seeds()[0],
        )
        return data.take(rows), data.take(held_back)

    @all_or_nothing
    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> SequenceClassifier:
        """Train for one epoch on these sequences; the optimiser goes on where it was.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.  The first call decides the scaling.
        classes : array_like of shape (classes,)
            All labels that there will be; needed at the first call.

        Returns
        -------
        SequenceClassifier
            Itself.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' cannot be used with partial_fit, which does not see all "
                "labels: give the weights as a dict"
            )
        first = not hasattr(self, "model_")
        inputs = read_inputs(self, X, reset=first)
        labels = self._labels(y, inputs)
        if first:
            if classes is None:
                raise ValueError("classes must be given at the first call of partial_fit")
            self.classes_ = np.unique(np.asarray(classes))
        elif classes is not None and set(np.asarray(classes).tolist()) != set(
            self.classes_.tolist()
        ):
            raise ValueError(
                f"classes must be those of the first call, {self.classes_.tolist()}, got {classes}"
            )
        data = self._data(inputs, labels, sample_weight)
        self._partial_fit_model(data, self._shape(), self._options(labels))
        return self

    def _labels(self, y: Any, inputs: Inputs) -> NDArray[Any]:
        if self.per_step:
            labels = read_step_targets(y, inputs, self)
            if labels.ndim != 2:
                raise ValueError(f"y must have one label a step, got shape {labels.shape}")
            check_classification_targets(labels.ravel())
            return labels
        if y is None:
            raise ValueError(
                "This SequenceClassifier estimator requires y to be passed, but the target y is "
                "None."
            )
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_consistent_length(inputs.x, labels)
        check_classification_targets(labels)
        return labels

    def _data(self, inputs: Inputs, labels: NDArray[Any], sample_weight: Any) -> Sequences:
        if len(self.classes_) < 2:
            raise ValueError(
                f"y must hold at least 2 classes, got 1 class: {self.classes_.tolist()[0]!r}"
            )
        codes = np.minimum(np.searchsorted(self.classes_, labels), len(self.classes_) - 1)
        unknown = self.classes_[codes] != labels
        if unknown.any():
            raise ValueError(
                f"y must hold the classes {self.classes_.tolist()}, got {labels[unknown][0]!r}"
            )
        x, lengths, _ = inputs
        weights = read_weights(sample_weight, x.shape[: 1 + self.per_step])
        return Sequences(x, codes, lengths=lengths, sample_weight=weights)

    def _shape(self) -> dict[str, Any]:
        return {
            "input_size": self.n_inputs_,
            "output_size": len(self.classes_),
            "return_sequences": self.per_step,
        }

    def _options(self, labels: NDArray[Any] | None = None) -> dict[str, Any]:
        weight = None
        if self.class_weight is not None and labels is not None:
            weight = compute_class_weight(
                self.class_weight, classes=self.classes_, y=labels.ravel()
            ).tolist()
        return {"loss": Loss("cross_entropy", class_weight=weight), "washout": self.washout}

    # -- Prediction -------------------------------------------------------------------------------

    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of the classes.

        Parameters
        ----------
        X : array_like or list
            As in :meth:`fit`; any number of steps, but for X of shape (n, time).

        Returns
        -------
        ndarray, shape (n, classes), or list
            In the order of ``classes_``; with `per_step` (n, time, classes), a list for a list.
        """
        inputs, probability = self._probabilities(X)
        return inputs.cut(probability) if self.per_step else probability

    def predict(self, X: Any) -> Any:
        """Return the most probable class.

        Parameters
        ----------
        X : array_like or list
            As in :meth:`predict_proba`.

        Returns
        -------
        ndarray, shape (n,), or list
            Labels; with `per_step` (n, time), a list for a list.
        """
        inputs, probability = self._probabilities(X)
        labels = self.classes_[probability.argmax(axis=-1)]
        return inputs.cut(labels) if self.per_step else labels

    def _probabilities(self, X: Any) -> tuple[Inputs, NDArray[Any]]:
        check_is_fitted(self)
        inputs = read_inputs(self, X, reset=False)
        return inputs, self.model_.predict(inputs.x, lengths=inputs.lengths)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        sample_weight : array_like of shape (n,), optional
            Weights of the sequences.

        Returns
        -------
        float
            Over all sequences, with `per_step` over all their steps after the wash-out.
        """
        prediction = self.predict(X)
        if not self.per_step:
            return float(accuracy_score(y, prediction, sample_weight=sample_weight))
        inputs = read_inputs(self, X, reset=False)
        labels = inputs.cut(self._labels(y, inputs))
        right = [
            (np.asarray(truth) == found)[self.washout :]
            for truth, found in zip(labels, prediction, strict=True)
        ]
        weights = read_weights(sample_weight, inputs.x.shape[:1])
        weight = np.ones(len(right)) if weights is None else weights
        total = weight @ np.array([len(each) for each in right])
        if not total:
            raise ValueError(
                f"nothing counts: sample_weight and washout={self.washout} leave no step"
            )
        return float(weight @ np.array([each.sum() for each in right]) / total)
