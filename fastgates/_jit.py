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
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.runtime import rtsys

__all__ = [
    "CACHE_DIRECTORY_ASKED",
    "INT0",
    "STAMP",
    "c_function",
    "cache_directory",
    "cache_problem",
    "helper",
    "kernel",
    "kernels",
]

_PACKAGE = Path(__file__).resolve().parent

# No fast-math flag at all: products ask for fused multiply-adds by name, so that the same sum has
# the same bits in every kernel, whatever the optimiser finds around it.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def _hash_of_sources() -> int:
    """Return 62 bits of a hash over all that goes into kernels, and the SIMD width asked for."""
    digest = hashlib.sha256(os.environ.get("FASTGATES_LANES", "").encode())
    paths = [_PACKAGE / name for name in ("_jit.py", "_simd.py", "_vecmath.py", "jit.py")]
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
_making = threading.RLock()  # around what looks at Numba's configuration


def _forget_lock() -> None:
    """In a forked child: the thread that holds the lock stayed in the parent."""
    global _making
    _making = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
_directory = os.environ.get("FASTGATES_CACHE_DIR")
CACHE_DIRECTORY_ASKED = os.path.abspath(_directory) if _directory else None
_cache_wanted = os.environ.get("FASTGATES_CACHE", "1") != "0"
_cache_problem: str | None = None if _cache_wanted else "FASTGATES_CACHE=0 turns the cache off"


@contextmanager
def _numba_cache_directory() -> Iterator[None]:
    """Let Numba place a cache below ``FASTGATES_CACHE_DIR`` while a dispatcher is being made."""
    if CACHE_DIRECTORY_ASKED is None:
        yield
        return
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = CACHE_DIRECTORY_ASKED
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


def _load(cache: Any, signature: Any, target: Any) -> Any:
    """Return a kernel or C function from the disk cache, or None where it is not there.

    Numba's own ``load_overload`` first gets ready to compile: it imports SciPy's linear algebra for
    BLAS and registers the implementation of all that it knows, which takes ten times as long as to
    load a kernel. Machine code asks for the run-time library only; should a kernel be compiled
    after all, Numba's compiler gets ready by itself.
    """
    rtsys.initialize(target)
    with cache._guard_against_spurious_io_errors():
        return cache._load_overload(signature, target)


class _Lazy:
    """A function whose Numba object, its dispatcher, is made when it is first asked for.

    Most processes find their few kernels on disk and need no helper at all: to make the eighty
    dispatchers of the package in vain would take longer than all else in its import.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        wrapper: Any = self
        update_wrapper(wrapper, function)

    def _make(self) -> Any:
        raise NotImplementedError

    def __reduce__(self) -> str:
        # By its name, also for the key of a kernel that is a closure over it.
        return self.py_func.__qualname__

    def __getattr__(self, name: str) -> Any:
        if name != "dispatcher":
            if name.startswith("__"):  # what copy, pickle and inspect try
                raise AttributeError(name)
            return getattr(self.dispatcher, name)
        # Of two threads that come here at once, the first to end decides for both.
        return self.__dict__.setdefault(name, self._make())

    @property
    def _numba_type_(self) -> Any:
        """What Numba asks an object for that it meets in a function's globals."""
        return self.dispatcher._numba_type_


class _Helper(_Lazy):
    def _make(self) -> Any:
        njit: Any = numba.njit  # whose type lists only the usual options
        return njit(
            self.py_func,
            pipeline_class=_HelperCompiler,
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
            forceinline=True,
            **_OPTIONS,
        )


class _Kernel(_Lazy):
    def _make(self) -> Any:
        njit: Any = partial(numba.njit, pipeline_class=_KernelCompiler, **_OPTIONS)
        if _cache_wanted:
            try:
                with _making, _numba_cache_directory():
                    dispatcher = njit(self.py_func, cache=True)
            except RuntimeError as error:  # Numba found no directory that it may write to
                _stop_caching(error)
            else:
                cache: Any = dispatcher._cache
                cache.load_overload = _tolerate_errors(partial(_load, cache))
                cache.save_overload = _tolerate_errors(cache.save_overload)
                return dispatcher
        return njit(self.py_func)

    def __call__(self, *arguments: Any) -> Any:
        # Where a microsecond counts, callers take `dispatcher` themselves.
        return self.dispatcher(*arguments)

    def compiled(self, *arguments: Any) -> Any:
        """Compile or load the kernel for arguments of these types, and return Numba's result."""
        defaults: Any = self.py_func.__defaults__
        self.dispatcher.compile((*arguments, types.Omitted(*defaults)))
        (compiled,) = self.dispatcher.overloads.values()
        return compiled

    def address(self, *arguments: Any) -> int:
        """Return the address of the kernel for arguments of these types."""
        compiled = self.compiled(*arguments)
        return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


class _CFunction(_Lazy):
    def __init__(self, signature: Any, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._signature = signature

    def _make(self) -> Any:
        # The stamp becomes a part of the file's name: a C function has no defaults to hold it.
        function = self.py_func
        function.__qualname__ = f"{function.__name__}_{STAMP:x}"
        options = dict(_OPTIONS, nopython=True)
        del options["nogil"]  # there is none to release
        made: Any = CFunc(
            function, (self._signature.args, self._signature.return_type), {}, options
        )
        if _cache_wanted:
            try:
                with _making, _numba_cache_directory():
                    made.enable_caching()
            except RuntimeError as error:  # Numba found no directory that it may write to
                _stop_caching(error)
            else:
                cache: Any = made._cache
                cache.load_overload = _tolerate_errors(partial(_load, cache))
                cache.save_overload = _tolerate_errors(cache.save_overload)
        made.compile()
        return made


def c_function(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Declare a function that C code calls by its ``address``: compiled when that is asked for."""
    return partial(_CFunction, signature)


def helper(function: Callable[..., Any]) -> Any:
    """Declare a function that only kernels call; its machine code is part of theirs."""
    return _Helper(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Declare a kernel that Python calls: compiled at its first call, cached on disk.

    The last parameter of `function` must be ``stamp=STAMP`` (see the module's docstring).
    """
    declared = _Kernel(function)
    _kernels[f"{function.__module__}.{function.__qualname__}"] = declared
    return declared


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
