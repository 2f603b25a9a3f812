"""``fastgates demo``: the four cells on the sunspot series that come with the package.

Yearly numbers, one year ahead: the classic benchmark of A. S. Weigend, D. E. Rumelhart and
B. A. Huberman, "Generalization by weight-elimination with application to forecasting", NIPS
1990.  Years to 1920 are for fitting (here the last forty of them choose when to stop), the
three periods after it are the test, and the figure of merit is the mean squared error / 1535.
Monthly numbers, one year ahead, are a longer series with more to learn from.

Each cell is trained from several seeds and their forecasts are averaged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgates._plots import demo_picture
from fastgates.baselines import Metrics, linear_autoregression, metrics, persistence
from fastgates.datasets import load_sunspots
from fastgates.forecasting import CELLS, Forecaster, Progress, Split

__all__ = ["FULL", "PERIODS", "QUICK", "DemoResult", "DemoSettings", "draw", "report", "run"]

PERIODS = ((1921, 1955), (1956, 1979), (1980, 2008))
"""First and last year of each test period."""

_NORM = 1535.0  # the variance of the yearly numbers 1700-1979, by custom
_PUBLISHED = "0.086-0.135"  # networks on 1921-1955, as the literature reports them
_LABELS = {"rnn": "RNN", "simplified_gru": "SimplifiedGRU", "gru": "GRU", "lstm": "LSTM"}

ProgressBar = Callable[[str], AbstractContextManager[Callable[[Progress], None]]]


class DemoSettings(NamedTuple):
    """How much to train: seeds averaged for each cell, and the most epochs."""

    seeds: int
    epochs: int


FULL = DemoSettings(seeds=5, epochs=150)
QUICK = DemoSettings(seeds=1, epochs=8)


class DemoResult(NamedTuple):
    """What the demo found.

    Attributes
    ----------
    seeds : int
        Trainings averaged for each cell.
    parameters : dict of str to int
        Weights of each yearly model, by label.
    yearly : dict of str to list of float
        Mean squared error / 1535 in each of ``PERIODS``, by label.
    monthly : dict of str to Metrics
        Errors on 1980-2008, by label.
    forecasts : dict of str to (years, values)
        The yearly forecasts of the test periods, by label.
    seconds : dict of str to float
        Time by label, compilation included.
    """

    seeds: int
    parameters: dict[str, int]
    yearly: dict[str, list[float]]
    monthly: dict[str, Metrics]
    forecasts: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    seconds: dict[str, float]


def run(settings: DemoSettings, progress_bar: ProgressBar) -> DemoResult:
    """Train and compare.

    Parameters
    ----------
    settings : DemoSettings
        ``FULL`` or ``QUICK``.
    progress_bar : callable
        Given a label, a context manager around a progress callback.

    Returns
    -------
    DemoResult
    """
    years, values = load_sunspots("yearly")
    year = years.astype(int) + 1970
    rows = {int(each): row for row, each in enumerate(year)}
    result = DemoResult(settings.seeds, {}, {}, {}, {}, {})

    model = _yearly_model("gru", settings)
    split = Split(rows[1881], rows[1921])
    first, test = model.first_row, slice(rows[PERIODS[0][0]], None)

    def add(label: str, forecast: NDArray[np.float64]) -> None:
        error = np.square(forecast[: len(values) - first] - values[first:]) / _NORM
        result.yearly[label] = [
            float(error[rows[a] - first : rows[b] + 1 - first].mean()) for a, b in PERIODS
        ]

    for cell in CELLS:
        label, began = _LABELS[cell], time.perf_counter()
        model = _yearly_model(cell, settings)
        with progress_bar(label) as progress:
            forecast = _ensemble(model, values, split, settings.seeds, progress)
        add(label, forecast)
        result.forecasts[label] = year[test], forecast[test.start - first : len(values) - first]
        result.parameters[label] = model.parameter_count
        result.seconds[label] = time.perf_counter() - began
    add("linear AR", linear_autoregression(values, model.window, model.horizon, split[1]))
    add("persistence", persistence(values, model.window))

    began = time.perf_counter()
    _monthly(settings, progress_bar, result)
    result.seconds["monthly"] = time.perf_counter() - began
    return result


def _monthly(settings: DemoSettings, progress_bar: ProgressBar, result: DemoResult) -> None:
    months, values = load_sunspots("monthly")
    rows = {str(each): row for row, each in enumerate(months)}
    split = Split(rows["1921-01"], rows["1980-01"])
    model = Forecaster(
        cell="gru", hidden_size=16, window=132, horizon=12, epochs=settings.epochs // 10 + 1,
        patience=5, batch_size=64, learning_rate=3e-3,
    )  # fmt: skip
    with progress_bar("GRU, monthly") as progress:
        forecasts = {"GRU": _ensemble(model, values, split, 1, progress)}
    forecasts["linear AR"] = linear_autoregression(values, model.window, model.horizon, split[1])
    forecasts["persistence"] = persistence(values, model.window)
    part = slice(split.validation_end - model.first_row, len(values) - model.first_row)
    for label, forecast in forecasts.items():
        result.monthly[label] = metrics(forecast[part], values[split.validation_end :])


def _yearly_model(cell: str, settings: DemoSettings) -> Forecaster:
    return Forecaster(
        cell=cell, hidden_size=8, window=12, epochs=settings.epochs, patience=30,
        batch_size=32, learning_rate=5e-3,
    )  # fmt: skip


def _ensemble(
    model: Forecaster,
    values: NDArray[np.float64],
    split: Split,
    seeds: int,
    progress: Callable[[Progress], None],
) -> NDArray[np.float64]:
    """Mean forecast of trainings from seeds 0, 1, ...; `model` is left as the last of them."""
    total: Any = 0.0
    for model.seed in range(seeds):
        total = total + model.fit(values, split, progress=progress).predict(values)
    mean: NDArray[np.float64] = total / seeds
    return mean


def report(result: DemoResult) -> str:
    """The tables of the demo, as text."""
    names = "  ".join(f"{first}-{last}" for first, last in PERIODS)
    lines = [
        "",
        "Yearly sunspot number one year ahead: mean squared error / 1535",
        f"(fitted on 1700-1880, stopped by 1881-1920; mean of {result.seeds} trainings)",
        "",
        f"{'':16}{names}  parameters  seconds",
    ]
    for label, errors in result.yearly.items():
        cells = "  ".join(f"{error:9.3f}" for error in errors)
        tail = ""
        if label in result.parameters:
            tail = f"  {result.parameters[label]:10d}  {result.seconds[label]:7.1f}"
        lines.append(f"{label:16}{cells}{tail}")
    lines += [
        f"{'literature':16}{_PUBLISHED:>11}",
        "",
        "Monthly sunspot number twelve months ahead, 1980-2008",
        "(fitted on 1749-1920, stopped by 1921-1979)",
        "",
        f"{'':16}{'RMSE':>9}  {'MAE':>9}  {'R2':>9}",
    ]
    for label, (rmse, mae, r2) in result.monthly.items():
        lines.append(f"{label:16}{rmse:9.2f}  {mae:9.2f}  {r2:9.3f}")
    return "\n".join(lines)


def draw(result: DemoResult, path: str | os.PathLike[str]) -> None:
    """Write the picture of the demo; see ``demo_picture`` for the errors it raises."""
    years, values = load_sunspots("yearly")
    demo_picture(path, (years.astype(int) + 1970, values), result.forecasts, result.yearly, PERIODS)
