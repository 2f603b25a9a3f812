"""Forecasting one column of a regular series from the last `window` rows of it.

A recurrent layer reads a window; a linear read-out on its last hidden state gives the value
`horizon` rows ahead, directly (one model for one horizon).  What the network predicts is the
change from the last value in the window, in units of the usual change: a network that has
learned nothing yet is the persistence forecast, and levels never seen in training do not
throw it off.

The series is an array of shape (rows, columns) in time order; column 0 is the target and its
past is always an input, further columns are further inputs.  With one column, (rows,) will do.
Row numbers count from 0.  The first row that can be forecast is ``window + horizon - 1``.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgates._modelfile import ModelFileError, read_model, write_model
from fastgates._series import as_series, batches, column_scales, windows_of
from fastgates._tables import DataError
from fastgates._training import (
    DivergenceError,
    Epoch,
    Network,
    Progress,
    TrainingSettings,
    train,
)
from fastgates.baselines import Metrics, linear_autoregression, metrics, persistence
from fastgates.layers import GRU, LSTM, RNN, SimplifiedGRU

__all__ = [
    "CELLS",
    "Comparison",
    "DivergenceError",
    "Epoch",
    "Forecaster",
    "Progress",
    "Split",
    "chronological_split",
    "compare",
]

CELLS: dict[str, type] = {
    "rnn": RNN,
    "simplified_gru": SimplifiedGRU,
    "gru": GRU,
    "lstm": LSTM,
}
"""The layer of each name that ``Forecaster(cell=...)`` takes."""

_CELL_OPTIONS = {
    "rnn": {"nonlinearity", "leak"},
    "simplified_gru": set(),
    "gru": {"reset_after"},
    "lstm": {"forget_bias"},
}
_KIND = "fastgates.forecaster"
_FORMAT_VERSION = 1
_FEWEST_TRAINING_WINDOWS = 10
_FEWEST_ROWS = 2  # in the validation and in the test part: one value has no R2


class Split(NamedTuple):
    """Where the parts of a series end: training, then validation, the rest is the test part.

    A forecast belongs to the part of the row that it forecasts.
    """

    train_end: int
    validation_end: int


class Comparison(NamedTuple):
    """Forecasts of the same rows and their errors, by name: the cell and both baselines."""

    forecasts: dict[str, NDArray[np.float64]]
    errors: dict[str, Metrics]


class _Scaling(NamedTuple):
    """Standardisation, from the training rows only."""

    mean: NDArray[np.float64]  # (columns,)
    scale: NDArray[np.float64]  # (columns,)
    change: float  # root mean square of target[t + horizon] - target[t]


class _Fitted(NamedTuple):
    """What fit makes and a file holds."""

    network: Network
    scaling: _Scaling
    columns: tuple[str, ...]
    record: dict[str, Any]


@dataclass
class Forecaster:
    """Forecast a series `horizon` rows ahead with a recurrent layer and a linear read-out.

    Parameters
    ----------
    cell : {"gru", "lstm", "simplified_gru", "rnn"}, default "gru"
        The recurrent cell.
    cell_options : dict, optional
        Options of that cell: ``nonlinearity`` and ``leak`` (rnn), ``reset_after`` (gru),
        ``forget_bias`` (lstm).
    hidden_size, num_layers : int, default 32 and 1
        Size of the recurrent layer.
    window : int, default 64
        Rows the network reads for one forecast.
    horizon : int, default 1
        How many rows after the window's last the forecast is for.
    epochs : int, default 100
        The most passes over the training windows.
    patience : int, default 15
        Stop after so many epochs without a better validation loss.  The weights of the best
        epoch are kept in any case.
    batch_size : int, default 32
        Windows in a minibatch.
    learning_rate : float, default 3e-3
        Of Adam.
    max_norm : float, default 1.0
        Global gradient norm above which gradients are scaled down.
    seed : int, default 0
        Of the initial weights and the minibatch order.  The same seed on the same data gives
        the same weights, for any number of threads.

    Examples
    --------
    >>> from fastgates.datasets import load_sunspots
    >>> from fastgates.forecasting import Forecaster, Split
    >>> number = load_sunspots().number
    >>> model = Forecaster(hidden_size=8, window=12, epochs=2)
    >>> forecast = model.fit(number, Split(200, 240)).predict(number)
    >>> forecast.shape                       # one for each window; the last is for the year 2009
    (298,)
    """

    cell: str = "gru"
    cell_options: dict[str, Any] = field(default_factory=dict)
    hidden_size: int = 32
    num_layers: int = 1
    window: int = 64
    horizon: int = 1
    epochs: int = 100
    patience: int = 15
    batch_size: int = 32
    learning_rate: float = 3e-3
    max_norm: float = 1.0
    seed: int = 0
    _fitted: _Fitted | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def first_row(self) -> int:
        """The first row of a series that can be forecast: ``window + horizon - 1``."""
        return self.window + self.horizon - 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the series' columns, the target first."""
        return self._need_fitted().columns

    @property
    def parameter_count(self) -> int:
        """Weights and biases of the fitted network."""
        return sum(module.parameter_vector.size for module in self._need_fitted().network)

    @property
    def record(self) -> dict[str, Any]:
        """How it was trained: rows, split, epochs run, best epoch, losses; goes into the file."""
        return self._need_fitted().record

    def fit(
        self,
        series: ArrayLike,
        split: Split,
        *,
        columns: Sequence[str] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Forecaster:
        """Train on the training part, with early stopping on the validation part.

        Parameters
        ----------
        series : array_like, shape (rows, columns) or (rows,)
            Column 0 is the target.  Rows from ``split.validation_end`` on are not looked at.
        split : Split
            Where the parts end; ``chronological_split`` makes one.
        columns : sequence of str, optional
            Names of the columns, kept in the model file.
        progress : callable, optional
            Called with a ``Progress`` after every step; an exception it raises ends training.

        Returns
        -------
        Forecaster
            Itself.  ``record["history"]`` has an ``Epoch`` for each epoch.

        Raises
        ------
        ValueError
            If a setting is out of its range.
        DataError
            If the series has another shape, NaN, too few rows or a constant target.
        DivergenceError
            If the loss stops being finite; the fields are then as before.
        """
        self._check_settings()
        values = as_series(series)[: split.validation_end]
        names = _column_names(columns, values.shape[1])
        self._check_split(values, split)
        scaling = _scaling(values[: split.train_end], self.horizon, names)
        # Neither windows nor targets are copied: both are views, a minibatch is gathered.
        windows = windows_of(_standardised(values, scaling), self.window)
        target = _target_changes(values, self.window, self.horizon, scaling)
        network = self._new_network(values.shape[1])
        history = train(
            network,
            windows,
            target,
            np.arange(split.train_end - self.first_row),
            np.arange(split.train_end - self.first_row, split.validation_end - self.first_row),
            TrainingSettings(
                *(getattr(self, name) for name in TrainingSettings._fields)  # the same names
            ),
            progress,
        )
        best = min(range(len(history)), key=lambda epoch: history[epoch].validation_loss)
        record = {
            "rows": len(values),
            "train_end": split.train_end,
            "validation_end": split.validation_end,
            "epochs_run": len(history),
            "best_epoch": best + 1,
            "history": history,
        }
        self._fitted = _Fitted(network, scaling, names, record)
        return self

    def predict(self, series: ArrayLike) -> NDArray[np.float64]:
        """Forecast from every window of a series.

        Parameters
        ----------
        series : array_like, shape (rows, columns) or (rows,)
            The same columns as in training; at least `window` rows.

        Returns
        -------
        ndarray of float64, shape (rows - window + 1,)
            Entry k is the forecast for row ``first_row + k``; the last `horizon` entries are
            for rows after the series' end.  A forecast is the same number, bit for bit,
            whatever other windows are forecast with it.

        Raises
        ------
        RuntimeError
            Before ``fit`` or ``load``.
        DataError
            If the series has another number of columns, NaN or too few rows.
        """
        network, scaling, names, _ = self._need_fitted()
        values = as_series(series)
        if values.shape[1] != len(names):
            raise DataError(
                f"series must have the {len(names)} columns {', '.join(names)}, "
                f"got {values.shape[1]}"
            )
        if len(values) < self.window:
            raise DataError(
                f"series must have at least window={self.window} rows, got {len(values)}"
            )
        windows = windows_of(_standardised(values, scaling), self.window)
        change = np.concatenate([network(windows[rows]) for rows in batches(len(windows))])
        return values[self.window - 1 :, 0] + scaling.change * change.astype(np.float64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings, scaling, weights and the training record to one safetensors file.

        Parameters
        ----------
        path : path-like
            The file; it is replaced whole, or left as it was on any error.

        Raises
        ------
        RuntimeError
            Before ``fit`` or ``load``.
        MissingPackageError
            Without safetensors (``pip install 'fastgates[files]'``).
        OSError
            If the file cannot be written.
        """
        network, scaling, names, record = self._need_fitted()
        tensors = {
            f"{prefix}.{name}": value
            for prefix, module in network._asdict().items()
            for name, value in module.parameters.items()
        }
        header = {
            "settings": _settings(self),
            "columns": names,
            "scaling": {
                "mean": scaling.mean.tolist(),
                "scale": scaling.scale.tolist(),
                "change": scaling.change,
            },
            "training": record,
        }
        write_model(path, _KIND, _FORMAT_VERSION, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Forecaster:
        """Read a forecaster that ``save`` wrote.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        Forecaster
            Ready to predict, with the same bits as the one saved.

        Raises
        ------
        MissingPackageError
            Without safetensors (``pip install 'fastgates[files]'``).
        ModelFileError
            If the file is missing, cut short, not of a forecaster, of a newer format, or its
            tensors and settings do not fit together.
        """
        tensors, header = read_model(path, _KIND, _FORMAT_VERSION)
        try:
            model = cls(**header["settings"])
            model._check_settings()
            names = tuple(str(name) for name in header["columns"])
            scaling = _Scaling(
                np.array(header["scaling"]["mean"], dtype=np.float64),
                np.array(header["scaling"]["scale"], dtype=np.float64),
                float(header["scaling"]["change"]),
            )
            record = dict(header["training"])
            record["history"] = [Epoch(*epoch) for epoch in record["history"]]
        except KeyError as error:
            raise ModelFileError(f"{path}: its header lacks {error}") from None
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: its header does not fit: {error}") from None
        positive = all(value > 0 for value in (*scaling.scale.flat, scaling.change))
        if not (scaling.mean.shape == scaling.scale.shape == (len(names),) and positive):
            raise ModelFileError(f"{path}: its scaling does not fit its columns {names}")
        model._fitted = _Fitted(_load_network(path, model, tensors, names), scaling, names, record)
        return model

    def _new_network(self, columns: int) -> Network:
        return Network.build(
            CELLS[self.cell],
            columns,
            self.hidden_size,
            self.num_layers,
            self.cell_options,
            self.seed,
        )

    def _need_fitted(self) -> _Fitted:
        if self._fitted is None:
            raise RuntimeError("this Forecaster is not fitted: call fit or load first")
        return self._fitted

    def _check_settings(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")
        unknown = set(self.cell_options) - _CELL_OPTIONS[self.cell]
        if unknown:
            allowed = ", ".join(sorted(_CELL_OPTIONS[self.cell])) or "nothing"
            raise ValueError(
                f"cell_options of {self.cell} may hold {allowed}, got {', '.join(sorted(unknown))}"
            )
        for name in (
            "hidden_size", "num_layers", "window", "horizon", "epochs", "patience", "batch_size",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        for name in ("learning_rate", "max_norm"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0.0 < value < math.inf):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {self.seed!r}")

    def _check_split(self, values: NDArray[np.float64], split: Split) -> None:
        if not 0 < split.train_end < split.validation_end:
            raise ValueError(f"split must have 0 < train_end < validation_end, got {tuple(split)}")
        fewest = self.first_row + 1
        if split.train_end < fewest:
            raise DataError(
                f"the training part must have at least {fewest} rows (window={self.window}, "
                f"horizon={self.horizon}), got {split.train_end}"
            )
        if len(values) < split.validation_end:
            raise DataError(
                f"series must have at least validation_end={split.validation_end} rows, "
                f"got {len(values)}"
            )


def chronological_split(
    rows: int, window: int, horizon: int = 1, *, validation: float = 0.15, test: float = 0.15
) -> Split:
    """Cut a series of `rows` rows into training, validation and test parts, in this order.

    Parameters
    ----------
    rows, window, horizon : int
        Length of the series; what a forecast reads and how far ahead it is.
    validation, test : float, default 0.15 each
        Shares of the rows.

    Returns
    -------
    Split
        The ends of the first two parts.

    Raises
    ------
    DataError
        If there are too few rows for 10 training windows and 2 rows in each other part.
    """
    test_rows = max(_FEWEST_ROWS, math.floor(rows * test))
    validation_rows = max(_FEWEST_ROWS, math.floor(rows * validation))
    train_end = rows - test_rows - validation_rows
    fewest = window + horizon - 1 + _FEWEST_TRAINING_WINDOWS
    if train_end < fewest:
        needed = math.ceil(fewest / (1.0 - validation - test)) + 2 * _FEWEST_ROWS
        raise DataError(
            f"too few rows: {rows}; a window of {window} and a horizon of {horizon} need about "
            f"{needed}: give more data or a shorter window"
        )
    return Split(train_end, rows - test_rows)


def compare(
    model: Forecaster, series: ArrayLike, start: int, stop: int | None = None
) -> Comparison:
    """Compare a fitted model with both baselines on the rows ``start:stop``.

    Parameters
    ----------
    model : Forecaster
        Fitted.
    series : array_like, shape (rows, columns) or (rows,)
        The whole series, so that windows may begin before `start`.
    start, stop : int
        The rows to compare on; usually ``split.validation_end`` and the end.  The linear
        autoregression is fitted on all rows before `start`: training and validation part.

    Returns
    -------
    Comparison
        Keys: the model's cell, ``"linear AR"``, ``"persistence"``.

    Raises
    ------
    ValueError
        If `start` and `stop` are not rows that can be forecast.
    """
    values = as_series(series)
    stop = len(values) if stop is None else stop
    if not model.first_row < start < stop <= len(values):
        raise ValueError(
            f"rows must satisfy {model.first_row} < start < stop <= {len(values)}, "
            f"got {start} and {stop}"
        )
    part = slice(start - model.first_row, stop - model.first_row)
    forecasts = {
        model.cell: model.predict(values)[part],
        "linear AR": linear_autoregression(values, model.window, model.horizon, start)[part],
        "persistence": persistence(values, model.window)[part],
    }
    truth = values[start:stop, 0]
    return Comparison(forecasts, {name: metrics(each, truth) for name, each in forecasts.items()})


def _settings(model: Forecaster) -> dict[str, Any]:
    names = (entry.name for entry in dataclasses.fields(model) if entry.init)
    return {name: _plain(getattr(model, name)) for name in names}


def _plain(value: Any) -> Any:
    """Turn NumPy numbers and arrays into what JSON knows."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _column_names(columns: Sequence[str] | None, count: int) -> tuple[str, ...]:
    names = tuple(f"column {k}" for k in range(count)) if columns is None else tuple(columns)
    if len(names) != count:
        raise ValueError(f"columns must name the series' {count} columns, got {len(names)} names")
    return names


def _scaling(rows: NDArray[np.float64], horizon: int, names: tuple[str, ...]) -> _Scaling:
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = column_scales(rows)
        changes = rows[horizon:, 0] - rows[:-horizon, 0]
        change = float(np.sqrt(np.mean(np.square(changes))))
    if not (np.isfinite(mean).all() and np.isfinite(scale).all() and math.isfinite(change)):
        raise DataError("the numbers are too large to be standardised; give them in another unit")
    if change <= 1e-12 * abs(mean[0]):
        raise DataError(
            f"the target {names[0]} never changes in the training part (rows 1 to {len(rows)}): "
            "there is nothing to learn"
        )
    return _Scaling(mean, scale, change)


def _standardised(values: NDArray[np.float64], scaling: _Scaling) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        result = ((values - scaling.mean) / scaling.scale).astype(np.float32)
    if not np.isfinite(result).all():
        raise DataError("the series is too far from the training part's range for float32")
    return result


def _target_changes(
    values: NDArray[np.float64], window: int, horizon: int, scaling: _Scaling
) -> NDArray[np.float32]:
    """Compute what the network should give for each window whose target row is in `values`."""
    last = values[window - 1 : len(values) - horizon, 0]
    return ((values[window + horizon - 1 :, 0] - last) / scaling.change).astype(np.float32)


def _load_network(
    path: str | os.PathLike[str],
    model: Forecaster,
    tensors: dict[str, NDArray[np.float32]],
    columns: tuple[str, ...],
) -> Network:
    # The sizes of the file's own tensors are compared first: a damaged header that asks for a
    # huge layer must not be obeyed.
    shapes = {
        "recurrent.weight_hh_l0": (1, model.hidden_size),
        "recurrent.weight_ih_l0": (1, len(columns)),
        "readout.weight": (0, 1),
    }
    for name, (axis, size) in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{path}: there is no tensor {name}")
        if tensor.ndim != 2 or tensor.shape[axis] != size:
            raise ModelFileError(
                f"{path}: tensor {name} must have {size} along axis {axis}, got shape "
                f"{tensor.shape}"
            )
    if f"recurrent.weight_hh_l{model.num_layers - 1}" not in tensors:
        raise ModelFileError(f"{path}: there are no tensors for num_layers={model.num_layers}")
    try:
        network = model._new_network(len(columns))
        for prefix, module in network._asdict().items():
            given = {
                name.removeprefix(f"{prefix}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{prefix}.")
            }
            module.load_state_dict(given)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: {error}") from None
    unknown = [name for name in tensors if name.split(".")[0] not in network._fields]
    if unknown:
        raise ModelFileError(f"{path}: unknown tensors {', '.join(sorted(unknown))}")
    return network
