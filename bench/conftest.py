"""Set-up of ``pytest bench/``: one core, one thread, and which cases are measured."""

from __future__ import annotations

from typing import Any

import pytest

import fastgates
from fastgates.benchmark import machine
from fastgates.benchmark.cases import CELLS, DEFAULT_CELLS, MODES, QUICK_SIZES, SIZES, Case
from fastgates.benchmark.peers import installed_contenders


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--full``."""
    parser.addoption(
        "--full", action="store_true", help="benchmark every cell at every size, not a selection"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Pin the process before any peer is imported."""
    machine.pin_to_one_core()
    fastgates.set_num_threads(1)
    # What the peers warn about is theirs to mend.
    config.addinivalue_line("filterwarnings", "ignore")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise so that all contenders of one case and mode follow each other."""
    if "contender" not in metafunc.fixturenames:
        return
    full = metafunc.config.getoption("--full")
    parameters = [
        pytest.param(case, mode, contender, id=f"{cell}-{_name(case)}-{mode}-{contender.name}")
        for cell in (CELLS if full else DEFAULT_CELLS)
        for case in (Case(cell, *size) for size in (SIZES if full else QUICK_SIZES))
        for mode in MODES
        for contender in installed_contenders()
        if contender.supports(cell, mode)
    ]
    metafunc.parametrize(("case", "mode", "contender"), parameters)


def _name(case: Case) -> str:
    """Return the sizes as ``32x100x8x32``, which ``-k`` can select."""
    return "x".join(map(str, case.size))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Put the machine, the versions and the measured limits into the JSON file."""
    from fastgates.benchmark.measure import measured_header

    machine_info["fastgates_bench"] = measured_header(repeats=60)
