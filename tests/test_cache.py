"""Numba's disk cache: hits, the guard against stale code, switches, and nowhere to write."""

import shutil
from pathlib import Path

import pytest
from helpers import PACKAGE_ROOT, run_python

RUN_ALL = """
    import json
    import sys
    from fastgates import _jit, _vecmath
    from helpers import CELLS, make_problem

    for case in CELLS:
        if case.id in sys.argv[1:]:
            make_problem(case).run()
            make_problem(case).layer([[[0.0] * 5]])
    _vecmath.tanh_array([0.5])
    hits, misses = {}, {}
    ran = [name for name, kernel in _jit.kernels().items() if kernel.signatures]
    for name, kernel in _jit.kernels().items():
        hits[name] = sum(kernel.stats.cache_hits.values())
        misses[name] = sum(kernel.stats.cache_misses.values())
    report = {"ran": ran, "hits": hits, "misses": misses, "directory": _jit.cache_directory()}
    print(json.dumps(report))
"""
# One small kernel, for the tests that compile again and again.
RUN_ONE = """
    from fastgates import _jit, _vecmath

    value = _vecmath.tanh_array([0.5])[0]
    (kernel,) = [k for k in _jit.kernels().values() if k.signatures]
    hits, misses = kernel.stats.cache_hits, kernel.stats.cache_misses
    print(f"{value:.6f}", sum(hits.values()), sum(misses.values()))
"""


def run_all(*names, env):
    import json

    return json.loads(run_python(RUN_ALL, *names, env=env).stdout)


def run_one(path=PACKAGE_ROOT, env=None):
    """The value of tanh(0.5), hits and misses of its kernel, and stderr."""
    result = run_python(RUN_ONE, env=env, path=path)
    value, hits, misses = result.stdout.split()
    return float(value), int(hits), int(misses), result.stderr


def cache_files(directory):
    return sorted(path for path in Path(directory).rglob("*") if path.suffix in (".nbi", ".nbc"))


def assert_all_hit(report):
    """Every kernel that ran came from the disk, and nothing was compiled, called ones included."""
    assert report["ran"]
    assert {name for name, count in report["hits"].items() if count} == set(report["ran"])
    assert not any(report["misses"].values())


@pytest.fixture
def copied_package(tmp_path):
    """A copy of the package, to be edited; its parent directory."""
    import fastgates

    parent = tmp_path / "copy"
    source = Path(fastgates.__file__).parent
    shutil.copytree(source, parent / "fastgates", ignore=shutil.ignore_patterns("__pycache__"))
    return parent


def test_second_process_hits_for_every_kernel(tmp_path):
    """With a cache directory of its own; a second cell adds its kernels to the same directory."""
    env = {"FASTGATES_CACHE_DIR": tmp_path / "kernels", "FASTGATES_CACHE": None}
    first = run_all("rnn", env=env)
    assert Path(first["directory"]).is_relative_to(tmp_path / "kernels")
    files = cache_files(tmp_path)
    assert files
    compiled = {name for name, count in first["misses"].items() if count}
    assert compiled
    assert not any(first["hits"].values())
    second = run_all("rnn", env=env)
    assert_all_hit(second)
    assert set(second["ran"]) <= compiled
    assert cache_files(tmp_path) == files  # nothing was added: the cache does not grow


def test_second_process_hits_for_every_cell():
    """All cells, in whatever cache the tests use."""
    from helpers import CELLS

    names = [case.id for case in CELLS]
    env = {"FASTGATES_CACHE": None}
    run_all(*names, env=env)
    assert_all_hit(run_all(*names, env=env))


def test_first_call_from_the_cache_does_not_load_the_compiler():
    """Numba would import half of itself, and SciPy for BLAS, to load a kernel from the disk."""
    code = """
        import sys
        import fastgates as fg

        fg.RNN(1, 1, seed=0)([[[0.5]]])
        for name in ("scipy.linalg", "numba.np.linalg", "numba.typed.typeddict"):
            print(name in sys.modules)
    """
    env = {"FASTGATES_CACHE": None}
    run_python(code, env=env)  # fills the cache
    assert run_python(code, env=env).stdout.split() == ["False"] * 3


def test_kernels_compiled_and_loaded_meet(tmp_path):
    """A kernel from the disk first, then others that are compiled in the same process."""
    env = {"FASTGATES_CACHE_DIR": tmp_path / "kernels", "FASTGATES_CACHE": None}
    run_python("import fastgates as fg; fg.RNN(1, 1, seed=0)([[[0.5]]])", env=env)
    run_python(
        """
        from fastgates import _jit, cells
        from helpers import CELLS, make_problem

        problem = make_problem(CELLS[0])
        problem.layer(problem.x)
        problem.check()
        cell = cells.get("rnn")
        assert sum(cell.forward.stats.cache_hits.values()) == 1
        assert sum(cell.backward.stats.cache_misses.values()) == 1
        """,
        env=env,
    )


