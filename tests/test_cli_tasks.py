"""The command on all its tasks: runs, windows and rows of a table, Parquet, TOML, broken off."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

import fastgates
from fastgates._tables import column_names, read_columns, write_columns
from fastgates.training import Trainer

pytestmark = pytest.mark.usefixtures("folder")

QUICK = ["--hidden", "4", "--epochs", "3", "--out", "model.safetensors"]


def write(path, names, columns):
    write_columns(path, names, columns)
    return path


@pytest.fixture
def runs(folder):
    """45 runs of 4 to 8 steps, their rows mixed up: a class for each, and a level for each step."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(45):
        a = rng.normal(k % 3, 1.0, size=4 + k % 5)
        mean = repr(float(np.round(a.mean(), 4)))
        for step, value in enumerate(a):
            rows.append((step, f"run {k}", value, rng.normal(), mean, "xyz"[k % 3], value * 2))
    rows.sort(key=lambda row: row[0])  # all first steps, then all second ones, ...
    columns = list(zip(*rows, strict=True))[1:]
    names = ["run", "a", "b", "mean", "kind", "level"]
    lines = [",".join(names), *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    return "runs.csv"


@pytest.fixture
def plant(folder):
    rng = np.random.default_rng(1)
    drive = rng.normal(size=200)
    level = np.convolve(drive, 0.7 ** np.arange(15))[:200]
    return write("plant.csv", ["drive", "level"], [drive, level])


# Tasks


def test_classification_of_runs(run, runs):
    arguments = ["--task", "classification", "--target", "kind", "--sequence", "run"]
    code, out, _ = run("fit", runs, *arguments, "--inputs", "a,b", "--balanced", *QUICK)
    assert code == 0
    assert "runs.csv: 45 sequences; training 31, validation 7, test 7" in out
    assert "accuracy" in out
    assert "always " in out
    model = fastgates.load("model.safetensors")
    assert model.classes_.tolist() == ["x", "y", "z"]
    assert model.table_["inputs"] == ["a", "b"]

    code, out, _ = run("predict", "model.safetensors", runs, "--out", "out.csv")
    assert (code, out) == (0, "out.csv: 45 labels of kind\n")
    names = ("run", "kind", "probability x", "probability y", "probability z")
    assert column_names("out.csv") == names
    table = read_columns("out.csv", names[2:], labels=["run", "kind"])
    assert table.labels[0].tolist() == [f"run {k}" for k in range(45)]
    np.testing.assert_allclose(table.values.sum(axis=1), 1, atol=1e-6)
    assert (table.labels[1] == np.array(list("xyz"))[table.values.argmax(axis=1)]).all()

    code, out, _ = run("evaluate", "model.safetensors", runs, "--json", "scores.json")
    assert code == 0
    scores = json.loads(Path("scores.json").read_text())["scores"]["gru"]
    kinds = np.array(["xyz"[k % 3] for k in range(45)])
    assert scores["accuracy"] == pytest.approx((table.labels[1] == kinds).mean())
    right = table.values[np.arange(45), np.searchsorted(["x", "y", "z"], kinds)]
    assert scores["log_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    Path("others.csv").write_text(Path(runs).read_text().replace(",x,", ",w,"))
    _, _, err = run("evaluate", "model.safetensors", "others.csv")
    assert "15 of the 45 labels are none that the model knows, such as w" in err


def test_regression_of_runs(run, runs):
    code, out, _ = run(
        "fit", runs, "--task", "regression", "--target", "mean", "--inputs", "a", "--sequence",
        "run", *QUICK,
    )  # fmt: skip
    assert code == 0
    assert "45 sequences; training 22, validation 7, calibration 9, test 7" in out
    assert "training mean" in out
    assert "intervals for 90% hold" in out
    code, out, _ = run("predict", "model.safetensors", runs, "--coverage", "0.5")
    lines = out.splitlines()
    assert lines[0] == "run,mean,lower,upper"
    assert len(lines) == 46
    code, out, _ = run("evaluate", "model.safetensors", runs, "--json", "scores.json")
    assert code == 0
    assert set(json.loads(Path("scores.json").read_text())) == {"scores", "intervals"}


def test_a_target_for_each_step(run, runs):
    for task, target in (("regression", "level"), ("classification", "kind")):
        code, out, _ = run(
            "fit", runs, "--task", task, "--target", target, "--inputs", "a", "--sequence", "run",
            "--per-step", *QUICK,
        )  # fmt: skip
        assert code == 0
        assert "test steps" in out
        code, out, _ = run("predict", "model.safetensors", runs)
        lines = [line.split(",") for line in out.splitlines()]
        assert lines[0][:3] == ["run", "row", target]
        rows = [int(line[1]) for line in lines[1:]]
        assert sorted(rows) == list(range(1, len(rows) + 1))
        assert [line[0] for line in lines[1:5]] == ["run 0"] * 4
        assert rows[:4] == [1, 46, 91, 136]  # the runs' rows are mixed up in the file
        assert run("evaluate", "model.safetensors", runs)[0] == 0


def test_windows_of_a_series(run, plant):
    code, out, _ = run(
        "fit", plant, "--task", "regression", "--target", "level", "--window", "10", *QUICK
    )
    assert code == 0
    assert "191 windows of 10 rows; training 114, validation 29, calibration 19, test 29" in out
    code, out, _ = run("predict", "model.safetensors", plant)
    rows = [line.split(",")[0] for line in out.splitlines()]
    assert rows == ["row", *map(str, range(10, 201))]
    assert run("evaluate", "model.safetensors", plant)[0] == 0


def test_rows_as_sequences(run, folder):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 5)) + (np.arange(60) % 2)[:, None]
    names = [f"t{k}" for k in range(5)]
    lines = [",".join([*names, "label"])]
    lines += [",".join([*map(str, row), f"{k % 2}"]) for k, row in enumerate(x)]
    (folder / "wide.csv").write_text("\n".join(lines))
    code, out, _ = run("fit", "wide.csv", "--task", "classification", "--target", "label", *QUICK)
    assert code == 0
    assert fastgates.load("model.safetensors").n_features_in_ == 5
    code, out, _ = run("predict", "model.safetensors", "wide.csv")
    assert out.splitlines()[0] == "row,label,probability 0,probability 1"


