"""The examples run, in their quick mode, and give finite errors."""

import runpy

import numpy as np
import pytest
from helpers import ROOT

EXAMPLES = ROOT / "examples"
SCRIPTS = ["heat_demand", "japanese_vowels", "sunspots", "two_tanks"]
# Those that test_embedding_examples.py runs.
EMBEDDED = ["hybrid_simulation", "image_axis", "mapped_anomalies", "soft_sensor"]


@pytest.fixture
def example(monkeypatch):
    """Run an example's main with these arguments."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def call(name, *arguments):
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](list(arguments))

    return call


def numbers(found):
    if isinstance(found, dict):
        return [number for each in found.values() for number in numbers(each)]
    return list(found)


def test_all_are_here():
    found = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py"))
    assert found == sorted(SCRIPTS + EMBEDDED)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.parity if name == "japanese_vowels" else ())
        for name in SCRIPTS
    ],
)
def test_quick(example, name, capsys):
    if name == "japanese_vowels" and example_data_is_missing():
        pytest.skip("aeon is not installed")
    found = example(name, "--quick")
    assert np.isfinite(numbers(found)).all() and numbers(found)
    shown = capsys.readouterr().out
    assert all(row in shown for row in rows(found))


def rows(found):
    return [
        row
        for key, each in found.items()
        for row in (rows(each) if isinstance(each, dict) else [key])
    ]


def example_data_is_missing():
    namespace = runpy.run_path(str(EXAMPLES / "japanese_vowels.py"))
    return namespace["folder"]() is None


@pytest.mark.parametrize("name", ["sunspots", "two_tanks"])
def test_picture(example, name, tmp_path):
    pytest.importorskip("matplotlib")
    example(name, "--quick", "--plot", str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_unequal_runs_are_read_from_text(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLES)
    read_ts = runpy.run_path(str(EXAMPLES / "japanese_vowels.py"))["read_ts"]
    text = "# about\n@problemName x\n@data\n1,2,3:4,5,6:a\n7:8:b\n\n"
    (tmp_path / "x.ts").write_text(text)
    runs, labels = read_ts(tmp_path / "x.ts")
    assert labels == ["a", "b"]
    assert runs[0].tolist() == [[1, 4], [2, 5], [3, 6]] and runs[1].tolist() == [[7, 8]]


def test_the_plant_obeys_its_equations(monkeypatch):
    """Constant input: levels where what comes in goes out, and never above the rim."""
    monkeypatch.syspath_prepend(EXAMPLES)
    simulate = runpy.run_path(str(EXAMPLES / "two_tanks.py"))["simulate"]
    u = np.full(2000, 0.5)
    levels = simulate(u, 0.08, 0.08, 0.09, 0.11, 0.5, 1.0, 20)
    x1 = (0.11 * 0.5 / 0.08) ** 2
    np.testing.assert_allclose(levels[-1], [x1, x1 * (0.08 / 0.09) ** 2], rtol=1e-3)
    full = simulate(np.ones(500), 0.08, 0.08, 0.09, 0.11, 0.5, 1.0, 20)
    assert full.max() == 1.0
