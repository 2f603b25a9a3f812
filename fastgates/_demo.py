"""``fastgates demo``: the four cells on the sunspot series that come with the package.

Yearly numbers, one year ahead: the classic benchmark of A. S. Weigend, D. E. Rumelhart and
B. A. Huberman, "Generalization by weight-elimination with application to forecasting", NIPS
1990.  Years to 1920 are for fitting (here the last forty of them choose when to stop), the
three periods after it are the test, and the figure of merit is the mean squared error / 1535.
With so few years a training depends on its seed, so the forecasts of several are averaged.

Monthly numbers, twelve months ahead: a longer series, one training for each cell.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgates._compile import compiling_beside
from fastgates._plots import demo_picture
from fastgates.baselines import Metrics, linear_autoregression, metrics, persistence
from fastgates.datasets import load_sunspots
from fastgates.estimators import SequenceForecaster
from fastgates.forecasting import Split

__all__ = ["FULL", "PERIODS", "QUICK", "DemoResult", "DemoSettings", "draw", "report", "run"]

PERIODS = ((1921, 1955), (1956, 1979), (1980, 2008))
"""First and last year of each test period."""

_NORM = 1535.0  # the variance of the yearly numbers 1700-1979, by custom
_PUBLISHED = "0.086-0.135"  # networks on 1921-1955, as the literature reports them
_LABELS = {"rnn": "RNN", "simplified_gru": "SimplifiedGRU", "gru": "GRU", "lstm": "LSTM"}


class DemoSettings(NamedTuple):
    """How much to train: yearly trainings averaged for each cell, and the most epochs."""

    trainings: int
    yearly_epochs: int
    monthly_epochs: int


FULL = DemoSettings(trainings=5, yearly_epochs=300, monthly_epochs=15)
QUICK = DemoSettings(trainings=1, yearly_epochs=8, monthly_epochs=1)


class DemoResult(NamedTuple):
    """What the demo found, by label: a cell, ``"linear AR"`` or ``"persistence"``.

    Attributes
    ----------
    trainings : int
        Yearly trainings averaged for each cell.
    yearly : dict of str to list of float
        Mean squared error / 1535 in each of ``PERIODS``.
    monthly : dict of str to Metrics
        Errors on 1980-2008.
    forecasts : dict of str to (years, values)
        The yearly forecasts of the test periods, of the cells.
    parameters : dict of str to int
        Weights of each yearly model, of the cells.
    seconds : dict of str to float
        Time for both series, compilation included, of the cells.
    """

    trainings: int
    yearly: dict[str, list[float]]
    monthly: dict[str, Metrics]
    forecasts: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    parameters: dict[str, int]
    seconds: dict[str, float]


def run(settings: DemoSettings, verbose: bool = False) -> DemoResult:
    """Train and compare.

    Parameters
    ----------
    settings : DemoSettings
        ``FULL`` or ``QUICK``.
    verbose : bool, default False
        Whether progress bars are shown.

    Returns
    -------
    DemoResult
    """
    result = DemoResult(settings.trainings, {}, {}, {}, {}, {})
    with compiling_beside(list(_LABELS)[:1:-1]):  # the last cell first: it is far from its turn
        for cell, label in _LABELS.items():
            began = time.perf_counter()
            _add_yearly(result, label, cell, settings, verbose)
            _add_monthly(result, label, cell, settings, verbose)
            result.seconds[label] = time.perf_counter() - began
    for label in ("linear AR", "persistence"):
        _add_yearly(result, label, None, settings, verbose)
        _add_monthly(result, label, None, settings, verbose)
    return result


def _add_yearly(
    result: DemoResult, label: str, cell: str | None, settings: DemoSettings, verbose: bool
) -> None:
    time_, values = load_sunspots("yearly")
    years = time_.astype("datetime64[Y]").astype(int) + 1970
    start, end = np.searchsorted(years, (1881, PERIODS[0][0])).tolist()
    window = 20
    if cell is None:
        forecast = _baseline(label, values, window, 1, end)
    else:
        models = [
            SequenceForecaster(
                cell=cell, hidden_size=8, window=window, batch_size=81, learning_rate=1e-2,
                max_epochs=settings.yearly_epochs, patience=30, random_state=seed,
                verbose=f"{label}, yearly" if verbose else False,
            ).fit(values, split=Split(start, end, end))
            for seed in range(settings.trainings)
        ]  # fmt: skip
        forecast = np.mean([model.predict_rolling(values)[:, 0] for model in models], axis=0)
        result.parameters[label] = models[0].model_.parameter_vector.size
    years, truth = years[end:], values[end:]
    forecast = forecast[end - window :][: len(years)]
    error = np.square(forecast - truth) / _NORM
    result.yearly[label] = [
        float(error[(years >= first) & (years <= last)].mean()) for first, last in PERIODS
    ]
    if cell is not None:
        result.forecasts[label] = years, forecast


def _add_monthly(
    result: DemoResult, label: str, cell: str | None, settings: DemoSettings, verbose: bool
) -> None:
    months, values = load_sunspots("monthly")
    ends = np.array(["1921-01", "1980-01"], dtype="datetime64[M]")
    start, end = np.searchsorted(months, ends).tolist()
    window, lead = 48, 12
    if cell is None:
        forecast = _baseline(label, values, window, lead, end)
    else:
        model = SequenceForecaster(
            cell=cell, hidden_size=16, window=window, horizon=[lead], batch_size=128,
            learning_rate=1e-2, max_epochs=settings.monthly_epochs, patience=5, random_state=0,
            verbose=f"{label}, monthly" if verbose else False,
        ).fit(values, split=Split(start, end, end))  # fmt: skip
        forecast = model.predict_rolling(values)[:, 0]
    truth = values[end:]
    forecast = forecast[end - (window + lead - 1) :][: len(truth)]
    result.monthly[label] = metrics(forecast, truth)


def _baseline(
    label: str, values: NDArray[np.float64], window: int, lead: int, end: int
) -> NDArray[np.float64]:
    """Forecasts of every window by persistence or a linear model of the rows before `end`."""
    if label == "persistence":
        return persistence(values, window)
    return linear_autoregression(values, window, lead, end)


def report(result: DemoResult) -> str:
    """Return the tables of the demo, as text."""
    periods = "  ".join(f"{first}-{last}" for first, last in PERIODS)
    lines = [
        "",
        "Yearly sunspot number one year ahead: mean squared error / 1535",
        f"(fitted on 1700-1880, stopped by 1881-1920; mean of {result.trainings} trainings)",
        "",
        f"{'':16}{periods}  parameters",
    ]
    for label, errors in result.yearly.items():
        cells = "  ".join(f"{error:9.3f}" for error in errors)
        count = f"  {result.parameters[label]:10d}" if label in result.parameters else ""
        lines.append(f"{label:16}{cells}{count}")
    lines += [
        f"{'published':16}{_PUBLISHED}  (networks, 1921-1955)",
        "",
        "Monthly sunspot number twelve months ahead, errors on 1980-2008",
        "(fitted on 1749-1920, stopped by 1921-1979)",
        "",
        f"{'':16}{'RMSE':>9}  {'MAE':>9}  {'R2':>9}",
    ]
    for label, (rmse, mae, r2) in result.monthly.items():
        lines.append(f"{label:16}{rmse:9.2f}  {mae:9.2f}  {r2:9.3f}")
    times = ", ".join(f"{label} {seconds:.1f}" for label, seconds in result.seconds.items())
    lines += ["", f"seconds with compilation: {times}"]
    return "\n".join(lines)


def draw(result: DemoResult, path: str | os.PathLike[str]) -> None:
    """Write the picture of the demo; see ``demo_picture`` for the errors it raises."""
    years, values = load_sunspots("yearly")
    demo_picture(path, (years.astype(int) + 1970, values), result.forecasts, result.yearly, PERIODS)
