"""Contenders take turns at a case, round after round; the fastest call of each counts.

What disturbs the machine for a moment disturbs all of them alike. Results are checked against each
other before anything is timed.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastgates.benchmark import machine, peak
from fastgates.benchmark.cases import MODES, Case, make_data
from fastgates.benchmark.peers import SUBJECT, Built, Contender, check
from fastgates.benchmark.results import Results

__all__ = ["CLOCKS", "Plan", "Runner", "measure", "measured_header", "take_turns"]

#: ``cpu`` counts the time in which threads of the process ran. On a quiet machine that is the wall
#: time of a process pinned to one core; on a busy one it leaves out the waiting.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

#: A contender this many times slower than the fastest one after the first round sits out the rest.
HOPELESS = 5.0

#: Where the ratio of the best two lies within this factor of 1, all rounds are taken once more.
CLOSE = 1.25

#: A contender has had enough turns at a case after so many seconds of at least so many calls.
ENOUGH_SECONDS, ENOUGH_CALLS = 1.0, 3


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    modes : sequence of str
        Of ``inference`` and ``training``.
    rounds : int
        Turns of each contender.
    seconds : float
        Length of a turn, which has one call at least.
    clock : str
        A key of `CLOCKS`.
    """

    modes: Sequence[str] = MODES
    rounds: int = 5
    seconds: float = 0.03
    clock: str = "wall"


def measured_header(repeats: int = 20) -> dict[str, Any]:
    """Return the description of the machine with freshly measured limits."""
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
    limits = peak.limits(repeats=5)
    header["peak_gflops"] = max(header["peak_gflops"], limits.gflops)
    header["tanh_ns"] = min(header["tanh_ns"], limits.tanh)
    header["sigmoid_ns"] = min(header["sigmoid_ns"], limits.sigmoid)


def build_checked(
    results: Results, case: Case, contenders: Sequence[Contender], modes: Sequence[str]
) -> dict[str, Built]:
    """Build every contender that has the case's cell and compare it with fastgates.

    One that fails, or whose results differ, is left out, with a line in ``results.failures``.
    """
    data = make_data(case)
    built: dict[str, Built] = {}
    for contender in contenders:
        if not any(contender.supports(case.cell, mode) for mode in modes):
            continue
        name = contender.name
        try:
            made = contender.build(case, data)
            if made is None:
                continue
            if SUBJECT.name in built:
                check(name, made, built[SUBJECT.name], training="training" in modes)
        except Exception as error:  # whatever a peer raises must not end a long run
            message = " ".join(f"{type(error).__name__}: {error}".split())
            results.failures.append(f"{name}, {case.cell} {case.size_text}: {message}")
            continue
        built[name] = made
    return built


@dataclasses.dataclass
class Runner:
    """One contender at one case and mode."""

    call: Callable[[], object]
    best: float = math.inf
    wall: float = 0.0
    calls: int = 0

    def turn(self, plan: Plan) -> None:
        """Call for about ``plan.seconds``, after one call that warms the caches if it is short."""
        clock = CLOCKS[plan.clock]
        if self.best < plan.seconds / 4 or not self.calls:
            self.call()
        gc.disable()
        try:
            begin = now = time.perf_counter()
            while now == begin or now < begin + plan.seconds:
                start = clock()
                self.call()
                self.best = min(self.best, clock() - start)
                self.calls += 1
                now = time.perf_counter()
            self.wall += now - begin
        finally:
            gc.enable()

    @property
    def done(self) -> bool:
        """Whether further turns of a long call would be a waste."""
        return self.calls >= ENOUGH_CALLS and self.wall >= ENOUGH_SECONDS


def measure(results: Results, case: Case, contenders: Sequence[Contender], plan: Plan) -> None:
    """Time all contenders of a case in turns and add the fastest call of each to `results`.

    Parameters
    ----------
    results : Results
        Changed in place, as are the limits in its header, which are measured again.
    case : Case
        What to measure.
    contenders : sequence of Contender
        fastgates, the first, is the reference of the checks.
    plan : Plan
        How much.
    """
    gc.collect()
    refresh_limits(results.header)
    built = build_checked(results, case, contenders, plan.modes)
    for mode in plan.modes:
        runners = {
            name: Runner(call)
            for name, made in built.items()
            if (call := made.inference if mode == "inference" else made.train) is not None
        }
        take_turns(runners, plan)
        for name, runner in runners.items():
            results.add(case, mode, name, runner.best * 1e6)


def take_turns(runners: dict[str, Runner], plan: Plan) -> None:
    """Give each runner its turns: fewer if it is hopeless, twice as many if the result is close."""
    racing = list(runners)
    rounds = plan.rounds
    number = 0
    while number < rounds:
        for name in racing:
            if number == 0 or not runners[name].done:
                runners[name].turn(plan)
        number += 1
        if number == 1 and racing:
            limit = HOPELESS * min(runner.best for runner in runners.values())
            racing = [
                name for name in racing if runners[name].best <= limit or name == SUBJECT.name
            ]
        if number == plan.rounds and rounds == plan.rounds and _close(runners):
            rounds = 2 * plan.rounds


def _close(runners: dict[str, Runner]) -> bool:
    peers = [runner.best for name, runner in runners.items() if name != SUBJECT.name]
    if not peers or SUBJECT.name not in runners:
        return False
    return 1 / CLOSE < min(peers) / runners[SUBJECT.name].best < CLOSE
