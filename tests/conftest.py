"""Markers, hypothesis profiles and the fixtures shared by the tests."""

import os
import signal

import pytest
from helpers import CELLS, TORCH_CELLS
from hypothesis import HealthCheck, settings

# "default" is what CI runs: the same examples every time, no deadline (a first call compiles).
# HYPOTHESIS_PROFILE=explore looks at new examples, many more of them.
settings.register_profile(
    "default",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "explore", settings.get_profile("default"), derandomize=False, max_examples=500
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# A shell that starts pytest in the background lets it, and what it starts, ignore Ctrl-C: what is
# to be interrupted would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=CELLS, ids=str)
def case(request):
    """Every cell with every option that changes its equations."""
    return request.param


@pytest.fixture(params=TORCH_CELLS, ids=str)
def torch_case(request):
    """Every cell that PyTorch has too."""
    pytest.importorskip("torch")
    return request.param


@pytest.fixture
def restore_threads():
    """Give the number of threads back after a test that changes it."""
    import fastgates

    before = fastgates.get_num_threads()
    yield
    fastgates.set_num_threads(before)


@pytest.fixture
def share_out_small_work(monkeypatch):
    """All work is shared out, which else stays in the calling thread if it is small."""
    monkeypatch.setattr("fastgates._threads.SMALL_WORK", 0)
    monkeypatch.setattr("fastgates._threads.WORTH_WAKING", 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, where the test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run the command; return its exit code, and what it wrote to stdout and stderr."""
    from fastgates.cli import main

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call
