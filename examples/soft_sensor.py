"""A soft sensor in a real-time loop: an estimate a step, and how long each took.

The concentration in a stirred tank is dear to measure; temperature, flow and valve are not. A GRU
learns the concentration from them. Then it runs in a loop as it would in a control room, a stream
that is fed one sample after the other, and every step is timed: median, 99th percentile, maximum.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numba
import numpy as np

import fastgates as fg


@numba.njit
def tank(steps, random):
    """Simulate the tank: rows of flow, valve, temperature, and concentration last."""
    rows = np.empty((steps, 4))
    flow, valve, temperature, concentration = 1.0, 0.5, 320.0, 0.5
    for t in range(steps):
        if t % 40 == 0:
            flow, valve = random.uniform(0.5, 1.5), random.uniform(0.0, 1.0)
        rate = 0.3 * concentration * np.exp((temperature - 320.0) / 30.0)
        concentration += 0.1 * (flow * (1.0 - concentration) - rate)
        temperature += 0.1 * (flow * (310.0 - temperature) + 60.0 * rate - 20.0 * (valve - 0.5))
        rows[t] = flow, valve, temperature + 0.1 * random.normal(0.0, 1.0), concentration
    return rows


def main(given: Sequence[str] | None = None) -> dict[str, float]:
    """Train, run, and return the error and the latencies in microseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few epochs and steps")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the loop")
    options = parser.parse_args(given)
    steps = 2000 if options.quick else options.steps
    random = np.random.default_rng(0)
    table = tank(20_000, random).reshape(100, 200, 4).astype(np.float32)
    model = fg.SequenceModel.build("gru", 3, 1, 32, return_sequences=True, seed=0)
    trainer = fg.Trainer(
        model, learning_rate=1e-2, batch_size=10, max_epochs=3 if options.quick else 60
    )
    trainer.fit(fg.Sequences(table[..., :3], table[..., 3:]))

    live = tank(steps, random).astype(np.float32)
    samples, truth = np.ascontiguousarray(live[:, :3]), live[:, 3]
    stream, estimate = model.stream(), np.empty(1, np.float32)
    estimates, took = np.empty(steps, np.float32), np.empty(steps)
    clock = time.perf_counter_ns
    stream.step(samples[0])
    stream.reset()
    for t in range(steps):
        began = clock()
        stream.step(samples[t], out=estimate)
        took[t] = clock() - began
        estimates[t] = estimate[0]
    p50, p99 = np.percentile(took, [50, 99]) / 1000
    result = {
        "error": float(np.sqrt(np.mean((estimates[100:] - truth[100:]) ** 2))),
        "spread": float(truth.std()),
        "p50": float(p50),
        "p99": float(p99),
        "max": float(took.max() / 1000),
    }
    print(f"root mean square error {result['error']:.4f} of a spread of {result['spread']:.4f}")
    print(f"{steps} steps: p50 {p50:.2f} us, p99 {p99:.2f} us, max {result['max']:.1f} us")
    edges = np.geomspace(max(took.min(), 100.0), took.max() * 1.001, 13)
    counts, _ = np.histogram(took, edges)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "#" * int(np.ceil(50 * count / counts.max()))
        print(f"{low / 1000:9.2f} - {high / 1000:9.2f} us {count:9d} {bar}")
    return result


if __name__ == "__main__":
    main()