def test_times_go_on(run, folder):
    pandas = pytest.importorskip("pandas")
    days = pandas.date_range("2024-01-01", periods=90, freq="D")
    level = np.sin(np.arange(90) / 3)

    def table(name, labels):
        lines = [f"{day},{value}" for day, value in zip(labels, level, strict=True)]
        (folder / name).write_text("\n".join(["day,level", *lines]) + "\n")

    table("days.csv", days.strftime("%d %b %Y"))
    options = ["--target", "level", "--time", "day", "--window", "5", "--horizon", "2", *QUICK]
    assert run("fit", "days.csv", *options)[0] == 0
    assert fastgates.load("model.safetensors").predict().index.tolist() == [
        pandas.Timestamp("2024-03-31"), pandas.Timestamp("2024-04-01")
    ]  # fmt: skip
    _, out, _ = run("predict", "model.safetensors", "days.csv", "--next")
    assert [line.split(",")[:2] for line in out.splitlines()] == [
        ["row", "day"], ["91", "2024-03-31"], ["92", "2024-04-01"]
    ]  # fmt: skip
    _, out, _ = run("predict", "model.safetensors", "days.csv")
    lines = [line.split(",")[:2] for line in out.splitlines()]
    assert lines[1] == ["7", "07 Jan 2024"]
    assert lines[-3:] == [["90", "30 Mar 2024"], ["91", "2024-03-31"], ["92", "2024-04-01"]]
    table("iso.csv", [day.tz_localize("Europe/Berlin").isoformat() for day in days])
    _, out, _ = run("predict", "model.safetensors", "iso.csv", "--next")
    assert out.splitlines()[1].startswith("91,2024-03-31T00:00:00+0")
    table("years.csv", np.arange(1900, 1990))
    _, out, _ = run("predict", "model.safetensors", "years.csv", "--next")
    assert [line.split(",")[1] for line in out.splitlines()[1:]] == ["1990", "1991"]
    cases = {"gap": days.delete(3).append(days[-1:] + days.freq), "texts": ["x"] * 90}
    for (name, labels), message in zip(
        cases.items(),
        ("gap.csv: the index of column 'day' must go up in equal steps, got 2024-01-03",
         "texts.csv: column 'day' must hold times or numbers"),
        strict=True,
    ):  # fmt: skip
        table(f"{name}.csv", labels)
        code, _, err = run("fit", f"{name}.csv", *options)
        assert code == 2
        assert message in err


