"""How forecasts of a series are made fair: parts in the order of time, and baselines to beat.

The forecaster itself is :class:`fastgates.SequenceForecaster`.  Row numbers count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgates._series import as_series
from fastgates._tables import DataError
from fastgates.baselines import Metrics, linear_autoregression, metrics, persistence

__all__ = ["Comparison", "Split", "chronological_split", "compare"]

_FEWEST_TRAINING_WINDOWS = 10
_FEWEST_FORECASTS = 2  # in the validation and in the test part: one value has no R2
_FEWEST_RESIDUALS = 9  # enough for intervals of 90 percent


class Split(NamedTuple):
    """Where the parts of a series end: training, validation, calibration; the rest is for tests.

    A window belongs to the part in which all the rows lie that it forecasts; one that forecasts
    rows of two parts belongs to none.

    Attributes
    ----------
    train_end, validation_end, calibration_end : int
        Ascending rows; a part may be empty, but the first.
    """

    train_end: int
    validation_end: int
    calibration_end: int

    def windows(self, window: int, leads: Sequence[int]) -> tuple[slice, slice, slice]:
        """Return which windows belong to the parts, by the number of their first row.

        Parameters
        ----------
        window : int
            Rows of a window.
        leads : sequence of int
            How many rows after a window it forecasts.

        Returns
        -------
        tuple of slice
            Of training, validation and calibration.

        Raises
        ------
        ValueError
            If the ends are not in order.
        DataError
            If there is no training window, or none in a part that has rows.
        """
        if not 0 < self.train_end <= self.validation_end <= self.calibration_end:
            raise ValueError(
                "split must have 0 < train_end <= validation_end <= calibration_end, "
                f"got {tuple(self)}"
            )
        parts = []
        start = 0
        for name, stop in zip(("training", "validation", "calibration"), self, strict=True):
            first = max(0, start - min(leads) - window + 1)
            last = stop - max(leads) - window + 1
            if last <= first and (stop > start or name == "training"):
                fewest = max(leads) - min(leads) + 1 if start else window + max(leads)
                raise DataError(
                    f"the {name} part must have at least {fewest} rows (window={window}, "
                    f"horizon={max(leads)}), got {stop - start}"
                )
            parts.append(slice(first, max(first, last)))
            start = stop
        return parts[0], parts[1], parts[2]


class Comparison(NamedTuple):
    """Forecasts of the same rows and their errors, by name: the cell and both baselines.

    Attributes
    ----------
    truth : ndarray of float64, shape (windows, leads)
    forecasts : dict of str to ndarray of float64, shape (windows, leads)
    errors : dict of str to Metrics
        Over all windows and leads.
    """

    truth: NDArray[np.float64]
    forecasts: dict[str, NDArray[np.float64]]
    errors: dict[str, Metrics]


def chronological_split(
    rows: int,
    window: int,
    leads: Sequence[int] = (1,),
    *,
    validation: float = 0.15,
    calibration: float = 0.15,
    test: float = 0.0,
) -> Split:
    """Cut a series of `rows` rows into training, validation, calibration and test part, in order.

    Parameters
    ----------
    rows, window : int
        Length of the series; what a forecast reads.
    leads : sequence of int
        How many rows ahead it is.
    validation, calibration, test : float
        Shares of the rows; a part of 0 is empty.

    Returns
    -------
    Split
        The ends of the first three parts.

    Raises
    ------
    ValueError
        If the shares are not in [0, 1), or leave nothing to train on.
    DataError
        If there are too few rows for 10 training windows and some forecasts in each other part.
    """
    shares = {"validation": validation, "calibration": calibration, "test": test}
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}_fraction must be in [0, 1), got {share!r}")
    if sum(shares.values()) >= 1:
        raise ValueError(f"the fractions must leave some rows for training, got {shares}")
    lost = max(leads) - min(leads)  # by a part's first windows: some of their rows are before it
    fewest = {
        "validation": _FEWEST_FORECASTS,
        "calibration": _FEWEST_RESIDUALS,
        "test": _FEWEST_FORECASTS,
    }
    sizes = {
        name: max(fewest[name] + lost, math.floor(rows * share)) if share else 0
        for name, share in shares.items()
    }
    train_end = rows - sum(sizes.values())
    least = window + max(leads) - 1 + _FEWEST_TRAINING_WINDOWS
    if train_end < least:
        needed = max(
            math.ceil(least / (1.0 - sum(shares.values()))) + 3,
            least + sum(fewest[name] + lost for name, share in shares.items() if share),
        )
        raise DataError(
            f"too few rows: {rows}; a window of {window} and a horizon of {max(leads)} need about "
            f"{needed}: give more data or a shorter window"
        )
    validation_end = train_end + sizes["validation"]
    return Split(train_end, validation_end, validation_end + sizes["calibration"])


def compare(
    model: Any, series: ArrayLike, start: int, inputs: ArrayLike | None = None
) -> Comparison:
    """Compare a fitted forecaster with both baselines on the rows from `start` on.

    Parameters
    ----------
    model : SequenceForecaster
        Fitted, of one target.
    series : array_like, shape (rows,)
        The whole series, so that windows may begin before `start`.
    start : int
        The first row to compare on; usually ``split_.calibration_end``.  The linear autoregression
        is fitted on all rows before it.
    inputs : array_like, shape (rows, inputs), optional
        What the forecaster reads besides.

    Returns
    -------
    Comparison
        Keys: the model's cell, ``"linear AR"``, ``"persistence"``.

    Raises
    ------
    DataError
        If no window forecasts these rows only.
    """
    target = as_series(series)
    values = target if inputs is None else np.concatenate([target, as_series(inputs)], axis=1)
    window, leads = model.window_, model.leads_
    part = slice(max(0, start - min(leads) - window + 1), len(values) - max(leads) - window + 1)
    if part.stop <= part.start:
        raise DataError(f"the test part must have more rows, got {len(values) - start}")
    rows = [slice(part.start + window - 1 + lead, part.stop + window - 1 + lead) for lead in leads]
    truth = np.stack([target[each, 0] for each in rows], axis=1)
    rolling = np.asarray(model.predict_rolling(target[:, 0], inputs))
    forecasts = {
        model.cell: rolling[part],
        "linear AR": np.stack(
            [linear_autoregression(values, window, lead, start)[part] for lead in leads], axis=1
        ),
        "persistence": np.repeat(persistence(values, window)[part, None], len(leads), axis=1),
    }
    errors = {name: metrics(each.ravel(), truth.ravel()) for name, each in forecasts.items()}
    return Comparison(truth, forecasts, errors)
