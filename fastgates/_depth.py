"""What stands behind ``fastgates depth``: how far back each cell learns to look.

Every cell is trained on each of the tasks of :mod:`fastgates.tasks` at growing length, with and
without clipping, by the same recipe. What is reported is whether the task was solved. A series of
lengths ends where no seed solves it: what is longer is harder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from . import initialization
from ._atomic import replacing
from ._tables import DataError
from ._threads import set_num_threads
from ._version import __version__
from .clipping import clip_grad_norm
from .dense import Dense
from .layers import GRU, LSTM, RNN, Recurrent, SimplifiedGRU
from .optimizers import SGD, Adam
from .sequential import Sequential
from .tasks import TASKS, Task

__all__ = [
    "CELLS",
    "FULL",
    "QUICK",
    "STARTS",
    "Results",
    "Run",
    "Series",
    "Settings",
    "all_series",
    "read",
    "report",
    "run_all",
    "train",
    "write",
]

_LEAK = 0.9

CELLS: dict[str, Callable[..., Recurrent]] = {
    "rnn": RNN,
    "leaky_rnn": lambda *sizes, **options: RNN(*sizes, leak=_LEAK, **options),
    "simplified_gru": SimplifiedGRU,
    "gru": GRU,
    "gru_reset_after": lambda *sizes, **options: GRU(*sizes, reset_after=True, **options),
    "lstm": LSTM,
}
"""Makers of the layers, by the cell's name in the registry."""

LABELS = {
    "rnn": "RNN",
    "leaky_rnn": f"leaky RNN ({_LEAK})",
    "simplified_gru": "SimplifiedGRU",
    "gru": "GRU",
    "gru_reset_after": "GRU, reset after",
    "lstm": "LSTM",
}

STARTS = ("memory", "plain")


@dataclass(frozen=True)
class Settings:
    """One recipe for all runs.

    Attributes
    ----------
    lengths : tuple of int
        Of the sequences; for copy memory of the pause.
    seeds : int
        Trainings for each point.
    steps : int
        Updates at most.
    start : {"memory", "plain"}
        "memory" starts plain and leaky cells orthogonal, and valves by chrono for the length at
        hand; "plain" is the layers' own uniform start.
    hidden_size, batch_size : int
    adam_rate, sgd_rate : float
        Learning rates; SGD has a momentum of 0.9.
    clip_norm : float
    test_size : int
        Sequences, the same throughout a run, on which it is checked every `check_every` steps
        whether the task is solved.
    seed : int
        All random numbers follow from it.
    """

    lengths: tuple[int, ...] = (10, 25, 50, 100, 200)
    seeds: int = 3
    steps: int = 1500
    start: str = "memory"
    hidden_size: int = 32
    batch_size: int = 32
    adam_rate: float = 1e-2
    sgd_rate: float = 3e-2
    clip_norm: float = 1.0
    test_size: int = 200
    check_every: int = 50
    seed: int = 0


FULL = Settings()
QUICK = Settings(lengths=(10, 50), seeds=1, steps=400)


@dataclass(frozen=True)
class Series:
    """A cell on a task with an optimiser, clipped or not: a line of growing lengths."""

    task: str
    cell: str
    optimizer: str
    clipped: bool

    @property
    def label(self) -> str:
        """Name of the line among those of its task."""
        return LABELS[self.cell] + (", SGD" if self.optimizer == "sgd" else "")


@dataclass(frozen=True)
class Run:
    """One training and how it ended.

    Attributes
    ----------
    solved, diverged : bool
    steps : int
        Updates until then.
    error : float
        The least one on the test sequences; NaN if it diverged before the first check.
    largest_norm : float
        Of the gradient before clipping.
    seconds : float
    """

    series: Series
    length: int
    seed: int
    solved: bool
    diverged: bool
    steps: int
    error: float
    largest_norm: float
    seconds: float


@dataclass
class Results:
    """Settings and all runs so far."""

    settings: Settings
    runs: list[Run]

    def solved(self, series: Series, length: int) -> tuple[int, int] | None:
        """Return how many trainings solved the task, and how many there were; None for none."""
        found = [r.solved for r in self.runs if r.series == series and r.length == length]
        return (sum(found), len(found)) if found else None

    def longest(self, series: Series) -> int:
        """Return the greatest length that most trainings solved; 0 for none."""
        best = 0
        for length in self.settings.lengths:
            share = self.solved(series, length)
            if share is not None and 2 * share[0] > share[1]:
                best = length
        return best


