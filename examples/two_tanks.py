"""Identify a plant of two tanks with overflow, and let the model run free.

A pump fills the upper tank, which empties into the lower one, and that into a reservoir. Each tank
overflows when it is full; a part of the upper one's overflow reaches the lower tank. The level of
the lower tank is measured, with noise. The plant is of the kind of the cascaded tanks benchmark of
Schoukens and Noel, "Three benchmarks addressing open challenges in nonlinear system
identification", 2017; the simulator and its numbers are our own::

    dx1/dt = -k1 sqrt(x1) + k4 u                     x1 <= 1, what is above overflows
    dx2/dt =  k2 sqrt(x1) - k3 sqrt(x2) + k5 w       w the overflow of x1;  x2 <= 1

The model reads the input and its own last output. It is trained one step ahead (teacher), and
running free with gradients through the loop; what counts is the error of a free run over the whole
test series from its first levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from _common import arguments, print_table, progress
from numba import njit

import fastgates as fg

SAMPLE_TIME, SUBSTEPS = 1.0, 20  # seconds; Euler steps in each
NOISE = 0.003  # of the measured level, which is between 0 and 1
CONTEXT = 20  # true levels that a free run starts from
LENGTH = 200  # of the series that are trained on


@njit
def simulate(u, k1, k2, k3, k4, k5, seconds, substeps):
    """Return the levels of both tanks (time, 2) for pump voltages (time,), from empty tanks."""
    levels = np.empty((u.size, 2))
    x1, x2 = 0.0, 0.0
    step = seconds / substeps
    for t in range(u.size):
        for _ in range(substeps):
            out1, out2 = math.sqrt(x1), math.sqrt(x2)
            x1 += step * (k4 * u[t] - k1 * out1)
            over = max(0.0, x1 - 1.0)
            x1 = max(0.0, x1 - over)
            x2 += step * (k2 * out1 - k3 * out2) + k5 * over
            x2 = min(1.0, max(0.0, x2))
        levels[t, 0], levels[t, 1] = x1, x2
    return levels


def record(random: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and measured levels, each (steps, 1), of one run of the plant."""
    u = np.empty(steps)
    t = 0
    while t < steps:  # the operator changes the voltage now and then
        hold = int(random.integers(10, 60))
        u[t : t + hold] = random.uniform(0.0, 1.0)
        t += hold
    levels = simulate(u, 0.08, 0.08, 0.09, 0.11, 0.5, SAMPLE_TIME, SUBSTEPS)
    measured = levels[:, 1] + NOISE * random.standard_normal(steps)
    return u[:, None], measured[:, None]


def pieces(u: np.ndarray, y: np.ndarray) -> fg.Sequences:
    """Cut a long run into overlapping series for training."""
    cut = [fg.training.windows(each, LENGTH, stride=LENGTH // 4) for each in (u, y)]
    return fg.Sequences(cut[0], cut[1])


def linear_model(u: np.ndarray, y: np.ndarray, order: int = 4) -> np.ndarray:
    """Return the coefficients of an ARX model by least squares: past levels, inputs, a constant."""
    rows = [
        np.r_[y[t - order : t, 0], u[t - order + 1 : t + 1, 0], 1.0] for t in range(order, len(y))
    ]
    return np.linalg.lstsq(np.array(rows), y[order:, 0], rcond=None)[0]


def run_linear(coefficients: np.ndarray, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Let the ARX model run free from the first CONTEXT levels."""
    order = (coefficients.size - 1) // 2
    levels = list(y[:CONTEXT, 0])
    for t in range(CONTEXT, len(u)):
        row = np.r_[levels[t - order : t], u[t - order + 1 : t + 1, 0], 1.0]
        levels.append(float(row @ coefficients))
    return np.array(levels[CONTEXT:])[:, None]


def main(given: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run the example and return the errors of free runs."""
    options = arguments(__doc__.splitlines()[0], given)
    random = np.random.default_rng(options.seed)
    steps = 800 if options.quick else 6000
    (u, y), (u_stop, y_stop), (u_test, y_test) = (
        record(random, n) for n in (steps, steps // 4, 1000)
    )
    truth = y_test[CONTEXT:]

    def free_run(run: np.ndarray) -> list[float]:
        error = float(np.sqrt(np.mean(np.square(run - truth))))
        return [error, 100 * (1 - error / float(truth.std()))]

    runs = {"linear ARX": run_linear(linear_model(u, y), u_test, y_test)}
    for training in ("teacher", "free"):
        model = fg.FreeRunModel.build(
            "gru", output_size=1, input_size=1, hidden_size=16, context=CONTEXT,
            training=training, seed=options.seed,
        )  # fmt: skip
        trainer = fg.Trainer(
            model, learning_rate=5e-3, clip_norm=1.0, batch_size=16, seed=options.seed,
            max_epochs=2 if options.quick else 60, patience=20, progress=progress(),
        )  # fmt: skip
        trainer.fit(pieces(u, y), pieces(u_stop, y_stop))
        runs[f"GRU, {training}"] = model.predict(u_test[None], context=y_test[None, :CONTEXT])[0]
    errors = {name: free_run(run) for name, run in runs.items()}
    print_table(f"free run over {len(truth)} s", ["RMSE", "fit %"], errors)
    if options.plot:
        draw(options.plot, truth, runs)
    return errors


def draw(path: str, truth: np.ndarray, runs: dict[str, np.ndarray]) -> None:
    """Draw the first 400 s of the free runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(truth[:400], color="black", linewidth=1.2, label="measured")
    for name, run in runs.items():
        axes.plot(run[:400], linewidth=1.0, label=name)
    axes.set(xlabel="s", ylabel="level of the lower tank", ylim=(0, 1.3))
    axes.legend(frameon=False, ncols=2)
    figure.savefig(path)


if __name__ == "__main__":
    main()