def test_inputs_known_ahead(run, folder):
    rng = np.random.default_rng(3)
    plan = rng.normal(size=123)
    level = np.round(2 * plan, 4)
    write("known.csv", ["level", "plan"], [level[:120], plan[:120]])
    write("ahead.csv", ["level", "plan"], [np.r_[level[:120], [np.nan] * 3], plan])
    code, _, _ = run(
        "fit", "known.csv", "--target", "level", "--future-inputs", "plan", "--horizon", "3",
        "--window", "5", *QUICK,
    )  # fmt: skip
    assert code == 0
    _, out, _ = run("predict", "model.safetensors", "ahead.csv", "--next")
    model = fastgates.load("model.safetensors")
    assert model.future_inputs == ("plan",)
    expected = model.predict(level[:120], plan[:120, None], future=plan[120:, None])
    found = [float(line.split(",")[1]) for line in out.splitlines()[1:]]
    np.testing.assert_array_equal(found, expected)
    _, out, _ = run("predict", "model.safetensors", "ahead.csv", "--out", "out.csv")
    assert out.startswith("out.csv: 116 forecasts of level")
    _, out, _ = run("predict", "model.safetensors", "known.csv", "--out", "out.csv")
    assert out.startswith("out.csv: 113 forecasts of level")
    code, _, err = run("predict", "model.safetensors", "known.csv", "--next")
    assert code == 2
    assert "--next needs 3 rows after the last known level, with plan" in err
    assert run("evaluate", "model.safetensors", "ahead.csv")[0] == 0


def test_models_that_python_saved(run, runs, plant):
    x = np.random.default_rng(0).normal(size=(20, 6, 2))
    model = fastgates.SequenceRegressor(hidden_size=4, max_epochs=1, random_state=0)
    fastgates.save(model.fit(x, x[:, -1, 0]), "model.safetensors")
    code, _, err = run("predict", "model.safetensors", runs, "--sequence", "run")
    assert code == 2
    assert "--inputs is needed" in err
    code, _, err = run("predict", "model.safetensors", runs, "--sequence", "run", "--inputs", "a")
    assert code == 2
    assert "--inputs must name 2 columns, got 1" in err
    options = ["--sequence", "run", "--inputs", "a,b"]
    code, out, _ = run("predict", "model.safetensors", runs, *options)
    assert code == 0
    assert out.splitlines()[0] == "run,target"
    code, _, err = run("evaluate", "model.safetensors", runs, *options)
    assert "--target is needed" in err
    assert run("evaluate", "model.safetensors", runs, *options, "--target", "mean")[0] == 0

    module = fastgates.Sequential(fastgates.GRU(2, 3, seed=0), fastgates.Dense(3, 2, seed=1))
    fastgates.save(module, "module.safetensors")
    code, out, _ = run("predict", "module.safetensors", plant, "--inputs", "drive,level")
    assert code == 0
    lines = [line.split(",") for line in out.splitlines()]
    assert lines[0] == ["row", "output 0", "output 1"]
    expected = module(read_columns(plant, ["drive", "level"]).values[None])[0][0]
    np.testing.assert_allclose(np.array(lines[1:], float)[:, 1:], expected, rtol=1e-6)
    code, out, _ = run("predict", "module.safetensors", runs, *options)
    assert code == 0
    assert out.splitlines()[0] == "run,row,output 0,output 1"
    fastgates.save(fastgates.LSTM(2, 3, seed=0), "layer.safetensors")
    assert run("predict", "layer.safetensors", plant, "--inputs", "drive,level")[0] == 0
    code, _, err = run("evaluate", "module.safetensors", plant, "--inputs", "drive,level")
    assert code == 2
    assert "evaluate needs an estimator" in err
    fastgates.save(fastgates.Dense(2, 3, seed=0), "dense.safetensors")
    code, _, err = run("predict", "dense.safetensors", plant)
    assert code == 2
    assert "a Dense reads no sequences" in err


@pytest.mark.parametrize(
    ("task", "target"), [("regression", "mean"), ("classification", "kind"), ("forecast", "a")]
)
def test_pictures(run, runs, task, target):
    pytest.importorskip("matplotlib")
    options = ["--window", "4"] if task == "forecast" else ["--sequence", "run"]
    code, out, _ = run(
        "fit", runs, "--task", task, "--target", target, "--inputs", "a,b", *options, *QUICK,
        "--plot", "fit.png",
    )  # fmt: skip
    assert code == 0
    assert "picture: fit.png" in out
    assert Path("fit.png").read_bytes()[:4] == b"\x89PNG"


