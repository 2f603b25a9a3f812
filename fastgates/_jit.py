"""Every decision about Numba: compiler options, disk cache, the guard against stale code.

Kernels are compiled on first use (never at import), each for one signature, and cached on disk by
Numba. Two things are added to Numba's cache:

- *A stamp.* Numba keys a cached kernel on the source of its own file only, so after an upgrade that
  changed a helper in another file, old machine code would run silently. Every kernel therefore ends
  with a parameter ``stamp=STAMP``, a hash of the sources that go into kernels: a default is part
  of the signature, and so of the key.
- *Switches.* ``FASTGATES_CACHE=0`` turns the disk cache off and ``FASTGATES_CACHE_DIR`` moves it.
  Where no directory can be written, or the disk fails later, kernels are compiled in memory and
  one warning says so.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial, update_wrapper
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

__all__ = ["INT0", "STAMP", "cache_directory", "cache_problem", "helper", "kernel", "kernels"]

_PACKAGE = Path(__file__).resolve().parent

# No fast-math flag at all: products ask for fused multiply-adds by name, so that the same sum has
# the same bits in every kernel, whatever the optimiser finds around it.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def _hash_of_sources() -> int:
    """Return 62 bits of a hash over all that goes into kernels, and the SIMD width asked for."""
    digest = hashlib.sha256(os.environ.get("FASTGATES_LANES", "").encode())
    paths = [_PACKAGE / name for name in ("_jit.py", "_simd.py", "_vecmath.py")]
    for folder in ("cells", "engine"):
        paths += sorted((_PACKAGE / folder).glob("*.py"))
    for path in paths:
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:8], "little") >> 2


STAMP = _hash_of_sources()

# Numba compiles a function anew for each literal integer that it is called with, also for the first
# value of a loop variable. Variables that are passed on start from this zero, and lengths of tuples
# are added to it.
INT0 = np.int64(0)

_kernels: dict[str, Any] = {}
_cache_wanted = os.environ.get("FASTGATES_CACHE", "1") != "0"
_cache_problem: str | None = None if _cache_wanted else "FASTGATES_CACHE=0 turns the cache off"


@contextmanager
def _numba_cache_directory() -> Iterator[None]:
    """Let Numba place caches below ``FASTGATES_CACHE_DIR`` while a kernel is being declared."""
    wanted = os.environ.get("FASTGATES_CACHE_DIR")
    if not wanted:
        yield
        return
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = os.path.abspath(wanted)
    try:
        yield
    finally:
        config.CACHE_DIR = before


def _stop_caching(error: Exception) -> None:
    """Say once that kernels are compiled anew in every process, and why."""
    global _cache_wanted, _cache_problem
    if _cache_wanted:
        _cache_wanted = False
        _cache_problem = (
            f"kernels cannot be kept on disk: {error}. Set FASTGATES_CACHE_DIR to a directory "
            "that can be written"
        )
        warnings.warn(
            f"fastgates compiles its kernels anew in every process: {error}. Set "
            "FASTGATES_CACHE_DIR to a directory that can be written, or FASTGATES_CACHE=0 "
            "to silence this.",
            RuntimeWarning,
            stacklevel=3,
        )


def _tolerate_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of Numba's cache that the file system fails mean "not in the cache"."""

    def tolerant(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except OSError as error:
            _stop_caching(error)
            return None

    return tolerant


def kernel(function: Callable[..., Any]) -> Any:
    """Declare a kernel that Python calls: compiled at its first call, cached on disk.

    The last parameter of `function` must be ``stamp=STAMP`` (see the module's docstring).
    """
    njit: Any = partial(numba.njit, pipeline_class=_KernelCompiler)
    dispatcher = None
    if _cache_wanted:
        try:
            with _numba_cache_directory():
                dispatcher = njit(function, cache=True, **_OPTIONS)
        except RuntimeError as error:  # Numba found no directory that it may write to
            _stop_caching(error)
        else:
            cache: Any = dispatcher._cache  # type: ignore[attr-defined]
            cache.load_overload = _tolerate_errors(cache.load_overload)
            cache.save_overload = _tolerate_errors(cache.save_overload)
    if dispatcher is None:
        dispatcher = njit(function, **_OPTIONS)
    _kernels[f"{function.__module__}.{function.__qualname__}"] = dispatcher
    return dispatcher


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """LLVM code that waits to be linked into a kernel: neither optimised nor compiled alone."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


# Passes of Numba's compiler for what is not used here: closures, `with` blocks, literal_unroll,
# functions inlined by Numba (LLVM does that), array expressions, exceptions with arguments, and
# what would be pruned by values of literals. They walk every function all the same.
_IDLE_PASSES = frozenset(
    {
        "DumpParforDiagnostics",
        "FindLiterallyCalls",
        "InlineClosureLikes",
        "InlineInlinables",
        "InlineOverloads",
        "LiteralPropagationSubPipelinePass",
        "LiteralUnroll",
        "MakeFunctionToJitFunction",
        "NopythonRewrites",
        "RewriteDynamicRaises",
        "WithLifting",
    }
)


class _KernelCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler without the passes that find nothing to do in kernels."""

    def define_pipelines(self) -> list[Any]:
        pipelines: list[Any] = super().define_pipelines()
        for manager in pipelines:
            seen = set()
            kept = []
            for entry in manager.passes:
                name = entry[0].__name__
                # Dead branches are looked for three times: after each of two passes left out.
                if name not in _IDLE_PASSES and not (name == "DeadBranchPrune" and name in seen):
                    kept.append(entry)
                seen.add(name)
            manager.passes[:] = kept
            # Not to analyse the whole function again after each pass that says it changed
            # something: the last passes do so for what they need.
            manager._ENFORCING = False
            manager.finalize()
        return pipelines


class _HelperCompiler(_KernelCompiler):
    """Numba's compiler, ending where a function can be called by other compiled functions.

    Numba by default makes each function callable from Python too, with its own machine code and
    wrappers. Kernels here are made of some fifty small functions, for which that takes ten times
    as long as the kernel itself.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        target = self.state.targetctx
        # The machine code exists only inside kernels. Numba wants some built-in function to know
        # it by: one that is unique, and raises TypeError should Python call it with arguments.
        target.get_executable = lambda library, description, environment: object().__dir__
        self.state.library = _Part(target.codegen(), "fastgates_helper")


class _Helper:
    """A function that only kernels call; Numba's object for it is made when a kernel asks.

    That is when a kernel is compiled: a process that finds its kernels on disk, as most do, would
    make some sixty of them in vain, which took longer than all other work of the import.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        update_wrapper(self, function)  # type: ignore[arg-type]

    @cached_property
    def _dispatcher(self) -> Any:
        njit: Any = numba.njit  # whose type lists only the usual options
        return njit(
            self.py_func,
            pipeline_class=_HelperCompiler,
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
            forceinline=True,
            **_OPTIONS,
        )

    @property
    def _numba_type_(self) -> Any:
        """What Numba asks an object for that it meets in a function's globals."""
        return self._dispatcher._numba_type_


def helper(function: Callable[..., Any]) -> Any:
    """Declare a function that only kernels call; its machine code is part of theirs."""
    return _Helper(function)


def kernels() -> dict[str, Any]:
    """Return every kernel declared so far, by its dotted name."""
    return dict(_kernels)


def cache_directory() -> str | None:
    """Return the directory of the compiled kernels, or None where nothing is kept on disk."""
    paths = [k.stats.cache_path for k in _kernels.values() if k.stats.cache_path]
    return os.path.commonpath(paths) if paths else None


def cache_problem() -> str | None:
    """Return why kernels are not kept on disk, or None while they are."""
    return _cache_problem
