"""What is measured of fastgates alone: unequal lengths, threads, cold start.

Each function returns plain numbers that JSON can hold. Threads and cold starts are measured in
other processes: the one that measures all else is pinned to a core and has compiled its kernels.
``python -m fastgates.benchmark.extras CELL SECONDS CORE ...`` measures threads and prints JSON.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastgates.benchmark import machine
from fastgates.benchmark.cases import MODES, Case, Size, make_data
from fastgates.benchmark.measure import Plan, Runner, take_turns
from fastgates.benchmark.peers import Fastgates

__all__ = ["cold_start", "lengths", "threads"]

#: Sequences of 20 to 100 steps, as sentences or visits may have.
LENGTHS_SIZE: Size = (64, 100, 32, 64)
LENGTHS_RANGE = 20, 100

#: From less work than is worth a second thread to much more.
THREADS_SIZES: tuple[Size, ...] = (
    (8, 16, 8, 32),
    (32, 100, 8, 32),
    (64, 128, 16, 64),
    (64, 128, 32, 128),
    (128, 64, 64, 256),
    (1, 1000, 8, 128),
)

_IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"

#: Prints the seconds of the first call, of the second, of the first training step, of the second.
_FIRST_CALLS = """
import time
import numpy as np
import fastgates

layer = fastgates.Recurrent({cell!r}, 8, 32, seed=0)
x = np.zeros((32, 20, 8), np.float32)

def train():
    output, _, tape = layer.forward(x)
    layer.backward(tape, output)

for call in (lambda: layer(x), train):
    for _ in range(2):
        start = time.perf_counter()
        call()
        print(time.perf_counter() - start)
"""


def lengths(cells: Sequence[str], plan: Plan, size: Size = LENGTHS_SIZE) -> dict[str, Any]:
    """Measure batches of unequal lengths beside the same batch of full lengths.

    Returns
    -------
    dict
        ``size``; ``share``, the steps of all sequences / those of the full batch; ``rows``, a dict
        for each cell and mode with the microseconds ``full`` and ``unequal``.
    """
    batch, longest, _, _ = size
    low, high = LENGTHS_RANGE
    drawn = np.random.default_rng(0).integers(min(low, longest), min(high, longest) + 1, batch)
    drawn[0] = longest
    rows = []
    for cell in cells:
        case = Case(cell, *size)
        data = make_data(case)
        layer = Fastgates().layer(case, data)

        def train(
            given: Any, layer: Any = layer, x: Any = data.x, d_output: Any = data.d_output
        ) -> None:
            _, _, tape = layer.forward(x, lengths=given, training=True)
            layer.backward(tape, d_output, input_gradient=False)

        for mode in plan.modes:
            call: Any = train
            if mode == "inference":
                call = functools.partial(layer, data.x, None)
            runners = {
                "full": Runner(functools.partial(call, None)),
                "unequal": Runner(functools.partial(call, drawn)),
            }
            take_turns(runners, plan)
            times = {name: runner.best * 1e6 for name, runner in runners.items()}
            rows.append({"cell": cell, "mode": mode, **times})
    return {"size": list(size), "share": float(drawn.sum() / (batch * longest)), "rows": rows}


def threads(cores: set[int], cell: str = "lstm", seconds: float = 0.05) -> dict[str, Any]:
    """Measure several numbers of threads in a process of its own that may use all of `cores`.

    Returns
    -------
    dict
        ``threads``, the numbers tried; ``rows``, a dict for each size and mode with the ``size``
        and the ``microseconds`` for each number of threads.

    Raises
    ------
    subprocess.CalledProcessError
        If the other process fails.
    """
    environment = _environment()
    for name in machine.SINGLE_THREAD_ENVIRONMENT:
        environment.pop(name, None)
    command = [sys.executable, "-P", "-m", __name__, cell, str(seconds), *map(str, sorted(cores))]
    result: dict[str, Any] = json.loads(_output(command, environment))
    return result


def _measure_threads(cell: str, seconds: float, cores: set[int]) -> dict[str, Any]:
    """Measure in this process; see `threads`."""
    import fastgates

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    counts = sorted({1, 2, len(cores)})
    plan = Plan(rounds=5, seconds=seconds)
    rows = []
    for size in THREADS_SIZES:
        case = Case(cell, *size)
        built = Fastgates().build(case, make_data(case))
        assert built is not None
        assert built.train is not None

        def with_threads(count: int, call: Any) -> None:
            fastgates.set_num_threads(count)
            call()

        for mode, call in zip(MODES, (built.inference, built.train), strict=True):
            runners = {str(n): Runner(functools.partial(with_threads, n, call)) for n in counts}
            take_turns(runners, plan)
            rows.append(
                {
                    "size": list(size),
                    "mode": mode,
                    "microseconds": [runners[str(n)].best * 1e6 for n in counts],
                }
            )
    return {"cell": cell, "threads": counts, "rows": rows}


def cold_start(cell: str = "lstm", repeats: int = 5) -> dict[str, Any]:
    """Measure imports, and first calls of a cell without and with its kernels on disk.

    Returns
    -------
    dict
        Seconds: ``import_numba``, ``import_fastgates`` (which imports Numba); and for ``inference``
        and ``training`` the first call ``compiled`` anew, the first ``cached`` one of another
        process, and the one ``after`` it.

    Raises
    ------
    subprocess.CalledProcessError
        If another process fails.
    """

    def fastest(code: str, environment: dict[str, str], times: int) -> list[float]:
        runs = [
            [
                float(each)
                for each in _output([sys.executable, "-P", "-c", code], environment).split()
            ]
            for _ in range(times)
        ]
        return [min(each) for each in zip(*runs, strict=True)]

    environment = _environment()
    found: dict[str, Any] = {"cell": cell}
    for package in ("numba", "fastgates"):
        (found[f"import_{package}"],) = fastest(_IMPORT.format(package), environment, repeats)
    code = _FIRST_CALLS.format(cell=cell)
    with tempfile.TemporaryDirectory(prefix="fastgates-bench-") as folder:
        environment |= {"FASTGATES_CACHE_DIR": folder, "FASTGATES_CACHE": "1"}
        compiled = fastest(code, environment, 1)
        cached = fastest(code, environment, repeats)
    for k, mode in enumerate(MODES):
        found[mode] = {
            "compiled": compiled[2 * k],
            "cached": cached[2 * k],
            "after": cached[2 * k + 1],
        }
    return found


def _environment() -> dict[str, str]:
    """Return the environment of a child that imports this very package."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _output(command: Sequence[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    _cell, _seconds, *_cores = sys.argv[1:]
    print(json.dumps(_measure_threads(_cell, float(_seconds), set(map(int, _cores)))))
