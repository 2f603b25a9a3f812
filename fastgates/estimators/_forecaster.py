"""Forecasting a regular series from the last `window` rows of it.

A recurrent layer reads a window; a linear read-out of its last output gives the targets at all the
wanted leads at once.  What the network gives is the change from the last known value, in units of
the usual change over that lead: a network that has learned nothing yet is the persistence forecast,
and levels never seen in training do not throw it off.

Letters: R rows, C columns (targets, then inputs), W windows, L leads, O targets.  Row numbers count
from 0; the first row that can be forecast is ``window + horizon - 1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted

from fastgates._checks import positive_integer
from fastgates._extras import require
from fastgates._series import column_scales, windows_of
from fastgates._tables import DataError
from fastgates.estimators._base import SequenceEstimator, all_or_nothing
from fastgates.estimators._clock import Clock
from fastgates.estimators._conformal import Interval, radius, residuals
from fastgates.forecasting import Split, chronological_split
from fastgates.losses import Loss
from fastgates.sequential import Scaling, Sequential
from fastgates.training import Sequences

__all__ = ["Given", "SequenceForecaster", "Standard"]


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceForecaster(SequenceEstimator):
    """Forecast one or more columns of a regular series, with prediction intervals.

    The rows are cut in the order of time: training, then those for early stopping, then those whose
    errors give the intervals.  Columns are standardised by the training rows.

    Parameters
    ----------
    window : int, default 64
        Rows the network reads for a forecast.
    horizon : int or sequence of int, default 1
        Rows ahead: 12 stands for all of 1 to 12, ``[12]`` for the twelfth only.
    future_inputs : sequence, default ()
        Columns of X that are known `horizon` rows ahead, such as the calendar or a plan: names, or
        numbers for an array.  They are read that far ahead.
    loss : {"mse", "mae", "huber"} or Loss, default "mse"
        What is made small, in units of the usual change.
    early_stopping : bool, default True
        Whether to stop when the loss on the validation rows does not fall any more.
    validation_fraction, calibration_fraction : float, default 0.15 each
        Shares of the rows.  Without the latter (0) there are no intervals.
    patience : int, default 15
        Epochs without a better validation loss before stopping.
    **others
        Those of :class:`~fastgates.estimators.SequenceEstimator`.

    Attributes
    ----------
    split_ : Split
        Where the parts of the rows ended.
    leads_ : tuple of int
        How many rows ahead the forecasts are.
    target_names_, input_names_ : tuple of str
        Of the columns.
    model_, history_, n_iter_
        As of :class:`~fastgates.estimators.SequenceRegressor`.

    Examples
    --------
    >>> import fastgates as fg
    >>> from fastgates.datasets import load_sunspots
    >>> number = load_sunspots().number
    >>> model = fg.SequenceForecaster(window=12, horizon=3, hidden_size=8, max_epochs=2)
    >>> model.fit(number).predict().shape
    (3,)
    """

    window: int = 64
    horizon: int | Sequence[int] = 1
    future_inputs: Sequence[Any] = ()
    loss: Any = "mse"
    early_stopping: bool = True
    validation_fraction: float = 0.15
    calibration_fraction: float = 0.15
    patience: int = 15

    # -- Fitting ----------------------------------------------------------------------------------

    @all_or_nothing
    def fit(self, y: Any, X: Any = None, *, split: Split | None = None) -> SequenceForecaster:
        """Train on a series.

        Parameters
        ----------
        y : Series, DataFrame or array_like, shape (rows,) or (rows, targets)
            The series to forecast, in the order of time, at equal steps, without gaps.  Its own
            past is always an input.
        X : DataFrame, Series or array_like, shape (rows, inputs), optional
            Further inputs of the same rows.
        split : Split, optional
            Where training, validation and calibration rows end; by the fractions by default.  Later
            rows are only remembered, to forecast from.

        Returns
        -------
        SequenceForecaster
            Itself.

        Raises
        ------
        DataError
            If the series cannot be used: shape, NaN, too few rows, unequal steps, a target that
            never changes.
        ValueError
            If a parameter is out of its range.
        DivergenceError
            If a loss or gradient is not finite; the model before is kept.
        """
        return self._fit_given(self._read(y, X), split)

    def _fit_given(self, given: Given, split: Split | None) -> SequenceForecaster:
        """Train on columns that were read already."""
        leads = self._leads()
        ahead = self._columns_ahead(given)
        if split is None:
            split = chronological_split(
                len(given.values),
                self.window,
                leads,
                validation=self.validation_fraction if self.early_stopping else 0.0,
                calibration=self.calibration_fraction,
            )
        else:
            split = Split(*split)
        if split.calibration_end > len(given.values):
            raise DataError(
                f"y must have at least calibration_end={split.calibration_end} rows, "
                f"got {len(given.values)}"
            )
        parts = split.windows(self.window, leads)
        values = given.values[: split.calibration_end]
        standard = Standard.of(values[: split.train_end], leads, given)
        data = _training_data(values, standard, self.window, leads, ahead)
        train, validation, calibration = (data.take(part) for part in parts)
        self._fit_model(
            train, validation if len(validation) else None, _shape(data), self._options()
        )
        self.split_, self.leads_, self._ahead, self._standard = split, leads, ahead, standard
        self.window_ = self.window
        self.target_names_, self.input_names_ = given.target_names, given.input_names
        self._flat, self._named, self._clock = given.flat, given.named, given.clock
        self._last = given.values[-self.window :].copy()
        if len(calibration):
            forecast = self._forecasts(values, calibration.x, parts[2].start)
            truth = _truth(values, self.window, leads, len(self.target_names_))[parts[2]]
            self.residuals_ = residuals(truth, forecast)  # (W, L, O)
        elif hasattr(self, "residuals_"):
            del self.residuals_
        return self

    @all_or_nothing
    def partial_fit(self, y: Any, X: Any = None) -> SequenceForecaster:
        """Train for one epoch on all windows of a series; the optimiser goes on where it was.

        Scaling and intervals stay those of :meth:`fit`, which must come first; forecasts go on from
        the end of this series.

        Parameters
        ----------
        y, X
            As in :meth:`fit`, the same columns.

        Returns
        -------
        SequenceForecaster
            Itself.
        """
        check_is_fitted(self)
        given = self._known(y, X)
        fewest = self.window_ + max(self.leads_)
        if len(given.values) < fewest:
            raise DataError(
                f"y must have at least {fewest} rows (window={self.window_}, horizon="
                f"{max(self.leads_)}), got {len(given.values)}"
            )
        data = _training_data(given.values, self._standard, self.window_, self.leads_, self._ahead)
        self._partial_fit_model(data, _shape(data), self._options())
        self._last, self._clock = given.values[-self.window_ :].copy(), given.clock
        return self

    def _leads(self) -> tuple[int, ...]:
        """Check `window` and `horizon`; return how many rows ahead each forecast is."""
        positive_integer("window", self.window)
        if isinstance(self.horizon, int | np.integer):
            return tuple(range(1, positive_integer("horizon", self.horizon) + 1))
        if not isinstance(self.horizon, Iterable):
            raise TypeError(f"horizon must be a number of rows, or several, got {self.horizon!r}")
        leads = tuple(positive_integer("horizon", lead) for lead in self.horizon)
        if not leads or list(leads) != sorted(set(leads)):
            raise ValueError(f"horizon must be ascending numbers of rows, got {self.horizon!r}")
        return leads

    def _options(self) -> dict[str, Any]:
        loss = Loss.of(self.loss)
        if loss.name not in ("mse", "mae", "huber"):
            raise ValueError(
                f"loss of a forecaster must be mse, mae or huber, got {loss.name}: its intervals "
                "come from predict_interval"
            )
        return {"loss": loss, "scale_inputs": False, "scale_outputs": False}

    # -- Series in --------------------------------------------------------------------------------

    def _read(self, y: Any, X: Any) -> Given:
        """Check what the user gave and put it side by side."""
        targets = _read(y, "y")
        inputs = _Table(np.empty((len(targets.values), 0)), (), None, False)
        if X is not None:
            inputs = _read(X, "X")
            if len(inputs.values) != len(targets.values):
                raise DataError(
                    f"X must have the {len(targets.values)} rows of y, got {len(inputs.values)}"
                )
            indexed = targets.index is not None and inputs.index is not None
            if indexed and not targets.index.equals(inputs.index):
                raise DataError("X must have the index of y, got another one: align them first")
        return Given(
            np.concatenate([targets.values, inputs.values], axis=1),
            targets.names or tuple(f"y{k}" for k in range(targets.values.shape[1])),
            inputs.names or tuple(f"x{k}" for k in range(inputs.values.shape[1])),
            None if targets.index is None else Clock.of(targets.index),
            targets.index,
            targets.flat,
            targets.names is not None,
        )

    def _known(self, y: Any, X: Any) -> Given:
        """As ``_read``, for the columns that the model was fitted on."""
        given = self._read(y, X)
        for name, found, wanted in (
            ("y", given.target_names, self.target_names_),
            ("X", given.input_names, self.input_names_),
        ):
            named = given.named and self._named
            if len(found) != len(wanted) or (named and found != wanted):
                raise DataError(
                    f"{name} must have the {len(wanted)} columns {', '.join(wanted)} that the "
                    f"model was fitted on, got {', '.join(found) or 'none'}"
                )
        if len(given.values) < self.window_:
            raise DataError(
                f"y must have at least window={self.window_} rows, got {len(given.values)}"
            )
        return given

    def _columns_ahead(self, given: Given) -> tuple[int, ...]:
        """Return the columns of all values that `future_inputs` names."""
        targets, names = len(given.target_names), given.input_names
        columns = []
        for each in self.future_inputs:
            if isinstance(each, str) and each in names:
                columns.append(targets + names.index(each))
            elif isinstance(each, int | np.integer) and 0 <= each < len(names):
                columns.append(targets + int(each))
            else:
                raise ValueError(
                    f"future_inputs must be columns of X, {', '.join(names) or 'which has none'}, "
                    f"got {each!r}"
                )
        if len(set(columns)) != len(columns):
            raise ValueError(f"future_inputs must be different, got {list(self.future_inputs)}")
        if columns and self.window < max(self._leads()):
            raise ValueError(
                f"window must be at least the horizon, {max(self._leads())}, with future_inputs, "
                f"got {self.window}: it would not reach all that is known ahead"
            )
        return tuple(columns)

    def _future(self, future: Any) -> NDArray[np.float64] | None:
        """Check the rows that are known ahead: (max(leads), columns of `future_inputs`)."""
        if future is None:
            return None
        if not self._ahead:
            raise ValueError("future must be None where the model has no future_inputs")
        table = _read(future, "future")
        names = tuple((self.target_names_ + self.input_names_)[k] for k in self._ahead)
        values = table.values
        if table.names is not None and self._named:
            absent = [name for name in names if name not in table.names]
            if absent:
                raise DataError(f"future must have the columns {', '.join(names)}: no {absent[0]}")
            values = values[:, [table.names.index(name) for name in names]]
        shape = (max(self.leads_), len(names))
        if values.shape != shape:
            raise DataError(
                f"future must have shape (horizon={shape[0]}, future_inputs={shape[1]}), "
                f"got {values.shape}"
            )
        return values

    # -- Forecasts --------------------------------------------------------------------------------

    def predict(self, y: Any = None, X: Any = None, future: Any = None) -> Any:
        """Forecast what comes after the end of a series.

        Parameters
        ----------
        y, X : optional
            The series and its inputs up to now, as in :meth:`fit`, at least `window` rows.  Without
            them, what the model was fitted on.
        future : DataFrame or array_like, shape (horizon, future_inputs), optional
            With `future_inputs`, their next rows.

        Returns
        -------
        Series, DataFrame or ndarray
            As `y`, a row for each of ``leads_``; the time index goes on.

        Raises
        ------
        DataError
            If the series has other columns, NaN, or too few rows.
        """
        given, forecast = self._next(y, X, future)
        return self._as_given(forecast, given)

    def predict_interval(
        self, y: Any = None, X: Any = None, future: Any = None, *, coverage: float = 0.9
    ) -> Any:
        """Forecast as :meth:`predict`, with split-conformal bounds.

        Parameters
        ----------
        y, X, future
            As in :meth:`predict`.
        coverage : float, default 0.9
            How often the truth is to lie between the bounds, for each row and target by itself.

        Returns
        -------
        DataFrame or Interval
            For pandas the columns forecast, lower and upper, under each target where there are
            several; for arrays ``prediction``, ``lower`` and ``upper``, each as from
            :meth:`predict`.

        Raises
        ------
        ValueError
            If the calibration rows are too few for this coverage, or there were none.
        """
        width = self.radius(coverage)
        given, forecast = self._next(y, X, future)
        bounds = Interval.around(forecast, width)
        if given.clock is None:
            return Interval(*(self._as_given(each, given) for each in bounds))
        pandas = require("pandas", "a time index")
        index = given.clock.after(self.leads_)
        parts = dict(zip(("forecast", "lower", "upper"), bounds, strict=True))
        columns = {
            (name, kind): each[:, k]
            for k, name in enumerate(self.target_names_)
            for kind, each in parts.items()
        }
        frame = pandas.DataFrame(columns, index=index)
        return frame[self.target_names_[0]] if len(self.target_names_) == 1 else frame

    def radius(self, coverage: float = 0.9) -> NDArray[np.float64]:
        """Return half the width of the intervals.

        Parameters
        ----------
        coverage : float, default 0.9
            As in :meth:`predict_interval`.

        Returns
        -------
        ndarray, shape (leads, targets)

        Raises
        ------
        ValueError
            If the calibration rows are too few for this coverage, or there were none.
        """
        check_is_fitted(self)
        if not hasattr(self, "residuals_"):
            raise ValueError("intervals need rows for calibration: fit with calibration_fraction")
        return radius(self.residuals_, coverage)

    def predict_rolling(self, y: Any, X: Any = None, future: Any = None) -> Any:
        """Forecast from every window of a series.

        Parameters
        ----------
        y, X
            As in :meth:`predict`.
        future : optional
            As in :meth:`predict`; without it, the last `horizon` windows have no forecast where
            there are `future_inputs`.

        Returns
        -------
        ndarray of float64, shape (windows, leads) or (windows, leads, targets), or DataFrame
            Entry k is forecast from the rows ``k`` to ``k + window - 1``.  For pandas a row for
            each window, labelled by its last row, and a column for each lead, under each target
            where there are several.  A forecast is the same number, bit for bit, whatever other
            windows are forecast with it.

        Raises
        ------
        DataError
            If the series has other columns, NaN, or too few rows.
        """
        check_is_fitted(self)
        given = self._known(y, X)
        forecast = self._rolling(given.values, self._future(future))
        if given.index is None:
            return forecast[:, :, 0] if given.flat else forecast
        pandas = require("pandas", "a time index")
        index = given.index[self.window_ - 1 :][: len(forecast)]
        leads = pandas.Index(self.leads_, name="lead")
        frames = {
            name: pandas.DataFrame(forecast[:, :, k], index=index, columns=leads)
            for k, name in enumerate(self.target_names_)
        }
        if len(frames) == 1:
            return frames[self.target_names_[0]]
        return pandas.concat(frames, axis=1)

    def score(self, y: Any, X: Any = None) -> float:
        """Return R2 of the forecasts from all windows, over all leads; the mean over the targets.

        Parameters
        ----------
        y, X
            As in :meth:`predict_rolling`, at least ``window + horizon + 1`` rows.

        Returns
        -------
        float
        """
        check_is_fitted(self)
        given = self._known(y, X)
        truth = _truth(given.values, self.window_, self.leads_, len(self.target_names_))
        if len(truth) < 2:
            raise DataError(
                f"y must have at least {self.window_ + max(self.leads_) + 1} rows for a score, "
                f"got {len(given.values)}"
            )
        forecast = self._rolling(given.values, None)[: len(truth)]
        targets = len(self.target_names_)
        return float(r2_score(truth.reshape(-1, targets), forecast.reshape(-1, targets)))

    def _next(self, y: Any, X: Any, future: Any) -> tuple[Given, NDArray[np.float64]]:
        """Forecast (leads, targets) after the end of the given series, or the remembered one."""
        check_is_fitted(self)
        if y is None:
            if X is not None:
                raise ValueError("X must come with y, the series up to now")
            if len(self._last) < self.window_:
                raise ValueError("y is needed: this model's file remembers no series")
            given = Given(
                self._last, self.target_names_, self.input_names_, self._clock, None, self._flat,
                self._named,
            )  # fmt: skip
        else:
            given = self._known(y, X)
        rows = self._future(future)
        if self._ahead and rows is None:
            names = [(self.target_names_ + self.input_names_)[k] for k in self._ahead]
            raise ValueError(
                f"future must hold the next {max(self.leads_)} rows of {', '.join(names)}"
            )
        return given, self._rolling(given.values[-self.window_ :], rows)[0]

    def _rolling(
        self, values: NDArray[np.float64], future: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Forecast from every window: (W, L, O)."""
        features = _features(values, self._standard, self._ahead, max(self.leads_), future)
        if len(features) < self.window_:
            raise DataError(
                f"y must have at least {self.window_ + max(self.leads_)} rows, got {len(values)}: "
                "the inputs that are known ahead end with it"
            )
        return self._forecasts(values, windows_of(features, self.window_), 0)

    def _forecasts(
        self, values: NDArray[np.float64], windows: NDArray[np.float32], first: int
    ) -> NDArray[np.float64]:
        """Forecast from these windows, the first of which begins at row `first`."""
        output = self.model_.predict(windows).astype(np.float64)
        targets = len(self.target_names_)
        change = output.reshape(len(windows), len(self.leads_), targets) * self._standard.change
        last = values[first + self.window_ - 1 :][: len(windows), None, :targets]
        return last + change

    def _as_given(self, forecast: NDArray[np.float64], given: Given) -> Any:
        """Turn (leads, targets) into what `y` was."""
        if given.clock is None:
            return forecast[:, 0] if given.flat else forecast
        pandas = require("pandas", "a time index")
        index = given.clock.after(self.leads_)
        if given.flat:
            return pandas.Series(forecast[:, 0], index=index, name=self.target_names_[0])
        return pandas.DataFrame(forecast, index=index, columns=list(self.target_names_))

    def to_sequential(self) -> Sequential:
        """Return the fitted network as one module.

        Returns
        -------
        Sequential
            It takes windows (batch, window, targets + inputs) in the user's units, with those of
            `future_inputs` `horizon` rows ahead, and gives the changes from the last known values,
            (batch, leads * targets), in the user's units too.
        """
        change = self._standard.change.ravel()
        return Sequential(
            Scaling(self._standard.mean, self._standard.scale),
            *self.model_.to_sequential().modules,
            Scaling(np.zeros_like(change), change, inverse=True),
            return_sequences=False,
        )


