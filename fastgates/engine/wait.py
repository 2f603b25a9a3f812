"""To wait for other threads without going to sleep, and without the interpreter's lock."""

from __future__ import annotations

from .._jit import STAMP, kernel
from .._simd import fence

__all__ = ["wait_for"]

_LINGER = 100  # looks more, while the last thread gives the lock of the interpreter back


@kernel
def wait_for(counter, count, patience, stamp=STAMP):
    """Return when another thread has raised ``counter[0]`` to `count`, or after so many looks."""
    looks = 0
    while counter[0] < count and looks < patience:
        fence()
        looks += 1
    if looks > 0:
        for _ in range(_LINGER):
            fence()
