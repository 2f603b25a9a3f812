"""The same ONNX file in fastgates and onnxruntime on one core, and the recurrent cases of ONNX.

``python bench/interchange.py --markdown docs/interchange.md`` measures and writes both tables
between their markers.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import unittest
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastgates as fg
from fastgates.benchmark import machine
from fastgates.benchmark.measure import CLOCKS

MODELS: dict[str, Callable[[int, int], Any]] = {
    "LSTM": lambda inputs, hidden: fg.LSTM(inputs, hidden, seed=0),
    "LSTM, 2 layers": lambda inputs, hidden: fg.LSTM(inputs, hidden, num_layers=2, seed=0),
    "LSTM, both directions": lambda inputs, hidden: fg.LSTM(
        inputs, hidden, bidirectional=True, seed=0
    ),
    "LSTM, peepholes": lambda inputs, hidden: fg.LSTM(inputs, hidden, peepholes=True, seed=0),
    "GRU, reset after": lambda inputs, hidden: fg.GRU(inputs, hidden, reset_after=True, seed=0),
    "GRU, reset before": lambda inputs, hidden: fg.GRU(inputs, hidden, seed=0),
    "RNN": lambda inputs, hidden: fg.RNN(inputs, hidden, seed=0),
}
SIZES = ((1, 100, 8, 32), (1, 100, 32, 128), (32, 50, 32, 128))


def best_of(
    functions: list[Callable[[], Any]], rounds: int, seconds: float, clock: Callable[[], float]
) -> list[float]:
    """Return the fastest call of each, which take turns."""
    best = [float("inf")] * len(functions)
    for function in functions:
        function()
    for _ in range(rounds):
        for place, function in enumerate(functions):
            end = clock() + seconds
            while True:
                start = clock()
                function()
                now = clock()
                best[place] = min(best[place], now - start)
                if now > end:
                    break
    return best


def speed(rounds: int, seconds: float, clock: str) -> str:
    """Return the table of speeds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    lines = [
        "| ONNX model of a layer and a dense one | batch, time, inputs, hidden | fastgates | "
        "onnxruntime | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            for batch, steps, inputs, hidden in SIZES:
                path = Path(folder) / "model.onnx"
                layer = make(inputs, hidden)
                fg.to_onnx(fg.Sequential(layer, fg.Dense(layer.output_size, 4, seed=1)), path)
                model = fg.from_onnx(path)
                session = onnxruntime.InferenceSession(path, options)
                x = np.random.default_rng(0).standard_normal((batch, steps, inputs))
                x = x.astype(np.float32)
                (expected,) = session.run(None, {"x": x})
                off = float(np.abs(model(x)[0] - expected).max())
                assert off <= 2e-6, f"{name}: off by {off}"
                run = lambda s=session, x=x: s.run(None, {"x": x})  # noqa: E731
                own = lambda m=model, x=x: m(x)  # noqa: E731
                ours, theirs = best_of([own, run], rounds, seconds, CLOCKS[clock])
                lines.append(
                    f"| {name} | {batch}, {steps}, {inputs}, {hidden} | {ours * 1e3:.3f} ms | "
                    f"{theirs * 1e3:.3f} ms | {theirs / ours:.2f} |"
                )
    about = machine.describe()
    versions = f"onnxruntime {onnxruntime.__version__}"
    kind = {"cpu": "processor time", "wall": "time"}[clock]
    core = about.get("cpu", "this machine")
    lines += ["", f"One core of {core}, {versions}; {kind} of the fastest call."]
    return "\n".join(lines)


def cases() -> str:
    """Return the table of ONNX's own recurrent cases, run by its own runner."""
    import onnx.backend.test

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite = onnx.backend.test.BackendTest(fg.onnx_backend, __name__)
    suite.include(r"^test_(gru|lstm|rnn|simple_rnn)_.*_cpu$")
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(
        suite.test_cases["OnnxBackendNodeModelTest"]
    )
    lines = ["| case | result |", "|---|---|"]
    for test in tests:
        result = unittest.TestResult()
        test.run(result)
        if not result.skipped:
            name = test._testMethodName.removesuffix("_cpu")
            lines.append(f"| `{name}` | {'passes' if result.wasSuccessful() else 'fails'} |")
    lines += ["", f"onnx {onnx.__version__}, by the runner of `onnx.backend.test`."]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write between the markers of a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", metavar="FILE", help="a document with the markers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a turn")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu for a busy machine")
    arguments = parser.parse_args()
    machine.pin_to_one_core()
    fg.set_num_threads(1)
    tables = {
        "cases": cases(),
        "speed": speed(arguments.rounds, arguments.seconds, arguments.clock),
    }
    for table in tables.values():
        print(table, end="\n\n")
    if arguments.markdown:
        path = Path(arguments.markdown)
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            block = re.compile(
                rf"(<!-- interchange:{name} -->\n).*?(<!-- interchange:end -->)", re.S
            )
            assert block.search(text), f"{path} has no marker interchange:{name}"
            text = block.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
