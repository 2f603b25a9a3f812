"""The command ``fastgates depth``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from fastgates.commands._shared import at_least_one, at_least_zero, check_outputs

if TYPE_CHECKING:
    from fastgates._depth import Results, Run

__all__ = ["add_parser"]

_TASKS = ("recall", "adding", "order", "copy")
_CELLS = ("rnn", "leaky_rnn", "simplified_gru", "gru", "gru_reset_after", "lstm")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "depth",
        help="how far back each cell learns to look, with and without clipping",
        description="Train every cell on tasks that need a memory of known length, longer and "
        "longer, and show where each stops learning. docs/depth.md has the tasks and the recipe.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="two lengths, one seed: less than a minute")
    add(
        "--tasks",
        nargs="+",
        choices=_TASKS,
        default=list(_TASKS),
        metavar="TASK",
        help=f"of {', '.join(_TASKS)}; default: all",
    )
    add(
        "--cells",
        nargs="+",
        choices=_CELLS,
        default=list(_CELLS),
        metavar="CELL",
        help=f"of {', '.join(_CELLS)}; default: all",
    )
    add("--lengths", nargs="+", type=_length, metavar="N", help="of the sequences, ascending")
    add("--seeds", type=at_least_one, metavar="N", help="trainings of each point; default: 3")
    add("--steps", type=at_least_one, metavar="N", help="updates at most; default: 1500")
    add(
        "--start",
        choices=("memory", "plain"),
        help="memory (the default): orthogonal weights, valves by chrono; plain: uniform",
    )
    add("--seed", type=at_least_zero, metavar="N", help="of all random numbers; default: 0")
    add(
        "--jobs", type=at_least_one, metavar="N",
        help="processes; default: one for each processor, on which the results do not depend",
    )  # fmt: skip
    add(
        "--json",
        metavar="FILE.json",
        help="write the runs, also while it is going on; a file of a run that was broken off is "
        "gone on with",
    )
    add("--plot", metavar="FILE.png", help="draw success against length")
    add(
        "--from",
        dest="sources",
        nargs="+",
        metavar="FILE.json",
        help="train nothing, take runs of --json, also several of the same settings",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_outputs(arguments.sources or [], [arguments.json, arguments.plot])
    if arguments.plot is not None:
        from fastgates._plots import check_picture

        check_picture(arguments.plot)
    from fastgates import _depth

    results = _merged(arguments.sources) if arguments.sources else _trained(arguments)
    print(_depth.report(results))
    if arguments.sources and arguments.json is not None:
        _depth.write(results, arguments.json)
    if arguments.plot is not None:
        from fastgates._depth_plot import depth_picture

        depth_picture(results, arguments.plot)
        print(f"\npicture: {arguments.plot}")
    return 0


def _trained(arguments: argparse.Namespace) -> Results:
    from dataclasses import replace

    from tqdm import tqdm

    from fastgates import _depth, get_num_threads
    from fastgates._atomic import check_writable
    from fastgates._tables import DataError

    given = {
        "lengths": tuple(sorted(set(arguments.lengths))) if arguments.lengths else None,
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "start": arguments.start,
        "seed": arguments.seed,
    }
    base = _depth.QUICK if arguments.quick else _depth.FULL
    settings = replace(base, **{k: v for k, v in given.items() if v is not None})
    results = _depth.Results(settings, [])
    if arguments.json is not None:
        if os.path.exists(arguments.json):
            results = _depth.read(arguments.json)
            if results.settings != settings:
                raise DataError(
                    f"{arguments.json} holds runs of other settings: remove it or name another"
                )
        check_writable(arguments.json)
    series = _depth.all_series(arguments.tasks, arguments.cells)
    jobs = arguments.jobs or get_num_threads()
    terminal = sys.stderr.isatty()
    with tqdm(
        desc="depth",
        total=len(series) * len(settings.lengths) * settings.seeds,
        unit=" runs",
        mininterval=0.1 if terminal else 5.0,
        dynamic_ncols=terminal,
    ) as bar:
        for run, left in _depth.run_all(series, settings, list(results.runs), jobs):
            results.runs.append(run)
            if arguments.json is not None:
                _depth.write(results, arguments.json)
            bar.set_postfix_str(
                f"{run.series.task} {run.length}, {run.series.label}: "
                f"{'solved' if run.solved else 'not solved'} after {run.steps} steps",
                refresh=False,
            )
            bar.update(bar.total - left - bar.n)
    return results


def _merged(paths: list[str]) -> Results:
    from fastgates import _depth
    from fastgates._tables import DataError

    parts = [(path, _depth.read(path)) for path in paths]
    settings = parts[0][1].settings
    runs: dict[object, Run] = {}
    for path, part in parts:
        if part.settings != settings:
            raise DataError(f"{path} has other settings than {paths[0]}: they cannot be merged")
        runs |= {(run.series, run.length, run.seed): run for run in part.runs}
    return _depth.Results(settings, list(runs.values()))


def _length(text: str) -> int:
    value = at_least_one(text)
    if value < 5:
        raise argparse.ArgumentTypeError(f"a length of at least 5, got {text!r}")
    return value
