"""Errors of a model on a table, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastgates.baselines import metrics

__all__ = ["Scores", "class_scores", "number_scores", "print_scores"]


class Scores(NamedTuple):
    """Errors by method, and shares of the truth inside the intervals.

    Attributes
    ----------
    columns : dict of str to str
        Name of each figure, and its format.
    rows : dict of str to tuple of float
        The figures of each method, the model first.
    """

    columns: dict[str, str]
    rows: dict[str, tuple[float, ...]]

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """Return it in what JSON knows: a figure that does not exist is null."""
        names = [name.lower().replace(" ", "_") for name in self.columns]
        return {
            method: {
                name: value if math.isfinite(value) else None
                for name, value in zip(names, figures, strict=True)
            }
            for method, figures in self.rows.items()
        }


_NUMBERS = {"RMSE": "10.5g", "MAE": "10.5g", "R2": "8.4f"}
_CLASSES = {"accuracy": "9.4f", "balanced": "9.4f", "log loss": "9.4f"}


def number_scores(truth: ArrayLike, predictions: Mapping[str, ArrayLike]) -> Scores:
    """Return RMSE, MAE and R2 of predictions by name."""
    flat = np.asarray(truth, np.float64).ravel()
    rows: dict[str, tuple[float, ...]] = {
        name: tuple(metrics(np.ravel(each), flat)) for name, each in predictions.items()
    }
    return Scores(dict(_NUMBERS), rows)


def class_scores(truth: Any, probability: Any, classes: Any, name: str, usual: Any) -> Scores:
    """Return accuracy, mean recall of the classes and log loss, beside always the usual class.

    Parameters
    ----------
    truth : ndarray of labels, shape (n,)
    probability : ndarray, shape (n, classes)
    classes : ndarray
        The labels, in the order of `probability`.
    name : str
        Of the model.
    usual : label
        The most frequent one of the training part.
    """
    found = classes[np.argmax(probability, axis=1)]
    place = np.minimum(np.searchsorted(classes, truth), len(classes) - 1)
    known = classes[place] == truth
    share = np.where(known, probability[np.arange(len(truth)), place], 0)
    log_loss = float(-np.mean(np.log(np.maximum(share, np.finfo(np.float64).tiny))))
    rows: dict[str, tuple[float, ...]] = {name: (*_accuracies(truth, found), log_loss)}
    if usual is not None:
        rows[f"always {usual}"] = (*_accuracies(truth, np.full(len(truth), usual)), math.nan)
    return Scores(dict(_CLASSES), rows)


def _accuracies(truth: Any, found: Any) -> tuple[float, float]:
    right = truth == found
    recalls = [float(right[truth == label].mean()) for label in np.unique(truth)]
    return float(right.mean()), float(np.mean(recalls))


def print_scores(title: str, scores: Scores) -> None:
    """Print the table."""
    width = max(map(len, (title, *scores.rows)))
    widths = {name: int(form.split(".")[0]) for name, form in scores.columns.items()}
    heads = "  ".join(f"{name:>{widths[name]}}" for name in scores.columns)
    print(f"{title:<{width}}  {heads}")
    for method, figures in scores.rows.items():
        cells = [
            f"{value:{form}}" if math.isfinite(value) else f"{'n/a':>{widths[name]}}"
            for (name, form), value in zip(scores.columns.items(), figures, strict=True)
        ]
        print(f"{method:<{width}}  {'  '.join(cells)}")
