"""How many threads, and the small pool that runs the ranges of a pass.

Kernels are serial and release the GIL; a pass is cut into ranges of the batch (or of the units, for
weight gradients) that any thread may run, since no result depends on the split. The calling thread
takes its share, so a pass always ends, whatever else keeps the pool busy. Workers wait on a queue:
idle ones use no processor time; the calling thread looks out for the last ones for a moment before
it goes to sleep. After ``fork`` the child makes a pool of its own.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from .engine.wait import wait_for

__all__ = ["SMALL_WORK", "get_num_threads", "run", "set_num_threads"]


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


# Multiply-adds, 250 us and more of one thread, below which two are not worth it: until a sleeping
# worker runs, some 50 us pass, in which the calling thread has done a good part of the work.
SMALL_WORK = 12_000_000

_PATIENCE = 10_000  # looks, some 10 ns each, before the calling thread goes to sleep

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
    """Threads that wait for jobs, which do not raise.

    Beside :class:`concurrent.futures.ThreadPoolExecutor`, a job begins and ends some 30 us sooner
    here, a tenth of the smallest pass that is shared. The threads are daemons: the end of the
    interpreter does not wait for them.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._size = 0
        self._growing = threading.Lock()

    def submit(self, job: Callable[[], None], times: int) -> None:
        """Have so many threads run a job."""
        while self._size < times:
            with self._growing:
                if self._size < times:
                    name, arguments = f"fastgates_{self._size}", (self._jobs,)
                    threading.Thread(target=_serve, name=name, args=arguments, daemon=True).start()
                    self._size += 1
        for _ in range(times):
            self._jobs.put(job)


def _serve(jobs: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        jobs.get()()


_pool = _Pool()


def _renew_pool() -> None:
    """In a forked child: the pool's threads stayed in the parent."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_pool)


class _Job:
    """Tasks 0 ... count - 1, which the calling thread and some helpers take one after the other."""

    def __init__(
        self, make_worker: Callable[[], Callable[[int], None]], count: int, helpers: int
    ) -> None:
        self._make_worker = make_worker
        self._count = count
        self._numbers = itertools.count()
        self._seats = [None] * helpers  # for helpers to come
        self._helpers = helpers
        # What helpers raised, or None, and how many are through, for compiled code to see.
        self._ends: SimpleQueue[BaseException | None] = SimpleQueue()
        self._through = np.zeros(1, np.int64)

    def _work(self) -> None:
        task = self._make_worker()
        for number in self._numbers:
            if number >= self._count:
                return
            task(number)

    def help(self) -> None:
        """Take part in a thread of the pool."""
        try:
            self._seats.pop()
        except IndexError:  # it came too late
            return
        error = None
        try:
            self._work()
        except BaseException as raised:
            error = raised
        self._ends.put(error)
        self._through[0] += 1

    def lead(self) -> None:
        """Take part in the calling thread, and wait for the helpers that came."""
        try:
            self._work()
        finally:
            came = self._helpers
            with suppress(IndexError):
                while True:  # whoever has not come by now has missed it
                    self._seats.pop()
                    came -= 1
            if came:
                # Not to go to sleep at once: to be woken takes 50 us, often more than is to wait.
                wait_for(self._through, came, _PATIENCE)
            errors = [self._ends.get() for _ in range(came)]
        for error in errors:
            if error is not None:
                raise error


def run(make_worker: Callable[[], Callable[[int], None]], count: int, threads: int) -> None:
    """Run the tasks 0 ... count - 1 on up to `threads` threads, the calling one included.

    Parameters
    ----------
    make_worker : callable
        Called once in each thread that takes part; returns what runs a task by its number.
    """
    helpers = min(threads, count) - 1
    if helpers < 1:
        task = make_worker()
        for number in range(count):
            task(number)
        return
    job = _Job(make_worker, count, helpers)
    with suppress(RuntimeError):  # no thread can be started: the interpreter ends
        _pool.submit(job.help, helpers)
    job.lead()
