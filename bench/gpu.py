"""fastgates on a GPU beside PyTorch's cuDNN: ``python -m bench.gpu`` (see docs/gpu.md).

One layer, one direction, float32, the whole output. Arrays are on the device before and after; the
gradients of the weights end where each library keeps its parameters, which for fastgates is the
host. A call is timed by a pair of events on the stream that both use, so what Python does between
launches counts where the device waits for it. Medians are shown; TF32 is off. Results are compared
before anything is timed.

The *floor* is what the device must do in any case: the multiply-adds of the recurrence where the
layout puts them, 1 for each lane and clock, or the bytes that go to memory and back, whichever
takes longer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastgates as fg
from fastgates.cuda._plans import plan_pass

CELLS = {
    "rnn": lambda i, h: fg.RNN(i, h, seed=0),
    "gru": lambda i, h: fg.GRU(i, h, reset_after=True, seed=0),
    "lstm": lambda i, h: fg.LSTM(i, h, seed=0),
    "simplified_gru": lambda i, h: fg.SimplifiedGRU(i, h, seed=0),
    "gru_reset_before": lambda i, h: fg.GRU(i, h, seed=0),
}
PEERS = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
MODES = ("inference", "training")

HIDDEN, BATCH, TIME = (16, 32, 64, 128, 256, 512), (1, 8, 32, 132, 512), (128, 1000)
QUICK = (16, 128, 256), (1, 132), (128,)


@dataclass(frozen=True)
class Case:
    """What is measured."""

    cell: str
    mode: str
    hidden: int
    batch: int
    time: int
    inputs: int


@dataclass(frozen=True)
class Device:
    """The limits of a GPU.

    Attributes
    ----------
    lanes : int
        Multiply-adds of float32 that a multiprocessor does in a clock.
    clock, bandwidth : float
        Clocks, and bytes of memory, in a second.
    """

    name: str
    processors: int
    lanes: int
    clock: float
    bandwidth: float


def current_device() -> Device:
    """Return the limits of the device that is used."""
    from numba import cuda

    device = cuda.get_current_device()
    # Compute capabilities 7.x and 8.0 have 64 lanes of float32, those after them 128.
    lanes = 64 if device.compute_capability <= (8, 0) else 128
    wires = device.GLOBAL_MEMORY_BUS_WIDTH / 8
    return Device(
        fg.cuda.device_name(),
        device.MULTIPROCESSOR_COUNT,
        lanes,
        1e3 * device.CLOCK_RATE,
        2e3 * device.MEMORY_CLOCK_RATE * wires,
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield all cases of a run."""
    for cell, hidden, batch, time in itertools.product(
        options.cells, options.hidden, options.batch, options.time
    ):
        for mode in options.modes:
            yield Case(cell, mode, hidden, batch, time, options.inputs)


