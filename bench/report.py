"""Measure fastgates beside its peers and write the table of ``bench/README.md``.

``python -m bench.report --help`` lists the options. All contenders of a case are measured in turns,
round after round, in one process on one core, and the fastest call of each counts: what disturbs
the machine for a moment disturbs all of them alike. Results are checked against each other before
anything is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import machine
from bench.cases import CELLS, MODES, QUICK_CELLS, QUICK_SIZES, SIZES, Case, Size, make_data
from bench.peers import CONTENDERS, Built, Contender, check, installed_contenders

README = Path(__file__).with_name("README.md")
BEGIN = "<!-- results: begin (written by python -m bench.report) -->"
END = "<!-- results: end -->"

SUBJECT = "fastgates"

#: ``cpu`` counts the time in which threads of the process ran. On a quiet machine that is the wall
#: time of a process pinned to one core; on a busy one it leaves out the waiting.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

#: Microseconds of one case and mode, by contender.
Times = dict[str, float]


@dataclasses.dataclass
class Results:
    """One run.

    Attributes
    ----------
    header : dict
        `machine.describe()`, with ``lanes``, ``fma`` and the limits ``peak_gflops``, ``tanh_ns``
        and ``sigmoid_ns`` measured during the run.
    times : dict
        From (case, mode) to the microseconds of each contender.
    """

    header: dict[str, Any]
    times: dict[tuple[Case, str], Times]

    def add(self, case: Case, mode: str, contender: str, microseconds: float) -> None:
        """Keep a time if it is the fastest so far."""
        row = self.times.setdefault((case, mode), {})
        row[contender] = min(row.get(contender, math.inf), microseconds)

    def floor(self, case: Case, mode: str) -> tuple[float, float]:
        """Return the microseconds of the products at the FMA peak, and with the gate functions."""
        products = case.product_flops(mode) / self.header["peak_gflops"] * 1e-3
        tanhs, sigmoids = case.activations()
        gates = tanhs * self.header["tanh_ns"] + sigmoids * self.header["sigmoid_ns"]
        return products, products + gates * 1e-3

    def ratio(self, case: Case, mode: str) -> float | None:
        """Return the best peer's time divided by fastgates'; None where either is missing."""
        row = self.times[case, mode]
        peers = [value for name, value in row.items() if name != SUBJECT]
        return min(peers) / row[SUBJECT] if peers and SUBJECT in row else None

    def to_json(self) -> str:
        """Return the run as JSON text, one record for each time."""
        records = [
            {**dataclasses.asdict(case), "mode": mode, "contender": name, "microseconds": value}
            for (case, mode), row in self.times.items()
            for name, value in row.items()
        ]
        return json.dumps({"header": self.header, "times": records}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what `to_json` or ``pytest bench/ --benchmark-json`` wrote.

        Raises
        ------
        ValueError
            If the text is neither.
        """
        content = json.loads(text)
        if isinstance(content, dict) and {"header", "times"} <= content.keys():
            results = cls(content["header"], {})
            records = content["times"]
        elif isinstance(content, dict) and {"machine_info", "benchmarks"} <= content.keys():
            results = cls(content["machine_info"]["fastgates_bench"], {})
            records = [
                {**benchmark["extra_info"], "microseconds": benchmark["stats"]["min"] * 1e6}
                for benchmark in content["benchmarks"]
            ]
        else:
            raise ValueError(
                "the file must come from bench.report --json or pytest --benchmark-json"
            )
        for record in records:
            sizes = (int(record[name]) for name in ("batch", "time", "input", "hidden"))
            case = Case(record["cell"], *sizes)
            results.add(case, record["mode"], record["contender"], record["microseconds"])
        return results


# -- Measuring ----------------------------------------------------------------------------------


def measured_header(repeats: int = 20) -> dict[str, Any]:
    """Return the description of the machine with freshly measured limits."""
    from bench import peak
    from fastgates._simd import HAS_FMA, LANES

    limits = peak.limits(repeats)
    return {
        **machine.describe(),
        "lanes": LANES,
        "fma": HAS_FMA,
        "peak_gflops": limits.gflops,
        "tanh_ns": limits.tanh,
        "sigmoid_ns": limits.sigmoid,
    }


