"""How many threads, and the small pool that runs the ranges of a pass.

Kernels are serial. A pass is cut into ranges of the batch (or of the units, for weight gradients)
that any thread may run, since no result depends on the split. The threads of the pool wait in
Python, where idle ones use no processor time, and take part in compiled code alone
(:mod:`fastgates.engine.share`), so none waits for the interpreter's lock. The calling thread takes
its share, so a pass always ends, whatever else keeps the pool busy. After ``fork`` the child makes
a pool of its own.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numba.core import types

from .engine.call import address, aligned_empty
from .engine.share import ASLEEP, BOX, CALLS, FAILED, JOB_FIELDS, SHARED, WAIT, lead, serve

__all__ = [
    "Tasks",
    "compile_sharing",
    "get_num_threads",
    "is_small",
    "set_num_threads",
    "threads_for",
]


def _quota() -> float:
    """Return the processors that a Linux container may use (cgroup v2 or v1), or infinity."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    if limit in ("max", "-1"):
        return math.inf
    return int(limit) / int(period)


def _default_num_threads() -> int:
    """Return ``FASTGATES_NUM_THREADS``, else the processors that this process may use."""
    asked = os.environ.get("FASTGATES_NUM_THREADS")
    if asked is not None:
        if not asked.isdigit() or int(asked) < 1:
            raise ImportError(f"FASTGATES_NUM_THREADS must be a positive integer, got {asked!r}")
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return max(1, min(available, math.ceil(_quota()) if _quota() < math.inf else available))


# Multiply-adds, 150 us and more of one thread, below which two are not worth it; and so many that
# it is worth to wake sleeping workers for them alone, which may take 100 us, and their caches are
# cold. In between it is where passes have followed each other for some time.
SMALL_WORK, WORTH_WAKING = 8_000_000, 32_000_000
_BUSY = 5e-3  # seconds, longer than one training step of that size
_PAUSE, _PACE = 3e-4, 1e-10  # seconds between passes, and for a multiply-add, at most

# Seconds for which threads look out before they go to sleep, since to be woken takes 50 us: the
# calling one for the workers' last tasks, a worker for the next job. A training step has several
# jobs, 10 to 50 us apart.
_PATIENCE = 100e-6
_MOST_WORKERS = 1024

_num_threads = _default_num_threads()


def get_num_threads() -> int:
    """Return the number of threads that one call may use."""
    return _num_threads


def set_num_threads(n: int) -> None:
    """Set the number of threads that one call may use, for the whole process.

    The default is ``FASTGATES_NUM_THREADS``, else the number of processors that the process may
    use (affinity, and the container's quota). Results are bitwise the same for any number.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ValueError
        If `n` is not a positive integer.
    """
    global _num_threads
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n must be a positive integer, got {n!r}")
    _num_threads = n


class _Pool:
    """Threads that serve the jobs in their boxes; they start when they are first wanted.

    They are daemons: the end of the interpreter does not wait for them.
    """

    def __init__(self) -> None:
        self._boxes = aligned_empty((_MOST_WORKERS, 2 * BOX)).view(np.int64)
        self._boxes[...] = 0
        self._boxes[:, ASLEEP] = 1
        self._busy_since, self._idle_from = 0.0, 0.0
        self._boxes_at = address(self._boxes)
        self._bells: list[SimpleQueue[None]] = []  # of the workers
        self._leaders: dict[int, SimpleQueue[None]] = {}  # who wait for the job at an address
        self._growing = threading.Lock()

    def is_worth_asking(self, work: int) -> bool:
        """Tell whether workers look out for jobs, or it pays to wake them for this and the next."""
        now = time.perf_counter()
        if now > self._idle_from:
            self._busy_since = now
        self._idle_from = now + _PACE * work + _PAUSE
        return now - self._busy_since > _BUSY or not self._boxes[0, ASLEEP]

    def run(self, job: np.ndarray, workers: int) -> None:
        """Run a job with the help of so many workers, or of those that are free."""
        boxes, bells = self._boxes, self._bells
        if len(bells) < workers:
            with suppress(RuntimeError):  # no thread can be started: the interpreter ends
                self._grow(min(workers, _MOST_WORKERS))
        workers = min(workers, len(bells))
        at, interrupt = address(job), None
        told: SimpleQueue[None] = SimpleQueue()
        self._leaders[at] = told
        patience = _looks()
        while True:
            # Whatever interrupts: others work on the caller's arrays, so first comes the end.
            try:
                while to_do := lead.dispatcher(at, self._boxes_at, workers, patience):
                    if to_do == WAIT:
                        with suppress(Empty):  # what was told may be lost to an interrupt
                            told.get(timeout=1)
                        continue
                    for worker in range(workers):
                        if boxes[worker, ASLEEP]:
                            boxes[worker, ASLEEP] = 0
                            bells[worker].put(None)
                break
            except BaseException as error:
                interrupt = error
        del self._leaders[at]
        if interrupt is not None:
            raise interrupt

    def _grow(self, size: int) -> None:
        with self._growing:
            for worker in range(len(self._bells), size):
                bell: SimpleQueue[None] = SimpleQueue()
                name, arguments = f"fastgates_{worker}", (worker, bell)
                threading.Thread(target=self._serve, name=name, args=arguments, daemon=True).start()
                self._bells.append(bell)

    def _serve(self, worker: int, bell: SimpleQueue[None]) -> None:
        box, patience = self._boxes_at + 8 * BOX * worker, _looks()
        while True:
            job = serve.dispatcher(box, 1 + worker, patience)
            if job == 0:
                bell.get()
                continue
            told = self._leaders.get(job)
            if told is not None:
                told.put(None)


