"""The script that measures what training costs beyond its kernels, in its quick mode."""

import json
import runpy

import pytest
from helpers import ROOT

from fastgates import _jit


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "bench" / "epoch.py"))


def test_the_parts_add_up_and_are_written(script, tmp_path, capsys):
    document, figures = tmp_path / "page.md", tmp_path / "figures.json"
    document.write_text("before\n<!-- epoch:report -->\nold\n<!-- epoch:end -->\nafter\n")
    results = script["main"](["--quick", "--json", str(figures), "--write", str(document)])
    assert json.loads(figures.read_text()) == results
    assert [(row["cell"], row["T"], row["output"]) for row in results["rows"]] == [
        ("gru", 24, "sequence"),
        ("gru", 24, "step"),
    ]
    for row in results["rows"]:
        parts = row["microseconds"]
        assert parts["step"] == pytest.approx(
            parts["network"] + parts["other kernels"] + parts["outside"]
        )
        assert all(value > 0 for value in parts.values())
    text = document.read_text()
    assert text.startswith("before\n<!-- epoch:report -->\nMicroseconds a step")
    assert text.endswith("|\n<!-- epoch:end -->\nafter\n") and "old" not in text
    assert "| gru " in capsys.readouterr().out


def test_the_clocks_are_taken_off_again(script):
    before = {name: kernel.dispatcher for name, kernel in _jit.kernels().items()}
    with script["clocked_kernels"]() as clocks:
        assert {clock.name for clock in clocks} == set(before)
    assert {name: kernel.dispatcher for name, kernel in _jit.kernels().items()} == before


def test_a_document_without_marks_is_left_alone(script, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("nothing here\n")
    with pytest.raises(SystemExit):
        script["main"](["--quick", "--write", str(document)])
    assert document.read_text() == "nothing here\n"
