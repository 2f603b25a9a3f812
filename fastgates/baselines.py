"""Errors of a forecast, and the two forecasts that a network has to beat.

Both baselines give one forecast for each window, in the order of ``Forecaster.predict``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgates._series import as_series, batches, column_scales, windows_of
from fastgates._tables import DataError

__all__ = ["Metrics", "linear_autoregression", "metrics", "persistence"]


class Metrics(NamedTuple):
    """Errors of a forecast: root mean square, mean absolute, and 1 - SSE / SST."""

    rmse: float
    mae: float
    r2: float


def metrics(prediction: ArrayLike, truth: ArrayLike) -> Metrics:
    """Compute RMSE, MAE and R2 of a forecast.

    Parameters
    ----------
    prediction, truth : array_like, the same shape

    Returns
    -------
    Metrics
        R2 is against the mean of `truth`; NaN where `truth` is constant.

    Raises
    ------
    ValueError
        If the shapes differ or are empty.
    """
    prediction = np.asarray(prediction, dtype=np.float64)
    truth = np.asarray(truth, dtype=np.float64)
    if prediction.shape != truth.shape or truth.size == 0:
        raise ValueError(
            f"prediction and truth must have one shape, not empty, got {prediction.shape} and "
            f"{truth.shape}"
        )
    error = prediction - truth
    squared = float(np.mean(np.square(error)))
    variance = float(np.mean(np.square(truth - truth.mean())))
    r2 = 1.0 - squared / variance if variance > 0.0 else math.nan
    return Metrics(math.sqrt(squared), float(np.mean(np.abs(error))), r2)


def persistence(series: ArrayLike, window: int) -> NDArray[np.float64]:
    """Forecast that nothing changes: give the last target value of every window.

    Parameters
    ----------
    series : array_like, shape (rows, columns) or (rows,)
    window : int

    Returns
    -------
    ndarray of float64, shape (rows - window + 1,)
        In the order of ``Forecaster.predict``.
    """
    return as_series(series)[window - 1 :, 0].copy()


def linear_autoregression(
    series: ArrayLike, window: int, horizon: int, train_end: int
) -> NDArray[np.float64]:
    """Forecast with the linear model of the same window: least squares with a constant.

    Parameters
    ----------
    series : array_like, shape (rows, columns) or (rows,)
    window, horizon : int
    train_end : int
        Targets in rows before this one are fitted.

    Returns
    -------
    ndarray of float64, shape (rows - window + 1,)
        In the order of ``Forecaster.predict``.

    Raises
    ------
    DataError
        If no window fits before `train_end`.

    Notes
    -----
    Long series are reduced block by block to the R of a QR factorisation, which has the same
    least-squares solution, so the matrix of all windows never exists.
    """
    from scipy.linalg import lstsq, qr

    values = as_series(series)
    count = train_end - (window + horizon - 1)
    if count < 1:
        raise DataError(
            f"the training part must have at least {window + horizon} rows, got {train_end}"
        )
    mean, scale = column_scales(values[:train_end])
    scaled = (values - mean) / scale
    windows = windows_of(scaled, window)

    def design(rows: slice) -> NDArray[np.float64]:
        block = windows[rows]
        return np.column_stack([block.reshape(len(block), -1), np.ones(len(block))])

    reduced = np.empty((0, window * values.shape[1] + 2))
    for rows in batches(count, max(4096, 2 * reduced.shape[1])):
        targets = scaled[rows.start + window + horizon - 1 :][: rows.stop - rows.start, 0]
        stacked = np.vstack([reduced, np.column_stack([design(rows), targets])])
        reduced = qr(stacked, mode="r", check_finite=False)[0][: stacked.shape[1]]
    coefficients = lstsq(reduced[:, :-1], reduced[:, -1])[0]
    forecast = np.concatenate([design(rows) @ coefficients for rows in batches(len(windows))])
    result: NDArray[np.float64] = mean[0] + scale[0] * forecast
    return result