def refresh_limits(header: dict[str, Any]) -> None:
    """Measure the limits again and keep the better of the old and the new ones."""
    from bench import peak

    limits = peak.limits(repeats=5)
    header["peak_gflops"] = max(header["peak_gflops"], limits.gflops)
    header["tanh_ns"] = min(header["tanh_ns"], limits.tanh)
    header["sigmoid_ns"] = min(header["sigmoid_ns"], limits.sigmoid)


def build_checked(case: Case, contenders: Iterable[Contender]) -> dict[str, Built]:
    """Build every contender that has the case's cell and compare it with the first one.

    Raises
    ------
    AssertionError
        If results differ.
    """
    data = make_data(case)
    built: dict[str, Built] = {}
    for contender in contenders:
        made = contender.build(case, data)
        if made is None:
            continue
        if built:
            check(
                f"{contender.name}, {case.cell} {case.size_text}", made, next(iter(built.values()))
            )
        built[contender.name] = made
    return built


def fastest_call(
    call: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds of the fastest of the calls made in about `seconds`, after one more."""
    call()
    best = math.inf
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds
        calls = 0
        while calls < 2 or time.perf_counter() < deadline:
            start = clock()
            call()
            best = min(best, clock() - start)
            calls += 1
    finally:
        gc.enable()
    return best


def measure(
    results: Results,
    case: Case,
    contenders: Sequence[Contender],
    *,
    modes: Sequence[str] = MODES,
    rounds: int = 7,
    seconds: float = 0.03,
    clock: str = "wall",
) -> None:
    """Time all contenders of a case in turns and add the fastest call of each to `results`.

    Parameters
    ----------
    results : Results
        Changed in place, as are the limits in its header, measured again every round.
    case : Case
        What to measure.
    contenders : sequence of Contender
        The first one is the reference of the checks.
    modes : sequence of str
        Of ``inference`` and ``training``.
    rounds : int
        Turns of each contender.
    seconds : float
        Length of a turn; a turn has two calls at least.
    clock : str
        A key of `CLOCKS`.
    """
    built = build_checked(case, contenders)
    for _ in range(rounds):
        refresh_limits(results.header)
        for mode in modes:
            for name, made in built.items():
                call = made.inference if mode == "inference" else made.train
                if call is not None:
                    results.add(case, mode, name, fastest_call(call, seconds, CLOCKS[clock]) * 1e6)


# -- Writing ------------------------------------------------------------------------------------


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def markdown(results: Results) -> str:
    """Return the summary, the header and both tables as Markdown."""
    parts = [_summary(results), _header(results)]
    for mode in MODES:
        table = _table(results, mode)
        if table:
            parts.append(f"### {mode.capitalize()}\n\n{table}")
    return "\n\n".join(parts)


def _summary(results: Results) -> str:
    """Return the geometric means of the ratios and the worst one, for each cell and for all."""
    lines = [
        "| best peer's time / fastgates' time | " + " | ".join(_summary_columns()) + " |",
        "|---" * (1 + len(_summary_columns())) + "|",
    ]
    measured = {case.cell for case, _ in results.times}
    for label, cells in (
        ("**all cells**", measured),
        *((name, {name}) for name in CELLS if name in measured),
    ):
        fields = []
        for mode in MODES:
            ratios = {
                case: ratio
                for case, other in results.times
                if other == mode
                and case.cell in cells
                and (ratio := results.ratio(case, mode)) is not None
            }
            if not ratios:
                fields += ["", ""]
                continue
            worst = min(ratios, key=ratios.__getitem__)
            fields.append(f"{geometric_mean(list(ratios.values())):.2f}")
            where = f"{worst.cell} {worst.size_text}" if len(cells) > 1 else worst.size_text
            fields.append(f"{ratios[worst]:.2f} ({where})")
        lines.append(f"| {label} | " + " | ".join(fields) + " |")
    return "\n".join(lines)


def _summary_columns() -> list[str]:
    return [f"{mode}: {what}" for mode in MODES for what in ("geometric mean", "worst")]


def _header(results: Results) -> str:
    header = results.header
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    fma = "with" if header["fma"] else "without"
    return (
        f"Measured {header['date']} on one core of {header['cpu']}, Numba target "
        f"{header['numba_target']}, {header['lanes']} lanes {fma} fused multiply-add, "
        f"{header['system']}, Python {header['python']}; {versions}.\n"
        f"FMA peak of that core, in the same run: {header['peak_gflops']:.1f} GFLOP/s; fastgates' "
        f"tanh {header['tanh_ns']:.3f} ns and sigmoid {header['sigmoid_ns']:.3f} ns a value.\n"
        f"Times in microseconds of {'processor' if header.get('clock') == 'cpu' else 'wall'} time."
    )


def _table(results: Results, mode: str) -> str:
    """Return the table of one mode; empty if nothing was measured."""
    rows = [(case, row) for (case, other), row in results.times.items() if other == mode]
    if not rows:
        return ""
    names = [c.name for c in CONTENDERS if any(c.name in row for _, row in rows)]
    titles = [
        "cell",
        "batch,time,input,hidden",
        *names,
        "best peer / fastgates",
        "of FMA peak",
        "of floor",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---|---" + "|--:" * (len(titles) - 2) + "|"]
    order = list(CELLS)
    for case, row in sorted(rows, key=lambda item: order.index(item[0].cell)):
        fields = [case.cell, case.size_text]
        fields += [_microseconds(row[name]) if name in row else "" for name in names]
        ratio = results.ratio(case, mode)
        fields.append("" if ratio is None else f"{ratio:.2f}")
        for floor in results.floor(case, mode):
            fields.append(f"{floor / row[SUBJECT]:.0%}" if SUBJECT in row else "")
        lines.append("| " + " | ".join(fields) + " |")
    return "\n".join(lines)


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between `BEGIN` and `END` in the file `path`.

    Raises
    ------
    ValueError
        If the file lacks the markers.
    """
    content = path.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} must contain the lines {BEGIN!r} and {END!r}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


