"""Split-conformal prediction intervals from the residuals of data kept out of the training.

With n residuals that are exchangeable with that of a new case, the ``ceil((n + 1) coverage)``-th
smallest absolute one bounds the new one with a probability of at least `coverage`: V. Vovk,
A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005; J. Lei, M. G'Sell,
A. Rinaldo, R. J. Tibshirani, L. Wasserman, "Distribution-free predictive inference for
regression", JASA 2018, theorem 2.2.  Residuals of a time series are exchangeable only as far as it
is stationary, so there the coverage is approximate.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "radius", "rank", "residuals"]


class Interval(NamedTuple):
    """Predictions with bounds, arrays of one shape."""

    prediction: Any
    lower: Any
    upper: Any

    @classmethod
    def around(cls, prediction: NDArray[Any], width: NDArray[Any]) -> Interval:
        """Return the interval that reaches so far to either side."""
        return cls(prediction, prediction - width, prediction + width)


def residuals(truth: NDArray[Any], prediction: NDArray[Any]) -> NDArray[np.float32]:
    """Return the absolute residuals, sorted along the first axis, for :func:`radius`."""
    return np.sort(np.abs(truth - prediction).astype(np.float32), axis=0)


def rank(count: int, coverage: float) -> int:
    """Return which of so many residuals, in ascending order, is half the width; from 1.

    Raises
    ------
    ValueError
        If `coverage` is not in (0, 1), or asks for more residuals than there are.
    """
    if isinstance(coverage, bool) or not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage!r}")
    place = math.ceil((count + 1) * coverage * (1 - 1e-12))  # 0.9 * 10 is above 9 by a rounding
    if place > count:
        needed = math.ceil(coverage / (1 - coverage) * (1 - 1e-12))
        raise ValueError(
            f"coverage={coverage:g} needs at least {needed} residuals, got {count}: "
            "calibrate on more data or ask for less"
        )
    return place


def radius(scores: NDArray[Any], coverage: float) -> NDArray[np.float64]:
    """Half the width of the interval.

    Parameters
    ----------
    scores : ndarray, shape (n, ...)
        See :func:`residuals`.
    coverage : float
        In (0, 1).

    Returns
    -------
    ndarray of float64, shape (...)

    Raises
    ------
    ValueError
        As :func:`rank`.
    """
    return np.asarray(scores[rank(len(scores), coverage) - 1], np.float64)
