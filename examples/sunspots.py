"""Yearly sunspots, one year ahead and several: the four cells beside persistence.

One step: a network reads 20 years and says the next one, fitted on 1700-1880, the epoch chosen by
1881-1920, tested on three periods, as in Weigend, Huberman and Rumelhart, "Predicting the future: a
connectionist approach", 1990; errors are mean squares divided by 1535, the variance they used.
Several steps: an encoder reads the years, a decoder makes the next eight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from _common import arguments, print_table, progress

import fastgates as fg
from fastgates.datasets import load_sunspots
from fastgates.training import windows

WINDOW, HORIZON = 20, 8
VARIANCE = 1535.0
PERIODS = {"1921-55": (1921, 1955), "1956-79": (1956, 1979), "1980-2008": (1980, 2008)}
CELLS = ("rnn", "simplified_gru", "gru", "lstm")


def rows_of(years: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return the numbers of the windows whose (first) target lies in these years."""
    return np.flatnonzero((years >= first) & (years <= last))


def train(model: fg.models.Model, data: fg.Sequences, years: np.ndarray, options) -> None:
    """Fit on targets up to 1880, keep the epoch with the least error on 1881-1920."""
    trainer = fg.Trainer(
        model, learning_rate=3e-3, clip_norm=1.0, batch_size=16, seed=options.seed,
        max_epochs=3 if options.quick else 300, patience=40, progress=progress(),
    )  # fmt: skip
    last = 1880 - (HORIZON - 1 if data.y.ndim == 3 else 0)  # all targets lie before 1881
    trainer.fit(data.take(rows_of(years, 0, last)), data.take(rows_of(years, 1881, 1920)))


def one_step(series: np.ndarray, first_year: int, options) -> dict[str, list[float]]:
    """Return mean squared errors / 1535 by method, for each period."""
    x = windows(series[:-1], WINDOW)  # (n, WINDOW, 1), a view
    y = series[WINDOW:]
    years = first_year + WINDOW + np.arange(len(y))
    data = fg.Sequences(x, y)

    def errors(prediction: np.ndarray) -> list[float]:
        squares = np.square(prediction - y)[:, 0] / VARIANCE
        return [float(squares[rows_of(years, *period)].mean()) for period in PERIODS.values()]

    found = {"persistence": errors(x[:, -1])}
    for cell in CELLS:
        model = fg.SequenceModel.build(cell, 1, 1, hidden_size=8, seed=options.seed)
        train(model, data, years, options)
        found[cell] = errors(model.predict(x))
    return found


def several_steps(series: np.ndarray, first_year: int, options) -> dict[str, list[float]]:
    """Return root mean squared errors of 1921-2008 by method, for each step of the horizon."""
    both = windows(series, WINDOW + HORIZON)
    x, y = both[:, :WINDOW], both[:, WINDOW:]
    years = first_year + WINDOW + np.arange(len(y))
    test = rows_of(years, 1921, 2008)

    def errors(prediction: np.ndarray) -> list[float]:
        return list(np.sqrt(np.square(prediction - y[test])[..., 0].mean(axis=0)))

    found = {
        "persistence": errors(np.repeat(x[test, -1:], HORIZON, axis=1)),
        "mean": errors(np.full_like(y[test], series[: 1921 - first_year].mean())),
    }
    for cell in ("gru", "lstm"):
        model = fg.EncoderDecoder.build(cell, 1, 1, HORIZON, hidden_size=16, seed=options.seed)
        train(model, fg.Sequences(x, y), years, options)
        found[cell] = errors(model.predict(x[test]))
    return found


def main(given: Sequence[str] | None = None) -> dict[str, dict[str, list[float]]]:
    """Run the example and return its errors."""
    options = arguments(__doc__.splitlines()[0], given)
    time, numbers = load_sunspots("yearly")
    series, first_year = numbers[:, None], int(str(time[0]))
    near = one_step(series, first_year, options)
    print_table("one year ahead, MSE / 1535", list(PERIODS), near)
    far = several_steps(series, first_year, options)
    steps = [f"{step + 1}" for step in range(HORIZON)]
    print_table("RMSE by years ahead, 1921-2008", steps, far)
    if options.plot:
        draw(options.plot, far)
    return {"one step": near, "several steps": far}


def draw(path: str, errors: dict[str, list[float]]) -> None:
    """Draw the error against the horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in errors.items():
        axes.plot(range(1, HORIZON + 1), values, marker="o", label=name)
    axes.set(xlabel="years ahead", ylabel="RMSE of the sunspot number")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