# -- Command line -------------------------------------------------------------------------------


def _size(text: str) -> Size:
    numbers = tuple(int(part) for part in text.split(","))
    if len(numbers) != 4 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"a size is batch,time,input,hidden, got {text!r}")
    return numbers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer cells, sizes and rounds; about a minute")
    add("--cells", nargs="+", choices=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    add("--sizes", nargs="+", type=_size, metavar="B,T,I,H", help="batch,time,input,hidden")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--contenders", nargs="+", choices=[c.name for c in CONTENDERS], metavar="NAME")
    add("--rounds", type=int, help="turns of each contender (default 7, 4 with --quick)")
    add("--seconds", type=float, default=0.03, help="length of a turn (default 0.03)")
    add("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a busy machine")
    add("--core", type=int, help="core to pin to (default: the highest one allowed)")
    add(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="measure nothing: read a run written by --json or by pytest --benchmark-json",
    )
    add("--json", type=Path, metavar="FILE", help="also write the run as JSON")
    add(
        "--output",
        metavar="FILE",
        help="Markdown file with the two markers; - prints. Default: bench/README.md if everything "
        "was measured, else -",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    if options.source:
        results = Results.from_json(options.source.read_text(encoding="utf-8"))
    else:
        machine.pin_to_one_core(options.core)
        results = _measure_all(options)
    if options.json:
        options.json.write_text(results.to_json(), encoding="utf-8")
    text = markdown(results)
    output = options.output or ("-" if options.source or _is_partial(options) else README)
    if output == "-":
        print(text)
    else:
        write_between_markers(Path(output), text)
        print(_summary(results))
    return 0


def _is_partial(options: argparse.Namespace) -> bool:
    """Return whether the options leave out a cell, a size, a mode or a contender."""
    chosen = options.quick or options.cells or options.sizes or options.contenders
    return bool(chosen) or set(options.modes) != set(MODES)


def _measure_all(options: argparse.Namespace) -> Results:
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    cells = options.cells or (QUICK_CELLS if options.quick else CELLS)
    rounds = options.rounds or (4 if options.quick else 7)
    contenders = [
        contender
        for contender in installed_contenders()
        if not options.contenders or contender.name in options.contenders
    ]
    results = Results({**measured_header(), "clock": options.clock}, {})
    cases = [Case(cell, *size) for cell in cells for size in sizes]
    with tqdm(cases, unit="case", disable=not sys.stderr.isatty()) as progress:
        for case in progress:
            progress.set_postfix_str(f"{case.cell} {case.size_text}")
            measure(
                results,
                case,
                contenders,
                modes=options.modes,
                rounds=rounds,
                seconds=options.seconds,
                clock=options.clock,
            )
            if options.json:
                options.json.write_text(results.to_json(), encoding="utf-8")
    return results


if __name__ == "__main__":
    sys.exit(main())
