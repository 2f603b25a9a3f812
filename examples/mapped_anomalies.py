"""Score a file that is larger than what is loaded: anomalies in a long recording.

A network learns to foretell the next sample of four channels. The recording lies in a file that is
mapped into memory; the stream goes over it a piece at a time and carries its state, so that the
score of a sample does not depend on where pieces end, and only a piece is loaded at a time.
"""

from __future__ import annotations

import argparse
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import fastgates as fg

CHANNELS = 4


def recording(first: int, end: int, random: np.random.Generator) -> np.ndarray:
    """Return waves of four channels, with noise."""
    time = np.arange(first, end)[:, None]
    periods = np.array([17.0, 23.0, 31.0, 41.0])
    waves = np.sin(2 * np.pi * time / periods) + 0.5 * np.sin(2 * np.pi * time / 29.0)
    return (waves + 0.05 * random.standard_normal(waves.shape)).astype(np.float32)


def scores(model: fg.SequenceModel, path: Path, piece: int) -> np.ndarray:
    """Return the error of each forecast of the file, read a piece at a time."""
    mapped = np.memmap(path, np.float32, "r").reshape(-1, CHANNELS)
    stream, errors = model.stream(), np.zeros(len(mapped), np.float32)
    for first in range(0, len(mapped) - 1, piece):
        end = min(first + piece, len(mapped) - 1)
        forecast = stream.run(mapped[first:end])
        errors[first + 1 : end + 1] = np.abs(forecast - mapped[first + 1 : end + 1]).max(axis=1)
    return errors


def main(given: Sequence[str] | None = None) -> dict[str, float]:
    """Train, write a file with anomalies, score it; return what was found and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short recording")
    parser.add_argument("--steps", type=int, default=4_000_000, help="of the recording")
    options = parser.parse_args(given)
    steps, piece = (200_000, 1000) if options.quick else (options.steps, 10_000)
    random = np.random.default_rng(0)
    known = recording(0, 6000, random).reshape(60, 100, CHANNELS)
    model = fg.SequenceModel.build("gru", CHANNELS, CHANNELS, 24, return_sequences=True, seed=0)
    trainer = fg.Trainer(
        model, learning_rate=1e-2, batch_size=10, max_epochs=30 if options.quick else 100
    )
    trainer.fit(fg.Sequences(known[:, :-1], known[:, 1:]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.float32"
        places = np.sort(random.choice(np.arange(200, steps - 200, 100), 5, replace=False))
        written = np.memmap(path, np.float32, "w+", shape=(steps, CHANNELS))
        for first in range(0, steps, piece):
            written[first : first + piece] = recording(first, first + piece, random)
        for place in places:
            written[place, random.integers(CHANNELS)] += 3.0
        written.flush()
        del written
        tracemalloc.start()
        errors = scores(model, path, piece)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = path.stat().st_size
        whole = scores(model, path, steps)
    worst = errors.reshape(-1, 100).max(axis=1)  # of each hundred steps
    found = np.argsort(worst)[-5:]
    result = {
        "anomalies found": float(np.isin(places // 100, found).sum()),
        "bytes of the file": float(size),
        "bytes loaded at most": float(peak - errors.nbytes),
        "difference by pieces": float(np.abs(errors - whole).max()),
    }
    for name, value in result.items():
        print(f"{name:<22}{value:14,.0f}")
    return result


if __name__ == "__main__":
    main()