class _Table(NamedTuple):
    """One argument of the user's."""

    values: NDArray[np.float64]  # (R, columns)
    names: tuple[str, ...] | None  # of pandas
    index: Any  # of pandas, or None
    flat: bool  # whether it had one dimension


class Given(NamedTuple):
    """Targets and inputs side by side, and how they came."""

    values: NDArray[np.float64]  # (R, C)
    target_names: tuple[str, ...]
    input_names: tuple[str, ...]
    clock: Clock | None
    index: Any
    flat: bool
    named: bool


class Standard(NamedTuple):
    """Means and deviations of the training rows, and the usual changes."""

    mean: NDArray[np.float64]  # (C,)
    scale: NDArray[np.float64]  # (C,)
    change: NDArray[np.float64]  # (L, O), root mean square of y[t + lead] - y[t]

    @classmethod
    def of(cls, rows: NDArray[np.float64], leads: Sequence[int], given: Given) -> Standard:
        """Measure the training rows."""
        targets = len(given.target_names)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = column_scales(rows)
            change = np.array(
                [
                    np.sqrt(np.mean(np.square(rows[lead:, :targets] - rows[:-lead, :targets]), 0))
                    for lead in leads
                ]
            )
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and np.isfinite(change).all()):
            raise DataError(
                "the numbers are too large to be standardised; give them in another unit"
            )
        constant = (change <= 1e-12 * np.abs(mean[:targets])).any(axis=0)
        if constant.any():
            name = given.target_names[int(np.argmax(constant))]
            raise DataError(
                f"the target {name} never changes in the training part (rows 1 to {len(rows)}): "
                "there is nothing to learn"
            )
        return cls(mean, scale, change)


