"""A plant that is half known: an ODE integrated in compiled code with a GRU as one of its terms.

A mass on a spring is pushed about on a surface with friction. The friction depends on the past of
the movement (Dahl's model, which keeps a state of its own); mass, spring and force are known. A GRU
learns the friction from the velocity, and takes its place in the simulation: once each control step
inside ``@njit``, beside a Runge-Kutta method of fourth order.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numba
import numpy as np

import fastgates as fg
from fastgates import jit

MASS, SPRING, DT = 1.0, 2.0, 0.02
STIFFNESS, COULOMB = 40.0, 1.5  # of the friction


@numba.njit
def accelerate(position, force, friction):
    """Return the acceleration of the known part."""
    return (force - SPRING * position - friction) / MASS


@numba.njit
def advance(position, velocity, force, friction):
    """Integrate the known part over a step with constant force and friction (Runge-Kutta 4)."""
    h = DT
    a1, v1 = accelerate(position, force, friction), velocity
    a2, v2 = accelerate(position + h / 2 * v1, force, friction), velocity + h / 2 * a1
    a3, v3 = accelerate(position + h / 2 * v2, force, friction), velocity + h / 2 * a2
    a4, v4 = accelerate(position + h * v3, force, friction), velocity + h * a3
    position += h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
    velocity += h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)
    return position, velocity


@numba.njit
def plant(forces):
    """Simulate the plant as it is: rows of position, velocity, friction."""
    rows = np.empty((len(forces), 3))
    position, velocity, friction = 0.0, 0.0, 0.0
    for t in range(len(forces)):
        rows[t] = position, velocity, friction
        friction += DT * STIFFNESS * velocity * (1 - friction / COULOMB * np.sign(velocity))
        position, velocity = advance(position, velocity, forces[t], friction)
    return rows


@numba.njit(nogil=True)
def hybrid(handle, state, forces):
    """Simulate the known part with the network's friction; allocates nothing in its loop."""
    rows = np.empty((len(forces), 3))
    x, y = np.empty(1, np.float32), np.empty(1, np.float32)
    position, velocity, friction = 0.0, 0.0, 0.0
    for t in range(len(forces)):
        rows[t] = position, velocity, friction
        x[0] = velocity
        jit.step(handle, x, state, y)
        friction = float(y[0])
        position, velocity = advance(position, velocity, forces[t], friction)
    return rows


def pushes(steps: int, random: np.random.Generator) -> np.ndarray:
    """Return a force that changes every half second."""
    return np.repeat(random.uniform(-4, 4, -(-steps // 25)), 25)[:steps]


def main(given: Sequence[str] | None = None) -> dict[str, float]:
    """Learn the friction, simulate, and return the errors of the position (root mean square)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few epochs, to see that it runs")
    options = parser.parse_args(given)
    random = np.random.default_rng(0)
    recorded = np.stack([plant(pushes(400, random)) for _ in range(20 if options.quick else 100)])
    velocity = recorded[:, :-1, 1:2].astype(np.float32)
    friction = recorded[:, 1:, 2:].astype(np.float32)  # that acts during the step
    model = fg.SequenceModel.build("gru", 1, 1, 16, return_sequences=True, seed=0)
    epochs = 20 if options.quick else 150
    trainer = fg.Trainer(model, learning_rate=1e-2, batch_size=10, max_epochs=epochs, clip_norm=1.0)
    trainer.fit(fg.Sequences(velocity, friction))

    handle = model.jit_handle()
    forces = pushes(1000, random)
    truth = plant(forces)
    simulated = hybrid(handle, jit.new_state(handle), forces)
    without = np.empty_like(truth)
    position, speed = 0.0, 0.0
    for t, force in enumerate(forces):
        without[t] = position, speed, 0.0
        position, speed = advance(position, speed, force, 0.0)
    errors = {
        "without friction": float(np.sqrt(np.mean((without[:, 0] - truth[:, 0]) ** 2))),
        "hybrid": float(np.sqrt(np.mean((simulated[:, 0] - truth[:, 0]) ** 2))),
        "size of the movement": float(truth[:, 0].std()),
    }
    for name, value in errors.items():
        print(f"{name:<22}{value:8.4f}")
    return errors


if __name__ == "__main__":
    main()
