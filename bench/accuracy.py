"""Train with fastgates and with PyTorch by the same recipe, and compare accuracy and time.

    python bench/accuracy.py                    # five seeds of all tasks: some ten minutes
    python bench/accuracy.py --quick            # one seed, few epochs: a minute
    python bench/accuracy.py --tasks adding --json run.json     # may be broken off and run again
    python bench/accuracy.py --tasks --json run.json --write docs/training.md

Both train a GRU of the same equations (the reset after the product) with a linear read-out of the
last valid state, from PyTorch's initial distribution (each from its own numbers), on the same
minibatches in the same order, with Adam and clipping by norm, on one thread; they take turns. Time
is the CPU time of the training loop. JapaneseVowels and ItalyPowerDemand are read from the
installed package aeon (``pip install --no-deps aeon``) and left out without it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import fastgates as fg
from fastgates.datasets import load_sunspots
from fastgates.tasks import Adding


class Recipe(NamedTuple):
    """What both sides do."""

    hidden_size: int
    batch_size: int
    epochs: int
    learning_rate: float
    classes: int = 0  # 0: regression


class Part(NamedTuple):
    """Scaled sequences; `lengths` None where all are of one length."""

    x: np.ndarray  # (N, T, C)
    y: np.ndarray  # (N, 1) or labels (N,)
    lengths: np.ndarray | None = None


class Outcome(NamedTuple):
    """What one training gave: the figure of the test, and seconds."""

    figure: float
    seconds: float


class Task(NamedTuple):
    """A data set with its recipe, and what its figure is."""

    name: str
    figure: str
    recipe: Recipe
    parts: Callable[[bool], tuple[Part, Part] | None]  # to train, to test
    lower_is_better: bool


# -- Data ------------------------------------------------------------------------------------------


def sunspots(quick: bool) -> tuple[Part, Part]:
    """One year ahead from twelve; trained on 1712-1920, tested on 1921-55."""
    number = load_sunspots().number
    mean, scale = number[:221].mean(), number[:221].std()
    scaled = ((number - mean) / scale).astype(np.float32)
    x = fg.training.windows(scaled, 12)[:-1]  # (297, 12, 1), the first for 1712
    y = scaled[12:, None]
    return Part(x[:209], y[:209]), Part(x[209:244], y[209:244])


def from_aeon(name: str) -> tuple[Part, Part] | None:
    """Read a data set that aeon ships, scaled by the training part; None without aeon."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name
    read = [_read_ts(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")]
    classes = sorted({label for _, labels in read for label in labels})
    rows = np.concatenate(read[0][0])
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    parts = []
    for runs, labels in read:
        data = fg.Sequences.from_lists([(run - mean) / scale for run in runs])
        unequal = data.lengths.min() < data.x.shape[1]
        parts.append(
            Part(
                data.x.astype(np.float32),
                np.array([classes.index(label) for label in labels]),
                data.lengths if unequal else None,
            )
        )
    return parts[0], parts[1]


def _read_ts(path: Path) -> tuple[list[np.ndarray], list[str]]:
    runs, labels, started = [], [], False
    for line in path.read_text().splitlines():
        if started and line.strip():
            *channels, label = line.strip().split(":")
            runs.append(np.array([[float(v) for v in each.split(",")] for each in channels]).T)
            labels.append(label)
        started = started or line.strip().lower() == "@data"
    return runs, labels


def adding(length: int, count: int, seed: int) -> Part:
    batch = Adding().batch(np.random.default_rng(seed), count, length)
    return Part(batch.x, batch.target)


# -- Both sides ------------------------------------------------------------------------------------


class Ours:
    """fastgates' side."""

    name = "fastgates"

    def __init__(self, recipe: Recipe, features: int, seed: int) -> None:
        self.model = fg.SequenceModel.build(
            "gru_reset_after", features, recipe.classes or 1, recipe.hidden_size, seed=seed,
            loss="cross_entropy" if recipe.classes else "mse",
            scale_inputs=False, scale_outputs=False,
        )  # fmt: skip
        self.trainer = fg.Trainer(
            self.model, learning_rate=recipe.learning_rate, clip_norm=1.0,
            batch_size=recipe.batch_size, seed=seed,
        )  # fmt: skip

    def train(self, part: Part, epochs: int) -> None:
        self.trainer.fit(fg.Sequences(part.x, part.y, lengths=part.lengths), epochs=epochs)

    def predict(self, part: Part) -> np.ndarray:
        return self.model.predict(part.x, lengths=part.lengths)


class Theirs:
    """PyTorch's side."""

    name = "PyTorch"

    def __init__(self, recipe: Recipe, features: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.seed, self.epoch = recipe, seed, 0
        self.layer = torch.nn.GRU(features, recipe.hidden_size, batch_first=True)
        self.readout = torch.nn.Linear(recipe.hidden_size, recipe.classes or 1)
        self.parameters = [*self.layer.parameters(), *self.readout.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, recipe.learning_rate)
        self.loss = torch.nn.CrossEntropyLoss() if recipe.classes else torch.nn.MSELoss()

    def _output(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        # Padded and gathered: several times as fast as a PackedSequence, and the same numbers.
        states, last = self.layer(x)
        if lengths is not None:
            return self.readout(states[torch.arange(len(x)), lengths - 1])
        return self.readout(last[0])

    def train(self, part: Part, epochs: int) -> None:
        x, y = torch.tensor(part.x), torch.tensor(part.y)
        lengths = None if part.lengths is None else torch.tensor(part.lengths)
        for _ in range(epochs):
            self.epoch += 1
            random = np.random.default_rng([self.seed, self.epoch])
            order = torch.tensor(random.permutation(len(x)))
            for rows in order.split(self.recipe.batch_size):
                self.optimizer.zero_grad()
                ends = None if lengths is None else lengths[rows]
                self.loss(self._output(x[rows], ends), y[rows]).backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimizer.step()

    def predict(self, part: Part) -> np.ndarray:
        with torch.no_grad():
            ends = None if part.lengths is None else torch.tensor(part.lengths)
            return self._output(torch.tensor(part.x), ends).numpy()


SIDES = (Ours, Theirs)


def fixed(task: Task, side: type, seed: int, quick: bool) -> Outcome:
    """Train for the epochs of the recipe."""
    parts = task.parts(quick)
    assert parts is not None
    train, test = parts
    one = side(task.recipe, train.x.shape[2], seed)
    began = time.process_time()
    one.train(train, max(1, task.recipe.epochs // 10) if quick else task.recipe.epochs)
    seconds = time.process_time() - began
    output = one.predict(test)
    if task.recipe.classes:
        return Outcome(100 * float(np.mean(output.argmax(axis=1) == test.y)), seconds)
    return Outcome(float(np.mean((output - test.y) ** 2)), seconds)


def until_solved(task: Task, side: type, seed: int, quick: bool) -> Outcome:
    """Train on fresh sequences until the error of others is below 0.01: steps, seconds."""
    length, most, steps = (50, 1500, 50) if quick else (200, 3000, 50)
    test = adding(length, 500, 10**6 + seed)
    one = side(task.recipe, 2, seed)
    seconds, taken = 0.0, 0
    while taken < most:
        part = adding(length, steps * task.recipe.batch_size, 10**4 * seed + taken)
        began = time.process_time()
        one.train(part, 1)
        seconds += time.process_time() - began
        taken += steps
        if np.mean((one.predict(test) - test.y) ** 2) < 0.01:
            break
    return Outcome(taken, seconds)


TASKS = {
    "sunspots": Task(
        "sunspots", "test MSE of the standardised number", Recipe(16, 16, 100, 3e-3), sunspots, True
    ),
    "vowels": Task(
        "JapaneseVowels", "accuracy %", Recipe(64, 30, 60, 3e-3, 9),
        lambda quick: from_aeon("JapaneseVowels"), False,
    ),
    "power": Task(
        "ItalyPowerDemand", "accuracy %", Recipe(32, 16, 150, 3e-3, 2),
        lambda quick: from_aeon("ItalyPowerDemand"), False,
    ),
    "adding": Task(
        "adding problem", "steps until MSE < 0.01", Recipe(64, 50, 1, 2e-3),
        lambda quick: None, True,
    ),
}  # fmt: skip


Records = dict[str, tuple[float, float]]  # of "task/seed/side": figure, seconds


def run(
    task: Task, name: str, seeds: Sequence[int], quick: bool, records: Records
) -> Iterator[str]:
    """Run what is not among the records, each side in turn; yield the key of each new one."""
    solving = name == "adding"
    if not solving and task.parts(quick) is None:
        print(f"{task.name} left out: pip install --no-deps aeon", file=sys.stderr)
        return
    warm, part = Ours(task.recipe, 2, 0), adding(4, 4, 0)  # compiles
    warm.train(part._replace(y=np.zeros(4, int)) if task.recipe.classes else part, 1)
    for seed in seeds:
        for side in SIDES:
            key = f"{name}/{seed}/{side.name}"
            if key not in records:
                records[key] = (until_solved if solving else fixed)(task, side, seed, quick)
                yield key


def table(records: Records) -> str:
    """Return the seeds that both sides have run, as Markdown."""
    lines = [
        "| task | figure | seeds | fastgates | PyTorch | seconds | PyTorch's seconds | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        of_task = [key.split("/")[1] for key in records if key.startswith(f"{name}/")]
        seeds = sorted({seed for seed in of_task if of_task.count(seed) == len(SIDES)}, key=int)
        if not seeds:
            continue
        both = np.array([[records[f"{name}/{s}/{side.name}"] for side in SIDES] for s in seeds])
        figures, seconds = both[..., 0], both[..., 1]
        spread = [
            f"{mean:.4g} ± {std:.2g}"
            for mean, std in zip(figures.mean(axis=0), figures.std(axis=0), strict=True)
        ]
        # The adding problem ends after different numbers of steps: compare the time of a step.
        best = (seconds / figures if name == "adding" else seconds).min(axis=0)
        means = [f"{each:.2f}" for each in seconds.mean(axis=0)]
        cells = [task.name, task.figure, str(len(seeds)), *spread, *means]
        lines.append(f"| {' | '.join(cells)} | {best[1] / best[0]:.1f}x |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> Records:
    """Run the comparison and print it as a table; return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs, T = 50")
    parser.add_argument(
        "--json", type=Path, help="keep outcomes here, and run only what is missing"
    )
    parser.add_argument("--write", type=Path, help="put the table between the marks of a document")
    options = parser.parse_args(given)
    fg.set_num_threads(1)
    torch.set_num_threads(1)
    records: Records = {}
    if options.json is not None and options.json.exists():
        records = json.loads(options.json.read_text())
    seeds = range(1 if options.quick else options.seeds)
    for name in options.tasks:
        for key in run(TASKS[name], name, seeds, options.quick, records):
            print(f"{key}: {records[key][0]:.4g} after {records[key][1]:.2f} s", file=sys.stderr)
            if options.json is not None:
                options.json.write_text(json.dumps(records, indent=1))
    text = (
        f"fastgates {fg.__version__}, PyTorch {torch.__version__}, one thread:\n\n{table(records)}"
    )
    print(text)
    if options.write is not None:
        document = options.write.read_text()
        begin, end = "<!-- accuracy -->\n", "\n<!-- accuracy:end -->"
        before, _, rest = document.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            parser.error(f"{options.write} has no lines {begin.strip()} and {end.strip()}")
        options.write.write_text(f"{before}{begin}{text}{found}{after}")
    return records


if __name__ == "__main__":
    main()
