"""Compile cells ahead of their first use: ``warmup``, and a second process that helps.

Numba compiles one function at a time in a process; what another process has compiled is found on
disk. ``python -m fastgates._compile [--inference-only] CELL ...`` fills the cache.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import cells as registry
from ._feed import Feed
from ._jit import CACHE_DIRECTORY_ASKED, cache_directory, cache_problem
from ._sequences import Sequences
from ._threads import compile_sharing, get_num_threads
from .clipping import clip_grad_norm
from .dense import Dense
from .engine.linear import NARROW, SMALL_ROWS
from .engine.share import SHARED
from .engine.step import run_rows
from .layers import Recurrent
from .losses import cross_entropy, mse
from .optimizers import SGD, Adam, RMSprop
from .sequential import Scaling, Sequential

__all__ = [
    "Warmup",
    "WarmupError",
    "checked_names",
    "compile_cells",
    "compiling_beside",
    "warmup",
]

_INFERENCE_ONLY = "--inference-only"


class WarmupError(RuntimeError):
    """Nothing was kept on disk, so the next process would compile again."""


class Warmup(NamedTuple):
    """What :func:`warmup` did.

    Attributes
    ----------
    cells : tuple of str
        The cells whose kernels are in the cache now.
    training : bool
        Whether those of back-propagation are, too.
    compiled : int
        How many kernels were not there before.
    seconds : float
        How long it took.
    directory : str
        Where the cache is.
    size : int
        Bytes in it.
    """

    cells: tuple[str, ...]
    training: bool
    compiled: int
    seconds: float
    directory: str
    size: int


def compile_cells(names: Iterable[str], training: bool = True) -> Iterator[str]:
    """Run every pass of each of the registered cells once, yielding its name after each."""
    x = np.zeros((2, 2, 1), np.float32)
    for name in names:
        # One of everything that a call can ask for, since it might have kernels of its own.
        layer = Recurrent(name, 1, 1, seed=0, bidirectional=True)
        lengths, resets = np.array([2, 1]), np.array([[False, True], [False, False]])
        layer(x)
        layer(x, lengths=lengths, resets=resets)
        if training:
            output, _, tape = layer.forward(x, lengths=lengths, resets=resets)
            layer.backward(tape, output)
        yield name


def warmup(
    cells: str | Iterable[str] | None = None,
    training: bool = True,
    *,
    progress: Callable[[str], None] | None = None,
) -> Warmup:
    """Compile cells now, into the disk cache, so that later processes start at once.

    Passes over sequences, and single steps: those of streams, of C functions, and those that
    compiled code calls. For the image of a container, or once before many processes of a cluster
    start. Kernels are made for the CPU of this machine, and later processes must find the same
    cache directory (see ``FASTGATES_CACHE_DIR``) and the same installed files. Where there is a
    second core, another process compiles half of several cells.

    Parameters
    ----------
    cells : str or iterable of str, optional
        Names in ``fastgates.cells.registered()``; by default all but those whose functions are
        chosen by options of the layer. ``Dense`` and ``Scaling`` are compiled in any case.
    training : bool, optional
        Whether to compile back-propagation, weight gradients and optimisers, too.
    progress : callable, optional
        Called with a cell's name when it is done.

    Returns
    -------
    Warmup
        What was compiled, how long it took, and where it is.

    Raises
    ------
    ValueError
        If a cell is not registered.
    WarmupError
        If there is no disk cache: it is switched off, or its directory cannot be written.
    """
    names = checked_names(cells)
    _check_cache()
    began, before = time.perf_counter(), _files()
    middle = (len(names) + 1) // 2
    with compiling_beside(names[middle:], training):
        for name in compile_cells(names, training):
            Recurrent(name, 1, 1, seed=0).stream()  # compiles its kernel for single steps
            _check_cache()
            if progress is not None:
                progress(name)
        dense = Dense(1, NARROW + 1, seed=0)
        for rows in (1, SMALL_ROWS + 1):
            output, tape = dense.forward(np.zeros((rows, 1), np.float32))
            if training:
                gradients = dense.backward(tape, output)
        Feed(Sequences(np.zeros((1, 1, 1))), {"x": None}).take(np.zeros(1, np.int64))
        if training:
            mse(np.zeros((1, 1)), np.zeros((1, 1)))
            cross_entropy(np.zeros((1, 1)), np.zeros(1, int))
            clip_grad_norm(gradients, 1.0)
            for optimizer in (Adam(dense), RMSprop(dense), SGD(dense, 0.1)):
                optimizer.step(gradients)
        compile_sharing()
        run_rows.compiled(*SHARED)  # what several threads run of a stream
        # What streams, compiled code and C functions run beside the cells.
        layer = Recurrent(names[0], 1, 1, seed=0)
        model = Sequential(Scaling([0.0], [1.0]), layer, dense)
        model.stream()
        function = model.cfunc()
        function.filter1d()
        function.integrand()
    _check_cache()
    files = _files()
    compiled = sum(1 for path, state in files.items() if before.get(path) != state)
    return Warmup(
        cells=names,
        training=training,
        compiled=compiled,
        seconds=time.perf_counter() - began,
        directory=str(cache_directory()),
        size=sum(size for _, size in files.values()),
    )


def checked_names(cells: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the names of cells, as :func:`warmup` takes them, or raise."""
    known = registry.registered()
    if cells is None:
        return tuple(name for name, cell in known.items() if not cell.functions)
    names = tuple(dict.fromkeys([cells] if isinstance(cells, str) else cells))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        asked = ", ".join(map(repr, unknown)) if unknown else "none"
        raise ValueError(f"cells must be among {', '.join(sorted(known))}; got {asked}")
    return names


def _check_cache() -> None:
    found = Path(str(cache_directory()))
    problem = cache_problem()
    if (
        problem is None
        and CACHE_DIRECTORY_ASKED is not None
        and not found.is_relative_to(CACHE_DIRECTORY_ASKED)
    ):
        # Numba takes the next place that it knows, which is fine for a call, but no warm-up.
        problem = f"{CACHE_DIRECTORY_ASKED} (FASTGATES_CACHE_DIR) cannot be written"
    if problem is not None:
        raise WarmupError(f"nothing to warm up: {problem}")


def _files() -> dict[Path, tuple[int, int]]:
    """Return time and size of the files with machine code in the cache."""
    directory = cache_directory()
    found = {}
    for path in Path(directory).rglob("*.nbc") if directory else ():
        try:
            status = path.stat()
        except OSError:  # another process has just replaced it
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
    return found


@contextmanager
def compiling_beside(names: Sequence[str], training: bool = True) -> Iterator[None]:
    """Let another process fill the cache with cells that are needed later, during a block.

    Without a cache, a second core or any names nothing is started. What is not ready in time is
    simply compiled here too.
    """
    if not names or cache_directory() is None or get_num_threads() == 1:
        yield
        return
    import subprocess  # here, since `import fastgates` must not wait for it

    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    options = [] if training else [_INFERENCE_ONLY]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fastgates._compile", *options, *names],
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
    asked = sys.argv[1:]
    for _ in compile_cells(
        [n for n in asked if n != _INFERENCE_ONLY], _INFERENCE_ONLY not in asked
    ):
        pass
