"""``fastgates warmup`` and ``fastgates.warmup``: afterwards nothing is compiled."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers import run_python

import fastgates
from fastgates import _compile
from fastgates.cli import main

COMMAND = """
    import sys
    from fastgates.cli import main

    sys.exit(main(["warmup", *sys.argv[1:]]))
"""

# Everything that a user of the cell can call, over sequences and step by step; what it had to
# compile, and what it read.
USE = """
    import json
    import sys
    import numpy as np
    from numba.core import event
    import fastgates as fg
    from fastgates import _jit, _threads, jit
    from fastgates.layers import Recurrent
    from helpers import CELLS, make_problem

    case = {case.id: case for case in CELLS}[sys.argv[1]]
    problems = [
        make_problem(case),
        make_problem(case, bidirectional=True, lengths=True, resets=True, num_layers=2),
        make_problem(case, batch=1, hidden_size=70, input_size=33, initial_state=False),
    ]
    with event.install_recorder("numba:compile") as recorder:
        for problem in problems:
            if sys.argv[2] == "training":
                problem.run()
            problem.layer(problem.x, **problem.data)
        layer = Recurrent(case.registered, 1, 3)
        model = fg.Sequential(fg.Scaling([0], [1]), layer, fg.Dense(3, 1))
        model.stream().step(np.zeros(1, np.float32))
        model.stream().run(np.zeros((5, 1)))
        model.stream(batch_size=2).step([[0], [1]])
        x, state, y = np.zeros(1, np.float32), jit.new_state(model), np.zeros(1, np.float32)
        jit.step(model.jit_handle(), x, state, y)
        function = model.cfunc()
        function.filter1d(), function.integrand()
        readout = fg.Dense(6, 2)
        output, tape = readout.forward(problems[0].d_output)
        if sys.argv[2] == "training":
            readout.backward(tape, output)
        fg.set_num_threads(2)
        _threads.SMALL_WORK = _threads.WORTH_WAKING = 0
        problems[0].layer(problems[0].x, **problems[0].data)
        if sys.argv[2] == "training":
            problems[0].run()
        model.stream(batch_size=200).run(np.zeros((200, 500, 1)))
    kernels = _jit.kernels()
    print(json.dumps({
        "events": len(recorder.buffer),
        "misses": sum(sum(k.stats.cache_misses.values()) for k in kernels.values()),
        "hits": sum(sum(k.stats.cache_hits.values()) for k in kernels.values()),
    }))
"""


def use(mode, env):
    return json.loads(run_python(USE, "rnn", mode, env=env).stdout)


def test_nothing_is_compiled_afterwards(tmp_path):
    env = {
        "FASTGATES_CACHE_DIR": tmp_path / "kernels",
        "FASTGATES_CACHE": None,
        "FASTGATES_NUM_THREADS": "1",
    }
    first = run_python(COMMAND, "--cells", "rnn", "--inference-only", env=env)
    assert first.stdout.startswith("rnn: ready for inference\n")
    assert str(tmp_path / "kernels") in first.stdout
    assert first.stderr == ""  # no bar where there is no terminal
    files = [path.name for path in (tmp_path / "kernels").rglob("*.nbc")]
    assert f"{len(files)} kernels compiled" in first.stdout
    assert not any("backward" in name or "gradients" in name for name in files)
    found = use("inference", env)
    assert (found["events"], found["misses"]) == (0, 0)
    assert found["hits"] > 0

    second = run_python(COMMAND, "--cells", "rnn", env=env)
    assert second.stdout.startswith("rnn: ready for inference and training\n")
    found = use("training", env)
    assert (found["events"], found["misses"]) == (0, 0)
    assert found["hits"] > 0

    third = run_python(
        """
        import fastgates as fg

        seen = []
        done = fg.warmup("rnn", progress=seen.append)
        assert done.cells == ("rnn",) and done.training and seen == ["rnn"]
        assert done.size > 10_000
        print(done.compiled, done.directory)
        """,
        env=env,
    )
    count, directory = third.stdout.split()
    assert count == "0"
    assert Path(directory).is_relative_to(tmp_path / "kernels")


def test_cells_with_functions_to_choose_wait_until_they_are_asked_for(monkeypatch, capsys):
    """By default, of the function and of the command."""
    asked = []
    monkeypatch.setattr(
        _compile, "compile_cells", lambda names, training: iter(asked.append(names) or names)
    )
    monkeypatch.setattr(_compile, "compiling_beside", lambda names, training: nullcontext())
    cells = fastgates.warmup().cells
    assert {"rnn", "lstm", "gru"} <= set(cells)
    assert not any(fastgates.cells.get(name).functions for name in cells)
    assert main(["warmup"]) == 0
    assert capsys.readouterr().out.startswith(f"{', '.join(cells)}: ready for ")
    assert asked == [cells, cells]


def test_unknown_cells_are_named(capsys):
    with pytest.raises(ValueError, match=r"cells must be among .*gru, .*; got 'lstx', 'x'"):
        fastgates.warmup(["rnn", "lstx", "x"])
    with pytest.raises(ValueError, match="got none"):
        fastgates.warmup([])
    assert main(["warmup", "--cells", "rnn,lstx"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("fastgates: error: cells must be among ")
    assert output.err.endswith("; got 'lstx'\n")


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"FASTGATES_CACHE": "0"}, "FASTGATES_CACHE=0 turns the cache off"),
        (
            {"FASTGATES_CACHE_DIR": "a-file/below"},
            "a-file/below (FASTGATES_CACHE_DIR) cannot be written",
        ),
    ],
)
def test_no_cache_is_an_error(tmp_path, env, reason):
    """A warm-up that warms nothing must not look like one that did."""
    (tmp_path / "a-file").write_text("")
    env = {"FASTGATES_CACHE": None, "FASTGATES_CACHE_DIR": tmp_path} | env
    result = run_python(COMMAND, "--cells", "rnn", env=env, cwd=tmp_path, expect=2)
    assert result.stdout == ""
    assert result.stderr.startswith("fastgates: error: nothing to warm up: ")
    assert reason in result.stderr
    assert not list(tmp_path.rglob("*.nbc"))


def test_cache_that_goes_away_is_an_error(tmp_path):
    """The disk may also fail later, when the first kernel is to be written."""
    run_python(
        """
        import os, shutil, sys, warnings
        import fastgates as fg
        from fastgates import _jit
        from fastgates._compile import WarmupError

        assert _jit.cache_directory() is not None
        shutil.rmtree(sys.argv[1])
        open(sys.argv[1], "w").close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fg.warmup("rnn", training=False)
            except WarmupError as error:
                assert "FASTGATES_CACHE_DIR" in str(error), error
            else:
                raise AssertionError("no error")
        """,
        tmp_path / "cache",
        env={"FASTGATES_CACHE_DIR": tmp_path / "cache", "FASTGATES_CACHE": None},
    )
