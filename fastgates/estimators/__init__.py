"""scikit-learn estimators over sequences, from the extra ``sklearn``.

:class:`SequenceRegressor` and :class:`SequenceClassifier` take X of shape (n, time, features) or
(n, time), or a list of arrays of unequal length; :class:`SequenceForecaster` takes a series, of
pandas or not, and continues it.  They are reachable as ``fastgates.SequenceRegressor`` and so on,
without importing scikit-learn before they are asked for.
"""

from __future__ import annotations

from fastgates._extras import require

require("scikit-learn", "an estimator")

from fastgates.estimators import _files  # noqa: E402, F401 - it registers what can be saved
from fastgates.estimators._base import SequenceEstimator  # noqa: E402
from fastgates.estimators._classifier import SequenceClassifier  # noqa: E402
from fastgates.estimators._conformal import Interval  # noqa: E402
from fastgates.estimators._forecaster import SequenceForecaster  # noqa: E402
from fastgates.estimators._regressor import SequenceRegressor  # noqa: E402

__all__ = [
    "Interval",
    "SequenceClassifier",
    "SequenceEstimator",
    "SequenceForecaster",
    "SequenceRegressor",
]