# What is refused


BAD = {
    "target changes": (
        ["--task", "classification", "--target", "level", "--sequence", "run", "--inputs", "a"],
        "the target 'level' of sequence 'run 0' changes from row 1 to row 46",
    ),
    "a text as input": (
        ["--task", "regression", "--target", "level", "--window", "3", "--inputs", "kind"],
        "row 1 (line 2), column 'kind': 'x' is not a finite number",
    ),
    "one class": (
        ["--task", "classification", "--target", "one", "--sequence", "run", "--inputs", "a"],
        "no column 'one'",
    ),
    "too long a window": (
        ["--task", "regression", "--target", "level", "--window", "999", "--inputs", "a"],
        "at least window=999 rows are needed, got 270",
    ),
    "too few runs": (
        ["--task", "regression", "--target", "mean", "--sequence", "run", "--inputs", "a",
         "--test", "0.5", "--validation", "0.35"],
        "too few sequences: of 45, ",
    ),
    "coverage of little data": (
        ["--task", "regression", "--target", "mean", "--sequence", "run", "--inputs", "a",
         "--coverage", "0.95"],
        "coverage=0.95 needs at least 19 residuals, got 9: calibrate on more data",
    ),
    "coverage of a short series": (
        ["--target", "level", "--window", "5", "--coverage", "0.99"],
        "coverage=0.99 needs at least 99 residuals, got 27",
    ),
    "no name for the target": (["--task", "regression", "--window", "3"], "--target is needed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_fit_refuses(run, runs, monkeypatch, name):
    monkeypatch.setattr(Trainer, "fit", None)
    arguments, message = BAD[name]
    code, _, err = run("fit", runs, *arguments, *QUICK)
    assert code == 2
    assert err.startswith("fastgates: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not Path("model.safetensors").exists()


# TOML


def test_a_configuration_stands_for_options(run, plant, folder):
    (folder / "fit.toml").write_text(
        'data = "plant.csv"\ntarget = "level"\ninputs = ["drive"]\nleads = [1, 3]\nwindow = 6\n'
        'hidden = 4\nepochs = 2\nlearning_rate = 0.01\n"clip-norm" = 0.5\nbidirectional = false\n'
        'cell = "lstm"\nout = "model.safetensors"\n'
    )
    assert run("fit", "--config", "fit.toml", "--cell", "rnn", "--seed", "3")[0] == 0
    model = fastgates.load("model.safetensors")
    wanted = {"cell": "rnn", "window": 6, "horizon": [1, 3], "learning_rate": 0.01,
              "clip_norm": 0.5, "random_state": 3, "bidirectional": False}  # fmt: skip
    assert {name: model.get_params()[name] for name in wanted} == wanted
    assert run("fit", plant, "--config", "fit.toml", "--out", "other.safetensors")[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "fit.toml: no such file"),
        ("cell = ", "fit.toml: not TOML"),
        ("speed = 3", "fit.toml: 'speed' is no option of this command"),
        ("run = 3", "fit.toml: 'run' is no option of this command"),
        ("hidden = true", "fit.toml: 'hidden' must have a value, got True"),
        ("[model]\ncell = 'gru'", "fit.toml: 'model' is no option"),
        ("cell = {a = 1}", "fit.toml: 'cell' must be a text, a number, true or a list"),
        ("inputs = [[1]]", "fit.toml: 'inputs' must be a list of names or integers"),
        ("hidden = 0", "an integer of at least 1, got '0'"),
        ("cell = 'tcn'", "invalid choice: 'tcn'"),
    ],
)
def test_configurations_that_cannot_be(run, plant, folder, text, message):
    if text is not None:
        (folder / "fit.toml").write_text(text)
    code, _, err = run("fit", plant, "--target", "level", "--config", "fit.toml")
    assert code == 2
    assert message in err


# Parquet


@pytest.mark.parity
def test_parquet_in_and_out(run, runs, folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import csv, parquet

    parquet.write_table(csv.read_csv(runs), "runs.parquet")
    arguments = ["--task", "classification", "--target", "kind", "--sequence", "run"]
    assert run("fit", runs, *arguments, "--inputs", "a,b", *QUICK)[0] == 0
    assert run("predict", "model.safetensors", runs, "--out", "out.csv")[0] == 0
    assert run("fit", "runs.parquet", *arguments, "--inputs", "a,b", *QUICK)[0] == 0
    assert run("predict", "model.safetensors", "runs.parquet", "--out", "out.parquet")[0] == 0
    mine, other = (
        read_columns(path, ["probability x"], labels=["run"]) for path in ("out.csv", "out.parquet")
    )
    np.testing.assert_array_equal(mine.values, other.values)
    np.testing.assert_array_equal(mine.labels[0], other.labels[0])
    assert column_names("out.parquet")[0] == "run"
    assert pyarrow.__version__


@pytest.mark.parity
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, None, 2.0], "row 2, column 'a': empty, a gap"),
        ([1, None, 2], "row 2, column 'a': empty, a gap"),
        ([1.0, 2.0, float("inf")], "row 3, column 'a': inf is not a finite number"),
        (["1", "2", "3"], "column 'a' must hold numbers, got string"),
    ],
)
def test_parquet_that_cannot_be_used(folder, column, message):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from fastgates._tables import DataError

    parquet.write_table(pyarrow.table({"a": column, "b": ["x", None, "z"]}), "t.parquet")
    with pytest.raises(DataError, match=message):
        read_columns("t.parquet", ["a"])
    if "gap" in message:
        assert np.isnan(read_columns("t.parquet", ["a"], gaps=True).values).sum() == 1
    with pytest.raises(DataError, match="row 2, column 'b': empty, a label is needed"):
        read_columns("t.parquet", [], labels=["b"])
    with pytest.raises(DataError, match="no column 'c'; there are 'a', 'b'"):
        read_columns("t.parquet", ["c"])
    (folder / "text.parquet").write_text("a,b\n")
    with pytest.raises(DataError, match=r"text.parquet: cannot be read as Parquet"):
        read_columns("text.parquet", ["a"])
    with pytest.raises(DataError, match=r"absent.parquet: no such file"):
        read_columns("absent.parquet", ["a"])