def test_edited_helper_is_compiled_again(tmp_path, copied_package):
    """The kernel's own file stays the same; the file of a helper that it calls changes."""
    env = {"FASTGATES_CACHE_DIR": tmp_path / "kernels", "FASTGATES_CACHE": None}
    code = """
        import fastgates as fg
        from fastgates import _jit

        layer = fg.RNN(1, 1, bias=False)
        with layer.edit_parameters() as parameters:
            parameters["weight_ih_l0"][...] = 1.0
        output, _ = layer([[[0.5]]])
        ran = [k for k in _jit.kernels().values() if k.signatures]
        hits = sum(sum(k.stats.cache_hits.values()) for k in ran)
        misses = sum(sum(k.stats.cache_misses.values()) for k in ran)
        print(float(output[0, 0, 0]), hits, misses)
    """

    def run():
        value, hits, misses = run_python(code, env=env, path=copied_package).stdout.split()
        return float(value), int(hits), int(misses)

    value, hits, misses = run()
    assert abs(value - 0.46211716) < 1e-6
    assert (hits, misses > 0) == (0, True)
    again, hits, misses = run()
    assert (again, hits > 0, misses) == (value, True, 0)

    path = copied_package / "fastgates" / "_vecmath.py"
    source = path.read_text()
    definition = "return with_sign_of("
    assert source.count(definition) == 1  # the last line of tanh
    path.write_text(source.replace(definition, "return ONE + with_sign_of("))
    edited, hits_after, misses_after = run()
    assert abs(edited - value) > 1e-2
    assert (hits_after, misses_after > 0) == (0, True)

    path.write_text(source)
    assert run() == (value, hits, 0)


def test_off_writes_nothing(tmp_path, copied_package):
    env = {
        "FASTGATES_CACHE": "0",
        "FASTGATES_CACHE_DIR": None,
        "HOME": tmp_path,
        "XDG_CACHE_HOME": tmp_path / "cache",
    }
    for _ in range(2):
        value, hits, _, stderr = run_one(copied_package, env)
        assert abs(value - 0.462117) < 1e-5
        assert hits == 0
        assert stderr == ""
    assert cache_files(tmp_path) == []


def block_writing(tmp_path, copied_package):
    """Make every place that Numba tries for its cache unwritable, also for root.

    Where a directory is wanted there is a regular file.
    """
    blocker = tmp_path / "a-file"
    blocker.write_text("")
    for directory in [copied_package / "fastgates", *(copied_package / "fastgates").rglob("*")]:
        if directory.is_dir():
            (directory / "__pycache__").write_text("")
    return {
        "FASTGATES_CACHE": None,
        "FASTGATES_CACHE_DIR": None,
        "NUMBA_CACHE_DIR": None,
        "HOME": blocker / "home",
        "XDG_CACHE_HOME": blocker / "cache",
    }


WARNS = """
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import fastgates as fg

        output, _ = fg.RNN(2, 3, seed=0)([[[1.0, 2.0]]])
        output, _, tape = fg.RNN(2, 3, seed=0).forward([[[1.0, 2.0]]])
    for warning in caught:
        print(warning.category.__name__, str(warning.message).replace(chr(10), " "))
    assert output.shape == (1, 1, 3)
"""


@pytest.mark.parametrize("directory", [None, "a-file/below"])
def test_nowhere_to_write_is_one_warning(tmp_path, copied_package, directory):
    env = block_writing(tmp_path, copied_package)
    if directory:
        env["FASTGATES_CACHE_DIR"] = tmp_path / directory
    warned = run_python(WARNS, env=env, path=copied_package).stdout.splitlines()
    assert len(warned) == 1, warned
    assert warned[0].startswith("RuntimeWarning")
    assert "FASTGATES_CACHE_DIR" in warned[0]
    assert cache_files(tmp_path) == []


def test_off_says_nothing_where_nothing_can_be_written(tmp_path, copied_package):
    env = block_writing(tmp_path, copied_package) | {"FASTGATES_CACHE": "0"}
    assert run_python(WARNS, env=env, path=copied_package).stdout == ""


def test_directory_that_goes_away(tmp_path):
    """A cache that becomes unusable after it was found costs one warning, not the call."""
    run_python(
        """
        import os, shutil, sys, warnings
        import numpy as np
        import fastgates as fg
        from fastgates import _jit

        assert _jit.cache_directory() is not None
        shutil.rmtree(sys.argv[1])
        open(sys.argv[1], "w").close()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            output, _ = fg.SimplifiedGRU(2, 3, seed=0)(np.ones((1, 2, 2)))
        assert np.isfinite(output).all()
        messages = [str(w.message) for w in caught if w.category is RuntimeWarning]
        assert len(messages) == 1 and "FASTGATES_CACHE_DIR" in messages[0], messages
        """,
        tmp_path / "cache",
        env={"FASTGATES_CACHE_DIR": tmp_path / "cache"},
    )


def test_cells_are_compiled_beside(tmp_path):
    """What the other process compiled is found on disk."""
    result = run_python(
        """
        import time
        import numpy as np
        import fastgates as fg
        from fastgates import _jit
        from fastgates._compile import compiling_beside

        fg.set_num_threads(2)
        with compiling_beside(["rnn"]):
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline and not any(
                "backward_tanh" in path.name and path.suffix == ".nbc"
                for path in __import__("pathlib").Path(_jit.cache_directory()).rglob("*")
            ):
                time.sleep(0.2)
        fg.RNN(1, 1)(np.zeros((1, 1, 1)))
        kernel = _jit.kernels()["fastgates.cells.rnn.forward_tanh"]
        print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
        """,
        env={"FASTGATES_CACHE_DIR": tmp_path / "kernels", "FASTGATES_CACHE": None},
    )
    assert result.stdout.split() == ["1", "0"]
