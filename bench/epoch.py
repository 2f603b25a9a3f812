"""Measure what a training step costs beyond the kernels of its network.

::

    $ python bench/epoch.py
    $ python bench/epoch.py --quick
    $ python bench/epoch.py --json epoch.json --write docs/training.md

One thread, 8 inputs, hidden size 32, minibatches of 32, Adam, clipping by norm; an output for each
sequence or for each step. ``Trainer.fit`` runs epochs of 16 steps, and a clock runs while it is in
a compiled kernel:

- *network*: the kernels of the passes: the cells, the weight gradients, the read-out;
- *other kernels*: packing of the changed weights, the gathered and scaled minibatch, the loss and
  its gradient, the norm, the optimiser: one pass each;
- *outside*: all else, which is Python and what NumPy does for it.

A clock is read right before and after each kernel, so the way of a call into compiled code counts
as inside, and the reading as outside. Of the epochs of a case, the one at the fastest tenth stands
in the table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import fastgates as fg
from fastgates import _jit
from fastgates._atomic import replacing
from fastgates.benchmark import machine
from fastgates.benchmark.report import table

CELLS = ("gru", "lstm", "rnn")
TIMES = (24, 100, 200)
KINDS = {"sequence": False, "step": True}
INPUTS, HIDDEN, BATCH, STEPS = 8, 32, 32, 16
NETWORK = ("fastgates.cells.", "fastgates.engine.gradients.", "fastgates.engine.linear.")
MARKS = ("<!-- epoch:report -->\n", "<!-- epoch:end -->")


class _Clocked:
    """A compiled kernel and the time that was spent in it."""

    def __init__(self, name: str, kernel: Any) -> None:
        self.name, self.kernel, self.seconds = name, kernel, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = self.kernel(*arguments)
        self.seconds += time.perf_counter() - began
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)


@contextmanager
def clocked_kernels() -> Iterator[list[_Clocked]]:
    """Put a clock around every kernel that was called before."""
    made = {name: kernel for name, kernel in _jit.kernels().items() if "dispatcher" in vars(kernel)}
    clocks = {name: _Clocked(name, kernel.dispatcher) for name, kernel in made.items()}
    try:
        for name, kernel in made.items():
            vars(kernel)["dispatcher"] = clocks[name]
        yield list(clocks.values())
    finally:
        for name, kernel in made.items():
            vars(kernel)["dispatcher"] = clocks[name].kernel


def case(cell: str, steps: int, per_step: bool, epochs: int) -> dict[str, float]:
    """Return the microseconds of a training step, in all and in kernels."""
    random = np.random.default_rng(0)
    count = BATCH * STEPS
    x = random.standard_normal((count, steps, INPUTS), np.float32)
    y = random.standard_normal((count, steps, 1) if per_step else (count, 1), np.float32)
    model = fg.SequenceModel.build(cell, INPUTS, 1, HIDDEN, return_sequences=per_step, seed=0)
    data = fg.Sequences(x, y)
    trainer = fg.Trainer(model, batch_size=BATCH, clip_norm=1.0)
    trainer.fit(data, epochs=2)  # compiles
    records: list[tuple[float, float, float]] = []
    with clocked_kernels() as clocks:
        began = [time.perf_counter()]

        def note(trainer: fg.Trainer) -> None:
            total = time.perf_counter() - began[0]
            network = sum(c.seconds for c in clocks if c.name.startswith(NETWORK))
            records.append((total, network, sum(c.seconds for c in clocks) - network))
            for clock in clocks:
                clock.seconds = 0.0
            began[0] = time.perf_counter()

        trainer.callbacks = (note,)
        trainer.fit(data, epochs=epochs + 1)
    # The first epoch checks the data and makes the arrays of the others.
    total, network, other = sorted(records[1:])[epochs // 10]
    names = ("step", "network", "other kernels", "outside")
    values = (total, network, other, total - network - other)
    return {name: 1e6 * value / STEPS for name, value in zip(names, values, strict=True)}


def measure(cells: Sequence[str], times: Sequence[int], epochs: int) -> dict[str, Any]:
    """Return the figures of all cases, and what they were measured on."""
    rows = []
    for cell in cells:
        for steps in times:
            for kind, per_step in KINDS.items():
                found = case(cell, steps, per_step, epochs)
                rows.append({"cell": cell, "T": steps, "output": kind, "microseconds": found})
    return {"machine": machine.describe(), "rows": rows}


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the results, and what they were measured on."""
    lines = []
    for row in results["rows"]:
        times = row["microseconds"]
        shares = [
            f"{100 * (times['step'] - inside) / times['step']:.0f} %"
            for inside in (times["network"] + times["other kernels"], times["network"])
        ]
        figures = [f"{value:,.0f}" for value in times.values()]
        lines.append([row["cell"], str(row["T"]), row["output"], *figures, *shares])
    columns = ["cell", "T", "an output for each", "step", "network", "other kernels", "outside"]
    return f"Microseconds a step, one core of {results['machine']['cpu']}:\n\n" + table(
        [*columns, "outside of all kernels", "of those of the network"], lines
    )


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and print the table; return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=list(CELLS))
    parser.add_argument("--times", nargs="*", type=int, default=list(TIMES), help="steps of time")
    parser.add_argument("--epochs", type=int, default=100, help="of each case")
    parser.add_argument("--quick", action="store_true", help="one cell, T = 24, a few epochs")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--write", type=Path, help="put the table between the marks of a document")
    options = parser.parse_args(given)
    if options.quick:
        options.cells, options.times, options.epochs = ["gru"], [24], 5
    threads = fg.get_num_threads()
    fg.set_num_threads(1)
    try:
        results = measure(options.cells, options.times, options.epochs)
    finally:
        fg.set_num_threads(threads)
    text = markdown(results)
    print(text)
    if options.json is not None:
        with replacing(options.json) as temporary:
            Path(temporary).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.write is not None:
        before, _, rest = options.write.read_text(encoding="utf-8").partition(MARKS[0])
        _, found, after = rest.partition(MARKS[1])
        if not found:
            parser.error(f"{options.write} has no lines {' and '.join(m.strip() for m in MARKS)}")
        filled = f"{before}{MARKS[0]}{text}\n{found}{after}"
        with replacing(options.write) as temporary:
            Path(temporary).write_text(filled, encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