_pool = _Pool()


def _renew_pool() -> None:
    """In a forked child: the pool's threads stayed in the parent."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_pool)


def is_small(work: int) -> bool:
    """Tell whether so many multiply-adds are too few for several threads."""
    return work < SMALL_WORK


def threads_for(work: int) -> int:
    """Return how many threads should share a pass of so many multiply-adds that begins now."""
    if is_small(work) or _num_threads == 1:
        return 1
    return _num_threads if work >= WORTH_WAKING or _pool.is_worth_asking(work) else 1


@lru_cache(maxsize=1)
def _looks() -> int:
    """Return how often a thread looks in ``_PATIENCE``."""
    box, looks, seconds = np.zeros(BOX, np.int64), 10_000, []
    for _ in range(3):
        began = time.perf_counter()
        serve.dispatcher(address(box), 1, looks)
        seconds.append(time.perf_counter() - began)
    return math.ceil(looks * _PATIENCE / min(seconds))


@lru_cache(maxsize=1)
def compile_sharing() -> None:
    """Compile or load what threads share their work with."""
    for kernel, count in ((lead, 4), (serve, 3)):
        kernel.compiled(*[types.int64] * count)


@cache
def _address_of(kernel: Any) -> int:
    return int(kernel.address(*SHARED))


class Tasks:
    """The tasks of a kernel, which some threads share.

    Parameters
    ----------
    kernel : kernel
        It takes a call and two numbers, its results do not depend on who calls it when.
    bounds : list of int
        Task i is given ``bounds[i]`` and ``bounds[i + 1]``.
    threads : int
        At most, the calling one included.
    stride : int, optional
        How many int64 the calls of threads are apart; 0 where all take the same.
    by_task : bool, optional
        Whether tasks have calls of their own, instead of threads.
    n_alike : int, optional
        How many int64 of the first call go into those of the other threads, when they are run.
    """

    def __init__(
        self,
        kernel: Any,
        bounds: list[int],
        threads: int,
        stride: int = 0,
        by_task: bool = False,
        n_alike: int = 0,
    ) -> None:
        self._kernel, self._stride, self._by_task = kernel, stride, by_task
        self._n_alike = n_alike
        self._tasks = list(itertools.pairwise(bounds))
        self._workers = min(threads, len(self._tasks)) - 1
        if self._workers > 0:
            compile_sharing()
            self._numbers = np.array(self._tasks, np.int64)
            fields = dict.fromkeys(JOB_FIELDS, 0) | {
                "posted": -1,
                "expected": -1,
                "failed": -1,
                "kernel": _address_of(kernel),
                "stride": stride,
                "by_task": int(by_task),
                "tasks": address(self._numbers),
                "count": (count := len(self._tasks)),
                "threads": (threads := 1 + self._workers),
            }
            shares = [count * thread // threads for thread in range(threads)]
            self._job = np.array([*(fields[name] for name in JOB_FIELDS), *shares], np.int64)

    def run(self, calls: np.ndarray) -> None:
        """Run all tasks with these calls, int64, one after the other in a flat array."""
        if self._workers > 0:
            self._share(calls)
        elif self._by_task:
            for number in range(len(self._tasks)):
                self._run_one(calls, number)
        else:
            kernel = self._kernel.dispatcher
            for begin, end in self._tasks:
                kernel(calls, begin, end)

    def _share(self, calls: np.ndarray) -> None:
        if self._n_alike > 0:
            of_threads = calls.reshape(-1, self._stride)
            of_threads[1:, : self._n_alike] = of_threads[0, : self._n_alike]
        job = self._job.copy()
        job[CALLS] = address(calls)
        _pool.run(job, self._workers)
        failed = int(job[FAILED])
        if failed >= 0:
            self._run_one(calls, failed)  # to raise in Python what it raised
            raise RuntimeError(f"{self._kernel.__name__} failed in a thread")

    def _run_one(self, calls: np.ndarray, number: int) -> None:
        place = number * self._stride if self._by_task else 0
        self._kernel.dispatcher(calls[place:], *self._tasks[number])
