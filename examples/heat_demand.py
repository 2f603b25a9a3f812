"""Forecast a heat demand a day ahead, knowing the weather forecast and the calendar.

The demand of a (simulated) district follows the outdoor temperature with the inertia of its
buildings, the hour of the day and the weekend. What is known ahead, the temperature's forecast and
the calendar, goes to the decoder step by step (`x_future`); the encoder reads three days of demand
and the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from _common import arguments, print_table, progress

import fastgates as fg
from fastgates.training import windows

PAST, HORIZON = 72, 24


def simulate(days: int, seed: int) -> np.ndarray:
    """Return hours x (demand, temperature, sin and cos of the hour, weekend)."""
    random = np.random.default_rng(seed)
    hours = np.arange(24 * days)
    day, hour = hours // 24, hours % 24
    season = 8 - 9 * np.cos(2 * np.pi * hours / (24 * 365))
    weather, value = np.empty(hours.size), 0.0
    for t in range(hours.size):  # fronts that last for days
        value = 0.985 * value + 0.75 * random.standard_normal()
        weather[t] = value
    temperature = season + weather + 3 * np.sin(2 * np.pi * (hour - 9) / 24)
    weekend = (day % 7 >= 5).astype(float)
    habits = 4 * np.exp(-((hour - 7) ** 2) / 6) + 3 * np.exp(-((hour - 19) ** 2) / 10)
    felt, demand = temperature[0], np.empty(hours.size)
    for t in range(hours.size):
        felt += 0.08 * (temperature[t] - felt)  # the walls
        heating = max(0.0, 18.0 - felt)
        demand[t] = 2 * heating + habits[t] * (1 - 0.4 * weekend[t])
    demand += 0.5 * random.standard_normal(hours.size)
    angle = 2 * np.pi * hour / 24
    return np.stack([demand, temperature, np.sin(angle), np.cos(angle), weekend], axis=1)


def main(given: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run the example and return the errors by method."""
    options = arguments(__doc__.splitlines()[0], given)
    table = simulate(120 if options.quick else 365, options.seed)
    cut = windows(table, PAST + HORIZON, stride=6)  # (n, PAST + HORIZON, 5), a view
    x, y, future = cut[:, :PAST], cut[:, PAST:, :1], cut[:, PAST:, 1:]
    test = len(cut) * 4 // 5
    stop = test * 7 // 8
    gap = (PAST + HORIZON) // 6  # windows that share hours with the next part
    parts = np.arange(stop - gap), np.arange(stop, test - gap), np.arange(test, len(cut))

    def errors(prediction: np.ndarray) -> list[float]:
        difference = prediction - y[parts[2]]
        return [
            float(np.sqrt(np.mean(np.square(difference)))),
            float(np.mean(np.abs(difference))),
        ]

    found = {"the day before": errors(x[parts[2], -HORIZON:, :1])}
    for name, known in (("GRU, the past only", 0), ("GRU, weather and calendar known", 4)):
        model = fg.EncoderDecoder.build(
            "gru", 5, 1, HORIZON, future_size=known, hidden_size=32, seed=options.seed
        )
        ahead = future if known else None
        data = fg.Sequences(x, y, x_future=ahead)
        trainer = fg.Trainer(
            model, learning_rate=3e-3, clip_norm=1.0, seed=options.seed,
            max_epochs=2 if options.quick else 40, patience=6, progress=progress(),
        )  # fmt: skip
        trainer.fit(data.take(parts[0]), data.take(parts[1]))
        of_test = None if ahead is None else ahead[parts[2]]
        found[name] = errors(model.predict(x[parts[2]], x_future=of_test))
    print_table("a day ahead, every hour", ["RMSE", "MAE"], found)
    return found


if __name__ == "__main__":
    main()
