"""Series as arrays of shape (rows, columns), and their windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgates._tables import DataError

__all__ = ["as_series", "batches", "column_scales", "windows_of"]

_INFERENCE_BATCH = 512


def as_series(series: ArrayLike) -> NDArray[np.float64]:
    """(rows, columns) of finite float64; a (rows,) series is one column."""
    values = np.asarray(series, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] == 0:
        raise DataError(f"series must have shape (rows, columns) or (rows,), got {values.shape}")
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(k) for k in np.argwhere(~finite)[0])
        raise DataError(f"series must be finite, got {values[row, column]} at {(row, column)}")
    return values


def column_scales(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation by column, the latter 1 where the column is constant."""
    mean = values.mean(axis=0)
    scale = values.std(axis=0)
    return mean, np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)


def windows_of(values: NDArray[Any], window: int) -> NDArray[Any]:
    """Every window of consecutive rows, (N, T, C): a view, nothing is copied."""
    views = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)  # (N, C, T)
    return views.swapaxes(1, 2)


def batches(count: int, size: int = _INFERENCE_BATCH) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` entries."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
