"""The command depth: trainings that can be repeated, files that can be gone on with, a picture."""

import dataclasses
import json
import math

import pytest

from fastgates import _depth
from fastgates.cells import registered
from fastgates.commands import depth as command
from fastgates.tasks import TASKS

TINY = _depth.Settings(
    lengths=(5, 6), seeds=1, steps=20, hidden_size=4, batch_size=4, test_size=10, check_every=10
)
OPTIONS = ("--lengths", 5, 6, "--steps", 10, "--seeds", 1, "--jobs", 1)


def series(task="order", cell="gru", optimizer="adam", clipped=True):
    return _depth.Series(task, cell, optimizer, clipped)


def timeless(run):
    return dataclasses.replace(run, seconds=0.0)


def test_every_named_thing_exists():
    assert list(TASKS) == list(command._TASKS)
    assert list(_depth.CELLS) == list(command._CELLS) == list(_depth.LABELS)
    assert set(_depth.CELLS) <= set(registered())


@pytest.mark.parametrize("task", TASKS)
def test_a_training_can_be_repeated(task):
    runs = [_depth.train(series(task), 6, TINY, seed) for seed in (0, 0, 1)]
    assert timeless(runs[0]) == timeless(runs[1]) != timeless(runs[2])
    assert 0 < runs[0].steps <= 20 and runs[0].error < 2 and not runs[0].diverged


@pytest.mark.parametrize("cell", _depth.CELLS)
@pytest.mark.parametrize("start", _depth.STARTS)
def test_every_cell_trains(cell, start):
    settings = dataclasses.replace(TINY, start=start)
    run = _depth.train(series("recall", cell), 5, settings, 0)
    assert math.isfinite(run.error) and run.largest_norm > 0


def test_a_short_task_is_solved():
    settings = dataclasses.replace(TINY, steps=300, hidden_size=16, batch_size=16, check_every=50)
    run = _depth.train(series("recall"), 5, settings, 0)
    assert run.solved and run.steps < 300 and run.error < 0.05


def test_divergence_ends_a_training():
    settings = dataclasses.replace(TINY, sgd_rate=1e30)
    run = _depth.train(series("adding", "rnn", "sgd", False), 6, settings, 0)
    assert run.diverged and not run.solved and run.steps < 20


def made_up(each, length, seed, solved):
    return _depth.Run(each, length, seed, solved, False, 10, 0.5, 1.5, 0.1)


def test_a_series_ends_where_nothing_is_solved(monkeypatch):
    monkeypatch.setattr(
        _depth,
        "train",
        lambda each, length, settings, seed: made_up(each, length, seed, seed < 7 - length),
    )
    settings = dataclasses.replace(TINY, lengths=(5, 6, 7, 8), seeds=3)
    found = list(_depth.run_all([series()], settings))
    assert [(r.length, r.seed) for r, _ in found] == [(n, s) for n in (5, 6, 7) for s in range(3)]
    assert [left for _, left in found] == [11, 10, 9, 8, 7, 6, 5, 4, 0]
    results = _depth.Results(settings, [r for r, _ in found])
    assert results.longest(series()) == 5 and results.solved(series(), 6) == (1, 3)
    assert results.solved(series(), 8) is None
    # What is done is not done again.
    done = [r for r, _ in found[:4]]
    again = [r for r, _ in _depth.run_all([series()], settings, done)]
    assert again == [r for r, _ in found[4:]]
    assert not list(_depth.run_all([series()], settings, results.runs))


@pytest.mark.slow
def test_processes_change_nothing():
    settings = dataclasses.replace(TINY, seeds=2)
    todo = [series(), series("recall", "rnn", "sgd", False)]
    alone = [timeless(r) for r, _ in _depth.run_all(todo, settings)]
    shared = [timeless(r) for r, _ in _depth.run_all(todo, settings, jobs=2)]
    assert sorted(map(str, alone)) == sorted(map(str, shared))


def test_files(tmp_path):
    run = dataclasses.replace(made_up(series(), 5, 0, True), error=math.nan)
    results = _depth.Results(TINY, [run, made_up(series(clipped=False), 5, 0, False)])
    _depth.write(results, tmp_path / "runs.json")
    again = _depth.read(tmp_path / "runs.json")
    assert again.settings == TINY
    assert str(sorted(again.runs, key=str)) == str(sorted(results.runs, key=str))


def test_command(run, folder):
    pytest.importorskip("matplotlib")
    tasks = ("--tasks", "order", "--cells", "rnn", "gru")
    code, out, err = run("depth", *OPTIONS, *tasks, "--json", "a.json", "--plot", "a.png")
    assert code == 0, err
    assert "RNN, SGD" in out and "not clipped" in out and (folder / "a.png").stat().st_size > 5000
    first = (folder / "a.json").read_bytes()
    # The file is gone on with; there is nothing left to do.
    code, again, _ = run("depth", *OPTIONS, *tasks, "--json", "a.json")
    assert code == 0 and again in out and (folder / "a.json").read_bytes() == first
    # Another part is merged with it.
    tasks = ("--tasks", "recall", "--cells", "gru")
    assert run("depth", *OPTIONS, *tasks, "--json", "b.json")[0] == 0
    code, out, _ = run("depth", "--from", "b.json", "a.json", "--json", "all.json")
    assert code == 0 and out.index("recall: ") < out.index("order: ")
    assert len(json.loads((folder / "all.json").read_text())["runs"]) == len(
        json.loads(first)["runs"]
    ) + len(json.loads((folder / "b.json").read_text())["runs"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--lengths", 4), "at least 5"),
        (("--tasks", "chess"), "invalid choice"),
        (("--from", "none.json"), "cannot read none.json"),
        (("--from", "other.json"), "not a file of fastgates depth"),
        (("--json", "mine.json", "--steps", 7), "other settings"),
        (("--from", "mine.json", "--json", "mine.json"), "cannot write"),
        (("--from", "mine.json", "yours.json"), "cannot be merged"),
        (("--plot", "picture.txt"), "must end in"),
    ],
)
def test_wrong_use(run, folder, arguments, words):
    (folder / "other.json").write_text("{}")
    _depth.write(_depth.Results(TINY, []), folder / "mine.json")
    _depth.write(_depth.Results(_depth.QUICK, []), folder / "yours.json")
    code, _, err = run("depth", *arguments)
    assert code == 2 and words in err, err
