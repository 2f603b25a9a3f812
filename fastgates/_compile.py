"""Compile cells ahead of their first use, in another process where there is a second core.

Numba compiles one function at a time in a process; what another process has compiled is found on
disk. ``python -m fastgates._compile CELL ...`` fills the cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ._jit import cache_directory
from ._threads import get_num_threads
from .layers import Recurrent

__all__ = ["compile_cells", "compiling_beside"]


def compile_cells(names: Iterable[str]) -> None:
    """Run the forward and the backward pass of each of the registered cells once."""
    for name in names:
        layer = Recurrent(name, 1, 1, seed=0)
        output, _, tape = layer.forward(np.zeros((2, 2, 1), np.float32))
        layer.backward(tape, output)


@contextmanager
def compiling_beside(names: Iterable[str]) -> Iterator[None]:
    """Let another process fill the cache with cells that are needed later, during a block.

    Without a cache or a second core nothing is started. What is not ready in time is simply
    compiled here too.
    """
    if cache_directory() is None or get_num_threads() == 1:
        yield
        return
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fastgates._compile", *names],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    compile_cells(sys.argv[1:])
