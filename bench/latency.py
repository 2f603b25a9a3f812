"""Measure the time of one step, by every way into a model, beside PyTorch and onnxruntime.

::

    $ python bench/latency.py --json latency.json --markdown docs/embedding.md
    $ python bench/latency.py --from latency.json --markdown docs/embedding.md
    $ python bench/latency.py --rtneural RTNeural --eigen RTNeural/modules/Eigen

One core, one sequence, 4 inputs, float32. The ways take turns in one process, and the fastest turn
of each counts; a turn is a loop of steps in the language of the host:

- *Python*: ``stream.step(x, out=y)``, called from Python.
- *@njit*: ``fastgates.jit.step`` in a compiled loop.
- *C pointer*: the function of ``model.cfunc()``, called from a loop in C.
- *C source*: what ``model.to_c()`` writes, by ``gcc -O3 -march=native -ffp-contract=fast``.
- *load bound*: to read as many bytes as there are weights, with a loop of vector loads, again and
  again: no step that uses each weight once can be faster by more than what its sums overlap.
- *PyTorch*: ``torch.nn`` modules on a sequence of one step under ``inference_mode``;
  *onnxruntime*: the graph of ``to_onnx(streaming=True)``; one thread each, called from Python.
- *RTNeural*, where its sources are given: ``ModelT`` with sizes known to the compiler, with Eigen,
  ``g++ -O3 -march=native -ffast-math``, in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

import fastgates as fg
from fastgates import jit
from fastgates._atomic import replacing
from fastgates._simd import LANES, float_pointer, load, splat, store
from fastgates.benchmark import machine
from fastgates.benchmark.report import table
from fastgates.engine.call import address, aligned_empty

INPUTS = 4
SIZES = (16, 32, 64, 128)
CELLS = {
    "lstm": lambda h: fg.LSTM(INPUTS, h, seed=0),
    "gru": lambda h: fg.GRU(INPUTS, h, seed=0),
    "gru_reset_after": lambda h: fg.GRU(INPUTS, h, reset_after=True, seed=0),
    "simplified_gru": lambda h: fg.SimplifiedGRU(INPUTS, h, seed=0),
    "rnn": lambda h: fg.RNN(INPUTS, h, seed=0),
}
WAYS = ("Python", "@njit", "C pointer", "C source", "load bound", "PyTorch", "onnxruntime")
RTNEURAL = "RTNeural"

_HOST = """\
typedef void step_function(const float *, float *, float *, void *);
void host(step_function *step, void *model, const float *x, int steps, int inputs, float *state,
          float *y)
{
    for (int t = 0; t < steps; ++t)
        step(x + t * inputs, state, y, model);
}
"""


@numba.njit(nogil=True)
def _steps(handle, x, state, out):
    for t in range(len(x)):
        jit.step(handle, x[t], state, out)


@numba.njit(error_model="numpy")
def _read(at, count, times, target):
    """Load `count` floats, again and again."""
    source, result = float_pointer(at), float_pointer(target)
    zero = splat(np.float32(0))
    for _ in range(times):
        a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
        for k in range(0, count, 8 * LANES):
            a += load(source, k)
            b += load(source, k + LANES)
            c += load(source, k + 2 * LANES)
            d += load(source, k + 3 * LANES)
            e += load(source, k + 4 * LANES)
            f += load(source, k + 5 * LANES)
            g += load(source, k + 6 * LANES)
            h += load(source, k + 7 * LANES)
        store(result, 0, ((a + b) + (c + d)) + ((e + f) + (g + h)))


def _library(folder: Path, name: str, *sources: str) -> ctypes.CDLL:
    options = ["-std=c99", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
    target = folder / f"{name}.so"
    subprocess.run(["gcc", *options, *sources, "-o", str(target)], cwd=folder, check=True)
    return ctypes.CDLL(str(target))


def _pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    """Return pointers to arrays, which they keep alive."""
    pointers = [ctypes.c_void_p(address(array)) for array in arrays]
    for pointer, array in zip(pointers, arrays, strict=True):
        pointer.array = array  # type: ignore[attr-defined]
    return pointers


def ways(cell: str, hidden: int, folder: Path) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Return for each way how many steps a turn has, and what makes a turn."""
    model: Any = CELLS[cell](hidden)
    found: dict[str, tuple[int, Callable[[], Any]]] = {}
    x = np.random.default_rng(0).standard_normal((1000, INPUTS)).astype(np.float32)
    y = np.empty(hidden, np.float32)

    stream, rows = model.stream(), list(x[:100])

    def python() -> None:
        step = stream.step
        for x_t in rows:
            step(x_t, out=y)

    found["Python"] = len(rows), python
    handle, state = model.jit_handle(), jit.new_state(model)
    found["@njit"] = len(x), lambda: _steps(handle, x, state, y)
    if shutil.which("gcc") is not None:
        pointers = _pointers(x, y)
        (folder / "host.c").write_text(_HOST)
        host, function, own = _library(folder, "host", "host.c").host, model.cfunc(), state.copy()
        (own_at,), data = _pointers(own), function.user_data
        found["C pointer"] = (
            len(x),
            lambda: host(function.function, data, pointers[0], len(x), INPUTS, own_at, pointers[1]),
        )
        source = model.to_c()
        source.write(folder)
        run = _library(folder, f"{cell}{hidden}", "model.c").model_run
        memory, outputs = aligned_empty(source.report.state // 4), aligned_empty((1000, hidden))
        memory[...] = 0
        places = _pointers(memory, outputs)
        found["C source"] = len(x), lambda: run(places[0], pointers[0], len(x), places[1])
    count = len(model.cell.gates) * hidden * (INPUTS + hidden)
    buffer, result = aligned_empty(count + 8 * LANES), aligned_empty(LANES)
    buffer[...] = 0
    found["load bound"] = 1000, lambda: _read(address(buffer), count, 1000, address(result))
    for name, peer in (("PyTorch", _torch), ("onnxruntime", _onnxruntime)):
        turn = peer(model, x[:1])
        if turn is not None:
            found[name] = turn
    return found


def _torch(model: Any, x: np.ndarray) -> tuple[int, Callable[[], Any]] | None:
    try:
        import torch

        from fastgates.interchange.torch_modules import to_torch

        module = to_torch(model)
    except (ImportError, ValueError):  # not installed, or there is no such layer
        return None
    torch.set_num_threads(1)
    module.eval()
    tensor = torch.from_numpy(x[None].copy())
    _, state = module(tensor)

    def turn() -> None:
        nonlocal state
        with torch.inference_mode():
            for _ in range(50):
                _, state = module(tensor, state)

    return 50, turn


def _onnxruntime(model: Any, x: np.ndarray) -> tuple[int, Callable[[], Any]] | None:
    try:
        import onnxruntime

        from fastgates.interchange.onnx_export import to_onnx

        graph = to_onnx(model, streaming=True)
    except (ImportError, ValueError):
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    zeros = np.zeros((1, 1, model.hidden_size), np.float32)
    feed = {name: x if name == "x" else zeros for name in names}
    outputs = ["y", *(f"{name}_next" for name in names if name != "x")]

    def turn() -> None:
        for _ in range(50):
            for name, value in zip(outputs, session.run(outputs, feed), strict=True):
                if name != "y":
                    feed[name.removesuffix("_next")] = value

    return 50, turn


def _rtneural(sources: str, eigen: str, folder: Path) -> dict[str, float]:
    """Build and run the program of RTNeural; return nanoseconds by cell and size."""
    program = folder / "rtneural"
    here = Path(__file__).resolve().parent
    options = ["-std=c++17", "-O3", "-march=native", "-ffast-math", "-w", "-DRTNEURAL_USE_EIGEN=1"]
    options += ["-DRTNEURAL_DEFAULT_ALIGNMENT=32", "-DEIGEN_STACK_ALLOCATION_LIMIT=0"]
    paths = [f"-I{Path(sources) / 'RTNeural'}", f"-I{sources}", f"-I{eigen}"]
    subprocess.run(
        ["g++", *options, *paths, str(here / "rtneural_step.cpp"), "-o", str(program)], check=True
    )
    lines = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return {key: float(value) for key, value in map(str.split, lines.splitlines())}


def measure(seconds: float, sizes: tuple[int, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Return the nanoseconds of a step by cell, size and way."""
    rows = []
    with machine.one_core(), tempfile.TemporaryDirectory() as name:
        peer = {}
        if options.rtneural:
            peer = _rtneural(options.rtneural, options.eigen, Path(name))
        for cell in CELLS:
            for hidden in sizes:
                turns = ways(cell, hidden, Path(name))
                for _, turn in turns.values():
                    turn()  # compiles, and brings caches in
                best = dict.fromkeys(turns, float("inf"))
                end, rounds = time.perf_counter() + seconds, 0
                while rounds == 0 or time.perf_counter() < end:
                    for way, (steps, turn) in turns.items():
                        if rounds % 20 and best[way] * steps > 1e7:
                            continue  # what takes long has a turn now and then
                        began = time.perf_counter()
                        turn()
                        best[way] = min(best[way], (time.perf_counter() - began) / steps * 1e9)
                    rounds += 1
                if f"{cell}/{hidden}" in peer:
                    best[RTNEURAL] = peer[f"{cell}/{hidden}"]
                rows.append({"cell": cell, "hidden": hidden, "nanoseconds": best})
                print(cell, hidden, {way: round(value) for way, value in best.items()})
    return {"machine": machine.describe(), "inputs": INPUTS, "rows": rows}


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the results, and what they were measured on."""
    columns = list(WAYS)
    if any(RTNEURAL in row["nanoseconds"] for row in results["rows"]):
        columns.append(RTNEURAL)
    lines = []
    for row in results["rows"]:
        times = row["nanoseconds"]
        cells = [f"{times[way]:,.0f}" if way in times else "" for way in columns]
        lines.append([row["cell"], str(row["hidden"]), *cells])
    described = results["machine"]
    return (
        f"Nanoseconds a step, {results['inputs']} inputs, one core of {described['cpu']}; "
        "the fastest of many turns:\n\n" + table(["cell", "hidden", *columns], lines)
    )


_BLOCK = re.compile(r"(<!-- latency:report -->\n).*?(<!-- latency:end -->)", re.DOTALL)


def write_markdown(path: str, results: dict[str, Any]) -> None:
    """Write the report between the markers of a document."""
    text = Path(path).read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise SystemExit(f"{path} must have lines <!-- latency:report --> and <!-- latency:end -->")
    filled = _BLOCK.sub(lambda m: f"{m[1]}\n{markdown(results)}\n\n{m[2]}", text)
    with replacing(path) as temporary:
        Path(temporary).write_text(filled, encoding="utf-8")


def main(given: list[str] | None = None) -> None:
    """Measure, or read what was measured, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the results")
    parser.add_argument("--from", dest="source", metavar="FILE", help="read them, not measure")
    parser.add_argument("--markdown", metavar="FILE", help="write the table between its markers")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each cell and size")
    parser.add_argument("--sizes", default="16,32,64,128", help="hidden sizes")
    parser.add_argument("--rtneural", metavar="FOLDER", help="the sources of RTNeural")
    parser.add_argument("--eigen", metavar="FOLDER", default="/usr/include/eigen3")
    options = parser.parse_args(given)
    if options.source:
        results = json.loads(Path(options.source).read_text(encoding="utf-8"))
    else:
        sizes = tuple(int(size) for size in options.sizes.split(","))
        results = measure(options.seconds, sizes, options)
    if options.json:
        with replacing(options.json) as temporary:
            Path(temporary).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(markdown(results))
    if options.markdown:
        write_markdown(options.markdown, results)


if __name__ == "__main__":
    main()