def floor(case: Case, device: Device) -> float:
    """Return the least seconds that a case takes on a device."""
    cell = CELLS[case.cell](1, 1).cell
    counts = tuple(count for _, count in cell.stages)
    passes = (False, True) if case.mode == "training" else (False,)
    clocks = 0.0
    for transposed in passes:
        plan = plan_pass(
            case.hidden,
            counts,
            len(cell.states),
            transposed=transposed,
            batch=case.batch,
            processors=device.processors,
        )
        # The busiest multiprocessor takes so many sequences through all steps.
        groups = max(1, device.processors // plan.slices)
        rows = -(-case.batch // groups)
        clocks += case.time * rows * sum(counts) * plan.units * case.hidden / device.lanes
    gates, slots = len(cell.gates), len(cell.slots)
    steps = case.batch * case.time
    products = steps * gates * case.hidden * case.inputs
    numbers = steps * (case.inputs + 2 * slots * case.hidden + case.hidden)
    if case.mode == "training":
        products += steps * gates * case.hidden * (case.inputs + case.hidden)
        numbers += steps * (3 * slots + 3) * case.hidden
    arithmetic = (clocks + products / (device.lanes * device.processors)) / device.clock
    return max(arithmetic, 4 * numbers / device.bandwidth)


# -- Contenders -----------------------------------------------------------------------------------


def _to_host(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    elif hasattr(array, "copy_to_host"):
        array = array.copy_to_host()
    return np.asarray(array)


class Ours:
    """fastgates on arrays of PyTorch, or of numba-cuda where PyTorch is absent."""

    name = "fastgates"

    def __init__(self, case: Case, x: Any, d_output: Any) -> None:
        self.layer = CELLS[case.cell](case.inputs, case.hidden).to("cuda")
        self.x, self.d_output = x, d_output

    def inference(self) -> Any:
        """Run the layer over the input."""
        return self.layer(self.x)[0]

    def training(self) -> Any:
        """Run forward and backward."""
        output, _, tape = self.layer.forward(self.x)
        gradients = self.layer.backward(tape, self.d_output, input_gradient=False)
        return output, gradients.parameter_vector


class Torch:
    """PyTorch's layer, by cuDNN on a GPU, with the parameters of ours."""

    name = "torch"

    def __init__(self, case: Case, x: Any, d_output: Any) -> None:
        import torch

        self.torch = torch
        ours = CELLS[case.cell](case.inputs, case.hidden)
        module = getattr(torch.nn, PEERS[case.cell])
        self.layer = module(case.inputs, case.hidden, batch_first=True)
        self.layer.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
        self.layer.to(x.device)
        self.parameters = list(self.layer.parameters())
        self.x, self.d_output = x, d_output

    def inference(self) -> Any:
        """Run the layer over the input."""
        with self.torch.inference_mode():
            return self.layer(self.x)[0]

    def training(self) -> Any:
        """Run forward and backward."""
        output, _ = self.layer(self.x)
        gradients = self.torch.autograd.grad(output, self.parameters, self.d_output)
        return output, self.torch.cat([g.reshape(-1) for g in gradients])


def _torch() -> Any:
    """Return PyTorch where it can use the GPU, set to float32 without TF32, or None."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch


def _data(case: Case, torch: Any) -> tuple[Any, Any]:
    from numba import cuda

    rng = np.random.default_rng(0)
    shapes = (case.batch, case.time, case.inputs), (case.batch, case.time, case.hidden)
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    if torch is None:
        x, d_output = (cuda.to_device(array) for array in arrays)
    else:
        x, d_output = (torch.from_numpy(array).to("cuda") for array in arrays)
    return x, d_output


def compare(case: Case, ours: Any, theirs: Any) -> None:
    """Raise if two contenders' results differ by more than rounding."""
    pairs = [ours, theirs]
    if case.mode == "inference":
        pairs = [(ours,), (theirs,)]
    for what, a, b in zip(("output", "gradients"), *pairs, strict=False):
        a, b = _to_host(a).astype(np.float64), _to_host(b)
        off = np.abs(a - b).max() / max(1.0, np.abs(b).max())
        if not off <= 1e-4:
            raise AssertionError(f"{case}: {what} differ by {off:.2g} of the largest")


def median_seconds(call: Any, seconds: float, most: int) -> float:
    """Return the median time of a call on the device, by pairs of events."""
    from numba import cuda

    from fastgates.cuda._device import default_stream

    stream = default_stream()
    for _ in range(3):  # compiles, chooses algorithms, fills pools
        call()
    cuda.synchronize()
    times: list[float] = []
    end = clock.perf_counter() + seconds
    while len(times) < most and (len(times) < 5 or clock.perf_counter() < end):
        start, stop = cuda.event(), cuda.event()
        start.record(stream)
        call()
        stop.record(stream)
        stop.synchronize()
        times.append(1e-3 * start.elapsed_time(stop))
    return statistics.median(times)


def measure(case: Case, device: Device, options: argparse.Namespace, torch: Any) -> dict[str, Any]:
    """Return a row of the results."""
    x, d_output = _data(case, torch)
    contenders: list[Any] = [Ours(case, x, d_output)]
    if torch is not None and case.cell in PEERS and not options.no_peer:
        contenders.append(Torch(case, x, d_output))
        results = [getattr(each, case.mode)() for each in contenders]
        compare(case, *results)
        del results
    row: dict[str, Any] = asdict(case) | {"floor": floor(case, device)}
    for each in contenders:
        call = getattr(each, case.mode)
        row[each.name] = median_seconds(call, options.seconds, options.most)
    return row


# -- Report ---------------------------------------------------------------------------------------


def goal(row: dict[str, Any]) -> float:
    """Return how many times PyTorch's time a case may take: the goals of the project."""
    if row["batch"] <= 264 and (
        row["hidden"] <= 128 or (row["cell"], row["hidden"]) == ("gru", 256)
    ):
        return 1.0
    return 1.5


def markdown(results: dict[str, Any]) -> str:
    """Return the results as tables, one for each cell and mode, and how many goals are met."""
    device, rows = results["device"], results["rows"]
    lines = [
        f"{device['name']}: {device['processors']} multiprocessors at "
        f"{device['clock'] / 1e9:.2f} GHz, {device['bandwidth'] / 1e12:.2f} TB/s; float32, "
        f"medians; fastgates {results['version']}, PyTorch {results['torch'] or 'not measured'}.",
        "",
    ]
    compared = [row for row in rows if row.get("torch")]
    met = sum(row["fastgates"] <= goal(row) * row["torch"] for row in compared)
    if compared:
        lines += [f"Goals met: {met} of {len(compared)}.", ""]
    groups = sorted({(row["cell"], row["mode"]) for row in rows})
    for cell, mode in groups:
        lines += [
            f"### {cell}, {mode}",
            "",
            "| hidden | batch | time | fastgates ms | us a step | share of the floor | torch ms | "
            "torch / fastgates |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            if (row["cell"], row["mode"]) != (cell, mode):
                continue
            ours, theirs = row["fastgates"], row.get("torch")
            ratio = "" if not theirs else f"{theirs / ours:.2f}"
            peer = "" if not theirs else f"{1e3 * theirs:.3f}"
            lines.append(
                f"| {row['hidden']} | {row['batch']} | {row['time']} | {1e3 * ours:.3f} | "
                f"{1e6 * ours / row['time']:.2f} | {row['floor'] / ours:.0%} | {peer} | {ratio} |"
            )
        lines.append("")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="fastgates on a GPU beside PyTorch's cuDNN"
    )
    parser.add_argument("--quick", action="store_true", help="a few sizes: two minutes")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=["rnn", "gru", "lstm"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--hidden", nargs="+", type=int)
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--time", nargs="+", type=int)
    parser.add_argument("--inputs", type=int, default=32, help="features of the input")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a case and contender")
    parser.add_argument("--most", type=int, default=200, help="calls of a case and contender")
    parser.add_argument("--no-peer", action="store_true", help="leave PyTorch out")
    parser.add_argument("--json", type=Path, help="write all numbers to a file")
    parser.add_argument("--markdown", type=Path, help="write the tables to a file")
    parser.add_argument(
        "--from", dest="source", type=Path, help="read numbers from a file, measure nothing"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    options = _parser().parse_args(arguments)
    for name, quick, whole in zip(
        ("hidden", "batch", "time"), QUICK, (HIDDEN, BATCH, TIME), strict=True
    ):
        if getattr(options, name) is None:
            setattr(options, name, list(quick if options.quick else whole))
    if options.source:
        results = json.loads(options.source.read_text())
    else:
        fg.cuda.check()
        results = run(options, current_device(), _torch())
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    if options.markdown:
        options.markdown.write_text(text)
    print(text)
    return 0


def run(options: argparse.Namespace, device: Device, torch: Any) -> dict[str, Any]:
    """Measure all cases; one that fails is named and left out."""
    rows = []
    everything = list(cases(options))
    for number, case in enumerate(everything, 1):
        print(f"{number}/{len(everything)} {case}", file=sys.stderr, flush=True)
        try:
            row = measure(case, device, options, torch)
        except (MemoryError, AssertionError) as error:
            print(f"  left out: {error}", file=sys.stderr, flush=True)
            continue
        if all(math.isfinite(row[name]) for name in ("fastgates", "floor")):
            rows.append(row)
    return {
        "device": asdict(device),
        "version": fg.__version__,
        "torch": None if torch is None else torch.__version__,
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
