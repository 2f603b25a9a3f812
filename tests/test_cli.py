"""The command: real files in, exit codes and one-line errors out, nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastgates
from fastgates import _extras
from fastgates._tables import read_columns
from fastgates.commands import info
from fastgates.files import read_header

pytest.importorskip("sklearn")

from fastgates.training import Trainer

needs_files = pytest.mark.skipif(_extras.version("safetensors") is None, reason="extra 'files'")
needs_plot = pytest.mark.skipif(_extras.version("matplotlib") is None, reason="extra 'plot'")

QUICK = ["--window", "4", "--hidden", "4", "--epochs", "2"]


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def plant(folder):
    """A file the package did not make: a time column, two channels, and a comment column."""
    rng = np.random.default_rng(10)
    drive = rng.normal(size=120)
    level = np.convolve(drive, 0.8 ** np.arange(20))[:120]
    lines = ["time,level,inflow,remark"]
    lines += [
        f"2024-01-{k},{a:.4f},{b:.4f},n/a"
        for k, (a, b) in enumerate(zip(level, drive, strict=True))
    ]
    (folder / "plant.csv").write_text("\n".join(lines) + "\n")
    return folder / "plant.csv"


@pytest.fixture
def model(run, plant, folder):
    pytest.importorskip("safetensors")
    code, _, _ = run("fit", plant, "--target", "level", *QUICK, "--out", "model.safetensors")
    assert code == 0
    return folder / "model.safetensors"


# The way through


@needs_files
def test_fit_then_predict_reproduces_the_forecasts(run, plant, folder):
    code, out, err = run(
        "fit", plant, "--target", "level", "--inputs", "inflow", *QUICK, "--horizon", "2",
        "--cell", "lstm", "--seed", "5", "--out", "model.safetensors",
    )  # fmt: skip
    assert code == 0
    assert "120 rows; training 1-72, validation 73-90, calibration 91-102, test 103-120" in out
    table = out[out.index("test rows 103-120") :].splitlines()
    assert table[0].split()[-3:] == ["RMSE", "MAE", "R2"]
    assert [line.split()[0] for line in table[1:4]] == ["lstm", "linear", "persistence"]
    assert "loss" in err
    assert "norm" in err
    assert "intervals for 90% hold" in out

    code, out, _ = run("predict", "model.safetensors", plant, "--out", "predictions.csv")
    assert code == 0
    assert "predictions.csv: 117 forecasts of level" in out
    model = fastgates.load("model.safetensors")
    assert (model.cell, model.leads_, model.random_state) == ("lstm", (1, 2), 5)
    assert (model.target_names_, model.input_names_) == (("level",), ("inflow",))
    values = read_columns(plant, ["level", "inflow"]).values
    expected = model.predict_rolling(values[:, 0], values[:, 1:])
    forecast = read_columns("predictions.csv", ["row", "forecast", "lower", "upper"]).values
    np.testing.assert_array_equal(forecast[:, 0], np.arange(6, 123))
    np.testing.assert_array_equal(forecast[:, 1], expected[:, 1])
    np.testing.assert_allclose(forecast[:, 3] - forecast[:, 2], 2 * model.radius(0.9)[1, 0])
    lines = (folder / "predictions.csv").read_text().splitlines()
    assert lines[0] == "row,actual,forecast,lower,upper"
    assert lines[1].startswith(f"6,{values[5, 0]},")
    assert lines[-1].startswith("122,,")

    record = read_header("model.safetensors").header["record"]
    assert record["data"] == "plant.csv"
    truth = np.column_stack([values[102:119, 0], values[103:, 0]])
    error = expected[102 - 4 :][:17] - truth
    assert record["test"]["lstm"]["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)))

    code, out, _ = run("predict", "model.safetensors", plant, "--next", "--coverage", "0.5")
    assert code == 0
    lines = out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["row", "121", "122"]
    assert float(lines[1].split(",")[1]) == expected[-1, 0]
    code, out, _ = run("predict", "model.safetensors", plant, "--lead", "1")
    assert float(out.splitlines()[-1].split(",")[2]) == expected[-1, 0]

    code, out, _ = run(
        "evaluate", "model.safetensors", plant, "--first-row", "103", "--json", "scores.json"
    )
    assert code == 0
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["scores"] == record["test"]
    assert 0 <= scores["intervals"]["found"] <= 1


@needs_files
def test_the_same_command_writes_the_same_bytes(run, plant, model, folder):
    run("fit", plant, "--target", "level", *QUICK, "--out", "again.safetensors")
    assert (folder / "again.safetensors").read_bytes() == model.read_bytes()


def test_fit_without_outputs_writes_nothing(run, plant, folder):
    code, out, _ = run("fit", plant, "--target", "level", "--inputs", "level, inflow", *QUICK)
    assert code == 0
    assert "persistence" in out
    assert os.listdir(folder) == ["plant.csv"]


@needs_files
def test_predict_to_standard_output(run, plant, model):
    code, out, _ = run("predict", model, plant)
    assert code == 0
    assert out.splitlines()[0] == "row,actual,forecast,lower,upper"
    assert len(out.splitlines()) == 1 + 117


@needs_files
def test_predict_on_a_single_window(run, plant, model, folder):
    text = plant.read_text().splitlines()
    (folder / "short.csv").write_text("\n".join(text[:5]))
    code, out, _ = run("predict", model, "short.csv", "--out", "out.csv")
    assert (code, out) == (0, "out.csv: 1 forecasts of level\n")
    assert (folder / "out.csv").read_text().splitlines()[1].startswith("5,,")


@needs_plot
@pytest.mark.parametrize("name", ["fit.png", "fit.svg"])
def test_fit_draws_a_picture(run, plant, folder, name):
    code, out, _ = run("fit", plant, "--target", "level", *QUICK, "--plot", name)
    assert code == 0
    assert f"picture: {name}" in out
    start = (folder / name).read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" or start.startswith(b"<?xml")


def test_info(run):
    code, out, err = run("info")
    assert (code, err) == (0, "")
    lines = dict(line.split(None, 1) for line in out.replace("SIMD lanes", "lanes").splitlines())
    assert lines["fastgates"] == fastgates.__version__
    assert lines["threads"] == str(fastgates.get_num_threads())
    assert lines["lanes"].split()[0] in {"4", "8", "16"}
    assert lines["NumPy"] == np.__version__
    assert {"Python", "Numba", "SciPy", "CPU", "cache", *_extras.EXTRAS} <= set(lines)


def test_info_says_how_to_get_what_is_absent(run, monkeypatch):
    known = _extras.version
    monkeypatch.setattr(
        _extras, "version", lambda name: None if name in _extras.EXTRAS else known(name)
    )
    _, out, _ = run("info")
    assert "not installed: pip install 'fastgates[files]'" in out
    assert "not installed: pip install 'fastgates[plot]'" in out


def test_help_as_a_module():
    root = str(Path(fastgates.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "fastgates", "--help"],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    for command in ("fit", "predict", "info", "demo"):
        assert command in done.stdout


# What is refused: (files to write, arguments, what the error says)

COLUMN = "a\n" + "".join(f"{k % 7}\n" for k in range(60))
FIT = ["fit", "data.csv", "--target", "a", *QUICK, "--out", "out", "--plot", "out.png"]
PREDICT = ["predict", "model.safetensors", "data.csv", "--out", "out"]


def column(**changes):
    lines = COLUMN.splitlines()
    for row, text in changes.items():
        lines[int(row[1:])] = text
    return "\n".join(lines)


BAD_DATA = {
    "no file": (None, "data.csv: no such file"),
    "empty": ("", "data.csv: the file is empty"),
    "missing column": ("b,c\n1,2\n", "no column 'a'; there are 'b', 'c'"),
    "not a number": (column(r17="high"), "row 17 (line 18), column 'a': 'high' is not a finite"),
    "gap": (column(r20="NaN"), "row 20 (line 21), column 'a': 'NaN', a gap"),
    "column twice": ("a,a\n1,2\n", "column 'a' is named 2 times"),
    "ragged": (column(r3="1,2"), "row 3 (line 4) has 2 cells"),
    "not UTF-8": (b"a\n\xff\xfe\n", "line 2 is not UTF-8"),
}
BAD_FIT = {
    "too few rows": ("a\n1\n2\n3\n", "data.csv: too few rows: 3; a window of 4"),
    "infinite": (column(r9="-inf"), "row 9 (line 10), column 'a': '-inf' is not a finite number"),
    "constant": ("a\n" + "5\n" * 60, "data.csv: the target a never changes"),
    "huge": ("a\n" + "1e200\n-1e200\n" * 30, "data.csv: the numbers are too large"),
}


@pytest.fixture
def untouched(folder):
    """What the outputs held before; they must hold it afterwards."""
    for name in ("out", "out.png"):
        (folder / name).write_text("before")
    before = set(os.listdir(folder))
    yield
    for name in ("out", "out.png"):
        assert (folder / name).read_text() == "before"
    assert {name for name in os.listdir(folder) if name.endswith(".tmp")} == set()
    assert before <= set(os.listdir(folder))


def refused(result, message, code=2):
    assert result[0] == code
    assert result[2].count("\n") == 1
    assert result[2].startswith("fastgates: error: ")
    assert message in result[2]


@needs_files
@needs_plot
@pytest.mark.parametrize("name", [*BAD_DATA, *BAD_FIT])
def test_fit_refuses_bad_data(run, folder, untouched, name):
    content, message = (BAD_DATA | BAD_FIT)[name]
    if content is not None:
        (folder / "data.csv").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    refused(run(*FIT), message)


@needs_files
@pytest.mark.parametrize("name", BAD_DATA)
def test_predict_refuses_bad_data(run, folder, untouched, name):
    content, message = BAD_DATA[name]
    (folder / "data.csv").write_text(COLUMN)
    assert run("fit", "data.csv", "--target", "a", *QUICK, "--out", "model.safetensors")[0] == 0
    (folder / "data.csv").unlink()
    if content is not None:
        (folder / "data.csv").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    refused(run(*PREDICT), message)


@needs_files
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model.safetensors: no such file"),
        (b"", "model.safetensors: not a safetensors file, or cut short"),
        (COLUMN.encode(), "model.safetensors: not a safetensors file, or cut short"),
        (100, "model.safetensors: not a safetensors file, or cut short"),
        (-1, "model.safetensors: not a safetensors file, or cut short"),
        ("other", "model.safetensors: a safetensors file, but not written by fastgates"),
    ],
)
def test_predict_refuses_bad_models(run, folder, untouched, content, message):
    (folder / "data.csv").write_text(COLUMN)
    path = folder / "model.safetensors"
    if isinstance(content, int):
        run("fit", "data.csv", "--target", "a", *QUICK, "--out", path)
        path.write_bytes(path.read_bytes()[:content])
    elif content == "other":
        from safetensors.numpy import save_file

        save_file({"weight": np.zeros(3, np.float32)}, path)
    elif content is not None:
        path.write_bytes(content)
    refused(run(*PREDICT), message)


@needs_files
def test_predict_needs_a_whole_window(run, folder, untouched, model):
    (folder / "data.csv").write_text("level\n1\n2\n3\n")
    refused(run(*PREDICT), "data.csv: at least 4 rows are needed, got 3")


@needs_files
@needs_plot
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "data.csv"], "cannot write data.csv: it is data.csv; give another name"),
        (["--out", "./x.png", "--plot", "x.png"], "cannot write x.png: it is ./x.png"),
        (["--out", "absent/model"], "cannot write absent/model: there is no folder"),
        (["--out", "."], "cannot write .: it is a folder"),
        (["--plot", "fit.doc"], "cannot write fit.doc: a picture must end in .png"),
        (["--plot", "absent/fit.png"], "cannot write absent/fit.png: there is no folder"),
        (["--sequence", "b"], "--sequence has no meaning with --task forecast"),
        (["--balanced"], "--balanced has no meaning with --task forecast"),
        (["--resume"], "--resume has no meaning without --out"),
        (["--task", "regression", "--horizon", "3"], "--horizon has no meaning with --task regr"),
        (["--task", "regression", "--per-step"], "--per-step needs --sequence"),
        (["--task", "regression", "--sequence", "b"], "--sequence and --window exclude each other"),
        (["--task", "classification", "--loss", "mae"], "--loss has no meaning with --task class"),
        (["--plot", "fit.png", "--test", "0"], "--plot draws the test part, of which --test 0"),
    ],
)
def test_fit_checks_its_outputs_before_training(run, folder, monkeypatch, arguments, message):
    monkeypatch.setattr(Trainer, "fit", unexpected)
    (folder / "data.csv").write_text(COLUMN)
    refused(run("fit", "data.csv", "--target", "a", *QUICK, *arguments), message)
    assert (folder / "data.csv").read_text() == COLUMN


@needs_files
def test_predict_does_not_write_over_its_inputs(run, folder, plant, model):
    before = model.read_bytes()
    refused(run("predict", model, plant, "--out", model), "give another name")
    refused(run("predict", model, plant, "--out", plant), "give another name")
    assert model.read_bytes() == before


def unexpected(*arguments, **named):
    raise AssertionError("training began")


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("safetensors", ["--out", "model"], "pip install 'fastgates[files]'"),
        ("matplotlib", ["--plot", "fit.png"], "pip install 'fastgates[plot]'"),
    ],
)
def test_absent_packages_are_missed_before_training(
    run, folder, monkeypatch, package, arguments, message
):
    load = _extras.importlib.import_module

    def absent(name):
        if name == package:
            raise ImportError(name)
        return load(name)

    monkeypatch.setattr(_extras.importlib, "import_module", absent)
    monkeypatch.setattr(Trainer, "fit", unexpected)
    (folder / "data.csv").write_text(COLUMN)
    refused(run("fit", "data.csv", "--target", "a", *QUICK, *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["fit", "data.csv"], "--target is needed, on the command line or in the configuration"),
        (["fit"], "DATA is needed"),
        (["fit", "data.csv", "--target", "a", "--window", "0"], "at least 1, got '0'"),
        (["fit", "data.csv", "--target", "a", "--hidden", "many"], "at least 1, got 'many'"),
        (["fit", "data.csv", "--target", "a", "--cell", "tcn"], "invalid choice: 'tcn'"),
        (["fit", "data.csv", "--target", "a", "--inputs", "b,,c"], "separated by commas"),
        (["fit", "data.csv", "--target", "a", "--seed", "-1"], "at least 0, got '-1'"),
        (["fit", "data.csv", "--target", "a", "--learning-rate", "nan"], "positive number"),
    ],
)
def test_wrong_usage(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


@needs_files
def test_interrupt(run, folder, untouched, monkeypatch):
    """A second Ctrl-C: the first one lets the step end."""

    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", interrupted)
    (folder / "data.csv").write_text(COLUMN)
    code, _, err = run(*FIT[:-2])
    assert code == 130
    assert err.endswith("fastgates: interrupted; no file is half-written\n")


def test_divergence(run, folder):
    (folder / "data.csv").write_text(COLUMN)
    code, _, err = run("fit", "data.csv", "--target", "a", *QUICK, "--learning-rate", "1e37")
    assert code == 1
    assert err.splitlines()[-1].startswith("fastgates: error: ")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "out"), "cannot write out: No space left on"),
        (MemoryError(), "not enough memory for a model of this size"),
    ],
)
def test_failures_of_the_machine_are_one_line(run, monkeypatch, error, message):
    def failing(arguments):
        raise error

    monkeypatch.setattr(info, "_run", failing)
    refused(run("info"), message)


@needs_files
def test_a_failed_save_leaves_the_old_model(run, plant, model, monkeypatch):
    before = model.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = run("fit", plant, "--target", "level", *QUICK, "--out", model)
    assert result[0] == 2
    assert "No space left on device" in result[2].splitlines()[-1]
    assert model.read_bytes() == before
    assert sorted(os.listdir(plant.parent)) == ["model.safetensors", "plant.csv"]


@needs_files
@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("predict", ["--next", "--lead", "1"], "--next and --lead exclude each other"),
        ("predict", ["--window", "3"], "--window has no meaning with a forecaster"),
        ("evaluate", ["--sequence", "level"], "--sequence has no meaning with a forecaster"),
    ],
)
def test_options_that_would_have_no_effect(run, plant, model, command, options, message):
    code, out, err = run(command, model, plant, *options)
    assert (code, out) == (2, "") and message in err


def test_a_pipe_is_read_once(run, folder):
    os.mkfifo("pipe")
    refused(run("fit", "pipe", "--target", "a", "--task", "regression"), "name the columns")
