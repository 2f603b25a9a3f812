"""The command ``fastgates bench``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgates._atomic import check_writable
from fastgates._tables import DataError
from fastgates.benchmark import machine
from fastgates.benchmark.cases import (
    CELLS,
    DEFAULT_CELLS,
    LATENCY_SIZES,
    MODES,
    QUICK_SHARE_HIDDEN,
    QUICK_SIZES,
    SHARE_HIDDEN,
    SIZES,
    Case,
    Size,
    grid,
    random_cases,
    share_sizes,
)

if TYPE_CHECKING:
    from fastgates.benchmark.peers import Contender
    from fastgates.benchmark.results import Results

__all__ = ["add_arguments", "run"]

SECTIONS = ("sizes", "shares", "latency", "lengths", "threads", "cold")
QUICK_SECTIONS = ("sizes", "shares")

PEERS = ("torch", "onnxruntime", "openvino", "jax")
CLOCKS = ("wall", "cpu")

#: Random points of ``--grid`` where ``--random`` does not say.
GRID_RANDOM = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer sizes and sections: about a minute")
    add(
        "--peers",
        nargs="*",
        choices=PEERS,
        metavar="NAME",
        help=f"measure peers beside fastgates, of {', '.join(PEERS)}; default: all installed ones",
    )
    add = parser.add_argument_group("what is measured").add_argument
    add(
        "--cells",
        nargs="+",
        choices=list(CELLS),
        default=list(DEFAULT_CELLS),
        metavar="CELL",
        help=f"of {', '.join(CELLS)}; default: {', '.join(DEFAULT_CELLS)}",
    )
    add(
        "--modes",
        nargs="+",
        choices=MODES,
        default=list(MODES),
        metavar="MODE",
        help=f"of {', '.join(MODES)}; default: both",
    )
    add(
        "--sizes",
        nargs="+",
        type=_size,
        metavar="B,T,I,H",
        help="these only, not those of --quick or --grid: batch,time,input,hidden",
    )
    add(
        "--grid",
        action="store_true",
        help="corners, sweeps and random points of a grid of sizes, not a few sizes",
    )
    add(
        "--random",
        type=_count,
        metavar="K",
        help=f"K random points of that grid; default: {GRID_RANDOM} with --grid, else none",
    )
    add("--seed", type=_count, default=0, metavar="N", help="of the random points; default: 0")
    add(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        metavar="SECTION",
        help=f"only these of {', '.join(SECTIONS)}",
    )
    add(
        "--without",
        nargs="+",
        choices=SECTIONS,
        default=[],
        metavar="SECTION",
        help="all but these",
    )
    add = parser.add_argument_group("how").add_argument
    add(
        "--rounds",
        type=_at_least_one,
        default=5,
        metavar="N",
        help="turns of each contender; default: %(default)s",
    )
    add(
        "--seconds",
        type=_seconds,
        default=0.03,
        metavar="X",
        help="length of a turn, of one call at least; default: %(default)s",
    )
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, for a busy machine; default: %(default)s",
    )
    add("--core", type=_count, metavar="N", help="core to pin to; default: the highest allowed")
    add = parser.add_argument_group("where results go, besides the standard output").add_argument
    add("--json", metavar="FILE", help="write the run, also while it is going on")
    add("--plot", metavar="FILE.png", help="draw speed-ups and shares of the peak")
    add(
        "--markdown",
        nargs="+",
        default=[],
        metavar="FILE.md",
        help="write between the lines <!-- bench:NAME --> and <!-- bench:end -->, where NAME is "
        "report, table or sentence",
    )
    add(
        "--from",
        dest="source",
        nargs="+",
        metavar="FILE.json",
        help="measure nothing, take a run of --json or of pytest bench/ --benchmark-json; of "
        "several runs on one machine the fastest times",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure or read, then write; return the exit code, 1 if a contender failed somewhere.

    Raises
    ------
    DataError
        If an option cannot be met.
    OSError
        If a file cannot be written.
    MissingPackageError
        If a picture is wanted and matplotlib is not installed.
    """
    _check_options(arguments)
    _check_outputs(arguments)
    from fastgates.benchmark import report
    from fastgates.benchmark.results import Results

    if arguments.source is not None:
        runs = [_read(path) for path in arguments.source]
        try:
            results = Results.merged(runs)
        except ValueError as error:
            raise DataError(str(error)) from None
        if arguments.json is not None:
            results.write(arguments.json)
    else:
        results = _measure(arguments)
    print(report.markdown(results, short=True))
    for path in arguments.markdown:
        report.write_between_markers(path, results)
        print(f"\nwritten: {path}")
    if arguments.plot is not None:
        from fastgates.benchmark.picture import draw

        draw(results, arguments.plot)
        print(f"\npicture: {arguments.plot}")
    return 1 if results.failures else 0


