"""C99 sources: they compile without a warning, run without a fault, and give the same numbers."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from helpers import normal
from test_streaming import GENERAL, every_kind

import fastgates as fg
from fastgates import cells
from fastgates.cells import _cell

WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run_c(source, folder, compiler, *options, before=()):
    """Compile the sources and their test, run it, and return what it prints."""
    source.write(folder)
    files = [f"{source.name}.c", f"{source.name}_test.c"]
    command = [compiler, *WARNINGS, *options, *files, "-o", "program"]
    compiled = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0 and not compiled.stderr, compiled.stderr
    ran = subprocess.run(
        [*before, "./program"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("24 steps: largest error")
    return ran.stdout


def randomize(layer):
    """Larger parameters, so that functions leave their straight part.

    Not so large that the network is chaotic: a sum that is rounded twice instead of once must not
    grow from step to step.
    """
    with layer.edit_parameters() as parameters:
        parameters.vector[:] = normal(np.random.default_rng(0), parameters.vector.size) * 0.3
    return layer


@needs("gcc")
@pytest.mark.parametrize("scalar", [False, True], ids=["vectors", "scalar"])
def test_every_cell(case, scalar, tmp_path):
    layer = randomize(case.build(3, 11, 2, seed=0))
    run_c(layer.to_c(scalar=scalar), tmp_path, "gcc", "-O1")


@needs("gcc")
@pytest.mark.parametrize("layer", GENERAL, ids=repr)
def test_cells_with_settings(layer, tmp_path):
    run_c(randomize(layer).to_c(), tmp_path, "gcc", "-O1")


@needs("gcc")
def test_a_fifth_cell(tmp_path):
    import toy_cell

    layer = fg.Recurrent(toy_cell.COUPLED_LSTM, 3, 5, seed=0)
    run_c(randomize(layer).to_c(), tmp_path, "gcc", "-O1")


@needs("gcc")
def test_a_cell_whose_names_have_a_meaning_in_c(tmp_path, monkeypatch):
    """Keywords, and what the functions around its equations call their own."""
    import toy_cell

    slots, states = ("width", "k", "slots"), ("float", "k")
    cell = replace(toy_cell.COUPLED_LSTM, name="c", gates=slots, slots=slots, states=states)
    monkeypatch.setitem(_cell._registry, cell.name, cell)
    run_c(randomize(fg.Recurrent(cell, 3, 5, seed=0)).to_c("load"), tmp_path, "gcc", "-O1")


COMPILERS = [
    pytest.param(compiler, options, id=f"{compiler} {' '.join(options)}", marks=needs(compiler))
    for compiler in ("gcc", "clang")
    for options in (
        ["-O3"],
        ["-O3", "-march=native", "-ffp-contract=fast"],
        ["-O1", *SANITIZERS],
    )
]


@pytest.mark.parametrize(("compiler", "options"), COMPILERS)
@pytest.mark.parametrize("scalar", [False, True], ids=["vectors", "scalar"])
def test_every_kind_of_module(compiler, options, scalar, tmp_path):
    run_c(every_kind().to_c("net", scalar=scalar), tmp_path, compiler, *options)


@needs("arm-linux-gnueabihf-gcc")
@needs("qemu-arm")
@pytest.mark.parametrize("scalar", [False, True], ids=["vectors", "scalar"])
def test_32_bit_arm(scalar, tmp_path):
    source = every_kind().to_c(scalar=scalar)
    options = ["-O2", "-static", *([] if scalar else ["-mfpu=neon"])]
    run_c(source, tmp_path, "arm-linux-gnueabihf-gcc", *options, before=["qemu-arm"])


@needs("gcc")
@needs("make")
def test_makefile(tmp_path):
    every_kind().to_c("net").write(tmp_path)
    made = subprocess.run(
        ["make", "test", "size"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "24 steps: largest error" in made.stdout
    assert not made.stderr


@needs("gcc")
@needs("nm")
@pytest.mark.parametrize("scalar", [False, True], ids=["vectors", "scalar"])
def test_no_library_and_no_globals(scalar, tmp_path):
    """The object asks for what compilers put in place of a loop; it has nothing to write to."""
    every_kind().to_c(scalar=scalar).write(tmp_path)
    subprocess.run(["gcc", *WARNINGS, "-O2", "-c", "model.c"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["nm", "model.o"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    kinds = {}
    for line in listed.splitlines():
        kind, name = line.split()[-2:]
        kinds.setdefault(kind, set()).add(name)
    assert kinds.pop("U", set()) <= {"memcpy", "memset"}
    assert kinds.pop("T") == {"model_init", "model_step", "model_run"}
    assert set(kinds) <= {"t", "r"}  # functions and constants of the file


def test_the_same_model_gives_the_same_text():
    assert every_kind().to_c().files == every_kind().to_c().files


def test_report():
    source = fg.LSTM(4, 10, seed=0).to_c(scalar=True)
    assert source.report.weights == 4 * (40 + 40 * 4 + 40 * 10)
    assert source.report.state == 4 * (2 * 10 + 40)
    assert source.report.multiply_adds == 40 * 14
    assert source.report.functions == 50
    assert str(source.report) in source.files["model.h"]
    assert "\n" not in str(source.report)
    padded = fg.LSTM(4, 10, seed=0).to_c().report
    assert padded.multiply_adds == 40 * 14 and padded.weights > source.report.weights


@needs("gcc")
def test_c_plus_plus_may_include_the_header(tmp_path):
    fg.GRU(2, 3, seed=0).to_c().write(tmp_path)
    (tmp_path / "main.cpp").write_text('#include "model.h"\nmodel_state state;\n')
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    subprocess.run(["g++", "-Wall", "-Werror", "-c", "main.cpp"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", ["", "1st", "my model", "int", "größe"])
def test_names(name):
    with pytest.raises(ValueError, match="name must be an identifier of C"):
        fg.GRU(2, 3, seed=0).to_c(name)


def test_parameters_that_are_not_finite():
    layer = fg.GRU(2, 3, seed=0)
    with layer.edit_parameters() as parameters:
        parameters["bias_ih_l0"][0] = np.inf
    with pytest.raises(ValueError, match="all numbers must be finite"):
        layer.to_c()


@needs("gcc")
def test_command(run, folder):
    fg.save(every_kind(), "model.safetensors")
    code, out, err = run("export", "model.safetensors", "--to", "c", "--out", "there")
    assert (code, err) == (0, "")
    assert "bytes of weights (flash)" in out
    subprocess.run(["gcc", *WARNINGS, "model.c", "model_test.c"], cwd=folder / "there", check=True)
    subprocess.run(["./a.out"], cwd=folder / "there", check=True, capture_output=True)
    code, out, err = run("export", "model.safetensors", "--out", "plain", "--scalar", "--name", "n")
    assert code == 0 and (folder / "plain" / "n.h").exists()


def test_command_with_what_cannot_be_exported(run, folder):
    fg.save(fg.GRU(2, 3, bidirectional=True, seed=0), "both.safetensors")
    code, _, err = run("export", "both.safetensors", "--out", "there")
    assert code == 2 and "starts at the end of a sequence" in err
    assert not (folder / "there").exists()
    fg.save(fg.GRU(2, 3, seed=0), "one.safetensors")
    code, _, err = run("export", "one.safetensors", "--out", "there", "--name", "a b")
    assert code == 2 and "name must be an identifier of C, got 'a b'" in err


@cells.helper
def step_by_module(slots, states, constant):
    f, g, o = slots
    _, c = states
    minus_g = -g
    f, g, o = cells.sigmoid(f), cells.tanh(-minus_g), cells.sigmoid(o)
    c = cells.fma(f, c - g, g)
    return (o * cells.tanh(c), c), (f, g, o)


@needs("gcc")
def test_equations_of_any_names(tmp_path, monkeypatch):
    """Names that meet those of other values, addresses and functions; helpers by their module."""
    import toy_cell

    made = []
    for name, slots, states in (
        ("gate-x", ("a b", "a_b", "vec_tanh"), ("h", "h_at")),
        ("gate_x", ("at_h", "s_h", "b_h"), ("vec_tanh", "tile_8")),
    ):
        cell = replace(
            toy_cell.COUPLED_LSTM, name=name, gates=slots, slots=slots, states=states,
            equations=step_by_module,
        )  # fmt: skip
        monkeypatch.setitem(_cell._registry, name, cell)
        made.append(randomize(fg.Recurrent(cell, 3, 3, seed=0)))
    run_c(fg.Sequential(*made).to_c(), tmp_path, "gcc", "-O1")


UNUSED = [
    fg.Sequential(fg.RNN(2, 3, nonlinearity="relu", bias=False, seed=0), fg.Dense(3, 1, seed=0)),
    fg.LSTM(2, 3, activations=("hard_sigmoid", ("elu", 0.5), "softplus"), seed=0),
    fg.Scaling([1.0, 2.0], [3.0, 4.0]),
]


@needs("clang")
@pytest.mark.parametrize("model", UNUSED, ids=repr)
@pytest.mark.parametrize("scalar", [False, True], ids=["vectors", "scalar"])
def test_functions_that_are_not_used_are_not_written(model, scalar, tmp_path):
    run_c(model.to_c(scalar=scalar), tmp_path, "clang", "-O1")
