"""How the rows of a table become what an estimator takes, and which columns it reads.

Regression and classification know three ways: rows with the same entry in a column are a sequence
(``sequence``); all rows are one series, and each stretch of ``window`` rows a sequence; or each row
is a sequence of one feature, its columns the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgates._extras import require
from fastgates._series import windows_of
from fastgates._tables import DataError, column_names, read_columns

__all__ = [
    "TASKS",
    "Columns",
    "Samples",
    "Series",
    "clock_of",
    "flatten",
    "other_columns",
    "read_samples",
    "read_series",
]

TASKS = ("forecast", "regression", "classification")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table a model reads, and how rows make sequences; kept in its file."""

    task: str
    target: str | None
    inputs: tuple[str, ...] = ()
    future_inputs: tuple[str, ...] = ()
    sequence: str | None = None
    window: int | None = None
    per_step: bool = False
    time: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it in what JSON knows."""
        return asdict(self) | {
            "inputs": list(self.inputs), "future_inputs": list(self.future_inputs)
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Columns:
        """Return what ``to_dict`` gave."""
        known = {entry.name for entry in fields(cls)}
        taken = {name: value for name, value in values.items() if name in known}
        for name in ("inputs", "future_inputs"):
            taken[name] = tuple(taken.get(name, ()))
        return cls(**taken)


class Samples(NamedTuple):
    """Sequences of a table with their targets.

    Attributes
    ----------
    x : ndarray or list of ndarray
        As an estimator takes them: windows (n, window, features), a view; rows (n, time); a list.
    y : ndarray, list of ndarray or None
        Targets or labels, of each sequence or of each step.
    names : list of str
        What to call each sequence: its entry in the column, or the number of its last row.
    rows : list of ndarray
        The rows of each sequence, counted from 1; for windows the last one only.
    """

    x: Any
    y: Any
    names: list[str]
    rows: list[NDArray[np.int64]]

    def take(self, chosen: NDArray[np.intp]) -> Samples:
        """Return some of the sequences."""
        return Samples(
            _take(self.x, chosen),
            None if self.y is None else _take(self.y, chosen),
            [self.names[k] for k in chosen],
            [self.rows[k] for k in chosen],
        )


def _take(values: Any, chosen: NDArray[np.intp]) -> Any:
    if isinstance(values, list):
        return [values[k] for k in chosen]
    # A run of windows stays a view: nothing of the series is copied.
    if len(chosen) and (np.diff(chosen) == 1).all():
        return values[chosen[0] : chosen[-1] + 1]
    return values[chosen]


class Series(NamedTuple):
    """Columns of a table to forecast.

    Attributes
    ----------
    target : ndarray of float64, shape (rows,)
    inputs : ndarray of float64, shape (rows, inputs), or None
    future : ndarray of float64, shape (later rows, future inputs), or None
        Rows after the last known target, where only what is known ahead stands.
    times : ndarray of str, shape (rows,), or None
        The column of times.
    """

    target: NDArray[np.float64]
    inputs: NDArray[np.float64] | None
    future: NDArray[np.float64] | None
    times: NDArray[np.str_] | None


def read_series(path: str, columns: Columns, minimum_rows: int = 1) -> Series:
    """Read a series to forecast.

    Where some inputs are known ahead, the table may go on after the last known target.

    Raises
    ------
    DataError
        If a column is missing, holds something else, has a gap, or there are too few rows.
    """
    names = (str(columns.target), *columns.inputs)
    ahead = [names.index(name) for name in columns.future_inputs]
    labels = () if columns.time is None else (columns.time,)
    table = read_columns(path, names, labels=labels, gaps=bool(ahead), minimum_rows=minimum_rows)
    values = table.values
    future = None
    if ahead:
        known = np.flatnonzero(np.isfinite(values[:, 0]))
        end = int(known[-1]) + 1 if known.size else 0
        if end < len(values):
            values, future = values[:end], values[end:, ahead]
            _no_gaps(path, [names[k] for k in ahead], future, end)
        _no_gaps(path, names, values, 0)
        if end < minimum_rows:
            raise DataError(f"{path}: at least {minimum_rows} rows are needed, got {end}")
    times = table.labels[0][: len(values)] if labels else None
    return Series(values[:, 0], values[:, 1:] if columns.inputs else None, future, times)


def clock_of(columns: Columns, times: NDArray[np.str_] | None) -> Any:
    """Return how the times of a table go on, a ``Clock``; None where there are none.

    Raises
    ------
    DataError
        If they are neither times nor numbers, or not at equal steps.
    MissingPackageError
        Without pandas.
    """
    if times is None:
        return None
    pandas = require("pandas", "a column of times")
    from fastgates.estimators._clock import Clock

    name = f"column {columns.time!r}"
    try:
        numbers = times.astype(np.float64)
        index = pandas.Index(numbers.astype(np.int64) if (numbers % 1 == 0).all() else numbers)
    except ValueError:
        try:
            index = pandas.DatetimeIndex(pandas.to_datetime(times))
        except ValueError as error:
            raise DataError(f"{name} must hold times or numbers: {error}") from None
    return Clock.of(index, name)


def flatten(values: Any) -> Any:
    """Lay the steps of all sequences in a row, where there is a list of them."""
    return np.concatenate(values) if isinstance(values, list) else np.asarray(values)


def _no_gaps(path: str, names: Sequence[str], values: NDArray[np.float64], first: int) -> None:
    gaps = np.argwhere(np.isnan(values))
    if len(gaps):
        row, column = gaps[0]
        raise DataError(
            f"{path}: row {first + row + 1}, column {names[column]!r}: empty, a gap; fill it or "
            "cut the series"
        )


def read_samples(path: str, columns: Columns, *, with_target: bool = True) -> Samples:
    """Read sequences for regression or classification.

    Parameters
    ----------
    path : str
    columns : Columns
        Its `inputs` may be empty where `with_target`: all others then.
    with_target : bool
        Whether the target column is there and read.

    Raises
    ------
    DataError
        If a column is missing or holds something else, or a target is not the same in all rows of a
        sequence.
    """
    target = columns.target if with_target else None
    classes = columns.task == "classification"
    numbers = [*columns.inputs]
    labels = [] if columns.sequence is None else [columns.sequence]
    if target is not None:
        (labels if classes else numbers).append(target)
    table = read_columns(path, numbers, labels=labels)
    if not len(table.values):
        raise DataError(f"{path}: at least one row is needed, got 0")
    x = table.values[:, : len(columns.inputs)]
    y: Any = None
    if target is not None:
        y = table.labels[-1] if classes else table.values[:, -1]
    if columns.sequence is not None:
        return _long(path, columns, x, y, table.labels[0])
    count = len(x)
    if columns.window is not None:
        if count < columns.window:
            raise DataError(
                f"{path}: at least window={columns.window} rows are needed, got {count}"
            )
        x = windows_of(x, columns.window)
        y = None if y is None else y[columns.window - 1 :]
    last = np.arange(count - len(x), count) + 1
    return Samples(x, y, [str(row) for row in last], [np.array([row]) for row in last])


def _long(path: str, columns: Columns, x: Any, y: Any, keys: NDArray[np.str_]) -> Samples:
    """Gather the rows of each sequence, in the order in which sequences first appear."""
    names, first, codes = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    turn = np.argsort(first)
    parts = [parts[k] for k in turn]
    targets: Any = None
    if y is not None and columns.per_step:
        targets = [y[rows] for rows in parts]
    elif y is not None:
        for rows in parts:
            other = np.flatnonzero(y[rows] != y[rows[0]])
            if other.size:
                raise DataError(
                    f"{path}: the target {columns.target!r} of sequence {str(keys[rows[0]])!r} "
                    f"changes from row {rows[0] + 1} to row {rows[other[0]] + 1}: give one value "
                    "to a sequence, or use --per-step"
                )
        targets = y[[rows[0] for rows in parts]]
    return Samples(
        [x[rows] for rows in parts], targets, [str(names[k]) for k in turn],
        [rows + 1 for rows in parts],
    )  # fmt: skip


def other_columns(path: str, *taken: str | None) -> tuple[str, ...]:
    """Return the names of all columns but these."""
    return tuple(name for name in column_names(path) if name not in taken)
