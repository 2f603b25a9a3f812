"""Who is speaking? Runs of twelve channels and unequal length, nine speakers.

The data (Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through
regions", 1999: 270 runs to train on and 370 to test, 7 to 29 steps of 12 coefficients) come inside
the package aeon; they are read from there by path, without importing it::

    pip install --no-deps aeon

A sequence counts until its end (`lengths`), nothing is padded for the network.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _common import arguments, print_table, progress

import fastgates as fg

CELLS = ("rnn", "simplified_gru", "gru", "lstm")


def folder() -> Path | None:
    """Return where the data lie, or None where aeon is not installed."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "JapaneseVowels"
    return path if path.is_dir() else None


def read_ts(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Read a .ts file: runs, each (time, channels), and their labels.

    A line of data is ``channel:channel:...:label``, a channel numbers separated by commas.
    """
    runs, labels, data = [], [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if data and line.strip():
            *channels, label = line.strip().split(":")
            runs.append(np.array([[float(v) for v in c.split(",")] for c in channels]).T)
            labels.append(label)
        data = data or line.strip().lower() == "@data"
    return runs, labels


def main(given: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run the example and return accuracies in percent."""
    options = arguments(__doc__.splitlines()[0], given)
    where = folder()
    if where is None:
        raise SystemExit("this example reads data of aeon: pip install --no-deps aeon")
    (x, labels), (x_test, labels_test) = (
        read_ts(where / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST")
    )
    classes = sorted(set(labels))
    data, test = (
        fg.Sequences.from_lists(runs, [classes.index(name) for name in names])
        for runs, names in ((x, labels), (x_test, labels_test))
    )
    found = {}
    for cell in CELLS[2:3] if options.quick else CELLS:
        model = fg.SequenceModel.build(
            cell, 12, len(classes), hidden_size=64, loss="cross_entropy", seed=options.seed,
            initialization="orthogonal" if cell == "rnn" else None,
        )  # fmt: skip
        trainer = fg.Trainer(
            model, learning_rate=3e-3, clip_norm=1.0, batch_size=30, seed=options.seed,
            max_epochs=2 if options.quick else 60, progress=progress(),
        )  # fmt: skip
        trainer.fit(data)
        right = [
            np.mean(model.predict(part.x, lengths=part.lengths).argmax(axis=1) == part.y)
            for part in (data, test)
        ]
        found[cell] = [100 * float(share) for share in right]
    print_table("accuracy %", ["training", "test"], found)
    return found


if __name__ == "__main__":
    main()
