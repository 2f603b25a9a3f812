"""The command ``fastgates info``."""

from __future__ import annotations

import argparse

from fastgates import _extras

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser("info", help="versions, CPU, threads, cache, optional packages")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import platform

    from numba.core import config

    import fastgates
    from fastgates import _jit, _simd

    lines = {
        "fastgates": fastgates.__version__,
        "Python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "NumPy": _extras.version("numpy"),
        "Numba": f"{_extras.version('numba')} (llvmlite {_extras.version('llvmlite')})",
        "SciPy": _extras.version("scipy"),
        "CPU": getattr(config, "CPU_NAME", None) or _host_cpu(),
        "SIMD lanes": f"{_simd.LANES} x float32",
        "threads": fastgates.get_num_threads(),
        "cache": _jit.cache_directory() or "none: kernels are compiled again in every process",
    }
    for name, extra in _extras.EXTRAS.items():
        hint = f"not installed: pip install 'fastgates[{extra}]'"
        lines[name] = _extras.version(name) or hint
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _host_cpu() -> str:
    from llvmlite import binding

    return str(binding.get_host_cpu_name())