def test_parquet_without_pyarrow(monkeypatch, run, folder):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = run("fit", "t.parquet", "--target", "a")
    assert code == 2
    assert "a Parquet file needs pyarrow: pip install 'fastgates[parquet]'" in err


# Broken off


LONG = ["fit", "plant.csv", "--target", "level", "--window", "10", "--hidden", "4", "--epochs",
        "120", "--patience", "120"]  # fmt: skip


def started(*arguments):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastgates", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(fastgates.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, process):
    while not Path(path).exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def hash_of(path):
    tensors = {n: v.tobytes() for n, v in fastgates.load(path).model_.state_dict().items()}
    return hashlib.sha256(b"".join(tensors[name] for name in sorted(tensors))).hexdigest()


def test_killed_and_resumed_it_ends_with_the_same_bits(run, plant):
    killed = started(*LONG, "--out", "killed.safetensors", "--resume")
    wait_for("killed.safetensors.checkpoint", killed)
    killed.kill()
    killed.communicate()
    assert not Path("killed.safetensors").exists()
    code, _, err = run(*LONG, "--out", "killed.safetensors", "--resume", "--batch", "7")
    assert code == 2
    assert "error: killed.safetensors.checkpoint: the training that it is of is another" in err
    assert run(*LONG, "--out", "killed.safetensors", "--resume")[0] == 0
    assert run(*LONG, "--out", "whole.safetensors")[0] == 0
    assert hash_of("killed.safetensors") == hash_of("whole.safetensors")
    assert not Path("killed.safetensors.checkpoint").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT")
def test_interrupted_it_keeps_the_best_weights(plant):
    process = started(
        *LONG[:-3], "100000", "--patience", "100000", "--out", "model.safetensors", "--resume"
    )
    wait_for("model.safetensors.checkpoint", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "fastgates: interrupted; the best weights so far are kept" in err
    assert "the same command goes on" in err
    assert "model: model.safetensors" in out
    assert fastgates.load("model.safetensors").history_.stop_reason == "interrupted"
    assert Path("model.safetensors.checkpoint").exists()


def test_chrono_remembers_a_window(run, plant, runs):
    options = ["--initialization", "chrono", *QUICK]
    assert run("fit", plant, "--target", "level", *options)[0] == 0
    code, _, err = run(
        "fit", runs, "--task", "regression", "--target", "mean", "--sequence", "run",
        "--inputs", "a", *options,
    )  # fmt: skip
    assert code == 2 and "--initialization chrono needs --window" in err