def all_series(tasks: Iterable[str], cells: Iterable[str]) -> list[Series]:
    """Return every series of these tasks and cells; the plain network is trained by SGD too."""
    cells = list(cells)
    return [
        Series(task, cell, optimizer, clipped)
        for task in tasks
        for cell in cells
        for optimizer in (("adam", "sgd") if cell == "rnn" else ("adam",))
        for clipped in (True, False)
    ]


# -- One training ---------------------------------------------------------------------------------


def _build(task: Task, series: Series, length: int, settings: Settings, seed: int) -> Sequential:
    weights, start, readout = np.random.default_rng([settings.seed, seed]).spawn(3)
    hidden = settings.hidden_size
    layer = CELLS[series.cell](task.input_size, hidden, seed=weights)
    if settings.start == "memory":
        if series.cell in initialization.MEMORY_GATES:
            initialization.chrono(layer, max(3, task.steps(length)), seed=start)
        else:
            initialization.orthogonal(layer, seed=start)
    return Sequential(
        layer,
        Dense(hidden, task.output_size, seed=readout),
        return_sequences=task.steps_asked > 1,
    )


def _answers(output: np.ndarray, task: Task) -> np.ndarray:
    """Return the outputs that are asked for, (B, steps asked, output_size)."""
    return output[:, None] if output.ndim == 2 else output[:, -task.steps_asked :]


def train(series: Series, length: int, settings: Settings, seed: int) -> Run:
    """Train until the task is solved, the steps are used up, or a number is not finite."""
    began = time.perf_counter()
    task = TASKS[series.task]()
    model = _build(task, series, length, settings, seed)
    if series.optimizer == "adam":
        optimizer: Any = Adam([model], lr=settings.adam_rate)
    else:
        optimizer = SGD([model], lr=settings.sgd_rate, momentum=0.9)
    place = [settings.seed, seed, list(TASKS).index(series.task), length]
    batches, test_random = np.random.default_rng(place).spawn(2)
    test = task.batch(test_random, settings.test_size, length)
    max_norm = settings.clip_norm if series.clipped else math.inf
    error, largest, solved, step = math.nan, 0.0, False, 0
    finite = True
    while finite and not solved and step < settings.steps:
        batch = task.batch(batches, settings.batch_size, length)
        output, _, tape = model.forward(batch.x)
        with np.errstate(over="ignore", invalid="ignore"):  # divergence ends the run
            loss, d_answers = task.loss(_answers(output, task), batch.target)
            d_output = np.zeros(output.shape, np.float32)
            _answers(d_output, task)[...] = d_answers
            gradients = model.backward(tape, d_output, input_gradient=False)
            norm = clip_grad_norm(gradients, max_norm)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not finite:
            break
        largest = max(largest, norm)
        optimizer.step([gradients])
        step += 1
        if step % settings.check_every == 0 or step == settings.steps:
            with np.errstate(over="ignore", invalid="ignore"):
                now = task.error(_answers(model(test.x)[0], task), test.target)
            error = now if math.isnan(error) else min(error, now)
            solved = now < task.solved_below
    seconds = time.perf_counter() - began
    return Run(series, length, seed, solved, not finite, step, error, largest, seconds)


# -- All of them ----------------------------------------------------------------------------------


def _train_in_worker(series: Series, length: int, settings: Settings, seed: int) -> Run:
    set_num_threads(1)
    return train(series, length, settings, seed)


def run_all(
    series: Sequence[Series],
    settings: Settings,
    done: Iterable[Run] = (),
    jobs: int = 1,
) -> Iterator[tuple[Run, int]]:
    """Train everything that is not done; yield each run, and how many are left at most.

    The runs are the same for any number of processes, but not their order.
    """
    known = {(r.series, r.length, r.seed): r for r in done}
    lines = [_Line(each, settings, known) for each in series]
    if jobs == 1:
        for place, line in enumerate(lines):
            while todo := line.next():
                run = train(*todo)
                line.take(run)
                yield run, sum(each.left for each in lines[place:])
        return
    # Not forked: this process may have threads.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        running: dict[Future[Run], _Line] = {}
        while True:
            for line in lines:
                while len(running) < 2 * jobs and (todo := line.next()):
                    running[pool.submit(_train_in_worker, *todo)] = line
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                line, run = running.pop(future), future.result()
                line.take(run)
                yield run, sum(each.left for each in lines)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Line:
    """What is still to do in a series."""

    def __init__(
        self, series: Series, settings: Settings, known: Mapping[tuple[Series, int, int], Run]
    ) -> None:
        self._series, self._settings = series, settings
        self._lengths = list(settings.lengths)
        self._given: set[int] = set()
        self._runs: dict[int, Run] = {}
        self._known = known
        self._skip_known()

    def _skip_known(self) -> None:
        """Take the runs of the length at hand that are done already."""
        while self._lengths:
            for seed in range(self._settings.seeds):
                run = self._known.get((self._series, self._lengths[0], seed))
                if run is not None and seed not in self._runs:
                    self._given.add(seed)
                    self._runs[seed] = run
            if not self._advance():
                return

    def _advance(self) -> bool:
        """Go on to the next length, or end, where all runs of this one are known."""
        if len(self._runs) < self._settings.seeds:
            return False
        solved = any(run.solved for run in self._runs.values())
        self._lengths = self._lengths[1:] if solved else []
        self._given, self._runs = set(), {}
        return True

    @property
    def left(self) -> int:
        """Runs that are still to do, if each length is solved."""
        return len(self._lengths) * self._settings.seeds - len(self._runs)

    def next(self) -> tuple[Series, int, Settings, int] | None:
        """Return what can be run now, if anything."""
        if not self._lengths:
            return None
        for seed in range(self._settings.seeds):
            if seed not in self._given:
                self._given.add(seed)
                return self._series, self._lengths[0], self._settings, seed
        return None

    def take(self, run: Run) -> None:
        """Note how a run ended."""
        self._runs[run.seed] = run
        if self._advance():
            self._skip_known()


