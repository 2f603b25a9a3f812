"""The machine a benchmark runs on: pinned to one core, described in words.

`one_core` has to be entered before a peer is imported: thread pools are sized at import, from the
affinity of the process and from these environment variables.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastgates._version import __version__

#: Variables read by the peers when they are imported, all meaning "one thread".
SINGLE_THREAD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "FASTGATES_NUM_THREADS": "1",
    "NPROC": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OPENVINO_TELEMETRY": "0",
}

#: Distribution names of everything whose version belongs in the header of a table.
DISTRIBUTIONS = (
    "fastgates",
    "numba",
    "llvmlite",
    "numpy",
    "torch",
    "onnxruntime",
    "openvino",
    "jax",
    "jaxlib",
)


class CoreError(ValueError):
    """The process may not run on the core asked for."""


def pin_to_one_core(core: int | None = None) -> int | None:
    """Pin this process to one core and tell the peers to use one thread.

    Parameters
    ----------
    core : int, optional
        Core to use. Default: the variable ``FASTGATES_BENCH_CORE``, else the highest core the
        process may run on (the lowest one tends to serve the machine's interrupts).

    Returns
    -------
    int or None
        The core, or None where the operating system has no affinity (macOS, Windows); the
        single-thread variables are set all the same.

    Raises
    ------
    CoreError
        If the process may not run on `core`.
    """
    os.environ.update(SINGLE_THREAD_ENVIRONMENT)
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    if core is None:
        chosen = os.environ.get("FASTGATES_BENCH_CORE")
        core = int(chosen) if chosen else max(allowed)
    if core not in allowed:
        raise CoreError(f"core must be one of {sorted(allowed)}, got {core}")
    os.sched_setaffinity(0, {core})
    return core


@contextmanager
def one_core(core: int | None = None) -> Iterator[int | None]:
    """Pin to one core and use one thread during a block; give everything back at its end.

    Parameters and errors are those of `pin_to_one_core`, and so is what the block is given.
    """
    import fastgates

    environment = dict(os.environ)
    threads = fastgates.get_num_threads()
    allowed = allowed_cores()
    try:
        chosen = pin_to_one_core(core)
        fastgates.set_num_threads(1)
        yield chosen
    finally:
        fastgates.set_num_threads(threads)
        for name in SINGLE_THREAD_ENVIRONMENT:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                os.environ.pop(name, None)
        if allowed:
            os.sched_setaffinity(0, allowed)


def allowed_cores() -> set[int]:
    """Return the cores that this process may run on; empty where the system does not say."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()


def cpu_name() -> str:
    """Return the processor's name and, on x86 Linux, its family and model numbers."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", text.split("\n\n", 1)[0], re.MULTILINE))
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def numba_target() -> str:
    """Return the name of the processor that Numba compiles for, such as ``znver3``."""
    import llvmlite.binding as llvm
    from numba.core import config

    return str(getattr(config, "CPU_NAME", None) or llvm.get_host_cpu_name())


def package_versions() -> dict[str, str]:
    """Return the versions of fastgates and of every installed peer, by distribution name."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "fastgates" not in found:
        found = {"fastgates": __version__, **found}
    return found


def describe() -> dict[str, object]:
    """Return what a table's header says about the machine and the software."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_name(),
        "numba_target": numba_target(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": package_versions(),
    }