def _read(path: str) -> Results:
    from fastgates.benchmark.results import Results

    try:
        return Results.from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise where an option would have no effect."""
    if arguments.source is None:
        return
    names = ("quick", "peers", "sizes", "grid", "random", "sections", "without", "core")
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value is not False and (name, value) != ("without", []):
            raise DataError(f"--{name} has no meaning with --from, which measures nothing")


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raise now what writing would meet after minutes of measuring."""
    from fastgates.benchmark.report import check_markers

    outputs = [path for path in (arguments.json, arguments.plot, *arguments.markdown) if path]
    if len({os.path.realpath(path) for path in outputs}) < len(outputs):
        raise DataError(f"each output must be a file of its own, got {', '.join(outputs)}")
    if arguments.json is not None:
        check_writable(arguments.json)
    if arguments.plot is not None:
        from fastgates._plots import check_picture

        check_picture(arguments.plot)
    for path in arguments.markdown:
        try:
            check_markers(path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise DataError(str(error)) from None
        check_writable(path)


def sections(arguments: argparse.Namespace) -> list[str]:
    """Return what is measured, in order."""
    if arguments.sections:
        chosen = tuple(arguments.sections)
    elif arguments.sizes or (arguments.random is not None and not arguments.grid):
        chosen = ("sizes",)
    else:
        chosen = QUICK_SECTIONS if arguments.quick else SECTIONS
    return [name for name in SECTIONS if name in chosen and name not in arguments.without]


def cases(arguments: argparse.Namespace) -> dict[Case, list[str]]:
    """Return the cases to measure, each with its modes; none twice."""
    wanted = sections(arguments)
    found: dict[Case, list[str]] = {}

    def add(case: Case, modes: Sequence[str]) -> None:
        known = found.setdefault(case, [])
        known += [mode for mode in modes if mode not in known]

    def add_all(sizes: Sequence[Size], modes: Sequence[str]) -> None:
        for cell in arguments.cells:
            for size in sizes:
                add(Case(cell, *size), modes)

    if "sizes" in wanted:
        if arguments.sizes:
            add_all(arguments.sizes, arguments.modes)
        elif arguments.grid:
            add_all(grid(), arguments.modes)
        elif arguments.random is None:
            add_all(QUICK_SIZES if arguments.quick else SIZES, arguments.modes)
        count = arguments.random
        if count is None:
            count = GRID_RANDOM if arguments.grid else 0
        for case in random_cases(arguments.cells, count, arguments.seed):
            add(case, arguments.modes)
    if "shares" in wanted:
        hidden = QUICK_SHARE_HIDDEN if arguments.quick else SHARE_HIDDEN
        add_all(share_sizes(hidden), arguments.modes)
    if "latency" in wanted and "inference" in arguments.modes:
        add_all(LATENCY_SIZES, ["inference"])
    return found


def _measure(arguments: argparse.Namespace) -> Results:
    """Run every section, pinned to one core, with a bar over all of it."""
    allowed = machine.allowed_cores()
    try:
        with machine.one_core(arguments.core):
            return _measure_pinned(arguments, allowed)
    except machine.CoreError as error:
        raise DataError(str(error)) from None


def _measure_pinned(arguments: argparse.Namespace, allowed: set[int]) -> Results:
    from tqdm import tqdm

    from fastgates.benchmark import extras, measure
    from fastgates.benchmark.results import Results

    contenders = _contenders(arguments)
    plan = measure.Plan(arguments.modes, arguments.rounds, arguments.seconds, arguments.clock)
    options = {"clock": arguments.clock, "rounds": arguments.rounds, "seconds": arguments.seconds}
    results = Results({**measure.measured_header(), **options, "command": _command(arguments)})
    jobs: list[tuple[str, Callable[[], object]]] = []

    def measured(case: Case, modes: Sequence[str]) -> Callable[[], None]:
        own = dataclasses.replace(plan, modes=[mode for mode in MODES if mode in modes])
        return lambda: measure.measure(results, case, contenders, own)

    for case, modes in cases(arguments).items():
        jobs.append((f"{case.cell} {case.size_text}", measured(case, modes)))
    wanted = sections(arguments)
    for name, make in (
        ("lengths", lambda: extras.lengths(arguments.cells, plan)),
        ("threads", lambda: _threads(allowed, arguments)),
        ("cold", lambda: extras.cold_start(_example(arguments))),
    ):
        if name in wanted:
            jobs.append((name, _into(results, name, make)))
    terminal = sys.stderr.isatty()
    written = time.monotonic()
    with tqdm(
        jobs, unit=" points", dynamic_ncols=terminal, mininterval=0.1 if terminal else 5.0,
        file=sys.stderr,
    ) as progress:  # fmt: skip
        try:
            for name, job in progress:
                progress.set_postfix_str(name, refresh=False)
                job()
                if arguments.json is not None and time.monotonic() - written > 5:
                    results.write(arguments.json)
                    written = time.monotonic()
        finally:  # an interrupted run, too, keeps what it has measured
            results.header["minutes"] = round(progress.format_dict["elapsed"] / 60, 1)
            if arguments.json is not None:
                results.write(arguments.json)
    return results


def _into(results: Results, name: str, make: Callable[[], dict[str, Any]]) -> Callable[[], None]:
    """Return a job that keeps what `make` measures; what fails is noted and does not end a run."""

    def job() -> None:
        try:
            results.extras[name] = make()
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            results.failures.append(f"{name}: {error}")

    return job


def _threads(allowed: set[int], arguments: argparse.Namespace) -> dict[str, Any]:
    from fastgates.benchmark import extras

    if not allowed:  # the system has no affinity
        allowed = set(range(os.cpu_count() or 1))
    if len(allowed) < 2:
        return {"left_out": "this process may use one core only"}
    return extras.threads(allowed, _example(arguments))


def _example(arguments: argparse.Namespace) -> str:
    """Return the cell of the sections that measure one cell only."""
    return "lstm" if "lstm" in arguments.cells else str(arguments.cells[0])


def _contenders(arguments: argparse.Namespace) -> list[Contender]:
    """Return fastgates and the installed ones of the peers asked for; say which are missing."""
    from fastgates.benchmark import peers

    if arguments.peers is None:
        return [peers.SUBJECT]
    asked = [p for p in peers.PEERS if not arguments.peers or p.name in arguments.peers]
    missing = [peer.name for peer in asked if not peer.available()]
    if missing:
        print(
            f"not installed, left out: {', '.join(missing)} (pip install 'fastgates[bench]')",
            file=sys.stderr,
        )
    return [peers.SUBJECT, *(peer for peer in asked if peer.available())]


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that measures the same again, without its files."""
    defaults = argparse.ArgumentParser()
    add_arguments(defaults)
    given = vars(arguments)
    words = ["fastgates", "bench"]
    for name, default in vars(defaults.parse_args([])).items():
        value = given[name]
        if value == default or name in ("json", "plot", "markdown", "source"):
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words += [",".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value]
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)


def _size(text: str) -> Size:
    try:
        batch, length, inputs, hidden = map(int, text.split(","))
    except ValueError:
        batch = length = inputs = hidden = 0
    if min(batch, length, inputs, hidden) < 1:
        raise argparse.ArgumentTypeError(
            f"a size is batch,time,input,hidden, integers of at least 1, got {text!r}"
        )
    return batch, length, inputs, hidden


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"an integer of at least {least}, got {text!r}")
    return int(text)


def _at_least_one(text: str) -> int:
    return _count(text, 1)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 60.0:
        raise argparse.ArgumentTypeError(f"seconds, more than 0 and at most 60, got {text!r}")
    return value