# -- Files and the report -------------------------------------------------------------------------


def write(results: Results, path: str | os.PathLike[str]) -> None:
    """Write all runs so far as JSON, whole or not at all."""
    runs = sorted(results.runs, key=lambda r: (*dataclasses.astuple(r.series), r.length, r.seed))
    content = {
        "fastgates depth": __version__,
        "settings": dataclasses.asdict(results.settings),
        "runs": [_as_json(run) for run in runs],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _as_json(run: Run) -> dict[str, Any]:
    fields = dataclasses.asdict(run)
    fields = fields.pop("series") | fields
    # JSON has no NaN.
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in fields.items()}


def read(path: str | os.PathLike[str]) -> Results:
    """Read what :func:`write` wrote.

    Raises
    ------
    DataError
        If it cannot be read, or is something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        settings = content["settings"] | {"lengths": tuple(content["settings"]["lengths"])}
        names = [field.name for field in dataclasses.fields(Series)]
        runs = []
        for fields in content["runs"]:
            series = Series(**{name: fields.pop(name) for name in names})
            error = math.nan if fields["error"] is None else fields["error"]
            runs.append(Run(series, **fields | {"error": error}))
        return Results(Settings(**settings), runs)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a file of fastgates depth --json: {error}") from None


def report(results: Results) -> str:
    """Return a table for each task: how many trainings solved it, by length."""
    lengths = results.settings.lengths
    tasks = list(dict.fromkeys(r.series.task for r in results.runs))
    width = 5 * len(lengths)
    lines: list[str] = []
    for task in sorted(tasks, key=list(TASKS).index):
        made = TASKS[task]()
        lines += [
            f"{task}: {made.error_name} below {made.solved_below:g} "
            f"(without memory {made.baseline(lengths[0]):.3g})",
            f"{'':18}{'clipped':<{width}}   not clipped",
            (f"{'':18}" + "   ".join(["".join(f"{n:<5}" for n in lengths)] * 2)).rstrip(),
        ]
        present = dict.fromkeys(
            (r.series.cell, r.series.optimizer) for r in results.runs if r.series.task == task
        )
        for cell, optimizer in sorted(
            present, key=lambda each: (each[1], list(CELLS).index(each[0]))
        ):
            parts = [
                "".join(f"{_share(results, series, length):<5}" for length in lengths)
                for series in (Series(task, cell, optimizer, clipped) for clipped in (True, False))
            ]
            lines.append(f"{series_label(task, cell, optimizer):18}" + "   ".join(parts).rstrip())
        lines.append("")
    return "\n".join([*lines, *_summary(results)])


def series_label(task: str, cell: str, optimizer: str) -> str:
    """Return the label of a pair of series."""
    return Series(task, cell, optimizer, True).label


def _share(results: Results, series: Series, length: int) -> str:
    found = results.solved(series, length)
    return "." if found is None else f"{found[0]}/{found[1]}"


def _summary(results: Results) -> list[str]:
    """Return what exploded, in a sentence."""
    norms = [r.largest_norm for r in results.runs]
    diverged = sum(r.diverged for r in results.runs)
    if not norms:
        return ["nothing was run"]
    return [
        f"{len(norms)} trainings in {sum(r.seconds for r in results.runs):.0f} s; {diverged} ended "
        f"in numbers that are not finite; the largest gradient norm was {max(norms):.3g}",
        ". : not tried, since no training solved the length before",
    ]
