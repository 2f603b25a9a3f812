"""How many threads, and the small pool that runs the ranges of a pass.

Kernels are serial and release the GIL; a pass is cut into ranges of the batch (or of the units, for
weight gradients) that any thread may run, since no result depends on the split. The calling thread
takes its share, so a pass always ends, whatever else keeps the pool busy. Workers wait on a queue:
idle ones use no processor time. After ``fork`` the child makes a pool of its own.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

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


# Multiply-adds, some 300 us of one thread, below which two are not worth it: until a sleeping
# worker runs, 50 to 100 us pass, in which the calling thread has done a good part of the work.
SMALL_WORK = 10_000_000

_num_threads = _default_num_threads()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """In a forked child: the pool's threads stayed in the parent."""
    global _lock, _pool, _pool_size
    _lock = threading.Lock()
    _pool = None
    _pool_size = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


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


def _get_pool(size: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # here, for a quick import of the package

    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool = ThreadPoolExecutor(size, thread_name_prefix="fastgates")
            _pool_size = size
        return _pool


def run(make_worker: Callable[[], Callable[[int], None]], count: int, threads: int) -> None:
    """Run the tasks 0 ... count - 1 on up to `threads` threads, the calling one included.

    Parameters
    ----------
    make_worker : callable
        Called once in each thread that takes part; returns what runs a task by its number.
    """
    if threads == 1 or count == 1:
        task = make_worker()
        for number in range(count):
            task(number)
        return
    numbers = itertools.count()

    def work() -> None:
        task = make_worker()
        for number in numbers:
            if number >= count:
                return
            task(number)

    helpers: list[Future[None]] = []
    wanted = min(threads, count) - 1
    try:
        pool = _get_pool(max(wanted, _num_threads - 1))
        for _ in range(wanted):
            helpers.append(pool.submit(work))
    except (RuntimeError, ImportError):  # the interpreter ends, or the pool was just replaced
        pass
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.exception()  # wait for it
    for helper in helpers:
        if not helper.cancelled():
            helper.result()