def _read(values: Any, name: str) -> _Table:
    """Read a series or table of finite numbers, of pandas or else."""
    index = getattr(values, "index", None) if hasattr(values, "to_numpy") else None
    names: tuple[str, ...] | None = None
    if index is not None:
        columns = getattr(values, "columns", None)
        named = [getattr(values, "name", None)] if columns is None else list(columns)
        names = tuple(name if each is None else str(each) for each in named)
    array = np.asarray(values)
    wrong = TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.dtype.kind not in "fiubO":
        raise wrong
    if array.dtype.kind == "O":  # columns of different kinds of numbers, or None for a gap
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            raise wrong from None
    flat = array.ndim == 1
    if flat:
        array = array[:, None]
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(f"{name} must have shape (rows,) or (rows, columns), got {array.shape}")
    array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        row, column = (int(k) for k in np.argwhere(~finite)[0])
        found = "NaN" if np.isnan(array[row, column]) else "inf"
        place = f"row {row + 1}" if index is None else f"{index[row]} (row {row + 1})"
        which = f"column {column}" if names is None else f"column {names[column]!r}"
        raise DataError(
            f"{name} must be finite, got {found} at {place}, {which}: fill the gap or cut the "
            "series"
        )
    return _Table(array, names, index, flat)


def _features(
    values: NDArray[np.float64],
    standard: Standard,
    ahead: Sequence[int],
    horizon: int,
    future: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Standardise the columns, and move those that are known ahead up by the horizon.

    Without `future` there are `horizon` rows less, where some are known ahead.
    """
    with np.errstate(over="ignore"):
        result = ((values - standard.mean) / standard.scale).astype(np.float32)
        if ahead:
            columns = list(ahead)
            moved = result[horizon:, columns]
            if future is not None:
                mean, scale = standard.mean[columns], standard.scale[columns]
                rows = np.concatenate([values[:, columns], future])[horizon:]
                moved = ((rows - mean) / scale).astype(np.float32)
            result = result[: len(moved)]
            result[:, columns] = moved
    if not np.isfinite(result).all():
        raise DataError("the series is too far from the training part's range for float32")
    return result


def _truth(
    values: NDArray[np.float64], window: int, leads: Sequence[int], targets: int
) -> NDArray[np.float64]:
    """Return what the forecasts of the windows should be, as far as it is known: (W, L, O)."""
    count = max(0, len(values) - window - max(leads) + 1)
    return np.stack([values[window - 1 + lead :][:count, :targets] for lead in leads], axis=1)


def _training_data(
    values: NDArray[np.float64],
    standard: Standard,
    window: int,
    leads: Sequence[int],
    ahead: Sequence[int],
) -> Sequences:
    """Return all windows whose targets are known; views, a minibatch is gathered."""
    targets = standard.change.shape[1]
    windows = windows_of(_features(values, standard, ahead, max(leads)), window)
    truth = _truth(values, window, leads, targets)
    last = values[window - 1 :][: len(truth), None, :targets]
    change = ((truth - last) / standard.change).astype(np.float32)
    return Sequences(windows[: len(truth)], change.reshape(len(truth), -1))


def _shape(data: Sequences) -> dict[str, Any]:
    return {
        "input_size": data.x.shape[2],
        "output_size": data.y.shape[1],
        "return_sequences": False,
    }
